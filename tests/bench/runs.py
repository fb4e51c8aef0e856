"""The runs of W1: many jobs at once, and one at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psutil

import yardstick
from accounts import Account
from child import Child
from database import Counts
from figures import Latency, Throughput
from stage import Stage
from validity import Invalid

_READY_SECONDS = 60.0
_LAP_JOBS = 500
"""Short, for the machine must be the same for the laps that are compared."""
_DELIVERY_SECONDS = 0.6
"""Within which spans are on their way: what that takes is the jobs' CPU, too."""
_SLOWEST = 20.0
"""Jobs a second below which a run is given up."""


async def warm_up(stage: Stage, *, jobs: int, in_flight: int) -> None:
    """Runs many jobs at once and forgets about it. Raises Invalid or ChildFailed."""
    async with _clients(stage, in_flight, together=1) as clients:
        await clients.run("warm-up", jobs)


async def throughput(stage: Stage, name: str, *, jobs: int, in_flight: int, together: int = 1) -> Throughput:
    """Runs many jobs, `in_flight` at once, submitted in calls of `together`. Raises Invalid or ChildFailed."""
    before = await yardstick.bare_call()
    async with _clients(stage, in_flight, together) as clients:
        ran = await clients.run(name, jobs)
    after = await yardstick.bare_call()
    return ran.measured((before + after) / 2)


async def in_turns(stages: Mapping[str, Stage], *, jobs: int, in_flight: int) -> dict[str, list[Throughput]]:
    """Runs as many jobs on each stage, in laps: one after the other, each first as often as last. Raises as above."""
    laps: dict[str, list[_Ran]] = {name: [] for name in stages}
    number = max(1, round(jobs / _LAP_JOBS))
    before = await yardstick.bare_call()
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(_clients(stage, in_flight, together=1))
            for name, stage in stages.items()
        }
        for lap in range(number):
            for name in list(stages)[:: 1 if lap % 2 else -1]:
                laps[name].append(await clients[name].run(f"{name}-{lap}", max(1, jobs // number)))
    after = await yardstick.bare_call()
    return {name: [ran.measured((before + after) / 2) for ran in each] for name, each in laps.items()}


@dataclass(frozen=True)
class _Ran:
    """Jobs that ran at once, and what that took."""

    jobs: int
    in_flight: int
    seconds: float
    used: Account
    counts: Counts

    def measured(self, bare_call: float) -> Throughput:
        return Throughput(
            self.jobs, self.in_flight, self.seconds, self.used, self.counts, psutil.cpu_count() or 1, bare_call
        )


@dataclass(frozen=True)
class _Clients:
    """A submitter and a watcher, with a pipe from the one that sees ends to the one that waits."""

    stage: Stage
    in_flight: int
    submitter: Child
    watcher: Child

    async def run(self, name: str, jobs: int) -> _Ran:
        """Runs jobs."""
        run = self.stage.run(name, jobs)
        within = _READY_SECONDS + jobs / _SLOWEST
        accountant = self.stage.accountant(submitter=self.submitter.pid, watcher=self.watcher.pid)
        counts, account = await self.stage.database.before(), accountant.read()
        for client in (self.watcher, self.submitter):
            client.order(run=run, jobs=jobs)
        submitted, watched = await asyncio.gather(self.submitter.hear(within), self.watcher.hear(within))
        at_end = accountant.read()
        await asyncio.sleep(_DELIVERY_SECONDS)
        used = Account(accountant.read().parties, at_end.machine).since(account)
        counts = (await self.stage.database.after()).since(counts)
        if watched["finished"] != jobs:
            raise Invalid(f"{name}: the watcher saw {watched['finished']} of {jobs} jobs FINISHED, {watched['others']}")
        return _Ran(jobs, self.in_flight, watched["at"] - submitted["began"], used, counts)


@asynccontextmanager
async def _clients(stage: Stage, in_flight: int, together: int) -> AsyncIterator[_Clients]:
    """Clients of a stage, ready to begin."""
    described = stage.stack.describe()
    finished, saw_finished = os.pipe()
    try:
        async with (
            Child(
                "watcher",
                {"jobstore": described["jobstores"][0]["address"], "finished": saw_finished},
                pipes=[saw_finished],
            ) as watcher,
            Child(
                "submitter",
                {
                    "coordinator": described["coordinators"][0]["address"],
                    "in_flight": in_flight,
                    "together": together,
                    "collector": stage.collector,
                    "finished": finished,
                },
                pipes=[finished],
            ) as submitter,
        ):
            await asyncio.gather(watcher.hear(_READY_SECONDS), submitter.hear(_READY_SECONDS))
            yield _Clients(stage, in_flight, submitter, watcher)
    finally:
        os.close(finished)
        os.close(saw_finished)


async def latency(stage: Stage, name: str, *, jobs: int) -> Latency:
    """Runs jobs one at a time. Raises Invalid or ChildFailed."""
    described = stage.stack.describe()
    arguments = {
        "coordinator": described["coordinators"][0]["address"],
        "jobstore": described["jobstores"][0]["address"],
        "run": stage.run(name, jobs),
        "jobs": jobs,
    }
    async with Child("pacer", arguments) as pacer:
        await pacer.hear(_READY_SECONDS)
        pacer.go()
        words = await pacer.hear(_READY_SECONDS + jobs)
    if words["failed"]:
        raise Invalid(f"{name}: {words['failed']} did not FINISH")
    return Latency(words["answers"], words["ends"])
