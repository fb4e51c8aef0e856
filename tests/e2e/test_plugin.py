"""A command and a verb out of a package that is not ours (tests/plugin/waybill_scrub, docs/your-own-command.md)."""

from __future__ import annotations

import pytest
from tests.e2e.datacentre import DISK, FAILED, DataCentre, assert_all_finished, assert_all_over, outline, reason_of

from waybill.v1.jobs_pb2 import CancelKind
from waybill_client import InvalidArgument

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.rule("semantics §2: a user adds commands in an own package and changes nothing here")
@pytest.mark.rule("semantics §1: StepType: plus any a plug-in registers")
@pytest.mark.rule("semantics §2: found through the entry point group waybill.commands; verbs of host drivers likewise")
async def test_a_command_and_a_verb_of_another_package_run_like_ours(centre: DataCentre) -> None:
    await centre.run("AddDisk", {"disk_id": "disk-scrub", "size_mb": 64, "host_id": "host-2"})
    job = await centre.run("ScrubDisk", {"disk_id": "disk-scrub"})
    assert_all_finished([job])
    assert outline(job)[2:] == [("SCRUB_DISK", "FINISHED"), ("FINALIZATION", "FINISHED")]
    disk = await centre.entity(DISK, "disk-scrub")
    assert disk is not None
    assert disk.declared["scrubs"] == 1
    assert (await centre.effects("disk-scrub"))["scrubVolume"] == 1
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §2: A command type has: a name, a parameter class with a version, categories, monitored")
async def test_it_is_listed_with_its_schema_and_its_parameters_are_checked(centre: DataCentre) -> None:
    scrub = {each.name: each for each in await centre.client.list_command_types()}["ScrubDisk"]
    assert (scrub.version, scrub.categories, scrub.monitored) == (1, ["storage"], True)
    assert scrub.cancel == CancelKind.CANCEL_KIND_REVERT
    assert scrub.description == "Reads a disk from end to end, and repairs what can be repaired."
    assert scrub.parameters_schema["required"] == ["disk_id"]
    with pytest.raises(InvalidArgument) as refused:
        await centre.client.run_command("ScrubDisk", {"disk": "disk-scrub"})
    assert "disk_id" in {violation.field.rpartition(".")[2] for violation in refused.value.violations}


async def test_what_it_refuses_is_a_failed_job_with_its_reason(centre: DataCentre) -> None:
    job = await centre.run("ScrubDisk", {"disk_id": "disk-nowhere"})
    assert (job.status, reason_of(job)) == (FAILED, "ENTITY_NOT_FOUND")
