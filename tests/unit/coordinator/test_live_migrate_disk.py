"""LiveMigrateDisk, stage by stage: whatever fails and whoever dies, the disk is where the job says that it is."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import pytest
from tests.unit.coordinator.flow_scenario import BROKEN, HOST_STOPPED, Scenario, Script, a_running_flow

from coordinator.commands.base import Command
from coordinator.commands.discard_volume import DiscardVolume
from coordinator.commands.live_migrate_disk import LiveMigrateDisk
from coordinator.commands.merge_snapshot import MergeSnapshot
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import Attempt, Child, EntityRef, Observation, Plan, Serially
from coordinator.rows import Cancel, Status
from coordinator.world import Entity, Reading, Refused, World

DISK = EntityRef("DISK", "disk-1")
STAGES = {
    "createSnapshot": "CREATE_SNAPSHOT",
    "cloneImageStructure": "CLONE_IMAGE_STRUCTURE",
    "replicateDiskStart": "REPLICATE_START",
    "syncImageData": "SYNC_IMAGE_DATA",
    "replicateDiskFinish": "REPLICATE_FINISH",
    "deleteImage": "DELETE_IMAGE",
    "mergeSnapshots": "MERGE_SNAPSHOTS",
}
UP_TO_THE_SWITCH = list(STAGES)[:5]
BACK = {
    "createSnapshot": [],
    "cloneImageStructure": ["mergeSnapshots on source"],
    "replicateDiskStart": ["replicateDiskFinish on source", "deleteImage on destination", "mergeSnapshots on source"],
    "syncImageData": ["replicateDiskFinish on source", "deleteImage on destination", "mergeSnapshots on source"],
    "replicateDiskFinish": ["replicateDiskFinish on source", "deleteImage on destination", "mergeSnapshots on source"],
}
"""What is done after a stage that failed and was rolled back by its host."""

COMMAND = LiveMigrateDisk(disk_id="disk-1", destination_host_id="destination")
T = TypeVar("T")


def a_world(**disk: Any) -> World:
    declared = {"host_id": "source", "volume_id": "disk-1", "size_mb": 10, "vm_id": "vm-1", **disk}
    entities = [
        Entity(DISK, "data", "OK", declared, version=1),
        Entity(EntityRef("VM", "vm-1"), observed=Observation("UP", "source"), version=1),
        *(
            Entity(EntityRef("HOST", host_id), observed=Observation("UP", host_id), version=1)
            for host_id in ("source", "destination")
        ),
    ]
    known = {entity.ref: entity for entity in entities}

    async def read(refs: Sequence[EntityRef]) -> list[Entity]:
        return [known.get(ref, Entity(ref)) for ref in refs]

    return World(Reading(read), lambda: entities[2:], guard_reads=True)


def now(work: Awaitable[T]) -> T:
    """What code answers that waits for nothing but turns of the loop."""
    running = work.__await__()
    try:
        while running.send(None) is None:  # type: ignore[attr-defined]
            pass
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("it waits")


def after_failure(failed: FailedAttempt) -> Attempt | None:
    return now(COMMAND.after_failure(a_world(), failed))


def a_migration() -> Scenario:
    plan = now(COMMAND.execute(a_world()))
    children = {kind: Script(plan_of(kind, plan)) for kind in ("DiscardVolume", "MergeSnapshot")}
    root = Script(plan, after=after_failure, changes={DISK: "LOCKED"}, ends=None)
    return a_running_flow(root, children, cancel=Cancel.FINISH_FORWARD, entities=[DISK])


def plan_of(kind: str, plan: Plan) -> Plan:
    """What a child plans: it is the same wherever it is, but for the host."""
    assert isinstance(plan, Serially)
    [node] = [each for each in plan.plans if isinstance(each, Child) and each.command_type == kind]
    type_: type[Command] = {"DiscardVolume": DiscardVolume, "MergeSnapshot": MergeSnapshot}[kind]
    return now(type_(**node.parameters).execute(a_world()))


def work_through(flow: Scenario, *, crash: str = "", lost: bool = False, failing: str = "", result: str = "") -> None:
    """Has the hosts do all that they are asked for, one thing at a time."""
    for _ in range(20):
        if flow.store.ended:
            return
        if not flow.begun:
            flow.advance(1)  # the end method of a flow that was taken up
            continue
        [leaf] = flow.begun.values()
        if crash == f"before {leaf.verb}":
            crash = ""
            flow.crash()
            continue
        if crash == f"after {leaf.verb}":
            crash = ""
            flow.hold = {"commit"}
            flow.report(leaf.task_id)
            flow.hold = set()
            flow.crash(commit_is_lost=lost)
            continue
        if failing == leaf.verb:
            failing = ""
            if result:
                flow.report(leaf.task_id, result, error=BROKEN)
            else:
                flow.report(leaf.task_id, "", lost=True)
            continue
        flow.report(leaf.task_id)
    raise AssertionError("it does not end")


@pytest.mark.rule("semantics §7: LiveMigrateDisk (serial): ends: the last stage")
def test_the_stages_follow_one_another_and_the_disk_ends_up_on_the_destination() -> None:
    flow = a_migration()
    work_through(flow)
    assert flow.ended() is Status.FINISHED
    assert [step for step in flow.statuses() if step in STAGES.values()] == list(STAGES.values())
    assert flow.store.entities[DISK].declared["host_id"] == "destination"


@pytest.mark.rule("semantics §7: LiveMigrateDisk: a crash at every stage boundary resumes there")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "after", "after, not stored"])
def test_a_crash_at_any_stage_boundary_is_gone_on_from(stage: str, when: str) -> None:
    flow = a_migration()
    work_through(flow, crash=f"{when.partition(',')[0]} {stage}", lost=when != "after")
    assert flow.crashes == 1
    assert flow.ended() is Status.FINISHED
    assert len(flow.store.leaves) == len(STAGES)  # nothing was begun twice
    assert {step.status for step in flow.store.steps.values()} == {Status.FINISHED}


@pytest.mark.rule("semantics §7: LiveMigrateDisk: failing before the switch: cleanup: disk on source, FAILED")
@pytest.mark.parametrize("stage", UP_TO_THE_SWITCH)
def test_a_failure_up_to_the_switch_takes_back_what_was_done(stage: str) -> None:
    flow = a_migration()
    work_through(flow, failing=stage, result="CLEAN_SUCCESS")
    assert flow.ended() is Status.FAILED
    assert flow.job.error == BROKEN
    assert named(flow, 2) == BACK[stage]
    assert flow.step(STAGES[stage]).status is Status.FAILED
    assert (flow.store.entities[DISK].status, flow.store.entities[DISK].declared) == ("OK", {})


def named(flow: Scenario, attempt: int) -> list[str]:
    """What was done in a further attempt, in order, by the steps and calls that the plan names."""
    plan = flow.store.commands[flow.tree.root.command_id].plans[attempt - 1]
    names = {"DiscardVolume": "deleteImage", "MergeSnapshot": "mergeSnapshots"}
    return [
        f"{names.get(node.get('command_type', ''), node.get('verb'))} on "
        f"{node.get('host_id') or node['parameters']['host_id']}"
        for node in plan.get("plans", [])
    ]


@pytest.mark.parametrize("stage", UP_TO_THE_SWITCH[:4])
@pytest.mark.parametrize("crash", ["replicateDiskFinish", "deleteImage", "mergeSnapshots"])
def test_a_crash_while_it_goes_back_goes_on_going_back(stage: str, crash: str) -> None:
    flow = a_migration()
    while next(iter(flow.begun.values())).verb != stage:
        flow.report(next(iter(flow.begun)))
    flow.report(next(iter(flow.begun)), "CLEAN_FAILURE", error=BROKEN)
    work_through(flow, crash=f"before {crash}")
    assert flow.ended() is Status.FAILED
    assert flow.store.entities[DISK].status == "OK"


@pytest.mark.parametrize(
    ("stage", "left"),
    [("createSnapshot", "mergeSnapshots on source"), ("cloneImageStructure", "deleteImage on destination")],
)
@pytest.mark.parametrize("result", ["CLEAN_FAILURE", ""])
def test_what_its_host_did_not_take_back_is_taken_back(stage: str, left: str, result: str) -> None:
    flow = a_migration()
    work_through(flow, failing=stage, result=result)
    assert flow.ended() is Status.FAILED
    assert left in named(flow, 2)


@pytest.mark.rule("semantics §7: LiveMigrateDisk: after it: disk on destination, FINISHED")
@pytest.mark.parametrize("stage", ["deleteImage", "mergeSnapshots"])
def test_a_failure_after_the_switch_is_left_over(stage: str) -> None:
    flow = a_migration()
    work_through(flow, failing=stage, result="CLEAN_SUCCESS")
    assert flow.ended() is Status.FINISHED
    assert flow.step(STAGES[stage]).status is Status.FAILED
    assert flow.store.entities[DISK].declared["host_id"] == "destination"


def test_a_switch_of_which_nobody_can_tell_is_asked_for_again() -> None:
    flow = a_migration()
    work_through(flow, failing="replicateDiskFinish")
    assert flow.ended() is Status.FINISHED
    assert [step.status for step in flow.steps("REPLICATE_FINISH")] == [Status.UNKNOWN, Status.FINISHED]
    assert flow.store.entities[DISK].declared["host_id"] == "destination"


def test_a_switch_of_which_nobody_can_tell_at_all_leaves_the_disk_illegal() -> None:
    flow = a_migration()
    while next(iter(flow.begun.values())).verb != "replicateDiskFinish":
        flow.report(next(iter(flow.begun)))
    flow.loses("replicateDiskFinish")
    flow.host_says("replicateDiskFinish", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.store.entities[DISK].status == "ILLEGAL"
    assert "ENTITY_ILLEGAL" in flow.event_types()


@pytest.mark.rule(
    "semantics §8: FINISH_FORWARD: like REVERT until a node marked no_return has begun, afterwards refused"
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_cancel_goes_back_before_the_switch_and_is_refused_from_it_on(stage: str) -> None:
    flow = a_migration()
    while next(iter(flow.begun.values())).verb != stage:
        flow.report(next(iter(flow.begun)))
    flow.cancel()
    if stage in UP_TO_THE_SWITCH[:4]:
        [leaf] = flow.begun.values()
        stopped = leaf.task_id in flow.stopped
        flow.report(leaf.task_id, "CLEAN_SUCCESS" if stopped else "SUCCESS", error=HOST_STOPPED if stopped else None)
        work_through(flow)
        assert flow.ended() is Status.ABORTED
        assert flow.store.entities[DISK].status == "OK"
    else:
        answer = flow.cancel_answers[1]
        assert answer is not None
        assert answer.reason == "PAST_NO_RETURN"
        work_through(flow)
        assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize(
    ("reason", "disk"),
    [("DISK_IS_THERE", {"host_id": "destination"}), ("DISK_NOWHERE", {"host_id": ""}), ("VM_IS_NOT_UP", {"vm_id": ""})],
)
def test_what_cannot_be_moved_live_is_refused(reason: str, disk: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        now(COMMAND.validate(a_world(**disk)))
    assert refused.value.reason == reason
