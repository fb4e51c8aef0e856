"""How far the store is, and from where its changes can be told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from chassis.errors import WaybillError, invalid_field, out_of_range
from jobstore.messages import Row
from jobstore.snapshots import Connection


@dataclass(frozen=True)
class Head:
    """How far the store is."""

    revision: int
    compacted_revision: int
    """The highest revision of a purged tombstone: what was deleted up to there is not known any more."""
    time: datetime
    """Of the commit of `revision`. Later than that of any commit before it."""
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
    if revision < 0:
        raise invalid_field(field, "must not be negative")
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
