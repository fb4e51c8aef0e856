"""Real Postgres for the integration tests.

Fixtures:

* `postgres_url`   session: an own cluster, started once; the URL of its administrative database.
* `database_url`   a fresh database, copied from a migrated template (about 40 ms), dropped afterwards. What a test
                   leaves in it must be consistent: see `inconsistent` in the module's markers.
* `connection`     an asyncpg connection to that database, for looking behind the scenes.
* `jobstore`       a jobstore's gRPC server on that database, in this process, on a port of its own: `.address`, and
                   its stubs `.journal` (waybill.v1.Journal) and `.reads` (waybill.v1.JobStore).
* `another_jobstore`  a function that starts further ones on the same database.
* `data_dir`       a folder for an embedded server of the test's own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from chassis.channels import open_channel
from chassis.clock import SystemClock, Uuid7Ids
from chassis.server import Mount, Server
from jobstore.feed.feed import Feed
from jobstore.journal.deletion import Deletion
from jobstore.journal.entities import Entities
from jobstore.journal.externaljobs import ExternalJobs, beating_pool
from jobstore.journal.journal import Journal
from jobstore.journal.leases import Leases, lease_pool
from jobstore.postgres.datafolder import DataFolder
from jobstore.postgres.migrate import migrate
from jobstore.postgres.postgres import EmbeddedPostgres
from jobstore.postgres.postmaster import DatabaseError
from jobstore.queries.audit import Audit
from jobstore.queries.consistency import Consistency
from jobstore.queries.flows import Flows
from jobstore.queries.queries import Queries
from jobstore.reads import JobStoreService
from jobstore.service import LARGEST_MESSAGE_MIB, JournalService
from jobstore.settings import Retention
from jobstore.snapshots import reading_pool
from jobstore.sweeper import Sweeper
from waybill.v1 import jobstore_pb2_grpc

TEMPLATE = "waybill_template"

# What a test of durability needs is a cluster of its own; here a crash of the machine loses nothing that matters.
FOR_TESTS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "64MB"}

_numbers = itertools.count(1)


def url_of(postgres_url: str, database: str) -> str:
    """The URL of another database of the same cluster."""
    before, _, options = postgres_url.partition("?")
    return f"{before.rpartition('/')[0]}/{database}?{options}"


@pytest.fixture(scope="session")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where copying a database takes a tenth of the time; on disk where there is none."""
    memory = Path("/dev/shm")
    _remove_forgotten(memory)
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30:
        with tempfile.TemporaryDirectory(prefix="waybill-test-", dir=memory) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("postgres")


def _remove_forgotten(memory: Path) -> None:
    """Gives back the memory of sessions that were killed, known by their age and by nobody holding their lock."""
    for folder in memory.glob("waybill-test-*"):
        forgotten = DataFolder(folder)
        try:
            if time.time() - folder.stat().st_mtime < 600:
                continue
            forgotten.lock()
        except (DatabaseError, OSError):
            continue  # somebody's who lives, or gone meanwhile
        forgotten.unlock()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(fast_folder: Path) -> Iterator[str]:
    """An own cluster with a migrated template database. It outlives each test's loop, so it has one of its own."""
    with asyncio.Runner() as runner:
        postgres = EmbeddedPostgres(fast_folder, SystemClock(), FOR_TESTS)
        runner.run(postgres.__aenter__())
        runner.run(_make_template(postgres.url))
        yield url_of(postgres.url, "postgres")
        runner.run(postgres.__aexit__(None, None, None))


async def _make_template(url: str) -> None:
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()
    connection = await asyncpg.connect(url_of(url, "postgres"))
    await connection.execute(f"ALTER DATABASE waybill RENAME TO {TEMPLATE}")
    await connection.close()


@pytest.fixture
async def database_url(postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A fresh, migrated database. Whatever happened in it, CheckConsistency finds nothing when the test is over."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
    # Each database is a store of its own; the template's epoch must not be all of theirs.
    connection = await asyncpg.connect(url_of(postgres_url, name))
    await connection.execute("UPDATE head SET store_epoch = gen_random_uuid()::text")
    await connection.close()
    yield url_of(postgres_url, name)
    violations = await _violations(url_of(postgres_url, name)) if _must_be_consistent(request) else []
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()
    assert violations == []


def _must_be_consistent(request: pytest.FixtureRequest) -> bool:
    """Not if the test says why not, nor if it writes rows that no jobstore would."""
    return request.node.get_closest_marker("inconsistent") is None and "scribe" not in request.fixturenames


async def _violations(database_url: str) -> list[object]:
    async with reading_pool(database_url) as pool:
        return list(await Consistency(pool).check())


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def made_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster as initdb leaves it: copying it is several times faster than making another."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with EmbeddedPostgres(folder, SystemClock()):
            pass

    asyncio.run(make())
    return folder / "postgres"


@pytest.fixture
def data_dir(tmp_path: Path, made_cluster: Path) -> Path:
    """A folder for an embedded server of the test's own, with a cluster in it."""
    shutil.copytree(made_cluster, tmp_path / "jobstore" / "postgres")
    return tmp_path / "jobstore"


@dataclass(frozen=True)
class RunningJobstore:
    """A jobstore that serves, and its stubs."""

    address: str
    journal: jobstore_pb2_grpc.JournalStub
    reads: jobstore_pb2_grpc.JobStoreStub


@asynccontextmanager
async def running_jobstore(database_url: str) -> AsyncIterator[RunningJobstore]:
    """Runs what `python -m jobstore` runs, less the process."""
    clock, ids = SystemClock(), Uuid7Ids()
    async with (
        reading_pool(database_url) as pool,
        lease_pool(database_url) as leasing,
        beating_pool(database_url) as beating,
        Journal(database_url, clock) as journal,
        Feed(pool, clock, random.Random(1)) as feed,
        Sweeper(pool, Deletion(journal, ids), clock, Retention(86_400, 604_800, 3_600)) as sweeper,
    ):
        entities = Entities(pool, journal)
        reads = JobStoreService(Queries(pool), Audit(pool), feed, Consistency(pool), entities, sweeper)
        leases, flows = Leases(leasing, journal, ids), Flows(pool, journal)
        external = ExternalJobs(beating, journal, ids)
        writes = JournalService(journal, leases, flows, entities, feed, external)
        mounts = [
            Mount("waybill.v1.JobStore", reads, jobstore_pb2_grpc.add_JobStoreServicer_to_server),
            Mount(
                "waybill.v1.Journal",
                writes,
                jobstore_pb2_grpc.add_JournalServicer_to_server,
                max_message_mib=LARGEST_MESSAGE_MIB,
            ),
        ]
        async with (
            Server("127.0.0.1:0", mounts, grace=1.0) as server,
            open_channel(server.address, max_message_mib=LARGEST_MESSAGE_MIB) as channel,
        ):
            server.set_serving(True)
            journal_stub = jobstore_pb2_grpc.JournalStub(channel)
            reads_stub = jobstore_pb2_grpc.JobStoreStub(channel)
            yield RunningJobstore(server.address, journal_stub, reads_stub)
            await feed.close()


@pytest.fixture
async def another_jobstore(database_url: str) -> AsyncIterator[Callable[[], Awaitable[RunningJobstore]]]:
    """Starts jobstores on the test's database."""
    async with AsyncExitStack() as running:
        yield lambda: running.enter_async_context(running_jobstore(database_url))


@pytest.fixture
async def jobstore(another_jobstore: Callable[[], Awaitable[RunningJobstore]]) -> RunningJobstore:
    """A jobstore on the test's database."""
    return await another_jobstore()
