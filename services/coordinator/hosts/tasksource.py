"""What a host says about our tasks: pushed by `WatchTasks`, with polling as the net.

The stream is open while a task of ours is on the host, and some rounds of the net longer. Each time it opens with a
snapshot, so what was said while nobody listened is heard then, and connecting again is connecting. The net asks by name
about every task that the host has taken, each `poll_seconds`: it catches what a stream that is alive does not say.
A task that was over before we began to care (its flow was taken over from another coordinator) is on no open stream:
a task without a word shortly after its acceptance is asked about once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Final

from chassis import logs
from coordinator.hosts.hostlink import HostAway, HostLink, Surroundings
from coordinator.hosts.taskbook import TaskBook
from coordinator.retries import Backoff
from waybill.v1 import hostagent_pb2

log = logs.get_logger(__name__)

ROUNDS_BEFORE_REST: Final = 3
"""How many rounds of the net find nothing to ask about before the stream is closed."""
QUIET_SECONDS: Final = 0.25
"""How long after its acceptance a task is asked about if nothing was heard of it."""
MOST_ASKED: Final = 5000
"""How many tasks are asked about at a time."""
_SLOWEST_NET: Final = 6
"""While a host is away the net's rounds grow to so many times their length."""


class TaskSource:
    """Hears how the tasks of one host are, for as long as there are any."""

    def __init__(self, around: Surroundings, link: HostLink, book: TaskBook) -> None:
        self._around = around
        self._link = link
        self._book = book
        self._net: asyncio.Task[None] | None = None  # None while the source is at rest
        self._rounds_of_rest = 0
        self._quiet_check: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is a task to hear about."""
        self._rounds_of_rest = 0
        if self._net is None:
            following = self._around.background.start(self._follow(), f"tasks of {self._link.host_id}")
            self._net = self._around.background.start(self._cast(following), f"net of {self._link.host_id}")

    def check_soon(self) -> None:
        """Tasks were accepted: those that stay unheard of for a moment are asked about."""
        if self._quiet_check is None:
            self._quiet_check = self._around.background.start(self._check_quiet(), f"check of {self._link.host_id}")

    async def ask_about(self, task_ids: Iterable[str]) -> bool:
        """Asks how these tasks are; those that the host denies twice are lost. False if nobody answered."""
        wanted = list(task_ids)
        try:
            for first in range(0, len(wanted), MOST_ASKED):
                doubts = wanted[first : first + MOST_ASKED]
                while doubts:
                    doubts = await self._ask(doubts)
        except HostAway:
            return False
        return True

    async def _ask(self, task_ids: Sequence[str]) -> list[str]:
        question = self._book.question()
        request = hostagent_pb2.GetAllTasksStatusesRequest(task_ids=task_ids)
        response = await self._link.ask(self._link.stub.GetAllTasksStatuses, request)
        self.hear(response.statuses)
        return self._denied(question, {status.task_id for status in response.statuses}, task_ids)

    def hear(self, statuses: Iterable[hostagent_pb2.TaskStatus]) -> None:
        """Takes statuses from wherever they come."""
        for status in statuses:
            if report := self._book.heard(status):
                self._around.report(report)

    def _denied(self, question: int, named: set[str], about: Iterable[str] | None = None) -> list[str]:
        lost, doubts = self._book.denied(question, named, about)
        for report in lost:
            self._around.report(report)
        return doubts

    # ---------------------------------------------------------------- the stream

    async def _follow(self) -> None:
        pauses = Backoff(self._around.rng, longest=5.0)
        while True:
            try:
                await self._listen(pauses)
            except HostAway:
                await self._around.clock.sleep(pauses.next())

    async def _listen(self, pauses: Backoff) -> None:
        question = self._book.question()
        named: set[str] = set()
        in_snapshot = True
        request = hostagent_pb2.WatchTasksRequest(watcher=self._around.coordinator_id)
        async with aclosing(self._link.listen(self._link.stub.WatchTasks, request)) as messages:
            async for message in messages:
                pauses.reset()
                self.hear(message.statuses)
                if in_snapshot:
                    named.update(status.task_id for status in message.statuses if status.task_id in self._book)
                    in_snapshot = not message.snapshot_done
                    if message.snapshot_done and (doubts := self._denied(question, named)):
                        self._around.background.start(self.ask_about(doubts), f"doubts about {self._link.host_id}")

    # ---------------------------------------------------------------- the net

    async def _cast(self, following: asyncio.Task[None]) -> None:
        """Polls until there was nothing to ask about for some rounds; then all is at rest."""
        pause = self._around.poll_seconds
        answered_at: float | None = None  # when the last round was, if the host answered in it
        while self._rounds_of_rest < ROUNDS_BEFORE_REST:
            await self._around.clock.sleep(pause * (0.9 + 0.1 * self._around.rng.random()))
            if not len(self._book):
                self._rounds_of_rest += 1
                answered_at = None
            elif await self.ask_about(self._book.accepted_ids()):
                pause = self._around.poll_seconds
                answered_at = self._note_standstills(answered_at)
            else:
                pause = min(2 * pause, _SLOWEST_NET * self._around.poll_seconds)
                answered_at = None
        following.cancel()
        self._net = None

    def _note_standstills(self, answered_at: float | None) -> float:
        """The host has just said how its tasks are; returns when that was."""
        now = self._around.clock.monotonic()
        passed = 0.0 if answered_at is None else now - answered_at
        for task_id, seconds in self._book.still(passed, self._around.stall_seconds):
            log.warning("a task makes no progress", host_id=self._link.host_id, task_id=task_id, seconds=seconds)
            self._around.stalled(task_id, seconds)
        return now

    async def _check_quiet(self) -> None:
        """Asks about tasks that were unheard of when the moment began and still are when it is over."""
        before = self._book.unheard_ids()
        await self._around.clock.sleep(QUIET_SECONDS)
        self._quiet_check = None
        now = self._book.unheard_ids()
        if quiet := before & now:
            await self.ask_about(sorted(quiet))
        if now - quiet:
            self.check_soon()
