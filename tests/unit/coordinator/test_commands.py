"""What each command plans and notes, on a world made of a dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from chassis.errors import WaybillError
from coordinator.commands.add_disk import AddDisk
from coordinator.commands.base import Command, CommandType, EntityId, Registry, command, exclusive
from coordinator.commands.remove_all_vm_images import RemoveAllVmImages
from coordinator.commands.remove_image import RemoveImage
from coordinator.commands.remove_vm import RemoveVm
from coordinator.commands.run_vm import RunVm
from coordinator.commands.stop_vm import StopVm
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import (
    Call,
    Child,
    Cleanup,
    Concurrently,
    EntityRef,
    Instead,
    Nothing,
    Observation,
    Plan,
    Serially,
    Task,
    WaitFor,
)
from coordinator.rows import Cancel, Failure, LockKey, Severity
from coordinator.world import Entity, Reading, World


def an_entity(kind: str, entity_id: str, state: str = "", seen_on: str = "", **declared: Any) -> Entity:
    observed = Observation(state=state, host_id=seen_on)
    return Entity(EntityRef(kind, entity_id), f"name of {entity_id}", "OK", declared, observed, version=3)


class Places:
    """Which VMs are where."""

    def __init__(self, *vms: Entity) -> None:
        self._vms = vms
        self.chosen: list[str] = []
        self.tasks: dict[str, list[str]] = {}

    async def vms_on(self, host_id: str) -> list[Entity]:
        return [vm for vm in self._vms if vm.observed.host_id == host_id and vm.observed.state != "DOWN"]

    async def tasks_on(self, host_id: str) -> list[str]:
        return self.tasks.get(host_id, [])

    async def loads(self) -> Counter[str]:
        return Counter([vm.observed.host_id for vm in self._vms] + self.chosen)

    def given(self, host_id: str) -> None:
        self.chosen.append(host_id)


def a_world(*entities: Entity, guard_reads: bool = True) -> World:
    known = {entity.ref: entity for entity in entities}

    async def read(refs: Sequence[EntityRef]) -> list[Entity]:
        return [known.get(ref, Entity(ref)) for ref in refs]

    hosts = [entity for entity in entities if entity.ref.entity_type == "HOST"]
    vms = [entity for entity in entities if entity.ref.entity_type == "VM"]
    return World(Reading(read), lambda: hosts, guard_reads=guard_reads, places=Places(*vms))


def a_failure(*plans: Plan, reason: str = "TASK_FAILED", done: Iterable[str] = (), **fields: Any) -> FailedAttempt:
    return FailedAttempt(Failure(9, reason, "it failed"), plans, done=frozenset(done), **fields)


def calls_in(plan: Plan) -> list[tuple[str, str]]:
    """Host and verb of every call and task, in order."""
    if isinstance(plan, Serially | Concurrently):
        return [each for part in plan.plans for each in calls_in(part)]
    return [(plan.host_id, plan.verb)] if isinstance(plan, Call | Task) else []


async def refusal(tried: Command, world: World) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        await tried.validate(world)
    return caught.value


VM = an_entity("VM", "vm-1", disk_ids=["d-1", "d-2"], host_id="h-2", memory_mb=2048)
DISKS = [an_entity("DISK", f"d-{i}", host_id=f"h-{i}", volume_id=f"d-{i}") for i in (1, 2)]
HOSTS = [an_entity("HOST", f"h-{i}", state="UP") for i in (1, 2)]
RUNNING = an_entity("VM", "vm-1", state="UP", seen_on="h-1", disk_ids=[])


async def test_remove_vm_has_its_images_removed_by_a_child() -> None:
    plan = await RemoveVm(vm_id="vm-1").execute(a_world(VM))
    assert isinstance(plan, Child)
    assert (plan.command_type, plan.parameters) == ("RemoveAllVmImages", {"vm_id": "vm-1"})


async def test_a_vm_without_disks_needs_no_work() -> None:
    assert isinstance(await RemoveVm(vm_id="vm-1").execute(a_world(RUNNING)), Nothing)


async def test_a_running_vm_is_not_removed() -> None:
    error = await refusal(RemoveVm(vm_id="vm-1"), a_world(RUNNING))
    assert error.reason == "VM_IS_RUNNING"
    assert "h-1" in error.message


async def test_an_unknown_vm_is_named() -> None:
    error = await refusal(RemoveVm(vm_id="vm-9"), a_world())
    assert (error.reason, error.metadata["entity_id"]) == ("ENTITY_NOT_FOUND", "vm-9")


async def test_all_images_are_removed_at_once_each_under_its_own_step() -> None:
    plan = await RemoveAllVmImages(vm_id="vm-1").execute(a_world(VM, *DISKS))
    assert isinstance(plan, Concurrently)
    assert [(child.step, child.subjects) for child in plan.plans] == [
        ("DELETE_IMAGE", (DISKS[0].ref,)),
        ("DELETE_IMAGE", (DISKS[1].ref,)),
    ]


async def test_an_image_is_removed_on_the_host_that_has_it() -> None:
    plan = await RemoveImage(disk_id="d-2").execute(a_world(*DISKS))
    assert isinstance(plan, Task)
    assert (plan.host_id, plan.verb, plan.arguments) == ("h-2", "deleteImage", {"volume_id": "d-2"})


async def test_an_image_of_no_disk_counts_as_removed() -> None:
    assert isinstance(await RemoveImage(disk_id="d-9").execute(a_world()), Nothing)


async def test_a_disk_whose_image_stayed_is_illegal_and_an_event_names_its_ids() -> None:
    world = a_world(*DISKS, guard_reads=False)
    await RemoveImage(disk_id="d-1").end_with_failure(world)
    (change,) = world.notes.changes
    assert (change.entity, change.status) == (DISKS[0].ref, "ILLEGAL")
    (event,) = world.notes.events
    assert event.severity is Severity.ERROR
    assert "d-1" in event.message
    assert "h-1" in event.message


async def test_the_vm_is_gone_whatever_became_of_its_images() -> None:
    for end in (RemoveVm(vm_id="vm-1").end_successfully, RemoveVm(vm_id="vm-1").end_with_failure):
        world = a_world(VM, guard_reads=False)
        await end(world)
        assert [(change.entity, change.remove) for change in world.notes.changes] == [(VM.ref, True)]
        assert world.notes.read_versions == {VM.ref: 3}


@pytest.mark.rule("semantics §2: `execute` notes entity changes and returns a plan that says all that it wants done")
async def test_add_disk_notes_a_locked_disk_before_its_volume_is_made() -> None:
    world = a_world(HOSTS[0])
    plan = await AddDisk(disk_id="d-9", size_mb=10, host_id="h-1").execute(world)
    assert isinstance(plan, Task)
    assert plan.arguments == {"volume_id": "d-9", "size_mb": 10}
    (change,) = world.notes.changes
    assert (change.status, change.former) == ("LOCKED", None)
    assert world.notes.read_versions[EntityRef("DISK", "d-9")] == 0


async def test_add_disk_attaches_the_disk_to_its_vm_at_the_end() -> None:
    world = a_world(VM, DISKS[0], an_entity("DISK", "d-9"), guard_reads=False)
    await AddDisk(disk_id="d-9", size_mb=10, host_id="h-1", vm_id="vm-1").end_successfully(world)
    disk, vm = world.notes.changes
    assert disk.status == "OK"
    assert vm.declared is not None
    assert vm.declared["disk_ids"] == ["d-1", "d-2", "d-9"]


async def test_a_disk_that_exists_is_not_added_again() -> None:
    error = await refusal(AddDisk(disk_id="d-1", size_mb=1, host_id="h-1"), a_world(*DISKS, *HOSTS))
    assert error.reason == "ENTITY_EXISTS"


async def test_run_vm_calls_its_host_and_waits_until_the_vm_is_up() -> None:
    plan = await RunVm(vm_id="vm-1").execute(a_world(VM, *HOSTS))
    assert isinstance(plan, Serially)
    start, wait = plan.plans
    assert isinstance(start, Call)
    assert isinstance(wait, WaitFor)
    assert (start.host_id, start.verb) == ("h-2", "createVm")
    assert wait.until.holds(Observation(state="UP", host_id="h-2"))
    assert not wait.until.holds(Observation(state="UP", host_id="h-1"))  # from a former life there


async def test_run_vm_takes_another_host_if_its_own_is_not_up() -> None:
    plan = await RunVm(vm_id="vm-1").execute(a_world(VM, HOSTS[0]))
    assert isinstance(plan, Serially)
    assert isinstance(plan.plans[0], Call)
    assert plan.plans[0].host_id == "h-1"


async def test_run_vm_is_refused_without_a_host_that_is_up() -> None:
    assert (await refusal(RunVm(vm_id="vm-1"), a_world(VM))).reason == "NO_HOST"


THREE_HOSTS = [an_entity("HOST", f"h-{i}", state="UP") for i in (1, 2, 3, 4)]


async def test_a_vm_that_fails_on_one_host_is_ended_there_before_it_is_started_on_the_next() -> None:
    world = a_world(VM, *THREE_HOSTS)
    first = await RunVm(vm_id="vm-1").execute(world)
    again = await RunVm(vm_id="vm-1").after_failure(world, a_failure(first))
    assert isinstance(again, Instead)
    assert calls_in(again.plan) == [("h-2", "destroyVm"), ("h-1", "createVm")]
    third = await RunVm(vm_id="vm-1").after_failure(world, a_failure(first, again.plan, done=["0"]))
    assert isinstance(third, Instead)
    assert calls_in(third.plan) == [("h-1", "destroyVm"), ("h-3", "createVm")]
    steps = [plan.plans[1].step for plan in (again.plan, third.plan) if isinstance(plan, Serially)]
    assert steps == ["START_VM", "START_VM"]


async def test_a_vm_is_tried_on_three_hosts_at_most_and_left_on_none() -> None:
    world = a_world(VM, *THREE_HOSTS)
    plans = [await RunVm(vm_id="vm-1", host_id="h-4").execute(world)]
    for _ in range(2):
        again = await RunVm(vm_id="vm-1").after_failure(world, a_failure(*plans, done=["0"]))
        assert isinstance(again, Instead)
        plans.append(again.plan)
    last = await RunVm(vm_id="vm-1").after_failure(world, a_failure(*plans, done=["0"]))
    assert isinstance(last, Cleanup)
    assert calls_in(last.plan) == [("h-2", "destroyVm")]
    assert calls_in(plans[0])[0] == ("h-4", "createVm")


async def test_a_vm_that_may_still_come_up_somewhere_is_started_nowhere_else() -> None:
    world = a_world(VM, *THREE_HOSTS)
    first = await RunVm(vm_id="vm-1").execute(world)
    assert await RunVm(vm_id="vm-1").after_failure(world, a_failure(first, first)) is None


async def test_a_vm_that_runs_already_is_not_ended() -> None:
    world = a_world(VM, *THREE_HOSTS)
    first = await RunVm(vm_id="vm-1").execute(world)
    assert await RunVm(vm_id="vm-1").after_failure(world, a_failure(first, reason="VM_IS_RUNNING")) is None


async def test_the_least_loaded_host_runs_the_next_vm_also_when_many_come_at_once() -> None:
    homeless = an_entity("VM", "vm-2")
    world = a_world(homeless, an_entity("VM", "vm-3", state="UP", seen_on="h-1"), *HOSTS)
    plans = [await RunVm(vm_id="vm-2").execute(world) for _ in range(3)]
    assert [calls_in(plan)[0][0] for plan in plans] == ["h-2", "h-1", "h-2"]


async def test_stop_vm_calls_the_host_where_the_vm_was_seen() -> None:
    plan = await StopVm(vm_id="vm-1").execute(a_world(RUNNING))
    assert isinstance(plan, Serially)
    assert isinstance(plan.plans[0], Call)
    assert plan.plans[0].host_id == "h-1"


async def test_stop_vm_of_a_vm_that_is_down_calls_no_host() -> None:
    assert isinstance(await StopVm(vm_id="vm-1").execute(a_world(VM)), Nothing)


async def test_reads_are_guarded_while_planning_and_changes_alone_while_ending() -> None:
    planning, ending = a_world(VM), a_world(VM, guard_reads=False)
    await planning.get("VM", "vm-1")
    await ending.get("VM", "vm-1")
    assert planning.notes.read_versions == {VM.ref: 3}
    assert ending.notes.read_versions == {}


async def test_a_second_reader_of_a_turn_sees_what_the_first_noted() -> None:
    world = a_world(VM)
    world.change(await world.get("VM", "vm-1"), disk_ids=[])
    assert (await world.get("VM", "vm-1")).declared["disk_ids"] == []


def test_a_description_says_the_names_of_its_subjects() -> None:
    kind = Registry.load().find("RemoveVm")
    assert kind.describe(RemoveVm(vm_id="vm-1"), lambda ref: "web") == "Removing VM web"
    assert kind.describe(RemoveVm(vm_id="vm-1"), lambda ref: "") == "Removing VM vm-1"


A_COMMAND_TYPE = "semantics §2: A command type has: a name, a parameter class, a description template, categories"


@pytest.mark.rule(A_COMMAND_TYPE)
def test_a_command_type_says_all_about_itself_where_it_is_registered() -> None:
    @command(
        "ResizeDisk",
        version=3,
        description="Resizing ${disk} to ${size_mb} MB",
        categories=["storage", "slow"],
        monitored=False,
        by_entity=True,
        cancel=Cancel.BEFORE_START,
    )
    class ResizeDisk(Command):
        """Makes a disk larger.

        Or smaller.
        """

        disk_id: EntityId
        size_mb: int

        def locks(self) -> list[LockKey]:
            return exclusive("DISK", self.disk_id)

    kind = Registry.load().find("ResizeDisk")
    assert (kind.name, kind.version, kind.doc) == ("ResizeDisk", 3, "Makes a disk larger.")
    assert (kind.categories, kind.monitored, kind.by_entity) == (("storage", "slow"), False, True)
    assert kind.cancel is Cancel.BEFORE_START
    assert kind.schema["required"] == ["disk_id", "size_mb"]
    read = kind.read(3, {"disk_id": "d-1", "size_mb": 20})
    assert read == ResizeDisk(disk_id="d-1", size_mb=20)
    assert (read.command_type, read.parameters_version) == ("ResizeDisk", 3)
    assert kind.describe(read, lambda ref: f"name of {ref.entity_id}") == "Resizing name of d-1 to 20 MB"
    assert read.locks() == [LockKey(EntityRef("DISK", "d-1"))]
    with pytest.raises(WaybillError, match="size_mb: is required"):
        kind.read(3, {"disk_id": "d-1"})


@pytest.mark.rule(A_COMMAND_TYPE)
def test_what_a_command_type_does_not_say_is_what_the_design_says() -> None:
    @command("Plain")
    class Plain(Command):
        pass

    kind: CommandType = Plain.type_
    assert (kind.version, kind.categories, kind.description) == (1, (), "Plain")
    assert (kind.monitored, kind.by_entity, kind.cancel) == (True, False, Cancel.NONE)
    assert Plain().locks() == []


@pytest.mark.rule("semantics §2: an older version goes through `upgrade(version, parameters)`")
@pytest.mark.rule("semantics §2: Unknown fields are kept and ignored")
def test_parameters_of_an_older_version_are_upgraded() -> None:
    @command("Renamed", version=2)
    class Renamed(Command):
        new_name: str

        @classmethod
        def upgrade(cls, version: int, parameters: Any) -> Any:
            return {"new_name": parameters["old_name"], **parameters}

    kind: CommandType = Renamed.type_
    assert kind.read(1, {"old_name": "a", "unknown": 1}) == Renamed(new_name="a")


def test_two_commands_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two commands are called RemoveVm"):

        @command("RemoveVm")
        class Another(Command):
            pass
