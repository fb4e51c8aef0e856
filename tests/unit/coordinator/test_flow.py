"""The life of a flow: planned, begun, over, ended."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    DISK,
    HOST_STOPPED,
    JOB_ID,
    RAISED,
    REFUSED,
    VM,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)

from coordinator.flow import events as ev
from coordinator.flow.tree import MAX_COMMANDS, MAX_DEPTH
from coordinator.plan import call, concurrently, nothing, serially, task
from coordinator.rows import CommandStatus, LeafKind, Status

W1 = task("h1", "simWork")
IMAGES = concurrently(a_child(f"Image{n}", step="DELETE_IMAGE") for n in range(4))


def images() -> dict[str, Script]:
    return {f"Image{n}": Script(task("h1", f"delete{n}")) for n in range(4)}


# --- a simple flow ---------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: `task(host, verb, arguments)`: the host reports the task over")
def test_a_simple_flow_lives_in_two_commits() -> None:
    flow = a_running_flow(W1)
    assert (flow.commits, flow.answers, flow.job.status) == (1, 1, Status.STARTED)
    flow.host_says("simWork")
    assert (flow.commits, flow.answers, flow.ended()) == (2, 1, Status.FINISHED)


def test_the_first_commit_holds_the_job_its_steps_the_plan_and_what_is_begun() -> None:
    flow = a_flow(W1)
    flow.hold = {"commit"}
    flow.submit()
    commit = flow.commit
    assert commit is not None
    assert commit.new_job is not None
    assert [row.step_type for row in commit.new_steps] == ["VALIDATION", "EXECUTION", "FINALIZATION"]
    assert [row.plans for row in commit.new_commands] == [[{"kind": "task", "host_id": "h1", "verb": "simWork"}]]
    assert [row.verb for row in commit.new_leaves] == ["simWork"]


@pytest.mark.rule("semantics §2: It seals what is expected before anything of it starts")
def test_nobody_is_answered_and_no_host_called_before_the_commit_is_durable() -> None:
    flow = a_flow(W1)
    flow.hold = {"commit"}
    flow.submit()
    assert (flow.answers, flow.verbs()) == (0, [])
    flow.hold.clear()
    flow.settle()
    assert (flow.answers, flow.verbs()) == (1, ["simWork"])


@pytest.mark.rule("semantics §2: `nothing`: at once")
def test_a_command_without_work_is_over_in_one_commit() -> None:
    flow = a_running_flow(nothing())
    assert (flow.commits, flow.ended()) == (1, Status.FINISHED)
    assert flow.statuses() == {"VALIDATION": "FINISHED", "EXECUTION": "FINISHED"}


@pytest.mark.rule("semantics §2: `concurrently(plans)`: all are over")
@pytest.mark.rule("semantics §2: `BY_FLOW` (default): the end comes when all that the flow started is over")
def test_what_a_flow_began_is_cleared_once_it_has_ended() -> None:
    flow = a_running_flow(concurrently([task("h1", "copy"), call("h1", "connect")]))
    flow.host_says("copy")
    assert flow.cleared == []
    flow.host_says("connect")
    assert sorted(flow.cleared) == sorted(flow.store.leaves)


def test_a_report_that_is_repeated_or_of_nobody_changes_nothing() -> None:
    flow = a_running_flow(concurrently([task("h1", "copy"), task("h1", "move")]))
    copy = flow.leaf("copy").task_id
    flow.report(copy)
    flow.report(copy, "CLEAN_FAILURE", error=BROKEN)
    flow.report("of-somebody-else", "CLEAN_FAILURE")
    flow.host_says("move")
    assert flow.ended() is Status.FINISHED


def test_an_ended_flow_says_nothing_any_more() -> None:
    flow = a_running_flow(W1)
    leaf = flow.leaf("simWork")
    flow.host_says("simWork")
    flow.history.clear()
    flow.report(leaf.task_id)
    flow.take(ev.TimerFired("slow plan"))
    assert flow.history == []


def test_the_job_carries_the_times_and_revision_of_its_commits() -> None:
    flow = a_running_flow(W1)
    job = flow.tree.job
    assert (job.create_time, job.start_time, job.update_time, job.end_time) == (1001.0, 1001.0, 1001.0, 0.0)
    flow.host_says("simWork")
    assert (job.create_time, job.start_time, job.update_time, job.end_time) == (1001.0, 1001.0, 1002.0, 1002.0)
    assert job.revision == 2


@pytest.mark.rule("semantics §2: what was recorded is repeated under the same ids")
def test_a_flow_is_loaded_with_the_id_and_arguments_of_what_it_began() -> None:
    flow = a_running_flow(task("h1", "copy", {"from": "a"}, entity=DISK, expected_generation=7))
    before = flow.leaf("copy")
    flow.crash()
    assert flow.leaf("copy") == before


# --- children --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Concurrent children are validated and executed in their parent's turn and ride in its")
def test_children_ride_in_the_commits_of_their_parent() -> None:
    flow = a_running_flow(a_child("All"), {"All": IMAGES, **images()})
    assert flow.commits == 1
    assert flow.verbs() == ["delete0", "delete1", "delete2", "delete3"]
    for n in range(4):
        flow.host_says(f"delete{n}")
    assert flow.ended() is Status.FINISHED
    assert flow.commits <= 2 + 1  # progress was stored at most once in this second


@pytest.mark.rule("semantics §4: A failed task makes exactly its step FAILED; siblings keep their own results")
@pytest.mark.rule("semantics §2: one failing does not stop its siblings; failed if any failed")
def test_one_of_many_that_fails_makes_exactly_its_step_failed() -> None:
    flow = a_running_flow(IMAGES, images())
    for n in range(4):
        flow.host_says(f"delete{n}", "CLEAN_SUCCESS" if n == 2 else "SUCCESS", error=BROKEN if n == 2 else None)
    assert flow.ended() is Status.FAILED
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "FAILED",
        "DELETE_IMAGE": "FINISHED FINISHED FAILED FINISHED",
        "FINALIZATION": "FINISHED",
    }
    assert flow.job.error == BROKEN


@pytest.mark.rule("semantics §2: one failing does not stop its siblings")
@pytest.mark.rule("semantics §2: `BY_FLOW` (default): the end comes when all that the flow started is over")
def test_siblings_of_a_failed_one_go_on() -> None:
    flow = a_running_flow(IMAGES, images())
    flow.host_says("delete2", "CLEAN_SUCCESS")
    assert flow.verbs() == ["delete0", "delete1", "delete3"]
    assert not flow.store.ended


@pytest.mark.rule("semantics §2: `child(Command(...))`: the child command has ended")
def test_a_child_ends_before_its_parent() -> None:
    flow = a_flow(a_child("One"), {"One": W1}).submit()
    flow.hold = {"end"}
    flow.host_says("simWork")
    assert [flow.tree.command(each).command_type for each in flow.ends] == ["One"]
    flow.end(next(iter(flow.ends)))
    assert [flow.tree.command(each).command_type for each in flow.ends] == ["Root"]


def test_each_child_has_the_result_of_its_own_end() -> None:
    flow = a_running_flow(IMAGES, images())
    for n in range(4):
        flow.host_says(f"delete{n}", "CLEAN_SUCCESS" if n == 1 else "SUCCESS")
    assert flow.child("Image0").status is CommandStatus.ENDED_SUCCESSFULLY
    assert flow.child("Image1").status is CommandStatus.ENDED_WITH_FAILURE
    assert flow.child("Root").status is CommandStatus.ENDED_WITH_FAILURE


def test_a_child_that_is_refused_fails_its_node_alone() -> None:
    scripts = images() | {"Image1": Script(refused=REFUSED), "Image2": Script(raised=RAISED)}
    flow = a_running_flow(IMAGES, scripts)
    flow.host_says("delete0")
    flow.host_says("delete3")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["DELETE_IMAGE"] == "FINISHED FAILED FAILED FINISHED"
    assert [step.error for step in flow.steps("DELETE_IMAGE")] == [None, REFUSED, RAISED, None]


def test_a_refused_child_has_no_end_method() -> None:
    flow = a_running_flow(IMAGES, images() | {"Image1": Script(refused=REFUSED)})
    assert flow.runs["end", flow.child("Image1").command_id] == 0


@pytest.mark.rule("semantics §2: Every begun leaf is a row, its id derived from (command, attempt, path in the plan)")
@pytest.mark.rule("semantics §3: The coordinator chooses the id")
def test_children_and_leaves_have_ids_of_their_place() -> None:
    one, other = a_running_flow(IMAGES, images()), a_running_flow(IMAGES, images())
    assert one.store.leaves.keys() == other.store.leaves.keys()
    assert one.store.commands.keys() == other.store.commands.keys()
    assert len(one.store.leaves.keys() | one.store.commands.keys() | one.store.steps.keys()) == 4 + 5 + 3 + 4


# --- serially --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: `serially(plans)`: the last is over")
@pytest.mark.rule("semantics §2: the next starts when the former has ended well")
def test_a_stage_begins_when_the_former_has_ended_well() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), task("h1", "switch"), task("h1", "drop")]))
    assert flow.verbs() == ["copy"]
    flow.host_says("copy")
    assert flow.verbs() == ["switch"]
    flow.host_says("switch")
    flow.host_says("drop")
    assert flow.ended() is Status.FINISHED


@pytest.mark.rule("semantics §2: a stage has begun if and only if its row exists")
def test_the_result_of_a_stage_and_the_intent_of_the_next_are_one_commit() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), task("h1", "switch")]))
    flow.host_says("copy")
    commit = flow.store.commits[-1]
    assert [leaf.result for leaf in commit.leaves] == ["SUCCESS"]
    assert [leaf.verb for leaf in commit.new_leaves] == ["switch"]


@pytest.mark.rule("semantics §1: SKIPPED planned, never begun, with the culprit named")
@pytest.mark.rule("semantics §2: the next starts when the former has ended well; after a failure the rest is SKIPPED")
def test_after_a_failure_the_rest_is_skipped_and_the_culprit_named() -> None:
    flow = a_running_flow(
        serially(
            [
                task("h1", "copy", step="COPY_IMAGE"),
                concurrently([task("h1", "a", step="A"), a_child("One", step="B")], step="MOVE_IMAGE"),
                task("h1", "drop", step="DELETE_IMAGE"),
            ]
        ),
        {"One": W1},
    )
    flow.host_says("copy", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "FAILED",
        "COPY_IMAGE": "FAILED",
        "MOVE_IMAGE": "SKIPPED",
        "A": "SKIPPED",
        "B": "SKIPPED",
        "DELETE_IMAGE": "SKIPPED",
        "FINALIZATION": "FINISHED",
    }
    culprit = flow.step("COPY_IMAGE").step_id
    for kind in ("MOVE_IMAGE", "A", "B", "DELETE_IMAGE"):
        error = flow.step(kind).error
        assert error is not None
        assert (error.reason, error.metadata["step_id"]) == ("SKIPPED", culprit)
        assert "COPY_IMAGE" in error.message


def test_a_culprit_without_a_step_is_named_by_what_it_is() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), task("h1", "drop", step="DELETE_IMAGE")]))
    flow.host_says("copy", "CLEAN_SUCCESS")
    error = flow.step("DELETE_IMAGE").error
    assert error is not None
    assert "copy" in error.message


def test_the_culprit_is_the_part_that_failed_not_what_it_is_part_of() -> None:
    stage = concurrently([task("h1", "a", step="A"), task("h1", "b", step="B")], step="BOTH")
    flow = a_running_flow(serially([stage, task("h1", "drop", step="DROP")]))
    flow.host_says("a")
    flow.host_says("b", "CLEAN_SUCCESS")
    error = flow.step("DROP").error
    assert error is not None
    assert error.metadata["step_id"] == flow.step("B").step_id


@pytest.mark.rule("semantics §2: Concurrent children are validated and executed in their parent's turn and ride in its")
def test_a_serial_child_is_planned_when_its_turn_comes() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), a_child("Next")]), {"Next": task("h2", "merge")})
    assert len(flow.store.commands) == 1
    flow.host_says("copy")
    assert flow.verbs() == ["merge"]
    assert flow.commits == 2


def test_a_long_chain_of_nothing_is_over_at_once() -> None:
    flow = a_running_flow(serially(nothing() for _ in range(5_000)), thorough=False)
    assert flow.ended() is Status.FINISHED


def test_a_long_chain_of_children_needs_no_recursion() -> None:
    flow = a_flow(serially(a_child("Small") for _ in range(1_500)), {"Small": nothing()}, thorough=False)
    flow.submit()
    assert (flow.ended(), len(flow.store.commands), flow.commits) == (Status.FINISHED, 1_501, 1)


# --- best effort -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Best effort: may fail without failing what is above it; its step says FAILED, the job")
@pytest.mark.parametrize("result", ["CLEAN_SUCCESS", "CLEAN_FAILURE"])
def test_what_is_best_effort_may_fail_without_failing_the_job(result: str) -> None:
    flow = a_running_flow(
        serially([task("h1", "switch"), task("h1", "drop", best_effort=True, step="DROP"), task("h1", "merge")])
    )
    flow.host_says("switch")
    flow.host_says("drop", result, error=BROKEN)
    flow.host_says("merge")
    assert flow.ended() is Status.FINISHED
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "FINISHED",
        "DROP": "FAILED",
        "FINALIZATION": "FINISHED",
    }


def test_a_whole_plan_may_be_best_effort() -> None:
    flow = a_running_flow(a_child("One"), {"One": task("h1", "drop", best_effort=True)})
    flow.host_says("drop", "CLEAN_FAILURE")
    assert flow.ended() is Status.FINISHED
    assert flow.child("One").status is CommandStatus.ENDED_SUCCESSFULLY


def test_a_lost_task_that_is_best_effort_does_not_fail_the_job() -> None:
    flow = a_running_flow(concurrently([task("h1", "drop", best_effort=True, step="DROP"), task("h1", "merge")]))
    flow.loses("drop")
    flow.host_says("merge")
    assert flow.ended() is Status.FINISHED
    assert flow.step("DROP").status is Status.UNKNOWN


# --- tasks that are lost, dirty, or refused --------------------------------------------------------------------------


@pytest.mark.rule("semantics §1: ExecutionStatus `UNKNOWN` its truth was lost, with a reason")
def test_the_step_of_a_lost_task_is_unknown_and_the_job_failed() -> None:
    flow = a_running_flow(task("h1", "copy", step="COPY_IMAGE", entity=DISK))
    flow.loses("copy")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["COPY_IMAGE"] == "UNKNOWN"
    assert flow.statuses()["EXECUTION"] == "FAILED"
    assert flow.job.error is not None
    assert flow.job.error.reason == "TASK_LOST"
    assert [(e.event_type, e.severity, e.entity) for e in flow.store.events] == [("TASK_LOST", "ALERT", DISK)]


def test_the_step_of_a_child_that_lost_its_task_is_unknown() -> None:
    flow = a_running_flow(a_child("One", step="DELETE_IMAGE"), {"One": task("h1", "delete")})
    flow.loses("delete")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["DELETE_IMAGE"] == "UNKNOWN"


def test_what_a_lost_child_means_survives_a_crash() -> None:
    plan = concurrently([a_child("One"), task("h1", "slow")], step="BOTH")
    flow = a_running_flow(plan, {"One": task("h1", "delete")})
    flow.report(flow.leaf("delete").task_id, "", lost=True, error=BROKEN)
    flow.advance(2)
    flow.crash()
    flow.host_says("slow")
    flow.advance(60)
    assert flow.statuses()["BOTH"] == "UNKNOWN"
    assert flow.ended() is Status.FAILED


def test_a_task_that_was_not_rolled_back_raises_an_alarm() -> None:
    flow = a_running_flow(concurrently([task("h1", "copy", entity=DISK), task("h1", "slow")]))
    flow.host_says("copy", "CLEAN_FAILURE", error=BROKEN)
    assert flow.event_types() == ["TASK_NOT_ROLLED_BACK"]  # stored at once, whatever else still runs


def test_a_task_that_failed_without_saying_why_is_given_a_reason() -> None:
    flow = a_running_flow(W1)
    flow.host_says("simWork", "CLEAN_SUCCESS")
    assert flow.job.error is not None
    assert flow.job.error.reason == "TASK_FAILED"
    assert "simWork" in flow.job.error.message


def test_a_task_that_somebody_stopped_on_its_host_is_aborted() -> None:
    flow = a_running_flow(task("h1", "copy", step="COPY_IMAGE"))
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.ended() is Status.ABORTED
    assert flow.statuses()["COPY_IMAGE"] == "ABORTED"


def test_a_call_keeps_its_answer() -> None:
    flow = a_running_flow(serially([call("h1", "createVm", entity=VM), task("h1", "slow")]))
    flow.host_says("createVm", answer={"pid": 7}, incarnation="i9", observation_number=12)
    [leaf] = [leaf for leaf in flow.store.leaves.values() if leaf.kind is LeafKind.CALL]
    assert leaf.answer == {"answer": {"pid": 7}, "observation_number": 12, "incarnation": "i9"}
    assert leaf.incarnation == "i9"


# --- refused before anything began -----------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: What `validate` or a lock refuses is a stored job too: VALIDATION FAILED with the")
def test_what_validate_refuses_is_a_stored_job_that_failed() -> None:
    flow = a_running_flow(Script(refused=REFUSED, locks=[VM]))
    assert (flow.commits, flow.answers, flow.ended()) == (1, 1, Status.FAILED)
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}
    assert flow.step("VALIDATION").error == flow.job.error == REFUSED
    assert flow.store.locks == {}
    assert flow.runs["end", flow.tree.root.command_id] == 0


def test_an_execute_that_raises_fails_the_step_execution() -> None:
    flow = a_running_flow(Script(raised=RAISED))
    assert flow.ended() is Status.FAILED
    assert flow.statuses() == {"VALIDATION": "FINISHED", "EXECUTION": "FAILED"}
    assert flow.job.error == RAISED


def test_a_plan_that_cannot_be_stored_is_the_commands_failure() -> None:
    deep = nothing()
    for _ in range(500):
        deep = serially([deep])
    flow = a_running_flow(deep)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "COMMAND_RAISED"


# --- limits ----------------------------------------------------------------------------------------------------------


def test_commands_nest_at_most_so_deep() -> None:
    flow = a_running_flow(a_child("Deeper"), {"Deeper": a_child("Deeper")}, thorough=False)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "LIMIT_EXCEEDED"
    assert len(flow.store.commands) == 1 + MAX_DEPTH


def test_a_flow_has_at_most_so_many_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_COMMANDS == 10_000
    monkeypatch.setattr("coordinator.flow.commandrunner.MAX_COMMANDS", 50)
    flow = a_running_flow(concurrently(a_child("One") for _ in range(50)), {"One": nothing()})
    assert flow.ended() is Status.FAILED
    assert len(flow.store.commands) == 50


def test_a_thousand_concurrent_children_are_one_commit() -> None:
    plan = concurrently(a_child("One", step="DELETE_IMAGE") for _ in range(1_000))
    flow = a_running_flow(plan, {"One": task("h1", "delete")}, thorough=False)
    assert (flow.commits, len(flow.begun), len(flow.steps("DELETE_IMAGE"))) == (1, 1_000, 1_000)


def test_many_children_cost_what_each_costs() -> None:
    """Counted in lines run, not in seconds."""
    few, many = _lines_run(15), _lines_run(150)
    assert many < 11 * few


def _lines_run(children: int) -> int:
    """Lines that the tree runs through in a flow whose children all change an entity and half of whom fail."""
    lines = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    plan = concurrently(a_child("One", step="DELETE_IMAGE") for _ in range(children))
    flow = a_flow(plan, {"One": Script(task("h1", "delete"), changes={DISK: "LOCKED"})}, thorough=False)
    handle, tracer = flow.tree.handle, sys.gettrace()

    def counted(event: ev.Event, now: float) -> list[ev.Effect]:
        sys.settrace(count)
        try:
            return handle(event, now)
        finally:
            sys.settrace(tracer)

    flow.tree.handle = counted  # type: ignore[method-assign]
    flow.submit()
    for n, task_id in enumerate(list(flow.begun)):
        flow.report(task_id, "CLEAN_SUCCESS" if n % 2 else "SUCCESS")
    assert flow.ended() is Status.FAILED
    return lines


@pytest.mark.rule("semantics §4: Description and subject names are resolved when the job is created")
def test_the_job_is_named_before_it_is_stored_and_never_after() -> None:
    flow = a_flow(W1)
    flow.hold = {"plan"}
    flow.submit()
    flow.tree.name("Removing VM one", {VM: "one"})
    flow.hold.clear()
    flow.settle()
    flow.tree.name("Something else", {VM: "other"})
    assert flow.job.description == "Removing VM one"
    assert [subject.name for subject in flow.job.subjects] == ["one"]
    assert flow.tree.job.description == "Removing VM one"
    assert flow.job.job_id == JOB_ID
