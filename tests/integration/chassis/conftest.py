"""A real server with a scripted service behind the chassis, and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog

from chassis import context
from chassis.channels import open_channel
from chassis.interceptor import Observer
from chassis.server import Mount, Server
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

Answer = Callable[[Any, Any], Any]


class ScriptedJobStore(jobstore_pb2_grpc.JobStoreServicer):
    """Answers as told; by default with a job named like the request's, owned by the caller."""

    def __init__(self) -> None:
        self.callers: list[context.CallContext] = []
        self.get_job: Answer = self.same_job
        self.watch: Callable[[Any, Any], AsyncIterator[Any]] = self.one_job

    async def same_job(self, request: Any, _rpc: Any) -> jobs_pb2.Job:
        return jobs_pb2.Job(job_id=request.job_id, owner=context.current().user)

    async def one_job(self, _request: Any, _rpc: Any) -> AsyncIterator[Any]:
        yield jobstore_pb2.WatchJobsResponse(revision=1)

    async def GetJob(self, request: Any, context_: Any) -> Any:
        self.callers.append(context.current())
        return await self.get_job(request, context_)

    async def WatchJobs(self, request: Any, context_: Any) -> Any:
        self.callers.append(context.current())
        async for response in self.watch(request, context_):
            yield response

    async def ListHostTasks(self, _request: Any, _context: Any) -> Any:
        self.callers.append(context.current())
        return jobstore_pb2.ListHostTasksResponse()


def mount_of(jobstore: ScriptedJobStore, *, max_message_mib: int = 4) -> Mount:
    return Mount(
        "waybill.v1.JobStore",
        jobstore,
        jobstore_pb2_grpc.add_JobStoreServicer_to_server,
        max_message_mib=max_message_mib,
    )


@asynccontextmanager
async def a_server(
    jobstore: ScriptedJobStore, *, listen: str = "127.0.0.1:0", observers: tuple[Observer, ...] = ()
) -> AsyncIterator[Server]:
    """A server that serves, and goes at once when left."""
    async with Server(listen, [mount_of(jobstore)], observers=observers, grace=0) as server:
        server.set_serving(True)
        yield server


@pytest.fixture
def jobstore() -> ScriptedJobStore:
    return ScriptedJobStore()


@pytest.fixture
async def server(jobstore: ScriptedJobStore) -> AsyncIterator[Server]:
    async with a_server(jobstore) as server:
        yield server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.address) as channel:
        yield channel


@pytest.fixture
async def plain_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of somebody who has none of our code: nothing is retried."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def plain_stub(plain_channel: grpc.aio.Channel) -> Any:
    return jobstore_pb2_grpc.JobStoreStub(plain_channel)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return jobstore_pb2_grpc.JobStoreStub(channel)


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """What is logged during the test, as events."""
    with structlog.testing.capture_logs() as lines:
        yield lines
