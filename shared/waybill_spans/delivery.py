"""Brings spans to the collector, at leisure: work goes before its record.

    add() ─▶ queue ─▶ one batch on its way to the collector, the next gathers ─▶ exported() ─▶ may be forgotten

Whoever adds a span is in the midst of work, where everything costs several times what it costs in a row: so it only
notes what the span will say, and a batch of notes becomes spans in one go.

`exported` is what makes it safe to crash: who keeps the facts (a ledger, a table) keeps them until it is called. Spans
leave in the order in which they came, so of several that belong together the last one tells. A collector that is away
is waited for; when too much waits, the oldest is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import grpc

from waybill_spans import otlp

log = logging.getLogger(__name__)

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
"""The collector's method."""

GATHER_SECONDS: Final = 0.4
"""Spans of so long go together."""
EXPORT_SECONDS: Final = 5.0
"""How long the collector's answer is waited for."""
RETRY_SECONDS: Final = 1.0
MOST_SPANS: Final = 500
"""Of one export; they are put into the wire's form in one go."""
MOST_WAITING: Final = 50_000
"""Spans kept for a collector that is away; beyond it the oldest are given up."""

_SCOPE: Final = "waybill"


class Recorded(Protocol):
    """A span that is over. It may still be in pieces: it is put together when it leaves, many at once."""

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        ...


def encoded(span: Recorded) -> bytes:
    """Returns a span as OTLP's Span; empty if it cannot be told: a defect of the record must not stop the work."""
    try:
        return span.encoded()
    except Exception:  # whatever it is: the work is done, and only its record is lost
        log.exception("a span cannot be told")
        return b""


class Kept(NamedTuple):
    """A span that was kept as `encoded` returned it."""

    content: bytes

    def encoded(self) -> bytes:
        return self.content


_MARK: Final = Kept(b"")
"""No span, but a place between spans."""

_Waiting = tuple[Recorded, Callable[[], None] | None]


class Outbox:
    """Brings spans to the collector. `run()` belongs into the background of its owner."""

    def __init__(
        self,
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes],
        resource: Mapping[str, otlp.Value],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`export` is the collector's method EXPORT; `resource` describes this process; `sleep` waits, in seconds."""
        self._export = export
        self._resource = otlp.resource(resource)
        self._sleep = sleep
        self._queue: deque[_Waiting] = deque()
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._on_the_way = 0  # spans of the batch that is being delivered
        self._away = False
        self.given_up = 0
        """How many spans were never delivered."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, span: Recorded, exported: Callable[[], None] | None = None) -> None:
        """Takes a span; `exported` is called when it, and so all before it, is delivered or given up."""
        if not self._queue:
            self._idle.clear()
            self._something.set()
        self._queue.append((span, exported))
        if len(self._queue) > MOST_WAITING:
            self._give_up([self._queue.popleft()])

    def when_delivered(self, exported: Callable[[], None]) -> None:
        """`exported` is called when all that was added so far is delivered or given up; at once if nothing waits."""
        if self._idle.is_set():
            exported()
        else:
            self.add(_MARK, exported)

    async def flush(self, seconds: float) -> None:
        """Waits until everything is delivered, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("spans that the collector did not take in time: %d", len(self._queue) + self._on_the_way)

    async def run(self) -> None:
        """Delivers for ever."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._sleep(GATHER_SECONDS)
            while self._queue:
                await self._deliver([self._queue.popleft() for _ in range(min(MOST_SPANS, len(self._queue)))])
            self._on_the_way = 0
            self._idle.set()

    async def _deliver(self, batch: Sequence[_Waiting]) -> None:
        """Sends a batch until the collector takes it or refuses it."""
        self._on_the_way = len(batch)
        contents = [content for span, _ in batch if (content := encoded(span))]
        if not contents:
            return _tell(batch)
        request = otlp.request(self._resource, _SCOPE, contents)
        while True:
            try:
                await self._export(request, timeout=EXPORT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _COME_AGAIN:
                    log.warning("the collector refuses spans: %s, %s", error.code().name, error.details())
                    return self._give_up(batch)
                if not self._away:
                    self._away = True
                    log.warning("the collector is away: %s, %s", error.code().name, error.details())
                await self._sleep(RETRY_SECONDS)
            else:
                self._away = False
                return _tell(batch)

    def _give_up(self, batch: Sequence[_Waiting]) -> None:
        if not self.given_up:
            log.warning("spans are given up; %d wait", len(self._queue))
        self.given_up += len(batch)
        _tell(batch)


_COME_AGAIN: Final = frozenset(  # OTLP's specification: the others are never repeated
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def _tell(batch: Sequence[_Waiting]) -> None:
    for _, exported in batch:
        if exported is not None:
            exported()
