"""Who listens for the heartbeats of external jobs, and ends those that have fallen silent.

A job that wants to be listened to has a count that every report about it raises (`external_job.beats`). Every jobstore
looks at these counts and remembers, by its own monotonic clock, for how long it has seen each stand still:

    seen ─▶ listening ── the count has moved: it lives, the time starts anew
               │
               └─ stood still for its heartbeat_seconds ─▶ ended UNKNOWN, if the count stands there still

So nobody owns this duty and everybody has it: a jobstore that dies takes only its memory with it. Two that find the
same job silent end it once, for that is decided under the writers' mutex, by the count; a report that comes in between
raises the count first, or finds the job ended. And no clock is compared with another: neither a database's that jumps,
nor an outage of ours, makes anybody silent. Silence counts only while somebody could have been heard, so what was seen
before is forgotten when the database was away, and when no coordinator was there to take a report (its lease would
have moved).

A look is due when the first of them could be silent, and now and then, for jobs that other jobstores have begun; where
nobody wants to be listened to, that is a statement every ten minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError
from jobstore.journal.externaljobs import ExternalJobs
from jobstore.snapshots import Pool, borrowed

LOOK_SECONDS: Final = 600.0
"""How long a job that another jobstore has begun may go unseen, should that one die."""
RETRY_SECONDS: Final = 1.0
LEAST_SECONDS: Final = 0.2
"""Between two looks."""
SHUT_SECONDS: Final = 30.0
"""After which leases that stand still are those of dead coordinators; much longer than it takes to renew one."""

log = logs.get_logger(__name__)

_LOOK: Final = """
    SELECT job_id, beats, heartbeat_seconds,
           (SELECT coalesce(string_agg(coordinator_id || ' ' || counter, ' ' ORDER BY coordinator_id), '')
            FROM coordinator_lease WHERE NOT released) AS leases
    FROM external_job WHERE heartbeat_seconds IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Beat:
    """A job that is listened to, as it was seen."""

    job_id: str
    beats: int
    seconds: int
    """After how many of silence it is over."""


@dataclass(slots=True)
class _Heard:
    beat: Beat
    since: float


class Silence:
    """For how long the counts of jobs have stood still, by the monotonic clock of who looks. Pure."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._leases: str | None = None  # as of the last look; None: there was none
        self._leases_since = 0.0

    def seen(self, beats: Iterable[Beat], leases: str, now: float) -> list[Beat]:
        """Takes all counts and leases as they are now; returns those that have been silent for their time."""
        if leases != self._leases:
            self._leases, self._leases_since = leases, now
        elif now - self._leases_since >= SHUT_SECONDS:
            self.forget()  # no coordinator has renewed its lease meanwhile: nobody could have been heard
        self._heard = {beat.job_id: self._since(beat, now) for beat in beats}
        return [heard.beat for heard in self._heard.values() if now - heard.since >= heard.beat.seconds]

    def forget(self) -> None:
        """Begins to count anew for all of them."""
        self._heard.clear()

    def next(self, now: float) -> float:
        """Returns in how many seconds the next one could be silent; infinity if there is none."""
        return min((heard.since + heard.beat.seconds - now for heard in self._heard.values()), default=float("inf"))

    def _since(self, beat: Beat, now: float) -> _Heard:
        heard = self._heard.get(beat.job_id)
        return heard if heard is not None and heard.beat.beats == beat.beats else _Heard(beat, now)


class Listener:
    """Ends external jobs that have fallen silent, for as long as it is entered."""

    def __init__(self, pool: Pool, jobs: ExternalJobs, clock: Clock) -> None:
        self._pool = pool
        self._jobs = jobs
        self._clock = clock
        self._silence = Silence()
        self._more = asyncio.Event()
        self._background = Background()

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        self._jobs.on_listening = self._more.set
        self._background.start(self._listen(), "heartbeats")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.__aexit__(kind, error, trace)

    async def _listen(self) -> None:
        while True:
            self._more.clear()
            pause = RETRY_SECONDS
            try:
                await self.look()
                pause = max(LEAST_SECONDS, min(LOOK_SECONDS, self._silence.next(self._clock.monotonic())))
            except WaybillError as error:
                log.warning("heartbeats cannot be listened for now", reason=error.reason, message=error.message)
                self._silence.forget()
            await self._pause(pause)

    async def look(self) -> None:
        """Looks once, and ends those that are silent."""
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(_LOOK)
        beats = [Beat(row["job_id"], row["beats"], row["heartbeat_seconds"]) for row in rows]
        leases = rows[0]["leases"] if rows else ""
        for silent in self._silence.seen(beats, leases, self._clock.monotonic()):
            await self._jobs.end_silent(silent.job_id, silent.beats, silent.seconds)

    async def _pause(self, seconds: float) -> None:
        """Waits, but not when there is another one to listen to."""
        more = asyncio.ensure_future(self._more.wait())
        enough = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((more, enough), return_when=asyncio.FIRST_COMPLETED)
        finally:
            more.cancel()
            enough.cancel()
