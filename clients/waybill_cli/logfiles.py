"""Shows what the services log while they log it, from their files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

_INTERVAL = 0.2


@asynccontextmanager
async def shown_logs(folder: Path, show: Callable[[str], None]) -> AsyncIterator[None]:
    """Shows each line that comes into a log file of the folder from now on, with the name of its file."""
    following = asyncio.create_task(_follow(LogFolder(folder), show), name=f"logs of {folder}")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


class LogFolder:
    """The log files of a folder, read from where they ended when this was made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = {path: path.stat().st_size for path in folder.glob("*.log")}

    def new_lines(self) -> Iterator[str]:
        """What has been logged since the last time."""
        for path in sorted(self._folder.glob("*.log")):
            for line in self._new_lines_of(path):
                yield f"{path.stem:<13} {line}"

    def _new_lines_of(self, path: Path) -> list[str]:
        place = self._places.get(path, 0)
        if path.stat().st_size < place:
            place = 0  # a new file took its place
        with path.open("rb") as log:
            log.seek(place)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._places[path] = place + len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


async def _follow(logs: LogFolder, show: Callable[[str], None]) -> None:
    while True:
        for line in logs.new_lines():
            show(line)
        await asyncio.sleep(_INTERVAL)
