"""A whole process, from `listening` to its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.chassis.raw_http2 import raw_client

from chassis.channels import open_channel
from chassis.lifetime import SUPERVISOR_FD
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

DEPOT = Path(__file__).with_name("depot.py")


class Process:
    """A running depot, read line by line."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.address = ""

    async def line(self) -> str:
        assert self._child.stdout is not None
        return (await asyncio.wait_for(self._child.stdout.readline(), 20)).decode().strip()

    async def listening(self) -> None:
        while not self.address:
            word, _, rest = (await self.line()).partition(" ")
            self.address = rest if word == "listening" else ""

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    async def ended(self) -> tuple[int, list[str], str]:
        """Returns its exit code, what it said since, and what it complained of."""
        out, complaints = await asyncio.wait_for(self._child.communicate(), 20)
        assert self._child.returncode is not None
        return self._child.returncode, out.decode().split(), complaints.decode()


@asynccontextmanager
async def a_process(listen: str, *behaviours: str, supervisor: int | None = None) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(DEPOT),
        listen,
        *behaviours,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **({SUPERVISOR_FD: str(supervisor)} if supervisor is not None else {})},
        pass_fds=() if supervisor is None else (supervisor,),
    )
    try:
        yield Process(child)
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()


@pytest.fixture
async def depot() -> AsyncIterator[Process]:
    async with a_process("127.0.0.1:0") as process:
        await process.listening()
        yield process


@asynccontextmanager
async def a_stub(process: Process) -> AsyncIterator[Any]:
    async with open_channel(process.address) as channel:
        yield jobstore_pb2_grpc.JobStoreStub(channel)


async def test_it_says_where_it_listens_and_serves_there(depot: Process) -> None:
    async with a_stub(depot) as stub:
        assert (await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"), timeout=10)).job_id == "j1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_tells_the_streams_ends_them_and_exits_cleanly(depot: Process, number: signal.Signals) -> None:
    async with a_stub(depot) as stub:
        watch = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
        assert (await watch.read()).revision == 1
        depot.signal(number)
        assert [response.revision async for response in _rest_of(watch)] == [2]
    code, said, _ = await depot.ended()
    assert (code, said) == (0, ["telling", "closed"])


async def _rest_of(watch: Any) -> AsyncIterator[Any]:
    while (response := await watch.read()) is not grpc.aio.EOF:
        yield response


async def test_the_second_signal_exits_at_once() -> None:
    async with a_process("127.0.0.1:0", "deaf") as depot:
        await depot.listening()
        async with a_stub(depot) as stub:
            watch = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
            await watch.read()
            depot.signal(signal.SIGTERM)
            assert await depot.line() == "telling"
            depot.signal(signal.SIGTERM)
            code, said, _ = await depot.ended()
            assert (code, said) == (1, [])


async def test_it_ends_with_its_supervisor() -> None:
    ours, theirs = os.pipe()
    async with a_process("127.0.0.1:0", supervisor=ours) as depot:
        os.close(ours)
        await depot.listening()
        os.close(theirs)
        code, said, _ = await depot.ended()
        assert (code, said) == (0, ["telling", "closed"])


async def test_it_is_not_serving_until_it_is_ready_and_may_be_ended_before() -> None:
    async with a_process("127.0.0.1:0", "never-ready") as depot:
        await depot.listening()
        async with grpc.aio.insecure_channel(depot.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            response = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        depot.signal(signal.SIGTERM)
        code, said, _ = await depot.ended()
        assert (code, said) == (0, ["telling", "closed"])


async def test_ended_while_it_opens_what_it_needs_it_closes_that() -> None:
    async with a_process("127.0.0.1:0", "early") as depot:
        assert await depot.line() == "opening"
        depot.signal(signal.SIGTERM)
        code, said, _ = await depot.ended()
        assert (code, said) == (0, ["closed"])


async def test_that_cannot_go_on_it_drains_like_any_other_and_exits_with_1() -> None:
    async with a_process("127.0.0.1:0", "doomed") as depot:
        await depot.listening()
        async with a_stub(depot) as stub:
            assert (await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"), timeout=10)).job_id == "j1"
        code, said, _ = await depot.ended()
        assert (code, said) == (1, ["telling", "closed"])


async def test_on_a_port_that_is_taken_it_says_so_and_exits_with_3(depot: Process) -> None:
    async with a_process(depot.address) as second:
        code, said, complaints = await second.ended()
        assert (code, said) == (3, ["opening", "closed"])
        assert (
            complaints.strip() == f"cannot listen on {depot.address}: in use by another process, or not of this machine"
        )


async def test_a_paused_server_is_given_up_long_before_the_deadline(depot: Process) -> None:
    async with a_stub(depot) as stub:
        watch = stub.WatchJobs(jobstore_pb2.WatchJobsRequest(), timeout=60)
        await watch.read()
        depot.signal(signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await asyncio.wait_for(watch.read(), 15)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_process_whose_server_dies_ends_so_that_a_supervisor_begins_another() -> None:
    async with a_process("127.0.0.1:0", "killing") as depot:
        code, said, complaints = await depot.ended()
    assert (code, said[0], said[-1]) == (1, "opening", "closed")
    assert "the server died" in complaints


async def test_a_path_that_is_not_utf_8_harms_nobody_else(depot: Process) -> None:
    """gRPC's own server dies of it from 1.84 on, which anybody could send: one more reason for the bound on it."""
    async with raw_client(depot.address) as client:
        await client.call(b"/waybill.v1.JobStore/\xff")
    async with open_channel(depot.address) as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        job = await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j"), timeout=10)
    assert job.job_id == "j"
