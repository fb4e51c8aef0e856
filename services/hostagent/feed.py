"""Tells many watchers of changes, each at its own pace.

A watcher that is slow, or gone without a word, costs no more than one entry a key: what it has not taken yet is
replaced by what came later. So memory is bounded by what there is to watch, and nobody waits for anybody.

Some changes can wait a moment (`at_leisure`): a task that is over within that moment is told of once, not three times.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from chassis.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST_AT_ONCE: Final = 1000
_LEISURE_SECONDS: Final = 0.1


class FeedClosed(Exception):  # noqa: N818
    """The agent is going down; there will be no more changes."""


class Watcher(Generic[K, V]):
    """One reader of a feed."""

    def __init__(self) -> None:
        self._due: dict[K, V] = {}
        self._later: dict[K, V] = {}
        self._woken = asyncio.Event()
        self._closed = False

    @property
    def untold(self) -> int:
        """How many changes it has not taken yet."""
        return len(self._due) + len(self._later)

    def tell(self, key: K, value: V, *, at_leisure: bool = False) -> None:
        """Adds a change, instead of an earlier one of the same key that was not taken, at the end of the row."""
        if at_leisure and key not in self._due:
            self._later[key] = value
            return
        self._later.pop(key, None)
        self._due.pop(key, None)
        self._due[key] = value
        self._woken.set()

    def tell_the_rest(self) -> None:
        """Makes due what was told at leisure."""
        if self._later:
            self._due.update(self._later)
            self._later.clear()
            self._woken.set()

    def close(self) -> None:
        """Ends it once it has taken what there is."""
        self._closed = True
        self.tell_the_rest()
        self._woken.set()

    async def changes(self) -> list[V]:
        """Waits for changes and takes them, in the order in which they were told. Raises FeedClosed at the end."""
        while not self._due:
            if self._closed:
                raise FeedClosed
            self._woken.clear()
            await self._woken.wait()
        taken = list(itertools.islice(self._due, MOST_AT_ONCE))
        return [self._due.pop(key) for key in taken]


class Feed(Generic[K, V]):
    """Changes of things that have a key."""

    def __init__(self) -> None:
        self._watchers: set[Watcher[K, V]] = set()
        self._closed = False
        self._leisurely = asyncio.Event()  # somebody has something for later

    @property
    def watchers(self) -> int:
        """How many there are."""
        return len(self._watchers)

    @property
    def untold(self) -> int:
        """How many changes the slowest of them has not taken yet."""
        return max((watcher.untold for watcher in self._watchers), default=0)

    def tell(self, key: K, value: V, *, at_leisure: bool = False) -> None:
        """Tells every watcher."""
        for watcher in self._watchers:
            watcher.tell(key, value, at_leisure=at_leisure)
        if at_leisure and self._watchers:
            self._leisurely.set()

    @contextmanager
    def watch(self) -> Iterator[Watcher[K, V]]:
        """Watches from now on. What there is already, the caller reads in the same breath."""
        watcher: Watcher[K, V] = Watcher()
        if self._closed:
            watcher.close()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends all watchers, present and future."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()

    async def tell_the_rest(self, clock: Clock) -> None:
        """Tells, for ever, what was told at leisure, once its moment is over."""
        while True:
            await self._leisurely.wait()
            await clock.sleep(_LEISURE_SECONDS)
            self._leisurely.clear()
            for watcher in self._watchers:
                watcher.tell_the_rest()
