"""An agent under test: the real runner and ledger (in memory) over a host that does as it is told.

    async with an_agent() as agent:
        await agent.start("t1")                     accepted, durable
        await agent.host.begun("t1")                a worker is in its verb
        agent.host.finish("t1", answer=1)           the verb returns
        ending = await agent.end_of("t1")

`restart()` dismisses the runner, with whatever it was at, and has a new one take up what the ledger has.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.otlp_sink import SinkSpan, span_of

from chassis import errors
from chassis.clock import ManualClock, SequentialIds
from chassis.errors import WaybillError
from chassis.tracing import Tracing
from hostagent.drivers.arguments import ArgumentSchema, ObjectId
from hostagent.drivers.driver import Finding, ObjectView, Probed, Recovery, Verb, Work
from hostagent.ledger import FlowOwner, Ledger, LedgerRow
from hostagent.observations import Observations
from hostagent.record import Record
from hostagent.recorder import Recorder
from hostagent.runner import TaskRunner
from hostagent.task import Ending, Json, TaskSpec, TaskState
from waybill_spans import Kept, Recorded

AN_OBJECT: Final = ObjectId("o")


async def on_object(host: object, work: Work, *, object_id: ObjectId = AN_OBJECT) -> Json:
    """Works on an object."""


def a_verb(name: str, recovery: Recovery = Recovery.RESUME, *, is_call: bool = False) -> Verb:
    return Verb(name, is_call, recovery, ArgumentSchema.of(on_object), "works on an object", on_object)


VERBS: Final = {
    verb.name: verb
    for verb in (
        a_verb("resumable"),
        a_verb("undoable", Recovery.ROLL_BACK),
        a_verb("probeable", Recovery.PROBE),
        a_verb("short", is_call=True),
    )
}


class ScriptedHost:
    """A host whose verbs wait for the test to say how they go."""

    def __init__(self) -> None:
        self.performed: list[str] = []
        """Every verb that was begun, by task id."""
        self.at_once = 0
        """How many are in their verb now."""
        self.most_at_once = 0
        self.recovered: list[str] = []
        """Every recovery action that ran."""
        self.broken_actions: set[str] = set()
        self.forgotten: list[str] = []
        self.finding = Finding(Probed.NOT_DONE)
        self.refusal: WaybillError | None = None
        self.works: dict[str, Work] = {}
        self._ends: dict[str, asyncio.Future[Json]] = {}
        self._begins: dict[str, asyncio.Event] = {}

    async def begun(self, task_id: str) -> Work:
        """Waits until a task is in its verb, and returns what the verb was given."""
        await self._begin(task_id).wait()
        return self.works[task_id]

    def finish(self, task_id: str, answer: Json = None) -> None:
        """Has the verb of a task return."""
        self._ends[task_id].set_result(answer)

    def fail(self, task_id: str, error: Exception) -> None:
        """Has the verb of a task raise."""
        self._ends[task_id].set_exception(error)

    def is_at(self, task_id: str) -> bool:
        """Says whether a task is in its verb now."""
        return task_id in self._ends and not self._ends[task_id].done()

    def _begin(self, task_id: str) -> asyncio.Event:
        return self._begins.setdefault(task_id, asyncio.Event())

    async def admit(self, verb: Verb, arguments: Mapping[str, Json], expected_generation: int | None) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def perform(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Json:
        assert not self.is_at(work.task_id), "two workers are at one task"
        self.performed.append(work.task_id)
        self.works[work.task_id] = work
        end = self._ends[work.task_id] = asyncio.get_running_loop().create_future()
        self._begin(work.task_id).set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await end
        finally:
            self.at_once -= 1
            self._begin(work.task_id).clear()

    async def probe(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Finding:
        return self.finding

    async def recover(self, action: str, work: Work, arguments: Mapping[str, Json]) -> None:
        if action in self.broken_actions:
            raise RuntimeError(f"{action} is broken")
        self.recovered.append(action)

    def forget(self, task_ids: Iterable[str]) -> None:
        self.forgotten += task_ids

    def forget_all_but(self, task_ids: Iterable[str]) -> None:
        pass

    def capabilities(self) -> Mapping[str, Json]:
        return {}

    def objects(self) -> Iterable[ObjectView]:
        return ()


def a_spec(task_id: str, verb: str = "resumable", **fields: Any) -> TaskSpec:
    return TaskSpec(task_id, verb, **{"arguments": {}, "flow_command_id": "f1", "epoch": 1, **fields})


OWNER: Final = FlowOwner("f1", 1)


class HeldLedger(Ledger):
    """A ledger whose disk can be held, or be full."""

    def __init__(self) -> None:
        super().__init__(":memory:", SequentialIds())
        self.disk = asyncio.Event()
        self.disk.set()
        self.is_full = False

    async def accept(self, rows: Sequence[LedgerRow], now: float) -> list[WaybillError | None]:
        await self._room()
        return await super().accept(rows, now)

    async def finish(
        self, row: LedgerRow, ending: Ending, *, progress: int, end_time: float, span: Recorded | None = None
    ) -> Kept | None:
        await self._room()
        return await super().finish(row, ending, progress=progress, end_time=end_time, span=span)

    async def _room(self) -> None:
        await self.disk.wait()
        if self.is_full:
            raise errors.unavailable("disk full")


class ScriptedTracing(Tracing):
    """Tracing whose collector, if there is one, is the test."""

    def __init__(self) -> None:
        super().__init__(None, ManualClock(), random.Random(1))
        self.has_collector = False
        self.spans: list[SinkSpan] = []
        """All that were recorded."""
        self._exported: list[Callable[[], None]] = []

    @property
    def enabled(self) -> bool:
        return self.has_collector

    def record(self, span: Recorded, exported: Callable[[], None] | None = None) -> None:
        if self.has_collector:
            self.spans.append(span_of(span.encoded()))
            if exported is not None:
                self._exported.append(exported)
        else:
            super().record(span, exported)

    def deliver(self) -> None:
        """Brings everything to the collector."""
        while self._exported:
            self._exported.pop()()


@dataclass
class Agent:
    """What a test has in its hands."""

    ledger: HeldLedger
    observations: Observations
    clock: ManualClock
    host: ScriptedHost = field(default_factory=ScriptedHost)
    tracing: ScriptedTracing = field(default_factory=ScriptedTracing)
    verbs: Mapping[str, Verb] = field(default_factory=lambda: VERBS)
    limits: dict[str, int] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def restart(self) -> None:
        """Dismisses the runner and has another one take up what there is."""
        await self.stack.aclose()
        self.host.works.clear()
        self.runner = await self.stack.enter_async_context(
            TaskRunner(
                verbs=self.verbs,
                host=self.host,
                ledger=self.ledger,
                observations=self.observations,
                clock=self.clock,
                recorder=Recorder(self.tracing, self.ledger, self.clock, "host-1"),
                **self.limits,
            )
        )

    async def start(self, task_id: str, verb: str = "resumable", **fields: Any) -> None:
        """Starts a task, which must be accepted."""
        assert await self.start_all(a_spec(task_id, verb, **fields)) == [None]

    async def start_all(self, *specs: TaskSpec) -> Sequence[str | None]:
        """Starts tasks; returns the reason of each refusal."""
        return [None if refusal is None else refusal.reason for refusal in await self.runner.start(specs)]

    async def finish(self, task_id: str, answer: Json = None) -> Ending:
        """Has a task succeed."""
        await self.host.begun(task_id)
        self.host.finish(task_id, answer)
        return await self.end_of(task_id)

    async def end_of(self, task_id: str) -> Ending:
        """Waits for the end of a task and returns it."""
        record = self.runner.record(task_id)
        await record.over.wait()
        assert record.task.ending is not None
        return record.task.ending

    async def settle(self) -> None:
        """Returns when nothing moves any more that does not wait for the host: writes are answered in turn."""
        for _ in range(8):  # more writes than lie between any two things that a host is asked
            await self.ledger.live()

    def state_of(self, task_id: str) -> TaskState:
        return self.runner.record(task_id).task.state

    def record(self, task_id: str) -> Record:
        return self.runner.record(task_id)

    async def in_ledger(self, task_id: str) -> Any:
        """Returns what the ledger has of a task, None if nothing."""
        return next((row for row in await self.ledger.live() if row.spec.task_id == task_id), None)


@asynccontextmanager
async def an_agent(**limits: int) -> AsyncIterator[Agent]:
    clock = ManualClock()
    async with (
        HeldLedger() as ledger,
        Observations(ledger, clock) as observations,
        AsyncExitStack() as stack,
    ):
        agent = Agent(ledger, observations, clock, limits=limits)
        stack.push_async_callback(lambda: agent.stack.aclose())
        await agent.restart()
        yield agent
