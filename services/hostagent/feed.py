"""Tells many watchers of changes, each at its own pace.

A watcher that is slow, or gone without a word, costs no more than one entry a key: what it has not taken yet is
replaced by what came later. So memory is bounded by what there is to watch, and nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST_AT_ONCE: Final = 1000


class FeedClosed(Exception):  # noqa: N818
    """The agent is going down; there will be no more changes."""


class Watcher(Generic[K, V]):
    """One reader of a feed."""

    def __init__(self) -> None:
        self._pending: dict[K, V] = {}
        self._woken = asyncio.Event()
        self._closed = False

    def tell(self, key: K, value: V) -> None:
        """Adds a change, instead of an earlier one of the same key that was not taken, at the end of the row."""
        self._pending.pop(key, None)
        self._pending[key] = value
        self._woken.set()

    def close(self) -> None:
        """Ends it once it has taken what there is."""
        self._closed = True
        self._woken.set()

    async def changes(self) -> list[V]:
        """Waits for changes and takes them, in the order in which they were told. Raises FeedClosed at the end."""
        while not self._pending:
            if self._closed:
                raise FeedClosed
            self._woken.clear()
            await self._woken.wait()
        taken = list(itertools.islice(self._pending, MOST_AT_ONCE))
        return [self._pending.pop(key) for key in taken]


class Feed(Generic[K, V]):
    """Changes of things that have a key."""

    def __init__(self) -> None:
        self._watchers: set[Watcher[K, V]] = set()
        self._closed = False

    def tell(self, key: K, value: V) -> None:
        """Tells every watcher."""
        for watcher in self._watchers:
            watcher.tell(key, value)

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
