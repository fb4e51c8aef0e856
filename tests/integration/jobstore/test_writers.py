"""Many writers, several journals, a Postgres that dies: revisions without gaps, in the order of the commits; what was
acknowledged is there, once; what was refused left nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import pytest
from tests.integration.jobstore.flow import COORDINATOR, Flow, a_flow, lock, request, vm
from tests.integration.jobstore.processes import a_jobstore, await_listening, end

from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.errors import WaybillError
from jobstore.journal.journal import Journal
from jobstore.postgres.migrate import migrate
from jobstore.postgres.postgres import EmbeddedPostgres
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

Connection = asyncpg.Connection
Result = jobstore_pb2.FlowCommitResult
Write = Callable[[jobstore_pb2.FlowCommit], Awaitable[Result]]

TAKE_LEASE = "INSERT INTO coordinator_lease VALUES (1, now(), false, $1, '')"


@pytest.fixture
async def lease(connection: Connection) -> None:
    await connection.execute(TAKE_LEASE, COORDINATOR)


def through(journal: Journal) -> Write:
    async def write(commit: jobstore_pb2.FlowCommit) -> Result:
        [result] = await journal.commit(request(commit))
        return result

    return write


@dataclass
class History:
    """What writers were told."""

    begun: dict[str, int] = field(default_factory=dict)
    """Job ids by the revision of their first commit."""
    sequences: dict[str, int] = field(default_factory=dict)
    """The last acknowledged sequence of each flow."""
    ended: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    revisions: set[int] = field(default_factory=set)
    milestones: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    """Set when so many commits were acknowledged."""

    def applied(self, flow: Flow, commit: jobstore_pb2.FlowCommit, result: Result) -> None:
        assert self.sequences.get(flow.flow_command_id, 0) == commit.sequence - 1
        self.sequences[flow.flow_command_id] = commit.sequence
        self.revisions.add(result.revision)
        if commit.sequence == 1:
            self.begun[flow.job_id] = result.revision
        if commit.ends_flow:
            self.ended.add(flow.job_id)
        self.milestones[sum(self.sequences.values())].set()


async def writer(write: Write, history: History, rng: random.Random, flows: int) -> None:
    """Runs flows one after the other, now and then under a lock that others want, now and then repeating itself."""
    for _ in range(flows):
        flow = a_flow()
        wanted = [lock(vm(f"vm-{rng.randrange(4)}"), exclusive=rng.random() < 0.7)] if rng.random() < 0.5 else []
        commits = [flow.first(locks=wanted)]
        commits += [flow.progress(10 * number) for number in range(1, rng.randrange(1, 4))]
        commits.append(flow.last())
        for commit in commits:
            result = await write(commit)
            if result.HasField("error"):
                assert WaybillError.from_status(result.error).reason == "LOCKED"
                history.refused.add(flow.job_id)
                break
            history.applied(flow, commit, result)
            if rng.random() < 0.2:
                again = await write(commit)
                assert (again.revision, again.time) == (result.revision, result.time)


async def look(url: str, done: asyncio.Event) -> list[tuple[int, set[str]]]:
    """Reads head and jobs in one snapshot, again and again."""
    connection = await asyncpg.connect(url)
    seen = []
    while not done.is_set():
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            revision = await connection.fetchval("SELECT revision FROM head")
            seen.append((revision, {row["job_id"] for row in await connection.fetch("SELECT job_id FROM job")}))
    await connection.close()
    return seen


@pytest.mark.parametrize("seed", range(3))
async def test_revisions_are_without_gaps_and_in_the_order_of_the_commits(
    database_url: str, connection: Connection, lease: None, seed: int
) -> None:
    rng, history, done = random.Random(seed), History(), asyncio.Event()
    async with Journal(database_url, SystemClock()) as one, Journal(database_url, SystemClock()) as other:
        looking = asyncio.create_task(look(database_url, done))
        await asyncio.gather(
            *(
                writer(through([one, other][number % 2]), history, random.Random(rng.random()), flows=8)
                for number in range(16)
            )
        )
        done.set()
        seen = await looking
    head = await connection.fetchval("SELECT revision FROM head")
    assert history.revisions == set(range(1, head + 1))
    for revision, jobs in seen:
        assert jobs == {job_id for job_id, begun in history.begun.items() if begun <= revision}
    await assert_stored(connection, history)


async def assert_stored(connection: Connection, history: History) -> None:
    """The store holds what writers were told, and nothing else."""
    roots = await connection.fetch("SELECT command_id, sequence FROM command WHERE parent_command_id = ''")
    assert {row["command_id"]: row["sequence"] for row in roots} == history.sequences
    jobs = await connection.fetch("SELECT job_id, status FROM job")
    assert {row["job_id"] for row in jobs} == history.begun.keys()
    assert {row["job_id"] for row in jobs if row["status"] == "FINISHED"} == history.ended
    assert not history.refused & {row["job_id"] for row in jobs}
    assert await connection.fetchval("SELECT count(*) FROM step") == 4 * len(jobs)
    assert (
        await connection.fetchval("SELECT count(*) FROM entity_lock JOIN job USING (job_id) WHERE end_time IS NOT NULL")
        == 0
    )


# --- Postgres dies ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def own_postgres(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(data_dir, SystemClock()) as postgres:
        connection = await asyncpg.connect(postgres.url)
        await migrate(connection)
        await connection.execute(TAKE_LEASE, COORDINATOR)
        await connection.close()
        yield postgres


async def test_what_was_acknowledged_survives_a_killed_postgres_once(data_dir: Path) -> None:
    history, rng = History(), random.Random(7)
    async with own_postgres(data_dir) as postgres, Journal(postgres.url, SystemClock()) as journal:
        write = through(journal)
        writers = asyncio.gather(*(writer(write, history, random.Random(rng.random()), flows=25) for _ in range(12)))
        for acknowledged in (100, 250, 400):
            await history.milestones[acknowledged].wait()
            os.kill(postgres.pid, signal.SIGKILL)
        await writers
        connection = await asyncpg.connect(postgres.url)
        await assert_stored(connection, history)
        await connection.close()


async def test_a_frozen_writer_does_not_hold_the_others(database_url: str, connection: Connection, lease: None) -> None:
    """One that stops with the mutex in its hand is thrown out by Postgres."""
    frozen = await asyncpg.connect(database_url, server_settings={"idle_in_transaction_session_timeout": "300"})
    await frozen.execute("BEGIN")
    await frozen.execute("UPDATE head SET revision = revision + 1")
    async with Journal(database_url, SystemClock()) as journal:
        [result] = await journal.commit(request(a_flow().first()))
    assert result.revision == 1
    frozen.terminate()


async def test_a_journal_whose_connection_is_cut_goes_on(
    database_url: str, connection: Connection, lease: None
) -> None:
    async with Journal(database_url, SystemClock()) as journal:
        flow = a_flow()
        await journal.commit(request(flow.first()))
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waybill journal'"
        )
        [result] = await journal.commit(request(flow.last()))
    assert result.revision == 2


async def test_while_the_database_is_away_callers_are_told_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobstore.journal.journal.PATIENCE", 0.1)
    async with own_postgres(data_dir) as postgres:
        url = postgres.url
    async with Journal(url, SystemClock()) as journal:
        with pytest.raises(WaybillError) as refused:
            await journal.commit(request(a_flow().first()))
    assert refused.value.reason == "DEPENDENCY_UNAVAILABLE"


async def test_what_waits_when_the_journal_closes_is_still_written(
    database_url: str, connection: Connection, lease: None
) -> None:
    async with Journal(database_url, SystemClock()) as journal:
        waiting = [asyncio.create_task(journal.commit(request(a_flow().first()))) for _ in range(10)]
        await asyncio.sleep(0)
    assert [result.revision for [result] in await asyncio.gather(*waiting)] != []
    assert await connection.fetchval("SELECT count(*) FROM job") == 10
    with pytest.raises(WaybillError, match="going down"):
        await journal.commit(request(a_flow().first()))


async def test_a_postgres_that_does_not_answer_is_not_waited_for(
    database_url: str, connection: Connection, lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.journal.writer.ANSWER_SECONDS", 0.5)
    async with Journal(database_url, SystemClock()) as journal:
        flow = a_flow()
        await journal.commit(request(flow.first()))
        backend = await connection.fetchval(
            """
            SELECT pid FROM pg_stat_activity
            WHERE application_name = 'waybill journal' AND datname = current_database()
            """
        )
        os.kill(backend, signal.SIGSTOP)
        try:
            [result] = await journal.commit(request(flow.last()))
        finally:
            os.kill(backend, signal.SIGCONT)
    assert result.revision == 2


async def test_with_a_full_disk_flows_are_ended_but_not_begun(
    database_url: str, connection: Connection, lease: None
) -> None:
    async with Journal(database_url, SystemClock()) as journal:
        running, other = a_flow(), a_flow()
        await journal.commit(request(running.first()))
        await connection.execute(
            """
            CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON job EXECUTE FUNCTION fill();
            """
        )
        results = await journal.commit(request(other.first(), running.last()))
        later = await journal.commit(request(a_flow().first()))
    refused = WaybillError.from_status(results[0].error)
    assert (refused.code, refused.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 5.0)
    assert not results[1].HasField("error")
    assert later[0].HasField("error")  # without trying
    assert await connection.fetchval("SELECT status FROM job") == "FINISHED"


# --- jobstores die ---------------------------------------------------------------------------------------------------


def over_grpc(*stubs: jobstore_pb2_grpc.JournalStub) -> Write:
    """Sends commits to one jobstore until it does not answer, then the same to the next: as coordinators do."""
    turn = itertools.cycle(stubs)
    answering = next(turn)

    async def write(commit: jobstore_pb2.FlowCommit) -> Result:
        nonlocal answering
        while True:
            try:
                response = await answering.Commit(request(commit), timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                answering = next(turn)
            else:
                return response.results[0]

    return write


async def test_two_jobstores_on_one_database_are_killed_in_turn(data_dir: Path) -> None:
    """The second loses nothing but itself; the first takes Postgres with it and comes back with it."""
    history, rng = History(), random.Random(11)
    with ExitStack() as processes:
        first = processes.enter_context(a_jobstore(data_dir))
        address = await_listening(first)
        url = (data_dir / "database_url").read_text().strip()
        second = processes.enter_context(a_jobstore(data_dir / "none", database_url=url))
        other_address = await_listening(second)
        async with open_channel(address) as one, open_channel(other_address) as other:
            stubs = [jobstore_pb2_grpc.JournalStub(one), jobstore_pb2_grpc.JournalStub(other)]
            await stubs[0].RenewLease(jobstore_pb2.RenewLeaseRequest(coordinator_id=COORDINATOR, counter=1))
            writers = asyncio.gather(
                *(
                    writer(over_grpc(*rng.sample(stubs, 2)), history, random.Random(rng.random()), flows=20)
                    for _ in range(12)
                )
            )
            await history.milestones[150].wait()
            first.kill()
            first.wait()
            first = processes.enter_context(a_jobstore(data_dir, listen=address))
            await history.milestones[300].wait()
            second.kill()
            await writers
        connection = await asyncpg.connect(url)
        await assert_stored(connection, history)
        assert await connection.fetchval("SELECT revision FROM head") == max(history.revisions)
        await connection.close()
        await asyncio.to_thread(end, first)
