"""The background work of an agent noun, so that every task has an owner.

async with Crew() as crew:
    crew.hire(worker())                       works until the crew is dismissed; its failure ends the owner
    answer = await crew.see_through(write())  goes on to its end though the caller may leave
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Crew:
    """Tasks that live within an `async with`, and are cancelled and awaited at its end."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        # The group is told of a cancellation only, which may be its own (somebody failed): an error of the owner's body
        # passes by as it is, not wrapped into a group.
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        try:
            await self._group.__aexit__(type(cancelled) if cancelled else None, cancelled, trace if cancelled else None)
        finally:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def hire(self, work: Coroutine[Any, Any, None]) -> None:
        """Has somebody do this. It must deal with what may fail: an exception ends the whole crew, and its owner."""
        self._keep(self._group.create_task(work))

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Does this to its end and returns its answer, or raises its error, unless the caller is cancelled first."""
        task = asyncio.get_running_loop().create_task(work)
        self._keep(task)
        return await asyncio.shield(task)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
