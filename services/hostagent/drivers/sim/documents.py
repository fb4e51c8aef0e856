"""Small JSON documents in memory, kept in a file of their own.

Memory is ahead of the file by what is being written; `save` returns when everything changed so far is on disk. Changes
made without an `await` between them are one transaction: they are on disk together or not at all. A hot document that
changes ten times while the disk is busy is written once.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chassis import logs
from chassis.clock import Clock
from hostagent.sqlite_writer import SqliteWriter
from hostagent.task import Json

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS document (
        kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)
    ) WITHOUT ROWID""",
)
_PUT: Final = (
    "INSERT INTO document (kind, id, body) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body"
)
_REMOVE: Final = "DELETE FROM document WHERE kind = ? AND id = ?"

_RETRY_SECONDS: Final = 1.0

log = logs.get_logger(__name__)

Key = tuple[str, str]
"""Kind and id."""


class Documents:
    """All documents of a file: `async with Documents(path, clock) as documents`."""

    def __init__(self, path: Path | str, clock: Clock) -> None:
        self._file = SqliteWriter(path, _SCHEMA)
        self._clock = clock
        self._bodies: dict[str, dict[str, Json]] = {}
        self._changed: set[Key] = set()

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        for kind, document_id, body in await self._file.write(_read):
            self.kind(kind)[document_id] = json.loads(body)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._file.__aexit__(kind, error, trace)

    def kind(self, kind: str) -> dict[str, Json]:
        """Returns the documents of a kind by their ids; to be changed by `put` and `remove` only."""
        return self._bodies.setdefault(kind, {})

    def get(self, kind: str, document_id: str) -> Json:
        """Returns a document, None if there is none."""
        return self.kind(kind).get(document_id)

    def put(self, kind: str, document_id: str, body: Json) -> None:
        """Sets a document."""
        self.kind(kind)[document_id] = body
        self._changed.add((kind, document_id))

    def remove(self, kind: str, document_id: str) -> bool:
        """Removes a document; returns False if there is none."""
        if self.kind(kind).pop(document_id, None) is None:
            return False
        self._changed.add((kind, document_id))
        return True

    async def save(self) -> None:
        """Returns when all changes so far are on disk, however long that is full."""
        changed, self._changed = self._changed, set()
        try:
            while not await self._written(changed):
                await self._clock.sleep(_RETRY_SECONDS)
        except asyncio.CancelledError:
            self._changed |= changed  # whoever saves next does it for us
            raise

    async def _written(self, changed: set[Key]) -> bool:
        try:
            await self._write(changed)
        except sqlite3.Error as error:
            log.error("cannot write the model", error=str(error))
            return False
        return True

    async def _write(self, changed: set[Key]) -> None:
        """Writes the documents as they are now: a second try must not bring back what was there at the first."""
        puts: list[tuple[str, str, str]] = []
        removes: list[Key] = []
        for kind, document_id in changed:
            body = self.get(kind, document_id)
            if body is None:
                removes.append((kind, document_id))
            else:
                puts.append((kind, document_id, json.dumps(body)))

        def step(connection: sqlite3.Connection) -> None:
            connection.executemany(_PUT, puts)
            connection.executemany(_REMOVE, removes)

        await self._file.write(step)


def _read(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return connection.execute("SELECT kind, id, body FROM document").fetchall()
