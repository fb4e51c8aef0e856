"""What changed since a revision.

Rows carry the revision of their last change, so "what changed since R" needs no log: it is the rows above R, and the
tombstones above R for those that are gone. Three things follow from revisions being the order of the commits:

* Read in one snapshot together with its head H, the rows above R are everything between R and H, each change folded
  into its row's last.
* Read page by page, in order of revision, each page in a snapshot of its own, they are that too, once a page comes up
  short: a row that changes meanwhile moves up, ahead of the reader, never down behind it.
* Only then, though. In the middle, at r < H, a row whose change below r was folded into one above r has not been sent,
  so r is no place for a reader of *steps* to resume from: a step changed at r1 < r of a job that moved on to r2 > r
  would be found neither by "jobs above r, steps above r", nor have been sent before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from chassis.errors import WaybillError, invalid_field, out_of_range
from jobstore.filter import Bindings, Filter
from jobstore.messages import JOB_COLUMNS, Row
from jobstore.snapshots import Connection


@dataclass(frozen=True)
class Head:
    """How far the store is."""

    revision: int
    compacted_revision: int
    """The highest revision of a purged tombstone: what was deleted up to there is not known any more."""
    time: datetime
    """Of the commit of `revision`. Never goes back."""
    store_epoch: str


HEAD: Final = "SELECT revision, compacted_revision, time, store_epoch FROM head"


def head_of(row: Row) -> Head:
    """Returns the head of a row that has its columns."""
    return Head(row["revision"], row["compacted_revision"], row["time"], row["store_epoch"])


async def read_head(connection: Connection) -> Head:
    """Reads how far the store is."""
    row = await connection.fetchrow(HEAD)
    assert row is not None  # the schema: one row
    return head_of(row)


def check_resume(head: Head, revision: int, store_epoch: str, *, field: str = "resume_revision") -> None:
    """Refuses a revision after which it is not known any more, or not yet, what changed.

    Raises WaybillError OUT_OF_RANGE STORE_EPOCH_CHANGED or REVISION_COMPACTED: start over from 0. INVALID_ARGUMENT
    REVISION_UNKNOWN: no commit had that revision yet.
    """
    if store_epoch and store_epoch != head.store_epoch:
        raise epoch_changed(head)
    if revision > head.revision:
        raise invalid_field(field, f"the store is at {head.revision}", reason="REVISION_UNKNOWN")
    if 0 < revision < head.compacted_revision:
        raise compacted(head)


def epoch_changed(head: Head) -> WaybillError:
    """Says that a revision is of another history."""
    return out_of_range(
        "STORE_EPOCH_CHANGED", "the store was restored or replaced; start over from 0", store_epoch=head.store_epoch
    )


def compacted(head: Head) -> WaybillError:
    """Says that a revision is older than what is kept."""
    oldest = head.compacted_revision
    return out_of_range(
        "REVISION_COMPACTED", f"the oldest revision is {oldest}; start over from 0", oldest_revision=str(oldest)
    )


async def revision_before(connection: Connection, time: datetime) -> int:
    """Finds a revision after which everything is that changed at a time or later.

    Times never go back while revisions rise, so the index by revision is one by time too, walked from its end.
    """
    found = await connection.fetchval(
        """
        SELECT greatest(
            (SELECT revision FROM job WHERE update_time < $1 ORDER BY revision DESC LIMIT 1),
            (SELECT revision FROM tombstone WHERE time < $1 ORDER BY revision DESC LIMIT 1),
            (SELECT revision FROM head WHERE time < $1)
        )
        """,
        time,
    )
    return int(found or 0)


@dataclass(frozen=True)
class Modified:
    """Jobs that changed, and ids of jobs that were deleted, complete up to a revision."""

    jobs: list[Row]
    removed_job_ids: list[str]
    revision: int


async def read_modified(connection: Connection, since: int, head: Head, filter: Filter, limit: int) -> Modified:
    """Reads about `limit` changes after a revision, in order; what shares a revision stays together."""
    bind = Bindings(since, limit)
    jobs = await connection.fetch(
        f"""
        SELECT {JOB_COLUMNS} FROM job WHERE job.revision > $1 AND {filter.sql(bind)}
        ORDER BY job.revision FETCH FIRST $2 ROWS WITH TIES
        """,
        *bind.values,
    )
    removed = await connection.fetch(
        """
        SELECT revision, job_id FROM tombstone WHERE revision > $1 AND job_id IS NOT NULL AND $1 > 0
        ORDER BY revision FETCH FIRST $2 ROWS WITH TIES
        """,
        since,
        limit,
    )
    complete = min(rows[-1]["revision"] if len(rows) >= limit else head.revision for rows in (jobs, removed))
    return Modified(
        [row for row in jobs if row["revision"] <= complete],
        [row["job_id"] for row in removed if row["revision"] <= complete],
        complete,
    )
