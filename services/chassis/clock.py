"""Time and ids as arguments.

The only module of the services that may ask the machine for the time or for a fresh id: everything else is given a
`Clock` and `Ids`, so that a test (or a simulation) decides both and the same seed gives the same history. A lint rule
keeps `time`, `random` and `uuid4` out of every other file.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

import uuid_utils


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> float:
        """Returns the wall time in unix seconds: for display and retention only, it may jump."""
        ...

    def monotonic(self) -> float:
        """Returns seconds from an arbitrary start, never going back: for deadlines and leases."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after so many seconds; at once, after one turn of the loop, if they are not positive."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is told to advance."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), waker))
        await waker

    @property
    def sleeping(self) -> int:
        """How many sleepers wait, for tests that must not advance before somebody sleeps."""
        return sum(not waker.done() for _, _, waker in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Moves the time on and wakes, in the order of their times, all whose time has come."""
        self._elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            _, _, waker = heapq.heappop(self._sleepers)
            if not waker.done():  # done: the sleeper was cancelled
                waker.set_result(None)


class Ids(Protocol):
    """Makes ids."""

    def new(self) -> str:
        """Returns a fresh UUID of version 7 as text."""
        ...


class Uuid7Ids:
    """Ids that sort by the time they were made at, so that new rows land at the end of an index."""

    def new(self) -> str:
        return str(uuid_utils.uuid7())


class SequentialIds:
    """Ids that count 1, 2, 3 …, in the form of a version 7 UUID."""

    def __init__(self, first: int = 1) -> None:
        self._numbers = itertools.count(first)

    def new(self) -> str:
        return f"00000000-0000-7000-8000-{next(self._numbers):012x}"
