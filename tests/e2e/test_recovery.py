"""Services that die or are stopped amid RemoveVm: the flow goes on under the same names, and nothing is done twice."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    ABORTED,
    DISK,
    FAILED,
    FINISHED,
    STARTED,
    UNKNOWN,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    reason_of,
    steps_of,
)

from waybill.v1.hostagent_pb2 import TaskSpec
from waybill.v1.jobs_pb2 import Job
from waybill_cli.process import Process

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LEASE_SECONDS = 2.0
PATIENT_LEASE_SECONDS = 60.0  # whoever waits for it to run out has failed the test


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    environment = {"COORDINATOR_LEASE_SECONDS": str(LEASE_SECONDS), "COORDINATOR_POLL_SECONDS": "1"}
    async with data_centre(tmp_path_factory.mktemp("recovery"), environment=environment) as centre:
        yield centre


# --- coordinators ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Every flow goes on, in whichever coordinator claims it: what was recorded is repeated")
@pytest.mark.rule("semantics §3: Same incarnation: always send again")
async def test_a_flow_goes_on_under_its_names_when_its_coordinator_was_killed(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-kill")
    job = await _begin_removal(centre, "vm-kill", work_ms=1500, correlation_id="through-the-crash")
    before = {info.spec.task_id for info in await centre.until_running(job, tasks=4)}
    await centre.stack.kill(centre.stack.coordinators[0])
    on_hosts = await centre.until_running(job, tasks=4)
    job = await centre.ended(job)
    assert_all_finished([job])
    await assert_all_over(centre, [job])
    sent = centre.specs_sent(job)
    assert {spec.task_id for spec in sent} == before
    assert sorted({spec.epoch for spec in sent}) == [1, 2]  # sent again by the new owner, and fenced
    assert {len({_said(spec) for spec in sent if spec.task_id == task_id}) for task_id in before} == {1}
    named: list[Any] = [job, *job.steps, *await centre.events(job), *await centre.host_tasks(job)]
    named += [command async for command in centre.client.list_commands(job.flow_command_id)]
    named += [*sent, *(info.spec for info in on_hosts)]
    assert {thing.correlation_id for thing in named} == {"through-the-crash"}
    for disk_id in disk_ids:
        assert await centre.effects(disk_id) == {"createVolume": 1, "deleteImage": 1}


async def test_a_flow_goes_on_at_once_when_its_coordinator_was_stopped(centre: DataCentre) -> None:
    coordinator = centre.stack.coordinators[0]
    await _restart(coordinator, lease_seconds=PATIENT_LEASE_SECONDS)
    await centre.furnish("vm-stop", disks=2)
    job = await _begin_removal(centre, "vm-stop", work_ms=1000)
    await centre.until_running(job, tasks=2)
    coordinator.send(signal.SIGTERM)
    async with asyncio.timeout(PATIENT_LEASE_SECONDS / 2):
        job = await centre.ended(job)
    assert_all_finished([job])
    await assert_all_over(centre, [job])
    await _restart(coordinator, lease_seconds=LEASE_SECONDS)


async def test_a_coordinator_that_was_paused_beyond_its_lease_does_no_harm(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-pause")
    job = await _begin_removal(centre, "vm-pause", work_ms=300)
    paused = centre.stack.coordinators[0]
    paused.send(signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE_SECONDS)  # how long it is paused is what the test is about
    paused.send(signal.SIGCONT)
    job = await centre.ended(job)
    assert_all_finished([job])
    await centre.stack.serving()
    await assert_all_over(centre, [job])
    for disk_id in disk_ids:
        assert await centre.effects(disk_id) == {"createVolume": 1, "deleteImage": 1}


async def test_a_cancel_is_not_forgotten_by_a_crash(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "outcome": "hang"})
    parameters = {"disk_id": "disk-cancel", "size_mb": 1, "host_id": "host-1"}
    job = await centre.client.run_command("AddDisk", parameters)
    await centre.until_running(job)
    await centre.client.cancel_job(job.job_id, "before the crash")
    await centre.stack.kill(centre.stack.coordinators[0])
    job = await centre.ended(job)
    assert job.status == ABORTED
    assert "before the crash" in job.error.message
    assert await centre.entity(DISK, "disk-cancel") is None
    assert await centre.volume_state("disk-cancel") == "GONE"
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §2: the commit that stores a wait answers with the entity as it is, so nothing seen")
async def test_a_vm_that_boots_while_its_coordinator_is_down_is_seen_up(centre: DataCentre) -> None:
    await centre.declare_vm("vm-boot", host_id="host-2")
    job = await centre.client.run_command("RunVm", {"vm_id": "vm-boot"})
    await centre.stack.kill(centre.stack.coordinators[0])
    job = await centre.ended(job)
    assert_all_finished([job])
    assert await centre.effects("vm-boot") == {"createVm": 1}
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §2: Jobs are never deleted or hidden by a restart")
async def test_a_restart_leaves_every_job_where_it_was(centre: DataCentre) -> None:
    assert_all_finished([await centre.run("BenchWork", {"host_id": "host-1", "object_id": "before"})])
    hidden = await centre.client.run_command("BenchWork", {"host_id": "host-1", "object_id": "unseen"}, visible=False)
    await centre.ended(hidden)
    assert (await centre.run("RemoveVm", {"vm_id": "vm-nowhere"})).status == FAILED
    await centre.until_rest()
    _, before = await centre.stored()
    assert len(before) >= 3
    await asyncio.gather(*(centre.stack.kill(each) for each in (*centre.stack.coordinators, *centre.stack.jobstores)))
    await centre.stack.serving()
    assert_all_finished([await centre.run("BenchWork", {"host_id": "host-1", "object_id": "after"})])
    _, after = await centre.stored()
    assert set(before) <= set(after)


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §3: Host unreachable → neither failed nor succeeded; asked again")
async def test_a_host_that_is_away_is_waited_for(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-away")
    away = centre.stack.hosts[0]
    await away.stop()
    job = await centre.client.run_command("RemoveVm", {"vm_id": "vm-away"})
    await centre.until(lambda: _deleted(centre, job, 2))
    waiting = await centre.client.get_job(job.job_id)
    assert waiting.status == STARTED  # neither failed nor succeeded
    await away.start()
    job = await centre.ended(job)
    assert_all_finished([job])
    await assert_all_over(centre, [job])
    for disk_id in disk_ids:
        assert await centre.effects(disk_id) == {"createVolume": 1, "deleteImage": 1}


async def test_a_host_whose_memory_is_gone_loses_what_it_had_begun(centre: DataCentre) -> None:
    await centre.furnish("vm-wiped", disks=2)
    job = await _begin_removal(centre, "vm-wiped", work_ms=60_000, host_id="host-1")
    await centre.until_running(job)
    wiped = centre.stack.hosts[0]
    await wiped.stop()
    shutil.rmtree(centre.stack.data_dir / wiped.name)
    await wiped.start()
    job = await centre.ended(job)
    assert job.status == FAILED
    assert sorted(step.status for step in steps_of(job, "DELETE_IMAGE")) == sorted([FINISHED, UNKNOWN])
    [lost] = [step for step in steps_of(job, "DELETE_IMAGE") if step.status == UNKNOWN]
    assert reason_of(lost) in ("TASK_LOST", "INCARNATION_CHANGED")
    disk = await centre.entity(DISK, "vm-wiped-disk-0")
    assert disk is not None
    assert disk.status == "ILLEGAL"
    assert await centre.entity(VM, "vm-wiped") is None
    await assert_all_over(centre, [job])


# --- the store -------------------------------------------------------------------------------------------------------


async def test_a_job_that_is_submitted_while_the_store_is_away_is_stored_once_it_is_back(centre: DataCentre) -> None:
    store = centre.stack.jobstores[0]
    store.send(signal.SIGSTOP)
    submitted = asyncio.create_task(
        centre.client.run_command("BenchWork", {"host_id": "host-1", "object_id": "late"}, request_id="late")
    )
    await asyncio.sleep(LEASE_SECONDS / 4)  # not so long that the coordinator gives up
    assert not submitted.done()
    store.send(signal.SIGCONT)
    job = await centre.ended(await submitted)
    assert_all_finished([job])
    assert await centre.effects("late") == {"simWork": 1}


@pytest.mark.rule("semantics §8: It must be empty after anything")
@pytest.mark.rule("semantics §2: A job in an end status has no lock, no live command, no running task, no open step")
@pytest.mark.rule("semantics §3: 10 s after a flow's end no reachable host has a task of it")
async def test_everything_at_once_is_survived(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-all")
    job = await _begin_removal(centre, "vm-all", work_ms=500)
    await asyncio.gather(*(centre.stack.kill(process) for process in centre.stack.processes))
    job = await centre.ended(job)
    assert_all_finished([job])
    await centre.stack.serving()
    await assert_all_over(centre, [job])
    for disk_id in disk_ids:
        assert await centre.effects(disk_id) == {"createVolume": 1, "deleteImage": 1}


async def _restart(coordinator: Process, *, lease_seconds: float) -> None:
    await coordinator.stop()
    coordinator.environment["COORDINATOR_LEASE_SECONDS"] = str(lease_seconds)
    await coordinator.start()
    await coordinator.serving()


async def _begin_removal(
    centre: DataCentre, vm_id: str, *, work_ms: int, host_id: str = "", correlation_id: str = ""
) -> Job:
    """Begins a RemoveVm whose deletions take so long (on one host only, if one is named)."""
    for each in [host_id] if host_id else centre.hosts:
        await centre.program(each, {"verb": "deleteImage", "work_ms": work_ms})
    return await centre.client.run_command("RemoveVm", {"vm_id": vm_id}, correlation_id=correlation_id)


async def _deleted(centre: DataCentre, job: Job, images: int) -> bool:
    steps = steps_of(await centre.client.get_job(job.job_id), "DELETE_IMAGE")
    return Counter(step.status for step in steps)[FINISHED] == images


def _said(spec: TaskSpec) -> bytes:
    """What a host was asked for, whoever asked."""
    asked = TaskSpec()
    asked.CopyFrom(spec)
    asked.epoch = 0
    return asked.SerializeToString(deterministic=True)
