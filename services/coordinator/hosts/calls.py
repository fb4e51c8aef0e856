"""Short verbs on their way to one host: an asyncio task each, asked again until somebody decides."""

from __future__ import annotations

import asyncio
from typing import Final

from chassis.errors import WaybillError
from coordinator.hosts.hostlink import HostAway, HostLink, Surroundings
from coordinator.hosts.refusals import is_for_now, result_of, too_late
from coordinator.hosts.taskbook import TaskBook, TaskReport, plain
from coordinator.retries import Backoff
from waybill.v1 import hostagent_pb2

CALLS_AT_ONCE: Final = 64
"""To one host."""


class Calls:
    """Has a host run short verbs; one report follows for each."""

    def __init__(self, around: Surroundings, link: HostLink, book: TaskBook) -> None:
        self._around = around
        self._link = link
        self._book = book
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)

    def add(self, spec: hostagent_pb2.TaskSpec, deadline: float | None) -> None:
        """Has the host run the verb; one that is under way already is not asked twice."""
        if spec.task_id not in self._under_way:
            work = self._call(spec, deadline)
            self._under_way[spec.task_id] = self._around.background.start(work, f"call {spec.task_id}")

    def forget(self, task_id: str) -> None:
        """Nobody waits for the call: it is not asked again."""
        if call := self._under_way.pop(task_id, None):
            call.cancel()

    async def _call(self, spec: hostagent_pb2.TaskSpec, deadline: float | None) -> None:
        async with self._room:
            report = await self._outcome(spec, deadline)
        self._under_way.pop(spec.task_id, None)
        self._around.report(report)

    async def _outcome(self, spec: hostagent_pb2.TaskSpec, deadline: float | None) -> TaskReport:
        """Asks until there is an answer, a refusal, or nobody to ask."""
        pauses = Backoff(self._around.rng)
        while not self._link.is_unknown():
            try:
                if self._is_past(deadline) and not await self._is_known(spec.task_id):
                    return self._book.refusal_of(spec.task_id, too_late(spec))
                return await self._ask(spec)
            except HostAway:
                pass
            except WaybillError as refusal:
                status = refusal.to_status()
                if not is_for_now(status):
                    return self._book.refusal_of(spec.task_id, status)
            await self._around.clock.sleep(pauses.next())
        return self._book.lost(spec.task_id, "the store does not name the host")

    async def _ask(self, spec: hostagent_pb2.TaskSpec) -> TaskReport:
        request = hostagent_pb2.CallRequest(call=spec)
        response = await self._link.ask(self._link.stub.Call, request, correlation_id=spec.correlation_id)
        error = response.error if response.HasField("error") else None
        return TaskReport(
            self._link.host_id,
            spec.task_id,
            "FINISHED",
            result_of(error),
            progress=100,
            error=error,
            answer=plain(response.answer) if response.HasField("answer") else None,
            incarnation=response.agent.incarnation,
            observation_number=response.observation_number,
        )

    async def _is_known(self, task_id: str) -> bool:
        """Asks whether the host has the call: it may have, though nobody heard the answer."""
        request = hostagent_pb2.GetAllTasksStatusesRequest(task_ids=[task_id])
        response = await self._link.ask(self._link.stub.GetAllTasksStatuses, request)
        return any(status.task_id == task_id for status in response.statuses)

    def _is_past(self, deadline: float | None) -> bool:
        return deadline is not None and deadline <= self._around.clock.now()
