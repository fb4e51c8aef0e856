"""kill -9 of the coordinator inside every stage of a live disk migration and at every boundary between two of them.

Inside: the host works on the stage. At the boundary: the host has just done it, and the coordinator is about to hear of
it, to store that, or to begin the next. Whatever it was about, the flow goes on there in the next process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.e2e.datacentre import FAILED, DataCentre, assert_all_finished, assert_all_over, data_centre, outline
from tests.e2e.migrations import STAGES, a_running_vm, migrate, where_it_is

from waybill.v1.jobs_pb2 import Job

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

WORK_MS = 400
LOOKS_EVERY = 0.004  # seconds; what comes between two looks is a matter of chance


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def centre(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre whose coordinator is soon missed when it dies."""
    folder: Path = tmp_path_factory.mktemp("centre")
    environment = {
        "COORDINATOR_LEASE_SECONDS": "1",
        "COORDINATOR_POLL_SECONDS": "1",
        "HOSTAGENT_SIM_BOOT_MS": "20",
    }
    async with data_centre(folder, environment=environment) as running:
        yield running


async def counted(centre: DataCentre, disk_id: str, verb: str) -> tuple[int, int]:
    """How often a verb was begun on a disk and how often it had its effect, over all hosts."""
    counters = [counter for thing in (await centre.objects()).get(disk_id, []) for counter in thing.counters]
    mine = [counter for counter in counters if counter.verb == verb]
    return sum(each.attempts for each in mine), sum(each.effects for each in mine)


async def kill_the_coordinator(centre: DataCentre, disk_id: str, verb: str, *, inside: bool) -> None:
    """Waits until a host is in a stage, or has just done it, and kills the coordinator."""
    async with asyncio.timeout(30):
        while True:
            attempts, effects = await counted(centre, disk_id, verb)
            if effects or (inside and attempts):
                break
            await asyncio.sleep(LOOKS_EVERY)  # no stream tells of a moment that short
    assert not (inside and effects), "too late: the stage was over"
    await centre.stack.kill(centre.stack.coordinators[0])


async def assert_moved(centre: DataCentre, disk_id: str, job: Job) -> None:
    """Every stage was done, once, and the VM writes to the destination."""
    assert_all_finished([job])
    assert outline(job)[2:] == [(step, "FINISHED") for step in (*STAGES.values(), "FINALIZATION")]
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-2", {"host-2": "LEGAL"}, "host-2")
    assert there.snapshots == {"host-2": []}
    assert await centre.effects(disk_id) == {"createVolume": 1, **dict.fromkeys(STAGES, 1)}
    await assert_all_over(centre, [job], killed=True)


@pytest.mark.rule("semantics §7: LiveMigrateDisk: a crash at every stage boundary resumes there")
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "boundary"])
@pytest.mark.parametrize("verb", STAGES)
async def test_a_coordinator_killed_at_any_stage_resumes_there(centre: DataCentre, verb: str, inside: bool) -> None:
    disk_id = await a_running_vm(centre, f"vm-{verb}-{'in' if inside else 'after'}".lower())
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": verb, "work_ms": WORK_MS if inside else 0})
    job = await migrate(centre, disk_id)
    await kill_the_coordinator(centre, disk_id, verb, inside=inside)
    await assert_moved(centre, disk_id, await centre.ended(job))


@pytest.mark.rule("semantics §7: LiveMigrateDisk: never ends FINISHED with a stage up to the switch not done")
@pytest.mark.parametrize("verb", list(STAGES)[:5])
async def test_a_stage_that_fails_while_the_coordinator_is_dead_takes_the_disk_back(
    centre: DataCentre, verb: str
) -> None:
    disk_id = await a_running_vm(centre, f"vm-{verb}-fails".lower())
    for host_id in centre.hosts:
        rule = {"verb": verb, "work_ms": WORK_MS, "outcome": "fail", "count": 1}
        await centre.program(host_id, rule)
    job = await migrate(centre, disk_id)
    await kill_the_coordinator(centre, disk_id, verb, inside=True)
    job = await centre.ended(job)
    assert job.status == FAILED
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": "LEGAL"}, "host-1")
    assert (there.status, there.snapshots) == ("OK", {"host-1": []})
    await assert_all_over(centre, [job], killed=True)


@pytest.mark.parametrize("verb", ["replicateDiskFinish", "deleteImage", "mergeSnapshots"])
async def test_a_coordinator_killed_while_it_goes_back_goes_on_going_back(centre: DataCentre, verb: str) -> None:
    disk_id = await a_running_vm(centre, f"vm-{verb}-back".lower())
    await centre.program("host-2", {"verb": "syncImageData", "outcome": "fail"}, {"verb": verb, "work_ms": WORK_MS})
    await centre.program("host-1", {"verb": verb, "work_ms": WORK_MS})
    job = await migrate(centre, disk_id)
    await kill_the_coordinator(centre, disk_id, verb, inside=True)
    job = await centre.ended(job)
    assert job.status == FAILED
    there = await where_it_is(centre, disk_id)
    assert (there.declared_host, there.volumes, there.writes_to) == ("host-1", {"host-1": "LEGAL"}, "host-1")
    await assert_all_over(centre, [job], killed=True)
