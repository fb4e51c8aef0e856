"""A collector for the tests: a real gRPC `TraceService` that keeps what it is brought.

    async with OtlpSink() as sink:
        … begin a process with …_TRACES_ENDPOINT=sink.address …
        await sink.wait_for(lambda spans: len(spans) == 4)

It can be away (`await sink.stop()`, `await sink.start()`, on the same port), or be there and refuse (`sink.answer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | bool | int | float


@dataclass(frozen=True)
class SinkEvent:
    """An event of a span; time in Unix seconds."""

    name: str
    time: float
    attributes: Mapping[str, Value]


@dataclass(frozen=True)
class SinkSpan:
    """A span as it arrived; equal to another one if everything in it is. Times in Unix seconds, ids in hex."""

    service: str
    """`service.name` of its resource."""
    name: str
    kind: str
    """INTERNAL, SERVER, CLIENT …"""
    trace_id: str
    span_id: str
    parent_span_id: str
    """Empty: it is a root."""
    start: float
    end: float
    status: str
    """UNSET, OK or ERROR."""
    message: str
    """What the status says; empty if nothing."""
    attributes: Mapping[str, Value]
    events: Sequence[SinkEvent]
    links: Sequence[tuple[str, str]]
    """(trace id, span id)"""
    resource: Mapping[str, Value]


class OtlpSink:
    """A collector on a port of its own: `async with OtlpSink() as sink`."""

    def __init__(self) -> None:
        self.address = ""
        """`host:port`; the same after it was away."""
        self.spans: list[SinkSpan] = []
        """All that it took, in the order of arrival; what was brought twice is here twice."""
        self.refused: list[SinkSpan] = []
        """All that it refused, as often as it did."""
        self.answer = grpc.StatusCode.OK
        """What it says to whoever brings spans; they are kept with OK only."""
        self._news = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> OtlpSink:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Comes (back)."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Service(self), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Goes away; what it has it keeps."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def named(self, name: str) -> list[SinkSpan]:
        """Returns the spans that it took with this name."""
        return [span for span in self.spans if span.name == name]

    async def wait_for(
        self, predicate: Callable[[Sequence[SinkSpan]], object], *, seconds: float = 20.0
    ) -> list[SinkSpan]:
        """Waits until the spans that it took are as wanted, and returns them. Raises TimeoutError, with their names."""
        return await self._wait(lambda: predicate(self.spans), seconds)

    async def wait_for_refusal(self, *names: str, seconds: float = 20.0) -> None:
        """Waits until it has refused spans of all these names. Raises TimeoutError."""
        await self._wait(lambda: set(names) <= {span.name for span in self.refused}, seconds)

    async def _wait(self, over: Callable[[], object], seconds: float) -> list[SinkSpan]:
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(over)
        except TimeoutError:
            here = [f"{span.service}: {span.name}" for span in self.spans]
            raise TimeoutError(f"the collector has only {here} after {seconds} s") from None
        return list(self.spans)

    async def take(self, request: trace_service_pb2.ExportTraceServiceRequest) -> grpc.StatusCode:
        """Keeps what was brought, or refuses it; returns what to say."""
        (self.spans if self.answer is grpc.StatusCode.OK else self.refused).extend(_spans_of(request))
        async with self._news:
            self._news.notify_all()
        return self.answer


class _Service(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        answer = await self._sink.take(request)
        if answer is not grpc.StatusCode.OK:
            await context.abort(answer, "as the test wants it")
        return trace_service_pb2.ExportTraceServiceResponse()


def span_of(encoded: bytes) -> SinkSpan:
    """Returns one span out of its encoded form, as nobody's."""
    return _span_from(trace_pb2.Span.FromString(encoded), {})


def _spans_of(request: trace_service_pb2.ExportTraceServiceRequest) -> Iterator[SinkSpan]:
    for group in request.resource_spans:
        resource = _plain(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _span_from(span, resource)


def _span_from(span: trace_pb2.Span, resource: Mapping[str, Value]) -> SinkSpan:
    return SinkSpan(
        service=str(resource.get("service.name", "")),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        attributes=_plain(span.attributes),
        events=[SinkEvent(each.name, each.time_unix_nano / 1e9, _plain(each.attributes)) for each in span.events],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource=resource,
    )


def _plain(attributes: Any) -> dict[str, Value]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: common_pb2.AnyValue) -> Value:
    kind = value.WhichOneof("value")
    plain: Value = getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else ""
    return plain
