"""The hosts as the coordinator reaches them: what is to be started, called, stopped and cleared on each.

    start() ─▶ queue ─▶ one StartTasks on its way, the next gathers ─▶ accepted ─▶ TaskSource ─▶ report
                 ▲ nobody answered, or the host's queue is full: again, after a pause
    prioritise() ─▶ what is queued here waits with it; what the host has is sent again, which is how it is told
call()  ─▶ Call, again while nobody answers ──────────────────────────────────────────────▶ report
    stop()  ─▶ StopTask, again while nobody answers ─▶ the task's end is heard like any other
    clear() ─▶ queue ─▶ one ClearTasks on its way, the next gathers ─▶ cleared

A host is one of these to us: it answered, it decided not to, or nobody knows. Whatever is sent bears an id that was
stored before, so the answer to "nobody knows" is always to send the same again, for as long as it takes: an unreachable
host has neither failed nor succeeded.

| when | answer |
| --- | --- |
| host away, or another host at its address | the same again, with growing pauses |
| QUEUE_FULL | again, fewer at a time, until the node's deadline; then refused DEADLINE_EXCEEDED |
| deadline passed without an answer | not sent any more; asked instead whether the host has it |
| INCARNATION_CHANGED, ALREADY_CLEARED, a call it lost | lost: what became of an earlier attempt nobody can tell |
| another refusal | refused: that task alone |
| stop of a task whose start is on its way | asked again until the start is answered |
| stop of a task that never arrived | its start is withdrawn; refused ABORTED |
| clear of a task that still runs | its flow is over, so it is stopped first |
| a running task makes no progress | `stalled` is told, as long as the host answers for it |
| the store does not name the host (or no address of it) for 10 s | what is to be started there is lost |

A start costs no asyncio task: senders run only while their queue holds something.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.tallies import Labels
from coordinator.hosts.calls import Calls
from coordinator.hosts.clears import Clears
from coordinator.hosts.hostlink import HostLink, Surroundings
from coordinator.hosts.starts import Starts
from coordinator.hosts.stops import Stops
from coordinator.hosts.taskbook import TaskBook, TaskReport
from coordinator.hosts.tasksource import TaskSource
from coordinator.metrics import HostTallies
from waybill.v1 import hostagent_pb2, jobs_pb2

__all__ = ["Hosts", "TaskReport"]

log = logs.get_logger(__name__)


class Hosts:
    """All hosts by id: the engine's and the monitor's way to them."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        poll_seconds: float,
        report: Callable[[TaskReport], None],
        cleared: Callable[[Iterable[str]], None],
        coordinator_id: str = "",
        *,
        stalled: Callable[[str, float], None] = lambda task_id, seconds: None,
        stall_seconds: float = math.inf,
        outlived: Callable[[str, str, str], None] = lambda host_id, task_id, verb: None,
    ) -> None:
        """`report` is told of what is in our care; `cleared` (the journal's) of what hosts have forgotten.

        `stalled` is told of running tasks without progress for `stall_seconds`, and for how many seconds; again after
        as many more. `outlived` is told of tasks (host, id, verb) that are to be cleared and still run.
        """
        self._background = Background()
        self._around = Surroundings(
            clock=clock,
            rng=rng,
            background=self._background,
            report=report,
            cleared=cleared,
            coordinator_id=coordinator_id,
            poll_seconds=poll_seconds,
            stalled=stalled,
            outlived=outlived,
            stall_seconds=stall_seconds,
        )
        self._hosts: dict[str, Host] = {}
        self._host_of: dict[str, Host] = {}  # by task or call in our care
        self.metrics = HostTallies(
            hosts=self._by_state,
            streams=lambda: sum(host.link.streams for host in self._hosts.values()),
            tasks=self._tasks,
            clears=lambda: sum(len(host.clears) for host in self._hosts.values()),
        )

    async def __aenter__(self) -> Hosts:
        await self._background.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._background.__aexit__(kind, error, trace)
        finally:
            for host in self._hosts.values():
                await host.link.close()

    def learn(self, entity: jobs_pb2.Entity) -> None:
        """Takes what the store says about a HOST: where it is, or (version 0) that it is no more."""
        if entity.entity_type != jobs_pb2.ENTITY_TYPE_HOST:
            return
        if address := _address_of(entity):
            self._host(entity.entity_id).move(address)
        elif host := self._hosts.get(entity.entity_id):
            host.removed()

    def link(self, host_id: str) -> HostLink:
        """Returns the line to a host, for who listens to it."""
        return self._host(host_id).link

    def incarnation_of(self, host_id: str) -> str:
        """Returns the incarnation that the host was last seen in; "" if it never was."""
        host = self._hosts.get(host_id)
        return host.book.incarnation if host else ""

    def start(
        self, host_id: str, spec: hostagent_pb2.TaskSpec, deadline: float | None, stall_seconds: float | None = None
    ) -> None:
        """Has a host take a task; reports follow until it is over. `deadline`: Unix time, for the taking.

        `stall_seconds`: how long it may make no progress, None for what is usual.
        """
        host = self._host_of[spec.task_id] = self._host(host_id)
        host.starts.add(host.book.care(spec, deadline, stall_seconds))

    def call(self, host_id: str, spec: hostagent_pb2.TaskSpec, deadline: float | None) -> None:
        """Has a host run a short verb; one report follows. `deadline` as for a task."""
        host = self._host_of[spec.task_id] = self._host(host_id)
        host.calls.add(spec, deadline)

    def stop(self, host_id: str, task_id: str, flow_command_id: str, epoch: int, correlation_id: str) -> None:
        """Has a host stop a task; its end is reported like any other."""
        self._host(host_id).stops.add(
            hostagent_pb2.StopTaskRequest(
                task_id=task_id, flow_command_id=flow_command_id, epoch=epoch, correlation_id=correlation_id
            )
        )

    def prioritise(self, task_ids: Iterable[str], priority: int) -> None:
        """Has hosts give tasks in our care another priority, as far as they still wait for a worker."""
        for task_id in task_ids:
            if host := self._host_of.get(task_id):
                host.starts.prioritise(task_id, priority)

    def clear(self, host_id: str, task_ids: Iterable[str]) -> None:
        """Has a host forget what belongs to a flow that is over, for as long as it takes; nobody waits for it."""
        task_ids = list(task_ids)
        self.forget(task_ids)
        self._host(host_id).clears.add(task_ids)

    def forget(self, task_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: nothing more is sent, nothing reported about them."""
        for task_id in task_ids:
            if host := self._host_of.pop(task_id, None):
                host.forget(task_id)

    def _by_state(self) -> dict[Labels, float]:
        numbers = Counter(host.link.state for host in self._hosts.values())
        return {(state,): numbers[state] for state in ("up", "away", "unknown")}

    def _tasks(self) -> dict[Labels, float]:
        waiting = sum(host.book.unaccepted for host in self._hosts.values())
        return {("waiting",): waiting, ("taken",): sum(len(host.book) for host in self._hosts.values()) - waiting}

    def _host(self, host_id: str) -> Host:
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = Host(host_id, self._around)
        return host


class Host:
    """One host: the line to it, what we wait for there, and what is on its way."""

    def __init__(self, host_id: str, around: Surroundings) -> None:
        self._around = around
        self.book = TaskBook(host_id)
        self.link = HostLink(host_id, around.clock, self._met)
        source = TaskSource(around, self.link, self.book)
        self.starts = Starts(around, self.link, self.book, source)
        self.calls = Calls(around, self.link, self.book)
        self.stops = Stops(around, self.link, self.book, source, self.starts)
        self.clears = Clears(around, self.link)

    def move(self, address: str) -> None:
        """The store says where the host is. An address that is none, which anybody can declare, counts as none."""
        if address == self.link.address:
            return
        try:
            former = self.link.move(address)
        except ValueError as error:
            log.error("a host has no address that can be used", host_id=self.link.host_id, why=str(error))
            self.link.lose_address()
            return
        if former is not None:
            self._around.background.start(former.close(), f"hang up on host {self.link.host_id}")

    def removed(self) -> None:
        """The store does not name the host any more. What it took is asked about where it was last."""
        self.link.lose_address()

    def forget(self, task_id: str) -> None:
        """Nobody waits for the task or call any more."""
        self.book.forget(task_id)
        self.calls.forget(task_id)
        self.stops.forget(task_id)

    def _met(self, incarnation: str) -> None:
        for report in self.book.met(incarnation):
            self._around.report(report)


def _address_of(host: jobs_pb2.Entity) -> str:
    """Returns where a HOST's agent listens; "" if there is no such host or no address was declared."""
    fields = host.declared.fields
    return fields["address"].string_value if host.version and "address" in fields else ""
