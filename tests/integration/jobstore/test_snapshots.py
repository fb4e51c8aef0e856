"""Views of the store, when those who look are interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from jobstore.snapshots import Pool, borrowed, reading_pool, snapshot


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """One connection, so that whoever comes next has the same one."""
    async with reading_pool(database_url, size=1) as pool:
        yield pool


async def pid_of(pool: Pool) -> int:
    async with borrowed(pool) as connection:
        return connection.get_server_pid()


async def read_a_job(pool: Pool) -> None:
    async with borrowed(pool) as connection:
        await connection.fetch("SELECT job_id FROM job WHERE job_id = $1", "nobody")


async def leave_between_parse_and_execution(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a call that is cancelled there: Postgres has begun a transaction then of which asyncpg knows nothing."""
    prepare = asyncpg.Connection._get_statement

    async def leave(*arguments: Any, **options: Any) -> None:
        await prepare(*arguments, **options)
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "_get_statement", leave)
        with pytest.raises(asyncio.CancelledError):
            await read_a_job(pool)


async def test_a_reader_that_leaves_while_its_statement_is_prepared_leaves_nothing_behind(
    pool: Pool, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await pid_of(pool)
    await leave_between_parse_and_execution(pool, monkeypatch)
    held = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND relation = 'job'::regclass"
    assert await connection.fetchval(held, pid) == 0
    async with snapshot(pool) as snapped:
        assert snapped.get_server_pid() == pid


async def test_a_reader_that_leaves_while_its_statement_runs_leaves_the_session_to_the_next(
    pool: Pool, connection: asyncpg.Connection
) -> None:
    pid = await pid_of(pool)

    async def sleep() -> None:
        async with snapshot(pool) as snapped:
            await snapped.execute("SELECT pg_sleep(60)")

    sleeping = asyncio.create_task(sleep())
    runs = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND query LIKE '%pg_sleep%'"
    while not await connection.fetchval(runs, pid):
        pass
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert await connection.fetchval(runs, pid) == 0
    async with snapshot(pool) as snapped:
        assert snapped.get_server_pid() == pid


async def test_a_session_that_cannot_be_tidied_up_is_thrown_away(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> str:
        raise TimeoutError

    pid = await pid_of(pool)
    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "execute", fail)
        await leave_between_parse_and_execution(pool, patched)
    async with snapshot(pool) as snapped:
        assert snapped.get_server_pid() != pid


async def test_a_reader_that_leaves_a_session_that_is_closed_already_leaves_all_the_same(pool: Pool) -> None:
    listens = asyncio.Event()

    async def listen() -> None:
        async with borrowed(pool) as connection:
            listens.set()
            try:
                await asyncio.Event().wait()
            finally:
                await connection.close()

    listening = asyncio.create_task(listen())
    await listens.wait()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening


async def test_a_reader_that_leaves_when_the_database_is_away_leaves_all_the_same(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncpg.Pool.release

    async def fail(*arguments: Any, **options: Any) -> None:
        await release(*arguments, **options)
        raise ConnectionResetError

    reads = asyncio.Event()

    async def read() -> None:
        async with borrowed(pool):
            monkeypatch.setattr(asyncpg.Pool, "release", fail)
            reads.set()
            await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await reads.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
