"""Jobstores as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

PATHS = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def a_jobstore(
    data_dir: Path,
    interpreter: str = sys.executable,
    *,
    listen: str = "127.0.0.1:0",
    database_url: str = "embedded",
    settings: Mapping[str, str] = MappingProxyType({}),
    stderr: int = subprocess.DEVNULL,
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Runs a jobstore, which is gone afterwards. `settings`: more of its environment."""
    environment = {
        **PATHS,
        "HOME": str(data_dir.parent),
        "JOBSTORE_LISTEN": listen,
        "JOBSTORE_DATA_DIR": str(data_dir),
        "JOBSTORE_DATABASE_URL": database_url,
        **settings,
    }
    with subprocess.Popen(
        [interpreter, "-m", "jobstore"],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_listening(process: subprocess.Popen[str]) -> str:
    """Waits until it listens, and returns where."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening "), line
    return line.split()[1]


def end(process: subprocess.Popen[str]) -> None:
    """Ends it in peace."""
    process.terminate()
    assert process.wait(20) == 0
