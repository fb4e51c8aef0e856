"""Telling watchers of changes."""

from __future__ import annotations

import asyncio

import pytest

from chassis.clock import ManualClock
from hostagent.feed import MOST_AT_ONCE, Feed, FeedClosed


async def test_a_watcher_gets_what_is_told_after_it_came() -> None:
    feed: Feed[str, int] = Feed()
    feed.tell("a", 1)
    with feed.watch() as watcher:
        feed.tell("a", 2)
        feed.tell("b", 3)
        assert await watcher.changes() == [2, 3]


async def test_a_slow_watcher_gets_the_last_of_each() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        for number in range(10):
            feed.tell("a", number)
            feed.tell(f"b{number % 2}", number)
        assert await watcher.changes() == [8, 9, 9]


async def test_changes_come_in_the_order_in_which_they_were_told_last() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        feed.tell("a", 1)
        feed.tell("b", 2)
        feed.tell("a", 3)
        assert await watcher.changes() == [2, 3]


async def test_a_message_has_at_most_so_many_changes() -> None:
    feed: Feed[int, int] = Feed()
    with feed.watch() as watcher:
        for number in range(MOST_AT_ONCE + 1):
            feed.tell(number, number)
        assert len(await watcher.changes()) == MOST_AT_ONCE
        assert await watcher.changes() == [MOST_AT_ONCE]


async def test_a_watcher_waits_until_there_is_a_change() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        waiting = asyncio.create_task(watcher.changes())
        await asyncio.sleep(0)
        assert not waiting.done()
        feed.tell("a", 1)
        assert await waiting == [1]


async def test_every_watcher_goes_at_its_own_pace() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as quick, feed.watch() as slow:
        feed.tell("a", 1)
        assert await quick.changes() == [1]
        feed.tell("a", 2)
        assert await quick.changes() == [2]
        assert await slow.changes() == [2]


async def test_what_is_told_at_leisure_comes_a_moment_later() -> None:
    feed: Feed[str, int] = Feed()
    clock = ManualClock()
    telling = asyncio.create_task(feed.tell_the_rest(clock))
    with feed.watch() as watcher:
        feed.tell("a", 1, at_leisure=True)
        waiting = asyncio.create_task(watcher.changes())
        for _ in range(3):  # turns of the loop until the moment has begun
            await asyncio.sleep(0)
        assert clock.sleeping == 1
        assert not waiting.done()
        clock.advance(0.1)
        assert await waiting == [1]
    telling.cancel()


async def test_what_is_told_at_leisure_and_over_at_once_comes_once() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        feed.tell("a", 1, at_leisure=True)
        feed.tell("b", 2, at_leisure=True)
        feed.tell("a", 3)
        assert await watcher.changes() == [3]


async def test_what_is_told_at_leisure_never_hides_what_is_due() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        feed.tell("a", 1)
        feed.tell("a", 2, at_leisure=True)
        assert await watcher.changes() == [2]


async def test_a_closed_feed_gives_what_it_has_and_ends() -> None:
    feed: Feed[str, int] = Feed()
    with feed.watch() as watcher:
        feed.tell("a", 1)
        feed.tell("b", 2, at_leisure=True)
        feed.close()
        assert await watcher.changes() == [1, 2]
        with pytest.raises(FeedClosed):
            await watcher.changes()
    with feed.watch() as late, pytest.raises(FeedClosed):
        await late.changes()
