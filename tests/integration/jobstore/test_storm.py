"""A thousand jobs, 32 in flight, through two jobstores on one database: whoever watches ends up with the table."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing

import asyncpg
import pytest
from tests.integration.jobstore.flow import COORDINATOR, a_flow, request
from tests.integration.jobstore.replay import Replay, assert_same, table

from chassis.clock import SystemClock
from chassis.errors import WaybillError
from jobstore.feed.feed import Feed
from jobstore.journal.journal import Journal
from jobstore.queries.consistency import Consistency
from jobstore.queries.queries import Queries
from jobstore.search.filter import job_filter
from jobstore.snapshots import Pool, reading_pool

JOBS = 1_000
IN_FLIGHT = 32


class Jobstore:
    """One process's worth of it."""

    def __init__(self, url: str, **feed: int) -> None:
        self._url = url
        self._options = feed
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Jobstore:
        clock = SystemClock()
        self.pool: Pool = await self._stack.enter_async_context(reading_pool(self._url))
        self.journal = await self._stack.enter_async_context(Journal(self._url, clock))
        self.feed = await self._stack.enter_async_context(
            Feed(self.pool, clock, random.Random(7), **self._options)  # type: ignore[arg-type]
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def watch(self, filter: str = "", *, resume_revision: int = 0, tree: bool = False) -> AsyncGenerator[bytes]:
        return self.feed.watch_jobs(
            job_filter(filter), resume_revision=resume_revision, tree=tree, digest=True, bookmark_interval=1
        )


class Storm:
    """Writers that end their flows well, through whichever jobstore comes next."""

    def __init__(self, jobstores: list[Jobstore], seed: int) -> None:
        self._jobstores = jobstores
        self._rng = random.Random(seed)
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self.revisions: set[int] = set()
        self.ended = 0
        self.milestones = {ended: asyncio.Event() for ended in range(100, JOBS + 1, 100)}

    async def run(self, jobs: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                await self._places.acquire()
                group.create_task(self._one())

    async def _one(self) -> None:
        try:
            flow = a_flow(owner=self._rng.choice(["anna", "ben"]))
            commits = [flow.first()]
            commits += [flow.progress(percent) for percent in (30, 60) if self._rng.random() < 0.3]
            for commit in [*commits, flow.last()]:
                jobstore = self._rng.choice(self._jobstores)
                [result] = await jobstore.journal.commit(request(commit))
                assert not result.HasField("error"), result
                self.revisions.add(result.revision)
        finally:
            self._places.release()
            self.ended += 1
            if self.ended in self.milestones:
                self.milestones[self.ended].set()


class Reader:
    """Follows a stream to the end of the storm, and then to the bookmark that proves its copy."""

    def __init__(self, filter: str = "", *, tree: bool = False, replay: Replay | None = None) -> None:
        self.filter = filter
        self.tree = tree
        self.replay = replay or Replay()

    async def follow(self, stream: AsyncIterator[bytes], last: asyncio.Future[int]) -> None:
        while not (last.done() and self.replay.snapshot_done and self.replay.revision >= last.result()):
            self.replay.take(await anext(stream))
        while not (self.replay.bookmarks and self.replay.bookmarks[-1].revision >= last.result()):
            self.replay.take(await anext(stream))

    async def check(self, queries: Queries) -> None:
        assert self.replay.bookmarks[-1].digest, "which the replay has compared with its copy"
        assert_same(self.replay.jobs, await table(queries, self.filter, tree=self.tree))


async def watch(jobstore: Jobstore, reader: Reader, last: asyncio.Future[int]) -> None:
    """One stream, from 0."""
    async with aclosing(jobstore.watch(reader.filter, tree=reader.tree)) as stream:
        await reader.follow(stream, last)


async def watch_from_the_middle(storm: Storm, jobstore: Jobstore, reader: Reader, last: asyncio.Future[int]) -> None:
    """A copy made half way, put aside, and resumed from its revision when all is over."""
    await storm.milestones[JOBS // 2].wait()
    async with aclosing(jobstore.watch(reader.filter, tree=reader.tree)) as stream:
        await reader.replay.follow(stream, lambda replay: replay.snapshot_done)
    await last
    async with aclosing(resumed(jobstore, reader)) as stream:
        await reader.follow(stream, last)


async def watch_across_restarts(url: str, storm: Storm, reader: Reader, last: asyncio.Future[int]) -> None:
    """A jobstore that goes down under its reader again and again, and comes back as another process would."""
    for ended in range(200, JOBS, 200):
        async with Jobstore(url) as jobstore:
            reading = asyncio.ensure_future(until_shut_down(jobstore, reader))
            await storm.milestones[ended].wait()
            await jobstore.feed.close()
            await reading
    async with Jobstore(url) as jobstore, aclosing(resumed(jobstore, reader)) as stream:
        await reader.follow(stream, last)


async def until_shut_down(jobstore: Jobstore, reader: Reader) -> None:
    async with aclosing(resumed(jobstore, reader)) as stream:
        with pytest.raises(WaybillError, match="shutting down"):
            await reader.replay.follow(stream, lambda replay: False)


def resumed(jobstore: Jobstore, reader: Reader) -> AsyncGenerator[bytes]:
    return jobstore.watch(reader.filter, tree=reader.tree, resume_revision=reader.replay.revision)


async def test_all_readers_end_up_with_the_table(
    database_url: str, connection: asyncpg.Connection[asyncpg.Record], queries: Queries, consistency: Consistency
) -> None:
    await connection.execute(
        "INSERT INTO coordinator_lease (counter, update_time, coordinator_id, address) VALUES (1, now(), $1, '')",
        COORDINATOR,
    )
    async with Jobstore(database_url) as one, Jobstore(database_url, window_bytes=50_000, largest_round=40) as two:
        storm = Storm([one, two], seed=2)
        last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        readers = [
            before := Reader(),
            tree := Reader(tree=True),
            on_the_other := Reader(tree=True),
            filtered := Reader("status = STARTED AND owner = anna", tree=True),
            middle := Reader(tree=True),
            middle_on_the_other := Reader("owner = ben"),
            restarted := Reader(tree=True),
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(one, before, last))
            group.create_task(watch(one, tree, last))
            group.create_task(watch(two, on_the_other, last))
            group.create_task(watch(two, filtered, last))
            group.create_task(watch_from_the_middle(storm, one, middle, last))
            group.create_task(watch_from_the_middle(storm, two, middle_on_the_other, last))
            group.create_task(watch_across_restarts(database_url, storm, restarted, last))
            await storm.run(JOBS)
            head = await connection.fetchval("SELECT revision FROM head")
            assert storm.revisions == set(range(1, head + 1)), "revisions have no gap"
            last.set_result(head + 2)
            for owner in ("ben", "anna"):  # something that every reader hears of
                await one.journal.commit(request(a_flow(owner=owner).first()))
        for reader in readers:
            await reader.check(queries)
        assert len(before.replay.jobs) == JOBS + 2
        assert await consistency.check() == []
