"""What waits for its turn in the journal, and the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from chassis.errors import WaybillError
from jobstore.journal import rows
from jobstore.journal.writer import Writer
from waybill.v1 import jobstore_pb2

T = TypeVar("T")


class Part(Generic[T]):
    """Something that waits for its turn and for an answer."""

    def __init__(self) -> None:
        # An error is an answer like any other: nobody need listen for it.
        self._answer: asyncio.Future[T | WaybillError] = asyncio.get_running_loop().create_future()

    async def result(self) -> T:
        """Waits for the answer; raises the error if it is one."""
        answer = await self._answer
        if isinstance(answer, WaybillError):
            raise answer
        return answer

    def answer(self, answer: T | WaybillError) -> None:
        """Answers, if somebody still waits and has not been answered."""
        if not self._answer.done():
            self._answer.set_result(answer)

    def refuse(self, error: WaybillError) -> None:
        """Answers that nothing of it was written."""
        self.answer(error)


class Commit(Part[jobstore_pb2.FlowCommitResult]):
    """One flow's mutations."""

    def __init__(self, coordinator_id: str, commit: jobstore_pb2.FlowCommit) -> None:
        """Raises INVALID_ARGUMENT if it cannot be made rows of."""
        super().__init__()
        self.coordinator_id = coordinator_id
        self.commit = commit
        self.rows = rows.rows_of(commit, coordinator_id)

    def refuse(self, error: WaybillError) -> None:
        """A refusal is data in the result, but for that of the whole call."""
        if error.reason == "LEASE_LOST":
            self.answer(error)
        else:
            self.answer(jobstore_pb2.FlowCommitResult(error=error.to_status()))


class Group(Part[None]):
    """Commits of several flows that are applied together, or not at all. Each has an answer of its own."""

    def __init__(self, commits: Sequence[Commit]) -> None:
        super().__init__()
        self.commits = commits

    def answer(self, answer: WaybillError | None) -> None:
        """Answers each of them that has not been."""
        assert answer is not None
        for commit in self.commits:
            commit.answer(answer)

    def refuse(self, error: WaybillError) -> None:
        """Refuses each of them."""
        for commit in self.commits:
            commit.refuse(error)


class Notes(Part[None]):
    """What a coordinator has to say outside of its flows' commits."""

    def __init__(self, request: jobstore_pb2.CommitRequest) -> None:
        """Raises INVALID_ARGUMENT if it cannot be made rows of."""
        super().__init__()
        self.coordinator_id = request.coordinator_id
        self.observations = rows.observation_rows(request.observations)
        self.cleared_task_ids = list(request.cleared_task_ids)
        of_no_task = [event for event in request.events if not event.task_id]
        self.events = rows.event_rows(of_no_task)
        self.correlation_ids = [event.correlation_id for event in of_no_task]
        self.task_events = rows.task_event_rows(event for event in request.events if event.task_id)


@dataclass
class Turn:
    """A transaction that has the mutex."""

    writer: Writer
    revision: int
    time: datetime
    changed: bool = False
    """True: it is to be committed. False: rolled back, and the next one gets its revision."""
