"""The client that submits: keeps a number of jobs under way, alone or in calls of several.

A job is under way from its submission until the watcher has seen it FINISHED: the watcher sends a byte for each, by a
pipe, and each byte lets the next job start. So neither an early answer nor a late watcher flatters the throughput.
"""

from __future__ import annotations

import asyncio
import os
import time
from itertools import islice
from typing import Any

import child
import w1
from waybill_client import WaybillClient, WaybillError
from waybill_client.client import command_request

_SECONDS = 60.0


class Submitter:
    """Submits the jobs of a run, each with a name of its own."""

    def __init__(self, client: WaybillClient, run: str, jobs: int, together: int) -> None:
        self._client = client
        self._names = w1.names(run, jobs)
        self._together = together

    async def work(self, places: asyncio.Semaphore) -> None:
        """Submits until no name is left; takes a place for each job. What is refused ends the run."""
        while names := list(islice(self._names, self._together)):
            for _ in names:
                await places.acquire()
            await (self._submit(names[0]) if self._together == 1 else self._submit_all(names))

    async def _submit(self, name: str) -> None:
        await self._client.run_command(w1.COMMAND_TYPE, w1.parameters(name), correlation_id=name, timeout=_SECONDS)

    async def _submit_all(self, names: list[str]) -> None:
        requests = [command_request(w1.COMMAND_TYPE, w1.parameters(name), correlation_id=name) for name in names]
        for answer in await self._client.run_multiple_commands(requests, timeout=_SECONDS):
            if isinstance(answer, WaybillError):
                raise answer


def places(in_flight: int, finished: int) -> asyncio.Semaphore:
    """As many places as jobs may be under way; each byte on `finished`, a pipe, gives one back."""
    free = asyncio.Semaphore(in_flight)

    def give_back() -> None:
        for _ in os.read(finished, 4096):
            free.release()

    os.set_blocking(finished, False)
    asyncio.get_running_loop().add_reader(finished, give_back)
    return free


async def main(arguments: dict[str, Any]) -> None:
    in_flight, together = arguments["in_flight"], arguments["together"]
    coordinator, collector = arguments["coordinator"], arguments["collector"]
    async with WaybillClient(coordinator, wait_for_ready=True, traces_endpoint=collector) as client:
        free = places(in_flight, arguments["finished"])
        await client.list_command_types()  # connects
        async for lap in child.orders():
            submitter = Submitter(client, lap["run"], lap["jobs"], together)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(max(1, in_flight // together)):  # one for each call that may be under way
                    group.create_task(submitter.work(free))
            child.say(began=began)


if __name__ == "__main__":
    child.run(main)
