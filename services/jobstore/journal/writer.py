"""The journal's own connection to Postgres, and how its errors are to be understood.

One connection a process, for writing alone. Its plans are made once and kept: that is what makes writing cheap, and
what makes it dangerous, for a plan that was made on empty tables reads them whole and is kept when they have grown. So
on this connection there is one way to run a statement, whatever the planner believes of sizes: rows are looked up in an
index by their keys and meet their changes in a hash. The settings leave no other, the statements are written for it
(`statements.py`), the checks behind foreign keys obey it too, and `tests/integration/jobstore/test_plans.py` looks at
every plan.

What an exception means:

| exception | means | so |
| --- | --- | --- |
| connection lost, shut down, `InternalClientError` (asyncpg#1069) | nobody knows if it was committed | `Lost`: again |
| deadlock, lock timeout, idle timeout | it was not committed, through no fault of the batch | `Lost`: again |
| disk full | nothing was committed; there is room for what ends things, not for what begins them | `DiskFull` |
| anything else that Postgres or the encoder says, a change that finds no row | somebody's rows are wrong | `Misfit` |
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import asyncpg

from jobstore.journal import statements
from jobstore.journal.shapes import Row, carried, columns_of

ANSWER_SECONDS: Final = 6.0
"""After which Postgres is not believed to answer a statement any more; longer than it waits for the mutex."""

SESSION: Final[Mapping[str, str]] = {
    "application_name": "waybill journal",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "default_transaction_isolation": "read committed",  # the guards must see what the last writer has committed
    "idle_in_transaction_session_timeout": "2000",  # a frozen jobstore would hold the mutex
    "lock_timeout": "5000",
}

_AGAIN: Final = (
    OSError,
    EOFError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting up
    asyncpg.TransactionRollbackError,  # deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidCachedStatementError,  # migrated under us: prepared anew on the next connection
)


class Lost(Exception):  # noqa: N818
    """Nobody knows whether the transaction was committed."""


class DiskFull(Exception):  # noqa: N818
    """Nothing was committed for want of room."""


class Misfit(Exception):  # noqa: N818
    """Nothing was committed: rows that the schema, the types or the stored rows do not admit.

    `defect`: it is our own statement that Postgres did not like.
    """

    def __init__(self, message: str, *, defect: bool = False) -> None:
        super().__init__(message)
        self.defect = defect


@contextmanager
def understood() -> Iterator[None]:
    """Turns what asyncpg raises into what it means."""
    try:
        yield
    except asyncpg.DiskFullError as error:
        raise DiskFull(str(error)) from error
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise Misfit(str(error)) from error
    except _AGAIN as error:
        if isinstance(error, ValueError):  # the encoder's word for a value that does not fit its type
            raise Misfit(str(error)) from error
        raise Lost(f"{type(error).__name__}: {error}") from error
    except asyncpg.PostgresError as error:
        raise Misfit(f"{type(error).__name__}: {error}", defect=True) from error


class Writer:
    """One transaction at a time: take a turn, ask and write, then commit or roll back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None  # None unless connected
        self._statements: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._connection is not None and not self._connection.is_closed()

    async def connect(self) -> None:
        """Connects; raises Lost if that is not possible now."""
        self.terminate()
        try:
            with understood():
                self._connection = await asyncpg.connect(self._url, timeout=5, server_settings=dict(SESSION))
        except Misfit as error:  # it does not let us in: no batch is to blame
            raise Lost(str(error)) from error

    def terminate(self) -> None:
        """Cuts the connection, without asking anybody."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._statements.clear()

    async def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            try:
                await self._connection.close(timeout=1)
            except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                self._connection.terminate()
        self._connection = None

    # -- a transaction

    async def take_turn(self) -> tuple[int, datetime]:
        """Begins a transaction and waits for the writers' mutex; returns the transaction's revision and time."""
        await self._execute("BEGIN")
        [row] = await self.fetch(statements.TAKE_TURN)
        return row[0], row[1]

    async def commit(self) -> None:
        """Makes it durable."""
        await self._execute("COMMIT")

    async def roll_back(self) -> None:
        """Leaves nothing of it, not even a revision."""
        await self._execute("ROLLBACK")

    async def abandon(self) -> None:
        """Leaves nothing of it, in whatever state it is; at worst without a connection."""
        try:
            with understood():
                await self.roll_back()
        except (Lost, Misfit):
            self.terminate()

    # -- in it

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Runs a statement and returns its rows."""
        with self._impatience():
            return await (await self._prepared(sql)).fetch(*arguments)

    async def change(self, sql: str, *arguments: object) -> int:
        """Runs a statement and returns how many rows it has written."""
        with self._impatience():
            statement = await self._prepared(sql)
            await statement.fetch(*arguments)
            _, _, count = (statement.get_statusmsg() or "").rpartition(" ")  # "UPDATE 12"
            return int(count)

    async def insert(self, sql: str, *scalars: object, rows: Sequence[Row], last: Sequence[str] | None = None) -> int:
        """Runs a statement over rows, completed by the column `last`; returns how many it has written."""
        if not rows:
            return 0
        completed = () if last is None else (carried(last),)
        return await self.change(sql, *scalars, *columns_of(rows), *completed)

    async def change_each(self, sql: str, *scalars: object, rows: Sequence[Row]) -> None:
        """Runs a statement over changes of rows; raises Misfit unless each has found its row."""
        written = await self.insert(sql, *scalars, rows=rows)
        if written != len(rows):
            raise Misfit(f"{len(rows) - written} of {len(rows)} changes are of rows that are unknown or have ended")

    # -- the connection

    async def _execute(self, command: str) -> None:
        with self._impatience():
            await self._open.execute(command)

    async def _prepared(self, sql: str) -> asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]:
        statement = self._statements.get(sql)
        if statement is None:
            statement = self._statements[sql] = await self._open.prepare(sql)
        return statement

    @property
    def _open(self) -> asyncpg.Connection[asyncpg.Record]:
        assert self._connection is not None
        return self._connection

    @contextmanager
    def _impatience(self) -> Iterator[None]:
        """Cuts the connection if Postgres takes too long to answer.

        Not a cancelled query: one that reaches Postgres in COMMIT makes a transaction visible that is on one machine
        only. A cut connection leaves the commit to its fate, and us to ask.
        """
        cut = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._open.terminate)
        try:
            yield
        finally:
            cut.cancel()
