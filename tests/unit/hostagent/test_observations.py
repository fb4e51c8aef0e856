"""Numbered observations."""

from __future__ import annotations

import asyncio

import pytest

from chassis.clock import ManualClock, SequentialIds
from hostagent.feed import FeedClosed
from hostagent.ledger import Ledger
from hostagent.observations import Observations


async def test_observations_are_numbered_from_one() -> None:
    async with Ledger(":memory:", SequentialIds()) as ledger, Observations(ledger, ManualClock()) as observations:
        with observations.watch() as watcher:
            observations.observe("HOST", "h", "UP")
            observations.observe("VM", "v", "DOWN", "no memory")
            host, vm = await watcher.changes()
            assert (host.number, host.state, vm.number, vm.error) == (1, "UP", 2, "no memory")


async def test_a_vm_that_is_down_is_not_on_the_host_any_more() -> None:
    async with Ledger(":memory:", SequentialIds()) as ledger, Observations(ledger, ManualClock()) as observations:
        for state in ("POWERING_UP", "UP"):
            observations.observe("VM", "v1", state)
            observations.observe("VM", "v2", state)
        observations.observe("VM", "v1", "DOWN")
        assert [(seen.entity_id, seen.state, seen.number) for seen in observations.current()] == [("v2", "UP", 4)]
        assert observations.newest == 5


async def test_a_new_process_gives_out_no_number_again() -> None:
    async with Ledger(":memory:", SequentialIds()) as ledger:
        async with Observations(ledger, ManualClock()) as first:
            first.observe("HOST", "h", "UP")
        async with Observations(ledger, ManualClock()) as second:
            second.observe("HOST", "h", "UP")
            assert second.newest > first.newest
            await second.durable(second.newest)


async def test_no_number_is_told_that_the_ledger_does_not_reserve() -> None:
    async with Ledger(":memory:", SequentialIds()) as ledger, Observations(ledger, ManualClock()) as observations:
        for number in range(3000):
            observations.observe("VM", f"v{number}", "UP")
        telling = asyncio.create_task(observations.durable(3000))
        await asyncio.sleep(0)
        assert not telling.done()
        await telling
        assert ledger.observation_ceiling >= 3000


async def test_watches_end_when_the_agent_does() -> None:
    async with Ledger(":memory:", SequentialIds()) as ledger, Observations(ledger, ManualClock()) as observations:
        with observations.watch() as watcher:
            observations.close()
            with pytest.raises(FeedClosed):
                await watcher.changes()
