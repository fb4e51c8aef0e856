"""RemoveVm of a VM with four disks over two hosts: all goes well, or one deletion meets every kind of trouble."""

from __future__ import annotations

import pytest
from tests.e2e.datacentre import (
    DISK,
    FAILED,
    FINISHED,
    STARTED,
    UNKNOWN,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    outline,
    reason_of,
    steps_of,
)

from waybill.v1.jobs_pb2 import CancelKind, Job, Severity, Step, TaskResult
from waybill_client import FailedPrecondition
from waybill_client.words import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.rule("semantics §7: `RemoveVm` → `RemoveAllVmImages` → `RemoveImage` × n: V; X → DELETE_IMAGE × n; F")
@pytest.mark.rule('semantics §7: RemoveVm: "Removed" is said only when it is true')
@pytest.mark.rule("semantics §4: Description and subject names; they outlive the entity")
@pytest.mark.rule("semantics §3: 10 s after a flow's end no reachable host has a task of it")
@pytest.mark.rule("semantics §2: A child shows no steps and makes no job unless asked to")
async def test_all_images_are_deleted_and_the_vm_is_gone(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-well")
    job = await centre.run("RemoveVm", {"vm_id": "vm-well"})
    assert outline(job) == [
        ("VALIDATION", "FINISHED"),
        ("EXECUTION", "FINISHED"),
        *[("DELETE_IMAGE", "FINISHED")] * 4,
        ("FINALIZATION", "FINISHED"),
    ]
    assert_all_finished([job])
    assert job.description == "Removing VM vm-well's name"
    assert await centre.entity(VM, "vm-well") is None
    for disk_id in disk_ids:
        assert await centre.entity(DISK, disk_id) is None
        assert await centre.volume_state(disk_id) == "GONE"
        assert await centre.effects(disk_id) == {"createVolume": 1, "deleteImage": 1}
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §7: RemoveVm: One fails → that disk ILLEGAL with an event naming its ids, the rest")
@pytest.mark.rule("semantics §4: A failed task makes exactly its step FAILED; siblings keep their own results")
async def test_one_deletion_that_fails_makes_exactly_its_step_failed(centre: DataCentre) -> None:
    await centre.furnish("vm-one")
    await centre.program("host-2", _rule("vm-one-disk-1", outcome="fail", error="the disk is on fire"))
    job = await centre.run("RemoveVm", {"vm_id": "vm-one"})
    assert _fates(job) == {"0": FINISHED, "1": FAILED, "2": FINISHED, "3": FINISHED}
    assert job.status == FAILED
    assert job.progress < 100
    assert "the disk is on fire" in _step_of(job, "1").error.message
    assert outline(job)[-1] == ("FINALIZATION", "FINISHED")
    assert await centre.entity(VM, "vm-one") is None
    await _assert_illegal(centre, job, "vm-one-disk-1")
    assert await centre.volume_state("vm-one-disk-1") == "LEGAL"  # it was rolled back
    for number in (0, 2, 3):
        assert await centre.entity(DISK, f"vm-one-disk-{number}") is None
        assert await centre.effects(f"vm-one-disk-{number}") == {"createVolume": 1, "deleteImage": 1}
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §3: If one fails → CLEAN_FAILURE and an alarm event naming the object")
async def test_a_failed_deletion_that_was_not_rolled_back_raises_an_alarm(centre: DataCentre) -> None:
    await centre.furnish("vm-dirty")
    await centre.program("host-1", _rule("vm-dirty-disk-2", outcome="fail_dirty"))
    job = await centre.run("RemoveVm", {"vm_id": "vm-dirty"})
    assert _fates(job) == {"0": FINISHED, "1": FINISHED, "2": FAILED, "3": FINISHED}
    [alarm] = await centre.events(job, "TASK_NOT_ROLLED_BACK")
    assert alarm.severity == Severity.SEVERITY_ALERT
    assert alarm.entity.entity_id == "vm-dirty-disk-2"
    [task] = [task for task in await centre.host_tasks(job) if task.result == TaskResult.TASK_RESULT_CLEAN_FAILURE]
    assert task.entity.entity_id == "vm-dirty-disk-2"
    await _assert_illegal(centre, job, "vm-dirty-disk-2")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §3: Another refusal fails that node alone")
async def test_a_deletion_that_its_host_refuses_fails_alone(centre: DataCentre) -> None:
    await centre.furnish("vm-refused")
    before = await centre.counters()
    error = {"code": "PERMISSION_DENIED", "reason": "SEALED", "message": "the disk is sealed"}
    await centre.program("host-2", _rule("vm-refused-disk-3", outcome="refuse", error=error))
    job = await centre.run("RemoveVm", {"vm_id": "vm-refused"})
    assert _fates(job) == {"0": FINISHED, "1": FINISHED, "2": FINISHED, "3": FAILED}
    assert reason_of(_step_of(job, "3")) == "SEALED"
    after = await centre.counters()
    assert ("host-2", "vm-refused-disk-3", "deleteImage") not in after.keys() - before.keys()
    await _assert_illegal(centre, job, "vm-refused-disk-3")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §3: No query ever answers success for a lost task")
@pytest.mark.rule('semantics §7: RemoveVm: "Removed" is said only when it is true')
@pytest.mark.rule("semantics §1: ExecutionStatus `UNKNOWN` its truth was lost, with a reason")
async def test_a_deletion_that_its_host_loses_is_unknown_and_never_a_success(centre: DataCentre) -> None:
    await centre.furnish("vm-lost")
    await centre.program("host-1", _rule("vm-lost-disk-0", outcome="lose", work_ms=50))
    job = await centre.run("RemoveVm", {"vm_id": "vm-lost"})
    assert _fates(job) == {"0": UNKNOWN, "1": FINISHED, "2": FINISHED, "3": FINISHED}
    assert job.status == FAILED
    assert reason_of(_step_of(job, "0")) == "TASK_LOST"
    [alarm] = await centre.events(job, "TASK_LOST")
    assert alarm.entity.entity_id == "vm-lost-disk-0"
    await _assert_illegal(centre, job, "vm-lost-disk-0")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §3: Seen from the coordinator: polling `getAllTasksStatuses` is the net")
async def test_a_host_that_says_nothing_is_asked(centre: DataCentre) -> None:
    await centre.furnish("vm-silent")
    await centre.program("host-1", _rule("vm-silent-disk-0", outcome="silent", work_ms=100))
    job = await centre.run("RemoveVm", {"vm_id": "vm-silent"})
    assert_all_finished([job])
    assert await centre.effects("vm-silent-disk-0") == {"createVolume": 1, "deleteImage": 1}
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §7: RemoveVm: Image already missing counts as removed")
async def test_an_image_that_is_missing_counts_as_deleted(centre: DataCentre) -> None:
    await centre.declare_vm("vm-missing", disk_ids=["never-made", "never-declared"])
    await centre.declare_disk("never-made", "host-1")
    job = await centre.run("RemoveVm", {"vm_id": "vm-missing"})
    assert_all_finished([job])
    assert await centre.entity(DISK, "never-made") is None
    assert await centre.effects("never-made") == {}
    [task] = await centre.host_tasks(job)
    assert plain(task.answer) == {"missing": True}
    await assert_all_over(centre, [job])


async def test_an_agent_that_dies_after_the_effect_does_nothing_twice(centre: DataCentre) -> None:
    await centre.furnish("vm-crash")
    await centre.program("host-1", _rule("vm-crash-disk-0", outcome="crash", count=1))
    await centre.program("host-2", _rule("vm-crash-disk-1", outcome="crash_before", count=1))
    job = await centre.run("RemoveVm", {"vm_id": "vm-crash"})
    assert_all_finished([job])
    assert await centre.effects("vm-crash-disk-0") == {"createVolume": 1, "deleteImage": 1}
    assert await centre.effects("vm-crash-disk-1") == {"createVolume": 1, "deleteImage": 1}
    await assert_all_over(centre, [job])


async def test_a_vm_without_disks_needs_no_host(centre: DataCentre) -> None:
    await centre.declare_vm("vm-bare")
    before = await centre.counters()
    job = await centre.run("RemoveVm", {"vm_id": "vm-bare"})
    assert outline(job) == [("VALIDATION", "FINISHED"), ("EXECUTION", "FINISHED")]
    assert_all_finished([job])
    assert await centre.entity(VM, "vm-bare") is None
    assert await centre.counters() == before
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §8: `FINISH_FORWARD`: like REVERT until a node marked `no_return` has begun (default: the")
async def test_once_a_deletion_has_begun_the_removal_completes(centre: DataCentre) -> None:
    await centre.furnish("vm-late")
    await centre.program("host-1", _rule("vm-late-disk-0", work_ms=400))
    job = await centre.client.run_command("RemoveVm", {"vm_id": "vm-late"})
    await centre.until_running(job)
    running = await centre.client.get_job(job.job_id)
    assert running.status == STARTED
    assert running.cancelable == CancelKind.CANCEL_KIND_NONE
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.cancel_job(job.job_id, "changed my mind")
    assert refused.value.reason == "PAST_NO_RETURN"
    job = await centre.ended(job)
    assert_all_finished([job])
    await assert_all_over(centre, [job])


def _rule(disk_id: str, **how: object) -> dict[str, object]:
    return {"verb": "deleteImage", "match": {"volume_id": disk_id}, **how}


def _step_of(job: Job, number: str) -> Step:
    [step] = [step for step in steps_of(job, "DELETE_IMAGE") if step.subjects[0].entity_id.endswith(f"-{number}")]
    return step


def _fates(job: Job) -> dict[str, int]:
    """Status of each deletion by the number of its disk."""
    return {step.subjects[0].entity_id[-1]: step.status for step in steps_of(job, "DELETE_IMAGE")}


async def _assert_illegal(centre: DataCentre, job: Job, disk_id: str) -> None:
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    assert disk.status == "ILLEGAL"
    [event] = await centre.events(job, "DISK_ILLEGAL")
    assert event.entity.entity_id == disk_id
    assert disk_id in event.message
    assert event.job_id == job.job_id
    assert event.correlation_id == job.correlation_id
