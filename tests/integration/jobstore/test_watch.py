"""The rules of the watch, one by one, on a real database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest
from tests.integration.jobstore.replay import Replay, assert_same, digest_of, table
from tests.integration.jobstore.scribe import Scribe

from chassis.clock import Clock, ManualClock, SystemClock
from chassis.errors import WaybillError
from jobstore.feed import changes
from jobstore.feed.changes import read_digest
from jobstore.feed.feed import Feed
from jobstore.queries.queries import Queries
from jobstore.search.filter import Filter, job_filter
from jobstore.snapshots import Connection, Pool
from waybill.v1 import jobs_pb2

T = TypeVar("T")


@asynccontextmanager
async def watching(feed: Feed, filter: str = "", **options: object) -> AsyncIterator[AsyncGenerator[bytes]]:
    async with aclosing(feed.watch_jobs(job_filter(filter), **options)) as stream:  # type: ignore[arg-type]
        yield stream


@asynccontextmanager
async def a_feed(pool: Pool, clock: Clock | None = None, **options: float) -> AsyncIterator[Feed]:
    async with Feed(pool, clock or SystemClock(), random.Random(7), **options) as feed:  # type: ignore[arg-type]
        yield feed


async def refusal(feed: Feed, **options: object) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        async with watching(feed, **options) as stream:  # type: ignore[arg-type]
            await anext(stream)
    return caught.value


def descriptions(job: jobs_pb2.Job) -> list[str]:
    return [step.description for step in job.steps]


# --- rule 1: snapshot, then live; or everything after R ------------------------------------------------------------


async def test_a_watch_from_0_is_a_snapshot_then_live(scribe: Scribe, feed: Feed, queries: Queries) -> None:
    async with scribe.revision():
        there = [await scribe.add_job() for _ in range(3)]
    replay = Replay()
    async with watching(feed) as stream:
        done = await replay.follow(stream, lambda replay: replay.snapshot_done)
        assert set(replay.jobs) == set(there)
        assert done.revision == scribe.at
        async with scribe.revision():
            new = await scribe.add_job()
            await scribe.change_job(there[0], progress=50)
        await replay.to(stream, scribe.at)
    assert replay.jobs[there[0]].progress == 50
    assert new in replay.jobs
    assert_same(replay.jobs, await table(queries))


async def test_an_empty_store_has_a_snapshot_too(feed: Feed, scribe: Scribe) -> None:
    replay = Replay()
    async with watching(feed) as stream:
        await replay.to_bookmark(stream)
        assert replay.snapshot_done
        async with scribe.revision():
            job_id = await scribe.add_job()
        await replay.to(stream, scribe.at)
    assert list(replay.jobs) == [job_id]


async def test_a_resumed_watch_gets_what_came_after_and_nothing_else(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision() as first:
        await scribe.add_job()
        changed = await scribe.add_job()
    async with scribe.revision():
        await scribe.change_job(changed, progress=10)
        new = await scribe.add_job()
    replay = Replay(first)
    async with watching(feed, resume_revision=first) as stream:
        await replay.to(stream, scribe.at)
        assert sorted(job.job_id for job in replay.upserts) == sorted([changed, new])
        assert not replay.removed
        assert (await replay.to_bookmark(stream)).revision == scribe.at


async def test_a_resume_from_the_head_begins_with_a_bookmark(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision() as head:
        await scribe.add_job()
    async with watching(feed, resume_revision=head) as stream:
        response = Replay(head).take(await anext(stream))
        assert (response.bookmark.revision, len(response.changes), response.snapshot_done) == (head, 0, False)


async def test_what_changes_while_the_snapshot_is_paged_is_not_missed(
    scribe: Scribe, feed: Feed, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.feed.selections._SNAPSHOT_PAGE_OF_TREES", 2)
    monkeypatch.setattr("jobstore.feed.feed._TABLE_PAGE", 2)
    async with scribe.revision():
        there = sorted([await scribe.add_job() for _ in range(7)])
        steps = {job_id: await scribe.add_step(job_id) for job_id in there}
    replay = Replay()
    async with watching(feed, "status = STARTED", tree=True) as stream:
        pages = 0
        while not replay.snapshot_done:
            replay.take(await anext(stream))
            pages += 1
            if pages > 3:
                continue
            async with scribe.revision():  # behind, at and ahead of the cursor
                await scribe.change_step(there[0], steps[there[0]], progress=pages)
                await scribe.change_job(there[pages], progress=pages)
                await scribe.add_job()
            async with scribe.revision():
                await scribe.end_job(there[-pages])
                await scribe.delete_job(there.pop(1))
    assert pages > 4
    assert_same(replay.jobs, await table(queries, "status = STARTED", tree=True))


# --- rule 2: revisions in order ------------------------------------------------------------------------------------


async def test_the_last_message_of_a_revision_says_so_and_changes_are_folded(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision() as first:
        job_id = await scribe.add_job()
    for progress in (10, 20, 30):
        async with scribe.revision():
            await scribe.change_job(job_id, progress=progress)
    async with watching(feed, resume_revision=first) as stream:
        response = Replay(first).take(await anext(stream))
    [change] = response.changes
    assert (change.upsert.progress, change.upsert.revision, response.revision) == (30, scribe.at, scribe.at)


async def test_with_steps_the_first_upsert_is_whole_and_later_ones_are_what_changed(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        steps = [await scribe.add_step(job_id, description=name, number=n) for n, name in enumerate("VXF")]
    replay = Replay()
    async with watching(feed, tree=True) as stream:
        await replay.to_bookmark(stream)
        assert descriptions(replay.upserts[-1]) == ["V", "X", "F"]
        async with scribe.revision():
            await scribe.change_step(job_id, steps[1], status="STARTED")
        await replay.to(stream, scribe.at)
        assert descriptions(replay.upserts[-1]) == ["X"]
        async with scribe.revision():
            other = await scribe.add_job()
            await scribe.add_step(other, description="whole")
            await scribe.change_job(job_id, progress=5)
        await replay.to(stream, scribe.at)
        assert {job.job_id: descriptions(job) for job in replay.upserts[-2:]} == {other: ["whole"], job_id: []}
    assert_same(replay.jobs, await table(queries, tree=True))


async def test_a_resumed_tree_is_completed_by_the_steps_that_changed(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    async with scribe.revision() as first:
        job_id = await scribe.add_job()
        steps = [await scribe.add_step(job_id, description=name, number=n) for n, name in enumerate("VXF")]
    held = Replay()
    async with watching(feed, tree=True) as stream:
        await held.to(stream, first)
    async with scribe.revision():
        await scribe.change_step(job_id, steps[0], status="FINISHED", start_time=scribe.time)
    async with scribe.revision():
        await scribe.change_job(job_id, progress=10)
    async with watching(feed, tree=True, resume_revision=first) as stream:
        held.take(await anext(stream))
    assert descriptions(held.upserts[-1]) == ["V"]
    assert_same(held.jobs, await table(queries, tree=True))


async def test_a_step_is_not_missed_when_its_job_moves_on_before_its_page_comes(
    scribe: Scribe, feed: Feed, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.feed.feed._TABLE_PAGE", 1)
    async with scribe.revision() as first:
        other, moving = [await scribe.add_job() for _ in range(2)]
        steps = [await scribe.add_step(moving, description=name) for name in "ab"]
    held = Replay()
    async with watching(feed, tree=True) as stream:
        await held.to(stream, first)
    async with scribe.revision():
        await scribe.change_step(moving, steps[0], progress=1)
    async with scribe.revision():
        await scribe.change_job(other, progress=1)  # the first page ends here
    async with scribe.revision():
        await scribe.change_step(moving, steps[1], progress=1)
    async with watching(feed, tree=True, resume_revision=first) as stream:
        await held.to(stream, scribe.at)
    assert sorted(descriptions(held.upserts[-1])) == ["a", "b"]
    assert_same(held.jobs, await table(queries, tree=True))


async def test_a_job_of_very_many_steps_comes_in_messages_that_can_be_taken(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        await scribe.connection.execute(
            """
            INSERT INTO step (revision, status, step_type, step_id, job_id, correlation_id, description, number)
            SELECT $1, 'PENDING', 'X', gen_random_uuid(), $2, 'c-1', repeat('x', 500), n
            FROM generate_series(1, 5000) AS n
            """,
            scribe.at,
            job_id,
        )
    replay = Replay()
    async with watching(feed, tree=True) as stream:
        while not replay.snapshot_done:
            message = await anext(stream)
            assert len(message) < 3 << 20
            replay.take(message)
    assert_same(replay.jobs, await table(queries, tree=True))


# --- rule 3: filters -----------------------------------------------------------------------------------------------


async def test_a_job_that_ceases_to_match_is_taken_away_and_one_that_never_can_is_never_sent(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    mine = "status = STARTED AND owner = anna"
    async with scribe.revision():
        leaving = await scribe.add_job(owner="anna")
        other = await scribe.add_job(owner="ben")
        waiting = await scribe.add_job(owner="anna", status="PENDING")
    replay = Replay()
    async with watching(feed, mine) as stream:
        await replay.to_bookmark(stream)
        assert set(replay.jobs) == {leaving}
        async with scribe.revision():
            await scribe.end_job(leaving)
            await scribe.end_job(other)
            await scribe.change_job(waiting, status="STARTED")
        await replay.to(stream, scribe.at)
        assert (replay.removed, set(replay.jobs)) == ([leaving], {waiting})
        async with scribe.revision():
            await scribe.change_job(leaving, priority=5)
        await replay.to(stream, scribe.at)
    assert replay.removed == [leaving, leaving]  # the server keeps no memory of who holds what
    assert_same(replay.jobs, await table(queries, mine))


async def test_a_job_that_begins_to_match_comes_with_its_whole_tree(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job(status="PENDING")
        steps = [await scribe.add_step(job_id, description=name, number=n) for n, name in enumerate("VXF")]
    replay = Replay()
    async with watching(feed, "status = STARTED", tree=True) as stream:
        await replay.to_bookmark(stream)
        async with scribe.revision():
            await scribe.change_job(job_id, status="STARTED")
            await scribe.change_step(job_id, steps[0], status="STARTED")
        await replay.to(stream, scribe.at)
        assert descriptions(replay.upserts[-1]) == ["V", "X", "F"]
        async with scribe.revision():
            await scribe.change_step(job_id, steps[1], status="STARTED")
        await replay.to(stream, scribe.at)
        assert descriptions(replay.upserts[-1]) == ["X"]
    assert_same(replay.jobs, await table(queries, "status = STARTED", tree=True))


async def test_a_job_that_reaches_a_host_is_sent_to_whoever_watches_that_host(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    here = "host = host-1 AND NOT status = FINISHED"
    async with scribe.revision():
        there = await scribe.add_job()
        await scribe.add_host_task(there, host_id="host-1")
        coming = await scribe.add_job()
        elsewhere = await scribe.add_job(subjects=[("HOST", "host-2")])
    replay = Replay()
    async with watching(feed, here) as stream, watching(feed, "owner = x") as _:
        await replay.to_bookmark(stream)
        assert set(replay.jobs) == {there}
        async with scribe.revision():
            await scribe.change_job(elsewhere, progress=5)
            await scribe.add_host_task(coming, host_id="host-1")
            await scribe.change_job(coming)
        await replay.to(stream, scribe.at)
        assert set(replay.jobs) == {there, coming}
        async with scribe.revision():
            await scribe.end_job(there)
        await replay.to(stream, scribe.at)
    assert replay.removed == [elsewhere, there]
    assert_same(replay.jobs, await table(queries, here))


async def test_a_job_that_begins_to_match_by_more_than_its_status_comes_with_its_whole_tree_too(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    half = "progress >= 50"
    async with scribe.revision():
        job_id = await scribe.add_job(progress=10)
        for number, name in enumerate("VXF"):
            await scribe.add_step(job_id, description=name, number=number)
    replay, light = Replay(), Replay()
    async with watching(feed, half, tree=True) as stream, watching(feed, tree=True) as all_of_it:
        await replay.to_bookmark(stream)
        await light.to_bookmark(all_of_it)
        async with scribe.revision():
            await scribe.change_job(job_id, progress=60)
        await replay.to(stream, scribe.at)
        await light.to(all_of_it, scribe.at)
        assert descriptions(replay.upserts[-1]) == ["V", "X", "F"]
        assert descriptions(light.upserts[-1]) == [], "who asks for less is sent less"
    assert_same(replay.jobs, await table(queries, half, tree=True))


async def test_a_failing_job_is_sent_whole_to_whoever_watches_for_errors(
    scribe: Scribe, feed: Feed, queries: Queries
) -> None:
    failures = "has(error) AND error.reason = LOCKED AND duration < 1h"
    async with scribe.revision():
        job_ids = [await scribe.add_job() for _ in range(2)]
        for job_id in job_ids:
            await scribe.add_step(job_id, description="X")
    replay = Replay()
    async with watching(feed, failures, tree=True) as stream:
        await replay.to_bookmark(stream)
        for job_id, reason in zip(job_ids, ("LOCKED", "CONFLICT"), strict=True):
            error = WaybillError(grpc.StatusCode.FAILED_PRECONDITION, reason, "why").to_status().SerializeToString()
            async with scribe.revision():
                await scribe.end_job(job_id, "FAILED")
                await scribe.change_job(job_id, error=error)
        await replay.to(stream, scribe.at)
    assert [descriptions(job) for job in replay.jobs.values()] == [["X"]]
    assert_same(replay.jobs, await table(queries, failures, tree=True))


async def test_a_deleted_job_is_taken_away(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
    replay = Replay()
    async with watching(feed, "owner = anonymous") as stream:
        await replay.to_bookmark(stream)
        async with scribe.revision():
            await scribe.delete_job(job_id)
        await replay.to(stream, scribe.at)
    assert replay.removed == [job_id]
    resumed = Replay(1)
    async with watching(feed, resume_revision=1) as stream:
        await resumed.to(stream, scribe.at)
    assert resumed.removed == [job_id]


# --- rule 4: from where a watch cannot resume ----------------------------------------------------------------------


async def test_a_revision_that_is_not_kept_is_refused_with_the_oldest(scribe: Scribe, feed: Feed) -> None:
    for _ in range(4):
        async with scribe.revision():
            await scribe.add_job()
    await scribe.compact(3)
    error = await refusal(feed, resume_revision=2)
    assert (error.code.name, error.reason) == ("OUT_OF_RANGE", "REVISION_COMPACTED")
    assert error.metadata == {"oldest_revision": "3"}
    async with watching(feed, resume_revision=3) as stream:
        await Replay(3).to(stream, 4)


async def test_a_revision_of_another_store_or_from_the_future_is_refused(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        await scribe.add_job()
    epoch = await scribe.connection.fetchval("SELECT store_epoch FROM head")
    error = await refusal(feed, resume_revision=1, store_epoch="another")
    assert (error.code.name, error.reason) == ("OUT_OF_RANGE", "STORE_EPOCH_CHANGED")
    assert error.metadata == {"store_epoch": epoch}
    error = await refusal(feed, resume_revision=2, store_epoch=epoch)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "REVISION_UNKNOWN")
    assert (await refusal(feed, resume_revision=-1)).violations == (("resume_revision", "must not be negative"),)
    async with watching(feed, resume_revision=1, store_epoch=epoch) as stream:
        await anext(stream)


@pytest.mark.parametrize("change", ["store_epoch = 'restored'", "revision = 1, compacted_revision = 0"])
async def test_open_watches_are_told_when_the_store_is_another_one(change: str, scribe: Scribe, feed: Feed) -> None:
    for _ in range(3):
        async with scribe.revision():
            await scribe.add_job()
    replay = Replay()
    async with watching(feed) as stream:
        await replay.to_bookmark(stream)
        async with scribe.revision():
            await scribe.add_job()
        await replay.to(stream, scribe.at)
        await scribe.connection.execute(f"UPDATE head SET {change}")
        await scribe.connection.execute("NOTIFY waybill_revision")
        with pytest.raises(WaybillError) as caught:
            await replay.to(stream, 100)
    assert caught.value.reason == "STORE_EPOCH_CHANGED"


# --- rule 5: slow readers ------------------------------------------------------------------------------------------


async def test_a_slow_reader_gets_later_states_folded_and_holds_up_nobody(
    scribe: Scribe, pool: Pool, queries: Queries
) -> None:
    async with scribe.revision():
        job_ids = [await scribe.add_job() for _ in range(10)]
    slow, quick = Replay(), Replay()
    async with (
        a_feed(pool, window_bytes=10_000) as feed,
        watching(feed, tree=True) as slow_stream,
        watching(feed) as quick_stream,
    ):
        await slow.to_bookmark(slow_stream)
        await quick.to_bookmark(quick_stream)
        for progress in range(1, 21):
            async with scribe.revision():
                for job_id in job_ids:
                    await scribe.change_job(job_id, progress=progress)
                await scribe.add_step(job_ids[progress % 10])
            await quick.to(quick_stream, scribe.at)  # while the other does not read at all
        before = len(slow.upserts)
        await slow.to(slow_stream, scribe.at)
    assert len(slow.upserts) - before < 2 * len(job_ids)
    assert len(quick.upserts) > 18 * len(job_ids)
    assert_same(slow.jobs, await table(queries, tree=True))
    assert_same(quick.jobs, await table(queries))


async def test_more_at_once_than_is_read_at_once_comes_from_the_table(
    scribe: Scribe, pool: Pool, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.feed.feed._TABLE_PAGE", 10)
    replay = Replay()
    async with a_feed(pool, largest_round=15) as feed, watching(feed) as stream:
        await replay.to_bookmark(stream)
        for ring in (False, True):  # one round for both
            async with scribe.revision(ring=ring):
                for _ in range(40):
                    await scribe.add_job()
        await replay.to(stream, scribe.at)
        assert len(replay.jobs) == 80
        async with scribe.revision():
            await scribe.add_job()
        await replay.to(stream, scribe.at)
    assert_same(replay.jobs, await table(queries))


async def test_a_reader_that_leaves_is_forgotten_and_nobody_watching_is_no_work(scribe: Scribe, pool: Pool) -> None:
    async with a_feed(pool) as feed:
        async with watching(feed) as stream:
            await Replay().to_bookmark(stream)
        async with asyncio.timeout(10):
            while pool.get_size() != pool.get_idle_size():  # noqa: ASYNC110 - until the reader has put its own back
                await asyncio.sleep(0)
        async with scribe.revision():
            job_id = await scribe.add_job()
        replay = Replay()
        async with watching(feed) as stream:
            await replay.to_bookmark(stream)
            async with scribe.revision():
                await scribe.change_job(job_id, progress=1)
            await replay.to(stream, scribe.at)
        assert replay.jobs[job_id].progress == 1


# --- rule 6: bookmarks and digests ---------------------------------------------------------------------------------


async def pass_time(clock: ManualClock, awaited: asyncio.Future[T]) -> T:
    """Lets time pass, as fast as those who sleep notice, until something has happened."""
    while not awaited.done():
        if clock.sleeping:
            clock.advance(1.0)
        await asyncio.wait((awaited,), timeout=0.005)
    return await awaited


async def test_silence_is_broken_by_a_bookmark(scribe: Scribe, pool: Pool) -> None:
    clock = ManualClock()
    async with scribe.revision() as first:
        await scribe.add_job()
    async with (
        a_feed(pool, clock) as feed,
        watching(feed, "owner = x", bookmark_interval=5) as stream,
        watching(feed) as other_stream,
    ):
        replay, other = Replay(), Replay()
        await replay.to_bookmark(stream)
        await other.to_bookmark(other_stream)
        async with scribe.revision():
            await scribe.add_job()  # matches nothing: not a word about it, but the bookmark moves on
        await other.to(other_stream, scribe.at)
        silent_since = clock.monotonic()
        response = replay.take(await pass_time(clock, asyncio.ensure_future(anext(stream))))
        assert clock.monotonic() - silent_since >= 5
        assert response.bookmark.revision == scribe.at == first + 1
        assert response.bookmark.digest == ""
        assert response.bookmark.store_epoch == await scribe.connection.fetchval("SELECT store_epoch FROM head")


async def test_a_digest_proves_the_copy(scribe: Scribe, pool: Pool, queries: Queries) -> None:
    clock = ManualClock()
    async with scribe.revision():
        job_ids = [await scribe.add_job() for _ in range(9)]
    async with a_feed(pool, clock) as feed, watching(feed, "status = STARTED", digest=True) as stream:
        replay = Replay()
        bookmark = await replay.to_bookmark(stream)
        assert (bookmark.matching_jobs, bookmark.digest) == (9, replay.digest())
        async with scribe.revision():
            await scribe.end_job(job_ids.pop())
            await scribe.change_job(job_ids[0], progress=3)
        await replay.to(stream, scribe.at)
        bookmark = await pass_time(clock, asyncio.ensure_future(replay.to_bookmark(stream)))
        assert (bookmark.matching_jobs, bookmark.digest) == (8, replay.digest())
        assert bookmark.digest == digest_of((await table(queries, "status = STARTED")).values())


async def test_a_digest_is_of_what_was_sent_whatever_is_committed_meanwhile(
    scribe: Scribe, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scribe.revision() as first:
        await scribe.add_job()

    async def slow_digest(connection: Connection, filter: Filter) -> tuple[int, str]:
        async with scribe.revision():
            await scribe.add_job()
        return await read_digest(connection, filter)

    monkeypatch.setattr("jobstore.feed.selections.read_digest", slow_digest)
    async with watching(feed, digest=True) as stream:
        bookmark = await Replay().to_bookmark(stream)  # which compares it with the copy
    assert (bookmark.revision, bookmark.matching_jobs) == (first, 1)


async def test_head_rows_and_digest_are_of_one_snapshot(
    scribe: Scribe, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scribe.revision() as first:
        job_id = await scribe.add_job()
    held = Replay()
    async with watching(feed) as stream:
        await held.to(stream, first)
    async with scribe.revision() as second:
        await scribe.change_job(job_id, progress=1)
    read_jobs = changes._jobs

    async def slow_jobs(*arguments: Any) -> Any:
        async with scribe.revision():
            await scribe.change_job(job_id, progress=2)
        return await read_jobs(*arguments)

    monkeypatch.setattr(changes, "_jobs", slow_jobs)
    async with watching(feed, resume_revision=first, digest=True) as stream:
        bookmark = await held.to_bookmark(stream)  # which compares it with the copy
    assert (bookmark.revision, held.jobs[job_id].progress) == (second, 1)


async def test_the_digest_of_nothing_is_zero(feed: Feed) -> None:
    async with watching(feed, digest=True) as stream:
        bookmark = await Replay().to_bookmark(stream)
    assert (bookmark.matching_jobs, bookmark.digest) == (0, "0" * 16)


# --- rule 7: the server closes -------------------------------------------------------------------------------------


async def test_a_server_that_closes_sends_a_last_bookmark_then_unavailable(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        await scribe.add_job()
    replay = Replay()
    async with watching(feed) as stream:
        await replay.to_bookmark(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(feed.close())
        assert replay.take(await waiting).bookmark.revision == scribe.at
        with pytest.raises(WaybillError) as caught:
            await anext(stream)
        await closing
    assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert (await refusal(feed)).reason == "SHUTTING_DOWN"


async def test_closing_does_not_wait_for_a_reader_that_does_not_read(scribe: Scribe, pool: Pool) -> None:
    clock = ManualClock()
    async with a_feed(pool, clock) as feed, watching(feed) as stream:
        await Replay().to_bookmark(stream)
        await pass_time(clock, asyncio.ensure_future(feed.close(patience=2.0)))


# --- what goes wrong -----------------------------------------------------------------------------------------------


async def test_watches_stay_open_and_miss_nothing_when_the_database_is_lost(
    scribe: Scribe, feed: Feed, queries: Queries, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    replay = Replay()
    async with watching(feed) as stream:
        await replay.to_bookmark(stream)
        for _ in range(3):
            await connection.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                """
            )
            async with scribe.revision():
                await scribe.add_job()
            await replay.to(stream, scribe.at)
    assert_same(replay.jobs, await table(queries))


async def test_a_doorbell_that_is_not_heard_is_made_up_for_by_the_poll(scribe: Scribe, pool: Pool) -> None:
    clock = ManualClock()
    replay = Replay()
    async with a_feed(pool, clock, poll_seconds=3) as feed, watching(feed) as stream:
        await replay.to_bookmark(stream)
        async with scribe.revision():
            await scribe.add_job()
        await replay.to(stream, scribe.at)
        async with scribe.revision(ring=False):
            await scribe.change_job(*replay.jobs, progress=7)
        await pass_time(clock, asyncio.ensure_future(replay.to(stream, scribe.at)))
    assert [job.progress for job in replay.jobs.values()] == [7]
