"""A coordinator's end of an agent, for tests: calls without ceremony, and what the streams have said."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chassis.channels import open_channel
from chassis.errors import WaybillError
from hostagent import values
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc, jobs_pb2

_numbers = itertools.count(1)

FINISHED = jobs_pb2.TASK_STATE_FINISHED
SUCCESS = jobs_pb2.TASK_RESULT_SUCCESS
CLEAN_SUCCESS = jobs_pb2.TASK_RESULT_CLEAN_SUCCESS
CLEAN_FAILURE = jobs_pb2.TASK_RESULT_CLEAN_FAILURE


def a_spec(verb: str, task_id: str = "", *, fields: dict[str, Any] | None = None, **arguments: Any) -> Any:
    return hostagent_pb2.TaskSpec(
        **{
            "task_id": task_id or f"task-{next(_numbers)}",
            "verb": verb,
            "arguments": values.plain_to_struct(arguments),
            "flow_command_id": "flow-1",
            "epoch": 1,
            "correlation_id": "test-1",
            **(fields or {}),
        }
    )


def reason_in(status: Any) -> str:
    """Returns the reason that a status gives, empty for none."""
    return WaybillError.from_status(status).reason if status.code else ""


class HostClient:
    """Talks to an agent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: hostagent_pb2_grpc.HostAgentStub = hostagent_pb2_grpc.HostAgentStub(channel)

    async def start_all(self, *specs: Any) -> list[str]:
        """Starts tasks; returns the reason of each refusal, empty for none."""
        answer = await self.stub.StartTasks(hostagent_pb2.StartTasksRequest(tasks=specs), timeout=30)
        assert [result.task_id for result in answer.results] == [spec.task_id for spec in specs]
        return [reason_in(result.error) for result in answer.results]

    async def at_work(self, verb: str, object_id: str) -> None:
        """Waits until a verb is at work on an object, which no stream tells of."""
        async with asyncio.timeout(20):
            while not (await self.counted(object_id, verb))[0]:  # noqa: ASYNC110 - nobody here could set an event
                await asyncio.sleep(0.002)

    async def start_at_which_it_dies(self, spec: Any) -> None:
        """Starts a task that the agent dies of: it is stored by then, but its answer may not be out yet."""
        try:
            assert await self.start_all(spec) == [""]
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise

    async def start(self, verb: str, task_id: str = "", **arguments: Any) -> str:
        """Starts a task, which must be accepted; returns its id."""
        spec = a_spec(verb, task_id, **arguments)
        assert await self.start_all(spec) == [""]
        return str(spec.task_id)

    async def run(self, verb: str, task_id: str = "", **arguments: Any) -> Any:
        """Runs a task to its end and returns its last status."""
        return await self.end_of(await self.start(verb, task_id, **arguments))

    async def call(self, verb: str, task_id: str = "", **arguments: Any) -> Any:
        """Makes a call and returns its response."""
        request = hostagent_pb2.CallRequest(call=a_spec(verb, task_id, **arguments))
        return await self.stub.Call(request, timeout=30)

    async def program(self, *rules: dict[str, Any]) -> None:
        """Has the sim go by these rules."""
        answer = await self.call("simProgram", rules=list(rules))
        assert not answer.HasField("error")

    async def end_of(self, task_id: str) -> Any:
        """Waits until the agent's stream says that a task is over; returns its status."""
        async for status in self.statuses():
            if status.task_id == task_id and status.state == FINISHED:
                return status
        raise AssertionError("the stream ended")

    async def statuses(self) -> AsyncIterator[Any]:
        """Yields what a fresh stream of tasks says."""
        call = self.stub.WatchTasks(hostagent_pb2.WatchTasksRequest(watcher="test"), timeout=60)
        try:
            async for message in call:
                for status in message.statuses:
                    yield status
        finally:
            call.cancel()

    async def seen(self, vm_id: str, state: str) -> Any:
        """Waits until a fresh stream of events shows a VM in a state in which it stays; returns the observation."""
        async with self.events() as seen:
            return await seen(vm_id, state)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[Callable[[str, str], Awaitable[Any]]]:
        """Opens a stream of events; what it gives waits for a VM to be seen in a state, from the snapshot on."""
        call = self.stub.WatchEvents(hostagent_pb2.WatchEventsRequest(watcher="test"), timeout=60)
        messages = aiter(call)
        shown: list[Any] = []
        while True:
            message = await anext(messages)
            shown += message.observations
            if message.snapshot_done:
                break

        async def seen(vm_id: str, state: str) -> Any:
            while True:
                while shown:
                    observation = shown.pop(0)
                    if (observation.entity_id, observation.state) == (vm_id, state):
                        return observation
                shown.extend((await anext(messages)).observations)

        try:
            yield seen
        finally:
            call.cancel()

    async def status_of(self, task_id: str) -> Any:
        request = hostagent_pb2.GetTaskStatusRequest(task_id=task_id)
        return (await self.stub.GetTaskStatus(request, timeout=30)).status

    async def stop(self, task_id: str, epoch: int = 1) -> Any:
        request = hostagent_pb2.StopTaskRequest(task_id=task_id, flow_command_id="flow-1", epoch=epoch)
        return (await self.stub.StopTask(request, timeout=30)).status

    async def revert(self, task_id: str) -> Any:
        request = hostagent_pb2.RevertTaskRequest(task_id=task_id, flow_command_id="flow-1", epoch=1)
        return (await self.stub.RevertTask(request, timeout=30)).status

    async def clear(self, *task_ids: str) -> list[str]:
        """Clears tasks; returns the reason of each refusal, empty for none."""
        answer = await self.stub.ClearTasks(hostagent_pb2.ClearTasksRequest(task_ids=task_ids), timeout=30)
        return [reason_in(result.error) for result in answer.results]

    async def host(self, *object_ids: str) -> Any:
        return await self.stub.GetHost(hostagent_pb2.GetHostRequest(object_ids=object_ids), timeout=30)

    async def object(self, object_id: str) -> Any:
        """Returns an object of the host."""
        (found,) = (await self.host(object_id)).objects
        return found

    async def counted(self, object_id: str, verb: str) -> tuple[int, int]:
        """Returns how often a verb was tried on an object, and how often it had an effect."""
        for found in (await self.host(object_id)).objects:
            for counter in found.counters:
                if counter.verb == verb:
                    return counter.attempts, counter.effects
        return 0, 0


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[HostClient]:
    async with open_channel(address) as channel:
        yield HostClient(channel)


async def refusal_of(calling: Any) -> WaybillError:
    """Returns the error that a call fails with."""
    try:
        await calling
    except grpc.aio.AioRpcError as error:
        return WaybillError.from_rpc_error(error)
    raise AssertionError("it was not refused")


async def within(seconds: float, waiting: Any) -> Any:
    """Waits, but not for ever."""
    async with asyncio.timeout(seconds):
        return await waiting
