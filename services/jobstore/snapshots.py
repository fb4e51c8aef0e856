"""Read-only views of the store, each with a deadline.

Readers have a pool of their own, so that no amount of reading makes a commit wait for a connection. Its sessions are
read-only by default and give every statement `DEADLINE` seconds; our own side waits a little longer, so that a slow
statement is told from a server that does not answer at all:

| what happens | who notices | the caller gets |
| --- | --- | --- |
| the statement takes too long | the server, after `DEADLINE` | RESOURCE_EXHAUSTED: asking again will not help |
| the server is frozen or cut off | we, `PATIENCE` later | UNAVAILABLE, and the connection is thrown away |
| the server is gone, or going | both | UNAVAILABLE |
| the caller goes | we | nothing; what its statement has begun is ended before the next one has the session |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from chassis.errors import WaybillError, resource_exhausted, unavailable

DEADLINE: Final = 10.0
PATIENCE: Final = 2.0

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

AWAY: Final = (
    OSError,  # TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg#1069: what it says when the server dies under it
)
"""What is raised when the database is away, or went away meanwhile."""


@asynccontextmanager
async def reading_pool(url: str, *, size: int = 12) -> AsyncIterator[Pool]:
    """Yields the readers' pool. It connects when it is first used, and whenever that is possible again."""
    async with asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=DEADLINE,
        command_timeout=DEADLINE + PATIENCE,
        reset=_as_it_is,
        server_settings={
            "application_name": "waybill-jobstore-reader",
            "default_transaction_read_only": "on",
            "statement_timeout": f"{DEADLINE:.0f}s",
            "idle_in_transaction_session_timeout": f"{DEADLINE:.0f}s",
            # A plan for values that are not known yet would take a third of the jobs to be new since a revision.
            "plan_cache_mode": "force_custom_plan",
            "jit": "off",
        },
    ) as pool:
        yield pool


async def _as_it_is(_: object) -> None:
    """Nobody leaves anything in a session that the next would have to undo; asking for it is a round trip a read."""


@asynccontextmanager
async def borrowed(pool: Pool) -> AsyncIterator[Connection]:
    """Yields a connection for statements that need not agree with each other.

    Raises WaybillError UNAVAILABLE when the database is away, RESOURCE_EXHAUSTED when it took too long.
    """
    try:
        async with pool.acquire(timeout=DEADLINE) as connection:
            try:
                yield connection
            except (TimeoutError, asyncpg.InternalClientError):
                connection.terminate()  # it may answer yet, to nobody
                raise
            except asyncio.CancelledError:
                await _end_what_was_begun(connection)
                raise
    except asyncpg.QueryCanceledError as error:
        raise resource_exhausted(f"the statement took longer than {DEADLINE:.0f} s") from error
    except AWAY as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError from error  # who is to end must not be told to try again
        raise away(error) from error


async def _end_what_was_begun(connection: Connection) -> None:
    """Ends the transaction that Postgres has begun with a statement's preparation, and would end with its execution.

    asyncpg knows nothing of it (it sends Parse and Flush first, Sync only with the execution), so it would be the next
    reader's: its locks, and its being too late to be a snapshot.
    """
    try:
        await connection.execute("SELECT", timeout=PATIENCE)
    except (*AWAY, asyncpg.PostgresError, asyncio.CancelledError):  # whatever it has: it is not worth waiting for
        connection.terminate()


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Connection]:
    """Yields a connection on which every statement sees the same state of the store."""
    async with (
        borrowed(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


def away(error: BaseException) -> WaybillError:
    """Says that the database cannot be reached; the same call will do, later."""
    return unavailable(f"the database is away: {type(error).__name__}", retry_after=1.0)
