"""The whole stack under its supervisor: real processes, real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from waybill.v1.jobs_pb2 import EntityType
from waybill_cli.process import StartFailed
from waybill_cli.stack import Ports, Stack
from waybill_client import is_finished
from waybill_client.words import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("stack"), hosts=2) as stack:
        yield stack


async def test_a_started_stack_runs_commands(stack: Stack) -> None:
    async with stack.client() as client:
        job = await client.run_command("AddDisk", {"disk_id": "d1", "size_mb": 1, "host_id": "host-2"})
        assert is_finished(await client.wait(job.job_id, timeout=30))


async def test_hosts_are_known_under_their_addresses(stack: Stack) -> None:
    async with stack.client() as client:
        hosts = [entity async for entity in client.list_entities(EntityType.ENTITY_TYPE_HOST)]
    declared = {entity.entity_id: plain(entity.declared)["address"] for entity in hosts}
    assert declared == {host.name: host.address for host in stack.hosts}


async def test_whatever_is_killed_comes_back_and_the_stack_works_on(stack: Stack) -> None:
    addresses = [process.address for process in stack.processes]
    for process in stack.processes:
        await stack.kill(process)
    await stack.serving()
    assert [process.address for process in stack.processes] == addresses
    async with stack.client(wait_for_ready=True) as client:
        job = await client.run_command("AddDisk", {"disk_id": "d2", "size_mb": 1, "host_id": "host-1"})
        assert is_finished(await client.wait(job.job_id, timeout=30))


async def test_data_and_ports_stay_from_one_time_to_the_next(tmp_path: Path) -> None:
    async with Stack(tmp_path, hosts=1) as stack, stack.client() as client:
        job = await client.run_command("AddDisk", {"disk_id": "d1", "size_mb": 1, "host_id": "host-1"})
        before = await client.wait(job.job_id, timeout=30)
        addresses = [process.address for process in stack.processes]
    async with Stack(tmp_path, hosts=1) as stack, stack.client() as client:
        assert await client.get_job(job.job_id) == before
        assert [process.address for process in stack.processes] == addresses


async def test_several_of_each_share_one_database(tmp_path: Path) -> None:
    async with Stack(tmp_path, hosts=1, coordinators=2, jobstores=2) as stack:
        async with stack.client() as client:
            jobs = [
                await client.run_command("AddDisk", {"disk_id": f"d{number}", "size_mb": 1, "host_id": "host-1"})
                for number in range(4)
            ]
            ended = await asyncio.gather(*(client.wait(job.job_id, timeout=30) for job in jobs))
        assert all(is_finished(job) for job in ended)
        assert len(stack.describe()["jobstores"]) == 2


async def test_a_second_supervisor_is_kept_off_the_folder(stack: Stack) -> None:
    with pytest.raises(StartFailed, match="another supervisor uses"):
        async with Stack(stack.data_dir):
            pass
    await stack.serving()


async def test_a_port_that_is_taken_is_named(stack: Stack, tmp_path: Path) -> None:
    taken = int(stack.coordinators[0].address.rpartition(":")[2])
    with pytest.raises(StartFailed, match=f"port {taken} for host-1 is taken"):
        async with Stack(tmp_path / "other", ports=Ports(hosts=taken)):
            pass


async def test_a_setting_that_is_no_good_is_told_with_the_services_own_words(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"(?s)host-. ended with 2 before it listened.*HOSTAGENT_SIM_WORK_MS"):
        async with Stack(tmp_path, environment={"HOSTAGENT_SIM_WORK_MS": "long"}):
            pass
