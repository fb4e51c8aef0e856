"""The migration runner on a real database."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from jobstore.postgres.migrate import Migration, migrate, migrations
from jobstore.postgres.postmaster import DatabaseError

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE first (id integer)")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE second (id integer)")


@pytest.fixture
async def empty_url(postgres_url: str) -> str:
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("DROP DATABASE IF EXISTS empty WITH (FORCE)")
    await admin.execute("CREATE DATABASE empty TEMPLATE template0")
    await admin.close()
    return postgres_url.replace("/postgres?", "/empty?")


@pytest.fixture
async def empty(empty_url: str) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(empty_url)


async def test_our_own_migrations_are_applied_once(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    assert await migrate(empty) == migrations()
    assert await migrate(empty) == []
    await empty.close()


async def test_what_is_missing_is_applied_in_order(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    await migrate(empty, [FIRST])
    assert await migrate(empty, [FIRST, SECOND]) == [SECOND]
    await empty.close()


async def test_a_changed_migration_is_refused(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    await migrate(empty, [FIRST])
    with pytest.raises(DatabaseError, match="checksum differs"):
        await migrate(empty, [Migration(1, FIRST.name, "CREATE TABLE other (id integer)")])
    await empty.close()


async def test_a_database_that_is_ahead_of_us_is_used(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    await migrate(empty, [FIRST, SECOND])
    assert await migrate(empty, [FIRST]) == []
    await empty.close()


async def test_a_failing_migration_leaves_nothing(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE half (id integer); SELECT 1/0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, [FIRST, broken])
    assert await migrate(empty, [FIRST, SECOND]) == [SECOND]
    assert await empty.fetchval("SELECT to_regclass('half')") is None
    await empty.close()


async def test_concurrent_starts_migrate_once(empty_url: str) -> None:
    async def start() -> list[Migration]:
        connection = await asyncpg.connect(empty_url)
        try:
            return await migrate(connection)
        finally:
            await connection.close()

    applied = await asyncio.gather(*(start() for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations())]
