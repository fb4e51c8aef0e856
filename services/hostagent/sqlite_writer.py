"""One SQLite file behind one thread: many callers' writes, one transaction, one fsync.

    write ─┐                    ┌──────────── the thread ────────────┐
    write ─┼─▶ gathering ─▶ one batch in flight: BEGIN, steps, COMMIT ─▶ every caller gets its answer
    write ─┘       ▲                                                        │
                   └──────────── what came meanwhile is the next ◀──────────┘

There is no timer: an idle file writes at once, a busy one in batches that grow by themselves. `write` returns after
the COMMIT, and a COMMIT under `synchronous = FULL` returns after the fsync, so what a caller goes on to say is on disk.

A batch that fails is rolled back and its steps are applied one by one, so that one bad step fails alone. A caller that
is cancelled while it waits gives up the answer, not the write.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]
"""What to do within a transaction. It runs in the writer's thread and must touch nothing but its own data."""


class _Entry(NamedTuple):
    """A step and who waits for its answer."""

    step: Step[Any]
    waiter: asyncio.Future[Any]


_Outcome = tuple[Any, Exception | None]


class SqliteWriter:
    """The only user of a SQLite file: `async with SqliteWriter(path, schema) as file`."""

    def __init__(
        self,
        path: Path | str,
        schema: Sequence[str],
        *,
        on_send: Callable[[int], None] = lambda writes: None,
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        """`schema`: statements to run at every opening; they say IF NOT EXISTS.

        `on_send` is told of a transaction that begins and how many writes are in it, `on_written` that it is over.
        """
        self._on_send = on_send
        self._on_written = on_written
        self._path = str(path)
        self._schema = schema
        self._gathering: list[_Entry] = []
        self._busy = False
        self._batches: SimpleQueue[list[_Entry] | None] = SimpleQueue()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(opened,), name=f"sqlite {self._path}", daemon=True)
        self._thread.start()
        await opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes what was gathered, then closes the file."""
        self._send()  # behind the batch in flight, if there is one
        self._batches.put(None)
        await asyncio.shield(self._closed)
        self._thread.join()

    async def write(self, step: Step[T]) -> T:
        """Runs a step in the next transaction and returns its answer once that is on disk.

        Raises sqlite3.Error if it could not be written, and whatever the step raises.
        """
        return await self._gather(step)

    def post(self, step: Step[object]) -> None:
        """Runs a step in the next transaction; nobody waits for it, and nobody learns whether it could be written."""
        self._gather(step).add_done_callback(_look_away)

    def _gather(self, step: Step[T]) -> asyncio.Future[T]:
        waiter: asyncio.Future[T] = self._loop.create_future()
        self._gathering.append(_Entry(step, waiter))
        if not self._busy:
            self._busy = True
            # Not at once: callers that were woken by the same event still join this batch.
            self._loop.call_soon(self._send)
        return waiter

    def _send(self) -> None:
        batch, self._gathering = self._gathering, []
        self._on_send(len(batch))
        self._batches.put(batch)

    def _written(self, batch: list[_Entry], outcomes: list[_Outcome]) -> None:
        self._on_written()
        for entry, (answer, error) in zip(batch, outcomes, strict=True):
            if entry.waiter.done():  # its caller was cancelled
                continue
            if error is None:
                entry.waiter.set_result(answer)
            else:
                entry.waiter.set_exception(error)
        self._loop.call_soon(self._send_next)  # after those just woken, who may have more to write

    def _send_next(self) -> None:
        if self._gathering:
            self._send()
        else:
            self._busy = False

    # Below here: the thread.

    def _serve(self, opened: asyncio.Future[None]) -> None:
        try:
            connection = self._open()
        except sqlite3.Error as error:
            self._tell(_fail, opened, error)
            return
        self._tell(_succeed, opened)
        while (batch := self._batches.get()) is not None:
            self._tell(self._written, batch, _apply(connection, batch))
        connection.close()
        self._tell(_succeed, self._closed)

    def _tell(self, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is gone: nobody is left to be told
            return

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in self._schema:
            connection.execute(statement)
        return connection


def _apply(connection: sqlite3.Connection, batch: list[_Entry]) -> list[_Outcome]:
    try:
        return _in_one_transaction(connection, batch)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's answer
        if len(batch) == 1:
            return [(None, error)]
    return [outcome for entry in batch for outcome in _apply(connection, [entry])]


def _in_one_transaction(connection: sqlite3.Connection, batch: list[_Entry]) -> list[_Outcome]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[_Outcome] = [(entry.step(connection), None) for entry in batch]
        connection.execute("COMMIT")
        return outcomes
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _look_away(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
