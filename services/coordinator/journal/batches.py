"""What waits to be written, and the batches that it is written in. Pure: no loop runs here, no call is made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from chassis.errors import WaybillError
from waybill.v1 import jobs_pb2, jobstore_pb2

MOST_COMMITS: Final = 256
MOST_BYTES: Final = 3 << 20
"""Of commits in a batch; one that is larger goes alone."""
MOST_NOTES: Final = 1000
"""Of observations, cleared tasks and events each, in a batch."""

SightingKey = tuple[int, str, str]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Waiting:
    """A commit and who waits for its result."""

    commit: jobstore_pb2.FlowCommit
    result: asyncio.Future[jobstore_pb2.FlowCommitResult]

    def answer(self, result: jobstore_pb2.FlowCommitResult) -> None:
        if not self.result.done():  # done: the caller was cancelled
            self.result.set_result(result)

    def fail(self, error: WaybillError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(slots=True)
class Batch:
    """What is sent together, and again and again until it is answered."""

    request: jobstore_pb2.CommitRequest
    waiting: list[Waiting]

    @property
    def is_group(self) -> bool:
        """True if its commits are applied together or not at all."""
        return self.request.all_or_nothing

    def answer(self, results: Sequence[jobstore_pb2.FlowCommitResult]) -> None:
        """Gives each commit's waiter its result."""
        for waiting, result in zip(self.waiting, results, strict=True):
            waiting.answer(result)

    def fail(self, error: WaybillError) -> None:
        """Tells every waiter that nobody will answer."""
        for waiting in self.waiting:
            waiting.fail(error)

    def parts(self) -> list[Batch]:
        """Returns the same in batches that are as small as can be: each commit alone, then each note alone."""
        request = self.request
        if self.is_group:
            return [self]
        parts = [Batch(_of(request, commits=[waiting.commit]), [waiting]) for waiting in self.waiting]
        parts += [Batch(_of(request, observations=[row]), []) for row in request.observations]
        parts += [Batch(_of(request, events=[event]), []) for event in request.events]
        if request.cleared_task_ids:
            parts.append(Batch(_of(request, cleared_task_ids=request.cleared_task_ids), []))
        return parts


def _of(
    batch: jobstore_pb2.CommitRequest,
    *,
    commits: Iterable[jobstore_pb2.FlowCommit] = (),
    observations: Iterable[jobstore_pb2.ObservedRow] = (),
    cleared_task_ids: Iterable[str] = (),
    events: Iterable[jobstore_pb2.EventRow] = (),
) -> jobstore_pb2.CommitRequest:
    return jobstore_pb2.CommitRequest(
        coordinator_id=batch.coordinator_id,
        commits=commits,
        observations=observations,
        cleared_task_ids=cleared_task_ids,
        events=events,
    )


@dataclass(slots=True)
class Gathering:
    """What waits for the next batch."""

    coordinator_id: str
    commits: list[Waiting] = field(default_factory=list)
    groups: list[list[Waiting]] = field(default_factory=list)
    observations: dict[SightingKey, jobstore_pb2.ObservedRow] = field(default_factory=dict)
    cleared: dict[str, None] = field(default_factory=dict)
    events: list[jobstore_pb2.EventRow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.commits or self.groups or self.observations or self.cleared or self.events)

    def observe(self, row: jobstore_pb2.ObservedRow) -> None:
        """Keeps a host's latest observation of an entity: a later one replaces it, an older one is dropped."""
        key = (row.entity.entity_type, row.entity.entity_id, row.observed.host_id)
        former = self.observations.get(key)
        if former is None or not _is_older(row.observed, former.observed):
            self.observations[key] = row

    def take(self) -> Batch:
        """Takes the next batch out: the oldest of each kind, as much as fits."""
        if self.groups:
            return self._take_group()
        waiting = self._take_commits()
        request = jobstore_pb2.CommitRequest(
            coordinator_id=self.coordinator_id,
            commits=[each.commit for each in waiting],
            observations=_take_first(self.observations, MOST_NOTES).values(),
            cleared_task_ids=_take_first(self.cleared, MOST_NOTES),
            events=self.events[:MOST_NOTES],
        )
        del self.events[:MOST_NOTES]
        return Batch(request, waiting)

    def _take_group(self) -> Batch:
        group = self.groups.pop(0)
        commits = [waiting.commit for waiting in group]
        request = jobstore_pb2.CommitRequest(coordinator_id=self.coordinator_id, commits=commits, all_or_nothing=True)
        return Batch(request, group)

    def _take_commits(self) -> list[Waiting]:
        count = size = 0
        for waiting in islice(self.commits, MOST_COMMITS):
            size += waiting.commit.ByteSize()
            if size > MOST_BYTES and count:
                break
            count += 1
        taken = self.commits[:count]
        del self.commits[:count]
        return taken


def _is_older(observed: jobs_pb2.Observed, former: jobs_pb2.Observed) -> bool:
    return observed.incarnation == former.incarnation and observed.number < former.number


def _take_first(waiting: dict[K, V], most: int) -> dict[K, V]:
    taken = dict(islice(waiting.items(), most))
    for key in taken:
        del waiting[key]
    return taken
