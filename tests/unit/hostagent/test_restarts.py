"""What a new process makes of the tasks of the one before."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.hostagent.scripted_host import OWNER, VERBS, Agent, a_spec, an_agent

from chassis.errors import WaybillError, failed_precondition
from hostagent.drivers.driver import Finding, Probed
from hostagent.task import Ending, TaskResult, TaskState

SUCCESS, CLEAN_SUCCESS, CLEAN_FAILURE = TaskResult.SUCCESS, TaskResult.CLEAN_SUCCESS, TaskResult.CLEAN_FAILURE


async def begin(agent: Agent, verb: str) -> None:
    """Starts a task that has registered a recovery action and is at its work."""
    await agent.start("t1", verb)
    await (await agent.host.begun("t1")).recover_by("first")


@pytest.mark.rule("semantics §3: Tasks survive the agent: over but not cleared → same result is reported; unfinished")
async def test_what_was_over_is_told_as_it_was() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.finish("t1", 5)
        await agent.start("t2")
        await agent.host.begun("t2")
        agent.host.fail("t2", failed_precondition("TASK_FAILED", "no", volume_id="v"))
        failure = (await agent.end_of("t2")).error
        await agent.restart()
        assert await agent.end_of("t1") == Ending(SUCCESS, None, 5)
        ending = await agent.end_of("t2")
        assert ending.result is CLEAN_SUCCESS
        assert repr(ending.error) == repr(failure)
        assert agent.host.performed == ["t1", "t2"]


async def test_what_never_began_is_run_whatever_its_verb_declares() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start_all(a_spec("t1"), a_spec("t2", "undoable"), a_spec("t3", "probeable"))
        await agent.host.begun("t1")
        await agent.restart()
        for task_id in ("t1", "t2", "t3"):
            assert (await agent.finish(task_id)).result is SUCCESS


@pytest.mark.rule("semantics §3: Tasks survive the agent: over but not cleared → same result is reported; unfinished")
async def test_a_resumable_task_is_run_again() -> None:
    async with an_agent() as agent:
        await begin(agent, "resumable")
        await (await agent.host.begun("t1")).advance(60)
        await agent.restart()
        work = await agent.host.begun("t1")
        assert work.progress == 60
        await work.recover_by("first")  # again: it is the same
        agent.host.fail("t1", failed_precondition("TASK_FAILED", "no"))
        assert (await agent.end_of("t1")).result is CLEAN_SUCCESS
        assert agent.host.recovered == ["first"]


@pytest.mark.rule("semantics §3: Tasks survive the agent: over but not cleared → same result is reported; unfinished")
async def test_an_undoable_task_is_rolled_back() -> None:
    async with an_agent() as agent:
        await begin(agent, "undoable")
        await agent.restart()
        ending = await agent.end_of("t1")
        assert (ending.result, agent.host.recovered) == (CLEAN_SUCCESS, ["first"])
        assert "died" in str(ending.error)
        assert agent.host.performed == ["t1"]


async def test_an_undoable_task_that_cannot_be_rolled_back_says_so() -> None:
    async with an_agent() as agent:
        await begin(agent, "undoable")
        agent.host.broken_actions = {"first"}
        await agent.restart()
        assert (await agent.end_of("t1")).result is CLEAN_FAILURE


@pytest.mark.rule("semantics §3: Tasks survive the agent: over but not cleared → same result is reported; unfinished")
async def test_a_probed_task_that_was_done_is_a_success() -> None:
    async with an_agent() as agent:
        await begin(agent, "probeable")
        agent.host.finding = Finding(Probed.DONE, {"generation": 3})
        await agent.restart()
        assert await agent.end_of("t1") == Ending(SUCCESS, None, {"generation": 3})
        assert agent.host.performed == ["t1"]


async def test_a_probed_task_that_was_not_done_is_run_again() -> None:
    async with an_agent() as agent:
        await begin(agent, "probeable")
        await agent.restart()
        assert (await agent.finish("t1")).result is SUCCESS
        assert agent.host.performed == ["t1", "t1"]


async def test_a_probed_task_of_which_nobody_can_tell_is_rolled_back() -> None:
    async with an_agent() as agent:
        await begin(agent, "probeable")
        agent.host.finding = Finding(Probed.DOUBTFUL)
        await agent.restart()
        assert (await agent.end_of("t1")).result is CLEAN_SUCCESS
        assert agent.host.recovered == ["first"]


async def test_a_stop_that_was_asked_for_is_not_forgotten() -> None:
    async with an_agent(workers=1) as agent:
        await agent.start("t0")
        await agent.host.begun("t0")
        await agent.start("t1")
        record = agent.record("t1")
        record.task.stop()
        await agent.ledger.ask_stop(record.row)  # and then the process dies
        await agent.restart()
        ending = await agent.end_of("t1")
        assert isinstance(ending.error, WaybillError)
        assert (ending.result, ending.error.reason) == (CLEAN_SUCCESS, "ABORTED")
        assert "t1" not in agent.host.performed


async def test_a_revert_that_was_asked_for_is_not_forgotten() -> None:
    async with an_agent() as agent:
        await begin(agent, "resumable")
        await agent.finish("t1")
        await agent.ledger.ask_revert(agent.record("t1").row)
        await agent.restart()
        assert (await agent.end_of("t1")).result is CLEAN_SUCCESS
        assert agent.host.recovered == ["first"]
        await agent.restart()
        assert agent.state_of("t1") is TaskState.FINISHED
        assert agent.host.recovered == ["first"]


@pytest.mark.rule("semantics §3: Never left running for ever")
async def test_a_task_whose_verb_is_gone_is_not_left_running() -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        await agent.host.begun("t1")
        agent.verbs = {name: verb for name, verb in VERBS.items() if name != "resumable"}
        await agent.restart()
        ending = await agent.end_of("t1")
        assert isinstance(ending.error, WaybillError)
        assert (ending.result, ending.error.reason) == (CLEAN_FAILURE, "VERB_UNKNOWN")


async def test_a_call_that_was_under_way_is_made_and_answers_its_repeat() -> None:
    async with an_agent() as agent:
        asking = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.host.begun("c1")
        asking.cancel()
        await agent.restart()
        await agent.finish("c1", 7)
        assert (await agent.runner.call(a_spec("c1", "short"))).task.ending == Ending(SUCCESS, None, 7)


async def test_a_call_made_again_keeps_the_observation_number_of_its_first_go() -> None:
    async with an_agent() as agent:
        asking = asyncio.create_task(agent.runner.call(a_spec("c1", "short")))
        await agent.host.begun("c1")
        asking.cancel()
        agent.observations.observe("VM", "v1", "UP")  # the effect, maybe
        await agent.restart()
        (await agent.host.begun("c1")).begin_effect()
        await agent.finish("c1")
        assert agent.record("c1").row.observation_number == 0


async def test_cleared_ids_and_epochs_are_remembered() -> None:
    async with an_agent() as agent:
        await agent.start("t1", epoch=5)
        await agent.finish("t1")
        await agent.runner.clear(["t1"])
        await agent.restart()
        refusals = await agent.start_all(a_spec("t1", epoch=5), a_spec("t2", epoch=4))
        assert refusals == ["ALREADY_CLEARED", "STALE_EPOCH"]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_task_survives_any_number_of_restarts(times: int) -> None:
    async with an_agent() as agent:
        await agent.start("t1")
        for _ in range(times):
            await agent.host.begun("t1")
            await agent.restart()
        assert (await agent.finish("t1")).result is SUCCESS
        assert agent.host.performed == ["t1"] * (times + 1)
        assert OWNER.epoch == 1
