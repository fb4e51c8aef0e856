"""One way to make a call: metadata, deadline, errors as exceptions.

There are no gRPC interceptors here: one that awaits the call has to mend its cancellation, and each costs CPU on every
call. A function around the stub's method does the same, and grpc itself cancels the call with its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc

from waybill_client.errors import CORRELATION_ID, InvalidArgument, Violation, WaybillError
from waybill_client.tracing import CallSpans, OpenTelemetrySpans

USER = "x-waybill-user"

_PATIENCE_SECONDS = 1.0  # a service that is not there takes the service config longer than this
_PAUSE_SECONDS = 0.1

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Paged(Protocol):
    """An answer that may have a next page."""

    next_page_token: str


@dataclass(frozen=True)
class Caller:
    """How calls are made: to whom, for whom, how long an answer may take, whether a service that is away is waited for.

    `peer` is what error messages call the service: `jobstore at 127.0.0.1:50052`.
    """

    peer: str
    user: str = ""
    timeout: float = 10.0
    wait_for_ready: bool = False
    spans: CallSpans = field(default_factory=OpenTelemetrySpans)

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a user whose name metadata cannot carry."""
        if not _is_plain(self.user):
            problem = Violation(USER, "must be printable ASCII")
            raise InvalidArgument(
                grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID", ": ".join(problem), violations=[problem]
            )

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Answer],
        request: Request,
        *,
        correlation_id: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Makes one call; raises a WaybillError with the correlation id under which the service knows it.

        The service config repeats a call only until a part of the answer has come, so a connection that breaks just
        then is left to us: every call may be repeated (`client.py` sees to that).
        """
        with self.spans.around(method, correlation_id) as span:
            answer = await self._call(method, request, self.metadata(correlation_id) + span.metadata, timeout)
            span.answered(answer)
            return answer

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Answer],
        request: Request,
        metadata: tuple[tuple[str, str], ...],
        timeout: float | None,
    ) -> Answer:
        began = asyncio.get_running_loop().time()
        limit = self.timeout if timeout is None else timeout
        patience = limit if self.wait_for_ready else _PATIENCE_SECONDS
        while True:
            spent = asyncio.get_running_loop().time() - began
            try:
                return await method(
                    request,
                    timeout=max(0.0, limit - spent),
                    metadata=metadata,
                    wait_for_ready=self.wait_for_ready,
                )
            except grpc.aio.AioRpcError as error:
                spent = asyncio.get_running_loop().time() - began
                if error.code() is not grpc.StatusCode.UNAVAILABLE or spent > patience:
                    refused = WaybillError.from_rpc_error(error, peer=self.peer)
                    refused.correlation_id = refused.correlation_id or dict(metadata).get(CORRELATION_ID, "")
                    raise refused from None
            await asyncio.sleep(_PAUSE_SECONDS)

    def metadata(self, correlation_id: str = "") -> tuple[tuple[str, str], ...]:
        """What goes with a call. Metadata is ASCII: another correlation id is left to its field, which names it."""
        pairs = ((CORRELATION_ID, correlation_id if _is_plain(correlation_id) else ""), (USER, self.user))
        return tuple(pair for pair in pairs if pair[1])


PagedAnswer = TypeVar("PagedAnswer", bound=Paged)


async def pages(
    ask: Callable[[str], Awaitable[PagedAnswer]], items: Callable[[PagedAnswer], Iterable[Item]]
) -> AsyncIterator[Item]:
    """Yields the items of all pages; `ask` takes a page token, the first one is empty."""
    token = ""
    while True:
        page = await ask(token)
        for item in items(page):
            yield item
        token = page.next_page_token
        if not token:
            return


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
