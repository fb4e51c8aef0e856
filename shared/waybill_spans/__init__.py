"""Spans, and how they reach a collector: what the services and the Python client have in common.

    FinishedSpan ─▶ Outbox (`delivery.py`) ─▶ OTLP's wire form (`otlp.py`) ─▶ a collector, by gRPC

It stands on gRPC alone and knows nothing of Waybill. OpenTelemetry's SDK does the same, and more, at ten times the
price for each span in a loop of its own (measured).
"""

from waybill_spans.delivery import EXPORT, Kept, Outbox, Recorded, encoded
from waybill_spans.otlp import Value
from waybill_spans.spans import (
    Context,
    Event,
    FinishedSpan,
    described_call,
    format_traceparent,
    new_root,
    new_span_id,
    parse_traceparent,
)

__all__ = [
    "EXPORT",
    "Context",
    "Event",
    "FinishedSpan",
    "Kept",
    "Outbox",
    "Recorded",
    "Value",
    "described_call",
    "encoded",
    "format_traceparent",
    "new_root",
    "new_span_id",
    "parse_traceparent",
]
