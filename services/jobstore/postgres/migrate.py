"""Brings a database's schema up to what this release needs.

Numbered SQL files, forward only, each in a transaction of its own, each recorded with its checksum. An advisory lock
lets concurrent starts of several jobstores queue. A database that knows *more* migrations than we do is fine (an older
copy during a rolling upgrade: the schema expands before it contracts); one that knows others than ours is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from chassis import logs
from jobstore.postgres.postmaster import DatabaseError

FOLDER: Final = Path(__file__).parents[1] / "migrations"

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_ADVISORY_LOCK: Final = 0x7761796269  # "waybi"


log = logs.get_logger(__name__)


@dataclass(frozen=True)
class Migration:
    """One file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """Reads the files, in order; raises DatabaseError unless they are numbered 1, 2, 3 …"""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise DatabaseError(f"migration {path.name}: expected {len(found) + 1:04d}_name.sql")
        found.append(Migration(int(match[1]), path.name, path.read_text(encoding="utf-8")))
    return found


async def migrate(
    connection: asyncpg.Connection[asyncpg.Record], wanted: Sequence[Migration] | None = None
) -> list[Migration]:
    """Applies what is missing and returns it; raises DatabaseError if the database's history is not ours."""
    known = migrations() if wanted is None else wanted
    await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
    try:
        # Only now: the wait for another jobstore's migrations above may be long. From here on, better to fail than to
        # queue behind a reader and have all writers queue behind us.
        await connection.execute("SET lock_timeout = '2s'")
        missing = _missing(known, await _applied(connection))
        for migration in missing:
            await _apply(connection, migration)
        return missing
    finally:
        await connection.execute("RESET lock_timeout")
        await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)


async def migrate_database(url: str) -> None:
    """Brings the database at a URL up to date; raises DatabaseError if it does not let us, or is not ours."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await migrate(connection)
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"the database cannot be migrated: {error}") from error
    finally:
        await connection.close()


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> dict[int, str]:
    await connection.execute(
        """
        CREATE TABLE IF NOT EXISTS migration (
            number   integer     PRIMARY KEY,
            name     text        NOT NULL,
            checksum text        NOT NULL,
            time     timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    return {row["number"]: row["checksum"] for row in await connection.fetch("SELECT number, checksum FROM migration")}


def _missing(known: Sequence[Migration], applied: dict[int, str]) -> list[Migration]:
    for migration in known:
        if applied.get(migration.number, migration.checksum) != migration.checksum:
            raise DatabaseError(f"the database was migrated by another {migration.name}: its checksum differs")
    missing = [migration for migration in known if migration.number not in applied]
    if missing and applied and missing[0].number < max(applied):
        raise DatabaseError(f"the database lacks {missing[0].name}, but has later migrations")
    return missing


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(
            "INSERT INTO migration (number, name, checksum) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )
    log.info("migrated", migration=migration.name)
