"""Timers of all flows, on one heap with one task: a flow that sets one pays for a push, not for a task."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

from chassis.clock import Clock

_GRAIN_SECONDS: Final = 0.01
"""Timers that are due within so little are fired together: hundreds of flows set one each a second."""


class Timers:
    """Calls back at times. Run `run()` in the background of the owner."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._changed = asyncio.Event()

    def at(self, moment: float, callback: Callable[[], None]) -> None:
        """Calls back at a Unix time. It is kept on the monotonic clock from now on: wall time may jump."""
        due = self._clock.monotonic() + max(0.0, moment - self._clock.now())
        heapq.heappush(self._heap, (due, next(self._order), callback))
        if self._heap[0][0] == due:
            self._changed.set()

    async def run(self) -> None:
        """Fires timers for ever."""
        while True:
            self._changed.clear()
            self._fire_due()
            await self._next()

    def _fire_due(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2]()

    async def _next(self) -> None:
        """Waits until the earliest timer is due or an earlier one is set."""
        if not self._heap:
            await self._changed.wait()
            return
        seconds = max(_GRAIN_SECONDS, self._heap[0][0] - self._clock.monotonic())
        pause = asyncio.ensure_future(self._clock.sleep(seconds))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((pause, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            changed.cancel()
