"""Push to wake, poll to be safe: a bell that is answered at once, and looked after anyway after a while.

And what belongs to it: how batches become large without a timer (what is about to be sent waits until the loop is at
rest), and how crowds are kept from holding the loop up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Final

from chassis.clock import Clock

_QUIET_TURNS: Final = 4
_MOST_TURNS: Final = 32
"""Of the loop: a flow's way from its submission to its commit takes about three."""


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


async def settled(queue: Sized) -> None:
    """Lets the loop turn until a queue has stopped growing, so that what is coming anyway is sent along.

    It takes an idle process no time, and one that is busy has work for the time being.
    """
    quiet = 0
    for _ in range(_MOST_TURNS):
        before = len(queue)
        await asyncio.sleep(0)
        quiet = quiet + 1 if len(queue) == before else 0
        if quiet == _QUIET_TURNS:
            return


class Room:
    """For so many at a time, and in a turn of the loop: who leaves makes room in the next.

    A crowd whose work awaits nothing would else pass in one turn, and keep the loop from everything besides.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)

    async def __aenter__(self) -> None:
        await self._places.acquire()

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().call_soon(self._places.release)


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
