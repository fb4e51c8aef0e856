"""A process's metrics: served over HTTP, in both formats, of every call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.integration.chassis.scripted import ScriptedJobStore, a_server
from tests.scrape import OPENMETRICS, PLAIN, fetch, scrape

from chassis import errors
from chassis.clock import ManualClock, SystemClock
from chassis.metrics import LAG_SECONDS, Metrics, open_metrics
from chassis.server import CannotListen
from chassis.tallies import Counter, Gauge
from chassis.tracing import open_tracing
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

GET_JOB = "waybill.v1.JobStore/GetJob"
WATCH = "waybill.v1.JobStore/WatchJobs"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")


@pytest.fixture
async def metrics() -> AsyncIterator[Metrics]:
    async with open_metrics("127.0.0.1:0", SystemClock()) as metrics:
        yield metrics


@pytest.fixture
async def channel(jobstore: ScriptedJobStore, metrics: Metrics) -> AsyncIterator[grpc.aio.Channel]:
    """To a server whose calls are counted."""
    async with (
        open_tracing("", "waybill-test") as tracing,
        a_server(jobstore, observers=(tracing.observer, *metrics.observers)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return jobstore_pb2_grpc.JobStoreStub(channel)


class TestCalls:
    async def test_calls_are_counted_by_method_and_code_and_timed(
        self, stub: Any, jobstore: ScriptedJobStore, metrics: Metrics
    ) -> None:
        await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="a"))
        await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="b"))

        async def nowhere(_request: Any, _rpc: Any) -> Any:
            raise errors.not_found("JOB_UNKNOWN", "no such job")

        jobstore.get_job = nowhere
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="c"))

        seen = await scrape(metrics.address)
        assert seen("waybill_rpc_calls_total", method=GET_JOB, code="OK") == 2
        assert seen("waybill_rpc_calls_total", method=GET_JOB, code="NOT_FOUND") == 1
        assert seen("waybill_rpc_duration_seconds_count", method=GET_JOB) == 3
        assert 0 < seen("waybill_rpc_duration_seconds_sum", method=GET_JOB) < 60
        assert seen("waybill_rpc_open_calls", method=GET_JOB) == 0

    async def test_an_exemplar_names_the_trace_of_a_call_that_has_one(self, stub: Any, metrics: Metrics) -> None:
        await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="a"))
        assert (await scrape(metrics.address)).exemplars("waybill_rpc_duration_seconds_bucket") == []

        await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="a"), metadata=(TRACEPARENT,))
        [exemplar] = (await scrape(metrics.address)).exemplars("waybill_rpc_duration_seconds_bucket", method=GET_JOB)
        assert exemplar.labels == {"trace_id": TRACE}

    async def test_a_trace_that_nobody_records_is_no_exemplar(self, stub: Any, metrics: Metrics) -> None:
        unsampled = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-00")
        await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="a"), metadata=(unsampled,))
        assert (await scrape(metrics.address)).exemplars("waybill_rpc_duration_seconds_bucket") == []

    async def test_a_stream_is_seen_while_it_is_open_and_has_no_duration(
        self, stub: Any, jobstore: ScriptedJobStore, metrics: Metrics
    ) -> None:
        closing, closed = asyncio.Event(), asyncio.Event()

        async def until_closing(_request: Any, _rpc: Any) -> AsyncIterator[Any]:
            yield jobstore_pb2.WatchJobsResponse(revision=1)
            await closing.wait()

        jobstore.watch = until_closing
        stream = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
        await stream.read()
        assert (await scrape(metrics.address))("waybill_rpc_open_calls", method=WATCH) == 1

        closing.set()
        stream.add_done_callback(lambda _: closed.set())
        await closed.wait()
        seen = await scrape(metrics.address)
        assert seen("waybill_rpc_open_calls", method=WATCH) == 0
        assert seen("waybill_rpc_calls_total", method=WATCH, code="OK") == 1
        assert seen("waybill_rpc_duration_seconds_count", method=WATCH) == 0

    async def test_names_that_somebody_made_up_are_one(self, channel: grpc.aio.Channel, metrics: Metrics) -> None:
        for name in ("/waybill.v1.JobStore/Steal", "/no.such.Service/Call", "/ways", "/waybill.v1.JobStore/Steal/x"):
            call = channel.unary_unary(name)(b"", metadata=(("x-correlation-id", "not one!"),))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
        [family] = [each for each in (await scrape(metrics.address)).families if each.name == "waybill_rpc_calls"]
        assert {sample.labels["method"] for sample in family.samples} == {"unknown"}


class TestEndpoint:
    async def test_both_formats_say_the_same(self, metrics: Metrics) -> None:
        parcels = Counter("waybill_parcels", "Parcels.")
        metrics.add(parcels)
        parcels.add(count=3)
        for accept in (PLAIN, OPENMETRICS):
            assert (await scrape(metrics.address, accept=accept))("waybill_parcels_total") == 3

    async def test_every_process_tells_of_itself(self, metrics: Metrics) -> None:
        seen = await scrape(metrics.address)
        assert seen("waybill_build_info") == 1
        assert seen("process_resident_memory_bytes") > 1e6
        assert seen("python_info") == 1

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
            ("nonsense\r\n\r\n", "404 Not Found"),
            ("GET /metrics HTTP/1.1\r\n" + "x: y\r\n" * 200 + "\r\n", "400 Bad Request"),
            ("GET /metrics?debug=1 HTTP/1.1\r\n\r\n", "200 OK"),
        ],
    )
    async def test_it_answers_to_nothing_else(self, metrics: Metrics, request_: str, status: str) -> None:
        assert (await fetch(metrics.address, request_)).status == f"HTTP/1.1 {status}"

    async def test_a_figure_that_cannot_be_read_is_an_error_that_the_log_explains(
        self, metrics: Metrics, log_lines: list[Any]
    ) -> None:
        metrics.add(Gauge("waybill_worth", "Worth.", lambda: 1 / 0))
        reply = await fetch(metrics.address, "GET /metrics HTTP/1.1\r\n\r\n")
        assert reply.status == "HTTP/1.1 500 Internal Server Error"
        assert [line["event"] for line in log_lines if line["log_level"] == "error"] == ["metrics cannot be collected"]

    async def test_head_has_no_body(self, metrics: Metrics) -> None:
        reply = await fetch(metrics.address, "HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (reply.status, reply.body) == ("HTTP/1.1 200 OK", "")
        assert int(reply.headers["Content-Length"]) > 1000

    async def test_who_never_ends_a_request_is_hung_up_on(self, metrics: Metrics) -> None:
        assert (await fetch(metrics.address, "GET /" + "x" * 100_000)).status == ""

    async def test_a_port_has_one_endpoint(self, metrics: Metrics) -> None:
        with pytest.raises(CannotListen, match=r"cannot serve metrics on 127\.0\.0\.1:\d+: in use by another process"):
            async with open_metrics(metrics.address, SystemClock()):
                pass

    @pytest.mark.parametrize("listen", ["9464", "host:", "127.0.0.1:http"])
    async def test_an_address_that_is_none_is_said_so(self, listen: str) -> None:
        with pytest.raises(CannotListen, match="not host:port"):
            async with open_metrics(listen, SystemClock()):
                pass

    async def test_without_a_host_it_is_for_this_machine_alone(self) -> None:
        async with open_metrics(":0", SystemClock()) as metrics:
            assert metrics.address.startswith("127.0.0.1:")

    async def test_port_0_is_told_by_the_log(self, log_lines: list[Any]) -> None:
        async with open_metrics("127.0.0.1:0", SystemClock()) as metrics:
            assert [line["url"] for line in log_lines] == [f"http://{metrics.address}/metrics"]

    async def test_it_is_gone_at_the_end_also_for_whoever_is_in_the_middle(self) -> None:
        async with open_metrics("127.0.0.1:0", SystemClock()) as metrics:
            host, _, port = metrics.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /metr")
            await scrape(metrics.address)  # so that the other one is being answered, too
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))

    async def test_without_an_address_there_is_none_and_calls_are_not_looked_at(self) -> None:
        async with open_metrics("", SystemClock()) as metrics:
            metrics.add(Counter("waybill_parcels", "Parcels."))
            assert (metrics.address, metrics.observers, metrics.enabled) == ("", (), False)


async def test_a_loop_that_is_late_is_seen_to_be() -> None:
    class LateClock(ManualClock):
        async def sleep(self, seconds: float) -> None:
            self.advance(seconds + 0.07)
            late.set()
            await asyncio.Event().wait() if self.monotonic() > 2 * LAG_SECONDS else await asyncio.sleep(0)

    late = asyncio.Event()
    async with open_metrics("127.0.0.1:0", LateClock()) as metrics:
        await late.wait()
        seen = await scrape(metrics.address)
        assert seen("waybill_loop_lag_seconds_count") == 1
        assert seen("waybill_loop_lag_seconds_sum") == pytest.approx(0.07)
