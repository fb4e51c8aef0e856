"""Headers that nobody means well with: refused or ignored as their standards say, never logged, and nothing breaks."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.integration.chassis.raw_http2 import RawClient, raw_client
from tests.integration.chassis.scripted import ScriptedJobStore, mount_of
from tests.otlp_sink import OtlpSink, SinkSpan

from chassis import tracing
from chassis.errors import WaybillError
from chassis.server import Server
from waybill.v1 import jobstore_pb2

GET_JOB = "/waybill.v1.JobStore/GetJob"
WATCH_JOBS = "/waybill.v1.JobStore/WatchJobs"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
GOOD = f"00-{TRACE_ID}-{PARENT}-01"
EVIL = "Evil5ee"
"""In each value that is hostile, to be looked for where it must not be."""

BAD_TRACEPARENTS = {
    "nonsense": EVIL,
    "empty": "",
    "7 KiB": f"{GOOD}-{EVIL}" + "x" * 7_000,
    "version ff": f"ff-{TRACE_ID}-{PARENT}-01",
    "version 0": f"0-{TRACE_ID}-{PARENT}-01",
    "version 00 with more": f"{GOOD}-{EVIL}",
    "uppercase": f"00-{TRACE_ID.upper()}-{PARENT}-01",
    "trace id of zeros": f"00-{'0' * 32}-{PARENT}-01",
    "span id of zeros": f"00-{TRACE_ID}-{'0' * 16}-01",
    "no hexadecimal digits": f"00-{'g' * 32}-{PARENT}-01",
    "short trace id": f"00-{TRACE_ID[1:]}-{PARENT}-01",
    "short flags": f"00-{TRACE_ID}-{PARENT}-1",
    "more digits": f"00-{TRACE_ID}0-{PARENT}-01",
}
BAD_STATES = {
    "nonsense": EVIL,
    "no keys": f"=,=={EVIL},",
    "3 KiB": f"k={EVIL}" + "x" * 3_000,
    "many": ",".join(f"k{n}={EVIL}" for n in range(200)),
    "twice": f"k={EVIL},k={EVIL}",
    "percent": f"k=%0a%1b%00{EVIL}%",
}
BAD_CORRELATION_IDS = {
    "7 KiB": EVIL + "x" * 7_000,
    "blanks": f"{EVIL} {EVIL}",
    "escape": f"%1b[2J{EVIL}",
    "markup": f"<b>{EVIL}</b>",
    "quotes": f"'; DROP TABLE job; -- {EVIL}",
}
RAW = {
    "control": b"\x1b[2J" + EVIL.encode(),
    "zero": b"\0" + EVIL.encode(),
    "newline": b"a\r\nx-waybill-user: root\r\n" + EVIL.encode(),
    "not UTF-8": b"\xff\xfe\xc3\x28" + EVIL.encode(),
    "turned": "\u202e".encode() + EVIL.encode(),
    "7 KiB": b"\x80" * 7_000 + EVIL.encode(),
}


def _by_name(values: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("value", values.values(), ids=values.keys())


@pytest.fixture
async def sink() -> AsyncIterator[OtlpSink]:
    async with OtlpSink() as sink:
        yield sink


@pytest.fixture
async def server(sink: OtlpSink, jobstore: ScriptedJobStore) -> AsyncIterator[Server]:
    """One that traces."""
    async with tracing.open_tracing(sink.address, "waybill-depot") as ours:
        mount = mount_of(jobstore)
        async with Server("127.0.0.1:0", [mount], observers=[ours.observer], grace=0) as server:
            server.set_serving(True)
            yield server


@pytest.fixture
async def raw(server: Server) -> AsyncIterator[RawClient]:
    async with raw_client(server.address) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_evil_is_logged(log_lines: list[Any], caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert log_lines == []
    words = [record.getMessage() for record in caplog.get_records("call")]
    assert [
        each for each in words if not each.startswith("Executing <")
    ] == []  # asyncio's debug mode, of a slow machine


async def span_after(sink: OtlpSink, stub: Any) -> list[SinkSpan]:
    """Returns the spans of all calls so far: they are delivered in order, so one more is made and waited for."""
    await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="last"), metadata=(("traceparent", GOOD.replace("0a", "0b")),))
    spans = await sink.wait_for(lambda spans: any(span.trace_id.startswith("0b") for span in spans))
    return [span for span in spans if not span.trace_id.startswith("0b")]


async def unary(stub: Any, *metadata: tuple[str, str]) -> Any:
    call = stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"), metadata=metadata)
    await call
    return call


async def stream(stub: Any, *metadata: tuple[str, str]) -> Any:
    call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest(), metadata=metadata)
    assert [response.revision async for response in call] == [1]
    return call


@pytest.mark.parametrize("kind", [unary, stream])
class TestTraceContext:
    @_by_name(BAD_TRACEPARENTS)
    async def test_a_traceparent_that_is_none_is_ignored(
        self, plain_stub: Any, sink: OtlpSink, kind: Any, value: str
    ) -> None:
        await kind(plain_stub, ("traceparent", value))
        assert await span_after(sink, plain_stub) == []

    async def test_of_two_traceparents_grpc_passes_on_the_last(
        self, plain_stub: Any, sink: OtlpSink, kind: Any
    ) -> None:
        await kind(plain_stub, ("traceparent", GOOD), ("traceparent", EVIL))
        assert await span_after(sink, plain_stub) == []

    @pytest.mark.parametrize("header", ["tracestate", "baggage"])
    @_by_name(BAD_STATES)
    async def test_state_and_baggage_are_not_even_read(
        self, plain_stub: Any, sink: OtlpSink, kind: Any, header: str, value: str
    ) -> None:
        await kind(plain_stub, ("traceparent", GOOD), (header, value), (header, value))
        spans = await span_after(sink, plain_stub)
        assert [(span.trace_id, span.parent_span_id) for span in spans] == (
            [(TRACE_ID, PARENT)] if kind is unary else []
        )
        assert EVIL not in str(spans)

    @_by_name(BAD_CORRELATION_IDS)
    async def test_a_correlation_id_that_is_none_is_refused(
        self, plain_stub: Any, jobstore: ScriptedJobStore, kind: Any, value: str
    ) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await kind(plain_stub, ("x-correlation-id", value))
        refusal = WaybillError.from_rpc_error(failure.value)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CORRELATION_ID_INVALID")
        assert EVIL not in str(failure.value)
        echoed = dict([*failure.value.initial_metadata(), *failure.value.trailing_metadata()])
        assert uuid.UUID(str(echoed["x-correlation-id"])).version == 7
        assert jobstore.callers == []

    @pytest.mark.parametrize("header", ["traceparent", "tracestate", "baggage", "x-correlation-id", "x-waybill-user"])
    @pytest.mark.parametrize("kib", [10, 20])
    async def test_more_than_the_transport_takes_is_refused_by_it_or_by_us(
        self, plain_stub: Any, jobstore: ScriptedJobStore, kind: Any, header: str, kib: int
    ) -> None:
        """gRPC refuses some requests whose headers have more than 8 KiB, and all with more than 16."""
        code = grpc.StatusCode.OK
        try:
            await kind(plain_stub, (header, EVIL + "x" * 1024 * kib))
        except grpc.aio.AioRpcError as error:
            code = error.code()
        by_us = grpc.StatusCode.INVALID_ARGUMENT if header.startswith("x-") else grpc.StatusCode.OK
        assert code in {grpc.StatusCode.RESOURCE_EXHAUSTED, by_us if kib < 16 else None}
        assert len(jobstore.callers) == (code is grpc.StatusCode.OK)
        await kind(plain_stub)


@pytest.mark.parametrize("method", [GET_JOB, WATCH_JOBS])
class TestBytesThatNoClientSends:
    @pytest.mark.parametrize("header", [b"traceparent", b"tracestate", b"baggage", b"user-agent"])
    @_by_name(RAW)
    async def test_in_a_header_that_may_be_ignored(
        self,
        raw: RawClient,
        plain_stub: Any,
        jobstore: ScriptedJobStore,
        sink: OtlpSink,
        method: str,
        header: bytes,
        value: bytes,
    ) -> None:
        headers = [(header, value)] if header == b"traceparent" else [(b"traceparent", GOOD.encode()), (header, value)]
        assert await raw.call(method.encode(), *headers)
        assert len(jobstore.callers) == 1
        spans = await span_after(sink, plain_stub)  # which is answered: others are served as before
        assert {(span.trace_id, span.parent_span_id) for span in spans} <= {(TRACE_ID, PARENT)}
        assert header == b"user-agent" or EVIL not in str(spans)

    @pytest.mark.parametrize("header", [b"x-correlation-id", b"x-waybill-user"])
    @_by_name(RAW)
    async def test_in_a_header_that_counts(
        self, raw: RawClient, plain_stub: Any, jobstore: ScriptedJobStore, method: str, header: bytes, value: bytes
    ) -> None:
        assert await raw.call(method.encode(), (header, value))
        assert jobstore.callers == []
        await unary(plain_stub)
        assert [caller.user for caller in jobstore.callers] == ["anonymous"]


@pytest.mark.parametrize(
    "path",
    [b"/waybill.v1.JobStore/" + EVIL.encode(), b"/" * 7000, b"", b"/\x1b[2J/\n" + EVIL.encode(), b"waybill"],
    ids=["unknown", "7 KiB", "empty", "control", "no slash"],
)
async def test_a_method_that_cannot_be_is_refused(
    raw: RawClient, plain_stub: Any, jobstore: ScriptedJobStore, sink: OtlpSink, path: bytes
) -> None:
    await raw.call(path, (b"traceparent", GOOD.encode()))
    assert jobstore.callers == []
    assert EVIL not in str(await span_after(sink, plain_stub))
