"""What the log tells of a task: a line for each change of its state, under its flow's ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from tests.unit.hostagent.scripted_host import OWNER, a_spec, an_agent

from chassis import context, errors, logs
from chassis.context import CallContext

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
NAMES = {
    "correlation_id": "order-7",
    "job_id": "j1",
    "command_id": "c1",
    "task_id": "t1",
    "trace_id": TRACE_ID,
    "span_id": "b7ad6b7169203331",
    "verb": "resumable",
}
FIELDS: dict[str, Any] = {
    "correlation_id": "order-7",
    "job_id": "j1",
    "command_id": "c1",
    "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
    "span_id": "b7ad6b7169203331",
}


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs(processors=[logs.add_ids]) as lines:
        yield lines


def events(lines: list[Any], task_id: str = "t1") -> list[str]:
    return [line["event"] for line in lines if line.get("task_id") == task_id]


async def test_a_task_that_goes_well_has_three_lines_however_it_progresses(lines: list[Any]) -> None:
    async with an_agent() as agent:
        await agent.start("t1", **FIELDS)
        work = await agent.host.begun("t1")
        for percent in (10, 50, 90):
            await work.advance(percent)
        await agent.finish("t1")
        await agent.runner.clear(["t1"])
    assert events(lines) == ["task accepted", "task ended", "task cleared"]
    assert all(NAMES.items() <= line.items() for line in lines)
    assert (lines[0]["waits"], lines[1]["result"]) == (False, "SUCCESS")
    assert {line["log_level"] for line in lines} == {"info"}


async def test_a_task_that_had_to_wait_has_a_line_for_its_start(lines: list[Any]) -> None:
    async with an_agent(workers=1) as agent:
        await agent.start("first")
        await agent.start("t1", **FIELDS)
        await agent.finish("first")
        await agent.finish("t1")
    assert events(lines) == ["task accepted", "task started", "task ended"]
    assert next(line for line in lines if line.get("task_id") == "t1")["waits"] is True


async def test_a_task_that_another_process_began_has_a_line_for_its_start(lines: list[Any]) -> None:
    async with an_agent() as agent:
        await agent.start("t1", **FIELDS)
        await agent.restart()
        await agent.finish("t1")
    assert events(lines) == ["task accepted", "task started", "task ended"]


async def test_a_task_that_is_stopped_says_so(lines: list[Any]) -> None:
    async with an_agent() as agent:
        await agent.start("t1", **FIELDS)
        await agent.host.begun("t1")
        await agent.runner.stop("t1", OWNER)
        await agent.end_of("t1")
    assert events(lines) == ["task accepted", "task is being stopped", "task ended"]
    assert lines[-1]["result"] == "CLEAN_SUCCESS"


async def test_a_task_that_fails_says_why(lines: list[Any]) -> None:
    async with an_agent() as agent:
        await agent.start("t1", **FIELDS)
        await agent.host.begun("t1")
        agent.host.fail("t1", errors.aborted("TASK_FAILED", "no space"))
        await agent.end_of("t1")
    assert "no space" in lines[-1]["error"]


async def test_a_call_has_a_line_for_its_beginning_and_its_end(lines: list[Any]) -> None:
    async with an_agent() as agent:
        calling = asyncio.ensure_future(agent.runner.call(a_spec("t1", "short", **FIELDS)))
        await agent.host.begun("t1")
        agent.host.finish("t1")
        await calling
    assert events(lines) == ["task accepted", "task ended"]


async def test_a_repeated_start_or_clear_has_no_line(lines: list[Any]) -> None:
    async with an_agent() as agent:
        for _ in range(2):
            await agent.start("t1", **FIELDS)
        await agent.finish("t1")
        for _ in range(2):
            await agent.runner.clear(["t1"])
    assert events(lines) == ["task accepted", "task ended", "task cleared"]


async def test_lines_of_a_verb_carry_its_flows_ids_and_not_those_of_the_call_that_brought_it(lines: list[Any]) -> None:
    context.enter(CallContext("a-batch", "coordinator"))
    async with an_agent(workers=1) as agent:
        await agent.start("first", **{**FIELDS, "correlation_id": "order-6"})
        await agent.start("t1", correlation_id="order-7")
        await agent.finish("first")  # whose worker hires that of the next
        await agent.host.begun("t1")
        agent.host.fail("t1", RuntimeError("a defect"))
        await agent.end_of("t1")
    (line,) = (line for line in lines if line["event"] == "verb raised")
    assert (line["correlation_id"], line["task_id"], line["trace_id"]) == ("order-7", "t1", "")
