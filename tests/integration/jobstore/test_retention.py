"""What is removed in time, what is removed by hand, and what never is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.flow import COORDINATOR, Flow, a_flow, hashed, request
from tests.integration.jobstore.processes import a_jobstore, await_listening, end
from tests.integration.jobstore.replay import Replay, assert_same, table
from tests.integration.jobstore.scribe import Scribe

from chassis.clock import ManualClock, SystemClock, Uuid7Ids
from chassis.errors import WaybillError
from jobstore import sweeper as sweeping
from jobstore.feed.feed import Feed
from jobstore.journal import deletion as deleting
from jobstore.journal.deletion import Actor, Deletion
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.queries.consistency import Consistency
from jobstore.queries.queries import Queries
from jobstore.search.filter import job_filter
from jobstore.settings import Retention
from jobstore.snapshots import Pool
from jobstore.sweeper import Sweeper
from waybill.v1.jobs_pb2 import Event
from waybill.v1.jobstore_pb2 import DeleteJobRequest, DeleteJobsRequest, FlowCommitResult, ListEventsRequest

HOUR, DAY = 3_600, 86_400
PRODUCT = Retention(finished=DAY, others=7 * DAY, tombstones=HOUR)
ANNA = Actor("anna", "req-1")
_WAITING_FOR_A_LOCK = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
_ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
TABLES = ["job", "job_subject_entity", "step", "command", "host_task", "entity_lock", "flow_request"]

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    async with Journal(database_url, SystemClock()) as journal:
        yield journal


@pytest.fixture
def deletion(journal: Journal) -> Deletion:
    return Deletion(journal, Uuid7Ids())


@pytest.fixture
def sweeper(pool: Pool, deletion: Deletion) -> Sweeper:
    return a_sweeper(pool, deletion)


def a_sweeper(pool: Pool, deletion: Deletion, clock: ManualClock | None = None, **kept: float) -> Sweeper:
    return Sweeper(pool, deletion, clock or ManualClock(), Retention(**(vars(PRODUCT) | kept)))


@pytest.fixture
async def past(scribe: Scribe) -> Past:
    return Past(scribe)


class Past:
    """Writes jobs that ended a while ago. Begins ten days ago; what comes later was later."""

    def __init__(self, scribe: Scribe) -> None:
        self.scribe = scribe

    async def job(self, ago: float, status: str = "FINISHED", **columns: Any) -> str:
        """A job with one of everything, all over, and a task that is cleared."""
        scribe = self.scribe
        time = datetime.now(UTC) - timedelta(seconds=ago)
        async with scribe.revision():
            scribe.time = time
            job_id = await scribe.add_job(
                status=status, subjects=[("VM", "vm-1")], create_time=time - timedelta(seconds=5), **columns
            )
            await scribe.add_step(job_id, status="FINISHED")
            await scribe.add_command(
                job_id, parent_command_id=await scribe.root_of(job_id), status="ENDED_SUCCESSFULLY"
            )
            await scribe.add_host_task(job_id, result="SUCCESS", cleared=True)
            await scribe.add_event("DISK_ILLEGAL", job_id=job_id, correlation_id="c-1")
        return job_id


async def left(connection: Connection) -> set[str]:
    return {row["job_id"] for row in await connection.fetch("SELECT job_id FROM job")}


async def rows_of(connection: Connection, job_id: str) -> dict[str, int]:
    """How many rows of each table are a job's."""
    counts = {
        name: await connection.fetchval(f"SELECT count(*) FROM {name} WHERE job_id = $1", job_id)
        for name in [*TABLES, "event"]
    }
    return {name: count for name, count in counts.items() if count}


async def until(is_so: Callable[[], Awaitable[object]]) -> None:
    """Asks again and again; the test's own time limit is the deadline."""
    while not await is_so():  # noqa: ASYNC110 - the condition is the database's, or a manual clock's
        await asyncio.sleep(0)


async def pass_time(clock: ManualClock, sweeper: Sweeper, end: str, times: int = 1) -> None:
    """Lets the sweeper sweep once; it ends so for the nth time."""

    async def rests() -> bool:
        return clock.sleeping > 0

    async def has_swept() -> bool:
        return sweeper.metrics.sweeps[(end,)] >= times

    await until(rests)
    clock.advance(300)
    await until(has_swept)


@contextmanager
def refused(reason: str, code: str = "FAILED_PRECONDITION") -> Iterator[WaybillError]:
    with pytest.raises(WaybillError) as caught:
        yield WaybillError  # type: ignore[misc]
    assert (caught.value.reason, caught.value.code.name) == (reason, code)


# --- two times to live ---------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §4: Retention: two times to live, one for jobs that ended well, one for the others")
async def test_what_was_kept_for_long_enough_is_removed(past: Past, sweeper: Sweeper, connection: Connection) -> None:
    await past.job(8 * DAY, "FAILED")
    await past.job(7 * DAY + 60, "UNKNOWN")
    failed = [await past.job(7 * DAY - 60, status) for status in ("FAILED", "ABORTED", "SKIPPED")]
    await past.job(2 * DAY)
    await past.job(DAY + 60)
    young = [await past.job(DAY - 60), await past.job(60)]
    assert await sweeper.sweep() == "swept"
    assert await left(connection) == {*failed, *young}
    assert await sweeper.sweep() == "idle"
    assert sweeper.metrics.jobs[("sweep",)] == 4


@pytest.mark.rule("semantics §4: Retention: −1 = for ever")
async def test_for_ever_is_for_ever(past: Past, pool: Pool, deletion: Deletion, connection: Connection) -> None:
    finished, failed = await past.job(900 * DAY), await past.job(800 * DAY, "FAILED")
    assert await a_sweeper(pool, deletion, finished=-1, others=-1).sweep() == "idle"
    assert await left(connection) == {finished, failed}
    await a_sweeper(pool, deletion, finished=-1).sweep()
    assert await left(connection) == {finished}
    await a_sweeper(pool, deletion, finished=0).sweep()
    assert await left(connection) == set()


@pytest.mark.rule("semantics §4: the job, its steps, commands, cleared tasks and events whole")
async def test_a_job_goes_whole_and_nothing_else_goes(
    past: Past, sweeper: Sweeper, connection: Connection, scribe: Scribe, consistency: Consistency
) -> None:
    old, young = await past.job(2 * DAY), await past.job(60)
    async with scribe.revision():
        await scribe.add_event("HOST_LOST")
    before = await rows_of(connection, young)
    assert await rows_of(connection, old) == before
    assert before == {"job": 1, "job_subject_entity": 1, "step": 1, "command": 2, "host_task": 1, "event": 1}
    await sweeper.sweep()
    assert await rows_of(connection, old) == {}
    assert await rows_of(connection, young) == before
    assert await rows_of(connection, "") == {"event": 1}
    assert await consistency.check() == []


@pytest.mark.rule("semantics §4: with its tombstone, in one transaction")
async def test_whoever_watches_is_told(
    past: Past, sweeper: Sweeper, feed: Feed, queries: Queries, connection: Connection, scribe: Scribe
) -> None:
    old, young = await past.job(2 * DAY), await past.job(60)
    since = scribe.at
    replay = Replay()
    async with aclosing(feed.watch_jobs(job_filter("status = FINISHED"))) as stream:
        await replay.to_bookmark(stream)
        assert set(replay.jobs) == {old, young}
        await sweeper.sweep()
        await replay.to(stream, since + 1)
    assert (replay.removed, replay.revision) == ([old], since + 1)
    assert_same(replay.jobs, await table(queries))
    modified = await queries.modified_jobs(since, "", 50, job_filter(""))
    assert (modified.removed_job_ids, modified.revision) == ([old], since + 1)


@pytest.mark.rule("semantics §4: Never a job without an end or with an uncleared task")
async def test_what_is_not_over_never_goes(
    past: Past, scribe: Scribe, sweeper: Sweeper, deletion: Deletion, connection: Connection
) -> None:
    running, uncleared, live, holding = [await past.job(9 * DAY) for _ in range(4)]
    async with scribe.revision():
        await connection.execute("UPDATE job SET status = 'STARTED', end_time = NULL WHERE job_id = $1", running)
        await scribe.add_host_task(uncleared, result="SUCCESS")
        await scribe.add_command(live, parent_command_id=await scribe.root_of(live), status="ACTIVE")
        await scribe.add_lock(holding, ("VM", "vm-1"))
        await connection.execute("UPDATE job SET revision = 1, update_time = end_time WHERE end_time IS NOT NULL")
    everything = {running, uncleared, live, holding}
    await sweeper.sweep()
    await deletion.delete_ended(list(everything), datetime.now(UTC))
    assert await left(connection) == everything
    for job_id, reason in [
        (running, "JOB_NOT_ENDED"),
        (uncleared, "TASKS_NOT_CLEARED"),
        (live, "JOB_NOT_ENDED"),
        (holding, "JOB_NOT_ENDED"),
    ]:
        with refused(reason):
            await deletion.delete_job(job_id, ANNA)
    assert await left(connection) == everything


@pytest.mark.rule("semantics §4: auto_cleared = false keeps a job until it is cleared by hand")
async def test_what_is_not_cleared_by_itself_is_cleared_by_hand(
    past: Past, sweeper: Sweeper, deletion: Deletion, connection: Connection
) -> None:
    kept = await past.job(900 * DAY, auto_cleared=False)
    await sweeper.sweep()
    many = await sweeper.delete_older(datetime.now(UTC), ANNA, None)
    assert (many.deleted, many.kept, many.complete) == (0, 1, True)
    assert await left(connection) == {kept}
    await deletion.delete_job(kept, ANNA)
    assert await left(connection) == set()


async def test_what_another_job_still_depends_on_is_deleted_by_hand_alone(
    past: Past, sweeper: Sweeper, deletion: Deletion, connection: Connection, scribe: Scribe
) -> None:
    awaited, waiting = await past.job(900 * DAY), await past.job(60)
    await connection.execute(
        "INSERT INTO job_dependency SELECT flow_command_id, $2 FROM job WHERE job_id = $1", waiting, awaited
    )
    await sweeper.sweep()
    assert await left(connection) == {awaited, waiting}
    await deletion.delete_job(awaited, ANNA)
    assert await left(connection) == {waiting}


# --- the sweep -----------------------------------------------------------------------------------------------------


async def test_a_walk_goes_on_where_it_came_to_and_begins_anew_for_what_it_had_to_leave(
    past: Past, pool: Pool, deletion: Deletion, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PAGE", 2)
    monkeypatch.setattr(sweeping, "BATCH", 2)
    clock = ManualClock()
    sweeper = a_sweeper(pool, deletion, clock)
    away, failed = await past.job(3 * DAY), await past.job(3 * DAY, "FAILED")
    await connection.execute("UPDATE host_task SET cleared = false WHERE job_id = $1", away)
    for _ in range(5):
        await past.job(2 * DAY)
    young = await past.job(60)
    await sweeper.sweep()
    assert await left(connection) == {away, failed, young}
    await connection.execute("UPDATE host_task SET cleared = true")
    assert await sweeper.sweep() == "idle", "what was left behind is not looked at each time"
    clock.advance(HOUR)
    assert await sweeper.sweep() == "swept"
    assert await left(connection) == {failed, young}


@pytest.mark.rule("semantics §4: a sweeper (under an advisory lock")
async def test_one_sweeps_at_a_time(past: Past, sweeper: Sweeper, connection: Connection) -> None:
    old = await past.job(2 * DAY)
    await connection.execute("SELECT pg_advisory_lock($1)", sweeping._ADVISORY_LOCK)
    assert await sweeper.sweep() == "elsewhere"
    assert await left(connection) == {old}
    await connection.execute("SELECT pg_advisory_unlock($1)", sweeping._ADVISORY_LOCK)
    assert await sweeper.sweep() == "swept"
    assert not await connection.fetchval(_ADVISORY_LOCKS)


async def test_a_sweep_that_dies_lets_go_and_another_one_goes_on(
    past: Past, pool: Pool, deletion: Deletion, sweeper: Sweeper, connection: Connection, database_url: str
) -> None:
    for _ in range(3):
        await past.job(2 * DAY)
    mutex = await asyncpg.connect(database_url)
    async with mutex.transaction():
        await mutex.execute("UPDATE head SET revision = revision")
        dying = asyncio.create_task(sweeper.sweep())
        await until(lambda: connection.fetchval(_WAITING_FOR_A_LOCK))
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
    await mutex.close()
    await until(lambda: connection.fetchval(f"SELECT ({_ADVISORY_LOCKS}) = 0"))
    await a_sweeper(pool, deletion).sweep()
    assert await left(connection) == set()


async def test_it_sweeps_again_and_again(past: Past, pool: Pool, deletion: Deletion, connection: Connection) -> None:
    clock = ManualClock()
    async with Sweeper(pool, deletion, clock, PRODUCT, sweep_seconds=300) as sweeper:
        for expected in (1, 2):
            await past.job(2 * DAY)
            await pass_time(clock, sweeper, "swept", expected)
            assert await left(connection) == set()


async def test_a_database_that_is_away_is_swept_when_it_is_back(
    past: Past, pool: Pool, journal: Journal, connection: Connection
) -> None:
    clock = ManualClock()
    await past.job(2 * DAY)
    async with Sweeper(pool, Deletion(journal, Uuid7Ids()), clock, PRODUCT, sweep_seconds=300) as sweeper:
        await connection.execute("ALTER TABLE job RENAME TO hidden")
        await connection.execute(
            "CREATE VIEW job AS SELECT pg_terminate_backend(pg_backend_pid()), hidden.* FROM hidden"
        )
        await pass_time(clock, sweeper, "failed")
        await connection.execute("DROP VIEW job")
        await connection.execute("ALTER TABLE hidden RENAME TO job")
        await pass_time(clock, sweeper, "swept")
    assert await left(connection) == set()


@pytest.mark.rule("semantics §4: a sweeper removes the job, its steps, commands, cleared tasks and events whole")
async def test_a_jobstore_that_is_killed_while_it_sweeps_leaves_whole_jobs_and_another_one_goes_on(
    past: Past, scribe: Scribe, database_url: str, connection: Connection, tmp_path: Path
) -> None:
    await past.job(2 * DAY)
    await many_like_it(connection, 1_500)
    settings = {"JOBSTORE_FINISHED_TTL_SECONDS": "0", "JOBSTORE_SWEEP_SECONDS": "1"}
    with a_jobstore(tmp_path, database_url=database_url, settings=settings) as process:
        await until(lambda: connection.fetchval("SELECT count(*) FROM tombstone"))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert await halves(connection) == []
    assert 0 < await connection.fetchval("SELECT count(*) FROM job") < 1_501, "in the middle"
    with a_jobstore(tmp_path, database_url=database_url, settings=settings) as process:
        await until(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM job)"))
        await asyncio.to_thread(await_listening, process)
        await asyncio.to_thread(end, process)
    assert await connection.fetchval("SELECT count(*) FROM tombstone") == 1_501
    assert await rows_of(connection, "") == {}


async def many_like_it(connection: Connection, count: int) -> None:
    """Copies the only job there is."""
    for name, ids in [
        ("job", {"flow_command_id": "f"}),
        ("command", {"command_id": "f", "flow_command_id": "f"}),
        ("step", {"step_id": "s"}),
        ("event", {"event_id": "e"}),
    ]:
        keys = {"job_id": "j"} | ids
        others = await connection.fetchval(
            "SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns "
            "WHERE table_name = $1 AND column_name <> ALL ($2)",
            name,
            list(keys),
        )
        values = ", ".join(f"'{prefix}-' || n" for prefix in keys.values())
        roots = "AND parent_command_id = ''" if name == "command" else ""
        await connection.execute(
            f"INSERT INTO {name} ({', '.join(keys)}, {others}) SELECT {values}, {others} "
            f"FROM {name}, generate_series(1, {count}) AS n WHERE job_id <> '' {roots}"
        )


async def halves(connection: Connection) -> list[str]:
    """Rows of jobs that are gone, and gone jobs without a tombstone."""
    of_no_job = [
        name
        for name in ["step", "command", "host_task", "event"]
        if await connection.fetchval(
            f"SELECT count(*) FROM {name} WHERE job_id <> '' AND job_id NOT IN (SELECT job_id FROM job)"
        )
    ]
    both = await connection.fetchval("SELECT count(*) FROM tombstone JOIN job USING (job_id)")
    parts = await connection.fetchval("SELECT count(*) FROM job WHERE job_id NOT IN (SELECT job_id FROM step)")
    return [*of_no_job, *(["tombstone"] if both else []), *(["job"] if parts else [])]


# --- tombstones ----------------------------------------------------------------------------------------------------


async def test_a_watch_from_before_a_purged_tombstone_has_to_start_over(
    past: Past, scribe: Scribe, sweeper: Sweeper, queries: Queries, connection: Connection
) -> None:
    old = await past.job(2 * DAY)
    before = scribe.at
    async with scribe.revision():
        await scribe.add_entity("VM", "vm-9")
    async with scribe.revision():
        await scribe.remove_entity("VM", "vm-9")
    await sweeper.sweep()
    deleted = await connection.fetchval("SELECT revision FROM tombstone WHERE job_id = $1", old)
    assert await sweeper.sweep() == "idle", "a young tombstone stays"
    await connection.execute("UPDATE tombstone SET time = time - interval '61 minutes'")
    assert await sweeper.sweep() == "swept"
    head = await connection.fetchrow("SELECT revision, compacted_revision FROM head")
    assert head is not None
    assert head["compacted_revision"] == deleted
    with pytest.raises(WaybillError) as caught:
        await queries.modified_jobs(before, "", 50, job_filter(""))
    assert (caught.value.reason, caught.value.metadata["oldest_revision"]) == ("REVISION_COMPACTED", str(deleted))
    assert not (await queries.modified_jobs(deleted, "", 50, job_filter(""))).removed_job_ids
    assert await connection.fetchval("SELECT count(*) FROM tombstone WHERE entity_id = 'vm-9'") == 1


async def test_tombstones_go_in_small_numbers_and_by_whole_revisions(
    scribe: Scribe, deletion: Deletion, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "TOMBSTONES_AT_ONCE", 2)
    for _ in range(2):
        async with scribe.revision():
            job_ids = [await scribe.add_job(status="FINISHED") for _ in range(3)]
        async with scribe.revision():
            for job_id in job_ids:
                await scribe.delete_job(job_id)
    assert [await deletion.purge(datetime.now(UTC)) for _ in range(3)] == [3, 3, 0]
    assert await connection.fetchval("SELECT compacted_revision FROM head") == 4


# --- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: Clear (delete) an ended job by hand")
async def test_a_job_is_deleted_by_hand_and_the_audit_log_says_by_whom(
    past: Past, jobstore: RunningJobstore, connection: Connection
) -> None:
    job_id, other = await past.job(1, description="Removing VM web", correlation_id="c-9"), await past.job(1)
    await jobstore.reads.DeleteJob(DeleteJobRequest(job_id=job_id), metadata=(("x-waybill-user", "anna"),))
    assert await left(connection) == {other}
    [event] = await events(jobstore, "correlation_id = c-9")
    assert (event.event_type, event.user, event.job_id) == ("JOBS_DELETED", "anna", "")
    assert event.message == f"Deleted job {job_id}: Removing VM web (FINISHED)"


async def events(jobstore: RunningJobstore, filter: str) -> list[Event]:
    return list((await jobstore.reads.ListEvents(ListEventsRequest(filter=filter))).events)


async def test_a_refusal_says_what_is_in_the_way(past: Past, scribe: Scribe, deletion: Deletion) -> None:
    async with scribe.revision():
        running = await scribe.add_job()
    with pytest.raises(WaybillError, match=f"job {running} is STARTED; only ended jobs can be deleted"):
        await deletion.delete_job(running, ANNA)
    ended = await past.job(1)
    async with scribe.revision():
        for host_id in ("host-2", "host-1"):
            await scribe.add_host_task(ended, result="SUCCESS", host_id=host_id)
    with pytest.raises(WaybillError, match="not cleared yet on host-1, host-2") as caught:
        await deletion.delete_job(ended, ANNA)
    assert caught.value.metadata["host_ids"] == "host-1, host-2"
    with refused("JOB_NOT_FOUND", "NOT_FOUND"):
        await deletion.delete_job(scribe.ids.new(), ANNA)


@pytest.mark.rule("semantics §8: delete those older than a date")
async def test_all_jobs_that_ended_before_a_time_are_deleted(
    past: Past, jobstore: RunningJobstore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PAGE", 2)
    monkeypatch.setattr(sweeping, "BATCH", 1)
    await past.job(5 * HOUR, "FAILED")
    kept = await past.job(4 * HOUR)
    await connection.execute("UPDATE host_task SET cleared = false WHERE job_id = $1", kept)
    for _ in range(3):
        await past.job(3 * HOUR, visible=False)
    young = await past.job(HOUR)
    asked = DeleteJobsRequest()
    asked.older_than.FromDatetime(datetime.now(UTC) - timedelta(hours=2))
    answer = await jobstore.reads.DeleteJobs(asked, metadata=(("x-waybill-user", "ben"), ("x-correlation-id", "c-7")))
    assert (answer.deleted, answer.kept, answer.complete) == (4, 1, True)
    assert await left(connection) == {kept, young}
    [event] = await events(jobstore, "correlation_id = c-7")
    assert (event.event_type, event.user) == ("JOBS_DELETED", "ben")
    again = await jobstore.reads.DeleteJobs(asked, metadata=(("x-correlation-id", "c-8"),))
    assert (again.deleted, again.kept) == (0, 1)
    assert await events(jobstore, "correlation_id = c-8") == [], "where nothing was done there is nothing to tell"


async def test_a_call_whose_time_is_up_says_that_there_is_more(
    past: Past, sweeper: Sweeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PAGE", 2)
    for _ in range(5):
        await past.job(HOUR)
    counts = []
    for _ in range(3):
        answer = await sweeper.delete_older(datetime.now(UTC), ANNA, sweeping.SPARE_SECONDS)
        counts.append((answer.deleted, answer.complete))
    assert counts == [(2, False), (2, False), (1, True)]


async def test_a_deletion_of_which_nobody_knew_whether_it_was_committed_is_one(
    past: Past, journal: Journal, connection: Connection
) -> None:
    """The journal does it once more; the first attempt was committed."""
    one, many = await past.job(HOUR), [await past.job(HOUR) for _ in range(2)]
    first, second = set[str](), set[str]()

    async def delete_one(turn: Turn) -> None:
        await deleting._delete_one(turn, one, ANNA, "0198c0de-0000-7000-8000-00000000000e", first)

    async def delete_many(turn: Turn) -> None:
        await deleting._delete_some(turn, many, datetime.now(UTC), second)

    for _ in range(2):
        await journal.alone(delete_one)
        await journal.alone(delete_many)
    assert await left(connection) == set()
    assert second == set(many)
    assert await connection.fetchval("SELECT count(*) FROM event") == 1


# --- request ids ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def leased(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO coordinator_lease (counter, update_time, coordinator_id, address) VALUES (1, now(), $1, '')",
        COORDINATOR,
    )


async def submit(journal: Journal, flow: Flow) -> FlowCommitResult:
    [result] = await journal.commit(request(flow.first()))
    return result


async def test_a_request_that_is_repeated_after_its_job_was_deleted_is_not_carried_out_again(
    journal: Journal, deletion: Deletion, connection: Connection, leased: None
) -> None:
    asked = {"owner": "anna", "request_id": "r-1", "request_hash": hashed("a")}
    flow = a_flow(**asked)
    await submit(journal, flow)
    await journal.commit(request(flow.last()))
    await connection.execute("UPDATE host_task SET cleared = true")
    await deletion.delete_job(flow.job_id, ANNA)

    error = WaybillError.from_status((await submit(journal, a_flow(**asked))).error)
    assert (error.reason, error.code.name, error.metadata) == ("JOB_DELETED", "ALREADY_EXISTS", {"job_id": flow.job_id})
    assert not (await submit(journal, a_flow(**asked | {"owner": "ben"}))).HasField("error"), "another's is another"
    assert not (await submit(journal, a_flow(**asked | {"request_id": ""}))).HasField("error")

    assert await deletion.purge(datetime.now(UTC) + timedelta(seconds=1)) == 1
    assert not (await submit(journal, a_flow(**asked))).HasField("error"), "and then it is forgotten"


async def test_a_commit_of_a_flow_whose_job_was_deleted_is_refused(
    journal: Journal, deletion: Deletion, connection: Connection, leased: None
) -> None:
    """Its coordinator did not hear the answer to the last one, and sends it again."""
    flow = a_flow()
    await submit(journal, flow)
    last = flow.last()
    await journal.commit(request(last))
    await connection.execute("UPDATE host_task SET cleared = true")
    await deletion.delete_job(flow.job_id, ANNA)
    [result] = await journal.commit(request(last))
    assert WaybillError.from_status(result.error).reason == "SEQUENCE_MISMATCH"
    assert await left(connection) == set()


async def test_a_job_that_came_back_can_be_deleted_again(past: Past, scribe: Scribe, deletion: Deletion) -> None:
    """One that ended with its first commit, which was repeated after it was deleted."""
    job_id = await past.job(HOUR)
    for _ in range(2):
        await deletion.delete_job(job_id, ANNA)
        await past.job(HOUR, job_id=job_id)
    assert await scribe.connection.fetchval("SELECT count(*) FROM tombstone WHERE job_id = $1", job_id) == 1
