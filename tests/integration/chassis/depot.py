"""A small process on the chassis, for the tests of its life: `python depot.py LISTEN [BEHAVIOUR …]`.

Behaviours: `never-ready`, `early` (takes for ever to open what it needs), `deaf` (streams are not told of the end),
`doomed` (finds that it cannot go on as soon as it is asked for a job), `killing` (its server dies once it serves).
Says what happens on stdout, one word a line.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chassis import logs
from chassis.server import Mount, Server, end_process, run, serve
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc


class Depot(jobstore_pb2_grpc.JobStoreServicer):
    def __init__(self, *, doomed: bool) -> None:
        self.doomed = doomed
        self.closing = asyncio.Event()

    async def GetJob(self, request: Any, _rpc: Any) -> jobs_pb2.Job:
        if self.doomed:
            end_process("doomed")
            end_process("and still so")
        return jobs_pb2.Job(job_id=request.job_id)

    async def WatchJobs(self, _request: Any, _rpc: Any) -> AsyncIterator[Any]:
        yield jobstore_pb2.WatchJobsResponse(revision=1)
        await self.closing.wait()
        yield jobstore_pb2.WatchJobsResponse(revision=2)


@asynccontextmanager
async def resources(behaviours: set[str]) -> AsyncIterator[None]:
    say("opening")
    try:
        if "early" in behaviours:
            await asyncio.Event().wait()
        yield
    finally:
        say("closed")


def say(word: str) -> None:
    print(word, flush=True)


async def main(listen: str, behaviours: set[str]) -> None:
    depot = Depot(doomed="doomed" in behaviours)

    async def ready() -> None:
        if "never-ready" in behaviours:
            await asyncio.Event().wait()

    async def died(_server: Server) -> BaseException:
        return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "as gRPC 1.84 dies of a path")

    if "killing" in behaviours:
        Server.died = died  # type: ignore[method-assign]

    async def before_stop() -> None:
        say("telling")
        if "deaf" not in behaviours:
            depot.closing.set()

    mount = Mount("waybill.v1.JobStore", depot, jobstore_pb2_grpc.add_JobStoreServicer_to_server)
    async with resources(behaviours):
        await serve(listen, [mount], ready=ready, before_stop=before_stop, grace=30.0)


if __name__ == "__main__":
    logs.configure("depot")
    run(main(sys.argv[1], set(sys.argv[2:])))
