"""Tasks that make no progress, heed no stop, or whose host has lost its memory, on the real stack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    DISK,
    FAILED,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    reason_of,
    steps_of,
)
from tests.e2e.migrations import a_running_vm, migrate, where_it_is

from waybill.v1.jobs_pb2 import Job
from waybill_cli.process import Process
from waybill_client import where

pytestmark = pytest.mark.asyncio(loop_scope="module")

STALL_SECONDS = 0.8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre with two hosts that nobody starts again, and little patience."""
    environment = {
        "COORDINATOR_POLL_SECONDS": "0.2",
        "COORDINATOR_STALL_SECONDS": str(STALL_SECONDS),
        "COORDINATOR_LEASE_SECONDS": "1",
        "HOSTAGENT_SIM_BOOT_MS": "20",
    }
    folder = tmp_path_factory.mktemp("silent")
    async with data_centre(folder, environment=environment, auto_restart=False) as centre:
        yield centre


async def forget_everything(centre: DataCentre, host: Process) -> None:
    """Has a host that is down come back without the memory of its tasks; its volumes are as they were."""
    for file in (centre.stack.data_dir / host.name).glob("ledger.db*"):
        file.unlink()
    await host.start()
    await host.serving()


async def what_befell(centre: DataCentre, job: Job) -> list[str]:
    """The types of the stored events of a job, in order."""
    return [event.event_type for event in await centre.events(job) if not event.event_type.startswith(("JOB_", "STEP"))]


@pytest.mark.rule("semantics §3: no progress for the limit → alarm event → stop → failed only when the host confirms")
async def test_a_task_that_makes_no_progress_is_stopped_and_has_failed(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "outcome": "hang"})
    job = await centre.run("AddDisk", {"disk_id": "disk-hang", "size_mb": 1, "host_id": "host-1"})
    assert job.status == FAILED
    assert reason_of(steps_of(job, "CREATE_VOLUME")[0]) == "TASK_STALLED"
    [alarm] = await centre.events(job, "TASK_STALLED")
    assert (alarm.correlation_id, alarm.entity.entity_id) == (job.correlation_id, "disk-hang")
    assert await centre.volume_state("disk-hang") == "GONE"
    assert await centre.entity(DISK, "disk-hang") is None
    await assert_all_over(centre, [job])


async def test_a_slow_task_that_makes_progress_is_left_alone(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "work_ms": 4000 * STALL_SECONDS})
    job = await centre.run("AddDisk", {"disk_id": "disk-slow", "size_mb": 1, "host_id": "host-1"})
    assert_all_finished([job])
    assert await what_befell(centre, job) == []


@pytest.mark.rule("semantics §3: a fence (raising the generation) makes sure that it no longer will")
@pytest.mark.rule("semantics §4: stored ones for alarms, cancels, interventions, take-overs, fences, leftovers")
@pytest.mark.rule("semantics §4: Readable by job, correlation id, entity")
@pytest.mark.rule("semantics §3: alarm event → stop → failed only when the host confirms or the object is fenced")
async def test_a_task_that_heeds_no_stop_is_fenced_and_does_nothing_more(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-deaf")
    await centre.program("host-2", {"verb": "syncImageData", "outcome": "deaf", "work_ms": 6000})
    job = await migrate(centre, disk_id)
    await centre.until_running(job, 4)
    await centre.stack.coordinators[0].kill()  # the next one begins anew, from what is stored
    await centre.stack.coordinators[0].start()
    job = await centre.ended(job)
    assert job.status == FAILED
    assert reason_of(steps_of(job, "SYNC_IMAGE_DATA")[0]) == "TASK_STALLED"
    befell = await what_befell(centre, job)
    assert [befell.count(each) for each in ("TASK_STALLED", "FENCED", "TASK_NOT_ROLLED_BACK")] == [1, 1, 1]
    [fenced] = await centre.events(job, "FENCED")
    tasks = {task.verb: task.task_id for task in await centre.host_tasks(job)}
    assert (fenced.correlation_id, fenced.entity.entity_id) == (job.correlation_id, disk_id)
    for named in ("host-2", disk_id, tasks["syncImageData"], tasks["fenceVolume"]):
        assert named in fenced.message
    await centre.until(lambda: no_tasks(centre, job), within=15)
    await centre.until(lambda: _is_told(centre, job, "LEFTOVER"))
    [leftover] = await centre.events(job, "LEFTOVER")
    assert tasks["syncImageData"] in leftover.message
    of_the_disk = [event async for event in centre.client.list_events(where(entity=f"DISK/{disk_id}"))]
    assert {"TASK_STALLED", "FENCED", "LEFTOVER"} <= {event.event_type for event in of_the_disk}
    assert "syncImageData" not in await centre.effects(disk_id)
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": "LEGAL"}, "host-1")
    assert await centre.client.check_consistency() == []


async def no_tasks(centre: DataCentre, job: Job) -> bool:
    """Whether no host knows a task of a job any more."""
    return await centre.tasks_on_hosts(job) == []


async def _is_told(centre: DataCentre, job: Job, event_type: str) -> bool:
    """Whether the audit log of a job has such an event."""
    return bool(await centre.events(job, event_type))


async def _is_being_copied(centre: DataCentre, disk_id: str) -> bool:
    """Whether the destination's volume is no longer what it was, and not yet what it will be."""
    return any(
        thing.state == "ILLEGAL" and any(counter.verb == "syncImageData" for counter in thing.counters)
        for thing in (await centre.objects()).get(disk_id, [])
    )


@pytest.mark.rule(
    "semantics §3: another one refuses it with `INCARNATION_CHANGED` → the object's generation tells what"
)
@pytest.mark.rule("semantics §3: So one read of an object tells whether a silent host did the work")
async def test_work_that_was_done_before_its_host_lost_its_memory_is_done(centre: DataCentre) -> None:
    disk_id = await a_running_vm(centre, "vm-done")
    await centre.program("host-2", {"verb": "syncImageData", "outcome": "crash", "count": 1})
    job = await migrate(centre, disk_id)
    host = centre.stack.hosts[1]
    async with asyncio.timeout(20):
        await host.ended()
    await forget_everything(centre, host)
    job = await centre.ended(job)
    assert_all_finished([job])
    assert await what_befell(centre, job) == ["TASK_FOUND_DONE"]
    assert (await centre.effects(disk_id))["syncImageData"] == 1
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-2", {"host-2": "LEGAL"}, "host-2")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §2: Success reported with less done than declared must be impossible")
@pytest.mark.parametrize("everybody", [False, True])
async def test_work_that_was_not_done_when_its_host_lost_its_memory_has_failed(
    centre: DataCentre, everybody: bool
) -> None:
    """Also if the coordinator died with it: then the host refuses what the next one sends again."""
    disk_id = await a_running_vm(centre, f"vm-undone-{everybody}".lower())
    await centre.program("host-2", {"verb": "syncImageData", "work_ms": 600_000})
    job = await migrate(centre, disk_id)
    await centre.until(lambda: _is_being_copied(centre, disk_id))
    host = centre.stack.hosts[1]
    await host.kill()
    if everybody:
        await centre.stack.coordinators[0].kill()
    await forget_everything(centre, host)
    if everybody:
        await centre.stack.coordinators[0].start()
    job = await centre.ended(job)
    assert job.status == FAILED
    befell = await what_befell(centre, job)
    assert befell == [*["FLOW_TAKEN_OVER"] * everybody, "FENCED", "TASK_NOT_ROLLED_BACK"]
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": "LEGAL"}, "host-1")
    await assert_all_over(centre, [job])
