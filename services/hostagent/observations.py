"""What the host sees of itself and of its VMs, numbered.

Numbers order the observations of one incarnation and survive the process: a call answers with the newest number before
its effect, and whoever waits for the effect looks only at later ones. Numbers are given out at once, in memory, below a
ceiling that the ledger has; it is raised a block ahead, and nothing above it is told to anybody. A new process begins
above the old ceiling: numbers may be left out, never used twice.

A VM that is DOWN is not on the host any more: its DOWN is told, and later snapshots do not have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple, Self

from chassis import logs
from chassis.clock import Clock
from chassis.errors import WaybillError
from hostagent.crew import Crew
from hostagent.feed import Feed, Watcher
from hostagent.ledger import Ledger
from hostagent.metrics import ObservationTallies

_BLOCK: Final = 1000
_RETRY_SECONDS: Final = 1.0

log = logs.get_logger(__name__)


class Observation(NamedTuple):
    """What a host saw of an entity."""

    entity_type: str
    """HOST or VM."""
    entity_id: str
    state: str
    error: str
    """What is wrong with it; empty if nothing."""
    number: int


_Key = tuple[str, str]
ObservationWatcher = Watcher[_Key, Observation]


class Observations:
    """All observations of this process: `async with Observations(ledger, clock) as observations`."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._current: dict[_Key, Observation] = {}
        self._feed: Feed[_Key, Observation] = Feed()
        self._crew = Crew()
        self._short = asyncio.Event()  # of numbers
        self._raised = asyncio.Event()
        self.metrics = ObservationTallies(self._feed, self._current.keys)
        self.newest = ledger.observation_ceiling
        """Number of the newest observation, or what the former processes had reserved."""

    async def __aenter__(self) -> Self:
        self.newest = self._ledger.observation_ceiling
        await self._ledger.raise_observation_ceiling(self.newest + _BLOCK)
        await self._crew.__aenter__()
        self._crew.hire(self._keep_ahead())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._crew.__aexit__(kind, error, trace)

    def observe(self, entity_type: str, entity_id: str, state: str, error: str = "") -> None:
        """Notes what was seen, and tells the watchers."""
        self.newest += 1
        if self.newest > self._ledger.observation_ceiling - _BLOCK // 2:
            self._short.set()
        key = (entity_type, entity_id)
        observation = Observation(entity_type, entity_id, state, error, self.newest)
        if (entity_type, state) == ("VM", "DOWN"):
            self._current.pop(key, None)
        else:
            self._current[key] = observation
        self._feed.tell(key, observation)
        self.metrics.made.add(entity_type, state)

    def current(self) -> list[Observation]:
        """Returns the last observation of everything that is on the host, in order of their numbers."""
        return sorted(self._current.values(), key=lambda observation: observation.number)

    async def durable(self, number: int) -> None:
        """Returns when this number will never be given out again, whatever happens: before that it is not told."""
        while number > self._ledger.observation_ceiling:
            self._raised.clear()
            await self._raised.wait()

    @contextmanager
    def watch(self) -> Iterator[ObservationWatcher]:
        """Watches from now on."""
        with self._feed.watch() as watcher:
            yield watcher

    def close(self) -> None:
        """Ends the watches."""
        self._feed.close()

    async def _keep_ahead(self) -> None:
        while True:
            await self._short.wait()
            self._short.clear()
            try:
                await self._ledger.raise_observation_ceiling(self.newest + _BLOCK)
            except WaybillError as error:
                log.warning("observations are held back", reason=error.message)
                self._short.set()
                await self._clock.sleep(_RETRY_SECONDS)
            self._raised.set()
