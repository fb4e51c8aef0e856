"""Counts the jobs that are not over, now and then.

For metrics alone, which is why it is no part of the journal: how many there are is a matter of all coordinators and
jobstores, and of what was there before them, so no process could keep count of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from chassis import logs
from chassis.clock import Clock
from chassis.errors import WaybillError
from chassis.metrics import Metrics
from chassis.tallies import Gauges, Labels, Tallies
from jobstore.snapshots import Pool, borrowed

CENSUS_SECONDS: Final = 15.0

# The first condition is the partial index's, which has no more than these and the jobs that did not go well.
UNFINISHED: Final = """
    SELECT command_type, status::text, count(*), extract(epoch FROM min(create_time))::float8 FROM job
    WHERE status <> 'FINISHED' AND status IN ('PENDING', 'STARTED') GROUP BY command_type, status
"""

log = logs.get_logger(__name__)


class Census(Tallies):
    """The jobs that are not over, as of the last count."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._numbers: dict[Labels, float] = {}
        self._oldest: dict[Labels, float] = {}
        self.jobs = Gauges(
            "waybill_jobs_unfinished", "Jobs that are not over.", "type", "status", read=lambda: self._numbers
        )
        self.oldest = Gauges(
            "waybill_jobs_unfinished_oldest_timestamp_seconds",
            "When the oldest of them was begun.",
            "type",
            "status",
            read=lambda: self._oldest,
        )

    async def count(self) -> None:
        """Counts once. While the database is away nothing is known, and said so."""
        self._numbers, self._oldest = {}, {}
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(UNFINISHED)
        self._numbers = {(command_type, status): number for command_type, status, number, _ in rows}
        self._oldest = {(command_type, status): oldest for command_type, status, _, oldest in rows}

    async def count_for_ever(self) -> None:
        while True:
            try:
                await self.count()
            except WaybillError as error:
                log.warning("unfinished jobs cannot be counted", error=error.message)
            await self._clock.sleep(CENSUS_SECONDS)


@asynccontextmanager
async def taking_census(pool: Pool, clock: Clock, metrics: Metrics) -> AsyncIterator[None]:
    """Counts for as long as it is entered, if anybody can ask."""
    if not metrics.enabled:
        yield
        return
    census = Census(pool, clock)
    metrics.add(census)
    counting = asyncio.create_task(census.count_for_ever(), name="census")
    try:
        yield
    finally:
        counting.cancel()
        await asyncio.wait((counting,))
