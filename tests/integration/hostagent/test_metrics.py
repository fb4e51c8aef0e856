"""What a host agent says to Prometheus, as a process and over HTTP."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.integration.hostagent.conftest import AgentProcess
from tests.integration.hostagent.host_client import HostClient, a_spec, connected
from tests.scrape import OPENMETRICS, PLAIN, Scrape, address_in, scrape

from chassis.server import CANNOT_LISTEN

StartAgent = Callable[..., Awaitable[AgentProcess]]
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass
class Host:
    """An agent in a process of its own."""

    process: AgentProcess
    client: HostClient
    metrics: str

    async def scrape(self, *, accept: str = OPENMETRICS) -> Scrape:
        return await scrape(self.metrics, accept=accept)


@pytest.fixture
async def host(start_agent: StartAgent) -> AsyncIterator[Host]:
    agent = await start_agent(metrics_listen="127.0.0.1:0", workers="1", queue="2")
    assert agent.process.stderr is not None
    metrics = address_in((await agent.process.stderr.readline()).decode())
    async with connected(agent.address) as client:
        yield Host(agent, client, metrics)


async def test_tasks_are_counted_by_verb_and_result(host: Host) -> None:
    await host.client.run("simWork", object_id="o")
    await host.client.program({"verb": "simWork", "outcome": "fail"})
    await host.client.run("simWork", object_id="o")
    for accept in (OPENMETRICS, PLAIN):
        seen = await host.scrape(accept=accept)
        assert seen("waybill_host_tasks_ended_total", verb="simWork", result="SUCCESS") == 1
        assert seen("waybill_host_tasks_ended_total", verb="simWork", result="CLEAN_SUCCESS") == 1
        assert seen("waybill_host_tasks_ended_total", verb="simProgram", result="SUCCESS") == 1
        assert seen("waybill_host_task_duration_seconds_count", verb="simWork") == 2
        assert 0 < seen("waybill_host_task_duration_seconds_sum", verb="simWork") < 60
        assert seen("waybill_host_tasks", state="FINISHED") == 3
        assert seen("waybill_host_ledger_batch_writes_sum") > 3
        assert seen("waybill_host_ledger_duration_seconds_count") > 3
        assert seen("waybill_host_ledger_failures_total") == 0
        assert seen("waybill_host_observations_total", type="HOST", state="UP") == 1
        assert seen("waybill_host_entities", type="HOST") == 1
        assert seen("waybill_rpc_calls_total", method="waybill.v1.HostAgent/StartTasks", code="OK") == 2


async def test_what_runs_waits_and_is_refused_is_seen(host: Host) -> None:
    assert list((await host.scrape()).values("waybill_host_tasks_oldest_timestamp_seconds")) == []
    await host.client.program({"verb": "simWork", "outcome": "hang"})
    refusals = await host.client.start_all(*(a_spec("simWork", object_id="o") for _ in range(2)))
    refusals += await host.client.start_all(*(a_spec("simWork", object_id="o") for _ in range(3)))
    full = refusals.count("QUEUE_FULL")
    seen = await host.scrape()
    assert full > 0
    assert seen("waybill_host_task_refusals_total", reason="QUEUE_FULL") == full
    assert seen("waybill_host_tasks_running") == seen("waybill_host_places") == 1
    assert seen("waybill_host_tasks_queued") == 5 - full - 1
    assert seen("waybill_host_queue_places") == 2
    assert seen("waybill_host_tasks", state="RUNNING") == 1
    assert seen("waybill_host_tasks", state="INIT") == seen("waybill_host_tasks_queued")
    [oldest] = seen.values("waybill_host_tasks_oldest_timestamp_seconds")
    assert 0 <= oldest - seen("process_start_time_seconds") < 60


async def test_a_tasks_duration_names_its_trace(host: Host) -> None:
    spec = a_spec("simWork", fields={"traceparent": TRACEPARENT}, object_id="o")
    assert await host.client.start_all(spec) == [""]
    await host.client.end_of(spec.task_id)
    [exemplar] = (await host.scrape()).exemplars("waybill_host_task_duration_seconds_bucket", verb="simWork")
    assert exemplar.labels == {"trace_id": TRACE}


async def test_watchers_are_counted(host: Host) -> None:
    assert (await host.scrape())("waybill_host_task_watchers") == 0
    statuses: Any = host.client.statuses()
    await host.client.start("simWork", object_id="o")
    await anext(statuses)
    seen = await host.scrape()
    assert seen("waybill_host_task_watchers") == 1
    assert seen("waybill_rpc_open_calls", method="waybill.v1.HostAgent/WatchTasks") == 1
    await statuses.aclose()
    async with host.client.events():
        assert (await host.scrape())("waybill_host_event_watchers") == 1


async def test_the_endpoint_goes_with_the_process_and_its_port_is_not_shared(host: Host, tmp_path: Any) -> None:
    other = AgentProcess.with_settings(metrics_listen=host.metrics, data_dir=str(tmp_path / "other"))
    with pytest.raises(AssertionError, match=f"cannot serve metrics on {host.metrics}: in use by another process"):
        await other.begin()
    assert await other.ended() == CANNOT_LISTEN

    host.process.process.send_signal(signal.SIGTERM)
    assert await host.process.ended() == 0
    with pytest.raises(ConnectionRefusedError):
        await host.scrape()
