"""What a client without our code can do, and a server that finds its port taken."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e import stranger
from tests.e2e.datacentre import DataCentre, assert_all_finished

from waybill_cli.process import Process

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANNOT_LISTEN = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found(running: DataCentre) -> dict[str, Any]:
    """What a stranger found out in a process of its own."""
    addresses = (running.stack.coordinators[0].address, running.stack.jobstores[0].address)
    output = await _output_of(stranger.__file__, *addresses)
    found: dict[str, Any] = json.loads(output)
    return found


async def test_it_had_no_help_of_ours(found: dict[str, Any]) -> None:
    assert found["ours"] == []


async def test_it_lists_the_services(found: dict[str, Any]) -> None:
    everywhere = {"grpc.channelz.v1.Channelz", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    services = {name: set(listed) for name, listed in found["services"].items()}
    assert services["coordinator"] >= everywhere | {"waybill.v1.Coordinator"}
    assert services["jobstore"] >= everywhere | {"waybill.v1.JobStore", "waybill.v1.Journal"}


async def test_it_describes_the_calls_and_their_fields(found: dict[str, Any]) -> None:
    assert found["calls"]["RunCommand"] == "RunCommandRequest -> Job"
    assert found["calls"]["WatchJobs"] == "WatchJobsRequest -> stream WatchJobsResponse"
    assert {"command_type", "parameters", "request_id", "correlation_id", "validate_only"} <= found["fields"].keys()


async def test_it_learns_what_can_be_run(found: dict[str, Any]) -> None:
    schemas = {each["name"]: each["parameters_schema"] for each in found["types"]["command_types"]}
    assert schemas["RemoveVm"]["required"] == ["vm_id"]


async def test_it_runs_a_command_and_reads_its_job(found: dict[str, Any], centre: DataCentre) -> None:
    assert found["ran"]["status"] == "EXECUTION_STATUS_STARTED"
    assert found["read"]["job_id"] == found["ran"]["job_id"]
    assert [step["step_type"] for step in found["read"]["steps"]] == ["VALIDATION", "EXECUTION", "FINALIZATION"]
    assert_all_finished([await centre.client.wait(found["ran"]["job_id"], timeout=10)])


async def test_it_is_told_why_it_was_refused(found: dict[str, Any]) -> None:
    assert found["refused"] == {"code": "NOT_FOUND", "reason": "COMMAND_TYPE_UNKNOWN"}


async def test_it_asks_for_health(found: dict[str, Any]) -> None:
    assert found["health"] == {
        "": ["SERVING", "SERVING"],
        "waybill.v1.Coordinator": ["SERVING", "NOT_FOUND"],
        "waybill.v1.JobStore": ["NOT_FOUND", "SERVING"],
        "waybill.v1.Journal": ["NOT_FOUND", "SERVING"],
        "no.Such": ["NOT_FOUND", "NOT_FOUND"],
    }


@pytest.mark.parametrize("kind", ["coordinators", "jobstores", "hosts"])
async def test_a_second_server_on_a_port_does_not_start(running: DataCentre, tmp_path: Path, kind: str) -> None:
    first: Process = getattr(running.stack, kind)[0]
    of_its_own = {
        "coordinators": {},
        "jobstores": {"JOBSTORE_DATA_DIR": str(tmp_path), "JOBSTORE_DATABASE_URL": running.stack.database_url},
        "hosts": {"HOSTAGENT_DATA_DIR": str(tmp_path)},
    }
    listen = {f"{first.module.upper()}_LISTEN": first.address}
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", first.module),
        env={**os.environ, **first.environment, **of_its_own[kind], **listen},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await second.communicate()
    assert second.returncode == CANNOT_LISTEN
    assert output == b""  # it never said that it listens
    assert first.address in errors.decode().splitlines()[-1]
    await running.stack.serving()


async def _output_of(*words: str) -> bytes:
    child = await asyncio.create_subprocess_exec(sys.executable, "-I", *words, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        output, _ = await child.communicate()
    assert child.returncode == 0
    return output
