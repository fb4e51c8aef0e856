"""Traces: what one action did, in all processes, as one tree of spans with true times.

Two kinds of spans leave a process, both by one outbox:

    calls   a server span around a call that a client made (RunCommand, CancelJob, GetJob …), begun and ended by our
            interceptor; the current one for OpenTelemetry's API while the call runs.
    work    a command, a task: it lasts longer than any call and may outlive the process it began in. A span cannot be
            reopened, so its id is reserved in a row, and whoever sees the work end *records* the span,
            out of stored facts alone: recorded again after a crash it is the very same span.

    record() ─▶ outbox ─▶ one batch on its way to the collector, the next gathers ─▶ exported() ─▶ may be forgotten

`exported` is what makes it safe to crash: who keeps the facts (a ledger, a table) keeps them until it is called. A
collector that is away is waited for; when too much waits, the oldest is given up, for work goes before its record.

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
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, Literal, NamedTuple

import grpc
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler

from chassis import logs, otlp
from chassis.background import Background
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.errors import WaybillError
from chassis.interceptor import Call, Ended, Observer

log = logs.get_logger(__name__)

GATHER_SECONDS: Final = 0.2
"""Spans of so long go together."""
EXPORT_SECONDS: Final = 5.0
"""How long the collector's answer is waited for."""
RETRY_SECONDS: Final = 1.0
FLUSH_SECONDS: Final = 2.0
"""How long a clean end waits for the collector."""
MOST_SPANS: Final = 2_000
"""Of one export."""
MOST_WAITING: Final = 50_000
"""Spans kept for a collector that is away; beyond it the oldest are given up."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_LONGEST_TRACEPARENT: Final = 256
_COMMANDS: Final = "/waybill.v1.Coordinator/"
_READS: Final = "/waybill.v1.JobStore/"
_SCOPE: Final = "waybill"
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

Value = otlp.Value
Kind = Literal["INTERNAL", "SERVER", "CLIENT", "CONSUMER"]


class Context(NamedTuple):
    """Where in which trace a span is."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool = True
    """False: the trace's root decided that nobody records it."""


def parse_traceparent(text: str) -> Context | None:
    """Returns what a `traceparent` names, None if it is none (W3C Trace Context, level 1)."""
    if len(text) > _LONGEST_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(text)
    if not found:
        return None
    number, trace_id, span_id, flags, more = found.groups()
    if number == "ff" or (number == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Context(trace_id, span_id, bool(int(flags, 16) & 1))


def format_traceparent(context: Context) -> str:
    """Returns the `traceparent` of a span."""
    return f"00-{context.trace_id}-{context.span_id}-{context.sampled:02x}"


# --- spans of work ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a span; time in Unix seconds."""

    name: str
    time: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """A span that is over; times in Unix seconds."""

    name: str
    """Of low cardinality: `RemoveVm`, `task deleteImage`."""
    context: Context
    parent_span_id: str
    """Empty: it is the root."""
    start: float
    end: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: Sequence[Event] = ()
    error: str = ""
    """What went wrong; empty: nothing did, or nobody can say."""
    links: Sequence[Context] = ()
    kind: Kind = "INTERNAL"


def _encode(span: FinishedSpan) -> bytes:
    return otlp.span(
        name=span.name,
        trace_id=span.context.trace_id,
        span_id=span.context.span_id,
        parent_span_id=span.parent_span_id,
        kind=otlp.KINDS[span.kind],
        start=_nanos(span.start),
        end=_nanos(span.end),
        attributes=span.attributes,
        events=[(event.name, _nanos(event.time), event.attributes) for event in span.events],
        links=[(link.trace_id, link.span_id) for link in span.links],
        error=span.error,
    )


def _nanos(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # stored times are exact to the microsecond, floats not much further


# --- the outbox ------------------------------------------------------------------------------------------------------


class _Waiting(NamedTuple):
    span: bytes
    exported: Callable[[], None] | None


class Outbox:
    """Brings spans to the collector. `run()` belongs into the background of its owner."""

    def __init__(
        self, export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], resource: Mapping[str, Value], clock: Clock
    ) -> None:
        """`export` brings bytes to the collector; `resource` describes this process."""
        self._export = export
        self._resource = otlp.resource(resource)
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._on_the_way = 0  # spans of the batch that is being delivered
        self._away = False
        self.given_up = 0
        """How many spans were never delivered."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, span: bytes, exported: Callable[[], None] | None = None) -> None:
        """Takes a span; `exported` is called when it is delivered or given up."""
        self._queue.append(_Waiting(span, exported))
        self._idle.clear()
        self._something.set()
        if len(self._queue) > MOST_WAITING:
            self._give_up([self._queue.popleft()])

    async def flush(self, seconds: float) -> None:
        """Waits until everything is delivered, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("spans were not delivered", count=len(self._queue) + self._on_the_way)

    async def run(self) -> None:
        """Delivers for ever."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._clock.sleep(GATHER_SECONDS)
            while self._queue:
                await self._deliver([self._queue.popleft() for _ in range(min(MOST_SPANS, len(self._queue)))])
            self._on_the_way = 0
            self._idle.set()

    async def _deliver(self, batch: Sequence[_Waiting]) -> None:
        """Sends a batch until the collector takes it or refuses it."""
        self._on_the_way = len(batch)
        request = otlp.request(self._resource, _SCOPE, [each.span for each in batch])
        while True:
            try:
                await self._export(request, timeout=EXPORT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _COME_AGAIN:
                    log.warning("the collector refuses spans", code=error.code().name, why=error.details())
                    return self._give_up(batch)
                if not self._away:
                    self._away = True
                    log.warning("the collector is away", code=error.code().name, why=error.details())
                await self._clock.sleep(RETRY_SECONDS)
            else:
                self._away = False
                return _tell(batch)

    def _give_up(self, batch: Sequence[_Waiting]) -> None:
        if not self.given_up:
            log.warning("spans are given up", waiting=len(self._queue))
        self.given_up += len(batch)
        _tell(batch)


_COME_AGAIN: Final = frozenset(  # OTLP's specification: the others are never repeated
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def _tell(batch: Sequence[_Waiting]) -> None:
    for each in batch:
        if each.exported is not None:
            each.exported()


def _described(service_name: str, more: Mapping[str, str]) -> dict[str, Value]:
    """Says which process makes the spans, but not which copy of equal ones: an heir delivers the very same span.

    The SDK makes up a `service.instance.id` for each process; one that is the same after a restart may be given.
    """
    named = {"service.name": service_name, "service.namespace": "waybill", "service.version": version("waybill")}
    made = dict(Resource.create({**named, **more}).attributes)
    if "service.instance.id" not in more:
        made.pop("service.instance.id", None)
    return {key: value for key, value in made.items() if isinstance(value, str | bool | int | float)}


# --- a process's tracing ---------------------------------------------------------------------------------------------


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


@contextmanager
def under(span: Context, correlation_id: str) -> Iterator[None]:
    """Makes a span that is not ours to end the current one, with the correlation id as baggage.

    What the code inside traces by itself, or calls with OpenTelemetry's help, belongs below it.
    """
    current = trace.set_span_in_context(trace.NonRecordingSpan(_span_context(span)))
    token = otel_context.attach(baggage.set_baggage("correlation_id", correlation_id, current))
    try:
        yield
    finally:
        otel_context.detach(token)


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
            self._outbox.add(_encode(span), exported)
        elif exported is not None:
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
