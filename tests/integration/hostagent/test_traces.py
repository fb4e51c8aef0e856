"""The spans of an agent that is a process of its own, at a real collector, whoever is away or dies."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from tests.integration.hostagent.conftest import AgentProcess
from tests.integration.hostagent.host_client import FINISHED, SUCCESS, HostClient, a_spec, connected, within
from tests.otlp_sink import OtlpSink, SinkSpan

from waybill.v1 import hostagent_pb2

StartAgent = Callable[..., Awaitable[AgentProcess]]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_numbers = itertools.count(1)


def traced(verb: str, task_id: str, **arguments: Any) -> Any:
    fields = {
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "span_id": f"{next(_numbers):016x}",
        "job_id": "j1",
        "command_id": "k1",
    }
    return a_spec(verb, task_id, fields=fields, **arguments)


async def done(agent: HostClient, spec: Any) -> Any:
    """Runs a task to its end; returns its spec."""
    assert await agent.start_all(spec) == [""]
    await agent.end_of(spec.task_id)
    return spec


def ids_of(spans: Sequence[SinkSpan]) -> list[str]:
    return [str(span.attributes["task.id"]) for span in spans]


def delivered(*names: str) -> Callable[[Sequence[SinkSpan]], bool]:
    """Tells whether the spans of all these tasks are there."""
    return lambda spans: set(names) <= set(ids_of(spans))


async def some_over(agent: HostClient, number: int) -> list[str]:
    """Waits until so many tasks are over, and returns their ids."""
    over: list[str] = []
    async for status in agent.statuses():
        if status.state == FINISHED and status.task_id not in over:
            over.append(status.task_id)
        if len(over) >= number:
            break
    return over


def kept(process: AgentProcess) -> int:
    """Returns how many spans are in a ledger."""
    with sqlite3.connect(process.folder / "ledger.db") as ledger:
        return int(ledger.execute("SELECT count(*) FROM span").fetchone()[0])


async def ended(process: AgentProcess) -> None:
    """Has an agent end in peace."""
    process.process.send_signal(signal.SIGTERM)
    assert await within(20, process.ended()) == 0


@pytest.fixture
async def sink() -> AsyncIterator[OtlpSink]:
    async with OtlpSink() as sink:
        yield sink


async def test_a_task_is_a_span_beneath_its_command(start_agent: StartAgent, sink: OtlpSink) -> None:
    process = await start_agent(traces_endpoint=sink.address, sim_work_ms="40")
    async with connected(process.address) as agent:
        spec = await done(agent, traced("createVolume", "t1", volume_id="v", size_mb=1))
        request = hostagent_pb2.GetTaskInfoRequest(task_id="t1")
        info = (await agent.stub.GetTaskInfo(request, timeout=30)).info
        (span,) = await sink.wait_for(lambda spans: spans)
    assert (span.name, span.kind, span.status) == ("task createVolume", "INTERNAL", "UNSET")
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE, spec.span_id, PARENT)
    assert span.start == pytest.approx(info.create_time.ToNanoseconds() / 1e9, abs=2e-6)
    assert span.end == pytest.approx(info.end_time.ToNanoseconds() / 1e9, abs=2e-6)
    assert span.attributes == {
        "correlation_id": "test-1",
        "job.id": "j1",
        "command.id": "k1",
        "task.id": "t1",
        "task.verb": "createVolume",
        "task.result": "SUCCESS",
        "host.id": "host-1",
    }
    assert span.events[0].name == "RUNNING"
    assert [event.time for event in span.events] == sorted(event.time for event in span.events)
    assert span.start <= span.events[0].time <= span.events[-1].time <= span.end
    named = ("service.name", "service.namespace", "host.id", "service.instance.id")
    assert [span.resource[name] for name in named] == ["waybill-hostagent", "waybill", "host-1", "host-1"]


async def test_a_failed_call_is_a_span_with_an_error(start_agent: StartAgent, sink: OtlpSink) -> None:
    process = await start_agent(traces_endpoint=sink.address)
    async with connected(process.address) as agent:
        await agent.program({"verb": "createVm", "outcome": "fail"})
        request = hostagent_pb2.CallRequest(call=traced("createVm", "c1", vm_id="vm", memory_mb=1))
        await agent.stub.Call(request, timeout=30)
        (span,) = await sink.wait_for(lambda spans: spans)
    assert (span.name, span.status, span.attributes["task.result"]) == ("call createVm", "ERROR", "CLEAN_SUCCESS")
    assert span.message


async def test_who_is_killed_before_the_delivery_leaves_it_to_the_next(start_agent: StartAgent, sink: OtlpSink) -> None:
    sink.answer = grpc.StatusCode.UNAVAILABLE
    process = await start_agent(traces_endpoint=sink.address)
    async with connected(process.address) as agent:
        await done(agent, traced("createVolume", "t1", volume_id="v", size_mb=1))
        await done(agent, traced("createVolume", "cleared", volume_id="w", size_mb=1))
        assert await agent.clear("cleared") == [""]
        await sink.wait_for_refusal("task createVolume")
    await process.kill()
    sink.answer = grpc.StatusCode.OK
    await process.begin()
    spans = await sink.wait_for(lambda spans: len(spans) >= 2)
    assert ids_of(spans) == ["t1", "cleared"]
    assert sink.refused[0] == spans[0]
    await ended(process)
    assert kept(process) == 0
    await process.begin()
    async with connected(process.address) as agent:
        await done(agent, traced("createVolume", "t2", volume_id="x", size_mb=1))
    assert ids_of(await sink.wait_for(lambda spans: "t2" in ids_of(spans))) == ["t1", "cleared", "t2"]


async def test_who_is_killed_at_its_work_leaves_one_span_of_all_of_it(start_agent: StartAgent, sink: OtlpSink) -> None:
    process = await start_agent(traces_endpoint=sink.address)
    async with connected(process.address) as agent:
        await agent.program({"verb": "createVolume", "outcome": "crash", "count": 1})
        await agent.start_at_which_it_dies(traced("createVolume", "t1", volume_id="v", size_mb=1))
        await within(20, process.ended())
    assert sink.spans == []
    await process.begin()
    async with connected(process.address) as agent:
        status = await agent.end_of("t1")
        info = (await agent.stub.GetTaskInfo(hostagent_pb2.GetTaskInfoRequest(task_id="t1"), timeout=30)).info
    assert status.result == SUCCESS
    await sink.wait_for(len)
    await ended(process)
    (span,) = sink.spans
    assert span.start == pytest.approx(info.create_time.ToNanoseconds() / 1e9, abs=2e-6)


async def test_a_collector_that_is_away_holds_nobody_up(start_agent: StartAgent, sink: OtlpSink) -> None:
    await sink.stop()
    process = await start_agent(traces_endpoint=sink.address)
    names = [f"t{number}" for number in range(20)]
    async with connected(process.address) as agent:
        for name in names:
            await done(agent, traced("createVolume", name, volume_id=name, size_mb=1))
        assert await agent.clear(*names) == [""] * len(names)
        assert kept(process) == len(names)
        await sink.start()
        assert sorted(ids_of(await sink.wait_for(lambda spans: len(spans) >= len(names)))) == sorted(names)
    await ended(process)
    assert (kept(process), len(sink.spans)) == (0, len(names))


async def test_who_ends_while_the_collector_is_away_leaves_it_to_the_next(
    start_agent: StartAgent, sink: OtlpSink
) -> None:
    await sink.stop()
    process = await start_agent(traces_endpoint=sink.address)
    async with connected(process.address) as agent:
        await done(agent, traced("createVolume", "t1", volume_id="v", size_mb=1))
    await ended(process)
    assert kept(process) == 1
    await sink.start()
    await process.begin()
    assert ids_of(await sink.wait_for(lambda spans: spans)) == ["t1"]


async def test_whenever_it_is_killed_each_task_has_its_span_and_never_another(
    start_agent: StartAgent, sink: OtlpSink
) -> None:
    rng = random.Random(3)
    process = await start_agent(traces_endpoint=sink.address, sim_work_ms="5")
    names: list[str] = []
    for round_number in range(4):
        batch = [f"{round_number}-{number}" for number in range(20)]
        names += batch
        async with connected(process.address) as agent:
            specs = [traced("createVolume", name, volume_id=name, size_mb=1) for name in batch]
            assert set(await agent.start_all(*specs)) == {""}
            over = await some_over(agent, rng.randint(1, len(batch)))
            assert set(await agent.clear(*over)) == {""}
            if round_number % 2:
                await sink.wait_for(delivered(over[0]))
        await process.kill_and_begin()
    await sink.wait_for(delivered(*names))
    by_id: dict[str, SinkSpan] = {}
    for span in sink.spans:
        assert by_id.setdefault(span.span_id, span) == span
    assert sorted(ids_of(list(by_id.values()))) == sorted(names)


async def test_without_a_collector_the_ledger_keeps_no_spans(start_agent: StartAgent) -> None:
    process = await start_agent()
    async with connected(process.address) as agent:
        await done(agent, traced("createVolume", "t1", volume_id="v", size_mb=1))
        assert kept(process) == 0


async def test_ids_that_are_no_good_are_work_without_a_span(start_agent: StartAgent, sink: OtlpSink) -> None:
    process = await start_agent(traces_endpoint=sink.address)
    async with connected(process.address) as agent:
        for name, fields in {
            "t1": {"traceparent": f"ff-{TRACE}-{PARENT}-01", "span_id": "0a" * 8},
            "t2": {"traceparent": f"00-{TRACE}-{PARENT}-01", "span_id": "zz" * 8},
            "t3": {"traceparent": "é" * 55, "span_id": "0a" * 8},
        }.items():
            spec = a_spec("createVolume", name, fields=fields, volume_id=name, size_mb=1)
            assert await agent.start_all(spec) == [""]
            assert (await agent.end_of(name)).result == SUCCESS
        await done(agent, traced("createVolume", "good", volume_id="v", size_mb=1))
    assert ids_of(await sink.wait_for(lambda spans: spans)) == ["good"]
