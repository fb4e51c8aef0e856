"""What the commands on hosts, and those that move VMs between them, plan and note, on a world made of a dictionary."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.test_commands import Places, a_failure, a_world, an_entity, calls_in, refusal

from coordinator.commands.activate_vds import ActivateVds
from coordinator.commands.add_vds import AddVds
from coordinator.commands.base import Registry
from coordinator.commands.install_vds import InstallVds
from coordinator.commands.maintenance_number_of_vds import MaintenanceNumberOfVds
from coordinator.commands.maintenance_vds import MaintenanceVds
from coordinator.commands.migrate_vm import MigrateVm
from coordinator.plan import Call, Change, Child, Concurrently, Instead, Observation, Plan, Serially, Task, WaitFor
from coordinator.world import Entity, World

RUNNING = an_entity("VM", "vm-1", state="UP", seen_on="h-1")
SECOND = an_entity("VM", "vm-2", state="UP", seen_on="h-1")
HOSTS = [an_entity("HOST", f"h-{i}", state="UP", address=f"10.0.0.{i}:1") for i in (1, 2, 3, 4, 5)]


def changed(world: World) -> dict[str, str | None]:
    """The status that was noted of each entity; None where it is gone."""
    return {str(change.entity): None if change.remove else change.status for change in world.notes.changes}


def a_host(host_id: str, status: str) -> Entity:
    host = an_entity("HOST", host_id, state="UP")
    return Entity(host.ref, host.name, status, host.declared, host.observed, host.version)


# --- MigrateVm -------------------------------------------------------------------------------------------------------


def destination_of(plan: Plan) -> str:
    assert isinstance(plan, Serially)
    call = plan.plans[0]
    assert isinstance(call, Call)
    return str(call.arguments["destination"])


async def test_a_vm_is_told_where_to_go_by_its_own_host_and_seen_up_there() -> None:
    plan = await MigrateVm(vm_id="vm-1").execute(a_world(RUNNING, *HOSTS))
    assert isinstance(plan, Serially)
    call, wait = plan.plans
    assert isinstance(call, Call)
    assert (call.host_id, call.arguments["destination"]) == ("h-1", "h-2")
    assert call.arguments["destination_address"] == "10.0.0.2:1"
    assert isinstance(wait, WaitFor)
    assert wait.until.holds(Observation("UP", "h-2"))
    assert wait.fails_if.holds(Observation("UP", "h-1"))
    for on_its_way in (Observation("MIGRATING", "h-1"), Observation("DOWN", "h-1")):
        assert not wait.until.holds(on_its_way)
        assert not wait.fails_if.holds(on_its_way)


@pytest.mark.rule("semantics §7: MigrateVm: back on the source → another destination")
async def test_a_vm_that_is_back_goes_elsewhere_to_three_hosts_at_most() -> None:
    world, command = a_world(RUNNING, *HOSTS), MigrateVm(vm_id="vm-1", host_id="h-3")
    plans = [await command.execute(world)]
    for _ in range(2):
        again = await command.after_failure(world, a_failure(*plans))
        assert isinstance(again, Instead)
        plans.append(again.plan)
    assert [destination_of(plan) for plan in plans] == ["h-3", "h-2", "h-4"]
    assert await command.after_failure(world, a_failure(*plans)) is None


@pytest.mark.parametrize("state", ["MIGRATING", "DOWN"])
async def test_a_vm_that_is_not_back_is_not_sent_again(state: str) -> None:
    command = MigrateVm(vm_id="vm-1")
    plan = await command.execute(a_world(RUNNING, *HOSTS))
    elsewhere = a_world(an_entity("VM", "vm-1", state=state, seen_on="h-1"), *HOSTS)
    assert await command.after_failure(elsewhere, a_failure(plan)) is None


@pytest.mark.parametrize(
    ("reason", "vm", "host_id"),
    [
        ("VM_IS_NOT_UP", an_entity("VM", "vm-1", state="DOWN"), None),
        ("VM_IS_THERE", RUNNING, "h-1"),
        ("NO_HOST", RUNNING, "h-9"),
    ],
)
async def test_what_cannot_be_migrated_is_refused(reason: str, vm: Entity, host_id: str | None) -> None:
    away = an_entity("HOST", "h-9", state="UNREACHABLE")
    assert (await refusal(MigrateVm(vm_id="vm-1", host_id=host_id), a_world(vm, away, *HOSTS))).reason == reason


# --- maintenance -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §7: MaintenanceVds: child of the above, or alone")
async def test_a_host_is_emptied_disconnected_and_seen_in_maintenance() -> None:
    world = a_world(RUNNING, SECOND, *HOSTS)
    plan = await MaintenanceVds(host_id="h-1").execute(world)
    assert isinstance(plan, Serially)
    assert plan.step == "MAINTENANCE_HOST"
    migrations, *calls, wait = plan.plans
    assert isinstance(migrations, Concurrently)
    assert [(child.step, child.subjects) for child in migrations.plans] == [
        ("MIGRATE_VM", (RUNNING.ref,)),
        ("MIGRATE_VM", (SECOND.ref,)),
    ]
    assert [calls_in(call) for call in calls] == [[("h-1", "disconnectStorage")], [("h-1", "enterMaintenance")]]
    assert isinstance(wait, WaitFor)
    assert wait.fails_if.holds(Observation("NON_OPERATIONAL", "h-1"))
    assert changed(world) == {"HOST/h-1": "PREPARING_FOR_MAINTENANCE"}


async def test_vms_of_hosts_that_go_together_go_to_none_of_them() -> None:
    plan = await MaintenanceVds(host_id="h-1", excluded_host_ids=("h-1", "h-2")).execute(a_world(RUNNING, *HOSTS))
    assert isinstance(plan, Serially)
    assert isinstance(plan.plans[0], Concurrently)
    [child] = plan.plans[0].plans
    assert isinstance(child, Child)
    migrate = Registry.load().find("MigrateVm").read(1, child.parameters)
    assert destination_of(await migrate.execute(a_world(RUNNING, *HOSTS))) == "h-3"


async def test_each_host_has_a_branch_after_all_were_prepared() -> None:
    world = a_world(RUNNING, *HOSTS)
    plan = await MaintenanceNumberOfVds(host_ids=("h-1", "h-2", "h-1")).execute(world)
    assert isinstance(plan, Serially)
    prepare, branches = plan.plans
    assert prepare.step == "PREPARE_FOR_MAINTENANCE"
    assert isinstance(prepare, Concurrently)
    assert all(isinstance(part, Change) for part in prepare.plans)
    assert isinstance(branches, Concurrently)
    assert [(child.step, child.subjects[0].entity_id) for child in branches.plans] == [
        ("MAINTENANCE_HOST", "h-1"),
        ("MAINTENANCE_HOST", "h-2"),
    ]


async def test_what_failed_is_taken_back_and_what_is_in_maintenance_stays() -> None:
    world = a_world(a_host("h-1", "MAINTENANCE"), a_host("h-2", "PREPARING_FOR_MAINTENANCE"), guard_reads=False)
    await MaintenanceNumberOfVds(host_ids=("h-1", "h-2")).end_with_failure(world)
    assert changed(world) == {"HOST/h-2": "OK"}


@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: the other branches stay true")
async def test_a_host_that_is_seen_in_maintenance_is_in_maintenance_whatever_became_of_its_vms() -> None:
    host = an_entity("HOST", "h-1", state="MAINTENANCE")
    there = Entity(host.ref, host.name, "PREPARING_FOR_MAINTENANCE", host.declared, host.observed, host.version)
    world = a_world(there, guard_reads=False)
    await MaintenanceVds(host_id="h-1").end_with_failure(world)
    assert changed(world) == {"HOST/h-1": "MAINTENANCE"}


async def test_a_migration_hangs_on_the_host_that_the_vm_leaves() -> None:
    plan = await MigrateVm(vm_id="vm-1").execute(a_world(RUNNING, *HOSTS))
    assert isinstance(plan, Serially)
    wait = plan.plans[1]
    assert isinstance(wait, WaitFor)
    assert str(wait.beside) == "HOST/h-1"
    assert wait.gives_up_if.holds(Observation("MAINTENANCE", "h-1"))
    assert not wait.gives_up_if.holds(Observation("UP", "h-1"))


@pytest.mark.rule(
    "semantics §7: MaintenanceNumberOfVds: Refused: no host to take the VMs, host with running tasks (named)"
)
async def test_a_host_that_is_busy_or_whose_vms_nobody_takes_is_not_taken_out_of_service() -> None:
    everybody = MaintenanceNumberOfVds(host_ids=tuple(host.ref.entity_id for host in HOSTS))
    error = await refusal(everybody, a_world(RUNNING, *HOSTS))
    assert (error.reason, "name of vm-1" in error.message) == ("NO_HOST", True)
    busy = a_world(RUNNING, *HOSTS)
    assert isinstance(busy._places, Places)
    busy._places.tasks["h-2"] = ["copyImage (t-1)"]
    error = await refusal(MaintenanceNumberOfVds(host_ids=("h-1", "h-2")), busy)
    assert (error.reason, "copyImage (t-1)" in error.message) == ("HOST_HAS_TASKS", True)
    again = await refusal(MaintenanceVds(host_id="h-1"), a_world(a_host("h-1", "MAINTENANCE")))
    assert again.reason == "HOST_IN_MAINTENANCE"


async def test_hosts_without_vms_may_all_go() -> None:
    await MaintenanceNumberOfVds(host_ids=("h-1", "h-2")).validate(a_world(*HOSTS[:2]))


# --- hosts that come -------------------------------------------------------------------------------------------------


async def test_an_activated_host_is_seen_up() -> None:
    world = a_world(a_host("h-1", "MAINTENANCE"))
    plan = await ActivateVds(host_id="h-1").execute(world)
    assert isinstance(plan, Serially)
    assert plan.step == "ACTIVATE_HOST"
    assert isinstance(plan.plans[-1], WaitFor)
    assert changed(world) == {"HOST/h-1": "ACTIVATING"}


@pytest.mark.rule("semantics §7: AddVds: It is child InstallVds, after the call has returned.")
async def test_a_new_host_is_tested_before_it_is_installed() -> None:
    world = a_world()
    plan = await AddVds(host_id="h-9", address="10.0.0.9:1").execute(world)
    assert isinstance(plan, Serially)
    test, install = plan.plans
    assert (test.step, install.step) == ("TEST_POWER_MANAGEMENT", "INSTALLING_HOST")
    assert isinstance(install, Child)
    assert install.command_type == "InstallVds"
    assert changed(world) == {"HOST/h-9": "INSTALLING"}


@pytest.mark.parametrize(("status", "left"), [("INSTALLING", {"HOST/h-9": None}), ("INSTALL_FAILED", {})])
async def test_a_host_that_fails_is_undone_unless_it_was_the_install(status: str, left: dict[str, Any]) -> None:
    world = a_world(a_host("h-9", status), guard_reads=False)
    await AddVds(host_id="h-9", address="10.0.0.9:1").end_with_failure(world)
    assert changed(world) == left


@pytest.mark.rule("semantics §7: InstallVds: as a child: INSTALLING_HOST; alone: own job; ends: task on the host")
async def test_an_install_shows_itself_alone_and_is_shown_by_who_has_it_as_a_child() -> None:
    alone = await InstallVds(host_id="h-1").execute(a_world(*HOSTS))
    child = await InstallVds(host_id="h-1", shown_by_parent=True).execute(a_world(*HOSTS))
    assert isinstance(alone, Task)
    assert (alone.verb, alone.step, child.step) == ("installHost", "INSTALLING_HOST", "")


@pytest.mark.parametrize("address", ["nowhere", "a b:1", "h:port", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(Exception, match="address"):
        Registry.load().find("AddVds").read(1, {"host_id": "h-9", "address": address})
