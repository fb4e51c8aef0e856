"""Traces: what one action did, in all processes, as one tree of spans with true times.

Two kinds of spans (`spans.py`) leave a process, both by one outbox (`delivery.py`):

    calls   a server span around a call that a client made (RunCommand, CancelJob, GetJob …), begun and ended by our
            interceptor; the current one for OpenTelemetry's API while the call runs.
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
from contextlib import asynccontextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import grpc
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler

from chassis.background import Background
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.delivery import Outbox
from chassis.errors import WaybillError
from chassis.interceptor import Call, Ended, Observer
from chassis.spans import Context, FinishedSpan, Value, parse_traceparent

FLUSH_SECONDS: Final = 2.0
"""How long a clean end waits for the collector."""

_COMMANDS: Final = "/waybill.v1.Coordinator/"
_READS: Final = "/waybill.v1.JobStore/"
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


_parent: ContextVar[Context | None] = ContextVar("waybill_trace_parent", default=None)


def parent_of_work() -> Context | None:
    """Returns the span under which the current call's work belongs; None if nobody traces it.

    The caller's span where there is one, else that of the call itself: the caller's exists even if this process dies
    in the middle of the call.
    """
    return _parent.get()


def describe_call(attributes: Mapping[str, Value]) -> None:
    """Adds attributes to the current call's span, if it has one."""
    if (span := _call.get()) is not None:
        span.attributes.update(attributes)


def link_call(to: Context) -> None:
    """Links the current call's span to another one: to work that it is about, but did not begin."""
    if (span := _call.get()) is not None:
        span.links.append(to)


class under:  # noqa: N801 - used as a word: `with under(span, correlation_id):`
    """Makes a span that is not ours to end the current one, with the correlation id as baggage.

    What the code inside traces by itself, or calls with OpenTelemetry's help, belongs below it.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, span: Context, correlation_id: str) -> None:
        current = trace.set_span_in_context(trace.NonRecordingSpan(_span_context(span)))
        self._context = baggage.set_baggage("correlation_id", correlation_id, current)

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)


class _CallSpan(NamedTuple):
    """The span of a call that runs."""

    context: Context
    attributes: dict[str, Value]
    links: list[Context]


_call: ContextVar[_CallSpan | None] = ContextVar("waybill_call_span", default=None)


class Tracing:
    """What a process does about traces. Without a collector it passes on what callers say of theirs."""

    def __init__(self, outbox: Outbox | None, clock: Clock, rng: random.Random, sampler: Sampler | None = None) -> None:
        """`sampler` decides about traces that begin here; None records all."""
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._sampler = sampler

    @property
    def enabled(self) -> bool:
        """Tells whether there is a collector."""
        return self._outbox is not None

    def record(self, span: FinishedSpan, exported: Callable[[], None] | None = None) -> None:
        """Hands a span over. `exported` is called once it is delivered or given up: at once, if nobody wants it."""
        if self._outbox is not None and span.context.sampled:
            self._outbox.add(span, exported)
        elif exported is not None:
            exported()

    def record_kept(self, span: bytes, exported: Callable[[], None]) -> None:
        """Hands over a span that was kept as `FinishedSpan.encoded` returned it: sampled, that is."""
        if self._outbox is not None:
            self._outbox.add(span, exported)
        else:
            exported()

    @property
    def observer(self) -> Observer:
        """For `serve`: makes the spans of calls, and lets `parent_of_work` know where the caller's is."""
        return self._observe

    def _observe(self, call: Call) -> Ended:
        incoming = _incoming(call)
        _parent.set(incoming)
        if self._outbox is None or not _is_traced(call.method, incoming):
            return _nothing
        return self._begin(call, incoming)

    def _begin(self, call: Call, incoming: Context | None) -> Ended:
        """Starts the span of a call and makes it the current one; returns what ends it."""
        context = self._below(incoming)
        if incoming is None:
            _parent.set(context)
        _, service, method = call.method.split("/", 2)
        attributes: dict[str, Value] = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "correlation_id": call.caller.correlation_id,
        }
        span = _CallSpan(context, attributes, [])
        _call.set(span)
        otel_context.attach(trace.set_span_in_context(trace.NonRecordingSpan(_span_context(context))))
        start = self._clock.now()

        def end(error: BaseException | None) -> None:
            code, words = end_of(error, call.rpc)
            attributes["rpc.grpc.status_code"] = code.value[0]
            self.record(
                FinishedSpan(
                    name=f"{service}/{method}",
                    context=context,
                    parent_span_id=incoming.span_id if incoming is not None else "",
                    start=start,
                    end=max(start, self._clock.now()),
                    attributes=attributes,
                    error=f"{code.name}: {words}" if code in _OUR_FAULT else "",
                    links=span.links,
                    kind="SERVER",
                )
            )

        return end

    def _below(self, parent: Context | None) -> Context:
        """Returns a new span's place: in the parent's trace, or in a trace of its own."""
        span_id = f"{self._rng.getrandbits(64) or 1:016x}"
        if parent is not None:
            return parent._replace(span_id=span_id)
        number = self._rng.getrandbits(128) or 1
        decided = self._sampler.should_sample(None, number, "").decision if self._sampler is not None else None
        return Context(f"{number:032x}", span_id, decided in (None, Decision.RECORD_AND_SAMPLE))


def _nothing(_: BaseException | None) -> None:
    """Ends a call that has no span."""


def _incoming(call: Call) -> Context | None:
    """Returns the caller's span; what is no good or named twice counts as none."""
    named = [value for key, value in call.metadata if key == "traceparent"]
    return parse_traceparent(named[0]) if len(named) == 1 and isinstance(named[0], str) else None


def _is_traced(method: str, incoming: Context | None) -> bool:
    """Commands are; reads are part of a trace or they are nothing; the rest is ours, and batched."""
    if "Watch" in method:
        return False
    return method.startswith(_COMMANDS) or (incoming is not None and method.startswith(_READS))


def _span_context(of: Context) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if of.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(of.trace_id, 16), int(of.span_id, 16), is_remote=True, trace_flags=flags)


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
        outbox = Outbox(channel.unary_unary(_EXPORT), _described(service_name, resource or {}), clock)
        background.start(outbox.run(), "spans")
        yield Tracing(outbox, clock, random.Random(), TracerProvider(shutdown_on_exit=False).sampler)
        await outbox.flush(FLUSH_SECONDS)
