"""The engine in front of a store that does not answer."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from opentelemetry import baggage, trace
from waybill_bench import BenchWork

from chassis import tracing
from chassis.background import Background
from chassis.clock import ManualClock, SequentialIds
from chassis.errors import WaybillError, unavailable
from coordinator import wire
from coordinator.commands.base import Command, Registry
from coordinator.engine.chronicle import Chronicle
from coordinator.engine.engine import Engine
from coordinator.rows import Job, Subject
from coordinator.world import World
from waybill.v1 import jobs_pb2, jobstore_pb2

ROOM = 5
FLOW = "01936f2e-7b1c-7d55-8f7e-000000000001"


class SlowJournal:
    """Takes commits, and answers when it is told to."""

    def __init__(self) -> None:
        self.taken: list[asyncio.Future[jobstore_pb2.FlowCommitResult]] = []
        self.willing = False
        self.loaded: list[str] = []
        self.stored: dict[str, jobstore_pb2.FlowRows] = {}
        self.commits: list[jobstore_pb2.FlowCommit] = []
        self.read = asyncio.Event()  # entities can be

    def commit(self, commit: jobstore_pb2.FlowCommit) -> asyncio.Future[jobstore_pb2.FlowCommitResult]:
        self.commits.append(commit)
        self.taken.append(asyncio.get_running_loop().create_future())
        if self.willing:
            self.answer()
        return self.taken[-1]

    async def read_entities(self, refs: Sequence[jobstore_pb2.EntityRef]) -> list[jobs_pb2.Entity]:
        await self.read.wait()
        return [
            jobs_pb2.Entity(entity_type=ref.entity_type, entity_id=ref.entity_id, name="web", version=1) for ref in refs
        ]

    def on_entities(self, heard: Any) -> None:
        """There are none."""

    def on_requests(self, heard: Any) -> None:
        """There are none."""

    def on_wakes(self, heard: Any) -> None:
        """There are none."""

    async def load_flows(self, flow_command_ids: Sequence[str]) -> list[jobstore_pb2.FlowRows]:
        self.loaded += flow_command_ids
        return [self.stored[each] for each in flow_command_ids if each in self.stored]

    def answer(self) -> None:
        self.willing = True
        for commit in self.taken:
            if not commit.done():
                commit.set_result(jobstore_pb2.FlowCommitResult(revision=1))


class NoHosts:
    """Nothing is asked of them here."""

    def incarnation_of(self, host_id: str) -> str:
        return ""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.fixture
def journal() -> SlowJournal:
    return SlowJournal()


@pytest.fixture
async def engine(journal: SlowJournal) -> AsyncIterator[Engine]:
    clock, ids = ManualClock(1_000_000.0), SequentialIds()
    async with Background() as background:
        parts: Any = (journal, NoHosts(), Registry.load(), background, clock, ids, random.Random(1))
        engine = Engine(*parts, most_unanswered=ROOM)
        engine.open()
        yield engine


def submit(engine: Engine, number: int) -> asyncio.Task[Any]:
    parameters = {"host_id": "h1", "object_id": f"o{number}"}
    command: Command = engine.registry.find("BenchWork").read(1, parameters)
    job = Job(f"job-{number}", "BenchWork", "Working", "ada", "corr-1", parameters=parameters)
    return asyncio.create_task(engine.submit(job, command))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_of_many_at_once_some_are_stored_and_the_rest_waits(engine: Engine, journal: SlowJournal) -> None:
    submitted = [submit(engine, number) for number in range(3 * ROOM)]
    await turns()
    assert (engine.flows, len(journal.taken)) == (ROOM, ROOM)
    journal.answer()
    jobs = await asyncio.gather(*submitted)
    assert [job.job_id for job in jobs] == [f"job-{number}" for number in range(3 * ROOM)]


async def test_who_waits_for_room_is_told_when_there_will_be_none(engine: Engine) -> None:
    submitted = [submit(engine, number) for number in range(2 * ROOM)]
    await turns()
    engine.stop(unavailable("going down", reason="SHUTTING_DOWN"))
    answers = await asyncio.gather(*submitted, return_exceptions=True)
    assert {answer.reason for answer in answers if isinstance(answer, WaybillError)} == {"SHUTTING_DOWN"}
    assert engine.flows == 0


async def test_a_caller_that_leaves_makes_room(engine: Engine) -> None:
    leaving = [submit(engine, number) for number in range(ROOM)]
    last = submit(engine, ROOM)
    await turns()
    for caller in leaving:
        caller.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    await turns()
    assert engine.flows == ROOM + 1  # flows go on without their callers
    last.cancel()


async def test_an_answer_that_cannot_be_handled_stops_its_actor_and_the_flow_is_loaded_anew(
    engine: Engine, journal: SlowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise ZeroDivisionError

    monkeypatch.setattr(wire, "seconds_of", fail)
    engine.start()
    submitted = submit(engine, 1)
    await turns()
    [flow] = engine._flows
    journal.answer()
    with pytest.raises(WaybillError, match="taken up again"):
        await submitted
    assert engine.flows == 0
    clock = engine.clock
    assert isinstance(clock, ManualClock)
    while not journal.loaded:
        clock.advance(1.0)
        await turns()
    assert journal.loaded == [flow]


async def test_a_defect_of_the_record_does_not_stop_the_work(
    engine: Engine, journal: SlowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(Chronicle, "recorded", fail)
    journal.willing = True
    assert (await submit(engine, 1)).job_id == "job-1"
    assert engine.flows == 1


async def test_a_command_s_code_runs_under_the_command_s_span(
    engine: Engine, journal: SlowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    async def validate(self: BenchWork, world: World) -> None:
        own = trace.get_current_span().get_span_context()
        seen.append((f"{own.trace_id:032x}-{own.span_id:016x}", baggage.get_baggage("correlation_id")))

    monkeypatch.setattr(BenchWork, "validate", validate)
    journal.willing = True
    caller = tracing.Context("ab" * 16, "cd" * 8)
    context = contextvars.copy_context()
    context.run(tracing._caller.set, caller)
    job = await context.run(submit, engine, 1)
    assert seen == [(f"{caller.trace_id}-{job.span_id}", "corr-1")]
    assert job.trace_id == caller.trace_id


async def test_a_flow_that_nobody_can_go_on_with_is_ended_by_force_all_the_same(
    engine: Engine, journal: SlowJournal
) -> None:
    """Its actor has a defect, so it has none: the wish comes through the store, and its rows are all that is needed."""
    journal.willing = True
    rows = jobstore_pb2.FlowRows(flow_command_id=FLOW, epoch=2, sequence=4)
    rows.job.job_id = "job-1"
    rows.job.status, rows.job.cancelable = jobs_pb2.EXECUTION_STATUS_STARTED, jobs_pb2.CANCEL_KIND_NONE
    rows.commands.add(command_id=FLOW, command_type="NoSuchType", status=jobs_pb2.COMMAND_STATUS_ACTIVE)
    journal.stored[FLOW] = rows
    wish = jobstore_pb2.FlowRequest(request_id="r", flow_command_id=FLOW, kind="FORCE_END", user="ada", reason="x")
    engine.requests_left([wish, wish])
    await turns()
    [commit] = journal.commits
    assert (commit.flow_command_id, commit.epoch, commit.sequence, commit.ends_flow) == (FLOW, 2, 5, True)


async def test_a_forced_end_waits_for_the_commit_that_is_on_its_way(engine: Engine, journal: SlowJournal) -> None:
    submitted = submit(engine, 1)
    await turns()
    [flow] = engine._flows
    ending = asyncio.create_task(engine.force_end("job-1", "ada", "it hangs"))
    await turns()
    assert (journal.loaded, engine.flows) == ([], 0)  # it may be stored or not: nobody knows yet
    journal.answer()
    await turns()
    assert journal.loaded == [flow]
    assert await ending
    with pytest.raises(WaybillError, match="ended by force"):
        await submitted


async def test_a_flow_that_cannot_be_told_of_does_not_keep_the_others_untold(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Chronicle, "resume", lambda _, rows: told.append(rows.flow_command_id))
    good = jobstore_pb2.FlowRows(flow_command_id=FLOW, epoch=1, sequence=2)
    good.job.job_id = "job-1"
    good.job.status, good.job.cancelable = jobs_pb2.EXECUTION_STATUS_FINISHED, jobs_pb2.CANCEL_KIND_NONE
    good.commands.add(
        command_id=FLOW, command_type="BenchWork", status=jobs_pb2.COMMAND_STATUS_ENDED_SUCCESSFULLY, plans_json="[]"
    )
    engine.ended_untold([jobstore_pb2.FlowRows(flow_command_id="without its rows"), good])
    assert told == [FLOW]


async def test_a_dead_coordinator_s_debt_is_settled_once_all_that_was_told_is_delivered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr(engine.tracing, "when_delivered", waiting.append)
    engine.debt_told("dead")
    assert engine.deliveries.settled == ()
    [delivered] = waiting
    delivered()
    assert engine.deliveries.settled == ("dead",)


@pytest.mark.rule("semantics §4: Description and subject names are resolved when the job is created")
@pytest.mark.rule(
    "semantics §2: Planning that takes over 50 ms: the job is committed (VALIDATION STARTED) and answered"
)
async def test_a_job_that_is_stored_before_its_names_could_be_read_has_them_with_the_next_commit(
    engine: Engine, journal: SlowJournal
) -> None:
    engine.background.start(engine.timers.run(), "timers")
    command: Command = engine.registry.find("StopVm").read(1, {"vm_id": "vm-1"})
    job = Job("job-1", "StopVm", "Stopping VM vm-1", "ada", "corr-1", subjects=(Subject("VM", "vm-1"),))
    submitted = asyncio.create_task(engine.submit(job, command))
    await turns()
    assert isinstance(engine.clock, ManualClock)
    engine.clock.advance(0.06)
    await turns()
    journal.answer()
    assert (await submitted).description == "Stopping VM vm-1"
    journal.read.set()
    await turns(50)
    first, second, *_ = journal.commits
    assert [subject.name for subject in first.new_job.subjects] == [""]
    assert second.job.named.description == "Stopping VM web"
    assert [(subject.entity_id, subject.name) for subject in second.job.named.subjects] == [("vm-1", "web")]
    assert not [commit for commit in journal.commits[2:] if commit.job.HasField("named")]
