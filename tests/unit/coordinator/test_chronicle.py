"""What is told of a flow."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.otlp_sink import SinkSpan, span_of

from chassis.clock import ManualClock
from chassis.tracing import Tracing
from coordinator.deliveries import Deliveries
from coordinator.engine.chronicle import Chronicle
from coordinator.flow import events as ev
from coordinator.flow.tree import FlowTree
from coordinator.metrics import FlowTallies
from coordinator.plan import nothing
from coordinator.rows import Cancel, Command, Failure, Job
from waybill_spans import Recorded

PLANNED = ev.Planned("c1", nothing())
TRACE, CALLER, OWN = "ab" * 16, "cd" * 8, "ef" * 8


class Collector(Tracing):
    """Keeps the spans, and delivers them when it is told to."""

    def __init__(self) -> None:
        super().__init__(None, ManualClock(0.0), random.Random(1))
        self.spans: list[SinkSpan] = []
        self.waiting: list[Callable[[], None]] = []

    @property
    def enabled(self) -> bool:
        return True

    def record(self, span: Recorded, exported: Callable[[], None] | None = None) -> None:
        self.spans.append(span_of(span.encoded()))
        if exported is not None:
            self.waiting.append(exported)


class Told:
    """A flow of one command with nothing to do, and its chronicle."""

    def __init__(self, traceparent: str = f"00-{TRACE}-{CALLER}-01", planned: ev.Planned = PLANNED) -> None:
        job = Job("j1", "Nothing", "Doing nothing", "ada", "corr-1", trace_id=TRACE, span_id=OWN)
        root = Command("c1", "", "Nothing", {}, 1, span_id=OWN, traceparent=traceparent)
        self.tree = FlowTree(job, root, cancel=Cancel.NONE)
        self.collector = Collector()
        self.deliveries = Deliveries(enabled=True)
        self.chronicle = Chronicle(
            self.collector, self.deliveries, FlowTallies(flows=lambda: 0, tasks=lambda: 0, awaited=lambda: 0), self.tree
        )
        self.tree.handle(ev.Submitted(), 1.0)
        effects = [*self.tree.handle(planned, 1.0), *self.tree.handle(ev.Ended("c1"), 1.0)]
        [commit] = [effect for effect in effects if isinstance(effect, ev.Commit)]
        self.chronicle.written(commit.mutations)


class TestWhatIsTold:
    def test_nothing_before_it_is_stored(self) -> None:
        assert Told().collector.spans == []

    def test_an_ended_command_has_its_reserved_span_below_its_caller_s(self) -> None:
        told = Told()
        assert told.chronicle.recorded(5, 100.0) == []  # nothing is under way any more
        [span] = told.collector.spans
        assert (span.name, span.trace_id, span.span_id) == ("Nothing", TRACE, OWN)
        assert (span.parent_span_id, span.start, span.end, span.status) == (CALLER, 100.0, 100.0, "UNSET")
        assert [event.name for event in span.events] == ["VALIDATION", "EXECUTION"]

    def test_a_phase_that_was_skipped_never_began(self) -> None:
        told = Told(planned=ev.Planned("c1", failure=Failure(9, "VM_RUNNING", "it runs")))
        told.chronicle.recorded(5, 100.0)
        [span] = told.collector.spans
        assert [event.name for event in span.events] == ["VALIDATION"]
        assert (span.status, span.message) == ("ERROR", "VM_RUNNING: it runs")

    def test_its_delivery_is_owed(self) -> None:
        told = Told()
        told.chronicle.recorded(5, 100.0)
        assert told.deliveries.mark == 4
        for delivered in told.collector.waiting:
            delivered()
        assert told.deliveries.mark == 5

    def test_nothing_of_what_was_refused(self) -> None:
        told = Told()
        told.chronicle.refused()
        assert told.chronicle.recorded(5, 100.0) == []
        assert told.collector.spans == []

    @pytest.mark.parametrize("traceparent", ["", f"00-{TRACE}-{CALLER}-00"])
    def test_nothing_of_what_nobody_records(self, traceparent: str) -> None:
        told = Told(traceparent)
        told.chronicle.recorded(5, 100.0)
        assert told.collector.spans == []
        assert told.deliveries.mark == 5
