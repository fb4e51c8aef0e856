"""Traces: what one action did, in all processes, as one tree of spans with true times.

Two kinds of spans leave a process, both by one outbox:

    calls   a server span around a call that a client made (RunCommand, CancelJob, GetJob …). Live: OpenTelemetry's SDK
            makes it, by the conventions of its gRPC instrumentation, and it is the current one while the call runs.
    work    a command, a task: it lasts longer than any call and may outlive the process it began in. A span cannot be
            reopened, so its id is reserved in a row, and whoever sees the work end *records* the span,
            out of stored facts alone: recorded again after a crash it is the very same span.

    record() ─▶ outbox ─▶ one batch on its way to the collector, the next gathers ─▶ exported() ─▶ may be forgotten

`exported` is what makes it safe to crash: who keeps the facts (a ledger, a table) keeps them until it is called. A
collector that is away is waited for; when too much waits, the oldest is given up, for work goes before its record.

What the instrumentation package gets wrong for asyncio, and is mended by using its parts from our own interceptor:

| package | here |
| --- | --- |
| a handler that raises leaves the status unset, code 0 | the call's true end, as the interceptor maps it |
| an abort is recorded twice, as a status and as an exception | once, as the status |
| a deadline or a reader that leaves reads OK | CANCELLED |
| every method has spans | only calls that people wait for; a read only if its caller traces |
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, Literal, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.grpc._aio_server import OpenTelemetryAioServerInterceptor
from opentelemetry.instrumentation.grpc._utilities import _server_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.semconv._incubating.attributes.rpc_attributes import RPC_GRPC_STATUS_CODE

from chassis import logs
from chassis.channels import open_channel
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

Value = str | bool | int | float
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


def _encode(span: FinishedSpan) -> trace_pb2.Span:
    message = trace_pb2.Span(
        trace_id=bytes.fromhex(span.context.trace_id),
        span_id=bytes.fromhex(span.context.span_id),
        parent_span_id=bytes.fromhex(span.parent_span_id),
        name=span.name,
        kind=getattr(trace_pb2.Span, f"SPAN_KIND_{span.kind}"),
        start_time_unix_nano=_nanos(span.start),
        end_time_unix_nano=_nanos(span.end),
        attributes=_attributes(span.attributes),
        flags=0x101 if span.context.sampled else 0x100,  # sampled; whether the parent is remote is known: it is not
    )
    for event in span.events:
        message.events.add(name=event.name, time_unix_nano=_nanos(event.time), attributes=_attributes(event.attributes))
    for link in span.links:
        message.links.add(trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id))
    if span.error:
        message.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        message.status.message = span.error
    return message


def _nanos(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # stored times are exact to the microsecond, floats not much further


def _attributes(values: Mapping[str, Value]) -> list[common_pb2.KeyValue]:
    return [common_pb2.KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: Value) -> common_pb2.AnyValue:
    if isinstance(value, str):
        return common_pb2.AnyValue(string_value=value)
    if isinstance(value, bool):
        return common_pb2.AnyValue(bool_value=value)
    if isinstance(value, int):
        return common_pb2.AnyValue(int_value=value)
    return common_pb2.AnyValue(double_value=value)


# --- the outbox ------------------------------------------------------------------------------------------------------


class _Waiting(NamedTuple):
    span: trace_pb2.Span
    exported: Callable[[], None] | None


class Outbox:
    """Brings spans to the collector. `run()` belongs into the background of its owner."""

    def __init__(self, stub: trace_service_pb2_grpc.TraceServiceStub, resource: Resource) -> None:
        self._stub = stub
        self._resource = resource_pb2.Resource(attributes=_attributes(_plain(resource)))
        self._queue: deque[_Waiting] = deque()
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._away = False
        self.given_up = 0
        """How many spans were never delivered."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, span: trace_pb2.Span, exported: Callable[[], None] | None = None) -> None:
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
            log.warning("spans were not delivered", count=len(self._queue))

    async def run(self) -> None:
        """Delivers for ever."""
        while True:
            await self._something.wait()
            self._something.clear()
            await asyncio.sleep(GATHER_SECONDS)
            while self._queue:
                await self._deliver([self._queue.popleft() for _ in range(min(MOST_SPANS, len(self._queue)))])
            self._idle.set()

    async def _deliver(self, batch: Sequence[_Waiting]) -> None:
        """Sends a batch until the collector takes it or refuses it."""
        request = trace_service_pb2.ExportTraceServiceRequest(
            resource_spans=[
                trace_pb2.ResourceSpans(
                    resource=self._resource,
                    scope_spans=[
                        trace_pb2.ScopeSpans(
                            scope=common_pb2.InstrumentationScope(name=_SCOPE), spans=[each.span for each in batch]
                        )
                    ],
                )
            ]
        )
        while True:
            try:
                await self._stub.Export(request, timeout=EXPORT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _COME_AGAIN:
                    log.warning("the collector refuses spans", code=error.code().name, why=error.details())
                    return self._give_up(batch)
                if not self._away:
                    self._away = True
                    log.warning("the collector is away", code=error.code().name, why=error.details())
                await asyncio.sleep(RETRY_SECONDS)
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


def _plain(resource: Resource) -> dict[str, Value]:
    return {key: value for key, value in resource.attributes.items() if isinstance(value, str | bool | int | float)}


def _described(service_name: str, more: Mapping[str, str]) -> Resource:
    """Says which process makes the spans, but not which copy of equal ones: an heir delivers the very same span.

    The SDK makes up a `service.instance.id` for each process; one that is the same after a restart may be given.
    """
    named = {"service.name": service_name, "service.namespace": "waybill", "service.version": version("waybill")}
    made = Resource.create({**named, **more})
    if "service.instance.id" in more:
        return made
    return Resource({key: value for key, value in made.attributes.items() if key != "service.instance.id"})


class _IntoOutbox(SpanProcessor):
    """Hands spans that the SDK made to the outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            [encoded] = encode_spans([span]).resource_spans[0].scope_spans[0].spans
            self._outbox.add(encoded)


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
    trace.get_current_span().set_attributes(attributes)


def link_call(to: Context) -> None:
    """Links the current call's span to another one: to work that it is about, but did not begin."""
    trace.get_current_span().add_link(_span_context(to))


def _span_context(of: Context) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if of.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(of.trace_id, 16), int(of.span_id, 16), is_remote=True, trace_flags=flags)


class Tracing:
    """What a process does about traces. Without a collector it passes on what callers say of theirs."""

    def __init__(self, outbox: Outbox | None, provider: trace.TracerProvider) -> None:
        self._outbox = outbox
        self.provider = provider
        """For a client of this process whose calls shall have spans."""
        self._calls = _CallSpans(provider)

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
        return self._calls.begin(call, incoming)


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


class _Details(NamedTuple):
    method: str


class _CallSpans(OpenTelemetryAioServerInterceptor):
    """Server spans of calls by the instrumentation's conventions, begun and ended by our own interceptor."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        super().__init__(provider.get_tracer(_SCOPE))  # type: ignore[no-untyped-call]

    def begin(self, call: Call, incoming: Context | None) -> Ended:
        """Starts the span of a call and makes it the current one; returns what ends it."""
        around = ExitStack()
        if incoming is not None:  # by itself: the package would read, and log, whatever baggage and state come with it
            around.enter_context(trace.use_span(trace.NonRecordingSpan(_span_context(incoming))))
        span: trace.Span = around.enter_context(self._start_span(_Details(call.method), call.rpc))  # type: ignore[no-untyped-call]
        span.set_attribute("correlation_id", call.caller.correlation_id)
        if incoming is None:
            _parent.set(_context_of(span))

        def end(error: BaseException | None) -> None:
            code, words = _end_of(error, call.rpc)
            span.set_attribute(RPC_GRPC_STATUS_CODE, code.value[0])
            span.set_status(_server_status(code, words))  # type: ignore[no-untyped-call]
            around.close()

        return end


def _context_of(span: trace.Span) -> Context:
    own = span.get_span_context()
    return Context(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled)


def _end_of(error: BaseException | None, rpc: grpc.aio.ServicerContext[Any, Any]) -> tuple[grpc.StatusCode, str]:
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
    return Tracing(None, trace.NoOpTracerProvider())


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
    described = _described(service_name, resource or {})
    async with open_channel(endpoint) as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
        outbox = Outbox(stub, described)
        provider = TracerProvider(resource=described, shutdown_on_exit=False)
        provider.add_span_processor(_IntoOutbox(outbox))
        delivering = asyncio.create_task(outbox.run(), name="spans")
        try:
            yield Tracing(outbox, provider)
            await outbox.flush(FLUSH_SECONDS)
        finally:
            delivering.cancel()
            await asyncio.wait((delivering,))
