"""Rules of the design about what a commit holds and what a part of a flow is told, each shown whole."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import DISK, VM, Script, a_child, a_flow, a_running_flow

from coordinator.flow import events as ev
from coordinator.plan import Former, concurrently, serially, task
from coordinator.rows import CommandStatus, LockKey, Snapshot, Status

WORK = task("h1", "work", step="WORK")
MORE = task("h1", "more", step="MORE")
IMAGES = concurrently(a_child(f"Image{n}", step="DELETE_IMAGE") for n in range(3))


def images() -> dict[str, Script]:
    return {f"Image{n}": Script(task("h1", f"delete{n}")) for n in range(3)}


@pytest.mark.rule("semantics §2: First commit, as in `architecture.md`: job STARTED with its steps")
def test_the_first_commit_holds_job_steps_locks_plan_and_intents() -> None:
    flow = a_flow(Script(serially([WORK, MORE]), locks=[VM]))
    flow.hold = {"commit"}
    flow.submit()
    commit = flow.commit
    assert commit is not None
    assert commit.new_job is not None
    assert commit.new_job.status is Status.STARTED
    assert {step.step_type: step.status.value for step in commit.new_steps} == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "STARTED",
        "WORK": "STARTED",
        "MORE": "PENDING",
        "FINALIZATION": "PENDING",
    }
    _, _, locks = commit.notes[flow.tree.root.command_id, "plan"]
    assert locks == [LockKey(VM)]
    assert [plan["kind"] for row in commit.new_commands for plan in row.plans] == ["serially"]
    assert [leaf.verb for leaf in commit.new_leaves] == ["work"]


@pytest.mark.rule("semantics §1: CommandStatus: `NOT_STARTED` · `ACTIVE` · `EXECUTION_FAILED`")
@pytest.mark.rule("semantics §2: When its sealed set is over → `SUCCEEDED` or `FAILED`")
@pytest.mark.parametrize(
    ("result", "status"), [("SUCCESS", CommandStatus.SUCCEEDED), ("CLEAN_SUCCESS", CommandStatus.FAILED)]
)
def test_the_work_is_over_when_all_that_was_sealed_is(result: str, status: CommandStatus) -> None:
    flow = a_running_flow(Script(concurrently([WORK, serially([MORE, task("h2", "last")])]), end_raises=1))
    flow.host_says("work", result)
    flow.advance(1)
    assert flow.child("Root").status is CommandStatus.ACTIVE
    flow.host_says("more")
    assert flow.child("Root").status is CommandStatus.ACTIVE
    flow.host_says("last")
    assert flow.child("Root").status is status  # and its end method is yet to run again


@pytest.mark.rule("semantics §2: Last commit: steps, commands, entity changes, locks freed, job ended")
def test_the_last_commit_ends_everything_at_once() -> None:
    plan = Script(concurrently([a_child("One", step="ONE"), WORK]), locks=[VM], ends={DISK: "OK"})
    flow = a_running_flow(plan, {"One": task("h1", "one")}, entities=[DISK])
    flow.host_says("one")
    flow.advance(1)
    flow.host_says("work")
    last = flow.store.commits[-1]
    assert last.ends_flow
    assert last.job is not None
    assert last.job.status is Status.FINISHED
    assert {step.step_type: step.status for step in last.steps} == dict.fromkeys(
        ("WORK", "EXECUTION", "FINALIZATION"), Status.FINISHED
    )
    assert [row.status for row in last.commands] == [CommandStatus.ENDED_SUCCESSFULLY]
    changes, _, _ = last.notes[flow.tree.root.command_id, "end"]
    assert [(change.entity, change.status) for change in changes] == [(DISK, "OK")]
    assert flow.store.locks == {}
    after = flow.history.index(next(effect for effect in flow.history if isinstance(effect, ev.Clear)))
    commits = [index for index, effect in enumerate(flow.history) if isinstance(effect, ev.Commit)]
    assert commits[-1] < after  # hosts are told to forget when it is durable


@pytest.mark.rule("semantics §2: a stage has begun if and only if its row exists, so a restart goes on there")
def test_a_restart_goes_on_at_the_stage_that_has_begun_and_repeats_none_before_it() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), task("h1", "switch"), task("h1", "drop")]))
    flow.host_says("copy")
    begun = flow.leaf("switch").task_id
    flow.history.clear()
    flow.crash()
    assert [effect.leaf.task_id for effect in flow.history if isinstance(effect, ev.Start)] == [begun]
    flow.host_says("switch")
    flow.host_says("drop")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED
    assert sorted(leaf.verb for leaf in flow.store.leaves.values()) == ["copy", "drop", "switch"]


@pytest.mark.rule("semantics §2: A child's end method gets its own result")
def test_the_end_method_of_each_child_is_told_how_that_child_went() -> None:
    flow = a_running_flow(IMAGES, images())
    flow.hold = {"end"}
    for n in range(3):
        flow.host_says(f"delete{n}", "CLEAN_SUCCESS" if n == 1 else "SUCCESS")
    told = {flow.tree.command(command_id).command_type: succeeded for command_id, succeeded in flow.ends.items()}
    assert told == {"Image0": True, "Image1": False, "Image2": True}


@pytest.mark.rule("semantics §2: Parameters are stored with the command, once, as JSON with their version")
def test_a_child_keeps_the_parameters_that_it_was_planned_with() -> None:
    one = a_child("One", parameters={"disk_id": "d-1", "unknown": [1]}, parameters_version=3)
    flow = a_running_flow(one, {"One": WORK})
    for _ in range(2):
        row = flow.tree.command(flow.child("One").command_id)
        assert (row.parameters, row.parameters_version) == ({"disk_id": "d-1", "unknown": [1]}, 3)
        assert flow.tree.root.parameters == {}
        flow.crash()


@pytest.mark.rule("semantics §5: a child that ends frees nothing of its flow's")
def test_a_child_that_has_ended_frees_no_lock() -> None:
    plan = Script(concurrently([a_child("One"), MORE]), locks=[VM])
    flow = a_running_flow(plan, {"One": Script(WORK, locks=[DISK])})
    flow.host_says("work")
    flow.advance(1)
    assert flow.child("One").status is CommandStatus.ENDED_SUCCESSFULLY
    assert flow.store.locks.keys() == {VM, DISK}
    flow.host_says("more")
    assert flow.store.locks == {}


@pytest.mark.rule("semantics §6: Entity changes made by a flow store the entity's former value in the same commit")
def test_a_change_and_what_the_entity_was_are_one_commit() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED", VM: "LOCKED"}), entities=[DISK])
    commit = flow.store.commits[0]
    changes, _, _ = commit.notes[flow.tree.root.command_id, "plan"]
    assert [(change.entity, change.status) for change in changes] == [(DISK, "LOCKED"), (VM, "LOCKED")]
    assert commit.snapshots == [
        Snapshot(flow.tree.root.command_id, 1, DISK, Former("disk-1", "OK", {})),
        Snapshot(flow.tree.root.command_id, 2, VM, None),  # it was not there
    ]
