"""Push to wake, poll to be safe: a bell that is answered at once, and looked after anyway after a while."""

from __future__ import annotations

import asyncio

from chassis.clock import Clock


async def set_within(event: asyncio.Event, clock: Clock, seconds: float) -> bool:
    """Waits for an event, at most so many seconds; tells whether it is set."""
    if event.is_set():
        return True
    is_set = asyncio.ensure_future(event.wait())
    enough = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((is_set, enough), return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        is_set.cancel()
        enough.cancel()


class Doorbell:
    """For one who waits. Rings while nobody waits are remembered, as one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wakes the one who waits."""
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Returns at the next ring, or after so many seconds; tells whether it has rung."""
        rung = await set_within(self._rung, self._clock, seconds)
        self._rung.clear()
        return rung
