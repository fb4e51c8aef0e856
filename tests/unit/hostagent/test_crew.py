"""Background work and its owners."""

from __future__ import annotations

import asyncio

import pytest

from hostagent.crew import Crew


async def test_whoever_is_hired_is_dismissed_with_the_crew() -> None:
    dismissed = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            dismissed.set()

    async with Crew() as crew:
        crew.hire(work())
        await asyncio.sleep(0)
    assert dismissed.is_set()


async def test_the_failure_of_one_ends_the_owner() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async def own_a_crew() -> None:
        async with Crew() as crew:
            crew.hire(fail())
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as caught:
        await own_a_crew()
    assert caught.group_contains(ValueError)


async def test_what_is_seen_through_goes_on_without_its_caller() -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await go_on.wait()
        done.set()
        return 1

    async with Crew() as crew:
        caller = asyncio.create_task(crew.see_through(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        go_on.set()
        await done.wait()


async def test_a_caller_gets_the_answer_or_the_error() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("no")

    async with Crew() as crew:
        assert await crew.see_through(answer()) == 7
        with pytest.raises(ValueError, match="no"):
            await crew.see_through(fail())
