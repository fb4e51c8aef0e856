"""What the runner takes in, runs, stops, takes back and forgets."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tests.unit.hostagent.scripted_host import OWNER, a_spec, an_agent

from chassis.errors import WaybillError, failed_precondition
from hostagent.drivers.driver import Forgotten
from hostagent.ledger import FlowOwner
from hostagent.task import Ending, TaskResult, TaskSpec, TaskState

SUCCESS, CLEAN_SUCCESS, CLEAN_FAILURE = TaskResult.SUCCESS, TaskResult.CLEAN_SUCCESS, TaskResult.CLEAN_FAILURE


def reason_of(ending: Ending) -> str:
    assert isinstance(ending.error, WaybillError)
    return ending.error.reason


# Taking in.


async def test_a_task_is_run_and_its_end_is_in_the_ledger() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        assert await agent.finish("t1", {"generation": 1}) == Ending(SUCCESS, None, {"generation": 1})
        row = await agent.in_ledger("t1")
        assert (row.ending, row.progress) == (Ending(SUCCESS, None, {"generation": 1}), 100)


@pytest.mark.rule("semantics §3: The id is in the ledger (fsync) before the work begins")
async def test_a_task_is_in_the_ledger_before_it_is_accepted_and_begins() -> None:
    async with an_agent() as agent:
        agent.ledger.disk.clear()
        starting = asyncio.create_task(agent.start("t1"))
        await agent.settle()
        assert (starting.done(), agent.host.performed, agent.runner.records()) == (False, [], [])
        agent.ledger.disk.set()
        await starting
        await agent.host.begun("t1")
        assert (await agent.in_ledger("t1")).spec == a_spec("t1")


async def test_a_task_that_cannot_be_written_down_is_not_accepted_and_can_come_again() -> None:
    async with an_agent() as agent:
        agent.ledger.is_full = True
        with pytest.raises(WaybillError) as refused:
            await agent.start("t1")
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        agent.ledger.is_full = False
        await agent.start("t1")
        await agent.finish("t1")


async def test_a_start_whose_caller_leaves_is_seen_through() -> None:
    async with an_agent() as agent:
        agent.ledger.disk.clear()
        starting = asyncio.create_task(agent.start("t1"))
        await agent.settle()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        agent.ledger.disk.set()
        assert (await agent.finish("t1")).result is SUCCESS


async def test_starting_the_same_task_again_changes_nothing() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        await agent.start("t1")
        await agent.finish("t1")
        await agent.start("t1")
        assert agent.host.performed == ["t1"]


async def test_a_task_that_comes_twice_at_once_runs_once() -> None:
    async with an_agent() as agent:
        twice, once = await asyncio.gather(agent.start_all(a_spec("t1"), a_spec("t1")), agent.start_all(a_spec("t1")))
        assert (twice, once) == ([None, None], [None])
        await agent.finish("t1")
        assert agent.host.performed == ["t1"]


@pytest.mark.rule("semantics §3: Starting the same id with the same arguments again is a success and changes nothing")
@pytest.mark.parametrize(
    ("again", "reason"),
    [
        (a_spec("t1", "undoable"), "TASK_DIFFERS"),
        (a_spec("t1", arguments={"object_id": "x"}), "TASK_DIFFERS"),
        (a_spec("t1", epoch=2), None),
    ],
)
async def test_an_id_is_known_with_its_verb_and_arguments(again: TaskSpec, reason: str | None) -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        assert await agent.start_all(again) == [reason]


async def test_each_bad_start_is_refused_alone() -> None:
    async with an_agent() as agent:
        reasons = await agent.start_all(
            a_spec("t1", "noSuchVerb"),
            a_spec("t2", "short"),
            a_spec("t3", arguments={"object_id": 5}),
            a_spec("t4", incarnation="another"),
            a_spec("t5", incarnation=agent.ledger.incarnation),
        )
        assert reasons == ["VERB_UNKNOWN", "VERB_UNKNOWN", "ARGUMENTS_INVALID", "INCARNATION_CHANGED", None]
        assert [record.spec.task_id for record in agent.runner.records()] == ["t5"]


async def test_a_refused_start_leaves_nothing() -> None:
    async with an_agent() as agent:
        agent.host.refusal = failed_precondition("GENERATION_MISMATCH", "no")
        assert await agent.start_all(a_spec("t1")) == ["GENERATION_MISMATCH"]
        assert await agent.ledger.live() == []
        agent.host.refusal = None
        await agent.start("t1")


@pytest.mark.rule("semantics §3: Fencing: StartTasks carry flow command id and epoch; older than the newest seen for")
async def test_an_older_owner_of_a_flow_can_start_nothing() -> None:
    async with an_agent() as agent:
        await agent.start("t1", epoch=3)
        assert await agent.start_all(a_spec("t2", epoch=2), a_spec("t1", epoch=2)) == ["STALE_EPOCH", "STALE_EPOCH"]
        assert await agent.start_all(a_spec("t2", epoch=3), a_spec("t3", flow_command_id="f2")) == [None, None]


async def test_a_repeat_by_a_newer_owner_fences_the_older() -> None:
    async with an_agent() as agent:
        await agent.start("t1", epoch=1)
        await agent.start("t1", epoch=2)
        assert await agent.start_all(a_spec("t1", epoch=1)) == ["STALE_EPOCH"]


@pytest.mark.rule("semantics §3: Bounded workers (10) and queue (500), by priority")
@pytest.mark.rule("semantics §3: a full queue refuses with a retryable code")
async def test_a_full_queue_refuses_for_now() -> None:
    async with an_agent(workers=1, queue=2) as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        assert await agent.start_all(*map(a_spec, ("t2", "t3", "t4"))) == [None, None, "QUEUE_FULL"]
        (refusal,) = await agent.runner.start([a_spec("t4")])
        assert refusal is not None
        assert refusal.retry_after
        await agent.finish("t1")
        await agent.host.begun("t2")
        assert await agent.start_all(a_spec("t4")) == [None]


@pytest.mark.rule("semantics §3: Cleared ids are remembered: starting one answers `ALREADY_CLEARED`")
@pytest.mark.rule("semantics §2: an unknown id counts as cleared")
async def test_a_cleared_id_is_not_used_again() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.finish("t1")
        assert await agent.runner.clear(["t1", "never seen"]) == [None, None]
        assert await agent.start_all(a_spec("t1"), a_spec("never seen")) == ["ALREADY_CLEARED", "ALREADY_CLEARED"]
        assert agent.host.forgotten == ["t1"]


@pytest.mark.rule("semantics §3: Cleared ids are remembered 7 days")
async def test_cleared_ids_are_forgotten_after_their_days() -> None:
    async with an_agent(cleared_days=7) as agent:
        await agent.runner.clear(["t1"])
        agent.clock.advance(7 * 86_400 + 1)
        assert await agent.ledger.sweep(agent.clock.now() - 7 * 86_400) == 1
        await agent.start("t1")


# Running.


@pytest.mark.rule("semantics §3: Bounded workers (10) and queue (500), by priority")
async def test_the_more_urgent_task_goes_first() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start("t0")
        await agent.host.begun("t0")
        await agent.start_all(a_spec("t1"), a_spec("t2", priority=5), a_spec("t3"), a_spec("t4", priority=5))
        for task_id in ("t0", "t2", "t4", "t1", "t3"):
            await agent.finish(task_id)
        assert agent.host.performed == ["t0", "t2", "t4", "t1", "t3"]


@pytest.mark.rule("semantics §8: Priority of a job and its tasks, changeable while it waits")
async def test_a_start_that_is_repeated_with_another_priority_waits_with_that_one() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start("t0")
        await agent.host.begun("t0")
        await agent.start_all(a_spec("t1", priority=3), a_spec("t2"), a_spec("t3"))
        assert await agent.start_all(a_spec("t3", priority=5), a_spec("t1", priority=-1)) == [None, None]
        await agent.start("t0", priority=9)  # it works already
        assert (await agent.in_ledger("t3")).spec.priority == 5
        for task_id in ("t0", "t3", "t2", "t1"):
            await agent.finish(task_id)
        assert agent.host.performed == ["t0", "t3", "t2", "t1"]
        assert agent.runner.waiting == 0


async def test_a_stale_owner_changes_no_priority() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start_all(a_spec("t0"), a_spec("t1", epoch=2), a_spec("t2", epoch=2))
        assert await agent.start_all(a_spec("t2", priority=5, epoch=1)) == ["STALE_EPOCH"]
        assert (await agent.in_ledger("t2")).spec.priority == 0


@pytest.mark.rule("semantics §3: Bounded workers (10) and queue (500), by priority")
async def test_no_more_tasks_run_at_once_than_there_are_workers() -> None:
    async with an_agent(workers=3) as agent:
        ids = [f"t{number}" for number in range(10)]
        assert await agent.start_all(*map(a_spec, ids)) == [None] * 10
        for task_id in ids:
            await agent.finish(task_id)
        assert agent.host.most_at_once == 3


async def test_a_task_that_only_waits_for_the_disk_leaves_its_place_to_the_next() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2"), a_spec("t3"))
        (await agent.host.begun("t1")).begin_effect()
        await agent.host.begun("t2")
        assert (agent.runner.running, agent.runner.waiting) == (1, 1)
        await agent.finish("t1")
        assert (agent.runner.running, agent.runner.waiting) == (1, 1)
        await agent.finish("t2")
        await agent.finish("t3")


async def test_progress_is_in_the_ledger_and_never_falls() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        work = await agent.host.begun("t1")
        await work.advance(40)
        await work.advance(30)
        assert (await agent.in_ledger("t1")).progress == agent.record("t1").task.progress == 40


@pytest.mark.rule("semantics §3: The id is in the ledger (fsync) before the work begins; results are published after")
async def test_the_end_of_a_task_is_told_when_it_is_in_the_ledger() -> None:
    async with an_agent() as agent:
        with agent.runner.watch() as watcher:
            await agent.start("t1")
            await agent.host.begun("t1")
            agent.ledger.disk.clear()
            agent.host.finish("t1")
            telling = asyncio.create_task(watcher.changes())
            await agent.settle()
            assert (telling.done(), agent.state_of("t1")) == (False, TaskState.RUNNING)
            agent.ledger.disk.set()
            (record,) = await telling
            assert (await agent.in_ledger("t1")).ending == record.task.ending == Ending(SUCCESS)


async def test_an_end_that_cannot_be_written_down_is_told_when_it_can() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        agent.ledger.is_full = True
        agent.host.finish("t1")
        await agent.settle()
        assert agent.state_of("t1") is TaskState.RUNNING
        agent.ledger.is_full = False
        agent.clock.advance(1)
        assert (await agent.end_of("t1")).result is SUCCESS
        assert agent.host.performed == ["t1"]


async def test_a_silent_task_is_told_of_to_nobody() -> None:
    async with an_agent() as agent:
        with agent.runner.watch() as watcher:
            await agent.start("t1")
            (await agent.host.begun("t1")).silence()
            await agent.finish("t1")
            await agent.start("t2")
            await agent.finish("t2")
            assert {record.spec.task_id for record in await watcher.changes()} == {"t2"}
        assert agent.record("t1").task.is_over


# Failing.


@pytest.mark.rule("semantics §3: A task registers recovery actions as it goes; on failure or stop they run last in")
async def test_a_failed_task_is_rolled_back_last_in_first_out() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        work = await agent.host.begun("t1")
        await work.recover_by("first", object_id="o")
        await work.recover_by("second")
        agent.host.fail("t1", failed_precondition("OBJECT_STATE", "no"))
        ending = await agent.end_of("t1")
        assert (ending.result, reason_of(ending)) == (CLEAN_SUCCESS, "OBJECT_STATE")
        assert agent.host.recovered == ["second", "first"]


async def test_a_recovery_action_is_in_the_ledger_before_the_work_goes_on() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        work = await agent.host.begun("t1")
        await work.recover_by("first", object_id="o")
        (action,) = (await agent.in_ledger("t1")).recovery_actions
        assert action == ("first", {"object_id": "o"})


@pytest.mark.rule("semantics §3: If one fails → CLEAN_FAILURE")
async def test_a_task_whose_roll_back_fails_says_so_and_names_the_object() -> None:
    async with an_agent() as agent:
        agent.host.broken_actions = {"second"}
        await agent.start("t1")
        work = await agent.host.begun("t1")
        await work.recover_by("first")
        await work.recover_by("second", volume_id="v1")
        agent.host.fail("t1", failed_precondition("TASK_FAILED", "no"))
        ending = await agent.end_of("t1")
        assert isinstance(ending.error, WaybillError)
        assert (ending.result, ending.error.reason) == (CLEAN_FAILURE, "TASK_FAILED")
        assert ending.error.metadata["volume_id"] == "v1"
        assert ending.error.metadata["recovery_action"] == "second"
        assert agent.host.recovered == []  # what came before "second" assumes that it was taken back


async def test_a_verb_with_a_defect_fails_its_task_alone() -> None:
    async with an_agent() as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2"))
        await agent.host.begun("t1")
        agent.host.fail("t1", KeyError("oops"))
        ending = await agent.end_of("t1")
        assert (ending.result, reason_of(ending)) == (CLEAN_SUCCESS, "INTERNAL")
        assert (await agent.finish("t2")).result is SUCCESS


@pytest.mark.rule("semantics §3: No query ever answers success for a lost task")
async def test_a_task_that_its_host_lost_is_denied() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        record = agent.record("t1")
        agent.host.fail("t1", Forgotten())
        await record.over.wait()
        with pytest.raises(WaybillError, match="knows no task"):
            agent.record("t1")
        assert await agent.in_ledger("t1") is None


# Stopping.


@pytest.mark.rule("semantics §3: A task registers recovery actions as it goes; on failure or stop they run last in")
@pytest.mark.rule('semantics §3: States move: stop: → ABORTING → (CLEANING) → FINISHED, CLEAN_SUCCESS, code "aborted"')
async def test_a_stopped_task_is_rolled_back_and_ends_aborted() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await (await agent.host.begun("t1")).recover_by("first")
        record = await agent.runner.stop("t1", OWNER)
        assert record.task.state in (TaskState.ABORTING, TaskState.CLEANING)
        ending = await agent.end_of("t1")
        assert (ending.result, reason_of(ending)) == (CLEAN_SUCCESS, "ABORTED")
        assert agent.host.recovered == ["first"]


async def test_a_worker_goes_on_after_its_task_was_stopped() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2"))
        await agent.host.begun("t1")
        await agent.runner.stop("t1", OWNER)
        assert (await agent.finish("t2")).result is SUCCESS


async def test_a_waiting_task_is_stopped_though_all_workers_are_busy() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2"), a_spec("t3"))
        await agent.host.begun("t1")
        await agent.runner.stop("t2", OWNER)
        assert (await agent.end_of("t2")).result is CLEAN_SUCCESS
        assert agent.runner.waiting == 1
        await agent.finish("t1")
        await agent.finish("t3")
        assert agent.host.performed == ["t1", "t3"]


async def test_a_stop_that_comes_after_the_work_was_done_changes_nothing() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        agent.host.finish("t1")
        await agent.runner.stop("t1", OWNER)
        assert (await agent.end_of("t1")).result is SUCCESS
        assert (await agent.runner.stop("t1", OWNER)).task.is_over


async def test_a_stop_does_not_interrupt_an_effect() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        (await agent.host.begun("t1")).begin_effect()
        await agent.runner.stop("t1", OWNER)
        await agent.settle()
        assert agent.host.is_at("t1")
        assert (await agent.finish("t1")).result is SUCCESS


@pytest.mark.rule("semantics §3: Fencing: StopTask carry flow command id and epoch; older than the newest seen for")
async def test_a_stop_by_an_older_owner_is_refused() -> None:
    async with an_agent() as agent:
        await agent.start("t1", epoch=2)
        with pytest.raises(WaybillError) as refused:
            await agent.runner.stop("t1", FlowOwner("f1", 1))
        assert refused.value.reason == "STALE_EPOCH"
        assert not agent.record("t1").task.is_over


async def test_a_newer_owner_that_stops_fences_the_older() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.runner.stop("t1", FlowOwner("f1", 2))
        assert await agent.start_all(a_spec("t2", epoch=1)) == ["STALE_EPOCH"]


@pytest.mark.rule("semantics §3: Fencing: Call, and RevertTask carry flow command id and epoch")
async def test_an_older_owner_of_a_flow_can_neither_call_nor_take_back() -> None:
    async with an_agent() as agent:
        await agent.start("t1", epoch=2)
        await agent.finish("t1")
        with pytest.raises(WaybillError) as refused_call:
            await agent.runner.call(a_spec("c1", "short", epoch=1))
        with pytest.raises(WaybillError) as refused_revert:
            await agent.runner.revert("t1", FlowOwner("f1", 1))
        assert (refused_call.value.reason, refused_revert.value.reason) == ("STALE_EPOCH", "STALE_EPOCH")
        assert agent.host.performed == ["t1"]
        assert agent.record("t1").task.ending == Ending(SUCCESS)


@pytest.mark.parametrize("ask", ["stop", "revert"])
async def test_an_unknown_task_is_named(ask: str) -> None:
    async with an_agent() as agent:
        with pytest.raises(WaybillError) as refused:
            await getattr(agent.runner, ask)("t9", OWNER)
        assert refused.value.reason == "TASK_UNKNOWN"


# Reverting and clearing.


@pytest.mark.rule("semantics §3: Revert only when finished: runs recovery, ends CLEAN_SUCCESS")
async def test_a_finished_task_can_be_taken_back() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await (await agent.host.begun("t1")).recover_by("first")
        await agent.finish("t1")
        await agent.runner.revert("t1", OWNER)
        assert (await agent.end_of("t1")).result is CLEAN_SUCCESS
        assert agent.host.recovered == ["first"]
        assert not (await agent.in_ledger("t1")).revert_asked


async def test_a_running_task_cannot_be_taken_back() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        with pytest.raises(WaybillError) as refused:
            await agent.runner.revert("t1", OWNER)
        assert refused.value.reason == "TASK_STATE"


@pytest.mark.rule("semantics §3: Clear only when over; afterwards the id is unknown")
async def test_only_what_is_over_is_cleared() -> None:
    async with an_agent() as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2"))
        await agent.finish("t1")
        refusals = await agent.runner.clear(["t1", "t2", "t1"])
        assert [refusal and refusal.reason for refusal in refusals] == [None, "TASK_STATE", None]
        assert [record.spec.task_id for record in agent.runner.records()] == ["t2"]


# Calls.


@pytest.mark.rule("semantics §2: `call(host, verb, arguments)`: the host has answered (a short verb; a repeat is")
async def test_a_call_answers_and_its_repeat_answers_the_same() -> None:
    async with an_agent() as agent:
        calls = [asyncio.create_task(agent.runner.call(a_spec("c1", "short"))) for _ in range(2)]
        await agent.host.begun("c1")
        agent.host.finish("c1", 7)
        answers = [(await call).task.ending for call in calls]
        answers.append((await agent.runner.call(a_spec("c1", "short"))).task.ending)
        assert answers == [Ending(SUCCESS, None, 7)] * 3
        assert agent.host.performed == ["c1"]


async def test_a_call_whose_caller_leaves_is_seen_through() -> None:
    async with an_agent() as agent:
        caller = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.host.begun("c1")
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        assert (await agent.finish("c1", 7)).answer == 7
        assert (await agent.in_ledger("c1")).ending.answer == 7


async def test_a_call_that_fails_is_over_and_one_that_is_refused_is_not_known() -> None:
    async with an_agent() as agent:
        call = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.host.begun("c1")
        agent.host.fail("c1", failed_precondition("OBJECT_NOT_FOUND", "no"))
        ending = (await call).task.ending
        assert ending is not None
        assert reason_of(ending) == "OBJECT_NOT_FOUND"
        with pytest.raises(WaybillError) as refused:
            await agent.runner.call(a_spec("c2", "resumable"))
        assert refused.value.reason == "VERB_UNKNOWN"


async def test_a_call_says_what_was_seen_last_before_its_effect() -> None:
    async with an_agent() as agent:
        agent.observations.observe("VM", "v1", "UP")
        call = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        work = await agent.host.begun("c1")
        agent.observations.observe("VM", "v2", "UP")
        work.begin_effect()
        agent.observations.observe("VM", "v1", "DOWN")
        agent.host.finish("c1")
        assert (await call).row.observation_number == 2


async def test_a_call_that_its_host_lost_is_denied() -> None:
    async with an_agent() as agent:
        call = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.host.begun("c1")
        agent.host.fail("c1", Forgotten())
        with pytest.raises(WaybillError) as refused:
            await call
        assert refused.value.reason == "TASK_UNKNOWN"


async def test_a_call_needs_no_worker() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        call = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.finish("c1")
        await call
