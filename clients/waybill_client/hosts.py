"""A look at one host, past the coordinator: what it has and what it did. For operators, demos and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from waybill.v1 import hostagent_pb2 as hostagent
from waybill.v1 import hostagent_pb2_grpc
from waybill_client.calls import Caller
from waybill_client.channels import open_channel
from waybill_client.errors import WaybillError
from waybill_client.words import plain, struct


class HostClient:
    """Talks to the agent of one host."""

    def __init__(self, address: str, *, timeout: float = 5.0, wait_for_ready: bool = False) -> None:
        self.address = address
        self._caller = Caller(f"host agent at {address}", timeout=timeout, wait_for_ready=wait_for_ready)
        self._channels = AsyncExitStack()

    async def __aenter__(self) -> Self:
        channel = open_channel(self.address)
        self._channels.push_async_callback(channel.close)
        self._stub = hostagent_pb2_grpc.HostAgentStub(channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channels.aclose()

    async def get_host(self) -> hostagent.GetHostResponse:
        """What the host is and has, with a counter of attempts and effects per object and verb."""
        return await self._caller.call(self._stub.GetHost, hostagent.GetHostRequest())

    async def list_tasks(self) -> list[hostagent.TaskInfo]:
        """The tasks and calls that the host has not been told to forget."""
        answer = await self._caller.call(self._stub.GetAllTasksInfo, hostagent.GetAllTasksInfoRequest())
        return list(answer.infos)

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """Runs a short verb of no flow and returns its answer; raises a WaybillError if the verb itself failed."""
        spec = hostagent.TaskSpec(task_id=str(uuid4()), verb=verb, arguments=struct(arguments))
        answer = await self._caller.call(self._stub.Call, hostagent.CallRequest(call=spec))
        if answer.HasField("error"):
            raise WaybillError.from_status(answer.error)
        return plain(answer.answer)

    async def program(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Tells a host of the sim driver how its verbs behave from now on."""
        await self.call("simProgram", {"rules": list(rules)})
