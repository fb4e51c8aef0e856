"""The folder that one agent, and only one, works in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderTaken(Exception):  # noqa: N818
    """Another agent works in this folder."""


@contextmanager
def data_folder(folder: Path) -> Iterator[Path]:
    """Makes the folder if need be and holds it: a second agent in it would give the same tasks to the host twice.

    The lock is the kernel's and ends with the process, however that ends. Raises FolderTaken.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(f"another host agent works in {folder}") from None
        yield folder
    finally:
        os.close(descriptor)
