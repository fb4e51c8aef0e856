"""When the spans of tasks are recorded, kept and forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.otlp_sink import SinkSpan, span_of
from tests.unit.hostagent.scripted_host import OWNER, Agent, a_spec, an_agent

from chassis.errors import WaybillError, failed_precondition
from hostagent.task import TaskResult

TRACED: dict[str, Any] = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "span_id": "53995c3f42cd8ad8",
}


async def recorded(agent: Agent) -> list[SinkSpan]:
    await agent.settle()
    return agent.tracing.spans


async def kept(agent: Agent) -> list[SinkSpan]:
    await agent.settle()
    return [span_of(span) for _, span in await agent.ledger.spans()]


async def test_a_span_is_kept_until_it_is_delivered() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        agent.clock.advance(2)
        await agent.host.begun("t1")
        await agent.host.works["t1"].advance(50)
        await agent.finish("t1")
        (span,) = await recorded(agent)
        assert (span.name, span.end - span.start) == ("task resumable", 2)
        assert [event.name for event in span.events] == ["RUNNING", "progress"]
        assert await kept(agent) == [span]
        agent.tracing.deliver()
        assert await kept(agent) == []


async def test_what_was_not_delivered_is_recorded_again_by_the_next_process_and_is_the_same() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        await agent.finish("t1")
        await agent.runner.clear(["t1"])
        await agent.restart()
        first, again = await recorded(agent)
        assert first == again
        agent.tracing.deliver()
        await agent.restart()
        assert len(await recorded(agent)) == 2


async def test_without_a_collector_nothing_is_kept() -> None:
    async with an_agent() as agent:
        await agent.start("t1", **TRACED)
        await agent.finish("t1")
        assert agent.record("t1").events == []
        assert await kept(agent) == []


async def test_what_was_kept_goes_when_there_is_no_collector_any_more() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        await agent.finish("t1")
        agent.tracing.has_collector = False
        await agent.restart()
        assert await kept(agent) == []


async def test_a_task_that_nobody_traces_has_no_span() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1")
        await agent.finish("t1")
        assert (await recorded(agent), await kept(agent)) == ([], [])


async def test_a_task_that_is_taken_back_after_its_end_has_one_span() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        await (await agent.host.begun("t1")).recover_by("first")
        await agent.finish("t1")
        await recorded(agent)
        agent.tracing.deliver()
        await agent.runner.revert("t1", OWNER)
        assert (await agent.end_of("t1")).result is TaskResult.CLEAN_SUCCESS
        (span,) = await recorded(agent)
        assert span.attributes["task.result"] == "SUCCESS"
        assert await kept(agent) == []


async def test_a_stopped_task_tells_when_and_is_no_error() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        await agent.host.begun("t1")
        await agent.runner.stop("t1", OWNER)
        await agent.end_of("t1")
        (span,) = await recorded(agent)
        assert ([event.name for event in span.events], span.message) == (["RUNNING", "ABORTING"], "")


async def test_a_span_is_not_recorded_before_the_end_is_in_the_ledger() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        await agent.start("t1", **TRACED)
        await agent.host.begun("t1")
        agent.ledger.disk.clear()
        agent.host.fail("t1", failed_precondition("OBJECT_STATE", "no"))
        assert await recorded(agent) == []
        agent.ledger.disk.set()
        ending = await agent.end_of("t1")
        assert isinstance(ending.error, WaybillError)
        (span,) = await recorded(agent)
        assert span.message == "OBJECT_STATE: no"


async def test_a_call_has_a_span_too() -> None:
    async with an_agent() as agent:
        agent.tracing.has_collector = True
        calling = asyncio.create_task(agent.runner.call(a_spec("c1", "short", **TRACED)))
        await agent.host.begun("c1")
        agent.host.finish("c1")
        await calling
        (span,) = await recorded(agent)
        assert span.name == "call short"
