"""What a host agent counts of its work, and what can be read off it (`chassis/tallies.py`)."""

from __future__ import annotations

from collections import Counter as Numbers
from collections.abc import Callable, Collection, Hashable
from typing import TYPE_CHECKING, Any

from chassis.clock import Clock
from chassis.tallies import LONG_SECONDS, SHORT_SECONDS, SIZES, Counter, Gauge, Gauges, Histogram, Labels, Tallies
from hostagent.feed import Feed
from hostagent.task import TaskState

if TYPE_CHECKING:  # the ledger counts, too, and records are of its rows
    from hostagent.record import Record


class TaskTallies(Tallies):
    """Tasks and calls: what became of them, and which there are."""

    def __init__(
        self,
        *,
        records: Callable[[], Collection[Record]],
        running: Callable[[], float],
        waiting: Callable[[], float],
        calls: Callable[[], float],
        places: int,
        queue: int,
        feed: Feed[Any, Any],
    ) -> None:
        self._records = records
        self.ends = Counter("waybill_host_tasks_ended", "Tasks and calls that have ended.", "verb", "result")
        self.seconds = Histogram(
            "waybill_host_task_duration_seconds",
            "How long they took, from their acceptance to their end.",
            "verb",
            buckets=LONG_SECONDS,
        )
        self.refusals = Counter("waybill_host_task_refusals", "Tasks and calls that were not accepted.", "reason")
        self.tasks = Gauges("waybill_host_tasks", "Tasks and calls that the host knows.", "state", read=self._by_state)
        self.oldest = Gauges(
            "waybill_host_tasks_oldest_timestamp_seconds",
            "When the oldest task that is not over was accepted; none: there is no such task.",
            read=self._oldest,
        )
        self.running = Gauge("waybill_host_tasks_running", "Tasks that have a place.", running)
        self.queued = Gauge("waybill_host_tasks_queued", "Tasks that wait for a place.", waiting)
        self.calls = Gauge("waybill_host_calls_running", "Calls that are not over.", calls)
        self.places = Gauge("waybill_host_places", "How many tasks may run at once.", lambda: places)
        self.queue = Gauge("waybill_host_queue_places", "How many tasks may wait.", lambda: queue)
        self.watchers = Gauge("waybill_host_task_watchers", "Who watches the tasks.", lambda: feed.watchers)
        self.untold = Gauge(
            "waybill_host_task_changes_untold", "Changes that the slowest of them has not taken.", lambda: feed.untold
        )

    def ended(self, record: Record) -> None:
        """Counts a task or a call that has ended."""
        row, ending = record.row, record.task.ending
        if ending is None or row.end_time is None:
            return
        self.ends.add(row.spec.verb, ending.result)
        trace_id = record.names["trace_id"] if row.spec.traceparent.endswith("-01") else ""
        self.seconds.of(row.spec.verb).observe(max(0.0, row.end_time - row.create_time), trace_id)

    def _by_state(self) -> dict[Labels, float]:
        numbers = Numbers(record.task.state for record in self._records())
        return {(state.value,): numbers[state] for state in TaskState}

    def _oldest(self) -> dict[Labels, float]:
        oldest = min((record.row.create_time for record in self._records() if not record.task.is_over), default=None)
        return {} if oldest is None else {(): oldest}


class LedgerTallies(Tallies):
    """What is written to disk."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent_at = 0.0
        self.batches = Histogram("waybill_host_ledger_batch_writes", "Writes in a transaction.", buckets=SIZES)
        self.seconds = Histogram(
            "waybill_host_ledger_duration_seconds",
            "How long transactions took, the fsync included.",
            buckets=SHORT_SECONDS,
        )
        self.failures = Counter("waybill_host_ledger_failures", "Writes that could not be written.")

    def sent(self, writes: int) -> None:
        """A transaction begins: there is one at a time."""
        self._sent_at = self._clock.monotonic()
        self.batches.of().observe(writes)

    def written(self) -> None:
        """It is over."""
        self.seconds.of().observe(self._clock.monotonic() - self._sent_at)


class ObservationTallies(Tallies):
    """What the host sees."""

    def __init__(self, feed: Feed[Any, Any], current: Callable[[], Collection[tuple[Hashable, Hashable]]]) -> None:
        self._current = current
        self.made = Counter("waybill_host_observations", "Observations.", "type", "state")
        self.entities = Gauges("waybill_host_entities", "What is on the host.", "type", read=self._by_type)
        self.watchers = Gauge("waybill_host_event_watchers", "Who watches the observations.", lambda: feed.watchers)

    def _by_type(self) -> dict[Labels, float]:
        numbers = Numbers(str(entity_type) for entity_type, _ in self._current())
        return {(entity_type,): number for entity_type, number in numbers.items()}
