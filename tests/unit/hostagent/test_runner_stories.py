"""Random stories of four tasks: whatever is asked and whenever the process dies, the promises hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.hostagent.scripted_host import OWNER, Agent, a_spec, an_agent

from chassis.errors import WaybillError, failed_precondition
from hostagent.drivers.driver import Finding, Probed
from hostagent.task import TaskResult

IDS = ("t1", "t2", "t3", "t4")
VERB_OF = {"t1": "resumable", "t2": "undoable", "t3": "probeable", "t4": "resumable"}

steps = st.one_of(
    st.tuples(
        st.sampled_from(["start", "recover_by", "finish", "fail", "stop", "revert", "clear"]), st.sampled_from(IDS)
    ),
    st.tuples(st.sampled_from(["restart", "break", "mend", "find done", "find nothing"]), st.just("")),
)


class Story:
    """What happens to an agent, and what has been promised so far."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.accepted: set[str] = set()
        self.cleared: set[str] = set()
        self.succeeded: dict[str, int] = {}  # how often a task had been performed when it was told as a success

    async def happen(self, what: str, task_id: str) -> None:
        if what in ("finish", "fail", "recover_by") and not self.agent.host.is_at(task_id):
            return
        deeds: dict[str, Callable[[str], Awaitable[None]]] = {
            "start": self.start,
            "stop": self.stop,
            "revert": self.revert,
            "clear": self.clear,
            "recover_by": self.recover_by,
        }
        if what in deeds:
            await deeds[what](task_id)
        else:
            await self.befall(what, task_id)
        await self.agent.settle()
        await self.check()

    async def befall(self, what: str, task_id: str) -> None:
        host = self.agent.host
        match what:
            case "restart":
                await self.agent.restart()
            case "finish":
                host.finish(task_id)
            case "fail":
                host.fail(task_id, failed_precondition("TASK_FAILED", "no"))
            case "break":
                host.broken_actions = {"undo t1", "undo t2"}
            case "mend":
                host.broken_actions = set()
            case "find done":
                host.finding = Finding(Probed.DONE)
            case "find nothing":
                host.finding = Finding(Probed.NOT_DONE)

    async def start(self, task_id: str) -> None:
        (refusal,) = await self.agent.start_all(a_spec(task_id, VERB_OF[task_id]))
        assert refusal == ("ALREADY_CLEARED" if task_id in self.cleared else None)
        if refusal is None:
            self.accepted.add(task_id)

    async def stop(self, task_id: str) -> None:
        await self.ask(self.agent.runner.stop(task_id, OWNER), "TASK_UNKNOWN")

    async def revert(self, task_id: str) -> None:
        await self.ask(self.agent.runner.revert(task_id, OWNER), "TASK_UNKNOWN", "TASK_STATE")
        self.succeeded.pop(task_id, None)

    async def ask(self, asking: Awaitable[object], *reasons: str) -> None:
        try:
            await asking
        except WaybillError as refusal:
            if refusal.reason not in reasons:
                raise

    async def clear(self, task_id: str) -> None:
        (refusal,) = await self.agent.runner.clear([task_id])
        if refusal is None:
            self.cleared.add(task_id)
            self.succeeded.pop(task_id, None)

    async def recover_by(self, task_id: str) -> None:
        await self.agent.host.works[task_id].recover_by(f"undo {task_id}")

    async def check(self) -> None:
        rows = {row.spec.task_id: row for row in await self.agent.ledger.live()}
        records = {record.spec.task_id: record for record in self.agent.runner.records()}
        assert rows.keys() == records.keys() == self.accepted - self.cleared
        for task_id, record in records.items():
            ending = record.task.ending
            if ending is not None:
                told, kept = ending, rows[task_id].ending
                assert kept is not None
                assert (told.result, str(told.error)) == (kept.result, str(kept.error))
                if ending.result is TaskResult.SUCCESS:
                    performed = self.agent.host.performed.count(task_id)
                    assert self.succeeded.setdefault(task_id, performed) == performed

    async def end(self) -> None:
        """Lets everything that is at work succeed; then all must be over."""
        for _ in IDS:
            for task_id in IDS:
                if self.agent.host.is_at(task_id):
                    self.agent.host.finish(task_id)
            await self.agent.settle()
        assert all(record.task.is_over for record in self.agent.runner.records())
        assert self.agent.runner.running == self.agent.runner.waiting == 0


@pytest.mark.rule("semantics §3: Never left running for ever")
@given(st.lists(steps, max_size=25))
def test_whatever_happens_the_ledger_and_what_is_told_agree_and_all_tasks_end(story: list[tuple[str, str]]) -> None:
    async def tell() -> None:
        async with an_agent(workers=2) as agent:
            telling = Story(agent)
            for what, task_id in story:
                await telling.happen(what, task_id)
            await telling.end()

    asyncio.run(tell())
