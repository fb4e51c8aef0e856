"""The coordinator's only writer.

Everything that the coordinator wants stored goes through here in batches: while one batch is on its way the next one
gathers, and goes when the loop is at rest. So a busy coordinator makes few large transactions and an idle one writes at
once. There is no timer.

    commit() ──┐                        ┌─▶ one batch on its way ──▶ jobstore: one transaction, one revision
    observe() ─┼─▶ Gathering ──take()──▶│      nobody answered: the very same again, for ever
    cleared() ─┤   (the latest of       │      refused as a whole: in parts, so that the culprit is refused alone
    note() ────┘    each entity)        └─▶ each waiter gets its own result

| when | answer |
| --- | --- |
| jobstore away, connection lost in COMMIT, deadline | unknown is normal: the same batch again, which is harmless |
| a commit is refused (lock, version, epoch) | data for the flow's tree, in its result |
| the whole batch is refused | each part alone; a note that is refused alone is dropped with a log line |
| a commit alone makes the jobstore stumble (INTERNAL) | a few attempts, then its flow is told |
| our lease is gone | `lease_lost` is set, every commit raises LEASE_LOST from now on: the coordinator must stop |
| the caller of `commit` is cancelled | the commit goes on; nobody hears its result |
| close | who still waits gets SHUTTING_DOWN; what was on its way may be stored or not, as after a crash |

The way back, what concerns coordinators, is `journalwatch.py`, in a stream of its own.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Final, TypeVar

import grpc

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError, unavailable
from coordinator.doorbell import set_within, settled
from coordinator.journal.batches import Batch, Gathering, Waiting
from coordinator.journal.journalwatch import HeardEntities, HeardRequests, HeardWakes, JournalWatch
from coordinator.metrics import JournalTallies
from coordinator.retries import Backoff, verdict
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

log = logs.get_logger(__name__)

COMMIT_SECONDS: Final = 10.0
"""How long an answer to a batch is waited for before it counts as unknown."""
ASK_SECONDS: Final = 5.0
"""The same for every other call."""
PATIENCE: Final = 10.0
"""How long a read that a caller waits for is repeated while the jobstore is away."""
MOST_LEFTOVERS: Final = 1000
DEFECT_ATTEMPTS: Final = 4
"""How often a part that makes the jobstore stumble is tried before it is given up."""

Q = TypeVar("Q")
A = TypeVar("A")


class Journal:
    """Writes what the coordinator decides, and hears what concerns it."""

    def __init__(
        self, stub: jobstore_pb2_grpc.JournalStub, coordinator_id: str, clock: Clock, rng: random.Random
    ) -> None:
        """`stub` should stick to one jobstore, so that batches are large, and take messages of 64 MiB."""
        self._stub = stub
        self._coordinator_id = coordinator_id
        self._clock = clock
        self._rng = rng
        self._gathering = Gathering(coordinator_id)
        self._in_flight: Batch | None = None
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: WaybillError | None = None  # why nothing is taken any more; None while open
        self._watch = JournalWatch(stub, coordinator_id, clock, rng)
        self._background = Background()
        self.metrics = JournalTallies(
            waiting=lambda: len(self._gathering.commits),
            in_flight=lambda: len(self._in_flight.waiting) if self._in_flight else 0,
        )
        self.lease_lost = asyncio.Event()

    async def __aenter__(self) -> Journal:
        await self._background.__aenter__()
        self._background.start(self._send(), "journal")
        self._background.start(self._watch.run(), "journal watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(unavailable("the coordinator is going down", reason="SHUTTING_DOWN"))
        await self._background.__aexit__(kind, error, trace)

    # ---------------------------------------------------------------- writing

    def commit(self, commit: jobstore_pb2.FlowCommit) -> asyncio.Future[jobstore_pb2.FlowCommitResult]:
        """Writes one flow's mutations; the future has what became of them. A refusal is the result's `error`.

        It takes for as long as the jobstore is away. At most one commit of a flow may be outstanding. The future raises
        LEASE_LOST and SHUTTING_DOWN.
        """
        waiting = Waiting(commit, asyncio.get_running_loop().create_future())
        if self._closed is not None:
            waiting.fail(_anew(self._closed))
        else:
            self._gathering.commits.append(waiting)
            self._wake()
        return waiting.result

    def commit_together(
        self, commits: Sequence[jobstore_pb2.FlowCommit]
    ) -> list[asyncio.Future[jobstore_pb2.FlowCommitResult]]:
        """Writes the commits of several flows, all or none; as `commit`, with a future each."""
        group = [Waiting(commit, asyncio.get_running_loop().create_future()) for commit in commits]
        if self._closed is not None:
            for waiting in group:
                waiting.fail(_anew(self._closed))
        else:
            self._gathering.groups.append(group)
            self._wake()
        return [waiting.result for waiting in group]

    def observe(self, row: jobstore_pb2.ObservedRow) -> None:
        """Notes what a host saw of an entity; goes with the next batch."""
        self._gathering.observe(row)
        self._wake()

    def cleared(self, task_ids: Iterable[str]) -> None:
        """Notes that hosts have forgotten these tasks; goes with the next batch."""
        self._gathering.cleared.update(dict.fromkeys(task_ids))
        self._wake()

    def note(self, event: jobstore_pb2.EventRow) -> None:
        """Notes an event that belongs to no flow's commit; goes with the next batch."""
        self._gathering.events.append(event)
        self._wake()

    async def drain(self, seconds: float) -> bool:
        """Waits until nothing is left to send, at most so many seconds; tells whether that is so."""
        return await set_within(self._idle, self._clock, seconds)

    def _wake(self) -> None:
        self._something.set()
        self._idle.clear()

    def _close(self, why: WaybillError) -> None:
        """Takes nothing more and tells all who wait; the first reason stays."""
        self._closed = self._closed or why
        groups = [waiting for group in self._gathering.groups for waiting in group]
        waiting = [*(self._in_flight.waiting if self._in_flight else ()), *self._gathering.commits, *groups]
        self._gathering.commits.clear()
        self._gathering.groups.clear()
        for each in waiting:
            each.fail(_anew(self._closed))

    # ---------------------------------------------------------------- sending

    async def _send(self) -> None:
        while not self.lease_lost.is_set():
            await self._something.wait()
            if not self._gathering:
                self._something.clear()
                self._idle.set()
                continue
            await settled(self._gathering.commits)
            self._in_flight, began = self._gathering.take(), self._clock.monotonic()
            self.metrics.batches.of().observe(len(self._in_flight.waiting))
            await self._deliver(self._in_flight)
            self.metrics.seconds.of().observe(self._clock.monotonic() - began)
            self._in_flight = None

    async def _deliver(self, batch: Batch) -> None:
        """Sends a batch until somebody decides about it."""
        pauses = Backoff(self._rng)
        defects = 0
        while True:
            try:
                response = await self._stub.Commit(batch.request, timeout=COMMIT_SECONDS)
                return batch.answer(response.results)
            except grpc.aio.AioRpcError as error:
                refusal = verdict(error)
            if refusal is not None:
                if refusal.reason == "LEASE_LOST":
                    return self._lose_lease(refusal)
                if len(parts := batch.parts()) > 1:
                    return await self._deliver_each(parts, refusal)
                defects += 1
                if refusal.code is not grpc.StatusCode.INTERNAL or defects == DEFECT_ATTEMPTS:
                    return self._give_up(batch, refusal)
            self.metrics.repeats.add()
            await self._clock.sleep(pauses.next())

    async def _deliver_each(self, parts: Sequence[Batch], refusal: WaybillError) -> None:
        """Finds the culprit of a refused batch."""
        log.warning("a batch was refused, its parts go alone", reason=refusal.reason, message=refusal.message)
        for part in parts:
            if not self.lease_lost.is_set():
                await self._deliver(part)

    def _give_up(self, part: Batch, refusal: WaybillError) -> None:
        """Tells the flow of a part that was refused for good; a note has nobody to tell."""
        log.error("a part was refused", reason=refusal.reason, message=refusal.message, part=str(part.request)[:2000])
        part.answer([jobstore_pb2.FlowCommitResult(error=refusal.to_status()) for _ in part.waiting])

    def _lose_lease(self, refusal: WaybillError) -> None:
        log.error("the lease is lost", message=refusal.message)
        self.lease_lost.set()
        self._close(refusal)

    # ---------------------------------------------------------------- asking

    async def read_entities(self, refs: Sequence[jobstore_pb2.EntityRef]) -> list[jobs_pb2.Entity]:
        """Returns entities in the order asked; an absent one has version 0."""
        request = jobstore_pb2.ReadEntitiesRequest(entities=refs)
        return list((await self._ask(self._stub.ReadEntities, request)).entities)

    async def request_flow(self, request: jobstore_pb2.FlowRequest, job_id: str) -> int:
        """Leaves an intent for the coordinator that owns a flow; returns the revision that has it."""
        asked = jobstore_pb2.RequestFlowRequest(request=request, job_id=job_id)
        return (await self._ask(self._stub.RequestFlow, asked)).revision

    async def read_job(self, *, job_id: str = "", step_id: str = "") -> jobs_pb2.Job:
        """Returns a job without steps, by its id or a step's, also to whom it is not to be shown."""
        key = {"step_id": step_id} if step_id else {"job_id": job_id}
        return (await self._ask(self._stub.ReadJob, jobstore_pb2.ReadJobRequest(**key))).job

    async def report_external(self, report: jobstore_pb2.ReportExternalRequest) -> jobstore_pb2.ReportExternalResponse:
        """Passes on a report about an external job; returns what it is about, as it is then."""
        return await self._ask(self._stub.ReportExternal, report)

    async def uncleared_tasks(self, host_id: str) -> list[str]:
        """Returns tasks of ended flows that a host may still know, at most MOST_LEFTOVERS."""
        request = jobstore_pb2.ListUnclearedTasksRequest(host_id=host_id, limit=MOST_LEFTOVERS)
        return list((await self._ask(self._stub.ListUnclearedTasks, request)).task_ids)

    async def claim_hosts(self) -> list[str]:
        """Takes over the hosts that nobody owns; returns all that are ours."""
        request = jobstore_pb2.ClaimHostsRequest(coordinator_id=self._coordinator_id)
        return list((await self._ask(self._stub.ClaimHosts, request)).host_ids)

    async def claim_flows(
        self, dead_coordinator_id: str, observed_counter: int, limit: int = 100
    ) -> jobstore_pb2.ClaimFlowsResponse:
        """Takes over unfinished flows of a coordinator whose lease stands still at that counter, or ("") of none.

        In one attempt: when its answer is lost, another would name other flows. Our own id: which flows are ours.
        """
        request = jobstore_pb2.ClaimFlowsRequest(
            coordinator_id=self._coordinator_id,
            dead_coordinator_id=dead_coordinator_id,
            observed_counter=observed_counter,
            limit=limit,
        )
        return await self._ask(self._stub.ClaimFlows, request, patience=0)

    async def load_flows(self, flow_command_ids: Sequence[str]) -> list[jobstore_pb2.FlowRows]:
        """Returns the rows of at most 100 flows; waits for as long as the jobstore is away, for they are ours."""
        request = jobstore_pb2.LoadFlowsRequest(flow_command_ids=flow_command_ids)
        return list((await self._ask(self._stub.LoadFlows, request, patience=math.inf)).flows)

    async def untraced_flows(self, dead_coordinator_id: str) -> AsyncIterator[list[str]]:
        """Yields ended flows whose spans a dead coordinator owes, by many; waits as `load_flows` does."""
        revision, more = 0, True
        while more:
            request = jobstore_pb2.ListUntracedFlowsRequest(coordinator_id=dead_coordinator_id, after_revision=revision)
            response = await self._ask(self._stub.ListUntracedFlows, request, patience=math.inf)
            yield list(response.flow_command_ids)
            revision, more = response.revision, response.revision > 0

    async def load_flow_of(self, job_id: str) -> jobstore_pb2.FlowRows | None:
        """Returns the rows of a job's flow, anybody's; None if there is none."""
        flows = (await self._ask(self._stub.LoadFlows, jobstore_pb2.LoadFlowsRequest(job_ids=[job_id]))).flows
        return flows[0] if flows else None

    async def renew_lease(
        self, counter: int, address: str, seconds: float, traced_revision: int = -1, settled: Sequence[str] = ()
    ) -> list[jobstore_pb2.Lease]:
        """Takes (counter 1) or renews our lease in one attempt; returns all leases. Raises LEASE_LOST.

        `traced_revision` and `settled`: as Deliveries has them.
        """
        request = jobstore_pb2.RenewLeaseRequest(
            coordinator_id=self._coordinator_id,
            counter=counter,
            address=address,
            traced_revision=traced_revision,
            traced_coordinator_ids=settled,
        )
        return list((await self._ask(self._stub.RenewLease, request, patience=0, seconds=seconds)).leases)

    async def release_lease(self, seconds: float, traced_revision: int = -1, settled: Sequence[str] = ()) -> None:
        """Gives our lease up in one attempt: its flows may be claimed at once."""
        request = jobstore_pb2.ReleaseLeaseRequest(
            coordinator_id=self._coordinator_id, traced_revision=traced_revision, traced_coordinator_ids=settled
        )
        await self._ask(self._stub.ReleaseLease, request, patience=0, seconds=seconds)

    async def _ask(
        self,
        rpc: grpc.aio.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        *,
        patience: float = PATIENCE,
        seconds: float = ASK_SECONDS,
    ) -> A:
        """Asks, and again while nobody answers: for `patience` seconds. Each attempt has `seconds`."""
        pauses = Backoff(self._rng)
        give_up = self._clock.monotonic() + patience
        while True:
            try:
                return await rpc(request, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                if refusal := verdict(error):
                    raise refusal from error
                pause = pauses.next()
                if self._clock.monotonic() + pause > give_up:
                    raise unavailable(f"the jobstore does not answer: {error.details()}") from error
            await self._clock.sleep(pause)

    # ---------------------------------------------------------------- hearing

    @property
    def first_snapshot(self) -> asyncio.Event:
        """Set once all hosts and all intents have been heard of."""
        return self._watch.first_snapshot

    def on_entities(self, heard: HeardEntities) -> None:
        """Calls back with entities whenever some changed; a removed one has version 0."""
        self._watch.on_entities(heard)

    def on_requests(self, heard: HeardRequests) -> None:
        """Calls back with intents for flows; the same may come again until a commit has handled it."""
        self._watch.on_requests(heard)

    def on_wakes(self, heard: HeardWakes) -> None:
        """Calls back with news for flows that wait; the same may come again."""
        self._watch.on_wakes(heard)


def _anew(error: WaybillError) -> WaybillError:
    """Returns an equal error: one that is raised in many places would gather their tracebacks."""
    return WaybillError(error.code, error.reason, error.message, metadata=error.metadata)
