"""Time and ids as arguments."""

import asyncio
import uuid

import pytest

from chassis.clock import ManualClock, SequentialIds, SystemClock, Uuid7Ids


async def asleep(clock: ManualClock, *seconds: float) -> list[asyncio.Task[None]]:
    """Starts a sleeper for each time and lets them fall asleep."""
    sleepers = [asyncio.create_task(clock.sleep(each)) for each in seconds]
    await asyncio.sleep(0)
    return sleepers


async def test_a_sleeper_wakes_when_its_time_has_come_and_not_before() -> None:
    clock = ManualClock(start=100.0)
    (sleeper,) = await asleep(clock, 5)

    clock.advance(4.9)
    await asyncio.sleep(0)
    assert not sleeper.done()

    clock.advance(0.1)
    await sleeper
    assert (clock.now(), clock.monotonic()) == (105.0, 5.0)


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    clock, woken = ManualClock(), list[int]()

    async def sleeper(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2)]
    await asyncio.sleep(0)
    clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == [1, 2, 3]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    sleeper, other = await asleep(clock, 1, 1)
    sleeper.cancel()
    await asyncio.sleep(0)
    assert clock.sleeping == 1
    clock.advance(1)
    await other
    assert clock.sleeping == 0


@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_at_all_passes_without_anybody_advancing_the_clock(seconds: float) -> None:
    await ManualClock().sleep(seconds)


async def test_the_machines_clock_goes_forward() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.now() > 1_700_000_000


def test_fresh_ids_are_of_version_7_and_sort_by_their_birth() -> None:
    ids = Uuid7Ids()
    made = [ids.new() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    assert uuid.UUID(made[0]).version == 7


def test_counted_ids_are_the_same_in_every_run() -> None:
    assert [SequentialIds(first=10).new() for _ in range(2)] == ["00000000-0000-7000-8000-00000000000a"] * 2
    assert uuid.UUID(SequentialIds().new()).version == 7
