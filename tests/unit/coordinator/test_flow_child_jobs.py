"""Children that show as jobs of their own; beside them those that show as steps, and those that do not show at all."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    HOST_STOPPED,
    JOB_ID,
    REFUSED,
    VM,
    Scenario,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)

from coordinator.flow import events as ev
from coordinator.flow.reuse import Reuse
from coordinator.plan import EntityRef, Plan, concurrently, serially, task
from coordinator.rows import Status

COPY = task("h1", "copy", step="COPY_IMAGE")
MOVE = task("h1", "move", step="MOVE_IMAGE")
PART = a_child("Part", as_job=True, description="Doing the part")


def a_flow_with_a_part(plan: Plan | Script = COPY, **options: Any) -> Scenario:
    """A flow whose only child shows as a job, and has begun."""
    return a_running_flow(PART, {"Part": plan}, **options)


@pytest.mark.rule("semantics §2: ExecutionContext decides how a command shows: as a job (default when submitted)")
@pytest.mark.rule("semantics §2: A child shows no steps and makes no job unless asked to")
def test_one_child_shows_as_a_job_one_as_a_step_one_not_at_all() -> None:
    children: dict[str, Plan | Script] = {"Part": COPY, "Shown": MOVE, "Hidden": task("h1", "sync")}
    plan = concurrently([PART, a_child("Shown", step="CLONE_IMAGE_STRUCTURE"), a_child("Hidden")])
    flow = a_running_flow(plan, children)
    assert list(flow.statuses()) == ["VALIDATION", "EXECUTION", "CLONE_IMAGE_STRUCTURE", "MOVE_IMAGE", "FINALIZATION"]
    part = flow.child_job("Part")
    assert list(flow.tree_of(part)) == ["VALIDATION", "EXECUTION", "COPY_IMAGE", "FINALIZATION"]
    assert len(flow.store.child_jobs) == 1
    for verb in ("copy", "move", "sync"):
        flow.host_says(verb)
    assert flow.ended() is Status.FINISHED
    assert (part.status, part.progress) == (Status.FINISHED, 100)
    assert set(flow.tree_of(part).values()) == {"FINISHED"}


@pytest.mark.rule("semantics §2: It carries job id, step id, correlation id, trace context, owner, visibility")
def test_its_job_carries_on_what_the_job_above_it_is() -> None:
    flow = a_flow(PART, {"Part": COPY}, deadline=5_000_000.0)
    job = flow.tree.job
    job.trace_id, job.visible, job.priority = "4bf92f3577b34da6a3ce929d0e0e4736", False, 3
    flow.tree.root.span_id = "00f067aa0ba902b7"
    flow.submit()
    part, row = flow.child_job("Part"), flow.child("Part")
    assert (part.parent_job_id, part.command_id) == (JOB_ID, row.command_id)
    assert (part.correlation_id, part.owner) == (job.correlation_id, job.owner) == ("corr-1", "somebody")
    assert (part.trace_id, part.span_id) == (job.trace_id, row.span_id)
    assert (part.visible, part.priority, part.deadline) == (False, 3, 5_000_000.0)
    assert part.description == "Doing the part"
    leaf = flow.leaf("copy")
    assert flow.store.steps[leaf.step_id].job_id == part.job_id


@pytest.mark.rule("semantics §2: Visibility of a command decides that of its steps")
def test_what_is_below_it_shows_where_it_does() -> None:
    below: dict[str, Plan | Script] = {"Part": concurrently([a_child("Deeper"), a_child("Own", as_job=True)])}
    flow = a_running_flow(PART, {**below, "Deeper": COPY, "Own": MOVE})
    part, own = flow.child_job("Part"), flow.child_job("Own")
    assert "COPY_IMAGE" in flow.tree_of(part)  # of who does not show, in the job around it
    assert "MOVE_IMAGE" not in flow.tree_of(part)
    assert "MOVE_IMAGE" in flow.tree_of(own)
    assert own.parent_job_id == part.job_id
    assert {"COPY_IMAGE", "MOVE_IMAGE"}.isdisjoint(flow.statuses())


def test_it_begins_and_ends_in_the_commits_of_its_command() -> None:
    flow = a_running_flow(serially([MOVE, PART, task("h1", "sync")]), {"Part": COPY})
    assert not flow.store.child_jobs
    flow.host_says("move")
    part, row = flow.child_job("Part"), flow.child("Part")
    assert (part.status, row.status.ended) == (Status.STARTED, False)
    begun = [commit for commit in flow.store.commits if commit.new_child_jobs]
    assert [command.command_id for commit in begun for command in commit.new_commands] == [row.command_id]
    flow.host_says("copy")
    assert (part.status, row.status.ended) == (Status.FINISHED, True)
    assert flow.job.status is Status.STARTED  # what is above it goes on
    flow.host_says("sync")
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("held", ["plan", "commit", "end", ""])
@pytest.mark.parametrize("commit_is_lost", [True, False])
def test_whoever_takes_the_flow_up_goes_on_with_the_same_job(held: str, commit_is_lost: bool) -> None:
    flow = a_flow(PART, {"Part": COPY})
    flow.hold = {held} if held == "commit" else set()
    if held == "commit":
        flow.hold = set()
        flow.submit()
        flow.hold = {"commit"}
        flow.host_says("copy")  # its end is on its way
    elif held == "end":
        flow.submit()
        flow.hold = {"end"}
        flow.host_says("copy")
    elif held == "plan":
        flow.hold = {"plan"}
        flow.submit()
        flow.plan(next(iter(flow.plans)))  # the root's; the child's is still thought about
        flow.advance(1)  # the submitter waits no longer
    else:
        flow.submit()
    known = set(flow.store.child_jobs)
    flow.hold = set()
    flow.crash(commit_is_lost=commit_is_lost)
    if not flow.store.ended and flow.verbs():
        flow.host_says("copy")
    flow.advance(1)  # runs of end methods are counted now, one after the other
    flow.advance(1)
    assert flow.store.ended
    assert flow.job.status is Status.FINISHED
    part = flow.child_job("Part")
    assert part.status is Status.FINISHED
    assert known <= {part.job_id}


def test_its_failure_is_its_own_and_what_is_above_follows_the_plan() -> None:
    best_effort = a_child("Part", as_job=True, best_effort=True)
    flow = a_running_flow(best_effort, {"Part": COPY})
    flow.host_says("copy", "CLEAN_SUCCESS", error=BROKEN)
    part = flow.child_job("Part")
    assert (flow.ended(), part.status, part.error) == (Status.FINISHED, Status.FAILED, BROKEN)
    assert flow.tree_of(part)["EXECUTION"] == "FAILED"


def test_one_that_is_refused_is_a_job_that_failed_in_validation() -> None:
    flow = a_flow_with_a_part(Script(COPY, refused=REFUSED))
    part = flow.child_job("Part")
    assert (part.status, part.error) == (Status.FAILED, REFUSED)
    assert flow.tree_of(part) == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}
    assert flow.ended() is Status.FAILED


def test_it_stops_with_the_job_above_it() -> None:
    flow = a_flow_with_a_part()
    flow.cancel()
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert (flow.ended(), flow.child_job("Part").status) == (Status.ABORTED, Status.ABORTED)


def test_it_has_the_priority_that_the_job_above_it_gets() -> None:
    flow = a_flow_with_a_part()
    assert flow.wish(ev.PriorityAsked(1, 7, "ada")) is None
    assert flow.child_job("Part").priority == 7


def test_one_whose_turn_never_comes_is_no_job() -> None:
    flow = a_running_flow(serially([MOVE, PART]), {"Part": COPY})
    flow.host_says("move", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert not flow.store.child_jobs


def test_its_progress_is_that_of_its_own_work() -> None:
    flow = a_running_flow(concurrently([PART, MOVE]), {"Part": COPY})
    flow.report(flow.leaf("copy").task_id, "", progress=50)
    flow.advance(2)
    assert (flow.child_job("Part").progress, flow.job.progress) == (50, 25)


def test_what_a_former_flow_has_done_well_is_no_job_again() -> None:
    plan = serially([PART, MOVE])
    former = a_running_flow(plan, {"Part": COPY})
    former.host_says("copy")
    former.host_says("move", "CLEAN_SUCCESS", error=BROKEN)
    flow = a_running_flow(plan, {"Part": COPY}, reuse=Reuse(former.store.rows()))
    assert (flow.verbs(), flow.store.child_jobs) == (["move"], {})
    flow.host_says("move")
    assert flow.ended() is Status.FINISHED


# --- names -----------------------------------------------------------------------------------------------------------

SAID = {VM: "web"}


def test_names_that_come_after_the_job_was_stored_come_with_the_next_commit() -> None:
    flow = a_flow(COPY)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(1)  # planning takes long: the job is stored alone, named by ids
    assert (flow.job.description, flow.job.subjects) == ("Doing the work", ())
    flow.tree.name("Doing the work on web", SAID)
    flow.hold = set()
    flow.settle()
    assert flow.job.description == "Doing the work on web"
    assert [subject.name for subject in flow.job.subjects] == ["web"]
    assert len([commit for commit in flow.store.commits if commit.named]) == 1
    flow.tree.name("Doing something else", {VM: "db"})
    flow.host_says("copy")
    assert flow.job.description == "Doing the work on web"  # once it has names they stay


def test_a_crash_before_the_names_are_stored_brings_them_later() -> None:
    flow = a_flow(COPY)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(1)
    flow.crash()
    assert flow.tree.is_to_be_named(flow.tree.root.command_id)
    flow.tree.name("Doing the work on web", SAID)
    flow.hold = set()
    flow.settle()
    assert flow.job.description == "Doing the work on web"


def test_the_job_of_a_child_is_named_by_its_own_code_unless_the_plan_does() -> None:
    flow = a_flow(concurrently([a_child("Nameless", as_job=True), PART]), {"Nameless": COPY, "Part": MOVE})
    flow.hold = {"plan"}
    flow.submit()
    flow.plan(next(iter(flow.plans)))
    for command_id in flow.plans:
        flow.tree.name("Copying web", SAID, command_id, ("storage",))
    flow.hold = set()
    flow.settle()
    nameless = flow.child_job("Nameless")
    assert (nameless.description, nameless.categories) == ("Copying web", ("storage",))
    assert flow.child_job("Part").description == "Doing the part"
    assert [EntityRef(s.entity_type, s.entity_id) for s in nameless.subjects] == [VM]


def test_a_wish_to_stop_comes_to_the_job_above() -> None:
    flow = a_flow_with_a_part()
    assert flow.wish(ev.StopAsked(1, (), "ada")) is None
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert (flow.child_job("Part").status, flow.ended()) == (Status.ABORTED, Status.ABORTED)
