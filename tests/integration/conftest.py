"""Real Postgres for the integration tests.

Fixtures:

* `postgres_url`   session: an own cluster, started once; the URL of its administrative database.
* `database_url`   a fresh database, copied from a migrated template (about 40 ms), dropped afterwards.
* `connection`     an asyncpg connection to that database, for looking behind the scenes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from chassis.clock import SystemClock
from jobstore.migrate import migrate
from jobstore.postgres import EmbeddedPostgres

TEMPLATE = "waybill_template"

# What a test of durability needs is a cluster of its own; here a crash of the machine loses nothing that matters.
FOR_TESTS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "64MB"}

_numbers = itertools.count(1)


def url_of(postgres_url: str, database: str) -> str:
    """The URL of another database of the same cluster."""
    before, _, options = postgres_url.partition("?")
    return f"{before.rpartition('/')[0]}/{database}?{options}"


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An own cluster with a migrated template database. It outlives each test's loop, so it has one of its own."""
    with asyncio.Runner() as runner:
        postgres = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), SystemClock(), FOR_TESTS)
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
async def database_url(postgres_url: str) -> AsyncIterator[str]:
    """A fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    # Each database is a store of its own; the template's epoch must not be all of theirs.
    connection = await asyncpg.connect(url_of(postgres_url, name))
    await connection.execute("UPDATE head SET store_epoch = gen_random_uuid()::text")
    await connection.close()
    yield url_of(postgres_url, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder for an embedded server of the test's own."""
    return tmp_path / "jobstore"
