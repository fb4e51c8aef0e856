"""How the reads of a flow's commands become calls to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from chassis.errors import WaybillError, unavailable
from coordinator.plan import EntityRef
from coordinator.world import Entity, Reading


def disk(number: int) -> EntityRef:
    return EntityRef("DISK", f"d-{number}")


class Store:
    """Answers after a turn of the loop; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[EntityRef]] = []
        self.away = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def is_asked(self, times: int) -> None:
        while len(self.asked) < times:  # noqa: ASYNC110 - it takes some turns of the loop, and no time
            await asyncio.sleep(0)

    async def read(self, refs: Sequence[EntityRef]) -> list[Entity]:
        self.asked.append(list(refs))
        await self.hold.wait()
        if self.away:
            raise unavailable("the store is away")
        return [Entity(ref, name=ref.entity_id) for ref in refs]


async def test_what_is_asked_for_in_one_turn_of_the_loop_is_one_call() -> None:
    store = Store()
    reading = Reading(store.read)
    answers = await asyncio.gather(*(reading.read([disk(number), disk(0)]) for number in range(5)))
    assert [[entity.ref for entity in answer] for answer in answers] == [[disk(n), disk(0)] for n in range(5)]
    assert [sorted(asked, key=str) for asked in store.asked] == [[disk(number) for number in range(5)]]
    assert await reading.read([disk(3)]) == [answers[3][0]]
    assert len(store.asked) == 1


async def test_what_is_asked_for_later_is_another_call() -> None:
    store = Store()
    store.hold.clear()
    reading = Reading(store.read)
    first = asyncio.create_task(reading.read([disk(1)]))
    await store.is_asked(1)
    second = asyncio.create_task(reading.read([disk(1), disk(2)]))
    await store.is_asked(2)
    store.hold.set()
    assert (await first)[0] is (await second)[0]


async def test_a_store_that_is_away_is_away_for_all_who_asked() -> None:
    store = Store()
    store.away = True
    reading = Reading(store.read)
    answers = await asyncio.gather(*(reading.read([disk(number)]) for number in range(3)), return_exceptions=True)
    assert {getattr(answer, "reason", "") for answer in answers} == {"DEPENDENCY_UNAVAILABLE"}
    store.away = False
    assert len(await reading.read([disk(0), disk(1), disk(2)])) == 3


async def test_that_the_one_who_asks_is_cancelled_is_no_end_for_the_others() -> None:
    store = Store()
    store.hold.clear()
    reading = Reading(store.read)
    asks = asyncio.create_task(reading.read([disk(1)]))
    along = asyncio.create_task(reading.read([disk(2)]))
    await store.is_asked(1)
    asks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asks
    with pytest.raises(WaybillError) as told:
        await along
    assert told.value.reason == "DEPENDENCY_UNAVAILABLE"
    store.hold.set()
    assert (await reading.read([disk(2)]))[0].name == "d-2"
