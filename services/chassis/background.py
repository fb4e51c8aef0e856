"""Tasks in the background of an owner: they live as long as its `async with`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Owns tasks: ends with them cancelled and awaited; a crash of one ends the owner with its error.

    Nothing in the background fails unseen: an error in a loop is a defect, and a process that goes on without one of
    its loops is worse than one that is started anew.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._context = Context()  # the owner's

    async def __aenter__(self) -> Background:
        await self._group.__aenter__()
        self._context = copy_context()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        # The group is told of a cancellation only, which may be its own (a crash): an error of the owner's body passes
        # by as it is, not wrapped into a group.
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        await self._group.__aexit__(type(cancelled) if cancelled else None, cancelled, trace if cancelled else None)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts work that nobody awaits; it may end by itself.

        It belongs to the owner, also if some call gave the occasion: neither that one's ids nor its trace are on it.
        """
        task = self._group.create_task(work, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
