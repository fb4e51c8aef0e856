"""CancelJob and deadlines, of AddDisk, whose running task is stopped and rolled back, and of what cannot be undone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.e2e.datacentre import (
    ABORTED,
    DISK,
    FAILED,
    FINISHED,
    STARTED,
    VM,
    DataCentre,
    assert_all_over,
    outline,
    reason_of,
)

from waybill.v1.hostagent_pb2 import StopTaskRequest
from waybill.v1.jobs_pb2 import CancelKind, Job
from waybill_client import FailedPrecondition, InvalidArgument, NotFound
from waybill_client.words import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODYS_ID = "01936f2e-7b1c-7d55-8f7e-000000000001"


async def test_a_cancelled_job_stops_its_task_and_leaves_nothing(centre: DataCentre) -> None:
    await centre.declare_vm("vm-a")
    job = await _hanging(centre, "disk-a", vm_id="vm-a")
    answer = await centre.client.cancel_job(job.job_id, "no money left")
    assert answer.cancelable == CancelKind.CANCEL_KIND_NONE
    job = await centre.ended(job)
    assert job.status == ABORTED
    assert reason_of(job) == "ABORTED"
    assert "anonymous: no money left" in job.error.message
    assert outline(job) == [
        ("VALIDATION", "FINISHED"),
        ("EXECUTION", "ABORTED"),
        ("CREATE_VOLUME", "ABORTED"),
        ("FINALIZATION", "FINISHED"),
    ]
    await _assert_no_trace(centre, "disk-a")
    vm = await centre.entity(VM, "vm-a")
    assert vm is not None
    assert plain(vm.declared)["disk_ids"] == []
    [event] = await centre.events(job, "JOB_CANCELED")
    assert (event.user, event.correlation_id) == ("anonymous", job.correlation_id)
    await assert_all_over(centre, [job])


async def test_a_second_cancel_is_no_error_and_stops_nothing_twice(centre: DataCentre) -> None:
    job = await _hanging(centre, "disk-b")
    await asyncio.gather(*(centre.client.cancel_job(job.job_id, f"reason {number}") for number in range(3)))
    job = await centre.ended(job)
    assert job.status == ABORTED
    assert len(await centre.events(job, "JOB_CANCELED")) == 1
    stops = [
        stop for stop in centre.taps["host-1"].requests(StopTaskRequest) if stop.flow_command_id == job.flow_command_id
    ]
    assert len(stops) == 1
    assert stops[0].correlation_id == job.correlation_id
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.cancel_job(job.job_id)
    assert refused.value.reason == "JOB_ENDED"


async def test_all_that_match_a_filter_are_cancelled_and_nothing_else(centre: DataCentre) -> None:
    meant = [await _hanging(centre, f"disk-all-{number}") for number in range(3)]
    spared = await _hanging(centre, "disk-spared")
    filter = 'entity:"DISK/disk-all-*" OR entity:"DISK/disk-nowhere"'
    matching = await centre.client.unended_jobs(filter)
    wished = {job.job_id: refusal async for job, refusal in centre.client.cancel_jobs(matching, "all of them")}
    assert wished == {job.job_id: None for job in meant}
    assert {(await centre.ended(job)).status for job in meant} == {ABORTED}
    assert (await centre.client.get_job(spared.job_id)).status == STARTED
    await centre.client.cancel_job(spared.job_id)
    await centre.ended(spared)
    assert await centre.client.unended_jobs(filter) == []
    again = [refusal async for _, refusal in centre.client.cancel_jobs(matching)]
    assert [refusal and refusal.reason for refusal in again] == ["JOB_ENDED"] * 3
    with pytest.raises(InvalidArgument, match="at character 1: there is no field colour"):
        await centre.client.unended_jobs("colour = red")


@pytest.mark.rule("semantics §6: An entity named by a node that had begun and is not known to be rolled back becomes")
async def test_a_roll_back_that_fails_leaves_an_illegal_disk(centre: DataCentre) -> None:
    rule = {"verb": "createVolume", "match": {"volume_id": "disk-c"}, "outcome": "fail_dirty", "work_ms": 300}
    await centre.program("host-1", rule)
    job = await centre.run("AddDisk", _disk("disk-c"))
    assert job.status == FAILED
    disk = await centre.entity(DISK, "disk-c")
    assert disk is not None
    assert disk.status == "ILLEGAL"
    assert [event.entity.entity_id for event in await centre.events(job, "TASK_NOT_ROLLED_BACK")] == ["disk-c"]
    await assert_all_over(centre, [job])


async def test_a_passed_deadline_stops_the_task_and_fails_the_job(centre: DataCentre) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=0.6)
    job = await _hanging(centre, "disk-d", deadline=deadline)
    job = await centre.ended(job)
    assert job.status == FAILED
    assert reason_of(job) == "DEADLINE_EXCEEDED"
    assert job.end_time.ToDatetime(UTC) >= deadline
    assert len(await centre.events(job, "JOB_DEADLINE_EXCEEDED")) == 1
    await _assert_no_trace(centre, "disk-d")
    await assert_all_over(centre, [job])


async def test_a_deadline_that_has_passed_already_lets_nothing_begin(centre: DataCentre) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    job = await centre.run("AddDisk", _disk("disk-e"), deadline=yesterday)
    assert job.status == FAILED
    assert reason_of(job) == "DEADLINE_EXCEEDED"
    await _assert_no_trace(centre, "disk-e")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §8: Racing with completion → the one terminal transition decides")
async def test_against_completion_one_of_the_two_wins_whole(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "work_ms": 60})
    jobs = [await centre.client.run_command("AddDisk", _disk(f"race-{number}")) for number in range(16)]
    wishes = [_cancel_after(centre, job, 0.01 * number) for number, job in enumerate(jobs)]
    await asyncio.gather(*wishes)
    ended = [await centre.ended(job) for job in jobs]
    for number, job in enumerate(ended):
        await _assert_whole(centre, job, f"race-{number}")
    await assert_all_over(centre, ended)


async def test_what_began_and_cannot_be_undone_is_not_cancelled(centre: DataCentre) -> None:
    await centre.declare_vm("vm-f")
    job = await centre.client.run_command("RunVm", {"vm_id": "vm-f"})
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.cancel_job(job.job_id)
    assert refused.value.reason in ("NOT_CANCELABLE", "JOB_ENDED")
    assert (await centre.ended(job)).status == FINISHED


async def test_only_a_job_that_there_is_can_be_cancelled(centre: DataCentre) -> None:
    before = await centre.stored()
    with pytest.raises(NotFound) as missing:
        await centre.client.cancel_job(NOBODYS_ID)
    assert missing.value.reason == "JOB_NOT_FOUND"
    for job_id, reason, field in [
        ("disk-a", "", "job_id"),
        (NOBODYS_ID, "\0", "reason"),
        (NOBODYS_ID, "r" * 257, "reason"),
    ]:
        with pytest.raises(InvalidArgument) as refused:
            await centre.client.cancel_job(job_id, reason)
        assert [violation.field for violation in refused.value.violations] == [field]
    assert await centre.stored() == before


def _disk(disk_id: str, **more: Any) -> dict[str, Any]:
    return {"disk_id": disk_id, "size_mb": 10, "host_id": "host-1", **more}


async def _hanging(centre: DataCentre, disk_id: str, *, deadline: datetime | None = None, **more: Any) -> Job:
    """An AddDisk whose task runs and will never end by itself."""
    await centre.program("host-1", {"verb": "createVolume", "match": {"volume_id": disk_id}, "outcome": "hang"})
    job = await centre.client.run_command("AddDisk", _disk(disk_id, **more), deadline=deadline)
    assert job.status == STARTED
    await centre.until_running(job)
    return job


async def _cancel_after(centre: DataCentre, job: Job, seconds: float) -> None:
    await asyncio.sleep(seconds)  # the moments are what the test is about
    try:
        await centre.client.cancel_job(job.job_id)
    except FailedPrecondition as refused:
        if refused.reason not in ("JOB_ENDED", "NOT_CANCELABLE"):
            raise


async def _assert_whole(centre: DataCentre, job: Job, disk_id: str) -> None:
    """Either the disk is there, or nothing of it is."""
    if job.status == ABORTED:
        await _assert_no_trace(centre, disk_id)
        return
    assert job.status == FINISHED
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    assert disk.status == "OK"
    assert await centre.volume_state(disk_id) == "LEGAL"


async def _assert_no_trace(centre: DataCentre, disk_id: str) -> None:
    assert await centre.entity(DISK, disk_id) is None
    assert await centre.volume_state(disk_id) == "GONE"
    assert await centre.effects(disk_id) in ({}, {"discardVolume": 1}, {"createVolume": 1, "discardVolume": 1})
