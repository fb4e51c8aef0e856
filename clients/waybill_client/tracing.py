"""Client spans around calls, by OpenTelemetry's conventions for gRPC, and `traceparent` on the way.

Spans are made if the application has set up OpenTelemetry (or gives the client a tracer provider), and cost next to
nothing if not. A call that begins an action (RunCommand, CancelJob …) has one always, and is a trace's root where
nothing above it is traced; a read has one only as part of a trace. Watches have none.

OpenTelemetry's own interceptor for grpc.aio awaits the call: a caller who leaves does not cancel it, and its span never
ends. Around the call, as here, both come by themselves.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import grpc
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

_STATUS = "rpc.grpc.status_code"
_ACTIONS = "waybill.v1.Coordinator/"


class CallSpans:
    """Makes the spans of one client's calls."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider`: None for the application's."""
        self._provider = provider
        self._tracer = trace.get_tracer("waybill_client", tracer_provider=provider)

    def around(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], correlation_id: str = "") -> CallSpan:
        """Returns the span of a call, to be entered around it."""
        name = _name_of(method)
        if not (self._begins_traces() and name.startswith(_ACTIONS)) and not _is_in_a_trace():
            return CallSpan(None, correlation_id)
        service, _, called = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": called, **_named(correlation_id)}
        return CallSpan(self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes), correlation_id)

    def _begins_traces(self) -> bool:
        return self._provider is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class CallSpan:
    """The span of one call, or none: the current one while it is entered, which ends it."""

    __slots__ = ("_correlation_id", "_span", "_token")

    def __init__(self, span: trace.Span | None, correlation_id: str) -> None:
        self._span = span
        self._correlation_id = correlation_id

    def __enter__(self) -> CallSpan:
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._span is not None:
            context.detach(self._token)
            if error is not None:
                self._fail(self._span, error)
            self._span.end()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What carries the trace to the server."""
        if self._span is None:
            return ()
        carried: dict[str, str] = {}
        named = baggage.set_baggage("correlation_id", self._correlation_id) if self._correlation_id else None
        propagate.inject(carried, named)
        return tuple(carried.items())

    def answered(self, answer: Any) -> None:
        """Says how it ended, and names the job that an answer is, so that whoever sees the trace finds it."""
        if self._span is None:
            return
        attributes: dict[str, str | int] = {_STATUS: 0}
        if job_id := getattr(answer, "job_id", ""):
            attributes["job.id"] = job_id
            if answer.correlation_id != self._correlation_id:
                attributes["correlation_id"] = answer.correlation_id
        self._span.set_attributes(attributes)

    def _fail(self, span: trace.Span, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            code, words = grpc.StatusCode.CANCELLED, "the caller has left"
        elif isinstance(error, Exception):
            given = getattr(error, "code", grpc.StatusCode.UNKNOWN)
            code, words = given if isinstance(given, grpc.StatusCode) else grpc.StatusCode.UNKNOWN, str(error)
        else:
            return
        span.set_attributes({_STATUS: code.value[0], **_named(getattr(error, "correlation_id", ""))})
        span.set_status(Status(StatusCode.ERROR, words))


def _is_in_a_trace() -> bool:
    return trace.get_current_span().get_span_context().is_valid


@functools.lru_cache(maxsize=256)
def _text_of(name: bytes | str) -> str:
    return (name.decode() if isinstance(name, bytes) else name).removeprefix("/")


def _name_of(method: grpc.aio.UnaryUnaryMultiCallable[Any, Any]) -> str:
    return _text_of(getattr(method, "_method", b""))


def _named(correlation_id: str) -> dict[str, str]:
    """So that the call is found by it, also if there is no answer that has it."""
    return {"correlation_id": correlation_id} if correlation_id else {}
