"""How a crowd is kept from holding the loop up."""

from __future__ import annotations

import asyncio

from coordinator.doorbell import Room


async def test_a_crowd_that_awaits_nothing_goes_through_a_room_in_many_turns() -> None:
    room, turn, entered = Room(10), 0, []

    async def go_through() -> None:
        async with room:
            entered.append(turn)

    crowd = asyncio.gather(*(go_through() for _ in range(100)))
    while not crowd.done():
        await asyncio.sleep(0)
        turn += 1
    await crowd
    assert len(entered) == 100
    assert max(entered.count(each) for each in set(entered)) <= 10


async def test_a_room_is_entered_by_so_many_at_a_time() -> None:
    room, inside, most, leave = Room(3), 0, 0, asyncio.Event()

    async def stay() -> None:
        nonlocal inside, most
        async with room:
            inside += 1
            most = max(most, inside)
            await leave.wait()
            inside -= 1

    crowd = asyncio.gather(*(stay() for _ in range(7)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert inside == 3
    leave.set()
    await crowd
    assert most == 3
