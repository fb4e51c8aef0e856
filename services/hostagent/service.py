"""The gRPC face of a host agent: proto in, runner call, proto out; no decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import grpc

from chassis import errors, logs
from chassis.errors import WaybillError
from chassis.interceptor import CORRELATION_KEY
from hostagent import messages, values
from hostagent.drivers.driver import Driver, Host
from hostagent.feed import MOST_AT_ONCE, FeedClosed
from hostagent.ledger import FlowOwner
from hostagent.observations import Observation, Observations
from hostagent.record import Record
from hostagent.runner import TaskRunner
from hostagent.task import TaskSpec
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]
_MOST_ITEMS: Final = 1000

T = TypeVar("T")

log = logs.get_logger(__name__)


class HostAgentService(hostagent_pb2_grpc.HostAgentServicer):
    """Answers every call of `waybill.v1.HostAgent`."""

    def __init__(
        self,
        *,
        agent: hostagent_pb2.AgentIdentity,
        driver: Driver,
        host: Host,
        runner: TaskRunner,
        observations: Observations,
    ) -> None:
        self._agent = agent
        self._driver = driver
        self._host = host
        self._runner = runner
        self._observations = observations

    async def before_stop(self) -> None:
        """Has all streams end."""
        self._runner.close()
        self._observations.close()

    async def StartTasks(
        self, request: hostagent_pb2.StartTasksRequest, context: _Context
    ) -> hostagent_pb2.StartTasksResponse:
        _check_number("tasks", request.tasks)
        specs = [_spec_or_refusal(message) for message in request.tasks]
        answers = iter(await self._runner.start([spec for spec in specs if isinstance(spec, TaskSpec)]))
        refusals = [next(answers) if isinstance(spec, TaskSpec) else spec for spec in specs]
        return hostagent_pb2.StartTasksResponse(
            results=[
                hostagent_pb2.StartTaskResult(
                    task_id=message.task_id, error=None if refusal is None else refusal.to_status()
                )
                for message, refusal in zip(request.tasks, refusals, strict=True)
            ],
            agent=self._agent,
        )

    async def Call(self, request: hostagent_pb2.CallRequest, context: _Context) -> hostagent_pb2.CallResponse:
        spec = messages.spec_from(request.call)
        _check_same_action(spec, context)
        return messages.call_response(await self._runner.call(spec), self._agent)

    async def GetTaskStatus(
        self, request: hostagent_pb2.GetTaskStatusRequest, context: _Context
    ) -> hostagent_pb2.GetTaskStatusResponse:
        record = self._runner.record(request.task_id)
        return hostagent_pb2.GetTaskStatusResponse(status=messages.status_of(record), agent=self._agent)

    async def GetTaskInfo(
        self, request: hostagent_pb2.GetTaskInfoRequest, context: _Context
    ) -> hostagent_pb2.GetTaskInfoResponse:
        record = self._runner.record(request.task_id)
        return hostagent_pb2.GetTaskInfoResponse(info=messages.info_of(record), agent=self._agent)

    async def GetAllTasksStatuses(
        self, request: hostagent_pb2.GetAllTasksStatusesRequest, context: _Context
    ) -> hostagent_pb2.GetAllTasksStatusesResponse:
        records = self._runner.find(request.task_ids) if request.task_ids else self._tasks()
        return hostagent_pb2.GetAllTasksStatusesResponse(
            statuses=[messages.status_of(record) for record in records], agent=self._agent
        )

    async def GetAllTasksInfo(
        self, request: hostagent_pb2.GetAllTasksInfoRequest, context: _Context
    ) -> hostagent_pb2.GetAllTasksInfoResponse:
        return hostagent_pb2.GetAllTasksInfoResponse(
            infos=[messages.info_of(record) for record in self._runner.records()], agent=self._agent
        )

    async def StopTask(
        self, request: hostagent_pb2.StopTaskRequest, context: _Context
    ) -> hostagent_pb2.StopTaskResponse:
        record = await self._runner.stop(request.task_id, FlowOwner(request.flow_command_id, request.epoch))
        return hostagent_pb2.StopTaskResponse(status=messages.status_of(record), agent=self._agent)

    async def RevertTask(
        self, request: hostagent_pb2.RevertTaskRequest, context: _Context
    ) -> hostagent_pb2.RevertTaskResponse:
        record = await self._runner.revert(request.task_id, FlowOwner(request.flow_command_id, request.epoch))
        return hostagent_pb2.RevertTaskResponse(status=messages.status_of(record), agent=self._agent)

    async def ClearTasks(
        self, request: hostagent_pb2.ClearTasksRequest, context: _Context
    ) -> hostagent_pb2.ClearTasksResponse:
        _check_number("task_ids", request.task_ids)
        refusals = await self._runner.clear(request.task_ids)
        return hostagent_pb2.ClearTasksResponse(
            results=[
                hostagent_pb2.ClearTaskResult(task_id=task_id, error=None if refusal is None else refusal.to_status())
                for task_id, refusal in zip(request.task_ids, refusals, strict=True)
            ],
            agent=self._agent,
        )

    async def WatchTasks(
        self, request: hostagent_pb2.WatchTasksRequest, context: _Context
    ) -> AsyncIterator[hostagent_pb2.WatchTasksResponse]:
        with self._runner.watch() as watcher:
            log.info("tasks are watched", watcher=request.watcher)
            for chunk in _chunks(self._tasks()):
                yield self._task_message(chunk)
            yield hostagent_pb2.WatchTasksResponse(snapshot_done=True, agent=self._agent)
            while True:
                yield self._task_message(await _or_shutting_down(watcher.changes()))

    async def WatchEvents(
        self, request: hostagent_pb2.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[hostagent_pb2.WatchEventsResponse]:
        with self._observations.watch() as watcher:
            log.info("events are watched", watcher=request.watcher)
            current, newest = self._observations.current(), self._observations.newest
            await self._observations.durable(newest)
            for chunk in _chunks(current):
                yield self._event_message(chunk)
            yield hostagent_pb2.WatchEventsResponse(snapshot_done=True, newest_number=newest, agent=self._agent)
            while True:
                observations = await _or_shutting_down(watcher.changes())
                await self._observations.durable(observations[-1].number)
                yield self._event_message(observations)

    async def GetHost(self, request: hostagent_pb2.GetHostRequest, context: _Context) -> hostagent_pb2.GetHostResponse:
        wanted = set(request.object_ids)
        objects = (each for each in self._host.objects() if not wanted or each.object_id in wanted)
        return hostagent_pb2.GetHostResponse(
            agent=self._agent,
            driver=self._driver.name,
            verbs=[messages.verb_to(verb) for verb in self._driver.verbs.values()],
            capabilities=values.plain_to_struct(self._host.capabilities()),
            objects=messages.objects_to(objects),
            running_tasks=self._runner.running,
            queued_tasks=self._runner.waiting,
        )

    def _tasks(self) -> list[Record]:
        """All live tasks, without the calls: whoever made those repeats them to have their answer."""
        return [record for record in self._runner.records() if not record.row.is_call]

    def _task_message(self, records: Iterable[Record]) -> hostagent_pb2.WatchTasksResponse:
        return hostagent_pb2.WatchTasksResponse(
            statuses=[messages.status_of(record) for record in records], agent=self._agent
        )

    def _event_message(self, observations: Iterable[Observation]) -> hostagent_pb2.WatchEventsResponse:
        return hostagent_pb2.WatchEventsResponse(
            observations=[messages.observation_to(each) for each in observations], agent=self._agent
        )


def _spec_or_refusal(message: hostagent_pb2.TaskSpec) -> TaskSpec | WaybillError:
    try:
        return messages.spec_from(message)
    except WaybillError as refusal:
        return refusal


def _check_number(field: str, items: Sequence[object]) -> None:
    if len(items) > _MOST_ITEMS:
        raise errors.invalid_field(field, f"has {len(items)} items, more than {_MOST_ITEMS}")


def _check_same_action(spec: TaskSpec, context: _Context) -> None:
    """Refuses a call whose metadata names another action than the call itself."""
    for key, value in context.invocation_metadata() or ():
        if key == CORRELATION_KEY and spec.correlation_id and value != spec.correlation_id:
            raise errors.invalid_field(
                "call.correlation_id", "differs from the metadata's x-correlation-id", reason="CORRELATION_ID_INVALID"
            )


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + MOST_AT_ONCE] for start in range(0, len(items), MOST_AT_ONCE))


async def _or_shutting_down(changes: Awaitable[T]) -> T:
    try:
        return await changes
    except FeedClosed:
        raise errors.unavailable("the host agent is going down", reason="SHUTTING_DOWN") from None
