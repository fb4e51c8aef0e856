"""Commits that the store refuses, and planning that takes long."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import (
    DISK,
    DISK_2,
    HOST_STOPPED,
    RAISED,
    UNWILLING,
    VM,
    Scenario,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)
from tests.unit.coordinator.flow_store import conflict

from coordinator.flow import events as ev
from coordinator.flow.tree import CONFLICTS
from coordinator.plan import Change, Former, concurrently, nothing, serially, state, task, wait_for
from coordinator.rows import CommandStatus, Failure, Status

WORK = task("h1", "work", step="WORK")
MORE = task("h1", "more", step="MORE")
HELD = {VM: "job-7"}


def a_flow_among_others(plan: Script, children: dict[str, Script] | None = None, **options: object) -> Scenario:
    """A flow in a world where another job holds VM."""
    flow = a_flow(plan, children, **options)
    flow.store.foreign_locks = dict(HELD)
    return flow


# --- LOCKED ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: What `validate` or a lock refuses is a stored job too: VALIDATION FAILED with the")
def test_a_lock_that_another_job_holds_refuses_the_command_before_it_begins() -> None:
    flow = a_flow_among_others(Script(WORK, locks=[DISK, VM], changes={DISK: "LOCKED"}), entities=[DISK]).submit()
    assert (flow.ended(), flow.commits, flow.answers) == (Status.FAILED, 1, 1)
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}
    assert flow.job.error is not None
    assert (flow.job.error.reason, flow.job.error.metadata["job_id"]) == ("LOCKED", "job-7")
    assert (flow.store.leaves, flow.store.locks, flow.store.entity(DISK).status) == ({}, {}, "OK")
    assert flow.runs["plan", flow.tree.root.command_id] == 1


def test_a_lock_of_a_concurrent_child_refuses_the_whole_flow_while_nothing_has_begun() -> None:
    plan = concurrently([a_child("One", step="ONE"), a_child("Two", step="TWO")])
    flow = a_flow_among_others(Script(plan), {"One": Script(WORK), "Two": Script(MORE, locks=[VM])}).submit()
    assert flow.ended() is Status.FAILED
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}
    assert (len(flow.store.commands), flow.store.leaves) == (1, {})


def test_a_lock_of_a_best_effort_child_refuses_that_child_alone() -> None:
    plan = concurrently([a_child("One", step="ONE"), a_child("Two", step="TWO", best_effort=True)])
    flow = a_flow_among_others(Script(plan), {"One": Script(WORK), "Two": Script(MORE, locks=[VM])}).submit()
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED
    assert (flow.statuses()["ONE"], flow.statuses()["TWO"]) == ("FINISHED", "FAILED")


def test_a_lock_of_a_serial_child_refuses_that_child_when_its_turn_comes() -> None:
    plan = Script(serially([WORK, a_child("Two", step="TWO"), MORE]))
    flow = a_flow_among_others(plan, {"Two": Script(task("h1", "two"), locks=[VM])}).submit()
    flow.host_says("work")
    assert flow.ended() is Status.FAILED
    assert (flow.statuses()["WORK"], flow.statuses()["TWO"], flow.statuses()["MORE"]) == (
        "FINISHED",
        "FAILED",
        "SKIPPED",
    )
    assert flow.child("Two").status is CommandStatus.ENDED_WITH_FAILURE
    assert flow.job.error is not None
    assert flow.job.error.reason == "LOCKED"


def test_what_followed_a_child_in_the_refused_commit_is_taken_back_with_it() -> None:
    """The child had no work, so its successor began in the same commit; it must not begin after all."""
    moved = Change(entity=DISK, status="MOVED", former=Former("disk-1", "OK", {}))
    plan = serially([WORK, a_child("Two", step="TWO"), moved, wait_for(VM, until=state("UP")), MORE])
    flow = a_flow_among_others(Script(plan), {"Two": Script(nothing(), locks=[VM])}, entities=[DISK]).submit()
    flow.host_says("work")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["MORE"] == "SKIPPED"
    assert [leaf.verb for leaf in flow.store.leaves.values()] == ["work"]
    assert flow.store.entity(DISK).status == "OK"
    assert list(flow.tree.waits_for()) == []


def test_the_result_that_came_with_a_refused_commit_is_not_forgotten() -> None:
    plan = concurrently([serially([WORK, a_child("Two", step="TWO")]), MORE])
    flow = a_flow_among_others(Script(plan), {"Two": Script(task("h1", "two"), locks=[VM])}).submit()
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.host_says("more")  # gathers behind the commit that will be refused
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.FAILED
    assert (flow.statuses()["WORK"], flow.statuses()["MORE"], flow.statuses()["TWO"]) == (
        "FINISHED",
        "FINISHED",
        "FAILED",
    )


def test_a_cancel_that_came_with_a_refused_commit_is_not_forgotten() -> None:
    plan = concurrently([serially([WORK, a_child("Two", step="TWO")]), MORE])
    flow = a_flow_among_others(Script(plan), {"Two": Script(task("h1", "two"), locks=[VM])}).submit()
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert flow.cancel_answers == {1: None}
    assert flow.stopped == [flow.leaf("more").task_id]
    assert flow.event_types() == ["JOB_CANCELED"]
    flow.host_says("more", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.store.ended


def test_what_runs_is_not_started_again_because_a_commit_was_refused() -> None:
    plan = concurrently([serially([WORK, a_child("Two")]), MORE])
    flow = a_flow_among_others(Script(plan), {"Two": Script(task("h1", "two"), locks=[VM])}).submit()
    flow.history.clear()
    flow.host_says("work")
    assert not any(isinstance(effect, ev.Start) for effect in flow.history)


def test_code_that_runs_while_a_commit_is_refused_is_waited_for() -> None:
    plan = concurrently([serially([WORK, a_child("Two")]), serially([MORE, a_child("Three", step="THREE")])])
    children = {"Two": Script(task("h1", "two"), locks=[VM]), "Three": Script(task("h1", "three"))}
    flow = a_flow_among_others(Script(plan), children).submit()
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.hold = {"plan", "commit"}
    flow.host_says("more")
    [three] = flow.plans
    flow.record()  # refused, while Three is being planned
    flow.hold = set()
    flow.settle()
    assert flow.runs["plan", three] == 2
    assert flow.verbs() == ["three"]
    flow.host_says("three")
    assert flow.ended() is Status.FAILED


# --- CONFLICT --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: An entity that changed meanwhile: validate and execute again")
def test_a_plan_that_read_what_has_changed_is_made_again() -> None:
    flow = a_flow(Script(WORK, reads=[VM]), entities=[VM])
    flow.hold = {"commit"}
    flow.submit()
    flow.store.entities[VM].version += 1
    flow.hold.clear()
    flow.settle()
    assert flow.runs["plan", flow.tree.root.command_id] == 2
    assert (flow.commits, flow.answers, flow.verbs()) == (1, 1, ["work"])


@pytest.mark.rule("semantics §2: An entity that changed meanwhile: at most 3 times, then FAILED `CONFLICT`")
def test_it_is_made_again_at_most_so_often() -> None:
    flow = a_flow(Script(WORK, reads=[VM]), entities=[VM])
    flow.store.refusals = [conflict(VM) for _ in range(CONFLICTS + 1)]
    flow.submit()
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "CONFLICT"
    assert flow.runs["plan", flow.tree.root.command_id] == 1 + CONFLICTS
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}


def test_so_many_conflicts_are_survived() -> None:
    flow = a_flow(Script(WORK, reads=[VM]), entities=[VM])
    flow.store.refusals = [conflict(VM) for _ in range(CONFLICTS)]
    flow.submit()
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


def test_a_job_that_ended_in_its_first_commit_can_be_planned_again() -> None:
    flow = a_flow(Script(nothing(), changes={DISK: "LOCKED"}, ends={DISK: "OK"}), entities=[DISK])
    flow.store.refusals = [conflict(DISK)]
    flow.submit()
    assert (flow.ended(), flow.store.entity(DISK).version) == (Status.FINISHED, 3)


def test_a_job_that_ends_in_its_first_commit_and_meets_conflicts_for_ever_fails() -> None:
    flow = a_flow(Script(nothing(), ends={DISK: "OK"}), entities=[DISK])
    flow.store.refusals = [conflict(DISK) for _ in range(CONFLICTS + 1)]
    assert flow.submit().ended() is Status.FAILED


def test_a_serial_child_is_planned_again_without_what_went_before() -> None:
    plan = Script(serially([WORK, a_child("Two", step="TWO")]))
    flow = a_flow(plan, {"Two": Script(task("h1", "two"), reads=[VM])}, entities=[VM]).submit()
    flow.store.refusals = [conflict(VM)]
    flow.host_says("work")
    assert flow.runs["plan", flow.child("Two").command_id] == 2
    assert flow.runs["plan", flow.tree.root.command_id] == 1
    assert flow.verbs() == ["two"]


def test_a_serial_child_that_meets_conflicts_for_ever_fails() -> None:
    plan = Script(serially([WORK, a_child("Two", step="TWO")]))
    flow = a_flow(plan, {"Two": Script(task("h1", "two"), reads=[VM])}, entities=[VM]).submit()
    flow.store.refusals = [conflict(VM) for _ in range(CONFLICTS + 1)]
    flow.host_says("work")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["TWO"] == "FAILED"


def test_the_notes_of_an_end_are_made_again_from_what_is_there() -> None:
    flow = a_running_flow(Script(WORK, ends={DISK: "OK"}), entities=[DISK])
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.store.entities[DISK].version += 1
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.FINISHED
    assert flow.runs["end", flow.tree.root.command_id] == 2
    assert flow.store.occasions[flow.tree.root.command_id, "end"] == 1
    assert flow.child("Root").end_attempts == 0


def test_an_end_that_meets_conflicts_is_tried_for_ever_with_pauses() -> None:
    flow = a_running_flow(Script(WORK, ends={DISK: "OK"}), entities=[DISK])
    flow.store.refusals = [conflict(DISK) for _ in range(CONFLICTS + 4)]
    flow.host_says("work")
    assert not flow.store.ended
    assert flow.retries
    flow.advance(120)
    assert flow.ended() is Status.FINISHED
    assert flow.runs["end", flow.tree.root.command_id] == CONFLICTS + 5


def test_the_end_of_one_child_and_the_plan_of_the_next_are_both_made_again() -> None:
    plan = Script(serially([a_child("One"), a_child("Two")]))
    children = {"One": Script(WORK, ends={DISK: "OK"}), "Two": Script(MORE, reads=[DISK])}
    flow = a_running_flow(plan, children, entities=[DISK])
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.store.entities[DISK].version += 1
    flow.hold.clear()
    flow.settle()
    assert flow.verbs() == ["more"]
    flow.host_says("more")
    assert flow.ended() is Status.FINISHED


def test_a_conflict_does_not_count_an_end_method_that_raised_twice() -> None:
    flow = a_running_flow(Script(WORK, end_raises=1, ends={DISK: "OK"}), entities=[DISK])
    flow.host_says("work")
    flow.store.refusals = [conflict(DISK)]
    flow.advance(60)
    assert flow.ended() is Status.FINISHED
    assert flow.child("Root").end_attempts == 2


def test_words_from_outside_while_the_next_try_waits_are_not_lost() -> None:
    plan = Script(concurrently([a_child("One"), MORE]))
    flow = a_running_flow(plan, {"One": Script(WORK, ends={DISK: "OK"})}, entities=[DISK])
    flow.store.refusals = [conflict(DISK) for _ in range(CONFLICTS + 1)]
    flow.host_says("work")
    flow.advance(2)
    flow.host_says("more")
    flow.cancel()
    flow.advance(120)
    assert flow.store.ended
    assert 1 in flow.cancel_answers


# --- other refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["STALE_EPOCH", "LEASE_LOST", "SEQUENCE_MISMATCH", "JOB_ENDED"])
def test_a_flow_that_is_not_ours_any_more_is_abandoned(why: str) -> None:
    flow = a_running_flow(WORK)
    flow.store.refusals = [Failure(9, why, "not yours")]
    flow.host_says("work")
    assert flow.abandoned
    flow.history.clear()
    flow.cancel()
    flow.take(ev.TimerFired("progress"))
    assert flow.history == []


def test_a_first_commit_that_is_refused_otherwise_is_the_submitters_to_know() -> None:
    flow = a_flow(WORK)
    flow.store.refusals = [Failure(6, "REQUEST_ID_REUSED", "used with another body")]
    flow.submit()
    assert flow.refused is not None
    assert flow.refused.reason == "REQUEST_ID_REUSED"
    assert (flow.done, flow.answers, flow.store.job) == (1, 0, None)


def test_a_later_commit_that_is_refused_for_no_reason_of_the_flows_is_made_again_and_again() -> None:
    flow = a_running_flow(WORK)
    flow.store.refusals = [UNWILLING] * 12
    flow.host_says("work")
    pauses = []
    while not flow.store.ended:
        pauses.append(flow.timers["retry"] - flow.now)
        flow.fire("retry")
    assert flow.ended() is Status.FINISHED
    assert flow.retries == [UNWILLING] * 12
    assert pauses == sorted(pauses)
    assert (round(pauses[0], 3), round(pauses[-1], 3)) == (0.4, 30.0)
    assert flow.runs["end", flow.tree.root.command_id] == 1


def test_what_comes_while_a_refused_commit_waits_rides_with_it() -> None:
    flow = a_running_flow(concurrently([serially([WORK, MORE]), serially([task("h1", "a"), task("h1", "b")])]))
    flow.store.refusals = [UNWILLING]
    flow.host_says("work")
    flow.host_says("a")
    assert flow.commits == 1
    flow.fire("retry")
    assert (flow.commits, flow.verbs()) == (2, ["b", "more"])


def test_a_step_that_was_made_and_ended_while_its_commit_waited_is_stored_once() -> None:
    flow = a_running_flow(serially([WORK, a_child("Two")]), {"Two": wait_for(VM, until=state("UP"), step="SEEN")})
    flow.store.refusals = [UNWILLING]
    flow.host_says("work")
    flow.sees(VM, "UP", 1)
    flow.fire("retry")
    assert flow.ended() is Status.FINISHED


def test_a_lock_that_nobody_here_wanted_is_waited_for() -> None:
    flow = a_running_flow(WORK)
    flow.store.refusals = [Failure(9, "LOCKED", "?", {"entity_type": "VM", "entity_id": "?"})]
    flow.host_says("work")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED


# --- planning that takes long ----------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Planning that takes over 50 ms: the job is committed (VALIDATION STARTED) and")
def test_when_planning_takes_long_the_job_is_stored_and_answered_alone() -> None:
    flow = a_flow(WORK)
    flow.hold = {"plan"}
    flow.submit()
    assert (flow.commits, flow.answers) == (0, 0)
    flow.advance(0.05)
    assert (flow.commits, flow.answers) == (1, 1)
    assert flow.statuses() == {"VALIDATION": "STARTED", "EXECUTION": "PENDING"}
    flow.hold.clear()
    flow.settle()
    assert (flow.commits, flow.answers, flow.verbs()) == (2, 1, ["work"])
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


def test_how_long_the_submitter_waits_for_the_plan_can_be_said() -> None:
    flow = a_flow(WORK, plan_seconds=3.0)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(2.9)
    assert flow.answers == 0
    flow.advance(0.1)
    assert flow.answers == 1


def test_when_only_children_take_long_what_is_planned_goes_first() -> None:
    flow = a_flow(concurrently([a_child("Quick"), a_child("Slow")]), {"Quick": Script(WORK), "Slow": Script(MORE)})
    flow.hold = {"plan"}
    flow.submit()
    for _ in ("Root", "Quick"):
        flow.plan(next(iter(flow.plans)))
    flow.advance(0.05)
    assert (flow.answers, flow.verbs()) == (1, ["work"])
    flow.hold.clear()
    flow.settle()
    assert flow.verbs() == ["more", "work"]


def test_a_slow_plan_that_is_refused_ends_the_stored_job() -> None:
    flow = a_flow(Script(raised=RAISED))
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(0.05)
    flow.hold.clear()
    flow.settle()
    assert (flow.ended(), flow.commits) == (Status.FAILED, 2)


def test_a_slow_plan_without_work_keeps_its_seal() -> None:
    flow = a_flow(serially([nothing(), nothing()]))
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(0.05)
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.FINISHED
    assert flow.child("Root").plans == [{"kind": "serially", "plans": [{"kind": "nothing"}, {"kind": "nothing"}]}]


def test_a_lock_that_a_slow_plan_wants_refuses_the_stored_job() -> None:
    flow = a_flow_among_others(Script(WORK, locks=[VM]))
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(0.05)
    flow.hold.clear()
    flow.settle()
    assert (flow.ended(), flow.commits, flow.store.leaves) == (Status.FAILED, 2, {})
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}


def test_what_follows_a_stored_child_that_is_refused_is_done() -> None:
    moved = Change(entity=DISK, status="MOVED", former=Former("disk-1", "OK", {}))
    plan = serially([a_child("Slow", best_effort=True), moved, WORK])
    flow = a_flow_among_others(Script(plan), {"Slow": Script(MORE, locks=[VM])}, entities=[DISK])
    flow.hold = {"plan"}
    flow.submit()
    flow.plan(next(iter(flow.plans)))
    flow.advance(0.05)  # the child is stored before it is planned
    flow.hold.clear()
    flow.settle()
    assert (flow.verbs(), flow.store.entity(DISK).status) == (["work"], "MOVED")


def test_a_crash_while_planning_takes_long_plans_again() -> None:
    flow = a_flow(Script(WORK, changes={DISK: "LOCKED", DISK_2: "LOCKED"}))
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(0.05)
    flow.crash()
    flow.hold.clear()
    flow.settle()
    assert flow.verbs() == ["work"]
    assert [snapshot.number for snapshot in flow.store.snapshots] == [1, 2]
