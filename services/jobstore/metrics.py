"""What a jobstore counts of its work, and what can be read off it (`chassis/tallies.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from chassis.tallies import LONG_SECONDS, SHORT_SECONDS, SIZES, Counter, Gauge, Gauges, Histogram, Labels, Tallies
from jobstore.journal import shapes
from jobstore.journal.guards import Apply, Refuse, Root, Verdict
from jobstore.journal.parts import Commit
from jobstore.snapshots import Pool

_ENDS: Final = frozenset({"FINISHED", "FAILED", "ABORTED", "UNKNOWN"})
_TYPE: Final = shapes.JOB.index("command_type")
_STATUS: Final = shapes.JOB.index("status")
_CHANGED_STATUS: Final = shapes.JOB_CHANGE.index("status")


class JournalTallies(Tallies):
    """Jobs, as they are written; commits; transactions."""

    def __init__(self, *, waiting: Callable[[], float], disk_full: Callable[[], float]) -> None:
        self.jobs_begun = Counter("waybill_jobs_begun", "Jobs that were begun.", "type")
        self.jobs_ended = Counter("waybill_jobs_ended", "Jobs that have ended.", "type", "status")
        self.job_seconds = Histogram(
            "waybill_job_duration_seconds",
            "How long jobs took, by their commits.",
            "type",
            buckets=LONG_SECONDS,
        )
        self.commits = Counter("waybill_journal_commits", "Commits, by what became of them.", "outcome")
        self.refusals = Counter("waybill_journal_refusals", "Commits that were refused.", "reason")
        self.batches = Histogram("waybill_journal_batch_commits", "Commits in a transaction.", buckets=SIZES)
        self.transactions = Counter("waybill_journal_transactions", "Transactions, by how they ended.", "end")
        self.transaction_seconds = Histogram(
            "waybill_journal_transaction_duration_seconds",
            "How long transactions took, the wait for the writers' mutex included.",
            buckets=SHORT_SECONDS,
        )
        self.waiting = Gauge("waybill_journal_queue_parts", "Commits and the like that wait for their turn.", waiting)
        self._away = False
        self.away = Gauge(
            "waybill_journal_database_away", "1: the journal cannot write, Postgres is away.", lambda: self._away
        )
        self.disk_full = Gauge("waybill_journal_disk_full", "1: no flow is begun, the disk is full.", disk_full)
        self._batch, self._seconds = self.batches.of(), self.transaction_seconds.of()
        self._revision = 0
        self.revision = Gauge(
            "waybill_journal_revision", "The last revision that this jobstore wrote.", lambda: self._revision
        )

    def connecting(self) -> None:
        """There is no connection to Postgres, until a transaction comes through."""
        self._away = True

    def performed(self, revision: int, *, changed: bool, seconds: float) -> None:
        """Counts a transaction that came through."""
        self.transactions.add("committed" if changed else "empty")
        self._seconds.observe(seconds)
        self._away = False
        if changed:
            self._revision = revision

    def settled(
        self, verdicts: Iterable[tuple[Commit, Verdict]], roots: Mapping[str, Root], time: datetime, commits: int
    ) -> None:
        """Counts the commits of a transaction, and the jobs that have begun or ended with it.

        `roots`: as they were before it; `time`: its own.
        """
        self._batch.observe(commits)
        now, applied, known = time.timestamp(), 0, 0
        for part, verdict in verdicts:
            if isinstance(verdict, Apply):
                applied += 1
                self._count_job(part, roots, now)
            elif isinstance(verdict, Refuse):
                self.refused(verdict.error.reason)
            else:
                known += 1
        self.commits.add("applied", count=applied)
        self.commits.add("known", count=known)

    def refused(self, reason: str) -> None:
        """Counts a commit that was refused, by a guard or by the database."""
        self.commits.add("refused")
        self.refusals.add(reason)

    def _count_job(self, part: Commit, roots: Mapping[str, Root], now: float) -> None:
        """Looks at a commit's rows: asking its message costs several times as much."""
        for job in part.rows.jobs:
            self.jobs_begun.add(job[_TYPE])
            if job[_STATUS] in _ENDS:
                self._ended(job[_TYPE], job[_STATUS], 0.0, "")
        for change in part.rows.job_changes:
            if change[_CHANGED_STATUS] in _ENDS:
                root = roots[part.commit.flow_command_id]
                seconds = max(0.0, now - root.create_time)
                self._ended(root.command_type, change[_CHANGED_STATUS], seconds, _trace_id(root.traceparent))

    def _ended(self, command_type: str, status: str, seconds: float, trace_id: str) -> None:
        self.jobs_ended.add(command_type, status)
        self.job_seconds.of(command_type).observe(seconds, trace_id)


def _trace_id(traceparent: str) -> str:
    """Returns the trace of a `traceparent` that we stored; "" if nobody records it."""
    return traceparent[3:35] if traceparent.endswith("-01") else ""


class FeedTallies(Tallies):
    """Watchers, and how far they are behind."""

    def __init__(
        self,
        *,
        watchers: Callable[[], Mapping[Labels, float]],
        behind: Callable[[], Mapping[Labels, float]],
        most_behind: Callable[[], float],
        revision: Callable[[], float],
        window_bytes: Callable[[], float],
        failures: Callable[[], float],
    ) -> None:
        self.messages = Counter("waybill_feed_messages", "Messages that watchers were sent.", "kind")
        self.lag = Histogram(
            "waybill_feed_lag_seconds",
            "From a commit to the end of its message's sending; of a message, its oldest commit.",
            "kind",
            buckets=SHORT_SECONDS,
        )
        self.watchers = Gauges("waybill_feed_watchers", "Open watches.", "kind", read=watchers)
        self.behind = Gauges("waybill_feed_watchers_behind", "Watches that are owed something.", "kind", read=behind)
        self.most_behind = Gauge(
            "waybill_feed_behind_revisions", "How many revisions the slowest watch is behind.", most_behind
        )
        self.revision = Gauge(
            "waybill_feed_revision", "The revision that the feed has come to; it rests while nobody watches.", revision
        )
        self.window = Gauge("waybill_feed_window_bytes", "What the feed keeps for watchers.", window_bytes)
        self.failures = Gauge(
            "waybill_feed_failures", "How often in a row the feed could not reach the database.", failures
        )


class DatabaseTallies(Tallies):
    """Postgres, as this process sees it."""

    def __init__(self) -> None:
        self.restarts = Counter("waybill_postgres_restarts", "How often the embedded Postgres died and was restarted.")


class PoolTallies(Tallies):
    """The readers' connections."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.connections = Gauges(
            "waybill_database_connections", "Connections of the readers' pool.", "state", read=self._connections
        )

    def _connections(self) -> dict[Labels, float]:
        idle = self._pool.get_idle_size()
        return {("idle",): idle, ("busy",): self._pool.get_size() - idle}
