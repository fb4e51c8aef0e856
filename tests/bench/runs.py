"""The runs of W1: many jobs at once, and one at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psutil

import yardstick
from accounts import Account
from child import Child
from database import Counts
from figures import Latency, Throughput
from stage import Stage
from validity import Invalid

_READY_SECONDS = 60.0
_LAP_JOBS = 1000
_DELIVERY_SECONDS = 0.6
"""Within which spans are on their way: what that takes is the jobs' CPU, too."""
_SLOWEST = 20.0
"""Jobs a second below which a run is given up."""


async def warm_up(stage: Stage, *, jobs: int, in_flight: int) -> None:
    """Runs many jobs at once and forgets about it. Raises Invalid or ChildFailed."""
    await _work(stage, "warm-up", jobs, in_flight, together=1)


async def throughput(stage: Stage, name: str, *, jobs: int, in_flight: int, together: int = 1) -> Throughput:
    """Runs many jobs, `in_flight` at once, submitted in calls of `together`. Raises Invalid or ChildFailed."""
    before = await yardstick.bare_call()
    seconds, used, counts = await _work(stage, name, jobs, in_flight, together)
    after = await yardstick.bare_call()
    return Throughput(jobs, in_flight, seconds, used, counts, psutil.cpu_count() or 1, (before + after) / 2)


async def in_turns(stages: Mapping[str, Stage], *, jobs: int, in_flight: int) -> dict[str, list[Throughput]]:
    """Runs as many jobs on each stage, in laps: one after the other, each first as often as last. Raises as above."""
    laps: dict[str, list[Throughput]] = {name: [] for name in stages}
    number = max(1, round(jobs / _LAP_JOBS)) if len(stages) > 1 else 1
    for lap in range(number):
        names = list(stages)
        for name in names if lap % 2 == 0 else reversed(names):
            run = f"{name}-{lap}" if number > 1 else name
            laps[name].append(await throughput(stages[name], run, jobs=jobs // number, in_flight=in_flight))
    return laps


async def _work(stage: Stage, name: str, jobs: int, in_flight: int, together: int) -> tuple[float, Account, Counts]:
    """Runs the jobs; returns how long it took, and what it took."""
    run = stage.run(name, jobs)
    within = _READY_SECONDS + jobs / _SLOWEST
    async with _clients(stage, run, jobs, in_flight, together) as (submitter, watcher):
        accountant = stage.accountant(submitter=submitter.pid, watcher=watcher.pid)
        counts, account = await stage.database.before(), accountant.read()
        submitter.go()
        submitted, watched = await asyncio.gather(submitter.hear(within), watcher.hear(within))
        at_end = accountant.read()
        await asyncio.sleep(_DELIVERY_SECONDS)
        used = Account(accountant.read().parties, at_end.machine).since(account)
        counts = (await stage.database.after()).since(counts)
    if watched["finished"] != jobs:
        raise Invalid(f"{name}: the watcher saw {watched['finished']} of {jobs} jobs FINISHED, {watched['others']}")
    return watched["at"] - submitted["began"], used, counts


@asynccontextmanager
async def _clients(
    stage: Stage, run: str, jobs: int, in_flight: int, together: int
) -> AsyncIterator[tuple[Child, Child]]:
    """A submitter and a watcher, ready to begin, with a pipe from the one that sees ends to the one that waits."""
    described = stage.stack.describe()
    finished, saw_finished = os.pipe()
    try:
        async with (
            Child(
                "watcher",
                {"jobstore": described["jobstores"][0]["address"], "run": run, "jobs": jobs, "finished": saw_finished},
                pipes=[saw_finished],
            ) as watcher,
            Child(
                "submitter",
                {
                    "coordinator": described["coordinators"][0]["address"],
                    "run": run,
                    "jobs": jobs,
                    "in_flight": in_flight,
                    "together": together,
                    "collector": stage.collector,
                    "finished": finished,
                },
                pipes=[finished],
            ) as submitter,
        ):
            await asyncio.gather(watcher.hear(_READY_SECONDS), submitter.hear(_READY_SECONDS))
            yield submitter, watcher
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
