"""Sees to it that every task's span reaches the collector, whoever dies meanwhile.

    a task ends ─▶ ledger: end and span, at once ─▶ outbox ─▶ delivered or given up ─▶ ledger: span forgotten
                                   │                 ▲
                                   └─ killed: the next process

The span has a row of its own, so that the task may be cleared before it is delivered. Where nobody collects spans none
is made or kept.
"""

from __future__ import annotations

import asyncio
from functools import partial

from chassis.clock import Clock
from chassis.tracing import Tracing
from hostagent import spans
from hostagent.ledger import Ledger
from hostagent.record import Record
from hostagent.task import Ending
from waybill_spans import Kept


class Recorder:
    """Makes the spans of a host's tasks."""

    def __init__(self, tracing: Tracing, ledger: Ledger, clock: Clock, host_id: str) -> None:
        self._tracing = tracing
        self._ledger = ledger
        self._clock = clock
        self._host_id = host_id
        self._kept: list[tuple[int, Kept]] = []

    async def take_up(self) -> None:
        """Hands over what a former process has not delivered, or not known to be."""
        for number, span in await self._ledger.spans():
            self.deliver(number, Kept(span))

    def note(self, record: Record) -> None:
        """Notes what is new about a task, if that belongs into its span."""
        task = record.task
        if self._tracing.enabled and spans.is_told(task.state):
            event = spans.event_of(record.events, task.state, task.progress, self._clock.now())
            if event is not None:
                record.events.append(event)

    def span_of(self, record: Record, ending: Ending, end_time: float) -> spans.TaskSpan | None:
        """Returns the span of a task that ends now, for the ledger.

        None if it has none, or had its end before it was taken back.
        """
        row, above = record.row, record.above
        if not self._tracing.enabled or row.ending is not None or not spans.is_recorded(above, row.spec):
            return None
        return spans.TaskSpan(
            row.spec,
            above,
            ending,
            row.is_call,
            self._host_id,
            row.create_time,
            max(row.create_time, end_time),
            row.stop_asked,
            tuple(record.events),
        )

    def deliver(self, number: int, span: Kept) -> None:
        """Hands a span over that the ledger has under this number; with the others of this turn of the loop."""
        if not self._kept:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._kept.append((number, span))

    def _hand_over(self) -> None:
        kept, self._kept = self._kept, []
        for _, span in kept[:-1]:
            self._tracing.record(span)
        # The last one is delivered last.
        self._tracing.record(kept[-1][1], partial(self._ledger.forget_spans, [number for number, _ in kept]))
