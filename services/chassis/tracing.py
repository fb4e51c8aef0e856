"""Traces: what one action did, in all processes, as one tree of spans with true times.

Two kinds of spans leave a process, both by one outbox (`waybill_spans`):

    calls   a server span around a call that a client made (RunCommand, CancelJob, GetJob …), begun and ended by our
            interceptor (`callspans.py`).
    work    a command, a task: it lasts longer than any call and may outlive the process it began in. A span cannot be
            reopened, so its id is reserved in a row, and whoever sees the work end *records* the span,
            out of stored facts alone: recorded again after a crash it is the very same span.

OpenTelemetry's instrumentation of grpc.aio is not used. Its spans of calls that raise, are aborted, meet a deadline or
are left by their reader end wrong or never, and even its sound parts cost seven times what a call's span costs here:
more than all of a job's spans may (both measured). Its conventions are kept, and its mistakes have tests:

| call | span |
| --- | --- |
| that raises | with the status that the caller gets; an error only if the fault is ours |
| that is aborted | ended once, with that status |
| whose caller leaves, or whose deadline passes | CANCELLED |
| a watch, health, batches between our services | none: nobody waits for them |
| a read | only if its caller traces |
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Final, Literal

import grpc
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler

from chassis import callspans, context
from chassis.background import Background
from chassis.callspans import CallSpan
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.errors import WaybillError
from chassis.interceptor import Call, Ended, Observer
from waybill_spans import EXPORT, Context, Outbox, Recorded, Value, new_root, parse_traceparent

FLUSH_SECONDS: Final = 2.0
"""How long a clean end waits for the collector."""

_COMMANDS: Final = "/waybill.v1.Coordinator/"
_READS: Final = "/waybill.v1.JobStore/"


def parent_of_work() -> Context | None:
    """Returns the span under which the current call's work belongs; None if nobody traces it.

    The caller's span where there is one, else that of the call itself: the caller's exists even if this process dies
    in the middle of the call.
    """
    span = callspans.current.get()
    return _caller.get() if span is None else span.above or span.place


def describe_call(attributes: Mapping[str, Value]) -> None:
    """Adds attributes to the current call's span, if it has one."""
    if (span := callspans.current.get()) is not None:
        span.described = {**span.described, **attributes} if span.described else attributes


def link_call(to: Context) -> None:
    """Links the current call's span to another one: to work that it is about, but did not begin."""
    if (span := callspans.current.get()) is not None:
        span.links = (*span.links, to)


class under:  # noqa: N801 - used as a word: `with under(span, correlation_id):`
    """Makes a span the current one for OpenTelemetry's API, with the correlation id as baggage.

    It is not the API's to end. What the code inside traces by itself, or calls with OpenTelemetry's help, belongs below
    it. For code of others (commands, drivers): our own asks nobody, and would pay for it in each call.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, span: Context, correlation_id: str) -> None:
        # As `trace.set_span_in_context` and `baggage.set_baggage` would make it, at a third of their price.
        named = {"correlation_id": correlation_id}
        self._context = otel_context.Context({_SPAN_KEY: _Foreign(span), _BAGGAGE_KEY: named})

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)


def under_call() -> AbstractContextManager[None]:
    """Makes the current call's span, or that of its caller, the API's current one, as `under` does."""
    span = callspans.current.get()
    place = span.place if span is not None else _caller.get()
    return nullcontext() if place is None else under(place, context.current().correlation_id)


class _Foreign(trace.NonRecordingSpan):
    """A span that is not the API's to end; what that wants to know of it is made when it asks."""

    def __init__(self, place: Context) -> None:
        self._place = place

    def get_span_context(self) -> trace.SpanContext:
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if self._place.sampled else trace.TraceFlags.DEFAULT)
        return trace.SpanContext(
            int(self._place.trace_id, 16), int(self._place.span_id, 16), is_remote=True, trace_flags=flags
        )


[_SPAN_KEY] = trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context())
[_BAGGAGE_KEY] = baggage.set_baggage("correlation_id", "", otel_context.Context())

_caller: ContextVar[Context | None] = ContextVar("waybill_caller_span", default=None)
"""The caller's span, where the call itself has none."""


class Tracing:
    """What a process does about traces. Without a collector it passes on what callers say of theirs."""

    def __init__(self, outbox: Outbox | None, clock: Clock, rng: random.Random, sampler: Sampler | None = None) -> None:
        """`sampler` decides about traces that begin here; None records all."""
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._sampler = sampler
        self._kinds: dict[str, Literal["command", "read", "other"]] = {}  # of methods

    @property
    def enabled(self) -> bool:
        """Tells whether there is a collector."""
        return self._outbox is not None

    def record(self, span: Recorded, exported: Callable[[], None] | None = None) -> None:
        """Hands over a sampled span. `exported` is called once it, and all before it, are delivered or given up.

        At once, if nobody wants it.
        """
        if self._outbox is not None:
            self._outbox.add(span, exported)
        elif exported is not None:
            exported()

    def when_delivered(self, exported: Callable[[], None]) -> None:
        """`exported` is called once all that was recorded so far is delivered or given up; at once if nothing waits."""
        if self._outbox is not None:
            self._outbox.when_delivered(exported)
        else:
            exported()

    @property
    def observer(self) -> Observer:
        """For `serve`: makes the spans of calls, and lets `parent_of_work` know where the caller's is."""
        return self._observe

    def _observe(self, call: Call) -> Ended:
        above = _above(call)
        if self._outbox is None or not self._is_traced(call.method, above):
            _caller.set(above)
            return _nothing
        return self._begin(call, above, self._outbox)

    def _is_traced(self, method: str, above: Context | None) -> bool:
        """Commands are; reads are part of a trace or they are nothing; the rest is ours, and batched."""
        kind = self._kinds.get(method)
        if kind is None:  # a name that exists: the interceptor sees to that
            kind = self._kinds[method] = _kind_of(method)
        return kind == "command" or (kind == "read" and above is not None)

    def _begin(self, call: Call, above: Context | None, outbox: Outbox) -> Ended:
        """Begins the span of a call; returns what ends it."""
        start, root = self._clock.now(), None if above is not None else self._root()
        span = CallSpan(call.method, call.caller.correlation_id, start, above=above, root=root, rng=self._rng)
        callspans.current.set(span)

        def end(error: BaseException | None) -> None:
            if not (span.above or span.place).sampled:
                return
            span.over = self._clock.now()
            if error is not None:
                code, words = end_of(error, call.rpc)
                span.code, span.error = code.value[0], f"{code.name}: {words}" if code in _OUR_FAULT else ""
            outbox.add(span)

        return end

    def _root(self) -> Context:
        """Returns the place of a span that begins a trace."""
        root = new_root(self._rng)
        if self._sampler is not None:
            decided = self._sampler.should_sample(None, int(root.trace_id, 16), "").decision
            return root._replace(sampled=decided is Decision.RECORD_AND_SAMPLE)
        return root


def _nothing(_: BaseException | None) -> None:
    """Ends a call that has no span."""


def _above(call: Call) -> Context | None:
    """Returns the caller's span; what is no good or named twice counts as none."""
    named = None
    for key, value in call.metadata:
        if key == "traceparent":
            if named is not None:
                return None
            named = value
    return parse_traceparent(named) if isinstance(named, str) else None


def _kind_of(method: str) -> Literal["command", "read", "other"]:
    if method.startswith(_COMMANDS) and "Watch" not in method:
        return "command"
    return "read" if method.startswith(_READS) and "Watch" not in method else "other"


_OUR_FAULT: Final = frozenset(  # the conventions' list for servers: the others are their callers' fault
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def end_of(error: BaseException | None, rpc: grpc.aio.ServicerContext[Any, Any]) -> tuple[grpc.StatusCode, str]:
    """Returns the status that a call ended with, and why in a word; `error` as an Observer is told."""
    if error is None:
        return grpc.StatusCode.OK, ""
    if isinstance(error, WaybillError):
        return error.code, error.reason
    if isinstance(error, grpc.aio.AioRpcError):
        failure = WaybillError.from_rpc_error(error)
        return failure.code, failure.reason
    if isinstance(error, grpc.aio.AbortError):
        return rpc.code(), rpc.details()
    if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):
        return grpc.StatusCode.CANCELLED, "the caller has left, or its deadline has passed"
    if isinstance(error, NotImplementedError):
        return grpc.StatusCode.UNIMPLEMENTED, "NOT_AVAILABLE_YET"
    return grpc.StatusCode.INTERNAL, "INTERNAL"


def _described(service_name: str, more: Mapping[str, str]) -> dict[str, Value]:
    """Says which process makes the spans, but not which copy of equal ones: an heir delivers the very same span.

    The SDK makes up a `service.instance.id` for each process; one that is the same after a restart may be given.
    """
    named = {"service.name": service_name, "service.namespace": "waybill", "service.version": version("waybill")}
    made = dict(Resource.create({**named, **more}).attributes)
    if "service.instance.id" not in more:
        made.pop("service.instance.id", None)
    return {key: value for key, value in made.items() if isinstance(value, str | bool | int | float)}


def no_tracing() -> Tracing:
    """Returns the tracing of a process without a collector."""
    return Tracing(None, SystemClock(), random.Random())


@asynccontextmanager
async def open_tracing(
    endpoint: str, service_name: str, resource: Mapping[str, str] | None = None
) -> AsyncIterator[Tracing]:
    """Yields a process's tracing; delivers what waits, for at most two seconds, at its end.

    Args:
        endpoint: `host:port` of an OTLP/gRPC collector; empty: no spans leave this process.
        service_name: `waybill-coordinator`.
        resource: more attributes of the resource; OTEL_RESOURCE_ATTRIBUTES adds to them. OTEL_TRACES_SAMPLER decides
            about traces that begin here.
    """
    if not endpoint:
        yield no_tracing()
        return
    clock = SystemClock()
    async with open_channel(endpoint, health=False) as channel, Background() as background:
        outbox = Outbox(channel.unary_unary(EXPORT), _described(service_name, resource or {}), clock.sleep)
        background.start(outbox.run(), "spans")
        yield Tracing(outbox, clock, random.Random(), TracerProvider(shutdown_on_exit=False).sampler)
        await outbox.flush(FLUSH_SECONDS)
