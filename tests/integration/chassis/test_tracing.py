"""Server spans, as a collector gets them: one for each call that somebody waits for, saying how it truly ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry import baggage, trace
from tests.otlp_sink import OtlpSink, SinkSpan

from chassis import errors, tracing
from chassis.logs import add_ids
from chassis.server import Mount, Server
from chassis.tracing import under_call

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = (("traceparent", f"00-{TRACE_ID}-{PARENT}-01"),)
DO = "/waybill.v1.Coordinator/Do"
FOLLOW = "/waybill.v1.Coordinator/Follow"
MARK = "/waybill.v1.Coordinator/Mark"


@dataclass
class Traced:
    """A server whose spans go to a collector, and a client of it that has none of our code."""

    sink: OtlpSink
    channel: grpc.aio.Channel = field(init=False)
    do: Callable[[Any], Awaitable[bytes]] = field(init=False)
    """What the unary calls do; given what gRPC knows of the call."""
    follow: Callable[[Any], AsyncIterator[bytes]] = field(init=False)
    """What the streams do."""

    async def _do(self, _request: bytes, rpc: Any) -> bytes:
        return await self.do(rpc)

    async def _follow(self, _request: bytes, rpc: Any) -> AsyncIterator[bytes]:
        async for answer in self.follow(rpc):
            yield answer

    async def _mark(self, _request: bytes, _rpc: Any) -> bytes:
        return b""

    def mounts(self) -> list[Mount]:
        unary = grpc.unary_unary_rpc_method_handler(self._do)
        stream = grpc.unary_stream_rpc_method_handler(self._follow)
        mark = grpc.unary_unary_rpc_method_handler(self._mark)
        methods = {
            "Coordinator": {"Do": unary, "Follow": stream, "Mark": mark},
            "JobStore": {"GetJob": unary, "WatchJobs": stream},
            "Journal": {"Commit": unary, "Watch": stream},
            "HostAgent": {"StartTasks": unary, "WatchTasks": stream},
        }
        return [_mount(f"waybill.v1.{name}", handlers) for name, handlers in methods.items()]

    def unary(self, method: str = DO, **options: Any) -> Any:
        return self.channel.unary_unary(method)(b"", **options)

    def stream(self, method: str = FOLLOW, **options: Any) -> Any:
        return self.channel.unary_stream(method)(b"", **options)

    async def spans(self, *methods: str) -> list[SinkSpan]:
        """Waits for spans of these methods; returns all that there are, of all calls that are over."""
        await self.sink.wait_for(lambda spans: set(methods) <= {_method(span) for span in spans})
        await self.unary(MARK)  # spans are delivered in order
        spans = await self.sink.wait_for(lambda spans: any(_method(span) == MARK for span in spans))
        return [span for span in spans if _method(span) != MARK]

    async def span(self, method: str = DO) -> SinkSpan:
        """Returns the only span."""
        (span,) = await self.spans(method)
        assert _method(span) == method
        return span


def _mount(name: str, handlers: dict[str, Any]) -> Mount:
    def add(_servicer: object, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    return Mount(name, None, add)


def _method(span: SinkSpan) -> str:
    return f"/{span.attributes['rpc.service']}/{span.attributes['rpc.method']}"


def code_of(span: SinkSpan) -> int:
    return int(span.attributes["rpc.grpc.status_code"])


async def fails(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (call.read() if hasattr(call, "read") else call)
    return failure.value.code()


async def answer(_rpc: Any) -> bytes:
    return b""


@pytest.fixture
async def traced() -> AsyncIterator[Traced]:
    async with OtlpSink() as sink, tracing.open_tracing(sink.address, "waybill-depot") as ours:
        traced = Traced(sink)
        traced.do = answer
        async with (
            Server("127.0.0.1:0", traced.mounts(), observers=[ours.observer], grace=0) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            server.set_serving(True)
            traced.channel = channel
            yield traced


class TestHowACallEnds:
    async def test_well(self, traced: Traced) -> None:
        await traced.unary(metadata=(*TRACEPARENT, ("x-correlation-id", "order-7")))
        span = await traced.span()
        assert (span.kind, span.status, code_of(span)) == ("SERVER", "UNSET", 0)
        assert (span.trace_id, span.parent_span_id) == (TRACE_ID, PARENT)
        assert span.attributes["correlation_id"] == "order-7"
        assert span.service == "waybill-depot"

    async def test_refused_for_the_callers_fault_is_no_error(self, traced: Traced) -> None:
        async def refuse(_rpc: Any) -> bytes:
            raise errors.not_found("JOB_NOT_FOUND", "no such job")

        traced.do = refuse
        assert await fails(traced.unary()) is grpc.StatusCode.NOT_FOUND
        span = await traced.span()
        assert (span.status, code_of(span)) == ("UNSET", grpc.StatusCode.NOT_FOUND.value[0])

    async def test_raising(self, traced: Traced) -> None:
        async def defect(_rpc: Any) -> bytes:
            raise ZeroDivisionError("secret of the house")

        traced.do = defect
        assert await fails(traced.unary()) is grpc.StatusCode.INTERNAL
        span = await traced.span()
        assert (span.status, code_of(span)) == ("ERROR", grpc.StatusCode.INTERNAL.value[0])
        assert "secret" not in str(span)

    async def test_aborting(self, traced: Traced) -> None:
        async def abort(rpc: Any) -> bytes:
            await rpc.abort(grpc.StatusCode.DATA_LOSS, "gone")
            raise AssertionError

        traced.do = abort
        assert await fails(traced.unary()) is grpc.StatusCode.DATA_LOSS
        span = await traced.span()
        assert (span.status, code_of(span)) == ("ERROR", grpc.StatusCode.DATA_LOSS.value[0])
        assert span.events == []

    async def test_at_its_deadline(self, traced: Traced) -> None:
        async def late(_rpc: Any) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        traced.do = late
        assert await fails(traced.unary(timeout=0.2)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert code_of(await traced.span()) == grpc.StatusCode.CANCELLED.value[0]

    async def test_cancelled_by_its_caller(self, traced: Traced) -> None:
        running = asyncio.Event()

        async def late(_rpc: Any) -> bytes:
            running.set()
            await asyncio.Event().wait()
            raise AssertionError

        traced.do = late
        call = traced.unary()
        await running.wait()
        call.cancel()
        span = await traced.span()
        assert (span.status, code_of(span)) == ("UNSET", grpc.StatusCode.CANCELLED.value[0])

    async def test_of_a_method_that_there_is_not_under_a_name_that_nobody_made_up(self, traced: Traced) -> None:
        assert await fails(traced.unary("/waybill.v1.Coordinator/Nonsense")) is grpc.StatusCode.UNIMPLEMENTED
        span = await traced.span("/waybill.v1.Coordinator/_OTHER")
        assert "Nonsense" not in str(span)
        assert (span.status, code_of(span)) == ("ERROR", grpc.StatusCode.UNIMPLEMENTED.value[0])

    async def test_refused_for_its_correlation_id(self, traced: Traced) -> None:
        assert await fails(traced.unary(metadata=(("x-correlation-id", "a b"),))) is grpc.StatusCode.INVALID_ARGUMENT
        span = await traced.span()
        assert code_of(span) == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert "a b" not in str(span)


class TestHowAStreamEnds:
    async def test_well(self, traced: Traced) -> None:
        async def two(_rpc: Any) -> AsyncIterator[bytes]:
            yield b"1"
            yield b"2"

        traced.follow = two
        assert [answer async for answer in traced.stream()] == [b"1", b"2"]
        assert code_of(await traced.span(FOLLOW)) == 0

    async def test_raising_in_the_middle(self, traced: Traced) -> None:
        async def torn(_rpc: Any) -> AsyncIterator[bytes]:
            yield b"1"
            raise errors.unavailable("the database is away")

        traced.follow = torn
        call = traced.stream()
        await call.read()
        assert await fails(call) is grpc.StatusCode.UNAVAILABLE
        span = await traced.span(FOLLOW)
        assert (span.status, code_of(span)) == ("ERROR", grpc.StatusCode.UNAVAILABLE.value[0])

    @pytest.mark.parametrize("busy", [False, True], ids=["that is silent", "amid a write"])
    async def test_abandoned_by_a_reader(self, traced: Traced, busy: bool) -> None:
        async def endless(_rpc: Any) -> AsyncIterator[bytes]:
            yield b"1"
            while busy:
                yield b"x" * 100_000
            await asyncio.Event().wait()

        traced.follow = endless
        call = traced.stream()
        await call.read()
        call.cancel()
        span = await traced.span(FOLLOW)
        assert (span.status, code_of(span)) == ("UNSET", grpc.StatusCode.CANCELLED.value[0])


class TestWhatHasNoSpan:
    async def test_health_reflection_and_channelz(self, traced: Traced) -> None:
        health = health_pb2_grpc.HealthStub(traced.channel)
        await health.Check(health_pb2.HealthCheckRequest(), metadata=TRACEPARENT)
        watch = health.Watch(health_pb2.HealthCheckRequest(), metadata=TRACEPARENT)
        await watch.read()
        watch.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(traced.channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert [answer async for answer in reflection.ServerReflectionInfo(iter(asked), metadata=TRACEPARENT)]
        await channelz_pb2_grpc.ChannelzStub(traced.channel).GetServers(
            channelz_pb2.GetServersRequest(), metadata=TRACEPARENT
        )
        assert await traced.spans() == []

    @pytest.mark.parametrize("method", ["JobStore/WatchJobs", "Journal/Watch", "HostAgent/WatchTasks"])
    async def test_a_watch(self, traced: Traced, method: str) -> None:
        async def one(_rpc: Any) -> AsyncIterator[bytes]:
            yield b"1"

        traced.follow = one
        assert [answer async for answer in traced.stream(f"/waybill.v1.{method}", metadata=TRACEPARENT)] == [b"1"]
        assert await traced.spans() == []

    @pytest.mark.parametrize("method", ["Journal/Commit", "HostAgent/StartTasks"])
    async def test_a_batch_of_ours(self, traced: Traced, method: str) -> None:
        await traced.unary(f"/waybill.v1.{method}", metadata=TRACEPARENT)
        assert await traced.spans() == []

    async def test_a_read_but_for_a_caller_that_traces(self, traced: Traced) -> None:
        method = "/waybill.v1.JobStore/GetJob"
        await traced.unary(method)
        assert await traced.spans() == []
        await traced.unary(method, metadata=TRACEPARENT)
        assert (await traced.span(method)).parent_span_id == PARENT

    async def test_what_its_root_decided_not_to_record(self, traced: Traced) -> None:
        await traced.unary(metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT}-00"),))
        assert await traced.spans() == []


async def test_code_of_others_finds_the_call_s_span_where_it_looks_for_it(traced: Traced) -> None:
    current: list[tuple[str, object]] = []

    async def look(_rpc: Any) -> bytes:
        with under_call():
            span_id = trace.get_current_span().get_span_context().span_id
            current.append((f"{span_id:016x}", baggage.get_baggage("correlation_id")))
        return b""

    traced.do = look
    await traced.unary(metadata=(("x-correlation-id", "c-1"),))
    assert current == [((await traced.span()).span_id, "c-1")]


async def test_lines_of_the_log_name_the_call_s_span(traced: Traced) -> None:
    lines: list[Any] = []

    async def say(_rpc: Any) -> bytes:
        lines.append(add_ids(None, "info", {"event": "said"}))
        return b""

    traced.do = say
    await traced.unary()
    span = await traced.span()
    assert [(line["trace_id"], line["span_id"]) for line in lines] == [(span.trace_id, span.span_id)]
