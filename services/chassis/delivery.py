"""Brings spans to the collector, at leisure: work goes before its record.

    add() ─▶ queue ─▶ one batch on its way to the collector, the next gathers ─▶ exported() ─▶ may be forgotten

`exported` is what makes it safe to crash: who keeps the facts (a ledger, a table) keeps them until it is called. A
collector that is away is waited for; when too much waits, the oldest is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import grpc

from chassis import logs, otlp
from chassis.clock import Clock
from chassis.spans import FinishedSpan, Value

log = logs.get_logger(__name__)

GATHER_SECONDS: Final = 0.2
"""Spans of so long go together."""
EXPORT_SECONDS: Final = 5.0
"""How long the collector's answer is waited for."""
RETRY_SECONDS: Final = 1.0
MOST_SPANS: Final = 500
"""Of one export; they are put into the wire's form in one go."""
MOST_WAITING: Final = 50_000
"""Spans kept for a collector that is away; beyond it the oldest are given up."""

_SCOPE: Final = "waybill"


class _Waiting(NamedTuple):
    span: FinishedSpan | bytes
    exported: Callable[[], None] | None


class Outbox:
    """Brings spans to the collector. `run()` belongs into the background of its owner."""

    def __init__(
        self, export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], resource: Mapping[str, Value], clock: Clock
    ) -> None:
        """`export` brings bytes to the collector; `resource` describes this process."""
        self._export = export
        self._resource = otlp.resource(resource)
        self._clock = clock
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

    def add(self, span: FinishedSpan | bytes, exported: Callable[[], None] | None = None) -> None:
        """Takes a span, or one that is encoded; `exported` is called when it is delivered or given up."""
        self._queue.append(_Waiting(span, exported))
        self._idle.clear()
        self._something.set()
        if len(self._queue) > MOST_WAITING:
            self._give_up([self._queue.popleft()])

    async def flush(self, seconds: float) -> None:
        """Waits until everything is delivered, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("spans were not delivered", count=len(self._queue) + self._on_the_way)

    async def run(self) -> None:
        """Delivers for ever."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._clock.sleep(GATHER_SECONDS)
            while self._queue:
                await self._deliver([self._queue.popleft() for _ in range(min(MOST_SPANS, len(self._queue)))])
            self._on_the_way = 0
            self._idle.set()

    async def _deliver(self, batch: Sequence[_Waiting]) -> None:
        """Sends a batch until the collector takes it or refuses it."""
        self._on_the_way = len(batch)
        spans = [each.span if isinstance(each.span, bytes) else each.span.encoded() for each in batch]
        request = otlp.request(self._resource, _SCOPE, spans)
        while True:
            try:
                await self._export(request, timeout=EXPORT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _COME_AGAIN:
                    log.warning("the collector refuses spans", code=error.code().name, why=error.details())
                    return self._give_up(batch)
                if not self._away:
                    self._away = True
                    log.warning("the collector is away", code=error.code().name, why=error.details())
                await self._clock.sleep(RETRY_SECONDS)
            else:
                self._away = False
                return _tell(batch)

    def _give_up(self, batch: Sequence[_Waiting]) -> None:
        if not self.given_up:
            log.warning("spans are given up", waiting=len(self._queue))
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
    for each in batch:
        if each.exported is not None:
            each.exported()
