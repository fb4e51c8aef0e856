"""Wishes that tasks on one host stop: asked again until somebody decides. The end itself is heard like any other."""

from __future__ import annotations

import asyncio

from chassis import logs
from chassis.errors import WaybillError, failed_precondition
from coordinator.hosts.hostlink import HostAway, HostLink, Surroundings
from coordinator.hosts.refusals import is_for_now
from coordinator.hosts.starts import Starts
from coordinator.hosts.taskbook import TaskBook
from coordinator.hosts.tasksource import TaskSource
from coordinator.retries import Backoff
from waybill.v1 import hostagent_pb2

log = logs.get_logger(__name__)


class Stops:
    """Has a host stop tasks."""

    def __init__(
        self, around: Surroundings, link: HostLink, book: TaskBook, source: TaskSource, starts: Starts
    ) -> None:
        self._around = around
        self._link = link
        self._book = book
        self._source = source
        self._starts = starts
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def add(self, request: hostagent_pb2.StopTaskRequest) -> None:
        """Has the host stop the task; a start of it that waits is not sent any more."""
        if entry := self._book.get(request.task_id):
            entry.withdrawn = True
        if request.task_id not in self._under_way:
            work = self._stop(request)
            self._under_way[request.task_id] = self._around.background.start(work, f"stop {request.task_id}")

    def forget(self, task_id: str) -> None:
        """Nobody waits for the task: it is not asked to stop again."""
        if stop := self._under_way.pop(task_id, None):
            stop.cancel()

    async def _stop(self, request: hostagent_pb2.StopTaskRequest) -> None:
        pauses = Backoff(self._around.rng)
        while not await self._is_answered(request):
            await self._around.clock.sleep(pauses.next())
        self._under_way.pop(request.task_id, None)

    async def _is_answered(self, request: hostagent_pb2.StopTaskRequest) -> bool:
        try:
            response = await self._link.ask(self._link.stub.StopTask, request, correlation_id=request.correlation_id)
        except HostAway:
            return self._link.is_unknown()
        except WaybillError as refusal:
            if refusal.reason == "TASK_UNKNOWN":
                return await self._is_settled(request.task_id)
            log.warning("a task was not stopped", task_id=request.task_id, reason=refusal.reason)
            return not is_for_now(refusal.to_status())
        self._source.hear([response.status])
        return True

    async def _is_settled(self, task_id: str) -> bool:
        """The host does not know the task: it is lost, or it never came there. False while that may change."""
        entry = self._book.get(task_id)
        if entry is None:
            return True
        if entry.accepted:
            await self._source.ask_about([task_id])
            return task_id not in self._book  # still there: it came after the host was asked to stop it
        if self._starts.is_in_flight(entry):
            return False
        never_began = failed_precondition("ABORTED", f"stopped before host {self._link.host_id} had it")
        if report := self._book.refused(task_id, never_began.to_status()):
            self._around.report(report)
        return True
