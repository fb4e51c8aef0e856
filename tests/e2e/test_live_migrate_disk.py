"""LiveMigrateDisk on real hosts: the disk is where its VM writes, whatever fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    ABORTED,
    DISK,
    FAILED,
    FINISHED,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    outline,
    reason_of,
    steps_of,
)
from tests.e2e.migrations import STAGES, a_running_vm, migrate, where_it_is

pytestmark = pytest.mark.asyncio(loop_scope="module")

UP_TO_THE_SWITCH = list(STAGES)[:5]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre with two hosts."""
    environment = {"COORDINATOR_POLL_SECONDS": "1", "HOSTAGENT_SIM_BOOT_MS": "20"}
    async with data_centre(tmp_path_factory.mktemp("centre"), environment=environment) as centre:
        yield centre


@pytest.mark.rule(
    "semantics §7: LiveMigrateDisk (serial): V; X → CREATE_SNAPSHOT, CLONE_IMAGE_STRUCTURE; F; ends: the last stage"
)
async def test_the_disk_of_a_running_vm_is_moved_stage_by_stage(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-move")
    snapshot = await centre.run("CreateSnapshot", {"disk_id": disk_id, "snapshot_id": "kept"})
    assert_all_finished([snapshot])
    job = await centre.ended(await migrate(centre, disk_id))
    assert_all_finished([job])
    assert outline(job)[2:] == [(step, "FINISHED") for step in (*STAGES.values(), "FINALIZATION")]
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-2", {"host-2": "LEGAL"}, "host-2")
    assert there.snapshots == {"host-2": ["kept"]}
    assert await centre.effects(disk_id) == {
        "createVolume": 1,
        "createSnapshot": 2,
        **{verb: 1 for verb in STAGES if verb != "createSnapshot"},
    }
    await assert_all_over(centre, [snapshot, job])


@pytest.mark.rule("semantics §7: LiveMigrateDisk: disk on source, destination cleaned, snapshot merged away, FAILED")
@pytest.mark.parametrize("verb", UP_TO_THE_SWITCH)
@pytest.mark.parametrize("outcome", ["fail", "fail_dirty"])
async def test_a_failure_up_to_the_switch_leaves_the_disk_on_the_source(
    centre: DataCentre, verb: str, outcome: str
) -> None:
    disk_id = await a_running_vm(centre, f"vm-{verb}-{outcome}".lower().replace("_", "-"))
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": verb, "outcome": outcome, "count": 1, "error": "the disk is broken"})
    job = await centre.ended(await migrate(centre, disk_id))
    assert job.status == FAILED
    assert "the disk is broken" in job.error.message
    assert steps_of(job, STAGES[verb])[0].status == FAILED
    there = await where_it_is(centre, disk_id)
    broken = (verb, outcome) == ("createSnapshot", "fail_dirty")  # the source itself, and it cannot be merged
    legality = "ILLEGAL" if broken else "LEGAL"
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": legality}, "host-1")
    assert there.snapshots == {"host-1": []}
    assert there.status == ("ILLEGAL" if broken else "OK")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §7: LiveMigrateDisk: after it: disk on destination, FINISHED, leftovers named in an event")
@pytest.mark.parametrize("verb", ["deleteImage", "mergeSnapshots"])
async def test_a_failure_after_the_switch_leaves_something_over_and_says_so(centre: DataCentre, verb: str) -> None:
    disk_id = await a_running_vm(centre, f"vm-late-{verb}".lower())
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": verb, "outcome": "fail", "count": 1, "error": "the disk is broken"})
    job = await centre.ended(await migrate(centre, disk_id))
    assert_all_finished([job])
    assert steps_of(job, STAGES[verb])[0].status == FAILED
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.writes_to, there.status) == ("host-2", "host-2", "OK")
    [event] = await centre.events(job, "LEFTOVER")
    assert disk_id in event.message
    assert ("host-1" if verb == "deleteImage" else "host-2") in event.message
    await assert_all_over(centre, [job])


async def test_a_cancelled_migration_goes_back_to_the_source(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-cancel")
    await centre.program("host-2", {"verb": "syncImageData", "outcome": "hang"})
    job = await migrate(centre, disk_id)
    await centre.until_running(job, 4)
    await centre.client.cancel_job(job.job_id, "changed my mind")
    job = await centre.ended(job)
    assert job.status == ABORTED
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": "LEGAL"}, "host-1")
    assert there.snapshots == {"host-1": []}
    await assert_all_over(centre, [job])


async def test_a_disk_that_is_being_moved_is_nobody_elses(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-busy")
    await centre.program("host-2", {"verb": "syncImageData", "work_ms": 2000})
    job = await migrate(centre, disk_id)
    for command_type, parameters in (
        ("CreateSnapshot", {"disk_id": disk_id, "snapshot_id": "s"}),
        ("StopVm", {"vm_id": "vm-busy"}),
    ):
        other = await centre.run(command_type, parameters)
        assert (other.status, reason_of(other)) == (FAILED, "LOCKED")
        assert job.job_id in other.error.message
    assert (await centre.ended(job)).status == FINISHED


@pytest.mark.rule("semantics §7: `AddDisk`, `CreateSnapshot`: V; X → CREATE_VOLUME / CREATE_SNAPSHOT; F; ends: task")
async def test_a_disk_and_a_snapshot_are_made_by_one_task_each(centre: DataCentre) -> None:
    disk = await centre.run("AddDisk", {"disk_id": "single", "size_mb": 1, "host_id": "host-1"})
    snapshot = await centre.run("CreateSnapshot", {"disk_id": "single", "snapshot_id": "single-snap"})
    for job, step_type in ((disk, "CREATE_VOLUME"), (snapshot, "CREATE_SNAPSHOT")):
        steps = ("VALIDATION", "EXECUTION", step_type, "FINALIZATION")
        assert outline(job) == [(each, "FINISHED") for each in steps]
    await assert_all_over(centre, [disk, snapshot])


async def test_a_snapshot_that_fails_was_never_there(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-snap")
    await centre.program("host-1", {"verb": "createSnapshot", "outcome": "fail"})
    job = await centre.run("CreateSnapshot", {"disk_id": disk_id, "snapshot_id": "snap-1"})
    assert outline(job)[1:] == [("EXECUTION", "FAILED"), ("CREATE_SNAPSHOT", "FAILED"), ("FINALIZATION", "FINISHED")]
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    assert disk.status == "OK"
    assert (await where_it_is(centre, disk_id)).snapshots == {"host-1": []}
    await assert_all_over(centre, [job])
