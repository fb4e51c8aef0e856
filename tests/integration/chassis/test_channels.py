"""Channels against servers that come, go and hesitate."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.integration.chassis.scripted import ScriptedJobStore, a_server

from chassis import errors
from chassis.channels import open_channel
from chassis.server import Server
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc


class NamedJobStore(ScriptedJobStore):
    """Answers with its own name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def same_job(self, request: Any, _rpc: Any) -> jobs_pb2.Job:
        return jobs_pb2.Job(job_id=request.job_id, owner=self.name)


@pytest.fixture
async def two_servers() -> AsyncIterator[tuple[Server, Server]]:
    async with a_server(NamedJobStore("one")) as one, a_server(NamedJobStore("two")) as two:
        yield one, two


async def who_answers(stub: Any, calls: int) -> Counter[str]:
    return Counter([(await stub.GetJob(jobstore_pb2.GetJobRequest(), timeout=10)).owner for _ in range(calls)])


async def until_answered_by(stub: Any, *names: str) -> None:
    """Calls until a whole round of calls was answered by these alone."""
    async with asyncio.timeout(20):
        while set(await who_answers(stub, 6)) != set(names):
            pass


async def test_calls_go_to_several_servers_in_turn(two_servers: tuple[Server, Server]) -> None:
    async with open_channel(",".join(server.address for server in two_servers)) as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        await until_answered_by(stub, "one", "two")
        assert await who_answers(stub, 20) == {"one": 10, "two": 10}


async def test_a_server_that_says_not_serving_gets_no_calls(two_servers: tuple[Server, Server]) -> None:
    one, two = two_servers
    async with open_channel(f"{one.address},{two.address}") as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        await until_answered_by(stub, "one", "two")
        one.set_serving(False)
        await until_answered_by(stub, "two")
        one.set_serving(True)
        await until_answered_by(stub, "one", "two")


async def test_the_death_of_one_of_two_is_not_noticed(two_servers: tuple[Server, Server]) -> None:
    one, two = two_servers
    async with open_channel(f"{one.address},{two.address}") as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        await until_answered_by(stub, "one", "two")
        await one.stop(grace=0)
        assert (await who_answers(stub, 20))["two"] == 20


async def test_unavailable_is_retried_by_itself(stub: Any, jobstore: ScriptedJobStore) -> None:
    async def third_time_lucky(request: Any, rpc: Any) -> jobs_pb2.Job:
        if len(jobstore.callers) < 3:
            raise errors.unavailable("not yet")
        return await jobstore.same_job(request, rpc)

    jobstore.get_job = third_time_lucky
    job = await stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"), metadata=(("x-correlation-id", "c1"),), timeout=10)
    assert job.job_id == "j1"
    assert [caller.correlation_id for caller in jobstore.callers] == ["c1"] * 3


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
async def test_nothing_else_is_retried(stub: Any, jobstore: ScriptedJobStore, code: grpc.StatusCode) -> None:
    async def refuse(_request: Any, _rpc: Any) -> None:
        raise errors.WaybillError(code, "CONFLICT", "no")

    jobstore.get_job = refuse
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetJob(jobstore_pb2.GetJobRequest(), timeout=10)
    assert len(jobstore.callers) == 1


async def test_a_call_spans_the_restart_of_its_server(jobstore: ScriptedJobStore) -> None:
    async with a_server(jobstore) as server:
        channel = open_channel(server.address)
        stub: Any = jobstore_pb2_grpc.JobStoreStub(channel)
        await stub.GetJob(jobstore_pb2.GetJobRequest(), timeout=10)
    calling = asyncio.ensure_future(stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"), timeout=10))
    await asyncio.sleep(0)  # it has begun, with nobody there
    async with a_server(jobstore, listen=server.address):
        assert (await calling).job_id == "j1"
    await channel.close()


async def test_a_sticky_channel_stays_with_one_server_until_it_is_gone(two_servers: tuple[Server, Server]) -> None:
    one, two = two_servers
    async with open_channel(f"{one.address},{two.address}", sticky=True) as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        (name,) = await who_answers(stub, 10)
        await {"one": one, "two": two}[name].stop(grace=0)
        await until_answered_by(stub, "two" if name == "one" else "one")
