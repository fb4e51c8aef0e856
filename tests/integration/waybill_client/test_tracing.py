"""The spans of a client's calls: by OpenTelemetry's SDK and by the client itself, the same to whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.integration.waybill_client.far_end import Context, ScriptedCoordinator, refuse
from tests.otlp_sink import OtlpSink, SinkSpan

from waybill.v1.coordinator_pb2 import RunCommandRequest
from waybill.v1.jobs_pb2 import Job
from waybill_client import InvalidArgument, WaybillClient

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = "waybill.v1.Coordinator/RunCommand"

OpenClient = Callable[[], AbstractAsyncContextManager[WaybillClient]]


@asynccontextmanager
async def by_the_sdk(address: str, collector: str) -> AsyncIterator[WaybillClient]:
    provider = TracerProvider(resource=Resource.create({"service.name": "waybill-client"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=collector, insecure=True, timeout=5)))
    async with WaybillClient(address, address, tracer_provider=provider) as client:
        yield client
    await asyncio.to_thread(provider.shutdown)  # the collector runs in this loop


@asynccontextmanager
async def by_itself(address: str, collector: str) -> AsyncIterator[WaybillClient]:
    async with WaybillClient(address, address, traces_endpoint=collector) as client:
        yield client


@pytest.fixture
async def sink() -> AsyncIterator[OtlpSink]:
    async with OtlpSink() as sink:
        yield sink


@pytest.fixture
def address(client: WaybillClient) -> str:
    return client.coordinator_address


@pytest.fixture(params=[by_the_sdk, by_itself])
def open_client(request: pytest.FixtureRequest, address: str, sink: OtlpSink) -> OpenClient:
    return lambda: request.param(address, sink.address)


@contextmanager
def inside(span_id: str = SPAN, *, sampled: bool = True, **of_baggage: str) -> Iterator[None]:
    """As within a span of the application's."""
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
    above = trace.SpanContext(int(TRACE, 16), int(span_id, 16), is_remote=False, trace_flags=flags)
    within = trace.set_span_in_context(trace.NonRecordingSpan(above))
    for name, value in of_baggage.items():
        within = baggage.set_baggage(name, value, within)
    token = otel_context.attach(within)
    try:
        yield
    finally:
        otel_context.detach(token)


async def the_span(sink: OtlpSink) -> SinkSpan:
    [span] = await sink.wait_for(lambda spans: len(spans) > 0)
    return span


async def test_an_action_begins_a_trace_that_its_metadata_carries_on(
    open_client: OpenClient, coordinator: ScriptedCoordinator, sink: OtlpSink
) -> None:
    async with open_client() as client:
        await client.run_command("AddDisk", correlation_id="c-1")
    span = await the_span(sink)
    assert (span.service, span.name, span.kind, span.parent_span_id) == ("waybill-client", CALL, "CLIENT", "")
    assert (span.status, span.links, list(span.events)) == ("UNSET", [], [])
    assert 0 <= span.end - span.start < 60
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "waybill.v1.Coordinator",
        "rpc.method": "RunCommand",
        "rpc.grpc.status_code": 0,
        "correlation_id": "c-1",
        "job.id": "j1",
    }
    metadata = coordinator.metadata[0]
    *place, flags = str(metadata["traceparent"]).split("-")
    assert (place, int(flags, 16) & 1) == (["00", span.trace_id, span.span_id], 1)
    assert metadata["baggage"] == "correlation_id=c-1"


async def test_each_call_has_a_span_of_its_own(open_client: OpenClient, sink: OtlpSink) -> None:
    async with open_client() as client:
        for _ in range(3):
            await client.run_command("AddDisk")
    spans = await sink.wait_for(lambda spans: len(spans) == 3)
    assert len({span.trace_id for span in spans}) == len({span.span_id for span in spans}) == 3


async def test_a_call_belongs_below_the_application_s_span(
    open_client: OpenClient, coordinator: ScriptedCoordinator, sink: OtlpSink
) -> None:
    async with open_client() as client:
        with inside(tenant="blue"):
            await client.run_command("AddDisk", correlation_id="c-1")
    span = await the_span(sink)
    assert (span.trace_id, span.parent_span_id) == (TRACE, SPAN)
    assert str(coordinator.metadata[0]["baggage"]).split(",") == ["tenant=blue", "correlation_id=c-1"]


async def test_what_the_application_does_not_record_is_not_recorded_but_carried_on(
    open_client: OpenClient, coordinator: ScriptedCoordinator, sink: OtlpSink
) -> None:
    async with open_client() as client:
        with inside(sampled=False):
            await client.run_command("AddDisk")
    version, trace_id, _, flags = str(coordinator.metadata[0]["traceparent"]).split("-")
    assert (version, trace_id, flags, sink.spans) == ("00", TRACE, "00", [])


async def test_a_read_is_part_of_a_trace_or_has_none(open_client: OpenClient, sink: OtlpSink) -> None:
    async with open_client() as client:
        await client.check_consistency()
        with inside():
            await client.check_consistency()
    span = await the_span(sink)
    assert (span.name, span.parent_span_id) == ("waybill.v1.JobStore/CheckConsistency", SPAN)


async def test_a_refused_call_is_an_error_with_its_code(
    open_client: OpenClient, coordinator: ScriptedCoordinator, sink: OtlpSink
) -> None:
    async def refused(_: RunCommandRequest, context: Context) -> Job:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "PARAMETERS_INVALID", "size_mb: is missing")
        raise AssertionError

    coordinator.answer = refused
    async with open_client() as client:
        with pytest.raises(InvalidArgument) as raised:
            await client.run_command("AddDisk", correlation_id="c-1")
    span = await the_span(sink)
    assert (span.status, span.message) == ("ERROR", str(raised.value))
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert span.attributes["correlation_id"] == "made-by-the-service"


async def test_a_caller_who_leaves_ends_the_call_and_its_span(
    open_client: OpenClient, coordinator: ScriptedCoordinator, sink: OtlpSink
) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def never(_: RunCommandRequest, __: Context) -> Job:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    coordinator.answer = never
    async with open_client() as client:
        call = asyncio.create_task(client.run_command("AddDisk"))
        await arrived.wait()
        call.cancel()
        await left.wait()
    span = await the_span(sink)
    assert (span.status, span.attributes["rpc.grpc.status_code"]) == ("ERROR", grpc.StatusCode.CANCELLED.value[0])


async def test_without_a_collector_there_is_no_trace(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    await client.run_command("AddDisk", correlation_id="c-1")
    assert not {"traceparent", "tracestate", "baggage"} & set(coordinator.metadata[0])


async def test_a_collector_that_is_away_costs_nobody_his_call(
    address: str, sink: OtlpSink, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waybill_client.tracing._FLUSH_SECONDS", 0.5)
    await sink.stop()
    async with by_itself(address, sink.address) as client:
        assert (await client.run_command("AddDisk")).job_id == "j1"
    assert "spans that the collector did not take in time: 1" in caplog.messages


async def test_opentelemetry_s_variables_describe_the_process(
    address: str, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "portal")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test%20bed,nonsense")
    async with by_itself(address, sink.address) as client:
        await client.run_command("AddDisk")
    span = await the_span(sink)
    assert (span.service, span.resource["deployment.environment"]) == ("portal", "test bed")
    assert "nonsense" not in span.resource


def test_an_address_that_is_none_is_refused_before_any_call_is_made() -> None:
    for argument in ("coordinator", "jobstore", "traces_endpoint"):
        malformed: dict[str, Any] = {argument: "here:4317,there:4317"}
        with pytest.raises(ValueError, match=f"{argument}: several addresses"):
            WaybillClient(**malformed)


def test_spans_have_one_maker() -> None:
    with pytest.raises(ValueError, match="not both"):
        WaybillClient(tracer_provider=TracerProvider(shutdown_on_exit=False), traces_endpoint="127.0.0.1:4317")
