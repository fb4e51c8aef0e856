"""Cancels and deadlines: what each kind of command does when it is asked to stop, in each phase of its life."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    DISK,
    HOST_STOPPED,
    REFUSED,
    VM,
    Scenario,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)

from coordinator.flow import events as ev
from coordinator.plan import Plan, call, change, concurrently, nothing, serially, state, task, wait_for
from coordinator.rows import Cancel, CommandStatus, Status
from coordinator.world import Entity

WORK = task("h1", "work", step="WORK")
THEN_MORE = serially([WORK, task("h1", "more", step="MORE")])


def reason(flow: Scenario, token: int = 1) -> str:
    """Why the cancel was refused; empty if it was taken."""
    failure = flow.cancel_answers[token]
    return failure.reason if failure is not None else ""


def stops(flow: Scenario, verb: str) -> None:
    """The host has stopped the task and rolled it back."""
    flow.host_says(verb, "CLEAN_SUCCESS", error=HOST_STOPPED)


# --- what a cancel does ----------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §1: ExecutionStatus `ABORTED` stopped on request")
def test_a_cancelled_job_stops_its_running_tasks() -> None:
    flow = a_running_flow(THEN_MORE)
    flow.cancel()
    assert reason(flow) == ""
    assert flow.stopped == [flow.leaf("work").task_id]
    assert not flow.store.ended
    stops(flow, "work")
    assert flow.ended() is Status.ABORTED
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "ABORTED",
        "WORK": "ABORTED",
        "MORE": "SKIPPED",
        "FINALIZATION": "FINISHED",
    }
    assert flow.job.error is not None
    assert (flow.job.error.reason, flow.job.error.message) == ("ABORTED", "cancelled by ada")


def test_the_wish_is_durable_before_it_is_answered_and_before_anything_is_stopped() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"commit"}
    flow.cancel()
    assert (flow.cancel_answers, flow.stopped) == ({}, [])
    flow.record()
    assert (reason(flow), len(flow.stopped)) == ("", 1)
    assert flow.job.cancel_requested_by == "ada"


def test_a_cancel_is_told_once_in_the_events() -> None:
    flow = a_running_flow(WORK)
    flow.cancel(1)
    flow.cancel(2, user="bob")
    stops(flow, "work")
    assert flow.event_types() == ["JOB_CANCELED"]
    assert flow.store.events[0].user == "ada"
    assert (reason(flow, 1), reason(flow, 2)) == ("", "")


def test_everything_that_ended_well_all_the_same_is_finished() -> None:
    flow = a_running_flow(WORK)
    flow.cancel()
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


def test_what_would_come_next_is_skipped_even_if_the_running_part_ended_well() -> None:
    flow = a_running_flow(THEN_MORE)
    flow.cancel()
    flow.host_says("work")
    assert flow.ended() is Status.ABORTED
    assert (flow.statuses()["WORK"], flow.statuses()["MORE"]) == ("FINISHED", "SKIPPED")


def test_a_part_that_fails_by_itself_while_it_is_being_stopped_has_failed() -> None:
    flow = a_running_flow(concurrently([WORK, task("h1", "other", step="OTHER")]))
    flow.cancel()
    stops(flow, "work")
    flow.host_says("other", "CLEAN_FAILURE", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert (flow.statuses()["WORK"], flow.statuses()["OTHER"]) == ("ABORTED", "FAILED")


def test_a_stop_that_could_not_roll_back_has_failed_also_after_a_crash() -> None:
    plan = concurrently([a_child("One", step="ONE"), task("h1", "other")], step="BOTH")
    flow = a_running_flow(plan, {"One": task("h1", "work")})
    flow.cancel()
    flow.host_says("work", "CLEAN_FAILURE", error=HOST_STOPPED)
    flow.crash()
    stops(flow, "other")
    flow.advance(60)
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["BOTH"] == "FAILED"


@pytest.mark.rule("semantics §2: `call(host, verb, arguments)`: the host has answered")
def test_calls_are_awaited() -> None:
    flow = a_running_flow(serially([call("h1", "createVm"), WORK]))
    flow.cancel()
    assert (flow.stopped, flow.store.ended) == ([], False)
    flow.host_says("createVm")
    assert flow.ended() is Status.ABORTED
    assert flow.statuses()["WORK"] == "SKIPPED"


def test_waits_end_at_once() -> None:
    flow = a_running_flow(wait_for(VM, until=state("UP"), step="SEEN"))
    flow.cancel()
    assert flow.ended() is Status.ABORTED
    assert flow.statuses()["SEEN"] == "ABORTED"


def test_a_cancel_reaches_the_tasks_of_children() -> None:
    plan = concurrently(a_child("One", step="DELETE_IMAGE") for _ in range(3))
    flow = a_running_flow(plan, {"One": task("h1", "delete")})
    flow.cancel()
    assert len(flow.stopped) == 3
    for task_id in list(flow.begun):
        flow.report(task_id, "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.ended() is Status.ABORTED
    assert flow.statuses()["DELETE_IMAGE"] == "ABORTED ABORTED ABORTED"


def test_a_skipped_part_names_the_cancel() -> None:
    flow = a_running_flow(THEN_MORE)
    flow.cancel()
    flow.host_says("work")
    error = flow.step("MORE").error
    assert error is not None
    assert "cancelled" in error.message


# --- phases ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: Cancel a job: while PENDING → ABORTED, no host call")
def test_a_job_that_is_cancelled_while_it_is_planned_calls_no_host() -> None:
    flow = a_flow(Script(WORK, locks=[VM]))
    flow.hold = {"plan"}
    flow.submit()
    flow.cancel()
    assert flow.ended() is Status.ABORTED
    assert flow.statuses() == {"VALIDATION": "ABORTED", "EXECUTION": "SKIPPED"}
    flow.hold.clear()
    flow.settle()
    assert (flow.store.leaves, flow.commits) == ({}, 1)


def test_a_job_that_is_cancelled_while_its_planning_is_slow_calls_no_host() -> None:
    flow = a_flow(WORK)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(1)
    assert (flow.commits, flow.answers) == (1, 1)
    flow.cancel()
    assert (flow.ended(), flow.commits) == (Status.ABORTED, 2)


def test_a_cancel_amid_the_first_commit_stops_what_that_commit_begins() -> None:
    flow = a_flow(WORK)
    flow.hold = {"commit"}
    flow.submit()
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert flow.stopped == [flow.leaf("work").task_id]
    stops(flow, "work")
    assert flow.ended() is Status.ABORTED


def test_a_cancel_while_a_child_is_planned_keeps_it_from_beginning() -> None:
    flow = a_running_flow(serially([WORK, a_child("Next", step="NEXT")]), {"Next": task("h1", "more")})
    flow.hold = {"plan"}
    flow.host_says("work")
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.ABORTED
    assert flow.statuses()["NEXT"] == "ABORTED"
    assert len(flow.store.leaves) == 1


def test_a_cancel_while_the_end_method_runs_is_too_late() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"end"}
    flow.host_says("work")
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert (reason(flow), flow.ended()) == ("NOT_CANCELABLE", Status.FINISHED)


@pytest.mark.rule("semantics §8: Racing with completion → the one terminal transition decides, the reply says which")
def test_a_cancel_amid_the_last_commit_is_too_late() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert (reason(flow), flow.ended()) == ("JOB_ENDED", Status.FINISHED)
    order = [type(effect) for effect in flow.history]
    assert order.index(ev.AnswerCancel) < order.index(ev.Done)


def test_a_cancel_of_an_ended_job_is_refused() -> None:
    flow = a_running_flow(nothing())
    flow.cancel()
    assert reason(flow) == "JOB_ENDED"


def test_a_cancel_while_an_end_method_of_a_child_waits_is_taken() -> None:
    plan = serially([a_child("One"), task("h1", "more", step="MORE")])
    flow = a_running_flow(plan, {"One": Script(WORK, end_raises=1)})
    flow.host_says("work")
    flow.cancel()
    flow.advance(60)
    assert (reason(flow), flow.ended()) == ("", Status.ABORTED)
    assert flow.statuses()["MORE"] == "SKIPPED"


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: While running → by the command type's kind: `NONE`")
@pytest.mark.parametrize("planning", [True, False])
def test_some_commands_cannot_be_cancelled(planning: bool) -> None:
    flow = a_flow(WORK, cancel=Cancel.NONE)
    flow.hold = {"plan"} if planning else set()
    flow.submit()
    flow.cancel()
    flow.hold.clear()
    flow.settle()
    assert reason(flow) == "NOT_CANCELABLE"
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


@pytest.mark.rule("semantics §8: While running → by the command type's kind: `BEFORE_START`")
def test_some_commands_can_be_cancelled_before_they_start_only() -> None:
    flow = a_running_flow(WORK, cancel=Cancel.BEFORE_START)
    assert flow.job.cancelable is Cancel.NONE
    flow.cancel()
    assert reason(flow) == "NOT_CANCELABLE"


def test_before_they_start_they_are_aborted() -> None:
    flow = a_flow(WORK, cancel=Cancel.BEFORE_START)
    flow.hold = {"plan"}
    flow.submit()
    flow.cancel()
    assert flow.ended() is Status.ABORTED


TO_THE_OTHER_SIDE = serially([task("h1", "copy"), task("h1", "switch", no_return=True), task("h1", "drop")])


@pytest.mark.rule("semantics §8: `FINISH_FORWARD`: like REVERT until a node marked `no_return` has begun")
def test_until_the_point_of_no_return_a_cancel_reverts() -> None:
    flow = a_running_flow(TO_THE_OTHER_SIDE, cancel=Cancel.FINISH_FORWARD)
    assert flow.job.cancelable is Cancel.FINISH_FORWARD
    flow.cancel()
    stops(flow, "copy")
    assert flow.ended() is Status.ABORTED


@pytest.mark.rule("semantics §8: `FINISH_FORWARD`: like REVERT until a node marked `no_return` has begun, afterwards")
def test_past_the_point_of_no_return_a_cancel_is_refused() -> None:
    flow = a_running_flow(TO_THE_OTHER_SIDE, cancel=Cancel.FINISH_FORWARD)
    flow.host_says("copy")
    assert flow.job.cancelable is Cancel.NONE
    flow.cancel()
    assert reason(flow) == "PAST_NO_RETURN"
    flow.crash()
    flow.cancel(2)
    assert reason(flow, 2) == "PAST_NO_RETURN"


@pytest.mark.rule("semantics §8: `FINISH_FORWARD`: like REVERT until a node marked `no_return` has begun (default: the")
@pytest.mark.parametrize("plan", [WORK, concurrently([a_child("One")]), serially([nothing(), WORK])])
def test_a_plan_that_names_no_point_of_no_return_has_it_where_it_begins(plan: Plan) -> None:
    flow = a_running_flow(plan, {"One": WORK}, cancel=Cancel.FINISH_FORWARD)
    assert flow.job.cancelable is Cancel.NONE
    flow.cancel()
    assert reason(flow) == "PAST_NO_RETURN"


def test_a_point_of_no_return_that_a_cancel_keeps_from_beginning_is_never_passed() -> None:
    flow = a_running_flow(TO_THE_OTHER_SIDE, cancel=Cancel.FINISH_FORWARD)
    flow.cancel()
    flow.host_says("copy")
    assert flow.ended() is Status.ABORTED
    assert flow.job.cancelable is Cancel.NONE


@pytest.mark.rule("semantics §8: While running → by the command type's kind, shown as `cancelable`")
@pytest.mark.parametrize("kind", list(Cancel))
def test_what_is_shown_of_a_kind_is_shown_until_it_is_no_longer_true(kind: Cancel) -> None:
    flow = a_flow(WORK, cancel=kind)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(1)
    assert flow.job.cancelable is kind
    flow.hold.clear()
    flow.settle()
    flow.host_says("work")
    assert flow.job.cancelable is Cancel.NONE


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_a_cancel_goes_on_after_a_crash() -> None:
    flow = a_running_flow(THEN_MORE)
    flow.cancel()
    flow.crash()
    assert flow.stopped[-1] == flow.leaf("work").task_id
    stops(flow, "work")
    flow.advance(60)
    assert flow.ended() is Status.ABORTED
    assert flow.event_types() == ["JOB_CANCELED"]


@pytest.mark.rule("semantics §2: Every flow goes on: what was not recorded has had no effect")
def test_a_cancel_that_was_not_stored_has_not_been() -> None:
    flow = a_running_flow(THEN_MORE)
    flow.hold = {"commit"}
    flow.cancel()
    flow.crash()
    flow.hold.clear()
    assert flow.cancel_answers == {}
    flow.host_says("work")
    flow.host_says("more")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("ends_well", [True, False])
def test_what_a_cancel_left_out_stays_left_out_after_a_crash(ends_well: bool) -> None:
    moved = change(Entity(DISK, "disk-1", version=1), status="MOVED")
    branch = serially([task("h1", "first"), moved, nothing(), serially([nothing(), task("h1", "second")]), moved])
    flow = a_running_flow(concurrently([branch, WORK]), entities=[DISK])
    flow.cancel()
    flow.host_says("first")
    flow.advance(2)
    flow.crash()
    flow.host_says("work", "SUCCESS" if ends_well else "CLEAN_SUCCESS", error=None if ends_well else HOST_STOPPED)
    flow.advance(60)
    assert flow.ended() is Status.ABORTED
    assert len(flow.store.leaves) == 2


# --- through the store -----------------------------------------------------------------------------------------------


def test_an_intent_from_the_store_is_dealt_with_in_the_commit_that_takes_it() -> None:
    flow = a_running_flow(WORK)
    flow.cancel(0, request_id="r1")
    assert flow.store.commits[-1].handled_requests == ["r1"]
    assert flow.job.cancel_requested_by == "ada"


def test_an_intent_that_is_refused_is_dealt_with_too() -> None:
    flow = a_running_flow(WORK, cancel=Cancel.NONE)
    flow.cancel(0, request_id="r1")
    assert flow.store.handled == {"r1": 1}
    assert flow.job.cancel_requested_by == ""


def test_an_intent_that_is_repeated_is_dealt_with_once() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"commit"}
    flow.cancel(0, request_id="r1")
    flow.cancel(0, request_id="r1")
    flow.hold.clear()
    flow.settle()
    flow.cancel(0, request_id="r1")
    assert flow.store.handled == {"r1": 1}


def test_an_intent_that_comes_amid_the_last_commit_needs_no_answer() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"commit"}
    flow.host_says("work")
    flow.cancel(0, request_id="r1")
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.FINISHED


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_job_whose_deadline_passes_is_stopped_and_has_failed() -> None:
    flow = a_running_flow(THEN_MORE, deadline=1_000_060.0)
    flow.advance(59)
    assert flow.stopped == []
    flow.advance(1)
    assert len(flow.stopped) == 1
    stops(flow, "work")
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"
    assert (flow.statuses()["WORK"], flow.statuses()["MORE"]) == ("ABORTED", "SKIPPED")
    assert flow.event_types() == ["JOB_DEADLINE_EXCEEDED"]


def test_a_deadline_that_passed_goes_on_after_a_crash() -> None:
    flow = a_running_flow(THEN_MORE, deadline=1_000_060.0)
    flow.advance(60)
    flow.crash()
    stops(flow, "work")
    flow.advance(60)
    assert flow.ended() is Status.FAILED
    assert flow.event_types() == ["JOB_DEADLINE_EXCEEDED"]


def test_a_deadline_that_passes_while_nobody_runs_the_flow_is_noticed() -> None:
    flow = a_running_flow(WORK, deadline=1_000_060.0)
    flow.now += 100
    flow.crash()
    flow.advance(0)
    assert len(flow.stopped) == 1


def test_a_deadline_stops_only_what_a_cancel_would() -> None:
    flow = a_running_flow(WORK, cancel=Cancel.FINISH_FORWARD, deadline=1_000_060.0)
    flow.advance(60)
    assert flow.stopped == []
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


def test_a_deadline_that_passes_while_the_job_is_planned_calls_no_host() -> None:
    flow = a_flow(WORK, deadline=1_000_000.01)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(0.02)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"


def test_a_deadline_after_a_cancel_changes_nothing() -> None:
    flow = a_running_flow(WORK, deadline=1_000_060.0)
    flow.cancel()
    flow.advance(60)
    stops(flow, "work")
    assert flow.ended() is Status.ABORTED
    assert flow.event_types() == ["JOB_CANCELED"]


LIMITED = task("h1", "work", step="WORK", deadline=30)


def test_a_task_past_its_deadline_is_stopped_and_fails_only_when_the_host_confirms() -> None:
    flow = a_running_flow(LIMITED)
    flow.advance(30)
    assert flow.stopped == [flow.leaf("work").task_id]
    assert not flow.store.ended
    stops(flow, "work")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["WORK"] == "FAILED"
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"


def test_a_task_that_is_done_before_the_stop_reaches_it_is_done() -> None:
    flow = a_running_flow(LIMITED)
    flow.advance(30)
    flow.host_says("work")
    assert flow.ended() is Status.FINISHED


def test_the_deadline_of_a_task_is_the_same_after_a_crash() -> None:
    flow = a_running_flow(LIMITED)
    flow.now += 31
    flow.crash()
    flow.advance(0)
    assert flow.stopped == [flow.leaf("work").task_id]


def test_a_task_that_failed_by_itself_is_not_blamed_on_its_deadline() -> None:
    flow = a_running_flow(LIMITED)
    flow.advance(30)
    flow.host_says("work", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.job.error == BROKEN


def test_a_refused_child_leaves_the_cancel_to_others() -> None:
    plan = concurrently([a_child("One", step="ONE"), WORK])
    flow = a_running_flow(plan, {"One": Script(refused=REFUSED)})
    flow.cancel()
    stops(flow, "work")
    assert flow.ended() is Status.FAILED
    assert flow.child("One").status is CommandStatus.ENDED_WITH_FAILURE
