"""VMs on three hosts: where they are started, what happens when a host does not want them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    FAILED,
    FINISHED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    outline,
    steps_of,
)

from waybill.v1.jobs_pb2 import Job

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre with three hosts."""
    environment = {"COORDINATOR_POLL_SECONDS": "1", "HOSTAGENT_SIM_BOOT_MS": "50"}
    async with data_centre(tmp_path_factory.mktemp("centre"), hosts=3, environment=environment) as centre:
        yield centre


def attempts(job: Job) -> list[tuple[str, int]]:
    """Where a VM was tried, and how that ended."""
    return [(step.description.rpartition(" ")[2], step.status) for step in steps_of(job, "START_VM")]


async def vm_states(centre: DataCentre, vm_id: str) -> dict[str, str]:
    """What each host that has the VM says of it."""
    return {
        host_id: thing.state
        for host_id, host in centre.hosts.items()
        for thing in (await host.get_host()).objects
        if (thing.kind, thing.object_id) == ("vm", vm_id) and thing.state != "GONE"
    }


@pytest.mark.rule(
    "semantics §7: RunVm: fails on one host → another attempt on the next, shown as a further START_VM step"
)
async def test_a_vm_that_fails_on_one_host_comes_up_on_the_next(centre: DataCentre) -> None:
    await centre.declare_vm("vm-next", host_id="host-2")
    await centre.program("host-2", {"verb": "createVm", "outcome": "never_up", "error": "no bootable device"})
    job = await centre.run("RunVm", {"vm_id": "vm-next"})
    assert_all_finished([job])
    assert attempts(job) == [("host-2", FAILED), ("host-1", FINISHED)]
    assert await vm_states(centre, "vm-next") == {"host-1": "UP"}
    vm = await centre.entity(VM, "vm-next")
    assert vm is not None
    assert (vm.observed.state, vm.observed.host_id) == ("UP", "host-1")
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §7: RunVm: at most 3")
async def test_a_vm_that_fails_on_three_hosts_has_failed_and_is_on_none(centre: DataCentre) -> None:
    await centre.declare_vm("vm-never")
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": "createVm", "outcome": "never_up", "error": "no bootable device"})
    job = await centre.run("RunVm", {"vm_id": "vm-never", "host_id": "host-3"})
    assert job.status == FAILED
    assert outline(job)[2:] == [("START_VM", "FAILED")] * 3 + [("FINALIZATION", "FINISHED")]
    assert attempts(job)[0] == ("host-3", FAILED)
    assert await vm_states(centre, "vm-never") == {}
    await assert_all_over(centre, [job])


async def test_vms_that_come_at_once_are_spread_over_the_hosts(centre: DataCentre) -> None:
    vm_ids = [f"vm-many-{number}" for number in range(6)]
    for vm_id in vm_ids:
        await centre.declare_vm(vm_id)
    jobs = [await centre.client.run_command("RunVm", {"vm_id": vm_id}) for vm_id in vm_ids]
    jobs = [await centre.ended(job) for job in jobs]
    assert_all_finished(jobs)
    hosts = [host_id for vm_id in vm_ids for host_id in await vm_states(centre, vm_id)]
    assert {hosts.count(host_id) for host_id in centre.hosts} <= {1, 2, 3}
