"""One writer, many callers."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from hostagent.sqlite_writer import SqliteWriter, Step

SCHEMA = ("CREATE TABLE IF NOT EXISTS fact (number INTEGER PRIMARY KEY)",)


def insert(number: int) -> Step[object]:
    return lambda connection: connection.execute("INSERT INTO fact VALUES (?)", (number,))


def numbers_in(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [number for (number,) in connection.execute("SELECT number FROM fact ORDER BY number")]
    finally:
        connection.close()


async def test_what_is_written_is_on_disk_when_the_caller_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    async with SqliteWriter(path, SCHEMA) as file:
        for number in range(3):
            await file.write(insert(number))
            assert numbers_in(path) == list(range(number + 1))


@pytest.mark.rule("semantics §3: The id is in the ledger (fsync) before the work begins")
async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    async with SqliteWriter(tmp_path / "facts.db", SCHEMA) as file:
        assert await file.write(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)  # FULL


async def test_callers_at_once_share_transactions(tmp_path: Path) -> None:
    async with SqliteWriter(tmp_path / "facts.db", SCHEMA) as file:
        began: list[str] = []
        await file.write(lambda connection: connection.set_trace_callback(began.append))
        await asyncio.gather(*(file.write(insert(number)) for number in range(100)))
        await file.write(lambda connection: connection.set_trace_callback(None))
        assert began.count("COMMIT") <= 3
        assert numbers_in(tmp_path / "facts.db") == list(range(100))


async def test_a_step_that_fails_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    async with SqliteWriter(path, SCHEMA) as file:
        steps = [file.write(insert(number)) for number in (1, 1, 2)]
        first, again, second = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(again, sqlite3.IntegrityError)
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        assert numbers_in(path) == [1, 2]


async def test_a_caller_that_leaves_gives_up_the_answer_not_the_write(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    async with SqliteWriter(path, SCHEMA) as file:
        leaving = asyncio.create_task(file.write(insert(1)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await file.write(insert(2))
    assert numbers_in(path) == [1, 2]


async def test_closing_writes_what_was_gathered(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    async with SqliteWriter(path, SCHEMA) as file:
        writing = asyncio.gather(file.write(insert(1)), file.write(insert(2)))
        await asyncio.sleep(0)
    await writing
    assert numbers_in(path) == [1, 2]


async def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "facts.db").write_text("this is no database, and long enough to be seen as none " * 20)
    with pytest.raises(sqlite3.DatabaseError):
        async with SqliteWriter(tmp_path / "facts.db", SCHEMA):
            pass
