"""One stream: where it stands, what it is owed, what it is sent. Pure: the feed reads and waits for it.

from 0                                                     from R
  │                                                          │
  ▼                    last page                             ▼
SNAPSHOT ──▶ … ──────────────────────▶ TABLE ◀───────────────┘
 pages, by id                       pages, by revision ◀───────────────────────────────┐
                                       │ complete: `revision`, `snapshot_done`, bookmark│
                                       ▼                                                │
            ┌───────────────▶ what does the window have after my position? ─── not all ─┘
            │                   │            │               │
            │                 batches     nothing         nothing, and silent for too long
            │                   ▼            ▼               ▼
            └──────────────── WINDOW        WAIT          BOOKMARK (with a digest: by TABLE, in one snapshot)
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import Enum, auto

from jobstore.feed.head import Head, compacted, epoch_changed
from jobstore.feed.selections import Selection, SnapshotPage
from jobstore.feed.window import Batch, Position, Window, messages


class Turn(Enum):
    """What is to be done for a watcher now."""

    SNAPSHOT = auto()
    """Read a page of what is there."""
    TABLE = auto()
    """Read a page of what changed."""
    WINDOW = auto()
    """Take what changed from the window."""
    BOOKMARK = auto()
    """Say where to resume."""
    WAIT = auto()
    """Nothing is owed."""


class Watcher:
    """A stream between its messages."""

    def __init__(
        self, selection: Selection, head: Head, resume_revision: int, *, interval: float, digest: bool, now: float
    ) -> None:
        """Begins at a revision that the head can be reached from, or with a snapshot, from 0."""
        self.selection = selection
        self.digest = digest
        self.wake = asyncio.Event()
        """Set when it may be owed something."""
        self.away = False
        """Whether it waits for the database to come back."""
        self.history = 0
        """Which of the feed's stores it watches."""
        self.position = Position(resume_revision) if resume_revision else Position(head.revision, head.time)
        """What it has is complete up to here, once it is a state."""
        self.is_state = resume_revision > 0
        """Whether what it has makes a state; not in the middle of a snapshot."""
        self.snapshot_cursor: str | None = None if resume_revision else ""
        """Where the next page of the snapshot begins; None outside of one."""
        self.table_cursor: int | None = self.position.revision
        """After which revision the next page of the table begins; None when it is fed from the window."""
        self.oldest_told: datetime | None = None
        """Of what it was given last out of the window, when the oldest was committed; None once that is looked at."""
        self._told = False  # whether changes were sent since the last complete revision
        self._bookmark_wanted = True  # once it has caught up; at first, so that the store's epoch is known soon
        self._store_epoch = head.store_epoch
        self._interval = interval
        self._spoke_at = now

    # --- decisions -------------------------------------------------------------------------------------------------

    def turn(self, window: Window, now: float) -> Turn:
        """Decides what is to be done next."""
        if self.snapshot_cursor is not None:
            return Turn.SNAPSHOT
        if self.table_cursor is not None:
            return Turn.TABLE
        waiting, silent = self._waiting(window), self.silent_too_long(now)
        if waiting is None or (silent and self.digest):
            self.table_cursor, self._bookmark_wanted = self.position.revision, silent
            return Turn.TABLE
        if waiting:
            return Turn.WINDOW
        return Turn.BOOKMARK if silent else Turn.WAIT

    def check(self, head: Head) -> None:
        """Refuses to go on where the changes since its position are not known; raises OUT_OF_RANGE."""
        if head.store_epoch != self._store_epoch or head.revision < self.position.revision:
            raise epoch_changed(head)
        if 0 < self.position.revision < head.compacted_revision:
            raise compacted(head)

    def wants_digest(self, batch: Batch) -> bool:
        """Tells whether this page is followed by a bookmark with a digest."""
        return self.digest and self._bookmark_wanted and batch.complete

    def spoke(self, now: float) -> None:
        """Notes that a message was sent."""
        self._spoke_at = now

    def silent_too_long(self, now: float) -> bool:
        """Tells whether a bookmark is due."""
        return self.is_state and now - self._spoke_at >= self._interval

    # --- what it is sent -------------------------------------------------------------------------------------------

    def take_snapshot_page(self, page: SnapshotPage) -> list[bytes]:
        """Returns the messages of a page of the snapshot."""
        self.snapshot_cursor = page.cursor or None
        return page.messages

    def take_table_page(self, batch: Batch, matching: int, digest: str) -> list[bytes]:
        """Returns the messages of a page of the table; the last one makes what it has complete again."""
        pieces = self.selection.messages(batch, batch.since.revision)
        self._told = self._told or bool(pieces)
        if not batch.complete:
            self.table_cursor = batch.until.revision
            return pieces
        self.table_cursor = None
        told = self._completed(pieces, batch.until) if self._told or not self.is_state else []
        self.position, self.is_state, self._told = batch.until, True, False
        return [*told, self.bookmark(matching, digest)] if self._bookmark_wanted else told

    def take_window(self, window: Window) -> list[bytes]:
        """Returns the messages of all that waits in the window."""
        waiting = self._waiting(window)
        assert waiting  # it is its turn
        revision = self.position.revision
        pieces = [piece for batch in waiting for piece in self.selection.messages(batch, revision)]
        self.position = waiting[-1].until
        self.oldest_told = waiting[0].until.time if pieces else None
        return self._completed(messages(pieces), self.position) if pieces else []

    def bookmark(self, matching: int = 0, digest: str = "") -> bytes:
        """Returns the message that says where to resume."""
        return self.selection.bookmark(self.position.revision, self._store_epoch, matching, digest)

    def _waiting(self, window: Window) -> list[Batch] | None:
        return window.after(self.position.revision, self.selection.scope)

    def _completed(self, pieces: list[bytes], position: Position) -> list[bytes]:
        *parts, last = pieces or [b""]
        return [*parts, last + self.selection.complete(position.revision, snapshot_done=not self.is_state)]
