"""The other ends of the coordinator's lines: a host and a jobstore that do as they are told, over real gRPC."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from chassis import context
from chassis.clock import ManualClock
from chassis.errors import WaybillError, failed_precondition, not_found
from chassis.server import Mount, Server
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

FINISHED = jobs_pb2.TASK_STATE_FINISHED
INIT = jobs_pb2.TASK_STATE_INIT
RUNNING = jobs_pb2.TASK_STATE_RUNNING
SUCCESS = jobs_pb2.TASK_RESULT_SUCCESS


SILENCE = WaybillError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "nobody answered")
"""What a caller sees of a call that nobody answered. Unlike UNAVAILABLE, no channel repeats it by itself."""


async def until(condition: Callable[[], Any]) -> None:
    """Lets the loop turn until something is so; the test's timeout is the limit."""
    while not condition():  # noqa: ASYNC110 (what is waited for happens at the other end of a connection)
        await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    """Lets whatever is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


async def pass_time(clock: ManualClock, condition: Callable[[], Any], step: float = 0.05, sleepers: int = 1) -> None:
    """Lets time pass in small steps until something is so, but only while so many sleep: who waits for an answer from
    the other end does not, and should not find that much time has passed meanwhile.
    """
    while not condition():
        await turns(12)  # more than what gathers before it is sent takes
        if clock.sleeping >= sleepers:
            clock.advance(step)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    """A server that says it is up."""
    async with server:
        server.set_serving(True)
        yield server


UNTRACED_AT_ONCE = 120


class Script:
    """Failures to come, by call, and calls that are held back."""

    def __init__(self) -> None:
        self._failures: dict[str, list[WaybillError]] = {}
        self._held: dict[str, asyncio.Event] = {}
        self.asked: Counter[str] = Counter()
        """How often each call came, failed ones too."""

    def fail(self, call: str, error: WaybillError, times: int = 1) -> None:
        """The next calls of that name fail."""
        self._failures.setdefault(call, []).extend([error] * times)

    def hold(self, call: str) -> asyncio.Event:
        """Calls of that name are answered once the event is set."""
        return self._held.setdefault(call, asyncio.Event())

    async def play(self, call: str) -> None:
        self.asked[call] += 1
        if failures := self._failures.get(call):
            raise failures.pop(0)
        if held := self._held.get(call):
            await held.wait()


class Subscribers:
    """Open streams."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def publish(self, message: Any) -> None:
        for queue in self._queues:
            queue.put_nowait(message)

    async def stream(self) -> AsyncIterator[Any]:
        """Yields what is published from now on; an exception that is published ends it."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while True:
                message = await queue.get()
                if isinstance(message, BaseException):
                    raise message
                yield message
        finally:
            self._queues.discard(queue)


class ScriptedHost(hostagent_pb2_grpc.HostAgentServicer):
    """A host that takes every task and does nothing with it until it is told that the work is over."""

    def __init__(self, host_id: str = "h1", incarnation: str = "i1") -> None:
        self.host_id = host_id
        self.incarnation = incarnation
        self.script = Script()
        self.tasks: dict[str, hostagent_pb2.TaskStatus] = {}
        self.specs: dict[str, hostagent_pb2.TaskSpec] = {}
        self.batches: list[list[str]] = []
        """The ids of each StartTasks that was answered."""
        self.takes_as = RUNNING
        """The state of a task that it has just taken."""
        self.priorities: defaultdict[str, list[int]] = defaultdict(list)
        """With which each task came, time after time."""
        self.refuse: Callable[[hostagent_pb2.TaskSpec], WaybillError | None] = lambda spec: None
        self.answer: Callable[[hostagent_pb2.TaskSpec], hostagent_pb2.CallResponse] = lambda spec: (
            hostagent_pb2.CallResponse(observation_number=7)
        )
        self.correlation_ids: list[str] = []
        self.cleared: list[list[str]] = []
        self.mute = False
        """Pushes nothing."""
        self.watchers = Subscribers()
        self.listeners = Subscribers()
        self.seen: list[hostagent_pb2.Observation] = []
        self.newest_number = 0

    @property
    def agent(self) -> hostagent_pb2.AgentIdentity:
        return hostagent_pb2.AgentIdentity(host_id=self.host_id, incarnation=self.incarnation, boot_id="b1")

    def publish(self, task_id: str, state: jobs_pb2.TaskState.ValueType, **fields: Any) -> None:
        """A task changes."""
        status = hostagent_pb2.TaskStatus(task_id=task_id, state=state, **fields)
        self.tasks[task_id] = status
        if not self.mute:
            self.watchers.publish(hostagent_pb2.WatchTasksResponse(statuses=[status], agent=self.agent))

    def finish(self, task_id: str) -> None:
        self.publish(task_id, FINISHED, result=SUCCESS, progress=100)

    async def StartTasks(self, request: Any, _rpc: Any) -> hostagent_pb2.StartTasksResponse:
        await self.script.play("StartTasks")
        self.batches.append([spec.task_id for spec in request.tasks])
        response = hostagent_pb2.StartTasksResponse(agent=self.agent)
        for spec in request.tasks:
            self.priorities[spec.task_id].append(spec.priority)
            result = response.results.add(task_id=spec.task_id)
            if refusal := self.refuse(spec):
                result.error.CopyFrom(refusal.to_status())
            elif spec.task_id not in self.tasks:
                self.specs[spec.task_id] = spec
                self.tasks[spec.task_id] = hostagent_pb2.TaskStatus(task_id=spec.task_id, state=self.takes_as)
        return response

    async def Call(self, request: Any, _rpc: Any) -> hostagent_pb2.CallResponse:
        self.correlation_ids.append(context.current().correlation_id)
        await self.script.play("Call")
        self.tasks[request.call.task_id] = hostagent_pb2.TaskStatus(task_id=request.call.task_id, state=FINISHED)
        response = self.answer(request.call)
        response.task_id = request.call.task_id
        response.agent.CopyFrom(self.agent)
        return response

    async def GetTaskStatus(self, request: Any, _rpc: Any) -> hostagent_pb2.GetTaskStatusResponse:
        await self.script.play("GetTaskStatus")
        return hostagent_pb2.GetTaskStatusResponse(status=self._known(request.task_id), agent=self.agent)

    async def GetTaskInfo(self, request: Any, _rpc: Any) -> hostagent_pb2.GetTaskInfoResponse:
        await self.script.play("GetTaskInfo")
        status = self._known(request.task_id)
        info = hostagent_pb2.TaskInfo(spec=self.specs[request.task_id], status=status)
        return hostagent_pb2.GetTaskInfoResponse(info=info, agent=self.agent)

    async def GetAllTasksStatuses(self, request: Any, _rpc: Any) -> hostagent_pb2.GetAllTasksStatusesResponse:
        await self.script.play("GetAllTasksStatuses")
        asked = set(request.task_ids) or set(self.tasks)
        statuses = [status for task_id, status in self.tasks.items() if task_id in asked]
        return hostagent_pb2.GetAllTasksStatusesResponse(statuses=statuses, agent=self.agent)

    async def GetAllTasksInfo(self, request: Any, _rpc: Any) -> hostagent_pb2.GetAllTasksInfoResponse:
        raise NotImplementedError

    async def StopTask(self, request: Any, _rpc: Any) -> hostagent_pb2.StopTaskResponse:
        self.correlation_ids.append(context.current().correlation_id)
        await self.script.play("StopTask")
        status = self._known(request.task_id)
        if status.state != FINISHED:
            status.state = jobs_pb2.TASK_STATE_ABORTING
        return hostagent_pb2.StopTaskResponse(status=status, agent=self.agent)

    async def RevertTask(self, request: Any, _rpc: Any) -> hostagent_pb2.RevertTaskResponse:
        raise NotImplementedError

    async def ClearTasks(self, request: Any, _rpc: Any) -> hostagent_pb2.ClearTasksResponse:
        await self.script.play("ClearTasks")
        self.cleared.append(list(request.task_ids))
        response = hostagent_pb2.ClearTasksResponse(agent=self.agent)
        for task_id in request.task_ids:
            result = response.results.add(task_id=task_id)
            if task_id in self.tasks and self.tasks[task_id].state != FINISHED:
                result.error.CopyFrom(failed_precondition("TASK_STATE", "it still runs").to_status())
            else:
                self.tasks.pop(task_id, None)
        return response

    async def WatchTasks(self, request: Any, _rpc: Any) -> AsyncIterator[Any]:
        await self.script.play("WatchTasks")
        yield hostagent_pb2.WatchTasksResponse(statuses=self.tasks.values(), snapshot_done=True, agent=self.agent)
        async for message in self.watchers.stream():
            yield message

    async def WatchEvents(self, request: Any, _rpc: Any) -> AsyncIterator[Any]:
        await self.script.play("WatchEvents")
        yield hostagent_pb2.WatchEventsResponse(
            observations=self.seen, snapshot_done=True, agent=self.agent, newest_number=self.newest_number
        )
        async for message in self.listeners.stream():
            yield message

    async def GetHost(self, request: Any, _rpc: Any) -> hostagent_pb2.GetHostResponse:
        raise NotImplementedError

    def _known(self, task_id: str) -> hostagent_pb2.TaskStatus:
        if task_id not in self.tasks:
            raise not_found("TASK_UNKNOWN", f"no task {task_id}")
        return self.tasks[task_id]

    def serve(self, listen: str = "127.0.0.1:0") -> AbstractAsyncContextManager[Server]:
        """A server with this host, to be entered."""
        mount = Mount("waybill.v1.HostAgent", self, hostagent_pb2_grpc.add_HostAgentServicer_to_server)
        return serving(Server(listen, [mount], grace=0))


class ScriptedJobStore(jobstore_pb2_grpc.JournalServicer):
    """A jobstore that applies every commit, remembers what it was asked, and has rows to claim."""

    def __init__(self) -> None:
        self.script = Script()
        self.commits: list[jobstore_pb2.CommitRequest] = []
        """Those that were answered."""
        self.refuse: Callable[[jobstore_pb2.FlowCommit], WaybillError | None] = lambda commit: None
        self.refuse_batch: Callable[[jobstore_pb2.CommitRequest], WaybillError | None] = lambda request: None
        self.revision = 100
        self.watch_requests: list[int] = []
        self.watchers = Subscribers()
        self.snapshot: list[jobs_pb2.Entity] = []
        self.leases: dict[str, jobstore_pb2.Lease] = {}
        self.released: list[jobstore_pb2.ReleaseLeaseRequest] = []
        self.flows: dict[str, list[str]] = {}
        """Unfinished flows by owner."""
        self.untraced: dict[str, list[str]] = {}
        """Ended flows whose spans are owed, by owner; `debts` says who has inherited them."""
        self.debts: dict[str, str] = {}
        self.renewals: list[jobstore_pb2.RenewLeaseRequest] = []
        """Those that were answered."""
        self.after_claim: Callable[[], Awaitable[None]] | None = None
        self.claims: list[tuple[str, int]] = []
        self.hosts: list[str] = []
        self.leftovers: dict[str, list[str]] = {}
        self.vms: list[jobs_pb2.Entity] = []
        self.filters: list[str] = []

    async def Commit(self, request: Any, _rpc: Any) -> jobstore_pb2.CommitResponse:
        if refusal := self.refuse_batch(request):
            self.script.asked["Commit"] += 1
            raise refusal
        await self.script.play("Commit")
        self.commits.append(request)
        self.revision += 1
        response = jobstore_pb2.CommitResponse()
        for commit in request.commits:
            result = response.results.add(revision=self.revision)
            if refused := self.refuse(commit):
                result.error.CopyFrom(refused.to_status())
        for task_id in request.cleared_task_ids:
            for left in self.leftovers.values():
                if task_id in left:
                    left.remove(task_id)
        return response

    async def Watch(self, request: Any, _rpc: Any) -> AsyncIterator[Any]:
        self.watch_requests.append(request.resume_revision)
        await self.script.play("Watch")
        if request.resume_revision == 0:
            yield jobstore_pb2.JournalWatchResponse(entities=self.snapshot, revision=self.revision, snapshot_done=True)
        async for message in self.watchers.stream():
            yield message

    async def RenewLease(self, request: Any, _rpc: Any) -> jobstore_pb2.RenewLeaseResponse:
        await self.script.play("RenewLease")
        self.renewals.append(request)
        self.leases[request.coordinator_id] = jobstore_pb2.Lease(
            coordinator_id=request.coordinator_id, counter=request.counter, address=request.address
        )
        return jobstore_pb2.RenewLeaseResponse(leases=self.leases.values())

    async def ReleaseLease(self, request: Any, _rpc: Any) -> jobstore_pb2.ReleaseLeaseResponse:
        await self.script.play("ReleaseLease")
        self.released.append(request)
        return jobstore_pb2.ReleaseLeaseResponse()

    async def ClaimFlows(self, request: Any, _rpc: Any) -> jobstore_pb2.ClaimFlowsResponse:
        self.claims.append((request.dead_coordinator_id, request.observed_counter))
        heir, dead = request.coordinator_id, request.dead_coordinator_id
        owned = self.flows.setdefault(heir, [])
        if dead == heir:
            debts = [each for each, whose in self.debts.items() if whose == heir]
            return jobstore_pb2.ClaimFlowsResponse(flow_command_ids=owned, untraced_coordinator_ids=debts)
        left = self.flows.get(dead, [])
        taken, left[:] = left[: request.limit], left[request.limit :]
        owned += taken
        debts = [dead] if dead in self.untraced and dead not in self.debts else []
        self.debts.update(dict.fromkeys(debts, heir))
        await self.script.play("ClaimFlows")
        return jobstore_pb2.ClaimFlowsResponse(flow_command_ids=taken, untraced_coordinator_ids=debts)

    async def ListUntracedFlows(self, request: Any, _rpc: Any) -> jobstore_pb2.ListUntracedFlowsResponse:
        await self.script.play("ListUntracedFlows")
        flows, first = self.untraced[request.coordinator_id], request.after_revision
        on = first + UNTRACED_AT_ONCE
        return jobstore_pb2.ListUntracedFlowsResponse(
            flow_command_ids=flows[first:on], revision=on if on < len(flows) else 0
        )

    async def ClaimHosts(self, request: Any, _rpc: Any) -> jobstore_pb2.ClaimHostsResponse:
        await self.script.play("ClaimHosts")
        return jobstore_pb2.ClaimHostsResponse(host_ids=self.hosts)

    async def LoadFlows(self, request: Any, _rpc: Any) -> jobstore_pb2.LoadFlowsResponse:
        await self.script.play("LoadFlows")
        started = jobstore_pb2.JobRow(status=jobs_pb2.EXECUTION_STATUS_STARTED)
        return jobstore_pb2.LoadFlowsResponse(
            flows=[jobstore_pb2.FlowRows(flow_command_id=each, job=started) for each in request.flow_command_ids]
        )

    async def ReadEntities(self, request: Any, _rpc: Any) -> jobstore_pb2.ReadEntitiesResponse:
        await self.script.play("ReadEntities")
        return jobstore_pb2.ReadEntitiesResponse(
            entities=[jobs_pb2.Entity(entity_type=ref.entity_type, entity_id=ref.entity_id) for ref in request.entities]
        )

    async def ListUnclearedTasks(self, request: Any, _rpc: Any) -> jobstore_pb2.ListUnclearedTasksResponse:
        await self.script.play("ListUnclearedTasks")
        return jobstore_pb2.ListUnclearedTasksResponse(
            task_ids=self.leftovers.get(request.host_id, [])[: request.limit]
        )

    async def RequestFlow(self, request: Any, _rpc: Any) -> jobstore_pb2.RequestFlowResponse:
        await self.script.play("RequestFlow")
        return jobstore_pb2.RequestFlowResponse(revision=self.revision)

    async def ListEntities(self, request: Any, _rpc: Any) -> jobstore_pb2.ListEntitiesResponse:
        await self.script.play("ListEntities")
        self.filters.append(request.filter)
        return jobstore_pb2.ListEntitiesResponse(entities=self.vms)

    def serve(self, listen: str = "127.0.0.1:0") -> AbstractAsyncContextManager[Server]:
        """A server with this jobstore, to be entered."""
        journal = Mount("waybill.v1.Journal", self, jobstore_pb2_grpc.add_JournalServicer_to_server, max_message_mib=64)
        reads = Mount("waybill.v1.JobStore", OnlyEntities(self), jobstore_pb2_grpc.add_JobStoreServicer_to_server)
        return serving(Server(listen, [journal, reads], grace=0))


class OnlyEntities(jobstore_pb2_grpc.JobStoreServicer):
    """The read side, as far as the monitor asks it."""

    def __init__(self, store: ScriptedJobStore) -> None:
        self._store = store

    async def ListEntities(self, request: Any, rpc: Any) -> jobstore_pb2.ListEntitiesResponse:
        return await self._store.ListEntities(request, rpc)
