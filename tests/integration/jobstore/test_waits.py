"""Flows that wait for jobs and for locks, in the store: queues, guards, and who is told what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.flow import COORDINATOR, FAILED, FINISHED, PENDING, SKIPPED, Flow, a_flow, lock, vm

from chassis.errors import WaybillError
from waybill.v1 import jobs_pb2, jobstore_pb2

VM_1, VM_2 = vm("vm-1"), vm("vm-2")
UNTIL: dict[str, Any] = {"waits_until": {"seconds": 4_000_000_000}}
BEGINS: dict[str, Any] = {"ends_wait": True, "job": {"status": jobs_pb2.EXECUTION_STATUS_STARTED}}


@pytest.fixture
async def store(jobstore: RunningJobstore) -> RunningJobstore:
    """A jobstore with a coordinator."""
    request = jobstore_pb2.RenewLeaseRequest(coordinator_id=COORDINATOR, counter=1, address="here:1")
    await jobstore.journal.RenewLease(request, timeout=5)
    return jobstore


async def commit(
    store: RunningJobstore, *commits: jobstore_pb2.FlowCommit, **fields: Any
) -> list[jobstore_pb2.FlowCommitResult]:
    request = jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, commits=commits, **fields)
    return list((await store.journal.Commit(request, timeout=5)).results)


def reason(result: jobstore_pb2.FlowCommitResult) -> str:
    """Why a commit was refused; empty if it was not."""
    return WaybillError.from_status(result.error).reason if result.HasField("error") else ""


async def reasons(store: RunningJobstore, *commits: jobstore_pb2.FlowCommit, **fields: Any) -> list[str]:
    return [reason(result) for result in await commit(store, *commits, **fields)]


def waiting(flow: Flow, **fields: Any) -> jobstore_pb2.FlowCommit:
    """The first commit of a flow that waits before it begins."""
    first = flow.first(**fields)
    for field in ("new_steps", "new_tasks"):
        first.ClearField(field)  # type: ignore[arg-type]
    first.new_job.status = PENDING
    first.new_commands[0].status = jobs_pb2.COMMAND_STATUS_NOT_STARTED
    return first


def ended(flow: Flow, status: Any = FINISHED) -> jobstore_pb2.FlowCommit:
    """The last commit of a flow that began nothing."""
    return flow.next(
        job=jobstore_pb2.JobChange(status=status),
        commands=[
            jobstore_pb2.CommandChange(
                command_id=flow.flow_command_id, status=jobs_pb2.COMMAND_STATUS_ENDED_WITH_FAILURE
            )
        ],
        ends_flow=True,
        ends_wait=True,
    )


async def loaded(store: RunningJobstore, flow: Flow) -> jobstore_pb2.FlowRows:
    request = jobstore_pb2.LoadFlowsRequest(flow_command_ids=[flow.flow_command_id])
    [rows] = (await store.journal.LoadFlows(request, timeout=5)).flows
    return rows


class Woken:
    """What a coordinator is told of waiting flows."""

    def __init__(self, store: RunningJobstore) -> None:
        request = jobstore_pb2.JournalWatchRequest(coordinator_id=COORDINATOR)
        self.stream: AsyncIterator[jobstore_pb2.JournalWatchResponse] = aiter(store.journal.Watch(request))
        self.wakes: list[jobstore_pb2.FlowWake] = []

    async def until(self, so: Callable[[jobstore_pb2.FlowWake], bool]) -> None:
        while not any(so(wake) for wake in self.wakes):
            self.wakes += (await anext(self.stream)).wakes

    async def to(self, revision: int) -> None:
        at = 0
        while at < revision:
            response = await anext(self.stream)
            self.wakes += response.wakes
            at = response.revision or at


@pytest.mark.rule("semantics §5: first come first served")
async def test_who_queues_for_a_lock_is_not_passed(store: RunningJobstore) -> None:
    holder, second, third = a_flow(), a_flow(), a_flow()
    first = holder.first(locks=[lock(VM_1)])
    assert await reasons(store, first, waiting(second, lock_waits=[lock(VM_1)], **UNTIL)) == ["", ""]
    assert await reasons(store, waiting(third, lock_waits=[lock(VM_1, exclusive=False)], **UNTIL)) == [""]
    assert await reasons(store, second.next(locks=[lock(VM_1)])) == ["LOCKED"]
    second.sequence -= 1
    await commit(store, holder.last())
    [refused] = await commit(store, third.next(locks=[lock(VM_1, exclusive=False)]))
    error = WaybillError.from_status(refused.error)
    assert (error.reason, error.metadata["job_id"]) == ("LOCKED", second.job_id)
    third.sequence -= 1
    assert await reasons(store, second.next(locks=[lock(VM_1)], **BEGINS)) == [""]
    assert await reasons(store, third.next(locks=[lock(VM_1, exclusive=False)], **BEGINS)) == ["LOCKED"]


@pytest.mark.rule("semantics §5: shared; all of a command's keys or none")
async def test_shared_locks_do_not_bar_each_other_in_a_queue(store: RunningJobstore) -> None:
    holder, writer, readers = a_flow(), a_flow(), [a_flow(), a_flow()]
    shared = lock(VM_1, exclusive=False)
    await commit(store, holder.first(locks=[lock(VM_1)]))
    await commit(store, *(waiting(reader, lock_waits=[shared], **UNTIL) for reader in readers))
    await commit(store, waiting(writer, lock_waits=[lock(VM_1), lock(VM_2)], **UNTIL))
    assert [(await loaded(store, flow)).locks_free for flow in (*readers, writer)] == [False] * 3
    await commit(store, holder.last())
    assert [(await loaded(store, flow)).locks_free for flow in (*readers, writer)] == [True, True, False]
    assert await reasons(store, *(reader.next(locks=[shared], **BEGINS) for reader in readers)) == ["", ""]
    late = a_flow()
    assert await reasons(store, late.first(locks=[lock(VM_2)])) == ["LOCKED"]  # the writer queues for both


async def test_a_place_in_a_queue_is_no_lock(store: RunningJobstore) -> None:
    queuing = a_flow()
    await commit(store, waiting(queuing, lock_waits=[lock(VM_1)], **UNTIL))
    entity = jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1")
    await store.reads.PutEntities(jobstore_pb2.PutEntitiesRequest(entities=[entity]), timeout=5)
    [held] = (await store.reads.ListLocks(jobstore_pb2.ListLocksRequest(), timeout=5)).locks
    assert held.waiting
    assert held.waits_until.seconds == UNTIL["waits_until"]["seconds"]
    await commit(store, ended(queuing, FAILED))
    assert not (await store.reads.ListLocks(jobstore_pb2.ListLocksRequest(), timeout=5)).locks
    assert not (await store.reads.CheckConsistency(jobstore_pb2.CheckConsistencyRequest(), timeout=5)).violations


@pytest.mark.rule("semantics §5: Scope: execution (only until the plan is committed)")
async def test_a_passing_lock_is_looked_at_and_not_held(store: RunningJobstore) -> None:
    passing, other, third = a_flow(), a_flow(), a_flow()
    only_now = jobstore_pb2.LockRow(entity=VM_1, exclusive=True, passing=True)
    assert await reasons(store, passing.first(locks=[only_now])) == [""]
    assert await reasons(store, other.first(locks=[lock(VM_1)])) == [""]
    assert await reasons(store, third.first(locks=[only_now])) == ["LOCKED"]


async def test_who_queues_is_told_when_the_locks_are_free(store: RunningJobstore) -> None:
    holder, queuing = a_flow(), a_flow()
    woken = Woken(store)
    await commit(store, holder.first(locks=[lock(VM_1)]))
    [stored] = await commit(store, waiting(queuing, lock_waits=[lock(VM_1)], **UNTIL))
    await woken.to(stored.revision)
    assert woken.wakes == []
    await commit(store, holder.last())
    await woken.until(lambda wake: wake.flow_command_id == queuing.flow_command_id and wake.locks_free)
    again = Woken(store)  # whoever connects later is told, too
    await again.until(lambda wake: wake.flow_command_id == queuing.flow_command_id and wake.locks_free)


@pytest.mark.rule("semantics §8: Depends on other jobs")
async def test_who_waits_for_a_job_is_told_of_its_end(store: RunningJobstore) -> None:
    former, later = a_flow(), a_flow()
    woken = Woken(store)
    await commit(store, former.first())
    dependency = jobstore_pb2.Dependency(job_id=former.job_id, policy=jobs_pb2.DEPENDENCY_POLICY_RUN)
    [stored] = await commit(store, waiting(later, dependencies=[dependency]))
    assert [(each.job_id, each.status) for each in stored.dependencies] == [
        (former.job_id, jobs_pb2.EXECUTION_STATUS_STARTED)
    ]
    await commit(store, former.last())
    await woken.until(lambda wake: [each.status for each in wake.dependencies] == [FINISHED])
    [dependency] = (await loaded(store, later)).dependencies
    assert (dependency.policy, dependency.status) == (jobs_pb2.DEPENDENCY_POLICY_RUN, FINISHED)
    await commit(store, later.next(ends_wait=True))
    assert not (await loaded(store, later)).dependencies


async def test_who_waits_for_a_job_is_told_when_it_is_deleted(
    store: RunningJobstore, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    former, later = a_flow(), a_flow()
    await commit(store, former.first())
    dependency = jobstore_pb2.Dependency(job_id=former.job_id)
    await commit(store, waiting(later, dependencies=[dependency]))
    await connection.execute("DELETE FROM job WHERE job_id = $1", former.job_id)
    [dependency] = (await loaded(store, later)).dependencies
    assert dependency.status == jobs_pb2.EXECUTION_STATUS_UNSPECIFIED


async def test_nobody_waits_for_a_job_that_there_is_not(store: RunningJobstore) -> None:
    later = a_flow()
    dependency = jobstore_pb2.Dependency(job_id=a_flow().job_id)
    [result] = await commit(store, waiting(later, dependencies=[dependency]))
    error = WaybillError.from_status(result.error)
    assert (error.reason, error.metadata["job_id"]) == ("JOB_NOT_FOUND", dependency.job_id)


@pytest.mark.rule("semantics §2: all or nothing (refused ones FAILED, the rest SKIPPED)")
async def test_of_a_group_all_are_stored_or_none(store: RunningJobstore) -> None:
    holder, first, refused, third = a_flow(), a_flow(), a_flow(), a_flow()
    await commit(store, holder.first(locks=[lock(VM_2)]))
    group = [first.first(locks=[lock(VM_1)]), refused.first(locks=[lock(VM_2)]), third.first()]
    results = await commit(store, *group, all_or_nothing=True)
    assert [reason(result) for result in results] == ["GROUP_REFUSED", "LOCKED", "GROUP_REFUSED"]
    assert WaybillError.from_status(results[2].error).metadata["job_id"] == refused.job_id
    assert len((await store.reads.ListJobs(jobstore_pb2.ListJobsRequest(), timeout=5)).jobs) == 1
    await commit(store, holder.last())
    assert await reasons(store, *group, all_or_nothing=True) == ["", "", ""]
    assert await reasons(store, *group, all_or_nothing=True) == ["", "", ""]  # sent again: stored once
    assert len((await store.reads.ListJobs(jobstore_pb2.ListJobsRequest(), timeout=5)).jobs) == 4


async def test_later_ones_of_a_group_may_wait_for_earlier_ones(store: RunningJobstore) -> None:
    first, second = a_flow(), a_flow()
    dependency = jobstore_pb2.Dependency(job_id=first.job_id)
    results = await commit(store, waiting(first), waiting(second, dependencies=[dependency]), all_or_nothing=True)
    assert [reason(result) for result in results] == ["", ""]
    assert [each.status for each in results[1].dependencies] == [PENDING]
    await commit(store, ended(first, SKIPPED))
    assert [each.status for each in (await loaded(store, second)).dependencies] == [SKIPPED]


async def test_a_group_some_of_which_is_known_is_another_call_s(store: RunningJobstore) -> None:
    known = a_flow(request_id="r-1", request_hash=b"1" * 32)
    await commit(store, known.first())
    again = a_flow(request_id="r-1", request_hash=b"1" * 32)
    both = await reasons(store, again.first(), a_flow().first(), all_or_nothing=True)
    assert both == ["REQUEST_ID_REUSED"] * 2
    [result] = await commit(store, again.first() if again.sequence == 0 else _rewound(again), all_or_nothing=True)
    assert result.existing_job.job_id == known.job_id


def _rewound(flow: Flow) -> jobstore_pb2.FlowCommit:
    flow.sequence = 0
    return flow.first()


async def test_an_intent_keeps_its_arguments(store: RunningJobstore) -> None:
    flow = a_flow()
    await commit(store, flow.first())
    intent = jobstore_pb2.FlowRequest(
        request_id=flow.task_id,
        flow_command_id=flow.flow_command_id,
        kind="SET_PRIORITY",
        arguments_json='{"priority": 7}',
    )
    request = jobstore_pb2.RequestFlowRequest(request=intent, job_id=flow.job_id)
    await store.journal.RequestFlow(request, timeout=5)
    [kept] = (await loaded(store, flow)).requests
    assert kept == intent


async def test_a_priority_is_changed_with_a_revision(store: RunningJobstore) -> None:
    flow = a_flow(priority=3)
    await commit(store, flow.first())
    [result] = await commit(store, flow.next(job=jobstore_pb2.JobChange(priority=-7)))
    rows = await loaded(store, flow)
    assert (rows.job.priority, rows.job.revision) == (-7, result.revision)
    end = flow.last()
    end.job.priority = 8
    await commit(store, end)
    rows = await loaded(store, flow)
    assert (rows.job.priority, rows.job.status) == (8, FINISHED)


async def test_waits_do_not_outlive_their_flows(
    store: RunningJobstore, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    former, later = a_flow(), a_flow()
    await commit(store, former.first())
    dependency = jobstore_pb2.Dependency(job_id=former.job_id)
    await commit(store, waiting(later, dependencies=[dependency], lock_waits=[lock(VM_1)], **UNTIL))
    await commit(store, ended(later, SKIPPED))
    left = await connection.fetchval(
        "SELECT (SELECT count(*) FROM job_dependency) + (SELECT count(*) FROM entity_lock)"
    )
    assert left == 0
