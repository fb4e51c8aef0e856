"""Cancelled at seeded moments: exactly one outcome each, the hosts agree with it, and no lock or task is left.

`WAYBILL_CANCELS` says how many moments of each command (10 in `make test`), `WAYBILL_SEED` which ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    ABORTED,
    DISK,
    FINISHED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
)
from tests.e2e.migrations import a_running_vm, where_it_is

from waybill.v1.jobs_pb2 import Job
from waybill_client import WaybillError

CANCELS = int(os.environ.get("WAYBILL_CANCELS", "10"))
SEED = int(os.environ.get("WAYBILL_SEED", "1"))
TOGETHER = 5
"""Jobs at a time."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60 + 5 * CANCELS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def centre(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre whose hosts take a little time for everything."""
    environment = {"COORDINATOR_POLL_SECONDS": "1", "HOSTAGENT_SIM_BOOT_MS": "30", "HOSTAGENT_SIM_WORK_MS": "30"}
    async with data_centre(tmp_path_factory.mktemp("centre"), environment=environment) as running:
        yield running


async def cancel_at(centre: DataCentre, job: Job, moment: float) -> Job:
    """Cancels a job after so many seconds; returns it as it ended. What the reply said must have come true."""
    await asyncio.sleep(moment)  # the moment of the cancel: time itself is what the test is about
    try:
        await centre.client.cancel_job(job.job_id, "changed my mind")
        reasons = {""}
    except WaybillError as refusal:
        reasons = {refusal.reason}
    ended = await centre.ended(job)
    assert ended.status in (ABORTED, FINISHED)
    if ended.status == ABORTED:
        assert reasons == {""}
    assert reasons <= {"", "PAST_NO_RETURN", "NOT_CANCELABLE", "JOB_ENDED"}
    return ended


async def play(
    centre: DataCentre, name: str, longest: float, one: Callable[[str, float], Awaitable[Job]]
) -> Counter[int]:
    """Plays all moments of a command, some at a time; returns how often it ended how."""
    rng = random.Random(f"{SEED} {name}")
    moments = [rng.uniform(0.0, longest) for _ in range(CANCELS)]
    jobs: list[Job] = []
    for first in range(0, CANCELS, TOGETHER):
        together = enumerate(moments[first : first + TOGETHER], start=first)
        jobs += await asyncio.gather(*(one(f"vm-{name}-{number}", moment) for number, moment in together))
    await assert_all_over(centre, jobs)
    return Counter(job.status for job in jobs)


@pytest.mark.rule("semantics §8: Racing with completion → the one terminal transition decides, the reply says which.")
async def test_a_cancelled_removal_removes_all_or_nothing(centre: DataCentre) -> None:
    async def one(vm_id: str, moment: float) -> Job:
        disk_ids = await centre.furnish(vm_id, disks=2)
        job = await cancel_at(centre, await centre.client.run_command("RemoveVm", {"vm_id": vm_id}), moment)
        legality = "LEGAL" if job.status == ABORTED else "GONE"
        assert [await centre.volume_state(disk_id) for disk_id in disk_ids] == [legality] * 2
        there = [await centre.entity(DISK, disk_id) is not None for disk_id in disk_ids]
        assert there == [job.status == ABORTED] * 2
        assert (await centre.entity(VM, vm_id) is not None) == (job.status == ABORTED)
        return job

    await play(centre, "remove", 0.1, one)


async def test_a_cancelled_migration_leaves_the_vm_on_one_host(centre: DataCentre) -> None:
    async def one(vm_id: str, moment: float) -> Job:
        await centre.declare_vm(vm_id)
        assert_all_finished([await centre.run("RunVm", {"vm_id": vm_id, "host_id": "host-1"})])
        asked = await centre.client.run_command("MigrateVm", {"vm_id": vm_id, "host_id": "host-2"})
        job = await cancel_at(centre, asked, moment)
        host_id = "host-1" if job.status == ABORTED else "host-2"
        await centre.until(lambda: is_only_on(vm_id, host_id))
        vm = await centre.entity(VM, vm_id)
        assert vm is not None
        assert (vm.observed.state, vm.observed.host_id) == ("UP", host_id)
        return job

    async def is_only_on(vm_id: str, host_id: str) -> bool:
        found = {
            name: thing.state
            for name, host in centre.hosts.items()
            for thing in (await host.get_host()).objects
            if (thing.kind, thing.object_id) == ("vm", vm_id) and thing.state != "GONE"
        }
        return found == {host_id: "UP"}

    await play(centre, "migrate", 0.15, one)


@pytest.mark.rule(
    "semantics §8: FINISH_FORWARD: like REVERT until a node marked no_return has begun, afterwards refused"
)
async def test_a_cancelled_live_migration_leaves_the_disk_on_one_host(centre: DataCentre) -> None:
    async def one(vm_id: str, moment: float) -> Job:
        disk_id = await a_running_vm(centre, vm_id)
        parameters = {"disk_id": disk_id, "destination_host_id": "host-2"}
        job = await cancel_at(centre, await centre.client.run_command("LiveMigrateDisk", parameters), moment)
        host_id = "host-1" if job.status == ABORTED else "host-2"
        there = await where_it_is(centre, disk_id)
        assert (there.status, there.declared_host, there.writes_to) == ("OK", host_id, host_id)
        assert (there.volumes, there.snapshots) == ({host_id: "LEGAL"}, {host_id: []})
        return job

    outcomes = await play(centre, "move", 0.6, one)
    assert outcomes[ABORTED]
    assert outcomes[FINISHED]
