"""Tasks and calls that one host is to forget: batched by one on its way, sent again for as long as the host is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from chassis import logs
from chassis.errors import WaybillError
from coordinator.doorbell import settled
from coordinator.hosts.hostlink import HostAway, HostLink, Surroundings
from coordinator.retries import Backoff
from waybill.v1 import hostagent_pb2

log = logs.get_logger(__name__)

MOST_CLEARS: Final = 1000
"""Of one ClearTasks."""


class Clears:
    """Has a host forget what belongs to flows that are over. The sender runs only while there is something to send."""

    def __init__(self, around: Surroundings, link: HostLink) -> None:
        self._around = around
        self._link = link
        self._queue: dict[str, None] = {}
        self._outlived: set[str] = set()  # those in the queue that were told of
        self._sender: asyncio.Task[None] | None = None  # None while the queue is empty

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, task_ids: Iterable[str]) -> None:
        """Has the host forget these; an id that it does not know counts as forgotten."""
        self._queue.update(dict.fromkeys(task_ids))
        if self._queue and self._sender is None:
            self._sender = self._around.background.start(self._send(), f"clears of host {self._link.host_id}")

    async def _send(self) -> None:
        pauses = Backoff(self._around.rng, longest=5.0)
        while self._queue:
            await settled(self._queue)
            done = await self._clear(list(islice(self._queue, MOST_CLEARS)))
            for task_id in done:
                self._queue.pop(task_id, None)
                self._outlived.discard(task_id)
            if done:
                pauses.reset()
                self._around.cleared(done)
            else:
                await self._around.clock.sleep(pauses.next())
        self._sender = None

    async def _clear(self, task_ids: Sequence[str]) -> list[str]:
        """Sends a batch; returns those that are forgotten."""
        request = hostagent_pb2.ClearTasksRequest(task_ids=task_ids)
        try:
            response = await self._link.ask(self._link.stub.ClearTasks, request)
        except HostAway:
            return list(task_ids) if self._link.is_unknown() else []  # there is no such host any more: nothing is left
        except WaybillError as refusal:
            log.warning("the host clears nothing", host_id=self._link.host_id, reason=refusal.reason)
            return []
        for result in response.results:
            if result.HasField("error"):
                await self._stop(result.task_id)
        return [result.task_id for result in response.results if not result.HasField("error")]

    async def _stop(self, task_id: str) -> None:
        """Stops a task that outlived its flow; it is cleared in one of the next rounds."""
        log.warning("a task outlived its flow", host_id=self._link.host_id, task_id=task_id)
        try:
            asked = hostagent_pb2.GetTaskInfoRequest(task_id=task_id)
            spec = (await self._link.ask(self._link.stub.GetTaskInfo, asked)).info.spec
            if task_id not in self._outlived:
                self._outlived.add(task_id)
                self._around.outlived(self._link.host_id, task_id, spec.verb)
            stop = hostagent_pb2.StopTaskRequest(
                task_id=task_id,
                flow_command_id=spec.flow_command_id,
                epoch=spec.epoch,
                correlation_id=spec.correlation_id,
            )
            await self._link.ask(self._link.stub.StopTask, stop, correlation_id=spec.correlation_id)
        except (HostAway, WaybillError) as error:
            log.warning("it was not stopped", host_id=self._link.host_id, task_id=task_id, why=str(error))
