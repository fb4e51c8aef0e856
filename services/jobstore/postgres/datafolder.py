"""The folder of an embedded server: whose it is, what version, under which user, and where its socket lies.

What is in it is told in `postgres.py`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from chassis import logs
from jobstore.postgres.postmaster import DatabaseError, await_backends, binary, end, leftover, spawn

DATABASE: Final = "waybill"
ROLE: Final = "waybill"

_SOCKET_NAME: Final = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH: Final = 106  # sun_path has 108 bytes, the last of them NUL; one to spare
_LARGEST_LOG: Final = 8 << 20

log = logs.get_logger(__name__)


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
        """Lets go of the folder, and leaves nothing elsewhere."""
        if self._lock is not None:
            if self.socket.parent.parent != self.path:
                shutil.rmtree(self.socket.parent, ignore_errors=True)
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
            end(postmaster)
        await_backends(self.cluster)
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
