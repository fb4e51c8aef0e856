"""What Postgres counts: statements, writing transactions, log bytes, and how many commits shared a transaction.

Statements come from pg_stat_statements, which the bench has loaded into its server (it costs each statement well under
a microsecond). Writing transactions are transaction numbers that were given out: exact at once, where
pg_stat_database.xact_commit lags by seconds and counts reads too. Commits are counted in the rows themselves: a flow's
`sequence` is the number of its commits, and a revision is one transaction that took some.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import asyncpg

from jobstore.postgres.datafolder import DATABASE

SERVER_SETTINGS: Final[Mapping[str, str]] = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track_planning": "off",
}

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True)
class Counts:
    """Totals since the database was made."""

    statements: int
    transactions: int
    log_bytes: int
    commits: int
    revisions: int

    def since(self, earlier: Counts) -> Counts:
        """What was added in between."""
        return Counts(*(now - then for now, then in zip(self._all(), earlier._all(), strict=True)))

    @classmethod
    def total(cls, counts: Sequence[Counts]) -> Counts:
        """What was added in all of them."""
        return cls(*(sum(column) for column in zip(*(each._all() for each in counts), strict=True)))

    @property
    def commits_a_revision(self) -> float:
        """How many commits shared a transaction, on average."""
        return self.commits / self.revisions if self.revisions else 0.0

    def _all(self) -> tuple[int, ...]:
        return (self.statements, self.transactions, self.log_bytes, self.commits, self.revisions)


@dataclass(frozen=True)
class Statement:
    """What one statement has cost."""

    text: str
    calls: int
    seconds: float


class Database:
    """Looks at the store's database from outside, by a connection whose own questions are not counted."""

    def __init__(self, inside: Connection, outside: Connection) -> None:
        self._inside = inside
        self._outside = outside

    async def before(self) -> Counts:
        """The counts at the beginning of something: our own questions come first."""
        commits, revisions = await self._rows()
        return Counts(*await self._server(), commits, revisions)

    async def after(self) -> Counts:
        """The counts at its end: our own questions come last."""
        server = await self._server()
        commits, revisions = await self._rows()
        return Counts(*server, commits, revisions)

    async def forget_statements(self) -> None:
        """Begins to count statements anew."""
        await self._outside.execute("SELECT pg_stat_statements_reset()")

    async def costliest(self, most: int) -> list[Statement]:
        """The statements that took most time since they were forgotten."""
        rows = await self._outside.fetch(
            """
            SELECT query, calls, total_exec_time / 1000 AS seconds FROM pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1) ORDER BY total_exec_time DESC LIMIT $2
            """,
            DATABASE,
            most,
        )
        return [Statement(" ".join(row["query"].split()), row["calls"], row["seconds"]) for row in rows]

    async def _server(self) -> tuple[int, int, int]:
        row = await self._outside.fetchrow(
            """
            SELECT (SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
                    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1)) AS statements,
                   pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS transactions,
                   (pg_current_wal_lsn() - '0/0')::bigint AS log_bytes
            """,
            DATABASE,
        )
        assert row is not None
        return row["statements"], row["transactions"], row["log_bytes"]

    async def _rows(self) -> tuple[int, int]:
        row = await self._inside.fetchrow(
            """
            SELECT (SELECT coalesce(sum(sequence), 0)::bigint FROM command) AS commits, revision FROM head
            """
        )
        assert row is not None
        return row["commits"], row["revision"]


@asynccontextmanager
async def looked_at(url: str) -> AsyncIterator[Database]:
    """Opens the store's database for looking at it."""
    inside = await asyncpg.connect(url)
    outside = await asyncpg.connect(url, database="postgres")
    try:
        await outside.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        yield Database(inside, outside)
    finally:
        await outside.close()
        await inside.close()
