"""What a watcher wants of the changes, and how it is told of them.

A watch of jobs wants those that match a filter, with or without their steps; a coordinator's watch wants entities and
the requests for its flows. The feed treats both alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final, Protocol

from jobstore.feed.changes import read_digest, read_journal_snapshot, read_snapshot_page
from jobstore.feed.window import Batch, EntityChanged, FlowWoken, JobChanged, JournalChange, Scope, messages
from jobstore.search.fields import Changes
from jobstore.search.filter import Filter, Verdict
from jobstore.snapshots import Connection
from waybill.v1 import jobstore_pb2

_SNAPSHOT_PAGE: Final = 200
_SNAPSHOT_PAGE_OF_TREES: Final = 50


@dataclass(frozen=True)
class SnapshotPage:
    """A part of a snapshot."""

    messages: list[bytes]
    cursor: str
    """After which the next part begins; empty: this was the last."""


class Selection(Protocol):
    """What a watcher wants."""

    @property
    def kind(self) -> str:
        """What it is about: `jobs` or `journal`."""
        ...

    @property
    def key(self) -> str:
        """Equal for those that want the same."""
        ...

    @property
    def scope(self) -> Scope:
        """What must have been read of a batch."""
        ...

    @property
    def filter(self) -> Filter | None:
        """Which jobs; None: not about jobs."""
        ...

    def messages(self, batch: Batch, after: int) -> list[bytes]:
        """Returns what it wants of a batch, but for what a watcher that is at revision `after` knows already."""
        ...

    def complete(self, revision: int, *, snapshot_done: bool = False) -> bytes:
        """Returns what is added to a message to say that the stream is complete up to a revision."""
        ...

    def bookmark(self, revision: int, store_epoch: str, matching: int = 0, digest: str = "") -> bytes:
        """Returns a message that says where to resume."""
        ...

    async def read_snapshot(self, connection: Connection, cursor: str) -> SnapshotPage:
        """Reads a part of what is there now."""
        ...

    async def read_digest(self, connection: Connection) -> tuple[int, str]:
        """Reads how many things match, and the digest of them."""
        ...


@dataclass(frozen=True)
class JobSelection:
    """Jobs that match a filter."""

    filter: Filter
    tree: bool = False
    kind: str = "jobs"

    @cached_property
    def key(self) -> str:
        return f"{'TREE' if self.tree else 'BASIC'} {self.filter}"

    @cached_property
    def scope(self) -> Scope:
        return Scope.JOBS | self._scope_of_steps | (Scope.HOSTS if self.filter.mentions("host") else Scope.NOTHING)

    @property
    def _scope_of_steps(self) -> Scope:
        if not self.tree:
            return Scope.NOTHING
        match self.filter.changes:
            case Changes.NEVER:
                return Scope.STEPS
            case Changes.WITH_STATUS:
                return Scope.STEPS | Scope.TREES
            case Changes.ANY_TIME:
                return Scope.STEPS | Scope.WHOLE

    def messages(self, batch: Batch, after: int) -> list[bytes]:
        if after > batch.since.revision:
            return messages(self._wanted(batch, after))
        if self.key not in batch.messages:
            batch.messages[self.key] = messages(self._wanted(batch, after))
        return batch.messages[self.key]

    def _wanted(self, batch: Batch, after: int) -> Iterator[bytes]:
        for change in batch.jobs:
            if change.revision <= after:
                continue
            if not isinstance(change, JobChanged):
                yield change.removal
                continue
            match self.filter.verdict(change):
                case Verdict.MATCHES:
                    yield from self._upserts(change)
                case Verdict.LEFT:
                    yield change.removal
                case Verdict.NEVER:
                    pass

    def _upserts(self, change: JobChanged) -> list[bytes]:
        """With all steps if it may not have matched before: then this is the first that is seen of it."""
        if not self.tree:
            return change.without_steps
        match self.filter.changes:
            case Changes.NEVER:
                return change.with_changed_steps
            case Changes.WITH_STATUS:
                return change.with_all_steps if change.status_changed else change.with_changed_steps
            case Changes.ANY_TIME:
                return change.with_all_steps

    def complete(self, revision: int, *, snapshot_done: bool = False) -> bytes:
        return jobstore_pb2.WatchJobsResponse(revision=revision, snapshot_done=snapshot_done).SerializeToString()

    def bookmark(self, revision: int, store_epoch: str, matching: int = 0, digest: str = "") -> bytes:
        bookmark = jobstore_pb2.Bookmark(
            revision=revision, store_epoch=store_epoch, matching_jobs=matching, digest=digest
        )
        return jobstore_pb2.WatchJobsResponse(bookmark=bookmark).SerializeToString()

    async def read_snapshot(self, connection: Connection, cursor: str) -> SnapshotPage:
        limit = _SNAPSHOT_PAGE_OF_TREES if self.tree else _SNAPSHOT_PAGE
        page = await read_snapshot_page(connection, self.filter, cursor, tree=self.tree, limit=limit)
        upserts = (change.with_all_steps if self.tree else change.without_steps for change in page)
        return SnapshotPage(messages(chain.from_iterable(upserts)), page[-1].job.job_id if len(page) == limit else "")

    async def read_digest(self, connection: Connection) -> tuple[int, str]:
        return await read_digest(connection, self.filter)


@dataclass(frozen=True)
class JournalSelection:
    """What concerns a coordinator: entities of all types, and requests for the flows that it owns."""

    coordinator_id: str
    filter: None = None
    scope: Scope = Scope.JOURNAL
    kind: str = "journal"

    @property
    def key(self) -> str:
        return f"JOURNAL {self.coordinator_id}"

    def messages(self, batch: Batch, after: int) -> list[bytes]:
        return messages(
            self._told(change) for change in batch.journal if change.revision > after and self._mine(change)
        )

    def _mine(self, change: JournalChange) -> bool:
        return isinstance(change, EntityChanged) or change.coordinator_id == self.coordinator_id

    def _told(self, change: JournalChange) -> bytes:
        if isinstance(change, EntityChanged):
            return jobstore_pb2.JournalWatchResponse(entities=[change.entity]).SerializeToString()
        if isinstance(change, FlowWoken):
            return jobstore_pb2.JournalWatchResponse(wakes=[change.wake]).SerializeToString()
        return jobstore_pb2.JournalWatchResponse(flow_requests=[change.request]).SerializeToString()

    def complete(self, revision: int, *, snapshot_done: bool = False) -> bytes:
        return jobstore_pb2.JournalWatchResponse(revision=revision, snapshot_done=snapshot_done).SerializeToString()

    def bookmark(self, revision: int, store_epoch: str, matching: int = 0, digest: str = "") -> bytes:
        return self.complete(revision)

    async def read_snapshot(self, connection: Connection, cursor: str) -> SnapshotPage:
        changes = await read_journal_snapshot(connection)
        return SnapshotPage(messages(self._told(change) for change in changes if self._mine(change)), "")

    async def read_digest(self, connection: Connection) -> tuple[int, str]:
        return 0, ""
