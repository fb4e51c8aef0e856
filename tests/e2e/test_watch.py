"""Watchers of a busy store: whatever is restarted under them, each ends with exactly what the table has.

Two jobstores on one Postgres, and two coordinators that write through one each. A watcher's copy is compared in three
ways: with the digest of each bookmark, with a digest that the test makes of ListJobs, and job by job with the table.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

import asyncpg
import grpc
import pytest
import pytest_asyncio
from tests.e2e.datacentre import ABORTED, ENDS_WITHIN, FINISHED, DataCentre, assert_all_finished, data_centre

from waybill.v1 import jobstore_pb2_grpc
from waybill.v1.jobs_pb2 import Entity, EntityType, Job, JobView
from waybill.v1.jobstore_pb2 import Bookmark, WatchJobsRequest
from waybill_cli.process import Process
from waybill_client import (
    Complete,
    JobChange,
    JobsView,
    Marked,
    Resync,
    Unavailable,
    Upserted,
    WaybillClient,
    is_ended,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

JOBS, AT_ONCE = 1000, 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre with two of each, in which every coordinator writes through a jobstore of its own."""
    async with data_centre(tmp_path_factory.mktemp("busy"), jobstores=2, coordinators=2, tapped=False) as centre:
        second = centre.stack.coordinators[1]
        second.environment["COORDINATOR_JOBSTORE"] = ",".join(each.address for each in centre.stack.jobstores[::-1])
        await second.stop()
        await second.start()
        await second.serving()
        yield centre


class Watcher:
    """Follows one jobstore and keeps a copy: `async with Watcher(client) as watcher`."""

    def __init__(self, jobstore: Process, *, view: JobView.ValueType = JobView.JOB_VIEW_BASIC) -> None:
        self.copy = JobsView()
        self.bookmarks: list[Bookmark] = []
        self.mistakes: list[str] = []
        self.resyncs = 0
        self.ended = 0  # jobs
        self._ends: dict[str, asyncio.Event] = {}
        self._view = view
        self._start: dict[str, Any] = {}
        self._client = WaybillClient("127.0.0.1:1", jobstore.address, wait_for_ready=True)
        self._news = asyncio.Condition()

    def resuming(self, former: Watcher) -> Watcher:
        """Begins with what another one holds now, after the revision that it holds."""
        self.copy = JobsView.resumed(former.copy.values(), former.copy.revision)
        self.ended = sum(map(is_ended, self.copy.values()))
        self._start = {
            "resume_revision": former.copy.revision,
            "store_epoch": former.bookmarks[-1].store_epoch if former.bookmarks else "",
        }
        return self

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow())
        await self.until(lambda: self.copy.complete)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        await self._client.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds of what it has heard."""
        async with asyncio.timeout(2 * ENDS_WITHIN), self._news:
            await self._news.wait_for(lambda: self._following.done() or holds())
        if self._following.done():
            self._following.result()

    async def until_ended(self, job_id: str) -> None:
        """Waits until it has heard of the end of a job."""
        await self._end_of(job_id).wait()

    def _end_of(self, job_id: str) -> asyncio.Event:
        return self._ends.setdefault(job_id, asyncio.Event())

    async def until_marked(self, revision: int) -> None:
        """Waits for a bookmark of this revision or a later one."""
        await self.until(lambda: bool(self.bookmarks) and self.bookmarks[-1].revision >= revision)

    async def _follow(self) -> None:
        changes = self._client.watch_jobs(bookmark_interval=1, digest=True, view=self._view, **self._start)
        async for change in changes:
            async with self._news:
                self._take(change)
                self._news.notify_all()

    def _take(self, change: JobChange) -> None:
        former = self.copy.revision
        if isinstance(change, Upserted) and is_ended(change.job):
            held = self.copy.get(change.job.job_id)
            self.ended += held is None or not is_ended(held)
            self._end_of(change.job.job_id).set()
        self.copy.apply(change)
        if isinstance(change, Complete) and change.revision < former:
            self.mistakes.append(f"revision {change.revision} after {former}")
        if isinstance(change, Marked):
            self._compare(change.bookmark)
        self.resyncs += isinstance(change, Resync)

    def _compare(self, bookmark: Bookmark) -> None:
        if not bookmark.digest:  # the last one of a server that goes down
            return
        self.bookmarks.append(bookmark)
        if not self.copy.agrees_with(bookmark):
            self.mistakes.append(f"not the store's at {bookmark.revision}")


async def test_every_watcher_ends_with_the_table_whatever_is_restarted_under_it(busy: DataCentre) -> None:
    first, second = busy.stack.jobstores
    async with AsyncExitStack() as watching:
        before = await watching.enter_async_context(Watcher(first))
        restarted = await watching.enter_async_context(Watcher(second, view=JobView.JOB_VIEW_TREE))
        work = asyncio.create_task(_run_jobs(busy, before, JOBS, "w"))
        await before.until(lambda: before.ended >= JOBS // 5)
        await busy.stack.kill(second)
        await before.until(lambda: before.ended >= 2 * JOBS // 5)
        middle = await watching.enter_async_context(Watcher(first).resuming(before))
        assert 0 < len(middle.copy) < JOBS
        second.send(signal.SIGTERM)
        await before.until(lambda: before.ended >= 3 * JOBS // 5)
        await busy.stack.kill(first)  # and with it Postgres, which is its child
        jobs = await work
        assert_all_finished(jobs)
        await busy.stack.serving()
        await busy.until_rest()
        head = await busy.head()
        for watcher in (before, restarted, middle):
            await watcher.until_marked(head)
            assert (watcher.mistakes, watcher.resyncs) == ([], 0)
            await _assert_is_the_table(busy, watcher)
        assert len(middle.copy) == JOBS
    assert await busy.client.check_consistency() == []
    assert second.starts >= 3


async def test_two_jobstores_give_out_every_revision_once_and_in_order(busy: DataCentre) -> None:
    async with AsyncExitStack() as watching:
        watchers = [
            await watching.enter_async_context(Watcher(jobstore, view=view))
            for jobstore in busy.stack.jobstores
            for view in (JobView.JOB_VIEW_BASIC, JobView.JOB_VIEW_TREE)
        ]
        store = await asyncpg.connect(busy.stack.database_url)
        watching.push_async_callback(store.close)
        await store.execute(_OBSERVE_HEAD)
        entities = [_declare_entities(jobstore) for jobstore in busy.stack.jobstores]
        jobs, *_ = await asyncio.gather(_run_jobs(busy, watchers[0], 200, "o"), *entities)
        assert_all_finished(jobs)
        await busy.until_rest()
        taken = await store.fetch("SELECT revision, seen, writer FROM head_taken ORDER BY seen")
        revisions = [row["revision"] for row in taken]
        assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
        assert len({row["writer"] for row in taken}) == len(busy.stack.jobstores)
        head = await busy.head()
        assert revisions[-1] == head
        for watcher in watchers:
            await watcher.until_marked(head)
            assert (watcher.mistakes, watcher.resyncs) == ([], 0)
            await _assert_is_the_table(busy, watcher)
        assert {job.revision for job in jobs} <= set(revisions)


async def test_a_cancel_that_another_coordinator_is_asked_for_reaches_the_job(busy: DataCentre) -> None:
    await busy.program("host-1", {"verb": "simWork", "match": {"object_id": "elsewhere"}, "outcome": "hang"})
    owner, other = [
        WaybillClient(coordinator.address, busy.client.jobstore_address) for coordinator in busy.stack.coordinators
    ]
    async with owner, other:
        job = await owner.run_command("BenchWork", {"host_id": "host-1", "object_id": "elsewhere"})
        await busy.until_running(job)
        await other.cancel_job(job.job_id, "asked elsewhere")
        job = await busy.ended(job)
    assert job.status == ABORTED
    assert "asked elsewhere" in job.error.message
    assert len(await busy.events(job, "JOB_CANCELED")) == 1
    await busy.behave()


async def test_one_request_id_makes_one_job_also_at_two_coordinators(busy: DataCentre) -> None:
    clients = [
        WaybillClient(coordinator.address, busy.client.jobstore_address) for coordinator in busy.stack.coordinators
    ]
    request = {"host_id": "host-2", "object_id": "two-at-once"}
    async with clients[0], clients[1]:
        jobs = await asyncio.gather(
            *(client.run_command("BenchWork", request, request_id="both") for client in clients * 10)
        )
    assert len({job.job_id for job in jobs}) == 1
    assert_all_finished([await busy.ended(jobs[0])])
    assert await busy.effects("two-at-once") == {"simWork": 1}


async def test_readers_that_leave_amid_a_write_are_no_defects_in_the_log(busy: DataCentre) -> None:
    large = {"host_id": "host-1", "object_id": "large", "note": "x" * (250 << 10)}
    assert_all_finished(await asyncio.gather(*(busy.run("BenchWork", large) for _ in range(24))))
    await asyncio.gather(*(_glance(busy.stack.jobstores[1]) for _ in range(20)))
    async with Watcher(busy.stack.jobstores[1]):  # what those before left behind has been seen to
        log = busy.stack.jobstores[1].log.read_text()
    assert "ExecuteBatchError" not in log


# --- work ------------------------------------------------------------------------------------------------------------


async def _run_jobs(centre: DataCentre, watcher: Watcher, count: int, name: str) -> list[Job]:
    """Runs so many jobs, AT_ONCE of them under way at any time, to the ends that a watcher tells of."""
    numbers = iter(range(count))
    job_ids: set[str] = set()

    async def one_after_the_other() -> None:
        for number in numbers:
            job = await _submit(centre.client, f"{name}-{number}", number)
            job_ids.add(job.job_id)
            await watcher.until_ended(job.job_id)

    async with asyncio.timeout(4 * ENDS_WITHIN), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())
    assert len(job_ids) == count
    return [job async for job in centre.client.list_jobs(page_size=1000) if job.job_id in job_ids]


async def _submit(client: WaybillClient, request_id: str, number: int) -> Job:
    parameters = {"host_id": f"host-{number % 2 + 1}", "object_id": f"object-{number % 50}"}
    return await _until_answered(lambda: client.run_command("BenchWork", parameters, request_id=request_id, timeout=30))


async def _until_answered(ask: Callable[[], Awaitable[Job]]) -> Job:
    async with asyncio.timeout(ENDS_WITHIN):
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(0.05)  # the pause of a client whose server is down


async def _declare_entities(jobstore: Process) -> None:
    async with WaybillClient("127.0.0.1:1", jobstore.address) as client:
        for number in range(50):
            vm = Entity(entity_type=EntityType.ENTITY_TYPE_VM, entity_id=f"{jobstore.name}-{number % 5}")
            await client.put_entities([vm])


async def _glance(jobstore: Process) -> None:
    """Opens a watch of everything, reads a bit and hangs up."""
    async with grpc.aio.insecure_channel(jobstore.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        watch = jobstore_pb2_grpc.JobStoreStub(channel).WatchJobs(WatchJobsRequest(view=JobView.JOB_VIEW_TREE))
        await watch.read()


# --- what is true ----------------------------------------------------------------------------------------------------


async def _assert_is_the_table(centre: DataCentre, watcher: Watcher) -> None:
    table = {job.job_id: job async for job in centre.client.list_jobs(page_size=1000)}
    marked = watcher.bookmarks[-1]
    assert marked.matching_jobs == len(table)
    assert marked.digest == watcher.copy.digest() == _digest(table.values())
    for job_id, job in watcher.copy.items():
        basic = Job()
        basic.CopyFrom(job)
        del basic.steps[:]
        assert basic == table[job_id]
        assert all(step.status == FINISHED for step in job.steps)


def _digest(jobs: Iterable[Job]) -> str:
    """As the contract says, by hand: XOR over the jobs of the first 8 bytes of md5("job_id:revision"), as 16 digits."""
    total = 0
    for job in jobs:
        total ^= int(hashlib.md5(f"{job.job_id}:{job.revision}".encode()).hexdigest()[:16], 16)
    return format(total, "016x")


# Over the store's shoulder: every revision that is given out, by whom, in the transaction that it is given to.
_OBSERVE_HEAD = """
    CREATE TABLE head_taken (revision bigint, seen timestamptz, writer integer);
    CREATE FUNCTION note_head() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO head_taken VALUES (NEW.revision, clock_timestamp(), pg_backend_pid());
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_head AFTER UPDATE OF revision ON head FOR EACH ROW EXECUTE FUNCTION note_head();
"""
