"""Steps and progress: what people see of a flow."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import BROKEN, DISK, VM, Scenario, a_child, a_flow, a_running_flow

from coordinator.plan import call, concurrently, nothing, serially, task
from coordinator.rows import Status, Subject

PARTS = serially(
    [
        concurrently([task("h1", "a", step="A"), task("h1", "b", step="B")], step="BOTH"),
        task("h1", "c", step="C"),
    ]
)


def shape(flow: Scenario) -> list[tuple[str, str, int]]:
    """(type, type of the parent, number) of the stored steps, in the order in which they are shown."""
    types = {step.step_id: step.step_type for step in flow.store.steps.values()}
    return [
        (step.step_type, types.get(step.parent_step_id, ""), step.number)
        for step in flow.tree.planned_steps()
        if step.step_id in types
    ]


@pytest.mark.rule("semantics §4: Planned steps are there from the start as PENDING, in order (`number` among siblings)")
@pytest.mark.rule("semantics §1: ExecutionStatus (job and step): `PENDING` planned, not begun")
@pytest.mark.rule("semantics §2: Plans are small trees, and the step tree grows out of them")
def test_planned_steps_are_there_from_the_start_in_order() -> None:
    flow = a_running_flow(PARTS)
    assert shape(flow) == [
        ("VALIDATION", "", 0),
        ("EXECUTION", "", 1),
        ("BOTH", "EXECUTION", 0),
        ("A", "BOTH", 0),
        ("B", "BOTH", 1),
        ("C", "EXECUTION", 1),
        ("FINALIZATION", "", 2),
    ]
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "STARTED",
        "BOTH": "STARTED",
        "A": "STARTED",
        "B": "STARTED",
        "C": "PENDING",
        "FINALIZATION": "PENDING",
    }


@pytest.mark.rule("semantics §1: StepType: plus any a plug-in registers")
@pytest.mark.parametrize("step_type", ["REMOVE_VM", "COPY_IMAGE", "EXTEND_IMAGE", "SCRUB_DISK"])
def test_a_step_is_of_the_type_that_its_node_names_also_if_none_of_our_commands_has_such(step_type: str) -> None:
    flow = a_running_flow(task("h1", "work", step=step_type))
    assert flow.statuses()[step_type] == "STARTED"
    flow.host_says("work")
    assert (flow.statuses()[step_type], flow.ended()) == ("FINISHED", Status.FINISHED)


@pytest.mark.rule("semantics §4: Planned steps others are added as they become known")
def test_steps_of_a_child_come_under_the_step_that_names_it_as_they_become_known() -> None:
    flow = a_running_flow(serially([task("h1", "a"), a_child("One", step="ONE")]), {"One": PARTS})
    assert [kind for kind, _, _ in shape(flow)] == ["VALIDATION", "EXECUTION", "ONE", "FINALIZATION"]
    flow.host_says("a")
    assert shape(flow)[2:5] == [("ONE", "EXECUTION", 0), ("BOTH", "ONE", 0), ("A", "BOTH", 0)]


@pytest.mark.rule("semantics §2: A child shows no steps and makes no job unless asked to")
def test_a_child_shows_nothing_unless_it_is_asked_to() -> None:
    flow = a_running_flow(a_child("One"), {"One": task("h1", "a")})
    assert list(flow.statuses()) == ["VALIDATION", "EXECUTION", "FINALIZATION"]


@pytest.mark.rule("semantics §2: a node that names a step makes that step, and a host task under it lends it its")
@pytest.mark.rule("semantics §4: Task steps sit under EXECUTION with external id = task id")
def test_a_task_lends_its_id_to_the_step_above_it() -> None:
    flow = a_running_flow(a_child("One", step="DELETE_IMAGE"), {"One": task("h1", "delete")})
    assert flow.step("DELETE_IMAGE").external_id == flow.leaf("delete").task_id


def test_a_task_without_a_step_lends_its_id_to_the_execution() -> None:
    flow = a_running_flow(task("h1", "simWork"))
    assert flow.step("EXECUTION").external_id == flow.leaf("simWork").task_id


def test_a_step_keeps_the_first_id_and_a_call_lends_none() -> None:
    flow = a_running_flow(serially([call("h1", "x"), task("h1", "a"), task("h1", "b")], step="ALL"))
    assert flow.step("ALL").external_id == ""
    flow.host_says("x")
    first = flow.leaf("a").task_id
    flow.host_says("a")
    assert flow.step("ALL").external_id == first


@pytest.mark.rule("semantics §2: Plans are small trees: a node may name its step type, weight, subjects")
def test_a_step_is_about_the_entity_of_its_work_unless_it_says_otherwise() -> None:
    flow = a_flow(concurrently([task("h1", "a", entity=DISK, step="A"), task("h1", "b", subjects=(VM,), step="B")]))
    flow.hold = {"plan"}
    flow.submit()
    flow.tree.name("Work", {VM: "my vm"})
    flow.hold.clear()
    flow.settle()
    assert flow.step("A").subjects == (Subject("DISK", "disk-1", ""),)
    assert flow.step("B").subjects == (Subject("VM", "vm-1", "my vm"),)


def test_a_part_that_has_no_work_shows_its_step() -> None:
    flow = a_running_flow(nothing(step="STOP_VM", description="VM is down already"))
    assert flow.ended() is Status.FINISHED
    assert flow.step("STOP_VM").description == "VM is down already"


def test_a_leaf_names_the_step_that_shows_it() -> None:
    flow = a_running_flow(PARTS)
    assert flow.leaf("a").step_id == flow.step("A").step_id
    flow = a_running_flow(task("h1", "simWork"))
    assert flow.leaf("simWork").step_id == flow.step("EXECUTION").step_id


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §4: Progress of a job is the weighted progress of its steps")
def test_progress_is_that_of_the_parts_by_their_weight() -> None:
    flow = a_running_flow(concurrently([task("h1", "a", weight=3, step="A"), task("h1", "b", step="B")]))
    flow.host_says("a", "", progress=50)
    flow.advance(1)
    assert (flow.step("A").progress, flow.job.progress, flow.step("EXECUTION").progress) == (50, 37, 37)
    flow.host_says("b")
    flow.advance(1)
    assert (flow.step("B").progress, flow.job.progress) == (100, 62)


def test_progress_goes_up_through_children() -> None:
    plan = concurrently([a_child("One", step="ONE"), a_child("One", step="TWO")])
    flow = a_running_flow(plan, {"One": serially([task("h1", "a"), task("h1", "b")])})
    flow.report(next(iter(flow.begun)))
    flow.advance(1)
    assert (flow.step("ONE").progress, flow.job.progress) == (50, 25)


@pytest.mark.rule("semantics §4: Progress of a job is the weighted progress of its steps, never falls")
def test_progress_never_falls() -> None:
    flow = a_running_flow(task("h1", "a", step="A"))
    flow.host_says("a", "", progress=80)
    flow.advance(1)
    flow.host_says("a", "", progress=20)
    flow.advance(1)
    assert (flow.step("A").progress, flow.job.progress) == (80, 80)
    flow.crash()
    flow.host_says("a", "", progress=20)
    flow.advance(1)
    assert flow.job.progress == 80


@pytest.mark.rule("semantics §4: Progress of a job is 100 only when FINISHED")
def test_progress_is_complete_only_when_the_job_is_finished() -> None:
    flow = a_running_flow(task("h1", "a", step="A"))
    flow.host_says("a", "", progress=100)
    flow.advance(1)
    assert (flow.step("A").progress, flow.job.progress) == (99, 99)
    flow.host_says("a")
    assert (flow.step("A").progress, flow.job.progress) == (100, 100)


def test_work_that_failed_or_was_left_out_is_no_progress() -> None:
    flow = a_running_flow(serially([task("h1", "a"), task("h1", "b"), task("h1", "c"), task("h1", "d")]))
    flow.host_says("a")
    flow.host_says("b", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.job.progress == 25


def test_progress_alone_is_stored_at_most_once_a_second() -> None:
    flow = a_running_flow(task("h1", "a"))
    for tenth in range(1, 51):
        flow.host_says("a", "", progress=tenth)
        flow.advance(0.1)
    assert 1 + 4 <= flow.commits <= 1 + 5


def test_progress_after_a_silence_is_stored_at_once() -> None:
    flow = a_running_flow(task("h1", "a"))
    flow.advance(10)
    flow.host_says("a", "", progress=10)
    flow.advance(0)
    assert flow.job.progress == 10


def test_nothing_is_stored_when_nothing_changed() -> None:
    flow = a_running_flow(task("h1", "a"))
    flow.host_says("a", "", progress=10)
    flow.advance(5)
    commits = flow.commits
    for _ in range(5):
        flow.host_says("a", "", progress=10)
        flow.advance(5)
    assert flow.commits == commits


def test_parts_without_weight_count_alike() -> None:
    flow = a_running_flow(concurrently([task("h1", "a", weight=0), task("h1", "b", weight=0)]))
    flow.host_says("a")
    flow.advance(1)
    assert flow.job.progress == 50


def test_the_result_of_one_part_is_stored_though_nothing_follows_from_it() -> None:
    flow = a_running_flow(concurrently([task("h1", "a", step="A"), task("h1", "b")]))
    flow.host_says("a")
    flow.advance(1)
    assert flow.step("A").status is Status.FINISHED


def test_a_part_that_is_over_whole_counts_whole_though_best_effort_failed_in_it() -> None:
    plan = concurrently([concurrently([task("h1", "a", best_effort=True), task("h1", "b")]), task("h1", "c")])
    flow = a_running_flow(plan)
    flow.host_says("a", "CLEAN_SUCCESS")
    flow.host_says("b")
    flow.advance(1)
    assert flow.job.progress == 50
