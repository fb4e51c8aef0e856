"""The client that submits one job at a time, and takes the time until the answer, and until its watch shows the end."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import aclosing
from typing import Any

import child
import w1
from waybill.v1.jobs_pb2 import EXECUTION_STATUS_FINISHED
from waybill_client import WaybillClient
from waybill_client.watch import Complete, Upserted
from waybill_client.words import is_ended

_SECONDS = 60.0


class Ends:
    """When the watch showed the end of each job, by correlation id; the watch may be ahead of the answer."""

    def __init__(self) -> None:
        self._ends: defaultdict[str, asyncio.Future[float]] = defaultdict(asyncio.Future)
        self.live = asyncio.Event()
        self.failed: list[str] = []

    async def watch(self, client: WaybillClient) -> None:
        """Watches until it is cancelled."""
        async with aclosing(client.watch_jobs()) as changes:
            async for change in changes:
                if isinstance(change, Upserted) and is_ended(change.job):
                    self._end(change.job.correlation_id, change.job.status == EXECUTION_STATUS_FINISHED)
                elif isinstance(change, Complete) and change.snapshot:
                    self.live.set()

    def _end(self, name: str, well: bool) -> None:
        end = self._ends[name]
        if not end.done():
            end.set_result(time.monotonic())
            if not well:
                self.failed.append(name)

    async def of(self, name: str) -> float:
        """When the job's end was shown, once it was."""
        return await asyncio.wait_for(self._ends[name], _SECONDS)


async def main(arguments: dict[str, Any]) -> None:
    answers: list[float] = []
    ends: list[float] = []
    shown = Ends()
    async with WaybillClient(arguments["coordinator"], arguments["jobstore"], wait_for_ready=True) as client:
        watch = asyncio.create_task(shown.watch(client))
        await shown.live.wait()
        await child.until_go()
        for name in w1.names(arguments["run"], arguments["jobs"]):
            began = time.monotonic()
            await client.run_command(w1.COMMAND_TYPE, w1.parameters(name), correlation_id=name, timeout=_SECONDS)
            answers.append(time.monotonic() - began)
            ends.append(await shown.of(name) - began)
        watch.cancel()
        await asyncio.wait([watch])
    child.say(answers=answers, ends=ends, failed=shown.failed[:5])


if __name__ == "__main__":
    child.run(main)
