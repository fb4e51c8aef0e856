"""Client spans around calls, by OpenTelemetry's conventions for gRPC, and `traceparent` on the way.

Spans are made if the application has set up OpenTelemetry (or gives the client a tracer provider), and cost next to
nothing if not. A call that begins an action (RunCommand, CancelJob …) has one always, and is a trace's root where
nothing above it is traced; a read has one only as part of a trace. Watches have none.

OpenTelemetry's own interceptor for grpc.aio awaits the call: a caller who leaves does not cancel it, and its span never
ends. Around the call, as here, both come by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import baggage, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

_STATUS = "rpc.grpc.status_code"
_ACTIONS = "waybill.v1.Coordinator/"


class CallSpans:
    """Makes the spans of one client's calls."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider`: None for the application's."""
        self._provider = provider
        self._tracer = trace.get_tracer("waybill_client", tracer_provider=provider)

    @contextmanager
    def around(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], correlation_id: str = ""
    ) -> Iterator[tuple[tuple[tuple[str, str], ...], Callable[[Any], None]]]:
        """Yields the metadata that carries the trace, and what to tell the answer."""
        name = _name_of(method)
        if not (self._begins_traces() and name.startswith(_ACTIONS)) and not _is_in_a_trace():
            yield (), _ignore
            return
        service, _, called = name.partition("/")
        starting = self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": called, **_named(correlation_id)},
            record_exception=False,
            set_status_on_exception=False,
        )
        with starting as span:
            carried: dict[str, str] = {}
            propagate.inject(carried, baggage.set_baggage("correlation_id", correlation_id) if correlation_id else None)
            try:
                yield tuple(carried.items()), lambda answer: _describe(span, answer)
            except asyncio.CancelledError:
                _fail(span, grpc.StatusCode.CANCELLED, "the caller has left")
                raise
            except Exception as error:
                code = getattr(error, "code", grpc.StatusCode.UNKNOWN)
                _fail(span, code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN, str(error))
                span.set_attributes(_named(getattr(error, "correlation_id", "")))
                raise

    def _begins_traces(self) -> bool:
        return self._provider is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _is_in_a_trace() -> bool:
    return trace.get_current_span().get_span_context().is_valid


def _name_of(method: grpc.aio.UnaryUnaryMultiCallable[Any, Any]) -> str:
    name = getattr(method, "_method", b"")
    return (name.decode() if isinstance(name, bytes) else str(name)).removeprefix("/")


def _named(correlation_id: str) -> dict[str, str]:
    """So that the call is found by it, also if there is no answer that has it."""
    return {"correlation_id": correlation_id} if correlation_id else {}


def _ignore(_: Any) -> None:
    """There is no span."""


def _describe(span: trace.Span, answer: Any) -> None:
    """Says how it ended, and names the job that an answer is, so that whoever sees the trace finds it."""
    span.set_attribute(_STATUS, 0)
    if job_id := getattr(answer, "job_id", ""):
        span.set_attributes({"job.id": job_id, "correlation_id": answer.correlation_id})


def _fail(span: trace.Span, code: grpc.StatusCode, words: str) -> None:
    span.set_attribute(_STATUS, code.value[0])
    span.set_status(Status(StatusCode.ERROR, words))
