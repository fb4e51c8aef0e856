"""A wiretap: stands where a service is said to be, passes every call on, and keeps a copy of what was asked.

It knows no message: bytes go through as they are, whatever the call, streaming or not. What was asked is read
afterwards, by the name that a method and its request share: `tap.requests(StopTaskRequest)` are those of `…/StopTask`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


@dataclass
class Heard:
    """One call, as it went through."""

    method: str
    metadata: dict[str, str | bytes]
    requests: list[bytes] = field(default_factory=list)
    responses: list[bytes] = field(default_factory=list)


class Wiretap(grpc.GenericRpcHandler):
    """Listens at `address` for `target`: `async with Wiretap("127.0.0.1:50061") as tap`."""

    def __init__(self, target: str) -> None:
        self.calls: list[Heard] = []
        self.address = ""
        self._target = target

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target, options=[("grpc.max_receive_message_length", -1)])
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", -1),
                # It is spoken to as often as the services allow each other.
                ("grpc.http2.min_ping_interval_without_data_ms", 500),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)
        await self._channel.close()

    def requests(self, kind: type[M]) -> list[M]:
        """What was asked with messages of this type, in order."""
        return [kind.FromString(data) for call in self._calls_with(kind, "Request") for data in call.requests]

    def responses(self, kind: type[M]) -> list[M]:
        """What was answered with messages of this type, in order."""
        return [kind.FromString(data) for call in self._calls_with(kind, "Response") for data in call.responses]

    def _calls_with(self, kind: type[Message], role: str) -> list[Heard]:
        name = kind.DESCRIPTOR.name.removesuffix(role)
        return [call for call in self.calls if call.method.rpartition("/")[2] == name]

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def pass_on(asked: AsyncIterator[bytes], rpc: Any) -> None:
            heard = Heard(details.method, dict(details.invocation_metadata or ()))
            self.calls.append(heard)
            await self._pass_on(heard, asked, rpc)

        return grpc.stream_stream_rpc_method_handler(pass_on)

    async def _pass_on(self, heard: Heard, asked: AsyncIterator[bytes], rpc: Any) -> None:
        async def overheard() -> AsyncIterator[bytes]:
            async for request in asked:
                heard.requests.append(request)
                yield request

        method = self._channel.stream_stream(heard.method)
        metadata = [pair for pair in heard.metadata.items() if not pair[0].startswith(("grpc-", "user-agent"))]
        call = method(overheard(), metadata=metadata, timeout=rpc.time_remaining())
        try:
            echo = tuple(await call.initial_metadata())
            if echo:
                await rpc.send_initial_metadata(echo)
            async for response in call:
                heard.responses.append(response)
                await rpc.write(response)
            rpc.set_trailing_metadata(tuple(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await rpc.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            call.cancel()
