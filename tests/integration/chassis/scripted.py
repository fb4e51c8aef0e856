"""A real server with a scripted service behind the chassis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from chassis import context
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
