"""Journal, lease, recovery and monitor on the real jobstore: what both ends must mean the same by."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.coordinator.far_end import ScriptedHost, until

from chassis.channels import open_channel
from chassis.clock import SystemClock, Uuid7Ids
from chassis.errors import WaybillError
from coordinator.hosts.hosts import Hosts
from coordinator.journal.journal import Journal
from coordinator.monitor.monitor import Monitor
from coordinator.recovery.recovery import Lease, Recovery
from jobstore.service import LARGEST_MESSAGE_MIB
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

CLOCK = SystemClock()
IDS = Uuid7Ids()
LEASE_SECONDS = 1.0
NEVER_OVER = 3600.0  # a lease that nobody waits out: what it held was released, or the test hangs
HOST, VM = jobs_pb2.ENTITY_TYPE_HOST, jobs_pb2.ENTITY_TYPE_VM


@pytest.fixture
async def channel(jobstore: RunningJobstore) -> AsyncIterator[grpc.aio.Channel]:
    """A line to a jobstore on a database of its own."""
    async with open_channel(jobstore.address, max_message_mib=LARGEST_MESSAGE_MIB) as channel:
        yield channel


@pytest.fixture
def store(channel: grpc.aio.Channel) -> jobstore_pb2_grpc.JobStoreStub:
    return jobstore_pb2_grpc.JobStoreStub(channel)


class Coordinator:
    """As much of a coordinator as holds a lease and takes up flows."""

    def __init__(self, channel: grpc.aio.Channel, lease_seconds: float = LEASE_SECONDS) -> None:
        rng = random.Random(1)
        self.coordinator_id = IDS.new()
        self.journal = Journal(jobstore_pb2_grpc.JournalStub(channel), self.coordinator_id, CLOCK, rng)
        self.lost: list[str] = []
        self.flows: list[jobstore_pb2.FlowRows] = []
        self.took_over = asyncio.Event()
        self.recovery = Recovery(
            self.journal,
            CLOCK,
            rng,
            coordinator_id=self.coordinator_id,
            lease_seconds=lease_seconds,
            on_flows=self._take_over,
            on_death=lambda: None,
        )
        self.lease = Lease(
            self.journal,
            CLOCK,
            rng,
            lease_seconds=lease_seconds,
            address="127.0.0.1:1",
            on_lost=self.lost.append,
            on_leases=self.recovery.leases_seen,
        )

    def _take_over(self, flows: Sequence[jobstore_pb2.FlowRows]) -> None:
        self.flows += flows
        self.took_over.set()


@asynccontextmanager
async def a_coordinator(channel: grpc.aio.Channel, lease_seconds: float = LEASE_SECONDS) -> AsyncIterator[Coordinator]:
    coordinator = Coordinator(channel, lease_seconds)
    async with coordinator.journal, coordinator.lease, coordinator.recovery:
        yield coordinator


def a_submission() -> jobstore_pb2.FlowCommit:
    """The first commit of a flow with one begun task."""
    flow, job, task = IDS.new(), IDS.new(), IDS.new()
    commit = jobstore_pb2.FlowCommit(flow_command_id=flow, epoch=1, sequence=1, job_id=job)
    commit.new_job.job_id = job
    commit.new_job.command_type = "Bench"
    commit.new_job.description = "working"
    commit.new_job.status = jobs_pb2.EXECUTION_STATUS_STARTED
    commit.new_job.owner = "ann"
    commit.new_job.correlation_id = "order-66"
    commit.new_job.parameters_json = "{}"
    commit.new_job.cancelable = jobs_pb2.CANCEL_KIND_REVERT
    commit.new_commands.add(
        command_id=flow,
        command_type="Bench",
        parameters_json="{}",
        parameters_version=1,
        status=jobs_pb2.COMMAND_STATUS_ACTIVE,
        plans_json="[{}]",
    )
    commit.new_tasks.add(
        task_id=task,
        kind=jobs_pb2.HOST_TASK_KIND_TASK,
        command_id=flow,
        host_id="h1",
        verb="simWork",
        arguments_json="{}",
        attempt=1,
    )
    return commit


def an_end(begun: jobstore_pb2.FlowCommit, epoch: int = 1) -> jobstore_pb2.FlowCommit:
    """The last commit of that flow."""
    commit = jobstore_pb2.FlowCommit(
        flow_command_id=begun.flow_command_id, epoch=epoch, sequence=2, job_id=begun.job_id, ends_flow=True
    )
    commit.job.status = jobs_pb2.EXECUTION_STATUS_FINISHED
    commit.job.progress = 100
    commit.commands.add(command_id=begun.flow_command_id, status=jobs_pb2.COMMAND_STATUS_ENDED_SUCCESSFULLY)
    commit.tasks.add(
        task_id=begun.new_tasks[0].task_id,
        state=jobs_pb2.TASK_STATE_FINISHED,
        result=jobs_pb2.TASK_RESULT_SUCCESS,
    )
    return commit


async def put(store: jobstore_pb2_grpc.JobStoreStub, entity_type: int, entity_id: str, **declared: str) -> None:
    entity = jobs_pb2.Entity(entity_type=entity_type, entity_id=entity_id)  # type: ignore[arg-type]
    entity.declared.update(declared)
    await store.PutEntities(jobstore_pb2.PutEntitiesRequest(entities=[entity]), timeout=5)


async def test_a_commit_that_is_sent_again_is_answered_as_before(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel) as coordinator:
        begun = a_submission()
        first = await coordinator.journal.commit(begun)
        again = await coordinator.journal.commit(begun)

    assert not first.HasField("error"), first.error
    assert (again.revision, again.time) == (first.revision, first.time)


async def test_what_was_cleared_is_no_leftover_any_more(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel) as coordinator:
        begun = a_submission()
        task_id = begun.new_tasks[0].task_id
        await coordinator.journal.commit(begun)
        assert await coordinator.journal.uncleared_tasks("h1") == []
        await coordinator.journal.commit(an_end(begun))
        assert await coordinator.journal.uncleared_tasks("h1") == [task_id]

        coordinator.journal.cleared([task_id])
        assert await coordinator.journal.drain(5)
        assert await coordinator.journal.uncleared_tasks("h1") == []


@pytest.mark.rule("semantics §2: Every flow goes on, in whichever coordinator claims it")
async def test_flows_of_a_coordinator_that_is_gone_go_on_and_it_can_write_no_more(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel) as heir, Coordinator(channel).journal as dying:
        await dying.renew_lease(1, "127.0.0.1:2", 5)  # and never again
        begun = a_submission()
        assert not (await dying.commit(begun)).HasField("error")
        await heir.took_over.wait()

        [rows] = heir.flows
        assert (rows.flow_command_id, rows.epoch, rows.sequence) == (begun.flow_command_id, 2, 1)
        assert [task.task_id for task in rows.tasks] == [begun.new_tasks[0].task_id]
        with pytest.raises(WaybillError) as late:
            await dying.commit(an_end(begun))
        assert late.value.reason == "LEASE_LOST"
        assert not (await heir.journal.commit(an_end(begun, epoch=2))).HasField("error")


async def test_a_coordinator_that_was_only_slow_finds_its_lease_gone(channel: grpc.aio.Channel) -> None:
    slow = Coordinator(channel)
    async with slow.journal, a_coordinator(channel) as heir:
        await slow.journal.renew_lease(1, "127.0.0.1:2", 5)
        await slow.journal.commit(a_submission())
        await heir.took_over.wait()

        with pytest.raises(WaybillError) as late:
            await slow.journal.renew_lease(2, "127.0.0.1:2", 5)
        assert late.value.reason == "LEASE_LOST"


async def test_after_a_clean_stop_another_goes_on_at_once(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel, NEVER_OVER) as former:
        await former.journal.commit(a_submission())

    async with a_coordinator(channel, NEVER_OVER) as heir:
        await heir.took_over.wait()


async def test_our_own_flows_are_known_when_the_answer_to_a_claim_was_lost(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel) as coordinator:
        begun = a_submission()
        await coordinator.journal.commit(begun)

        claimed = await coordinator.journal.claim_flows(coordinator.coordinator_id, 0)
        assert claimed.flow_command_ids == [begun.flow_command_id]


async def test_what_a_host_sees_comes_back_as_seen(
    channel: grpc.aio.Channel, store: jobstore_pb2_grpc.JobStoreStub, host: ScriptedHost
) -> None:
    seen: dict[str, str] = {}
    async with host.serve() as server, a_coordinator(channel) as coordinator:
        rng = random.Random(1)
        hosts = Hosts(CLOCK, rng, 10.0, lambda report: None, coordinator.journal.cleared)
        coordinator.journal.on_entities(lambda entities: [hosts.learn(entity) for entity in entities] and None)
        coordinator.journal.on_entities(
            lambda entities: seen.update({entity.entity_id: entity.observed.state for entity in entities})
        )
        monitor = Monitor(coordinator.journal, store, hosts, CLOCK, rng)
        async with hosts, monitor:
            await put(store, VM, "v1")
            await put(store, VM, "v2")
            host.seen, host.newest_number = [an_observation("v1", "UP", 1), an_observation("v2", "UP", 2)], 2
            await put(store, HOST, "h1", address=server.address)
            await until(lambda: (seen.get("v1"), seen.get("v2")) == ("UP", "UP"))

            host.seen, host.newest_number = host.seen[:1], 3  # v2 went while nobody listened
            host.listeners.publish(WaybillError(grpc.StatusCode.ABORTED, "ABORTED", "the line breaks"))
            await until(lambda: seen["v2"] == "DOWN")

    assert seen["v1"] == "UP"


def an_observation(vm_id: str, state: str, number: int) -> hostagent_pb2.Observation:
    return hostagent_pb2.Observation(entity_type=VM, entity_id=vm_id, state=state, number=number)


async def test_many_writers_commits_share_batches(channel: grpc.aio.Channel) -> None:
    async with a_coordinator(channel) as coordinator:
        submissions = [a_submission() for _ in range(200)]
        results = await asyncio.gather(*map(coordinator.journal.commit, submissions))

    assert not any(result.HasField("error") for result in results)
    assert len({result.revision for result in results}) < len(results) / 4
