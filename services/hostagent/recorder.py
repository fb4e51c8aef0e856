"""Sees to it that every task's span reaches the collector, whoever dies meanwhile.

    a task ends ─▶ ledger: end and span, at once ─▶ outbox ─▶ delivered or given up ─▶ ledger: span forgotten
                                   │                 ▲
                                   └─ killed: the next process

The span has a row of its own, so that the task may be cleared before it is delivered. Where nobody collects spans none
is made or kept.
"""

from __future__ import annotations

from functools import partial

from chassis.clock import Clock
from chassis.tracing import Tracing
from hostagent import spans
from hostagent.ledger import Ledger
from hostagent.record import Record
from hostagent.task import Ending


class Recorder:
    """Makes the spans of a host's tasks."""

    def __init__(self, tracing: Tracing, ledger: Ledger, clock: Clock, host_id: str) -> None:
        self._tracing = tracing
        self._ledger = ledger
        self._clock = clock
        self._host_id = host_id

    async def take_up(self) -> None:
        """Hands over what a former process has not delivered, or not known to be."""
        for number, span in await self._ledger.spans():
            self.record(number, span)

    def note(self, record: Record) -> None:
        """Notes what is new about a task, if that belongs into its span."""
        if self._tracing.enabled:
            event = spans.event_of(record.events, record.task.state, record.task.progress, self._clock.now())
            if event is not None:
                record.events.append(event)

    def span_of(self, record: Record, ending: Ending, end_time: float) -> bytes | None:
        """Returns the span of a task that ends now, for the ledger and for `record`.

        None if it has none, or had its end before it was taken back.
        """
        row = record.row
        if not self._tracing.enabled or row.ending is not None:
            return None
        span = spans.task_span(
            row.spec,
            ending,
            is_call=row.is_call,
            host_id=self._host_id,
            start=row.create_time,
            end=max(row.create_time, end_time),
            stop_asked=row.stop_asked,
            events=record.events,
        )
        return None if span is None else span.encoded()

    def record(self, number: int, span: bytes) -> None:
        """Hands a span over that the ledger has under this number."""
        self._tracing.record_kept(span, partial(self._ledger.forget_span, number))
