"""A real stack tells Prometheus of itself, and the dashboard asks for nothing that it does not tell."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.datacentre import FINISHED, DataCentre, data_centre
from tests.scrape import Scrape, address_in, scrape

pytestmark = pytest.mark.asyncio(loop_scope="module")

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "waybill.json"
LISTEN = ("COORDINATOR_METRICS_LISTEN", "JOBSTORE_METRICS_LISTEN", "HOSTAGENT_METRICS_LISTEN")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def centre(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre of which every process serves its metrics on a port of its own."""
    environment = dict.fromkeys(LISTEN, "127.0.0.1:0")
    async with data_centre(tmp_path_factory.mktemp("centre"), hosts=1, tapped=False, environment=environment) as centre:
        yield centre


async def scrapes(centre: DataCentre) -> dict[str, Scrape]:
    """What each process tells, by its name."""
    found = {}
    for log in sorted((centre.stack.data_dir / "logs").glob("*.log")):
        told = [line for line in log.read_text().splitlines() if '"metrics are served"' in line]
        found[log.stem] = await scrape(address_in(told[-1]))
    return found


async def test_a_job_is_seen_in_all_three_services(centre: DataCentre) -> None:
    job = await centre.run("AddDisk", {"disk_id": "disk-1", "size_mb": 10, "host_id": "host-1"})
    assert job.status == FINISHED
    await centre.until_rest()
    seen = await scrapes(centre)
    coordinator, jobstore, host = seen["coordinator-1"], seen["jobstore-1"], seen["host-1"]

    assert jobstore("waybill_jobs_begun_total", type="AddDisk") == 1
    assert jobstore("waybill_jobs_ended_total", type="AddDisk", status="FINISHED") == 1
    assert jobstore("waybill_feed_watchers", kind="journal") == 1
    assert host("waybill_host_tasks_ended_total", verb="createVolume", result="SUCCESS") == 1

    begun = coordinator("waybill_coordinator_commands_begun_total", type="AddDisk")
    assert begun == coordinator("waybill_coordinator_commands_ended_total", status="ENDED_SUCCESSFULLY") == 1
    assert coordinator("waybill_coordinator_phase_duration_seconds_count", type="AddDisk", phase="EXECUTION") == 1
    took = coordinator("waybill_coordinator_command_duration_seconds_sum", type="AddDisk")
    assert 0 < took == pytest.approx(jobstore("waybill_job_duration_seconds_sum", type="AddDisk"), abs=0.001)
    assert coordinator("waybill_coordinator_phase_duration_seconds_sum") == pytest.approx(took, abs=0.001)
    assert coordinator("waybill_coordinator_batch_commits_sum") >= 2
    assert coordinator("waybill_coordinator_batch_duration_seconds_count") >= 2
    assert coordinator("waybill_coordinator_lease_held") == 1
    assert 0 <= coordinator("waybill_coordinator_lease_age_seconds") < 3
    assert coordinator("waybill_coordinator_hosts", state="up") == 1
    assert coordinator("waybill_coordinator_host_streams") >= 1
    for at_rest in ("flows", "tasks", "tasks_awaited", "entities_awaited", "clears_waiting", "commits_in_flight"):
        assert coordinator(f"waybill_coordinator_{at_rest}") == 0, at_rest
    assert coordinator("waybill_rpc_calls_total", method="waybill.v1.Coordinator/RunCommand", code="OK") == 1


async def test_what_is_under_way_is_seen_while_it_is(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "outcome": "hang"})
    job = await centre.client.run_command("AddDisk", {"disk_id": "disk-2", "size_mb": 10, "host_id": "host-1"})
    await centre.until(lambda: _is_seen_running(centre))
    seen = await scrapes(centre)
    assert seen["coordinator-1"]("waybill_coordinator_flows") == 1
    assert seen["coordinator-1"]("waybill_coordinator_tasks_awaited") == 1
    assert seen["coordinator-1"]("waybill_coordinator_tasks") == 1
    await centre.client.cancel_job(job.job_id)
    await centre.ended(job)


async def _is_seen_running(centre: DataCentre) -> bool:
    return (await scrapes(centre))["host-1"]("waybill_host_tasks_running") == 1


async def test_the_dashboard_asks_only_for_what_there_is(centre: DataCentre) -> None:
    told = {
        sample
        for seen in (await scrapes(centre)).values()
        for family in seen.families
        for sample in _samples_of(family.name, family.type)
    }
    asked = {name for expression in _expressions() for name in _metrics_in(expression)}
    assert len(asked) > 60
    assert asked - told == set()
    ours = {name for name in told if name.startswith("waybill_") and not name.endswith(("_bucket", "_sum", "_count"))}
    assert {name for name in ours if name.startswith("waybill_coordinator_")} - asked <= {
        "waybill_coordinator_commands_begun_total"
    }


async def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert [row["title"] for row in board["panels"] if row["type"] == "row"] == [
        "Is it well?",
        "Jobs",
        "Coordinator",
        "Journal and feed",
        "Hosts",
    ]
    assert [variable["type"] for variable in board["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def _samples_of(family: str, kind: str) -> tuple[str, ...]:
    match kind:
        case "counter":
            return (f"{family}_total",)
        case "histogram":
            return (f"{family}_bucket", f"{family}_sum", f"{family}_count")
        case _:
            return (family,)


def _expressions() -> Iterator[str]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            yield target["expr"]


def _metrics_in(expression: str) -> list[str]:
    """Returns the names of metrics: words with our prefixes, outside of label matchers."""
    return re.findall(r"\b(?:waybill|process|python)_\w+", re.sub(r"\{[^}]*\}", "", expression))
