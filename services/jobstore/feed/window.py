"""What the feed has read lately, kept once for all watchers, as the bytes that they are sent.

A message of protobuf is the concatenation of its fields, and two messages one after the other are their merger. So a
change is serialised once, when it is read; a watcher's message is a join of the changes that it wants and the number of
the revision that they complete; and a watcher that finds several batches waiting gets them as one message.

    job row ─▶ job bytes ──────────┬─▶ upsert (BASIC)  ─┐
    step rows ─▶ changed steps ────┼─▶ upsert (TREE)   ─┼─ joined, once for each filter and view ─▶ message
              └▶ all of its steps ─┘                    │
    tombstone ─▶ removed_job_id ────────────────────────┘

Pure: no clock, no loop, no database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import Flag, auto
from functools import cached_property, lru_cache
from typing import Final

from jobstore.feed.head import Head
from waybill.v1 import jobs_pb2, jobstore_pb2

LARGEST_MESSAGE: Final = 1 << 20
"""Bytes at which a message is ended and another begun; readers take 4 MiB."""


class Scope(Flag):
    """What was read of the changes, or is wanted of them."""

    NOTHING = 0
    JOBS = auto()
    """Jobs without steps, and which were deleted."""
    STEPS = auto()
    """The steps that changed."""
    TREES = auto()
    """All steps of the jobs whose status may have changed."""
    WHOLE = auto()
    """All steps of all jobs that changed."""
    HOSTS = auto()
    """On which hosts the jobs have begun something."""
    JOURNAL = auto()
    """Entities, and requests for flows."""


@dataclass(frozen=True)
class Position:
    """A revision up to which everything is known."""

    revision: int
    time: datetime | None = None
    """Of its commit; None: not known."""


# --- bytes ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4_096)
def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def framed(field_number: int, content: bytes) -> bytes:
    """A field that holds a message, as it stands in the bytes of the message around it."""
    return _varint(field_number << 3 | 2) + _varint(len(content)) + content


_CHANGES: Final = jobstore_pb2.WatchJobsResponse.CHANGES_FIELD_NUMBER
_UPSERT: Final = jobstore_pb2.JobChangeEvent.UPSERT_FIELD_NUMBER
_REMOVED: Final = jobstore_pb2.JobChangeEvent.REMOVED_JOB_ID_FIELD_NUMBER
_STEPS: Final = jobs_pb2.Job.STEPS_FIELD_NUMBER


def upsert(job: bytes) -> bytes:
    """A change, from the bytes of its job."""
    return framed(_CHANGES, framed(_UPSERT, job))


def removal(job_id: str) -> bytes:
    """A change that takes a job away."""
    return framed(_CHANGES, framed(_REMOVED, job_id.encode()))


def tree_upserts(job: bytes, steps: Iterable[bytes]) -> list[bytes]:
    """A change with steps; as several, which the reader merges, if it would be too large for a message."""
    groups = list(_groups(steps, LARGEST_MESSAGE)) or [b""]
    return [upsert(job + group) for group in groups]


def step_bytes(step: jobs_pb2.Step) -> bytes:
    """A step, as it stands in the bytes of its job."""
    return framed(_STEPS, step.SerializeToString())


def _groups(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Joins pieces to groups of at most about this size."""
    group: list[bytes] = []
    filled = 0
    for piece in pieces:
        if filled and filled + len(piece) > size:
            yield b"".join(group)
            group, filled = [], 0
        group.append(piece)
        filled += len(piece)
    if group:
        yield b"".join(group)


def messages(pieces: Iterable[bytes]) -> list[bytes]:
    """Joins the bytes of changes to messages."""
    return list(_groups(pieces, LARGEST_MESSAGE))


# --- batches -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class JobChanged:
    """A job that is new or has changed."""

    revision: int
    job: jobs_pb2.Job
    """Without steps."""
    status_changed: bool
    """Whether its status may have changed since the batch begins, so that it may match now and did not before."""
    changed_steps: list[jobs_pb2.Step] = field(default_factory=list)
    steps: list[jobs_pb2.Step] | None = None
    """All of them; None: not read."""
    hosts: frozenset[str] = frozenset()
    """Where it has begun something; empty also if that was not read."""

    def __post_init__(self) -> None:
        self._job_bytes = self.job.SerializeToString()
        self.without_steps = [upsert(self._job_bytes)]
        """The change for whoever wants no tree."""

    @cached_property
    def with_changed_steps(self) -> list[bytes]:
        """The change for whoever holds the rest of the tree."""
        return tree_upserts(self._job_bytes, map(step_bytes, self.changed_steps))

    @cached_property
    def with_all_steps(self) -> list[bytes]:
        """The change for whoever may hold nothing of it."""
        assert self.steps is not None
        return tree_upserts(self._job_bytes, map(step_bytes, self.steps))

    @cached_property
    def removal(self) -> bytes:
        """The change for a watcher whose filter it does not match any more."""
        return removal(self.job.job_id)

    def size(self) -> int:
        """About how many bytes it keeps, as messages and serialised."""
        steps = self.changed_steps + (self.steps or [])
        return 500 + 4 * (len(self._job_bytes) + sum([int(step.ByteSize()) for step in steps]))


@dataclass(frozen=True)
class JobRemoved:
    """A job that was deleted."""

    revision: int
    job_id: str

    @property
    def removal(self) -> bytes:
        """The change."""
        return removal(self.job_id)

    def size(self) -> int:
        """About how many bytes it keeps."""
        return 200


@dataclass(frozen=True)
class EntityChanged:
    """An entity that is new, has changed, or (version 0) was removed."""

    revision: int
    entity: jobs_pb2.Entity

    def size(self) -> int:
        """About how many bytes it keeps."""
        return 2 * self.entity.ByteSize()


@dataclass(frozen=True)
class FlowRequested:
    """An intent for the owner of a flow."""

    revision: int
    coordinator_id: str
    request: jobstore_pb2.FlowRequest

    def size(self) -> int:
        """About how many bytes it keeps."""
        return 2 * self.request.ByteSize()


@dataclass(frozen=True)
class FlowWoken:
    """News for a flow that waits."""

    revision: int
    coordinator_id: str
    wake: jobstore_pb2.FlowWake

    def size(self) -> int:
        """About how many bytes it keeps."""
        return 2 * self.wake.ByteSize()


JobChange = JobChanged | JobRemoved
JournalChange = EntityChanged | FlowRequested | FlowWoken


@dataclass(eq=False)
class Batch:
    """What changed between two revisions, in order of revision, the changes of one thing folded into its last."""

    since: Position
    until: Position
    scope: Scope
    head: Head
    jobs: list[JobChange] = field(default_factory=list)
    journal: list[JournalChange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = 500 + sum(change.size() for change in (*self.jobs, *self.journal))
        self.messages: dict[object, list[bytes]] = {}
        """What it says to whom: kept here by those who ask, so that the next who wants the same has it."""

    @property
    def complete(self) -> bool:
        """Whether it reaches the head that it was read with; else there is more."""
        return self.until.revision == self.head.revision


class Window:
    """The latest batches, without a gap between them, within a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._batches: deque[Batch] = deque()
        self._size = 0
        self._start = self.end = Position(0)

    @property
    def size(self) -> int:
        """About how many bytes it keeps."""
        return self._size

    def append(self, batch: Batch) -> None:
        """Adds the next batch; drops the oldest if there is no room."""
        assert batch.since.revision == self.end.revision
        if batch.until.revision == self.end.revision:
            return
        self._batches.append(batch)
        self._size += batch.size
        self.end = batch.until
        while self._size > self._capacity and self._batches:
            oldest = self._batches.popleft()
            self._size -= oldest.size
            self._start = oldest.until

    def skip_to(self, position: Position) -> None:
        """Begins anew at a position: whoever is behind it must read the table."""
        self._batches.clear()
        self._size = 0
        self._start = self.end = position

    def after(self, revision: int, scope: Scope) -> list[Batch] | None:
        """Returns the batches after a revision; None if they are not all here, or lack what is wanted of them."""
        if revision >= self.end.revision:
            return []
        if revision < self._start.revision:
            return None
        newest_first: list[Batch] = []
        for batch in reversed(self._batches):
            if batch.until.revision <= revision:
                break
            if scope not in batch.scope:
                return None
            newest_first.append(batch)
        return newest_first[::-1]
