"""Retention: removes the jobs that have been kept for long enough, a few at a time.

Two times to live, one for jobs that ended FINISHED and one for the others; -1 keeps them for ever. So does
`auto_cleared = false`, until somebody deletes the job by hand.

Nothing says when a job is due, and no index does: an index by end time would be paid for by every job. It is not
needed. An ended job does not change any more, so revisions are the order in which jobs ended, and the index by revision
is one by end time. Each kind of jobs has a *walk* up this order:

    0 ─── behind it: all of the kind are gone ───▶ frontier ─── due now ───▶ too young ───────────▶ head

A walk looks at each job once, as it comes of age. Those that it had to leave (a host that is away has not cleared their
tasks; a job that runs for days) are found by a walk that begins at 0 again, once an hour. A frontier is a matter of
speed and is kept in memory only.

One jobstore sweeps at a time, under an advisory lock of its session: who dies lets go of it. It is not what makes
deleting safe (`journal/deletion.py` is); two that swept would only do the same work twice. Sweeping takes turns in the
journal like everybody, a batch a turn, and rests in between for longer than the turn took, so that it has a quarter of
the journal at most.

Then the tombstones that are old enough go; whoever resumes a watch from before is told to start over.

| goes wrong | what happens |
| --- | --- |
| the database is away | the sweep ends there; the next one begins where this one came to |
| another jobstore sweeps | nothing: the next time, perhaps |
| we are frozen with the lock | nobody sweeps until we go on, or are killed; jobs are kept for longer, that is all |
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError
from chassis.tallies import Counter, Tallies
from jobstore.journal.deletion import Actor, Deletion
from jobstore.messages import EPOCH
from jobstore.settings import Retention
from jobstore.snapshots import Connection, Pool, borrowed
from waybill.v1 import jobstore_pb2

PAGE: Final = 1_000
"""Jobs that are looked at in one statement."""
BATCH: Final = 50
"""Jobs that are deleted in one transaction: some milliseconds, for which everybody else waits."""
REST: Final = 3.0
"""How many times as long as a batch took the next one is waited with."""
ANEW_SECONDS: Final = 3_600.0
"""After which walks begin at 0 again."""
SPARE_SECONDS: Final = 2.0
"""Before the end of a call it is answered."""
LONGEST_CALL: Final = 60.0

_ADVISORY_LOCK: Final = 0x7761797377  # "waysw"

# A tenth of a statement a minute when there is nothing to do. The oldest of each are at the frontiers.
_LOOK: Final = """
    SELECT clock_timestamp() AS now,
           (SELECT job.update_time FROM job WHERE job.revision > $1 ORDER BY job.revision LIMIT 1) AS finished,
           (SELECT job.update_time FROM job WHERE job.revision > $2 ORDER BY job.revision LIMIT 1) AS others,
           (SELECT tombstone.time FROM tombstone WHERE tombstone.job_id IS NOT NULL ORDER BY tombstone.revision LIMIT 1)
               AS tombstones
"""
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock($1)"
_UNLOCK: Final = "SELECT pg_advisory_unlock($1)"

# The next jobs by revision; those of one revision stay together. Conditions are looked at in this order.
_PAGE: Final = """
    SELECT count(*) AS looked_at,
           max(page.revision) AS last,
           max(page.revision) FILTER (WHERE page.update_time < $3) AS last_of_age,
           coalesce(array_agg(page.job_id ORDER BY page.revision) FILTER (WHERE page.due), '{}') AS due,
           count(*) FILTER (WHERE NOT page.due AND page.end_time < $3) AS kept
    FROM (
        SELECT next.revision, next.job_id, next.update_time, next.end_time,
               next.end_time < $3 AND next.auto_cleared AND (next.status = 'FINISHED') = ANY ($4::boolean[])
               AND NOT EXISTS (SELECT FROM host_task
                               WHERE host_task.job_id = next.job_id AND NOT host_task.cleared) AS due
        FROM (
            SELECT job.revision, job.job_id, job.update_time, job.end_time, job.auto_cleared, job.status FROM job
            WHERE job.revision > $1 ORDER BY job.revision FETCH FIRST $2 ROWS WITH TIES
        ) AS next
    ) AS page
"""

log = logs.get_logger(__name__)


class SweeperTallies(Tallies):
    """What was deleted."""

    def __init__(self) -> None:
        self.jobs = Counter("waybill_jobs_deleted", "Jobs that were deleted, by what wanted it.", "by")
        self.sweeps = Counter("waybill_sweeps", "Looks at what is to be deleted, by how they ended.", "end")


@dataclass
class Walk:
    """The way up through jobs of one kind."""

    finished: bool
    """Those that ended FINISHED; else the others."""
    seconds: float
    """How long they are kept."""
    frontier: int = 0
    """All of them up to this revision are gone, but for those that had to be left."""

    def cutoff(self, now: datetime) -> datetime:
        """Before when they must have ended to be due."""
        return _before(now, self.seconds)


def _before(now: datetime, seconds: float) -> datetime:
    """That many seconds ago; for ever is before everything."""
    try:
        return EPOCH if seconds < 0 else now - timedelta(seconds=seconds)
    except OverflowError:
        return EPOCH


class Sweeper:
    """Removes what has been kept for long enough, for as long as it is entered."""

    def __init__(
        self, pool: Pool, deletion: Deletion, clock: Clock, retention: Retention, sweep_seconds: float = 300.0
    ) -> None:
        self._pool = pool
        self._deletion = deletion
        self._clock = clock
        self._retention = retention
        self._sweep_seconds = sweep_seconds
        self._walks = (Walk(True, retention.finished), Walk(False, retention.others))
        self._anew_at = clock.monotonic() + ANEW_SECONDS
        self._background = Background()
        self.metrics = SweeperTallies()

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        self._background.start(self._sweep_for_ever(), "sweeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.__aexit__(kind, error, trace)

    async def _sweep_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self._sweep_seconds)
            try:
                end = await self.sweep()
            except WaybillError as error:
                end = "failed"
                log.warning("what is old cannot be deleted now", reason=error.reason, message=error.message)
            self.metrics.sweeps.add(end)

    async def sweep(self) -> str:
        """Deletes all that is due. Returns what came of it: `idle`, `elsewhere` (another one sweeps), or `swept`.

        Raises WaybillError if the database is away.
        """
        self._begin_anew_if_it_is_time()
        async with borrowed(self._pool) as connection:
            look = await connection.fetchrow(_LOOK, *(walk.frontier for walk in self._walks))
            assert look is not None  # it has no FROM
            oldest_tombstone = _before(look["now"], self._retention.tombstones)
            due = [walk for walk in self._walks if _is_older(look[_column(walk)], walk.cutoff(look["now"]))]
            purging = _is_older(look["tombstones"], oldest_tombstone)
            if not due and not purging:
                return "idle"
            async with _alone(connection) as is_alone:
                if not is_alone:
                    return "elsewhere"
                for walk in due:
                    await self._go(connection, walk, walk.cutoff(look["now"]))
                while purging and await self._deletion.purge(oldest_tombstone):
                    pass
        return "swept"

    def _begin_anew_if_it_is_time(self) -> None:
        if self._clock.monotonic() >= self._anew_at:
            self._anew_at = self._clock.monotonic() + ANEW_SECONDS
            for walk in self._walks:
                walk.frontier = 0

    async def _go(self, connection: Connection, walk: Walk, cutoff: datetime) -> None:
        deleted = 0
        while True:
            page = await connection.fetchrow(_PAGE, walk.frontier, PAGE, cutoff, [walk.finished])
            assert page is not None  # an aggregate
            deleted += await self._delete(page["due"], cutoff, "sweep")
            walk.frontier = page["last_of_age"] or walk.frontier
            if page["looked_at"] < PAGE or page["last"] != page["last_of_age"]:
                break
        if deleted:
            log.info("old jobs were deleted", jobs=deleted, finished=walk.finished, ended_before=cutoff.isoformat())

    async def _delete(self, job_ids: list[str], before: datetime, by: str) -> int:
        deleted = 0
        for start in range(0, len(job_ids), BATCH):
            began = self._clock.monotonic()
            batch = await self._deletion.delete_ended(job_ids[start : start + BATCH], before)
            self.metrics.jobs.add(by, count=batch)
            deleted += batch
            await self._clock.sleep(REST * (self._clock.monotonic() - began))
        return deleted

    # --- by hand -----------------------------------------------------------------------------------------------------

    async def delete_job(self, job_id: str, by: Actor) -> None:
        """Deletes one job; raises as `Deletion.delete_job` does."""
        await self._deletion.delete_job(job_id, by)
        self.metrics.jobs.add("hand")

    async def delete_older(
        self, older_than: datetime, by: Actor, seconds: float | None
    ) -> jobstore_pb2.DeleteJobsResponse:
        """Deletes the jobs that ended before a time, however they ended; within about so many seconds.

        It looks at all jobs, for one that was touched after its end is late in the order.
        """
        end = self._clock.monotonic() + min(LONGEST_CALL, LONGEST_CALL if seconds is None else seconds) - SPARE_SECONDS
        told = jobstore_pb2.DeleteJobsResponse(complete=True)
        frontier = 0
        while told.complete:
            async with borrowed(self._pool) as connection:
                page = await connection.fetchrow(_PAGE, frontier, PAGE, older_than, [True, False])
            assert page is not None  # an aggregate
            if page["due"] and not told.deleted:
                await self._deletion.note(by, f"Deletes the jobs that ended before {older_than.isoformat()}")
            told.kept += page["kept"]
            told.deleted += await self._delete(page["due"], older_than, "hand")
            frontier = page["last"] or frontier
            if page["looked_at"] < PAGE:
                break
            told.complete = self._clock.monotonic() < end
        return told


def _is_older(time: datetime | None, than: datetime) -> bool:
    return time is not None and time < than


def _column(walk: Walk) -> str:
    return "finished" if walk.finished else "others"


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[bool]:
    """Yields whether nobody else is in here. A session of the pool lives on: it lets go, or is ended."""
    is_alone: bool = await connection.fetchval(_TRY_LOCK, _ADVISORY_LOCK)
    try:
        yield is_alone
    except BaseException:  # also cancelled: whether it could still be let go in order, nobody knows
        connection.terminate()
        raise
    if is_alone:
        await connection.fetchval(_UNLOCK, _ADVISORY_LOCK)
