"""What a jobstore says to Prometheus, as a process and over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from tests.integration.jobstore.flow import FAILED, Flow, lock, request, vm
from tests.integration.jobstore.processes import a_jobstore, await_listening, end
from tests.integration.jobstore.scribe import Scribe
from tests.scrape import OPENMETRICS, PLAIN, Scrape, address_in, scrape

from chassis.channels import open_channel
from chassis.clock import ManualClock, SystemClock
from chassis.errors import WaybillError
from chassis.server import CANNOT_LISTEN
from chassis.tallies import Counter
from jobstore.census import UNFINISHED, Census
from jobstore.journal.journal import Journal
from jobstore.postgres.postgres import EmbeddedPostgres
from jobstore.snapshots import Pool
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
COORDINATOR = "coordinator-1"


@dataclass
class Store:
    """A jobstore in a process of its own."""

    process: subprocess.Popen[str]
    metrics: str
    journal: jobstore_pb2_grpc.JournalStub
    reads: jobstore_pb2_grpc.JobStoreStub

    async def commit(self, *commits: jobstore_pb2.FlowCommit) -> list[jobstore_pb2.FlowCommitResult]:
        return list((await self.journal.Commit(request(*commits))).results)

    async def scrape(self, *, accept: str = OPENMETRICS) -> Scrape:
        return await scrape(self.metrics, accept=accept)


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    listen = {"JOBSTORE_METRICS_LISTEN": "127.0.0.1:0"}
    with a_jobstore(tmp_path, database_url=database_url, settings=listen, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        metrics = address_in(await asyncio.to_thread(process.stderr.readline))
        async with open_channel(await asyncio.to_thread(await_listening, process)) as channel:
            store = Store(
                process, metrics, jobstore_pb2_grpc.JournalStub(channel), jobstore_pb2_grpc.JobStoreStub(channel)
            )
            await store.journal.RenewLease(
                jobstore_pb2.RenewLeaseRequest(coordinator_id=COORDINATOR, counter=1, address="127.0.0.1:1")
            )
            yield store
        process.stderr.close()


async def test_jobs_and_commits_are_counted_as_they_are_written(store: Store) -> None:
    well, badly = Flow(), Flow(command_type="RunVm")
    first = badly.first()
    first.new_commands[0].command_type = "RunVm"
    await store.commit(well.first(), first)
    seen = await store.scrape()
    assert seen("waybill_jobs_begun_total", type="RemoveImage") == 1
    assert seen("waybill_jobs_begun_total", type="RunVm") == 1
    assert seen("waybill_jobs_ended_total") == 0

    last = badly.last()
    last.job.status, last.job.progress = FAILED, 99
    await store.commit(well.last(), last)
    for accept in (OPENMETRICS, PLAIN):
        seen = await store.scrape(accept=accept)
        assert seen("waybill_jobs_ended_total", type="RemoveImage", status="FINISHED") == 1
        assert seen("waybill_job_duration_seconds_count", type="RemoveImage") == 1
        assert 0 < seen("waybill_job_duration_seconds_sum", type="RemoveImage") < 60
        assert seen("waybill_jobs_ended_total") == 2
        assert seen("waybill_journal_commits_total", outcome="applied") == 4
        assert seen("waybill_rpc_calls_total", method="waybill.v1.Journal/Commit", code="OK") == 2
        assert seen("waybill_journal_revision") > 0
        assert seen("waybill_journal_database_away") == 0
        assert seen("waybill_journal_queue_parts") == 0
        transactions = seen("waybill_journal_transactions_total", end="committed")
        assert transactions >= 2
        assert seen("waybill_journal_transaction_duration_seconds_count") >= transactions


async def test_a_jobs_duration_names_its_trace(store: Store) -> None:
    flow = Flow()
    first = flow.first()
    first.new_commands[0].traceparent = TRACEPARENT
    await store.commit(first)
    await store.commit(flow.last())
    [exemplar] = (await store.scrape()).exemplars("waybill_job_duration_seconds_bucket", type="RemoveImage")
    assert exemplar.labels == {"trace_id": TRACE}


async def test_refusals_are_counted_by_reason_and_repeats_are_no_jobs(store: Store) -> None:
    first = Flow().first(locks=[lock(vm("vm-1"))])
    await store.commit(first)
    await store.commit(first)
    await store.commit(Flow().first(locks=[lock(vm("vm-1"))]))
    seen = await store.scrape()
    assert seen("waybill_jobs_begun_total") == 1
    assert seen("waybill_journal_commits_total", outcome="known") == 1
    assert seen("waybill_journal_commits_total", outcome="refused") == 1
    assert seen("waybill_journal_refusals_total", reason="LOCKED") == 1


async def test_what_the_database_itself_refuses_is_counted_too(store: Store) -> None:
    flow = Flow()
    await store.commit(flow.first())
    last = flow.last()
    last.job.status = FAILED  # at 100 %, which the schema does not admit
    await store.commit(last)
    seen = await store.scrape()
    assert seen("waybill_journal_transactions_total", end="refused") == 1
    assert seen("waybill_journal_refusals_total", reason="REQUEST_INVALID") == 1
    assert seen("waybill_jobs_ended_total") == 0


async def test_watchers_are_counted_and_their_lag_is_measured(store: Store) -> None:
    watch = store.reads.WatchJobs(jobstore_pb2.WatchJobsRequest())
    while not (await watch.read()).HasField("bookmark"):
        pass
    assert (await store.scrape())("waybill_feed_watchers", kind="jobs") == 1

    flow = Flow()
    await store.commit(flow.first())
    while not (told := await watch.read()).changes:
        pass
    while not (seen := await store.scrape())("waybill_feed_lag_seconds_count"):
        pass  # a message is read before its sender is told that it is sent
    assert seen("waybill_feed_revision") == told.revision == seen("waybill_journal_revision")
    assert seen("waybill_feed_watchers_behind") == 0
    assert seen("waybill_feed_lag_seconds_count", kind="jobs") == 1
    assert 0 <= seen("waybill_feed_lag_seconds_sum", kind="jobs") < 10
    assert seen("waybill_feed_messages_total", kind="jobs") >= 2
    assert seen("waybill_database_connections") >= 1
    watch.cancel()


async def test_the_endpoint_goes_with_the_process_and_its_port_is_not_shared(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    listen = {"JOBSTORE_METRICS_LISTEN": store.metrics}
    with a_jobstore(tmp_path / "other", database_url=database_url, settings=listen, stderr=subprocess.PIPE) as second:
        _, said = await asyncio.to_thread(second.communicate)
    assert second.returncode == CANNOT_LISTEN
    assert said.splitlines()[-1] == (
        f"cannot serve metrics on {store.metrics}: in use by another process, or not of this machine"
    )

    await asyncio.to_thread(end, store.process)
    with pytest.raises(ConnectionRefusedError):
        await store.scrape()


async def test_a_database_that_is_away_is_seen_to_be(tmp_path: Path) -> None:
    paused = asyncio.Event()

    class PausedClock(ManualClock):
        async def sleep(self, seconds: float) -> None:
            paused.set()
            await super().sleep(seconds)

    clock = PausedClock()
    async with Journal(f"postgresql://waybill@/waybill?host={tmp_path}", clock) as journal:
        assert Scrape(journal.metrics.collect())("waybill_journal_database_away") == 0
        commit = asyncio.create_task(journal.commit(request(Flow().first())))
        await paused.wait()
        assert Scrape(journal.metrics.collect())("waybill_journal_database_away") == 1
        while not commit.done():
            clock.advance(1.0)
            await asyncio.sleep(0)
        with pytest.raises(WaybillError, match="the database is away"):
            await commit


async def test_the_census_counts_what_is_not_over(pool: Pool, scribe: Scribe) -> None:
    census = Census(pool, SystemClock())
    async with scribe.revision():
        for status in ("PENDING", "STARTED", "STARTED", "FINISHED", "FAILED"):
            await scribe.add_job(status=status, command_type="RunVm")
    await census.count()
    seen = Scrape(census.collect())
    assert seen("waybill_jobs_unfinished", type="RunVm", status="STARTED") == 2
    assert seen("waybill_jobs_unfinished") == 3
    assert scribe.time is not None
    oldest = seen("waybill_jobs_unfinished_oldest_timestamp_seconds", status="PENDING")
    assert oldest == pytest.approx(scribe.time.timestamp())


async def test_the_census_reads_the_unfinished_alone(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.execute("SET enable_seqscan = off")  # the table is empty: a scan would be as good
    plan = [row[0] for row in await connection.fetch(f"EXPLAIN {UNFINISHED}")]
    assert any("job_status_unfinished" in line for line in plan), plan


async def test_a_restart_of_the_embedded_server_is_counted(data_dir: Path) -> None:
    restarts, restarted = Counter("waybill_postgres_restarts", "Restarts."), asyncio.Event()

    def on_restart() -> None:
        restarts.add()
        restarted.set()

    async with EmbeddedPostgres(data_dir, SystemClock(), on_restart=on_restart) as postgres:
        os.kill(postgres.pid, signal.SIGKILL)
        await restarted.wait()
        assert restarts[()] == 1
