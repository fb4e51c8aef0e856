"""Client spans around calls, by OpenTelemetry's conventions for gRPC, and `traceparent` on the way.

| who makes them | when |
| --- | --- |
| the application's OpenTelemetry SDK | the client is given a tracer provider, or the application has set one up |
| the client | it is given a collector's address; a span costs a quarter of the SDK's, and all are recorded |
| nobody | else; that costs next to nothing |

A call that begins an action (RunCommand, CancelJob …) has a span always, and is a trace's root where nothing above it
is traced; a read has one only as part of a trace. Watches have none.

OpenTelemetry's own interceptor for grpc.aio awaits the call: a caller who leaves does not cancel it, and its span never
ends. Around the call, as here, both come by themselves.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import Context as Variables
from importlib.metadata import version
from typing import Any, Final, Protocol, Self
from urllib.parse import unquote

import grpc
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace import SpanKind, Status, StatusCode

from waybill_client.channels import check, open_channel
from waybill_spans import (
    EXPORT,
    Context,
    Outbox,
    Value,
    described_call,
    format_traceparent,
    new_root,
    new_span_id,
    otlp,
)

_STATUS: Final = "rpc.grpc.status_code"
_ACTIONS: Final = "waybill.v1.Coordinator/"
_FLUSH_SECONDS: Final = 2.0
_NOTHING_ABOVE: Final = trace.INVALID_SPAN.get_span_context()
_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]*")

Metadata = tuple[tuple[str, str], ...]


class CallSpan(Protocol):
    """The span of one call, or none; it is entered around the call and ends with it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any, /) -> None: ...

    @property
    def metadata(self) -> Metadata:
        """What carries the trace to the server."""
        ...

    def answered(self, answer: Any) -> None:
        """Says how it ended, and names the job that an answer is, so that whoever sees the trace finds it."""


class CallSpans(Protocol):
    """Makes the spans of one client's calls."""

    def around(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], correlation_id: str = "") -> CallSpan:
        """Returns the span of a call."""
        ...

    async def close(self) -> None:
        """Delivers what was recorded, as far as that is the client's business, for at most two seconds."""


def call_spans(provider: trace.TracerProvider | None = None, collector: str = "") -> CallSpans:
    """Returns what makes spans: a tracer provider's, or the client for a collector (`host:port`), or the application's.

    Raises ValueError for both, and for an address that is none.
    """
    if provider is not None and collector:
        raise ValueError("spans are made by tracer_provider or for traces_endpoint, not both")
    return CollectedSpans(collector) if collector else OpenTelemetrySpans(provider)


class _NoSpan:
    """Of a call that nobody traces."""

    metadata: Metadata = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answered(self, answer: Any) -> None: ...


_NO_SPAN: Final = _NoSpan()


# --- made by OpenTelemetry's SDK -------------------------------------------------------------------------------------


class OpenTelemetrySpans:
    """Spans of the application's, or of a provider."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("waybill_client", tracer_provider=provider)

    def around(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], correlation_id: str = "") -> CallSpan:
        name = _name_of(method)
        if not (self._begins_traces() and name.startswith(_ACTIONS)) and not _above().is_valid:
            return _NO_SPAN
        attributes = _attributes_of(name, correlation_id)
        return _OpenTelemetrySpan(
            self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes), correlation_id
        )

    async def close(self) -> None:
        """They are the application's to deliver."""

    def _begins_traces(self) -> bool:
        return self._provider is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class _OpenTelemetrySpan:
    """The current one while it is entered."""

    __slots__ = ("_correlation_id", "_span", "_token")

    def __init__(self, span: trace.Span, correlation_id: str) -> None:
        self._span = span
        self._correlation_id = correlation_id

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        context.detach(self._token)
        if failure := _failure_of(error):
            self._span.set_attributes(failure.attributes)
            self._span.set_status(Status(StatusCode.ERROR, failure.words))
        self._span.end()

    @property
    def metadata(self) -> Metadata:
        carried: dict[str, str] = {}
        named = baggage.set_baggage("correlation_id", self._correlation_id) if self._correlation_id else None
        propagate.inject(carried, named)
        return tuple(carried.items())

    def answered(self, answer: Any) -> None:
        self._span.set_attributes(_attributes_of_answer(answer, self._correlation_id))


# --- made by the client ----------------------------------------------------------------------------------------------


class CollectedSpans:
    """Spans that the client makes, and brings to a collector by itself."""

    def __init__(self, collector: str) -> None:
        """Raises ValueError for an address that is none: now, for a call that was made must not fail of its span."""
        check("traces_endpoint", collector)
        self._collector = collector
        self._rng = random.Random()
        self._outbox: Outbox | None = None
        self._channel: grpc.aio.Channel
        self._delivery: asyncio.Task[None]

    def around(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], correlation_id: str = "") -> CallSpan:
        name = _name_of(method)
        above = _above() if context.get_current() else _NOTHING_ABOVE  # most often there is nothing, span or baggage
        if above.is_valid:
            place = Context(f"{above.trace_id:032x}", new_span_id(self._rng), above.trace_flags.sampled)
        elif name.startswith(_ACTIONS):
            place = new_root(self._rng)
        else:
            return _NO_SPAN
        return _CollectedSpan(self._record, name, place, above, correlation_id)

    async def close(self) -> None:
        if self._outbox is not None:
            await self._outbox.flush(_FLUSH_SECONDS)
            self._delivery.cancel()
            await asyncio.wait([self._delivery])
            await self._channel.close()

    def _record(self, span: _CollectedSpan) -> None:
        if self._outbox is None:  # as late as that, for a channel belongs to the loop that uses it
            self._channel = open_channel(self._collector)
            self._outbox = Outbox(self._channel.unary_unary(EXPORT), _this_process())
            # The client's task, not that of the call which gave the occasion: nothing of that one's is on it.
            self._delivery = asyncio.get_running_loop().create_task(
                self._outbox.run(), name="spans", context=Variables()
            )
        self._outbox.add(span)


class _CollectedSpan:
    """Only noted while the call runs: it is put together when it leaves, many at once.

    Not the current one of OpenTelemetry's API: nothing that uses it happens within a call.
    """

    __slots__ = ("_above", "_answered", "_correlation_id", "_end", "_failure", "_name", "_place", "_record", "_start")

    def __init__(
        self,
        record: Callable[[_CollectedSpan], None],
        name: str,
        place: Context,
        above: trace.SpanContext,
        correlation_id: str,
    ) -> None:
        """`above` is the application's current span, valid if it has one."""
        self._record = record
        self._name = name
        self._place = place
        self._above = above
        self._correlation_id = correlation_id
        self._answered: dict[str, Any] = {}
        self._failure: _Failure | None = None

    def __enter__(self) -> Self:
        self._start = time.time()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._end = time.time()
        if error is not None:
            self._failure = _failure_of(error)
        if self._place.sampled:
            self._record(self)

    @property
    def metadata(self) -> Metadata:
        carried = (("traceparent", format_traceparent(self._place)), *_baggage(self._correlation_id))
        if self._above.trace_state:
            return (*carried, ("tracestate", self._above.trace_state.to_header()))
        return carried

    def answered(self, answer: Any) -> None:
        self._answered = _attributes_of_answer(answer, self._correlation_id)

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        said = {"correlation_id": self._correlation_id} if self._correlation_id else {}
        said |= self._answered
        if self._failure is not None:
            said |= self._failure.attributes
        code = said.pop(_STATUS, None)
        return otlp.span(
            name=self._name,
            trace_id=self._place.trace_id,
            span_id=self._place.span_id,
            parent_span_id=f"{self._above.span_id:016x}" if self._above.is_valid else "",
            kind=otlp.CLIENT,
            start=self._start,
            end=max(self._start, self._end),
            attributes=said,
            described=described_call(self._name, code),
            error=self._failure.words if self._failure is not None else "",
        )


def _baggage(correlation_id: str) -> Metadata:
    if not context.get_current() and (not correlation_id or _PLAIN.fullmatch(correlation_id)):
        return (("baggage", f"correlation_id={correlation_id}"),) if correlation_id else ()
    carried: dict[str, str] = {}
    named = baggage.set_baggage("correlation_id", correlation_id) if correlation_id else None
    W3CBaggagePropagator().inject(carried, named)
    return tuple(carried.items())


def _this_process() -> dict[str, Value]:
    """Says who makes the spans; OpenTelemetry's variables may say it better."""
    described = {
        "service.name": "waybill-client",
        "service.namespace": "waybill",
        "service.version": version("waybill"),
    }
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = pair.partition("=")
        if equals:
            described[key.strip()] = unquote(value.strip())
    if name := os.environ.get("OTEL_SERVICE_NAME"):
        described["service.name"] = name
    return {**described}


# --- what they say ---------------------------------------------------------------------------------------------------


class _Failure:
    """Of a call: what its span says of it."""

    __slots__ = ("attributes", "words")

    def __init__(self, attributes: Mapping[str, Any], words: str) -> None:
        self.attributes = attributes
        self.words = words


def _failure_of(error: BaseException | None) -> _Failure | None:
    """None for none, and for the end of the program."""
    if error is None:
        return None
    if isinstance(error, asyncio.CancelledError):
        code, words = grpc.StatusCode.CANCELLED, "the caller has left"
    elif isinstance(error, Exception):
        given = getattr(error, "code", grpc.StatusCode.UNKNOWN)
        code, words = given if isinstance(given, grpc.StatusCode) else grpc.StatusCode.UNKNOWN, str(error)
    else:
        return None
    named = getattr(error, "correlation_id", "")
    return _Failure({_STATUS: code.value[0], **({"correlation_id": named} if named else {})}, words or code.name)


def _attributes_of(name: str, correlation_id: str) -> dict[str, Any]:
    """Also the correlation id, so that the call is found by it if there is no answer that has it."""
    service, _, method = name.partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    if correlation_id:
        attributes["correlation_id"] = correlation_id
    return attributes


def _attributes_of_answer(answer: Any, correlation_id: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {_STATUS: 0}
    if job_id := getattr(answer, "job_id", ""):
        attributes["job.id"] = job_id
        if answer.correlation_id != correlation_id:
            attributes["correlation_id"] = answer.correlation_id
    return attributes


def _above() -> trace.SpanContext:
    return trace.get_current_span().get_span_context()


@functools.lru_cache(maxsize=256)
def _text_of(name: bytes | str) -> str:
    return (name.decode() if isinstance(name, bytes) else name).removeprefix("/")


def _name_of(method: grpc.aio.UnaryUnaryMultiCallable[Any, Any]) -> str:
    return _text_of(getattr(method, "_method", b""))
