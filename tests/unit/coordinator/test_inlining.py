"""Coordination by entity: children inlined into the plan of the flow's root."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import BROKEN, DISK, Scenario, a_running_flow
from tests.unit.coordinator.test_commands import a_world, an_entity

from coordinator.commands.base import Command, Registry, command
from coordinator.commands.remove_disk import RemoveDisk
from coordinator.engine.inlining import DEEPEST, inlined
from coordinator.flow import events as ev
from coordinator.flow.planjson import plan_from_json, plan_to_json
from coordinator.plan import Child, Inlined, Plan, Serially, child, concurrently, serially, task
from coordinator.rows import Status
from coordinator.world import Refused, World

RULE = "semantics §2: BY_ENTITY: children are inlined into the stored plan above them, no command row is made for them"
VM = an_entity("VM", "vm-1", disk_ids=["d-1", "d-2"])
A_DISK = an_entity("DISK", "d-1", host_id="h-1", volume_id="v-1", vm_id="vm-1")


def read(part: Inlined) -> Command:
    return Registry.load().find(part.command_type).read(part.parameters_version, part.parameters)


async def plan_of_remove_disk(world: World) -> Plan:
    return await inlined(await RemoveDisk(disk_id="d-1").execute(world), world, read)


@pytest.mark.rule(RULE)
async def test_the_childs_plan_stands_in_the_place_of_the_child() -> None:
    world = a_world(VM, A_DISK)
    plan = await plan_of_remove_disk(world)
    assert isinstance(plan, Serially)
    assert plan.step == "DELETE_IMAGE"
    assert plan.inlined == Inlined("RemoveImage", {"disk_id": "d-1", "detach": True})
    [deletion] = plan.plans
    assert (deletion.verb, deletion.entity) == ("deleteImage", A_DISK.ref)  # type: ignore[union-attr]
    assert A_DISK.ref in {key.entity for key in world.notes.locks}
    assert plan_from_json(plan_to_json(plan)) == plan


async def test_children_of_children_are_inlined_as_deep_as_commands_may_be() -> None:
    @command("Endless")
    class Endless(Command):
        async def execute(self, world: World) -> Plan:
            return concurrently([child(Endless())])

    with pytest.raises(Refused, match=str(DEEPEST)):
        await inlined(Child(command_type="Endless"), a_world(), lambda part: Endless())


async def test_a_child_that_refuses_refuses_the_whole() -> None:
    @command("Unwilling")
    class Unwilling(Command):
        async def validate(self, world: World) -> None:
            raise Refused("NOT_NOW", "the time is not right")

    with pytest.raises(Refused, match="the time"):
        await inlined(serially([Child(command_type="Unwilling")]), a_world(), lambda part: Unwilling())


# --- in a flow -------------------------------------------------------------------------------------------------------


def a_part(name: str, **options: object) -> Plan:
    return Serially(plans=(task("h1", name, entity=DISK),), inlined=Inlined(name), step=name, **options)  # type: ignore[arg-type]


def ends(flow: Scenario) -> list[tuple[list[tuple[str, bool]], bool]]:
    """What each end was told: the inlined children with their results, and the root's own."""
    runs = [effect for effect in flow.history if isinstance(effect, ev.RunEnd)]
    return [([(part.command_type, went) for part, went in run.parts], run.succeeded) for run in runs]


@pytest.mark.rule("semantics §2: then the inlined children's end methods run, then the root's")
def test_the_children_end_with_the_root_each_with_its_own_result() -> None:
    flow = a_running_flow(concurrently([a_part("one"), a_part("two", best_effort=True)]))
    assert list(flow.store.commands) == [flow.tree.root.command_id]
    flow.host_says("two", "CLEAN_SUCCESS", error=BROKEN)
    assert ends(flow) == []
    flow.host_says("one")
    assert ends(flow) == [([("one", True), ("two", False)], True)]
    assert flow.ended() is Status.FINISHED
    assert flow.statuses()["two"] == "FAILED"


def test_a_child_that_never_began_has_no_end() -> None:
    flow = a_running_flow(serially([a_part("one"), a_part("two")]))
    flow.host_says("one", "CLEAN_SUCCESS", error=BROKEN)
    assert ends(flow) == [([("one", False)], False)]
    assert flow.statuses()["two"] == "SKIPPED"


def test_a_flow_that_is_taken_up_ends_its_inlined_children() -> None:
    flow = a_running_flow(serially([a_part("one"), a_part("two")]))
    flow.host_says("one")
    flow.crash()
    flow.host_says("two")
    flow.advance(1)
    assert ends(flow) == [([("one", True), ("two", True)], True)]
    assert flow.ended() is Status.FINISHED
