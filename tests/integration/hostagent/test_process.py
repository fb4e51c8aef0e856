"""The agent as a process: how it starts, ends and dies."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from tests.integration.hostagent.conftest import AgentProcess
from tests.integration.hostagent.host_client import (
    CLEAN_SUCCESS,
    FINISHED,
    SUCCESS,
    HostClient,
    a_spec,
    connected,
    reason_in,
    refusal_of,
    within,
)

from hostagent import values
from waybill.v1 import hostagent_pb2

StartAgent = Callable[..., Awaitable[AgentProcess]]


async def failed_start(**environment: str) -> tuple[int, str]:
    """Starts an agent that must not start; returns its exit code and what it said."""
    process = AgentProcess.with_settings(**environment)
    with pytest.raises(AssertionError) as said:
        await process.begin()
    return await process.ended(), str(said.value)


async def test_two_agents_never_work_in_one_folder(start_agent: StartAgent) -> None:
    first = await start_agent()
    code, said = await failed_start(data_dir=str(first.folder))
    assert (code, "another host agent works in" in said) == (2, True)


async def test_two_agents_never_listen_on_one_port(start_agent: StartAgent, tmp_path: Any) -> None:
    first = await start_agent()
    code, said = await failed_start(data_dir=str(tmp_path / "other"), listen=first.address)
    assert (code, "cannot listen" in said) == (3, True)


async def test_bad_settings_are_all_told_at_once(tmp_path: Any) -> None:
    code, said = await failed_start(data_dir=str(tmp_path), workers="0", driverr="sim")
    assert code == 2
    assert "HOSTAGENT_WORKERS" in said
    assert "did you mean HOSTAGENT_DRIVER?" in said


async def test_an_unknown_driver_is_named(tmp_path: Any) -> None:
    code, said = await failed_start(data_dir=str(tmp_path), driver="warp")
    assert (code, "no driver warp" in said) == (2, True)


async def test_asked_to_end_it_tells_its_watchers_and_ends(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        watches = [
            asyncio.create_task(refusal_of(_drain(call)))
            for call in (
                agent.stub.WatchTasks(hostagent_pb2.WatchTasksRequest()),
                agent.stub.WatchEvents(hostagent_pb2.WatchEventsRequest()),
            )
        ]
        await agent.program({"outcome": "hang"})
        await agent.start("simWork", object_id="o")
        process.process.send_signal(signal.SIGTERM)
        refusals = [await within(10, watch) for watch in watches]
        assert {(refusal.code, refusal.reason) for refusal in refusals} == {
            (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        }
        assert await within(10, process.ended()) == 0


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


@pytest.mark.rule("semantics §3: `incarnation` is made with the agent's data folder, `boot_id` with its process")
async def test_incarnation_stays_and_boot_changes(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        before = (await agent.host()).agent
    await process.kill_and_begin()
    async with connected(process.address) as agent:
        after = (await agent.host()).agent
    assert after.incarnation == before.incarnation
    assert after.boot_id != before.boot_id


@pytest.mark.rule("semantics §3: Calls are kept and cleared in the same way")
@pytest.mark.rule("semantics §3: Tasks survive the agent: over but not cleared → same result is reported")
async def test_what_was_over_is_told_the_same_after_a_kill(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        await agent.run("createVolume", "t1", volume_id="v", size_mb=5)
        await agent.run("createVolume", "t2", volume_id="v", size_mb=5)
        answer = await agent.call("createVm", "c1", vm_id="vm", memory_mb=1)
        before = [await agent.status_of(task_id) for task_id in ("t1", "t2", "c1")]
    assert reason_in(before[1].error) == "OBJECT_EXISTS"
    await process.kill_and_begin()
    async with connected(process.address) as agent:
        assert [await agent.status_of(task_id) for task_id in ("t1", "t2", "c1")] == before
        repeated = await agent.call("createVm", "c1", vm_id="vm", memory_mb=1)
        assert repeated.observation_number == answer.observation_number
        assert await agent.counted("vm", "createVm") == (1, 1)


@pytest.mark.rule("semantics §3: Tasks survive the agent: unfinished → what the verb declares: resume, roll back, or")
@pytest.mark.parametrize("outcome", ["crash_before", "crash"])
@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("simWork", {"object_id": "v"}),
        ("createVolume", {"volume_id": "v", "size_mb": 5}),
        ("deleteImage", {"volume_id": "old"}),
        ("syncImageData", {"volume_id": "old"}),
        ("createVm", {"vm_id": "v", "memory_mb": 5}),
    ],
)
async def test_an_agent_that_dies_at_its_work_does_it_once(
    start_agent: StartAgent, outcome: str, verb: str, arguments: dict[str, Any]
) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        await agent.run("createVolume", volume_id="old", size_mb=5)
        await agent.program({"verb": verb, "outcome": outcome, "count": 1})
        doing = a_spec(verb, "t1", **arguments)
        is_call = verb == "createVm"
        request = hostagent_pb2.CallRequest(call=doing)
        calling = asyncio.create_task(refusal_of(agent.stub.Call(request))) if is_call else None
        if not is_call:
            await agent.start_at_which_it_dies(doing)
        assert await within(10, process.ended()) == -signal.SIGKILL
        if calling is not None:
            calling.cancel()
    await process.begin()
    async with connected(process.address) as agent:
        if is_call:
            answer = await agent.call(verb, "t1", **arguments)
            assert not answer.HasField("error")
            assert answer.observation_number == 1  # seen before the first go, whose effect was seen after it
        else:
            assert (await within(10, agent.end_of("t1"))).result == SUCCESS
        attempts, effects = await agent.counted(str(next(iter(arguments.values()))), verb)
        assert effects == 1
        assert attempts == (1 if (verb, outcome) == ("syncImageData", "crash") else 2)  # that one is probed


async def test_a_copy_that_was_interrupted_is_thrown_away(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        await agent.run("createVolume", volume_id="a", size_mb=5)
        await agent.program({"verb": "copyImage", "outcome": "crash_before", "count": 1})
        await agent.start_at_which_it_dies(a_spec("copyImage", "t1", source_volume_id="a", volume_id="b"))
        await within(10, process.ended())
    await process.begin()
    async with connected(process.address) as agent:
        status = await within(10, agent.end_of("t1"))
        assert (status.result, reason_in(status.error)) == (CLEAN_SUCCESS, "TASK_FAILED")
        assert (await agent.object("b")).state == "GONE"


async def test_a_vm_goes_on_booting_under_the_next_agent(start_agent: StartAgent) -> None:
    process = await start_agent(sim_boot_ms="1000")
    async with connected(process.address) as agent:
        answer = await agent.call("createVm", vm_id="vm", memory_mb=1)
    await process.kill_and_begin()
    async with connected(process.address) as agent:
        seen = await within(10, agent.seen("vm", "UP"))
        assert seen.number > answer.observation_number


async def test_rules_and_their_counts_survive(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        await agent.program({"verb": "simWork", "outcome": "fail", "count": 2})
        await agent.run("simWork", object_id="o")
    await process.kill_and_begin()
    async with connected(process.address) as agent:
        results = [(await agent.run("simWork", object_id="o")).result for _ in range(2)]
        assert results == [CLEAN_SUCCESS, SUCCESS]


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_all_work_is_done_once(start_agent: StartAgent, seed: int) -> None:
    """A coordinator starts each task until it hears of its end; the agent is killed all the time."""
    moments = random.Random(seed)
    process = await start_agent(sim_work_ms="20")
    coordinator = Coordinator(total=200)
    kills = 0
    while not coordinator.is_done():
        async with connected(process.address) as agent:
            working = asyncio.create_task(coordinator.work(agent))
            hearing = asyncio.create_task(coordinator.hear_of(moments.randint(1, 40)))
            await asyncio.wait({working, hearing}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({working}, timeout=moments.uniform(0.0, 0.02))
            done = working.done()
            kills += not done
            await process.kill()
            hearing.cancel()
            try:
                await working
            except* grpc.aio.AioRpcError:
                assert not done
        await process.begin()
    assert kills, "it was never killed at its work"
    async with connected(process.address) as agent:
        found = Counter({each.object_id: _effects(each) for each in (await agent.host()).objects})
        assert found == {f"o{number}": 1 for number in range(coordinator.total)}
        known = (await agent.stub.GetAllTasksStatuses(hostagent_pb2.GetAllTasksStatusesRequest())).statuses
        assert {status.task_id: status for status in known} == {
            status.task_id: coordinator.over[status.task_id] for status in known
        }


class Coordinator:
    """Starts tasks until it has heard of their ends, and clears half of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.over: dict[str, Any] = {}
        self.heard = asyncio.Condition()

    async def hear_of(self, more: int) -> None:
        """Waits for the ends of so many more tasks."""
        enough = min(len(self.over) + more, self.total)
        async with self.heard:
            await self.heard.wait_for(lambda: len(self.over) >= enough)

    def is_done(self) -> bool:
        return len(self.over) == self.total

    async def work(self, agent: HostClient) -> None:
        """Goes on until all is done, or the agent is gone."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.start_and_clear(agent))
            group.create_task(self.listen(agent))

    async def start_and_clear(self, agent: HostClient) -> None:
        for first in range(0, self.total, 16):
            ids = [f"t{number}" for number in range(first, min(first + 16, self.total))]
            specs = [a_spec("simWork", each, object_id=f"o{each[1:]}") for each in ids if each not in self.over]
            assert set(await agent.start_all(*specs)) <= {""}
            assert set(await agent.clear(*list(self.over)[::2])) <= {""}

    async def listen(self, agent: HostClient) -> None:
        async for status in agent.statuses():
            if status.state == FINISHED:
                assert status.result == SUCCESS
                assert self.over.setdefault(status.task_id, status) == status
                async with self.heard:
                    self.heard.notify_all()
            if self.is_done():
                return


def _effects(found: Any) -> int:
    return sum(counter.effects for counter in found.counters)


async def test_answers_survive_as_they_were_given(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        status = await agent.run("deleteImage", "t1", volume_id="none")
    await process.kill_and_begin()
    async with connected(process.address) as agent:
        again = await agent.status_of("t1")
        assert values.value_to_plain(again.answer) == values.value_to_plain(status.answer) == {"missing": True}
