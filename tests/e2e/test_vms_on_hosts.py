"""Three hosts and their VMs: where these are started, how they are moved, how hosts come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.e2e.datacentre import (
    DISK,
    FAILED,
    FINISHED,
    HOST,
    STARTED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    data_centre,
    outline,
    reason_of,
    steps_of,
)

from waybill.v1.jobs_pb2 import Job, Step
from waybill_client import HostClient
from waybill_client.words import plain, status_word

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


# --- migrations ------------------------------------------------------------------------------------------------------


async def start(centre: DataCentre, vm_id: str, host_id: str) -> None:
    """Has a VM up on a host."""
    await centre.declare_vm(vm_id)
    assert_all_finished([await centre.run("RunVm", {"vm_id": vm_id, "host_id": host_id})])


async def seen(centre: DataCentre, vm_id: str) -> tuple[str, str]:
    """What the store says of a VM: its state and its host."""
    vm = await centre.entity(VM, vm_id)
    assert vm is not None
    return vm.observed.state, vm.observed.host_id


@pytest.mark.rule("semantics §7: MigrateVm: V; X → MIGRATE_VM: up on the destination")
async def test_a_migrated_vm_is_up_on_its_destination_and_nowhere_else(centre: DataCentre) -> None:
    await start(centre, "vm-mig", "host-1")
    job = await centre.run("MigrateVm", {"vm_id": "vm-mig", "host_id": "host-3"})
    assert_all_finished([job])
    assert outline(job)[2:] == [("MIGRATE_VM", "FINISHED"), ("FINALIZATION", "FINISHED")]
    await centre.until(lambda: is_only_on(centre, "vm-mig", "host-3"))
    await centre.until_rest()
    assert await seen(centre, "vm-mig") == ("UP", "host-3")  # whatever the source said, and when
    assert await centre.effects("vm-mig") == {"createVm": 1, "migrateVm": 1, "receiveVm": 1}
    await assert_all_over(centre, [job])


async def is_only_on(centre: DataCentre, vm_id: str, host_id: str) -> bool:
    return await vm_states(centre, vm_id) == {host_id: "UP"}


@pytest.mark.rule("semantics §7: MigrateVm: back on the source → another destination")
async def test_a_vm_that_comes_back_is_sent_to_another_host(centre: DataCentre) -> None:
    await start(centre, "vm-back", "host-1")
    await centre.program("host-2", {"verb": "receiveVm", "outcome": "fail", "error": "no room", "count": 1})
    job = await centre.run("MigrateVm", {"vm_id": "vm-back", "host_id": "host-2"})
    assert_all_finished([job])
    assert [status_word(step.status) for step in steps_of(job, "MIGRATE_VM")] == ["FAILED", "FINISHED"]
    assert "no room" in steps_of(job, "MIGRATE_VM")[0].error.message
    await centre.until(lambda: is_only_on(centre, "vm-back", "host-3"))
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §7: MigrateVm: Lock held to the end")
async def test_a_vm_that_migrates_is_nobody_elses_until_it_is_there(centre: DataCentre) -> None:
    await start(centre, "vm-held", "host-1")
    await centre.program("host-1", {"verb": "migrateVm", "work_ms": 2000})
    job = await centre.client.run_command("MigrateVm", {"vm_id": "vm-held", "host_id": "host-3"})
    refused = await centre.run("StopVm", {"vm_id": "vm-held"})
    assert (refused.status, reason_of(refused)) == (FAILED, "LOCKED")
    assert job.job_id in refused.error.message
    assert_all_finished([await centre.ended(job), await centre.run("StopVm", {"vm_id": "vm-held"})])


async def test_a_vm_that_nobody_takes_stays_where_it_is(centre: DataCentre) -> None:
    await start(centre, "vm-stays", "host-1")
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": "receiveVm", "outcome": "fail", "error": "no room"})
    job = await centre.run("MigrateVm", {"vm_id": "vm-stays"})
    assert job.status == FAILED
    assert [status_word(step.status) for step in steps_of(job, "MIGRATE_VM")] == ["FAILED", "FAILED"]
    assert await vm_states(centre, "vm-stays") == {"host-1": "UP"}
    assert await seen(centre, "vm-stays") == ("UP", "host-1")
    await assert_all_over(centre, [job])


async def test_a_migration_survives_its_coordinator_and_its_source(centre: DataCentre) -> None:
    await start(centre, "vm-hard", "host-2")
    job = await centre.client.run_command("MigrateVm", {"vm_id": "vm-hard", "host_id": "host-3"})
    await centre.stack.kill(centre.stack.coordinators[0])
    await centre.stack.kill(centre.stack.hosts[1])
    job = await centre.ended(job)
    assert_all_finished([job])
    await centre.until(lambda: is_only_on(centre, "vm-hard", "host-3"))
    assert (await centre.effects("vm-hard"))["receiveVm"] == 1
    await assert_all_over(centre, [job])


# --- maintenance -----------------------------------------------------------------------------------------------------


async def host_status(centre: DataCentre, host_id: str) -> tuple[str, str]:
    """What is declared of a host, and what it was seen in."""
    host = await centre.entity(HOST, host_id)
    assert host is not None
    return host.status, host.observed.state


async def activate(centre: DataCentre, *host_ids: str) -> None:
    """Has hosts in service again."""
    for host_id in host_ids:
        job = await centre.run("ActivateVds", {"host_id": host_id})
        assert_all_finished([job])
        assert outline(job)[2:] == [("ACTIVATE_HOST", "FINISHED"), ("FINALIZATION", "FINISHED")]
        assert await host_status(centre, host_id) == ("OK", "UP")


def tree(job: Job) -> list[tuple[str, str, str, str]]:
    """Type, parent's type, subject and status of every step below EXECUTION."""
    types = {step.step_id: step for step in job.steps}
    return [
        (s.step_type, _type_of(types, s), _subject(s), status_word(s.status)) for s in job.steps if s.parent_step_id
    ]


def _type_of(steps: dict[str, Step], step: Step) -> str:
    return steps[step.parent_step_id].step_type


def _subject(step: Step) -> str:
    return step.subjects[0].entity_id if step.subjects else ""


@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: one job, one branch per host, a result per VM")
async def test_hosts_are_emptied_and_seen_in_maintenance(centre: DataCentre) -> None:
    for vm_id, host_id in (("vm-a1", "host-1"), ("vm-a2", "host-1"), ("vm-b1", "host-2")):
        await start(centre, vm_id, host_id)
    on_1, on_2 = await vms_on(centre, "host-1"), await vms_on(centre, "host-2")
    job = await centre.run("MaintenanceNumberOfVds", {"host_ids": ["host-1", "host-2"]})
    assert_all_finished([job])
    assert tree(job) == [
        ("PREPARE_FOR_MAINTENANCE", "EXECUTION", "host-1", "FINISHED"),
        ("MAINTENANCE_HOST", "EXECUTION", "host-1", "FINISHED"),
        *(("MIGRATE_VM", "MAINTENANCE_HOST", vm_id, "FINISHED") for vm_id in on_1),
        ("DISCONNECT_FROM_STORAGE", "MAINTENANCE_HOST", "", "FINISHED"),
        ("MAINTENANCE_HOST", "EXECUTION", "host-2", "FINISHED"),
        *(("MIGRATE_VM", "MAINTENANCE_HOST", vm_id, "FINISHED") for vm_id in on_2),
        ("DISCONNECT_FROM_STORAGE", "MAINTENANCE_HOST", "", "FINISHED"),
    ]
    assert {"vm-a1", "vm-a2"} <= set(on_1)
    for host_id in ("host-1", "host-2"):
        assert await host_status(centre, host_id) == ("MAINTENANCE", "MAINTENANCE")
    for vm_id in (*on_1, *on_2):
        assert await seen(centre, vm_id) == ("UP", "host-3")
    refused = await centre.run("MaintenanceVds", {"host_id": "host-3"})
    assert (refused.status, reason_of(refused)) == (FAILED, "NO_HOST")
    await assert_all_over(centre, [job, refused])
    await activate(centre, "host-1", "host-2")


async def vms_on(centre: DataCentre, host_id: str) -> list[str]:
    """The VMs that the store says are on a host, by id."""
    found = centre.client.list_entities(VM, f'host = "{host_id}" AND state != "DOWN"')
    return [vm.entity_id async for vm in found]


@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: a host that turns non-operational fails its branch")
@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: the other branches stay true")
async def test_a_host_that_turns_non_operational_fails_its_branch_alone(centre: DataCentre) -> None:
    await start(centre, "vm-c1", "host-1")
    await start(centre, "vm-d1", "host-2")
    await centre.hosts["host-2"].call("simHostState", {"state": "NON_OPERATIONAL", "error": "no network"})
    await centre.program("host-2", {"verb": "migrateVm", "work_ms": 0})
    job = await centre.run("MaintenanceNumberOfVds", {"host_ids": ["host-1", "host-2"]})
    assert job.status == FAILED
    branches = {_subject(step): status_word(step.status) for step in steps_of(job, "MAINTENANCE_HOST")}
    assert branches == {"host-1": "FINISHED", "host-2": "FAILED"}
    assert await host_status(centre, "host-1") == ("MAINTENANCE", "MAINTENANCE")
    assert await host_status(centre, "host-2") == ("OK", "NON_OPERATIONAL")
    await assert_all_over(centre, [job])
    await activate(centre, "host-1", "host-2")


@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: refused: host with running tasks (named)")
async def test_a_host_that_works_is_not_taken_out_of_service(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "createVolume", "work_ms": 2000})
    parameters = {"disk_id": "disk-slow", "size_mb": 1, "host_id": "host-1"}
    adding = await centre.client.run_command("AddDisk", parameters)
    [task] = await centre.until_running(adding)
    job = await centre.run("MaintenanceVds", {"host_id": "host-1"})
    assert (job.status, reason_of(job)) == (FAILED, "HOST_HAS_TASKS")
    assert "createVolume" in job.error.message
    assert task.spec.task_id in job.error.message
    assert await host_status(centre, "host-1") == ("OK", "UP")
    assert_all_finished([await centre.ended(adding)])


@pytest.mark.rule("semantics §7: `ActivateVds`: V; X → ACTIVATE_HOST; ends: host UP seen")
async def test_a_host_alone_in_maintenance_shows_itself(centre: DataCentre) -> None:
    job = await centre.run("MaintenanceVds", {"host_id": "host-1"})
    assert_all_finished([job])
    assert tree(job)[0][:2] == ("MAINTENANCE_HOST", "EXECUTION")
    await centre.stack.kill(centre.stack.coordinators[0])
    await activate(centre, "host-1")


@pytest.mark.rule("semantics §2: Every flow goes on, in whichever coordinator claims it")
async def test_a_maintenance_goes_on_when_its_coordinator_was_killed(centre: DataCentre) -> None:
    await start(centre, "vm-e1", "host-2")
    await centre.program("host-2", {"verb": "migrateVm", "work_ms": 300}, {"verb": "enterMaintenance", "work_ms": 300})
    on_2 = await vms_on(centre, "host-2")
    job = await centre.client.run_command("MaintenanceNumberOfVds", {"host_ids": ["host-2"]})
    planned = await centre.client.get_job(job.job_id)
    assert len(steps_of(planned, "MIGRATE_VM")) == len(on_2)  # shown before they are over
    await centre.stack.kill(centre.stack.coordinators[0])
    job = await centre.ended(job)
    assert_all_finished([job])
    assert await host_status(centre, "host-2") == ("MAINTENANCE", "MAINTENANCE")
    assert await vms_on(centre, "host-2") == []
    await assert_all_over(centre, [job])
    await activate(centre, "host-2")


# --- new hosts -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §7: AddVds: when the install ends")
async def test_a_host_is_added_while_its_caller_goes_on(centre: DataCentre) -> None:
    host = centre.stack._host(4)
    await host.start()
    try:
        job = await centre.client.run_command("AddVds", {"host_id": "host-4", "name": "four", "address": host.address})
        assert status_word(job.status) == "STARTED"
        job = await centre.ended(job)
        assert_all_finished([job])
        assert outline(job)[2:] == [
            ("TEST_POWER_MANAGEMENT", "FINISHED"),
            ("INSTALLING_HOST", "FINISHED"),
            ("FINALIZATION", "FINISHED"),
        ]
        assert (await host_status(centre, "host-4"))[0] == "OK"
        await assert_all_over(centre, [])
    finally:
        await host.stop()


@pytest.mark.rule(
    "semantics §7: AddVds: install fails → host INSTALL_FAILED stays, job FAILED; failing earlier → host undone"
)
@pytest.mark.parametrize(("verb", "left"), [("installHost", "INSTALL_FAILED"), ("fenceStatus", "")])
async def test_a_host_that_cannot_be_added(centre: DataCentre, verb: str, left: str) -> None:
    host_id = f"host-{5 if left else 6}"
    host = centre.stack._host(int(host_id[-1]))
    await host.start()
    try:
        async with HostClient(host.address, wait_for_ready=True) as agent:
            await agent.program([{"verb": verb, "outcome": "fail", "error": "no power"}])
        job = await centre.run("AddVds", {"host_id": host_id, "address": host.address})
        assert job.status == FAILED
        assert "no power" in job.error.message
        entity = await centre.entity(HOST, host_id)
        assert (entity.status if entity else "") == left
        await centre.until(lambda: is_cleared(centre, job))
        await assert_all_over(centre, [])
    finally:
        await host.stop()


async def is_cleared(centre: DataCentre, job: Job) -> bool:
    return all(task.cleared for task in await centre.host_tasks(job))


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §7: RemoveDisk: V; X → DELETE_IMAGE; F")
async def test_a_removed_disk_is_gone_and_its_vm_stays_without_it(centre: DataCentre) -> None:
    disk_ids = await centre.furnish("vm-keeps", disks=3)
    job = await centre.run("RemoveDisk", {"disk_id": disk_ids[1]})
    assert_all_finished([job])
    assert outline(job)[2:] == [("DELETE_IMAGE", "FINISHED"), ("FINALIZATION", "FINISHED")]
    commands = [each.command_type async for each in centre.client.list_commands(job.flow_command_id)]
    assert commands == ["RemoveDisk"]  # by entity: its child has no row
    [task] = await centre.host_tasks(job)
    assert task.entity.entity_id == disk_ids[1]
    assert await centre.entity(DISK, disk_ids[1]) is None
    assert await centre.volume_state(disk_ids[1]) == "GONE"
    vm = await centre.entity(VM, "vm-keeps")
    assert vm is not None
    assert set(plain(vm.declared)["disk_ids"]) == {disk_ids[0], disk_ids[2]}
    await assert_all_over(centre, [job])


@pytest.mark.rule("semantics §2: the same child class (RemoveImage) works under both")
async def test_a_disk_whose_image_stays_is_illegal_and_still_its_vms(centre: DataCentre) -> None:
    [disk_id] = await centre.furnish("vm-stuck", disks=1)
    await centre.program("host-1", {"verb": "deleteImage", "outcome": "fail", "error": "the disk is broken"})
    job = await centre.run("RemoveDisk", {"disk_id": disk_id})
    assert job.status == FAILED
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    assert disk.status == "ILLEGAL"
    [event] = await centre.events(job, "DISK_ILLEGAL")
    assert disk_id in event.message
    await assert_all_over(centre, [job])


async def test_a_removal_of_a_disk_survives_its_coordinator(centre: DataCentre) -> None:
    [disk_id] = await centre.furnish("vm-crash", disks=1)
    await centre.program("host-1", {"verb": "deleteImage", "work_ms": 500})
    job = await centre.client.run_command("RemoveDisk", {"disk_id": disk_id})
    await centre.stack.kill(centre.stack.coordinators[0])
    assert_all_finished([await centre.ended(job)])
    assert await centre.entity(DISK, disk_id) is None
    assert (await centre.effects(disk_id))["deleteImage"] == 1


@pytest.mark.rule("semantics §5: refusal names the holder's job and reason")
async def test_of_two_removals_of_a_disk_the_second_is_refused(centre: DataCentre) -> None:
    [disk_id] = await centre.furnish("vm-twice", disks=1)
    await centre.program("host-1", {"verb": "deleteImage", "work_ms": 2000})
    first = await centre.client.run_command("RemoveDisk", {"disk_id": disk_id})
    second = await centre.run("RemoveDisk", {"disk_id": disk_id})
    assert (second.status, reason_of(second)) == (FAILED, "LOCKED")
    assert disk_id in second.error.message
    assert first.job_id in second.error.message
    assert_all_finished([await centre.ended(first)])


@pytest.mark.rule("semantics §2: Never is another flow's task on the same entity waited for")
@pytest.mark.parametrize("command_type", ["RemoveDisk", "RemoveVm"])  # by entity, by flow
async def test_who_removes_a_disk_waits_for_no_other_flows_task_on_it(centre: DataCentre, command_type: str) -> None:
    vm_id = f"vm-shared-{command_type}"
    [disk_id] = await centre.furnish(vm_id, disks=1)
    await centre.program("host-1", {"verb": "simWork", "outcome": "hang"})
    other = await centre.client.run_command("BenchTouch", {"host_id": "host-1", "disk_id": disk_id})
    await centre.until_running(other)
    [running] = await centre.host_tasks(other)
    assert running.entity.entity_id == disk_id
    job = await centre.run(command_type, {"disk_id": disk_id} if command_type == "RemoveDisk" else {"vm_id": vm_id})
    assert_all_finished([job])
    assert await centre.volume_state(disk_id) == "GONE"
    assert (await centre.client.get_job(other.job_id)).status == STARTED
    assert [task.spec.task_id for task in await centre.tasks_on_hosts(other)] == [running.task_id]
    await centre.client.cancel_job(other.job_id)
    await assert_all_over(centre, [job, await centre.ended(other)])
