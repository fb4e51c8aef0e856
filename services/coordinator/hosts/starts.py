"""Tasks on their way to one host: batched by one on its way, sent again until somebody decides."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from google.rpc import status_pb2

from chassis.errors import WaybillError
from coordinator.doorbell import settled
from coordinator.hosts.hostlink import HostAway, HostLink, Surroundings
from coordinator.hosts.refusals import is_for_now, too_late
from coordinator.hosts.taskbook import Entry, TaskBook
from coordinator.hosts.tasksource import TaskSource
from coordinator.retries import Backoff
from waybill.v1 import hostagent_pb2

MOST_TASKS: Final = 500
MOST_BYTES: Final = 3 << 20
"""Of one StartTasks."""
FEWEST_TASKS: Final = 16
"""A host whose queue is full is offered at least so many at a time."""


class Starts:
    """Has a host take tasks. The sender runs only while there is something to send."""

    def __init__(self, around: Surroundings, link: HostLink, book: TaskBook, source: TaskSource) -> None:
        self._around = around
        self._link = link
        self._book = book
        self._source = source
        self._queue: deque[Entry] = deque()
        self._in_flight: Sequence[Entry] = ()  # they wait for their answer
        self._offer = MOST_TASKS  # how many are sent at a time: fewer while the host's queue is full
        self._sender: asyncio.Task[None] | None = None  # None while the queue is empty

    def add(self, entry: Entry) -> None:
        """Sends a task to the host, again and again until it is taken, refused or withdrawn."""
        self._queue.append(entry)
        self._source.wake()
        if self._sender is None:
            self._sender = self._around.background.start(self._send(), f"starts of host {self._link.host_id}")

    def prioritise(self, task_id: str, priority: int) -> None:
        """Gives a task another priority: it is sent with it, or once more if the host may have it waiting already."""
        if entry := self._book.prioritise(task_id, priority):
            self.add(entry)

    def is_in_flight(self, entry: Entry) -> bool:
        """Tells whether the host is being asked to take it right now."""
        return any(entry is each for each in self._in_flight)

    async def _send(self) -> None:
        pauses = Backoff(self._around.rng, first=0.02)
        while batch := await self._next():
            again = await self._start(batch)
            if len(again) < len(batch):
                pauses.reset()
            if again:
                self._queue.extendleft(reversed(again))
                await self._around.clock.sleep(pauses.next())
        self._sender = None

    async def _next(self) -> list[Entry]:
        await settled(self._queue)
        return self._take()

    def _take(self) -> list[Entry]:
        """Takes the next ones out of the queue; those that nobody wants any more are dropped."""
        taken: list[Entry] = []
        size = 0
        while self._queue and len(taken) < self._offer:
            entry = self._queue[0]
            if entry.withdrawn or (entry.accepted and not entry.reprioritised):
                self._queue.popleft()
                continue
            size += entry.spec.ByteSize()
            if size > MOST_BYTES and taken:
                break
            taken.append(self._queue.popleft())
        return taken

    async def _start(self, batch: list[Entry]) -> list[Entry]:
        """Sends a batch; returns those that must be sent again."""
        if self._link.is_unknown():
            return self._lose(batch)
        if any(map(self._is_overdue, batch)):
            return await self._start_in_time(batch)
        self._in_flight = batch
        try:
            request = hostagent_pb2.StartTasksRequest(tasks=[entry.spec for entry in batch])
            response = await self._link.ask(self._link.stub.StartTasks, request)
        except HostAway:
            return batch
        except WaybillError as refusal:
            return await self._start_each(batch, refusal)
        finally:
            self._in_flight = ()
        again = self._answered(batch, response.results)
        for entry, sent in zip(batch, request.tasks, strict=True):
            entry.reprioritised = entry.spec.priority != sent.priority  # changed while it was on its way
            if entry.reprioritised and entry.accepted:
                self._queue.append(entry)
        return again

    def _answered(self, batch: list[Entry], results: Iterable[hostagent_pb2.StartTaskResult]) -> list[Entry]:
        declined: list[Entry] = []
        for entry, result in zip(batch, results, strict=True):
            if not result.HasField("error"):
                self._book.accepted(entry.spec.task_id)
            elif is_for_now(result.error):
                declined.append(entry)
            else:
                self._refuse(entry, result.error)
        self._source.check_soon()
        accepted = len(batch) - len(declined)
        self._offer = max(FEWEST_TASKS, accepted) if declined else min(MOST_TASKS, 2 * self._offer)
        return self._still_in_time(declined)

    async def _start_each(self, batch: list[Entry], refusal: WaybillError) -> list[Entry]:
        """The host refused the batch as a whole: one of them is to blame."""
        if len(batch) > 1:
            return [entry for one in batch for entry in await self._start([one])]
        status = refusal.to_status()
        if is_for_now(status):
            return self._still_in_time(batch)
        self._refuse(batch[0], status)
        return []

    def _lose(self, batch: Iterable[Entry]) -> list[Entry]:
        for entry in batch:
            if report := self._book.lose(entry.spec.task_id, "the store does not name the host"):
                self._around.report(report)
        return []

    def _refuse(self, entry: Entry, error: status_pb2.Status) -> None:
        if report := self._book.refused(entry.spec.task_id, error):
            self._around.report(report)

    # ---------------------------------------------------------------- deadlines

    def _is_overdue(self, entry: Entry) -> bool:
        return entry.deadline is not None and entry.deadline <= self._around.clock.now()

    def _still_in_time(self, declined: list[Entry]) -> list[Entry]:
        """Returns those of the declined that are offered again; the others' time is over."""
        for entry in declined:
            if self._is_overdue(entry):
                self._refuse(entry, too_late(entry.spec))
        return [entry for entry in declined if not self._is_overdue(entry)]

    async def _start_in_time(self, batch: list[Entry]) -> list[Entry]:
        """Sends what is in time; asks about the rest, which may have been taken though nobody heard the answer."""
        overdue = [entry for entry in batch if self._is_overdue(entry)]
        in_time = [entry for entry in batch if not self._is_overdue(entry)]
        again = [] if await self._settle(overdue) else overdue
        return again + (await self._start(in_time) if in_time else [])

    async def _settle(self, overdue: list[Entry]) -> bool:
        """Finds out whether the host has taken tasks whose deadline has passed. False if nobody answered."""
        request = hostagent_pb2.GetAllTasksStatusesRequest(task_ids=[entry.spec.task_id for entry in overdue])
        try:
            response = await self._link.ask(self._link.stub.GetAllTasksStatuses, request)
        except HostAway:
            return False
        named = {status.task_id for status in response.statuses}
        self._source.hear(response.statuses)
        for entry in overdue:
            if entry.spec.task_id not in named:
                self._refuse(entry, too_late(entry.spec))
        return True
