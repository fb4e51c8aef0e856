"""Jobs that wait for other jobs and for locks, several at once, and what can be done to jobs: on the real stack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    ABORTED,
    DISK,
    FAILED,
    FINISHED,
    SKIPPED,
    STARTED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    outline,
    reason_of,
)

from waybill.v1 import coordinator_pb2
from waybill.v1.jobs_pb2 import CancelKind, DependencyPolicy, Event, ExecutionStatus, Job, Severity, TaskState
from waybill_client import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    WaybillClient,
    WaybillError,
    command_request,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

PENDING = ExecutionStatus.EXECUTION_STATUS_PENDING
NOBODYS_ID = "01936f2e-7b1c-7d55-8f7e-000000000001"
ALL_OR_NOTHING = coordinator_pb2.MULTIPLE_POLICY_ALL_OR_NOTHING
IN_SEQUENCE = coordinator_pb2.MULTIPLE_POLICY_IN_SEQUENCE
LEASE_SECONDS = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two coordinators, so that what one is asked may be the other one's business."""
    environment = {"COORDINATOR_LEASE_SECONDS": str(LEASE_SECONDS), "COORDINATOR_POLL_SECONDS": "1"}
    async with data_centre(tmp_path_factory.mktemp("waits"), environment=environment) as centre:
        yield centre


async def work(centre: DataCentre, object_id: str, **options: Any) -> Job:
    """One task on a host, as programmed for the object."""
    return await centre.client.run_command("BenchWork", {"host_id": "host-1", "object_id": object_id}, **options)


async def hanging(centre: DataCentre, object_id: str, **options: Any) -> Job:
    """A job whose task runs and will never end by itself."""
    await centre.program("host-1", {"verb": "simWork", "match": {"object_id": object_id}, "outcome": "hang"})
    job = await work(centre, object_id, **options)
    await centre.until_running(job)
    return job


async def locking(centre: DataCentre, *vm_ids: str, hangs: bool = False, **parameters: Any) -> Job:
    """A job that holds locks, for as long as its task runs if it hangs."""
    object_id = f"work-{'-'.join(vm_ids)}" if hangs else ""
    if hangs:
        await centre.program("host-1", {"verb": "simWork", "match": {"object_id": object_id}, "outcome": "hang"})
    return await centre.client.run_command("BenchLock", {"vm_ids": [*vm_ids], "object_id": object_id, **parameters})


# --- depends_on ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: Depends on other jobs")
async def test_a_job_waits_for_others_through_the_death_of_its_coordinator(centre: DataCentre) -> None:
    former = await hanging(centre, "former")
    later = await work(centre, "later", depends_on=[former.job_id])
    last = await work(centre, "last", depends_on=[later.job_id, former.job_id])
    assert (later.status, last.status) == (PENDING, PENDING)
    assert outline(await centre.client.get_job(later.job_id)) == [("VALIDATION", "PENDING"), ("EXECUTION", "PENDING")]
    await centre.stack.kill(centre.stack.coordinators[0])
    await centre.stack.serving()
    assert (await centre.client.get_job(later.job_id)).status == PENDING
    await centre.behave()
    [task] = await centre.host_tasks(former)
    await centre.client.stop_tasks(former.job_id, [task.task_id], "let the others go on")
    jobs = [await centre.ended(job) for job in (former, later, last)]
    assert [job.status for job in jobs] == [ABORTED, SKIPPED, SKIPPED]
    assert [event.event_type for event in await centre.events(later, "JOB_WAITS", "JOB_SKIPPED")] == [
        "JOB_WAITS",
        "JOB_SKIPPED",
    ]
    assert former.job_id in jobs[1].error.message


async def test_it_begins_when_they_have_ended_well(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "match": {"object_id": "first"}, "work_ms": 1500})
    first = await work(centre, "first")
    both = await work(centre, "second", depends_on=[first.job_id, first.job_id])
    assert both.status == PENDING
    jobs = [await centre.ended(first), await centre.ended(both)]
    assert_all_finished(jobs)
    assert jobs[1].start_time.ToDatetime() >= jobs[0].end_time.ToDatetime()
    assert (await centre.ended(await work(centre, "third", depends_on=[first.job_id]))).status == FINISHED


async def test_by_the_other_policy_it_begins_though_they_failed(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "match": {"object_id": "failing"}, "outcome": "fail"})
    failing = await work(centre, "failing")
    policy = DependencyPolicy.DEPENDENCY_POLICY_RUN
    later = await work(centre, "all-the-same", depends_on=[failing.job_id], dependency_policy=policy)
    assert (await centre.ended(failing)).status == FAILED
    assert (await centre.ended(later)).status == FINISHED


async def test_nobody_depends_on_a_job_that_there_is_not(centre: DataCentre) -> None:
    before = await centre.stored()
    with pytest.raises(NotFound) as missing:
        await work(centre, "nothing", depends_on=[NOBODYS_ID])
    assert (missing.value.reason, missing.value.metadata["job_id"]) == ("JOB_NOT_FOUND", NOBODYS_ID)
    with pytest.raises(InvalidArgument) as refused:
        await work(centre, "nothing", depends_on=["job-1"])
    assert [violation.field for violation in refused.value.violations] == ["depends_on[0]"]
    assert await centre.stored() == before


@pytest.mark.rule("semantics §8: Cancel while PENDING → ABORTED, no host call")
async def test_who_waits_can_be_cancelled_and_runs_out_of_time(centre: DataCentre) -> None:
    former = await hanging(centre, "long")
    waiting = await work(centre, "cancelled", depends_on=[former.job_id])
    deadline = datetime.now(UTC) + timedelta(seconds=0.5)
    late = await work(centre, "late", depends_on=[former.job_id], deadline=deadline)
    await centre.client.cancel_job(waiting.job_id, "not needed")
    assert (await centre.ended(waiting)).status == ABORTED
    late = await centre.ended(late)
    assert (late.status, reason_of(late)) == (FAILED, "DEADLINE_EXCEEDED")
    assert centre.specs_sent(waiting) + centre.specs_sent(late) == []
    await centre.client.cancel_job(former.job_id)
    await centre.ended(former)


@pytest.mark.rule("semantics §8: Priority of a job and its tasks, changeable while it waits")
async def test_the_priority_of_who_waits_is_changed_and_counts_for_its_tasks(centre: DataCentre) -> None:
    former = await hanging(centre, "in-the-way")
    waiting = await work(
        centre,
        "urgent",
        depends_on=[former.job_id],
        priority=1,
        dependency_policy=DependencyPolicy.DEPENDENCY_POLICY_RUN,
    )
    changed = await centre.client.set_priority(waiting.job_id, 9, "the director asked")
    assert changed.priority == 9
    await centre.client.cancel_job(former.job_id)
    waiting = await centre.ended(waiting)
    assert (waiting.status, waiting.priority) == (FINISHED, 9)
    assert [spec.priority for spec in centre.specs_sent(waiting)] == [9]
    [event] = await centre.events(waiting, "JOB_PRIORITY_CHANGED")
    assert "the director asked" in event.message
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.set_priority(waiting.job_id, 1)
    assert refused.value.reason == "JOB_ENDED"


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §5: Wait: up to a time, first come first served")
async def test_locks_are_granted_when_freed_in_the_order_of_asking(centre: DataCentre) -> None:
    holder = await locking(centre, "vm-q", hangs=True)
    await centre.until_running(holder)
    queue = [await locking(centre, "vm-q", wait=30) for _ in range(4)]
    assert [job.status for job in queue] == [PENDING] * 4
    passing = await locking(centre, "vm-q")
    assert (passing.status, reason_of(passing)) == (FAILED, "LOCKED")
    locks = [lock async for lock in centre.client.list_locks()]
    assert [(lock.job_id, lock.waiting) for lock in locks if not lock.waiting] == [(holder.job_id, False)]
    await centre.client.cancel_job(holder.job_id)
    ended = [await centre.ended(job) for job in queue]
    assert_all_finished(ended)
    begun = [job.start_time.ToDatetime() for job in ended]
    assert begun == sorted(begun)
    await centre.ended(holder)


@pytest.mark.rule("semantics §5: Held through restarts without a gap")
async def test_who_queues_keeps_its_place_when_its_coordinator_dies(centre: DataCentre) -> None:
    holder = await locking(centre, "vm-crash", hangs=True)
    await centre.until_running(holder)
    queuing = await locking(centre, "vm-crash", wait=60)
    await centre.stack.kill(centre.stack.coordinators[0])
    await centre.stack.serving()
    passing = await locking(centre, "vm-crash")
    assert reason_of(passing) == "LOCKED"
    await centre.client.cancel_job(holder.job_id)
    assert (await centre.ended(queuing)).status == FINISHED
    assert (await centre.ended(holder)).status == ABORTED


@pytest.mark.rule("semantics §5: Refusal names the holder's job and reason")
async def test_who_queues_too_long_is_refused_naming_the_holder(centre: DataCentre) -> None:
    holder = await locking(centre, "vm-late", hangs=True)
    await centre.until_running(holder)
    queuing = await centre.ended(await locking(centre, "vm-late", wait=0.4))
    assert (queuing.status, reason_of(queuing)) == (FAILED, "LOCKED")
    assert WaybillError.from_status(queuing.error).metadata["job_id"] == holder.job_id
    await centre.client.cancel_job(holder.job_id)
    await centre.ended(holder)


async def test_shared_named_and_passing_locks(centre: DataCentre) -> None:
    reader = await locking(centre, "vm-s", hangs=True, share=True)
    await centre.until_running(reader)
    assert (await locking(centre, "vm-s", share=True)).status in (STARTED, FINISHED)
    assert reason_of(await locking(centre, "vm-s")) == "LOCKED"
    assert reason_of(await locking(centre, "vm-s", passing=True)) == "LOCKED"
    await centre.client.cancel_job(reader.job_id)
    await centre.ended(reader)
    name = await locking(centre, "vm-n", hangs=True, names=["web"])
    await centre.until_running(name)
    refused = await centre.client.run_command("BenchLock", {"names": ["web"]})
    assert "VM name:web is locked by" in refused.error.message
    assert (await centre.ended(await centre.client.run_command("BenchLock", {"names": ["db"]}))).status == FINISHED
    await centre.client.cancel_job(name.job_id)
    await centre.ended(name)


@pytest.mark.rule("semantics §5: Key = entity type + id (or type + name)")
async def test_a_lock_is_on_one_entity_or_on_one_name_of_one_type(centre: DataCentre) -> None:
    holder = await locking(centre, "key", hangs=True)
    await centre.until_running(holder)
    [lock] = [lock async for lock in centre.client.list_locks()]
    assert (lock.entity_type, lock.entity_id) == (VM, "key")
    others = [
        await locking(centre, "key-2"),
        await locking(centre, names=["key"]),
        await centre.client.run_command("AddDisk", {"disk_id": "key", "size_mb": 1, "host_id": "host-1"}),
    ]
    assert_all_finished([await centre.ended(job) for job in others])
    same = await locking(centre, "key")
    assert (same.status, reason_of(same)) == (FAILED, "LOCKED")
    await centre.client.cancel_job(holder.job_id)
    await centre.ended(holder)


# --- several at once -------------------------------------------------------------------------------------------------


def several(*object_ids: str, vm_id: str = "") -> list[coordinator_pb2.RunCommandRequest]:
    """One command each; all but the first without a lock."""
    requests = [command_request("BenchWork", {"host_id": "host-1", "object_id": each}) for each in object_ids]
    return [*requests, command_request("BenchLock", {"vm_ids": [vm_id]})] if vm_id else requests


@pytest.mark.rule("semantics §2: all or nothing (refused ones FAILED, the rest SKIPPED)")
async def test_all_begin_or_none_does(centre: DataCentre) -> None:
    holder = await locking(centre, "vm-all", hangs=True)
    await centre.until_running(holder)
    requests = several("a-1", "a-2", vm_id="vm-all")
    first, second, refused = await _run(centre, requests, ALL_OR_NOTHING)
    assert [job.status for job in (first, second, refused)] == [SKIPPED, SKIPPED, FAILED]
    assert [reason_of(job) for job in (first, second, refused)] == ["SKIPPED", "SKIPPED", "LOCKED"]
    assert refused.job_id in first.error.message
    assert centre.specs_sent(first) == []
    again = await _run(centre, requests, ALL_OR_NOTHING)
    assert [job.job_id for job in again] == [first.job_id, second.job_id, refused.job_id]
    await centre.client.cancel_job(holder.job_id)
    await centre.ended(holder)
    jobs = [
        await centre.ended(job) for job in await _run(centre, several("a-1", "a-2", vm_id="vm-all"), ALL_OR_NOTHING)
    ]
    assert_all_finished(jobs)


async def test_hundreds_begin_together(centre: DataCentre) -> None:
    many = [command_request("BenchLock", {"vm_ids": [f"vm-{number}"]}) for number in range(300)]
    jobs = await _run(centre, many, ALL_OR_NOTHING)
    assert len({job.create_time.ToNanoseconds() for job in jobs}) == 1  # one commit
    assert_all_finished([await centre.ended(job) for job in jobs[::50]])


async def test_what_validate_refuses_keeps_all_from_beginning(centre: DataCentre) -> None:
    requests = [*several("v-1"), command_request("RemoveVm", {"vm_id": "no-such-vm"}), *several("v-2")]
    jobs = await _run(centre, requests, ALL_OR_NOTHING)
    assert [job.status for job in jobs] == [SKIPPED, FAILED, SKIPPED]
    assert reason_of(jobs[1]) == "ENTITY_NOT_FOUND"


@pytest.mark.rule(
    "semantics §2: in sequence (each depends on the former; after a failure the rest SKIPPED with an event)"
)
async def test_in_sequence_each_begins_after_the_one_before_it(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "work_ms": 100})
    jobs = [await centre.ended(job) for job in await _run(centre, several("s-1", "s-2", "s-3"), IN_SEQUENCE)]
    assert_all_finished(jobs)
    for former, later in pairwise(jobs):
        assert later.start_time.ToDatetime() >= former.end_time.ToDatetime()
    await centre.program("host-1", {"verb": "simWork", "match": {"object_id": "f-2"}, "outcome": "fail"})
    jobs = [await centre.ended(job) for job in await _run(centre, several("f-1", "f-2", "f-3", "f-4"), IN_SEQUENCE)]
    assert [job.status for job in jobs] == [FINISHED, FAILED, SKIPPED, SKIPPED]
    for former, skipped in ((jobs[1], jobs[2]), (jobs[2], jobs[3])):
        [event] = await centre.events(skipped, "JOB_SKIPPED")
        assert former.job_id in event.message
        assert event.correlation_id == skipped.correlation_id


async def test_a_sequence_goes_on_after_a_crash_and_is_found_again(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "work_ms": 400})
    requests = several("c-1", "c-2", "c-3")
    jobs = await _run(centre, requests, IN_SEQUENCE)
    await centre.stack.kill(centre.stack.coordinators[0])
    again = await _run(centre, requests, IN_SEQUENCE)
    assert [job.job_id for job in again] == [job.job_id for job in jobs]
    assert_all_finished([await centre.ended(job) for job in jobs])


async def test_what_cannot_be_refuses_the_whole_call(centre: DataCentre) -> None:
    before = await centre.stored()
    for requests, field in [
        ([*several("x"), command_request("BenchWork", {})], "commands[1].parameters.host_id"),
        ([*several("x"), command_request("BenchWork", {}, depends_on=[NOBODYS_ID])], "commands[1].depends_on"),
        ([command_request("BenchWork", {}, validate_only=True)], "commands[0].validate_only"),
    ]:
        with pytest.raises(InvalidArgument) as refused:
            await centre.client.run_multiple_commands(requests, policy=ALL_OR_NOTHING)
        assert refused.value.violations[0].field == field
    assert await centre.stored() == before
    assert await centre.client.run_multiple_commands([], policy=IN_SEQUENCE) == []
    known = several("known")
    await _run(centre, known, IN_SEQUENCE)
    with pytest.raises(AlreadyExists) as reused:
        await centre.client.run_multiple_commands([*known, *several("unknown")], policy=ALL_OR_NOTHING)
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def _run(centre: DataCentre, requests: list[coordinator_pb2.RunCommandRequest], policy: Any) -> list[Job]:
    jobs = []
    for result in await centre.client.run_multiple_commands(requests, policy=policy):
        assert isinstance(result, Job), result
        jobs.append(result)
    return jobs


# --- stop, force ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: Stop chosen tasks or all tasks of a command")
async def test_chosen_tasks_are_stopped_and_the_others_run_on(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "outcome": "hang"})
    await centre.program("host-2", {"verb": "simWork", "outcome": "hang"})
    parameters = {"host_ids": ["host-1", "host-2"], "object_id": "tree", "width": 3}
    job = await centre.client.run_command("BenchTree", parameters)
    await centre.until_running(job, tasks=3)
    tasks = await centre.host_tasks(job)
    await centre.client.stop_tasks(job.job_id, [tasks[0].task_id], "this one only")
    await centre.until(lambda: _are_over(centre, job, {tasks[0].task_id}))
    assert (await centre.client.get_job(job.job_id)).status == STARTED
    with pytest.raises(NotFound) as unknown:
        await centre.client.stop_tasks(job.job_id, [NOBODYS_ID])
    assert unknown.value.reason == "TASK_UNKNOWN"
    await centre.client.stop_tasks(job.job_id)
    job = await centre.ended(job)
    assert job.status == ABORTED
    assert len(await centre.events(job, "TASKS_STOPPED")) == 2
    with pytest.raises(FailedPrecondition) as ended:
        await centre.client.stop_tasks(job.job_id)
    assert ended.value.reason == "JOB_ENDED"
    await assert_all_over(centre, [job])


async def test_a_stop_is_not_forgotten_by_a_crash(centre: DataCentre) -> None:
    job = await hanging(centre, "stop-crash")
    await centre.client.stop_tasks(job.job_id)
    await centre.stack.kill(centre.stack.coordinators[0])
    assert (await centre.ended(job)).status == ABORTED


async def _are_over(centre: DataCentre, job: Job, task_ids: set[str]) -> bool:
    over = {task.task_id for task in await centre.host_tasks(job) if task.state == TaskState.TASK_STATE_FINISHED}
    return over == task_ids


@pytest.mark.rule("semantics §8: force-end a stuck job (tasks marked to be stopped and cleared, locks freed, event)")
@pytest.mark.parametrize("crashed", [False, True])
async def test_a_job_is_ended_by_force_whatever_it_does(centre: DataCentre, crashed: bool) -> None:
    disk_id = f"disk-forced-{crashed}"
    await centre.program("host-1", {"verb": "createVolume", "match": {"volume_id": disk_id}, "outcome": "hang"})
    job = await centre.client.run_command("AddDisk", {"disk_id": disk_id, "size_mb": 10, "host_id": "host-1"})
    await centre.until_running(job)
    with pytest.raises(InvalidArgument) as refused:
        await centre.client.force_end_job(job.job_id, " ")
    assert [violation.field for violation in refused.value.violations] == ["reason"]
    if crashed:  # whoever is asked may not have taken it up yet
        await centre.stack.kill(centre.stack.coordinators[0])
    await centre.client.force_end_job(job.job_id, "nobody knows why it hangs")
    job = await centre.ended(job)
    assert (job.status, reason_of(job), job.cancelable) == (FAILED, "FORCE_ENDED", CancelKind.CANCEL_KIND_NONE)
    assert outline(job) == [
        ("VALIDATION", "FINISHED"),
        ("EXECUTION", "ABORTED"),
        ("CREATE_VOLUME", "ABORTED"),
        ("FINALIZATION", "SKIPPED"),
    ]
    [event] = await centre.events(job, "JOB_FORCE_ENDED")
    assert (event.user, "nobody knows why" in event.message) == ("anonymous", True)
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    assert disk.status == "ILLEGAL"
    await centre.until_rest()
    assert [lock async for lock in centre.client.list_locks()] == []
    with pytest.raises(FailedPrecondition) as ended:
        await centre.client.force_end_job(job.job_id, "again")
    assert ended.value.reason == "JOB_ENDED"


async def test_who_waits_is_ended_by_force_too(centre: DataCentre) -> None:
    former = await hanging(centre, "forced-former")
    waiting = await work(centre, "forced-waiting", depends_on=[former.job_id])
    later = await work(centre, "forced-later", depends_on=[waiting.job_id])
    ended = await centre.client.force_end_job(waiting.job_id, "no more")
    assert (ended.status, reason_of(ended)) == (FAILED, "FORCE_ENDED")
    assert (await centre.ended(later)).status == SKIPPED
    await asyncio.gather(centre.client.cancel_job(former.job_id), centre.ended(former))


# --- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.rule(
    "semantics §4: Events (the audit log), with job id, correlation id, entity, severity, user: job started and ended; "
    "step started and ended (derived from the steps when listed, not stored twice); stored ones for alarms, cancels"
)
@pytest.mark.rule("semantics §4: Readable by job, correlation id, entity")
async def test_alarms_cancels_interventions_and_take_overs_are_told(centre: DataCentre) -> None:
    """One job meets an alarm; one is stopped and one is cancelled after a take-over; one waits until it is forced."""
    await centre.program(
        "host-1",
        {"verb": "createVolume", "match": {"volume_id": "told-alarm"}, "outcome": "fail_dirty"},
        {"verb": "simWork", "outcome": "hang"},
    )
    alarmed = await centre.run("AddDisk", {"disk_id": "told-alarm", "size_mb": 1, "host_id": "host-1"})
    running = await work(centre, "told", correlation_id="told-1")
    stopped = await work(centre, "told-too", correlation_id="told-1")
    waiting = await work(centre, "told-later", correlation_id="told-1", depends_on=[running.job_id])
    for job in (running, stopped):
        await centre.until_running(job)
    await centre.stack.kill(centre.stack.coordinators[0])
    await centre.stack.serving()
    await centre.client.stop_tasks(stopped.job_id, reason="enough")
    await centre.client.set_priority(waiting.job_id, 3, "soon")
    await centre.until(lambda: _has_priority(centre, waiting, 3))
    await centre.client.force_end_job(waiting.job_id, "no more")
    await centre.client.cancel_job(running.job_id, "no more")
    jobs = [await centre.ended(job) for job in (running, stopped, waiting)]

    told = {job.job_id: [event for event in await centre.events(job) if not is_derived(event)] for job in jobs}
    assert [event.event_type for event in told[running.job_id]] == ["FLOW_TAKEN_OVER", "JOB_CANCELED"]
    assert [event.event_type for event in told[stopped.job_id]] == ["FLOW_TAKEN_OVER", "TASKS_STOPPED"]
    assert [event.event_type for event in told[waiting.job_id]] == [
        "JOB_WAITS",
        "FLOW_TAKEN_OVER",
        "JOB_PRIORITY_CHANGED",
        "JOB_FORCE_ENDED",
    ]
    for event in (event for events in told.values() for event in events):
        by_somebody = event.event_type not in ("FLOW_TAKEN_OVER", "JOB_WAITS")
        assert (event.correlation_id, event.user) == ("told-1", "anonymous" if by_somebody else ""), event
        assert (event.severity == Severity.SEVERITY_NORMAL) is event.event_type.startswith(("JOB_WAITS", "JOB_PRIO"))

    derived = [event for event in await centre.events(running) if is_derived(event)]
    steps = [event for event in derived if event.step_id]
    assert [event.event_type for event in (derived[0], derived[-1])] == ["JOB_STARTED", "JOB_ENDED"]
    assert {event.step_id for event in steps} == {step.step_id for step in jobs[0].steps}
    assert {event.event_type for event in steps} == {"STEP_STARTED", "STEP_ENDED"}
    by_name = [event async for event in centre.client.list_events("correlation_id = told-1")]
    assert {event.event_id for event in derived} <= {event.event_id for event in by_name}
    assert {event.job_id for event in by_name} == {job.job_id for job in jobs}

    by_entity = [event async for event in centre.client.list_events('entity = "DISK/told-alarm"')]
    assert {event.event_type: event.severity for event in by_entity} == {
        "TASK_NOT_ROLLED_BACK": Severity.SEVERITY_ALERT,
        "ENTITY_ILLEGAL": Severity.SEVERITY_ERROR,
    }
    assert {(event.job_id, event.correlation_id) for event in by_entity} == {(alarmed.job_id, alarmed.correlation_id)}
    everything = [event async for event in centre.client.list_events()]
    assert not [event for event in everything if is_derived(event)]  # they are not stored


async def _has_priority(centre: DataCentre, job: Job, priority: int) -> bool:
    return (await centre.client.get_job(job.job_id)).priority == priority


def is_derived(event: Event) -> bool:
    """Whether an event is told from a job or a step as they are stored."""
    return event.event_type in ("JOB_STARTED", "JOB_ENDED", "STEP_STARTED", "STEP_ENDED")


# --- restart ----------------------------------------------------------------------------------------------------------


async def _failed_in_the_middle(centre: DataCentre, object_id: str) -> Job:
    """A job of three tasks in a row, of which the second has failed."""
    await centre.program("host-1", {"verb": "simWork", "match": {"object_id": f"{object_id}/1"}, "outcome": "fail"})
    job = await centre.run("BenchTree", {"host_ids": ["host-1"], "object_id": object_id, "depth": 3})
    assert job.status == FAILED
    await centre.behave()
    return job


@pytest.mark.rule("semantics §8: Restart a failed job from the failed step: a new job, restarted_from the old")
@pytest.mark.parametrize("crashed", [False, True])
async def test_a_failed_job_is_run_again_from_where_it_failed(centre: DataCentre, crashed: bool) -> None:
    failed = await _failed_in_the_middle(centre, f"again-{crashed}")
    shown = await centre.client.restart_job(failed.job_id, validate_only=True)
    assert [status for kind, status in outline(shown) if kind == "WORK"] == ["FINISHED", "PENDING", "PENDING"]
    await centre.program("host-1", {"verb": "simWork", "work_ms": 700})
    job = await centre.client.restart_job(failed.job_id, "mended", request_id=f"restart-{crashed}")
    assert (job.restarted_from, job.status) == (failed.job_id, STARTED)
    if crashed:
        await centre.stack.kill(centre.stack.coordinators[0])
    again = await centre.client.restart_job(failed.job_id, "mended", request_id=f"restart-{crashed}")
    assert again.job_id == job.job_id
    job = await centre.ended(job)
    assert_all_finished([job])
    begun = sorted({spec.arguments["object_id"] for spec in centre.specs_sent(job)})
    assert begun == [f"again-{crashed}/1", f"again-{crashed}/2"]
    [event] = await centre.events(job, "JOB_RESTARTED")
    assert failed.job_id in event.message
    assert (await centre.client.get_job(failed.job_id)).status == FAILED


@pytest.mark.rule("semantics §8: Restart a failed job from the failed step")
async def test_a_restart_that_is_only_shown_says_what_is_reused_run_again_and_undone(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "outcome": "fail"})
    failed = await centre.run("AddDisk", {"disk_id": "shown", "size_mb": 1, "host_id": "host-1"})
    assert failed.status == FAILED
    await centre.behave()
    before = await centre.stored()
    shown = await centre.client.restart_job(failed.job_id, validate_only=True)
    assert {status for _, status in outline(shown)} == {"PENDING"}
    [undone] = shown.compensations
    assert (undone.entity.entity_id, undone.command_type) == ("shown", "AddDisk")
    assert (undone.removed, undone.may_become_illegal) == (True, True)
    assert await centre.stored() == before


async def test_only_what_has_ended_badly_is_restarted(centre: DataCentre) -> None:
    with pytest.raises(NotFound):
        await centre.client.restart_job(NOBODYS_ID)
    running = await hanging(centre, "restart-running")
    with pytest.raises(FailedPrecondition) as runs:
        await centre.client.restart_job(running.job_id)
    assert runs.value.reason == "JOB_NOT_ENDED"
    await centre.client.cancel_job(running.job_id)
    await centre.ended(running)
    await centre.behave()
    job = await centre.ended(await centre.client.restart_job(running.job_id))
    assert job.status == FINISHED
    with pytest.raises(FailedPrecondition) as well:
        await centre.client.restart_job(job.job_id)
    assert well.value.reason == "NOT_RESTARTABLE"


# --- asked elsewhere -------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data centre with two coordinators: what one is asked may be the other one's business."""
    async with data_centre(tmp_path_factory.mktemp("pair"), coordinators=2) as centre:
        yield centre


@asynccontextmanager
async def the_other(centre: DataCentre) -> AsyncIterator[tuple[WaybillClient, WaybillClient]]:
    """A client of each coordinator alone."""
    first, second = (coordinator.address for coordinator in centre.stack.coordinators)
    jobstore = centre.client.jobstore_address
    async with WaybillClient(first, jobstore) as one, WaybillClient(second, jobstore) as other:
        yield one, other


async def has_priority(centre: DataCentre, job: Job, priority: int) -> bool:
    """Tells whether it is stored that a job has a priority."""
    return (await centre.client.get_job(job.job_id)).priority == priority


async def test_wishes_reach_the_coordinator_that_owns_the_job(pair: DataCentre) -> None:
    centre = pair
    await centre.program("host-1", {"verb": "simWork", "outcome": "hang"})
    parameters = {"host_id": "host-1", "object_id": "elsewhere"}
    async with the_other(centre) as (one, other):
        running = await one.run_command("BenchWork", parameters)
        await centre.until_running(running)
        waiting = await other.run_command("BenchWork", parameters, depends_on=[running.job_id])
        forced = await other.run_command("BenchWork", parameters, depends_on=[running.job_id])
        await one.set_priority(waiting.job_id, 5)
        await other.set_priority(running.job_id, 5)
        await centre.until(lambda: has_priority(centre, running, 5))
        await one.force_end_job(forced.job_id, "from elsewhere")
        assert reason_of(await centre.ended(forced)) == "FORCE_ENDED"
        await other.stop_tasks(running.job_id, reason="from elsewhere")
        assert (await centre.ended(running)).status == ABORTED
        waiting = await centre.ended(waiting)
        assert (waiting.status, waiting.priority) == (SKIPPED, 5)  # what ended here was waited for there
    await centre.until_rest()
    assert await centre.client.check_consistency() == []
