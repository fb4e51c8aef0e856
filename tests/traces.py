"""Traces as tests look at them: are they whole, and how they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.otlp_sink import SinkSpan

SLACK_SECONDS = 0.01
"""Between clocks: the database's, which dates commands, and the hosts'."""


def of_trace(spans: Iterable[SinkSpan], trace_id: str) -> list[SinkSpan]:
    """The spans of one trace, each once: one that was delivered twice must be the very same."""
    by_id: dict[str, SinkSpan] = {}
    for span in spans:
        if span.trace_id == trace_id:
            same = by_id.setdefault(span.span_id, span)
            assert same == span, f"two spans have the id {span.span_id}:\n{same}\n{span}"
    return sorted(by_id.values(), key=lambda span: (span.start, span.end))


def assert_whole(spans: Sequence[SinkSpan]) -> SinkSpan:
    """Asserts that these spans are one connected tree with true times, and returns its root."""
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if not span.parent_span_id]
    assert [span.name for span in spans if span.parent_span_id and span.parent_span_id not in by_id] == []
    assert [span.name for span in roots] == [roots[0].name]
    for span in spans:
        assert span.start <= span.end, f"{span.name} ends before it begins"
        if parent := by_id.get(span.parent_span_id):
            assert parent.start - SLACK_SECONDS <= span.start, f"{span.name} begins before {parent.name}"
    return roots[0]


def outline(spans: Sequence[SinkSpan]) -> list[str]:
    """The tree in lines, children below their parents in the order of their start."""
    below: dict[str, list[SinkSpan]] = {}
    for span in sorted(spans, key=lambda each: (each.start, each.name)):
        below.setdefault(span.parent_span_id, []).append(span)

    def lines(parent: str, depth: int) -> Iterable[str]:
        for span in below.get(parent, []):
            yield f"{'  ' * depth}{span.service}: {span.name}"
            yield from lines(span.span_id, depth + 1)

    return list(lines("", 0))


def names(spans: Iterable[SinkSpan]) -> dict[str, int]:
    """How often each name is there; `… started` counts with no final span."""
    return dict(Counter(span.name for span in spans))
