"""A flow that waits before it begins: for other jobs, for locks; and what can be done to it meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.flow_scenario import (
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
from coordinator.plan import serially, task
from coordinator.rows import Cancel, Dependency, DependencyPolicy, Failure, Status

A, B = "job-a", "job-b"
COPY = task("h1", "copy", step="COPY_IMAGE")
WAIT = 30.0


def a_waiting_flow(**options: Any) -> Scenario:
    """A flow that waits for two jobs."""
    return a_running_flow(COPY, depends_on={A: Status.STARTED, B: Status.STARTED}, **options)


def a_queuing_flow(**options: Any) -> Scenario:
    """A flow that queues for a lock that another job holds."""
    flow = a_flow(Script(COPY, locks=[VM], lock_wait=WAIT), **options)
    flow.store.foreign_locks[VM] = "job-x"
    return flow.submit()


# --- for jobs --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: A job that waits (lock, dependency, priority) is PENDING and holds no lock")
def test_who_depends_on_jobs_is_stored_pending_and_nothing_of_it_runs() -> None:
    flow = a_waiting_flow()
    assert flow.job.status is Status.PENDING
    assert flow.statuses() == {"VALIDATION": "PENDING", "EXECUTION": "PENDING"}
    assert (flow.answers, flow.runs.total(), flow.verbs()) == (1, 0, [])
    assert set(flow.store.dependencies) == {A, B}
    assert flow.event_types() == ["JOB_WAITS"]


@pytest.mark.rule("semantics §8: Depends on other jobs")
def test_it_begins_when_the_last_of_them_has_ended() -> None:
    flow = a_waiting_flow()
    flow.job_ends(A)
    assert flow.job.status is Status.PENDING
    flow.job_ends(B)
    assert (flow.job.status, flow.verbs()) == (Status.STARTED, ["copy"])
    assert not flow.store.dependencies
    flow.host_says("copy")
    assert flow.ended() is Status.FINISHED


def test_those_that_have_ended_before_are_not_waited_for() -> None:
    flow = a_running_flow(COPY, depends_on={A: Status.FINISHED})
    assert (flow.job.status, flow.verbs()) == (Status.STARTED, ["copy"])


@pytest.mark.parametrize("status", [Status.FAILED, Status.ABORTED, Status.UNKNOWN, Status.SKIPPED])
@pytest.mark.rule("semantics §1: SKIPPED planned, never begun, with the culprit named")
def test_it_is_skipped_as_soon_as_one_has_not_ended_well(status: Status) -> None:
    flow = a_waiting_flow()
    flow.job_ends(B, status)
    assert flow.ended() is Status.SKIPPED
    assert flow.job.error is not None
    assert (flow.job.error.reason, flow.job.error.metadata) == ("SKIPPED", {"job_id": B})
    assert flow.statuses() == {"VALIDATION": "SKIPPED", "EXECUTION": "SKIPPED"}
    assert flow.event_types() == ["JOB_WAITS", "JOB_SKIPPED"]
    assert flow.runs.total() == 0


def test_by_the_other_policy_it_begins_however_they_ended() -> None:
    flow = a_waiting_flow(policy=DependencyPolicy.RUN)
    flow.job_ends(A, Status.FAILED)
    assert flow.job.status is Status.PENDING
    flow.job_ends(B, Status.SKIPPED)
    assert flow.verbs() == ["copy"]


@pytest.mark.parametrize("policy", DependencyPolicy)
def test_one_that_was_deleted_unseen_fails_it_in_clear_words(policy: DependencyPolicy) -> None:
    flow = a_waiting_flow(policy=policy)
    flow.job_ends(A, None)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "JOB_NOT_FOUND"
    assert A in flow.job.error.message


def test_one_that_was_deleted_after_its_end_was_seen_is_as_it_ended() -> None:
    flow = a_waiting_flow()
    flow.job_ends(A)
    flow.job_ends(A, None)
    flow.job_ends(B)
    assert flow.verbs() == ["copy"]


@pytest.mark.parametrize("told", [True, False])
def test_an_end_while_the_wait_is_being_stored_is_not_missed(told: bool) -> None:
    flow = a_flow(COPY, depends_on={A: Status.STARTED})
    flow.hold = {"commit"}
    flow.submit()
    flow.store.jobs[A] = Status.FINISHED
    if told:  # before the commit is answered; else by its answer
        flow.take(ev.Woken([Dependency(A, status=Status.FINISHED)]))
    flow.hold = set()
    flow.settle()
    assert flow.verbs() == ["copy"]


@pytest.mark.parametrize("ended", [None, Status.FINISHED, Status.FAILED])
def test_after_a_crash_somebody_goes_on_waiting(ended: Status | None) -> None:
    flow = a_running_flow(COPY, depends_on={A: Status.STARTED})
    if ended is not None:
        flow.store.jobs[A] = ended  # while nobody was there
    flow.crash()
    if ended is None:
        assert flow.job.status is Status.PENDING
        assert any(isinstance(effect, ev.LookAfter) and effect.at_once for effect in flow.history)
        flow.job_ends(A)
    if ended is Status.FAILED:
        assert flow.ended() is Status.SKIPPED
    else:
        assert flow.verbs() == ["copy"]


@pytest.mark.parametrize("commit_is_lost", [True, False])
def test_a_crash_while_it_begins_loses_nothing(commit_is_lost: bool) -> None:
    flow = a_running_flow(COPY, depends_on={A: Status.STARTED})
    flow.hold = {"commit"}
    flow.job_ends(A)
    flow.hold = set()
    flow.crash(commit_is_lost=commit_is_lost)
    flow.host_says("copy")
    flow.advance(1)
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("kind", Cancel)
@pytest.mark.rule("semantics §8: Cancel while PENDING → ABORTED, no host call")
def test_while_it_waits_it_can_be_cancelled_whatever_its_kind(kind: Cancel) -> None:
    flow = a_waiting_flow(cancel=kind)
    assert flow.job.cancelable is not Cancel.NONE
    flow.cancel()
    assert flow.cancel_answers == {1: None}
    assert flow.ended() is Status.ABORTED
    assert not flow.store.dependencies
    assert flow.runs.total() == 0


def test_once_it_has_begun_its_kind_counts() -> None:
    flow = a_running_flow(COPY, depends_on={A: Status.FINISHED}, cancel=Cancel.NONE)
    assert flow.job.cancelable is Cancel.NONE
    flow.cancel()
    answer = flow.cancel_answers[1]
    assert answer is not None
    assert answer.reason == "NOT_CANCELABLE"


@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.rule(
    "semantics §8: Deadline of a job: passing it is a cancel by the system that ends FAILED DEADLINE_EXCEEDED"
)
def test_a_deadline_passes_also_while_it_waits(crashed: bool) -> None:
    flow = a_waiting_flow(deadline=1_000_060.0, cancel=Cancel.NONE)
    if crashed:
        flow.crash()
    flow.advance(61)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"
    assert flow.verbs() == []


@pytest.mark.rule("semantics §8: Deadline of a job: stored, inherited by children")
def test_a_deadline_is_its_children_s_too() -> None:
    plan = serially([a_child("Child"), COPY])
    flow = a_running_flow(plan, {"Child": task("h2", "move")}, deadline=1_000_060.0)
    flow.advance(61)
    assert flow.stopped == [flow.leaf("move").task_id]
    flow.host_says("move", "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.advance(1)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"
    assert flow.statuses()["COPY_IMAGE"] == "SKIPPED"


def test_what_validate_refuses_when_its_turn_comes_fails_it() -> None:
    flow = a_running_flow(Script(refused=REFUSED), depends_on={A: Status.STARTED})
    flow.job_ends(A)
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["VALIDATION"] == "FAILED"


# --- for locks -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §5: Wait: up to a time, first come first served")
def test_who_queues_for_a_lock_is_pending_without_one_and_begins_when_it_is_free() -> None:
    flow = a_queuing_flow()
    assert (flow.job.status, flow.answers) == (Status.PENDING, 1)
    assert list(flow.store.places) == [VM]
    assert flow.store.locks == {}
    assert "job-x" in flow.store.events[0].message
    flow.lock_is_freed(VM)
    assert (flow.job.status, flow.verbs(), flow.store.locks) == (Status.STARTED, ["copy"], {VM: True})
    assert not flow.store.places


@pytest.mark.rule("semantics §5: Refusal names the holder's job and reason")
def test_when_its_time_is_over_it_is_refused_naming_who_holds_the_lock_then() -> None:
    flow = a_queuing_flow()
    flow.advance(WAIT - 1)
    flow.store.foreign_locks[VM] = "job-y"
    assert flow.job.status is Status.PENDING
    flow.advance(2)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert (flow.job.error.reason, flow.job.error.metadata["job_id"]) == ("LOCKED", "job-y")
    assert flow.statuses() == {"VALIDATION": "FAILED", "EXECUTION": "SKIPPED"}


def test_a_lock_that_was_freed_unheard_is_taken_when_the_time_is_over() -> None:
    flow = a_queuing_flow()
    del flow.store.foreign_locks[VM]
    flow.advance(WAIT + 1)
    assert flow.verbs() == ["copy"]


def test_who_hears_for_nothing_goes_on_queuing() -> None:
    flow = a_queuing_flow()
    for _ in range(3):
        flow.take(ev.Woken(locks_free=True))
    assert flow.job.status is Status.PENDING
    assert flow.runs["plan", flow.tree.root.command_id] == 4
    flow.lock_is_freed(VM)
    assert flow.verbs() == ["copy"]


def test_what_is_freed_while_it_tries_is_tried_for_again() -> None:
    flow = a_queuing_flow()
    flow.hold = {"commit"}
    flow.take(ev.Woken(locks_free=True))
    refused = flow.store.refusals
    refused.append(Failure(9, "LOCKED", "VM/vm-1 is locked by job job-x", {"entity_type": "VM", "entity_id": "vm-1"}))
    flow.take(ev.Woken(locks_free=True))
    flow.store.foreign_locks.clear()
    flow.hold = set()
    flow.settle()
    assert flow.verbs() == ["copy"]


@pytest.mark.rule("semantics §5: Held through restarts without a gap")
@pytest.mark.parametrize("freed", [False, True])
def test_after_a_crash_it_queues_on_in_its_place(freed: bool) -> None:
    flow = a_queuing_flow()
    if freed:
        del flow.store.foreign_locks[VM]
    flow.crash()
    if not freed:
        assert (flow.job.status, list(flow.store.places)) == (Status.PENDING, [VM])
        flow.advance(WAIT - 1)
        flow.lock_is_freed(VM)
    assert flow.verbs() == ["copy"]


def test_the_time_that_it_queues_is_not_begun_anew_by_a_crash() -> None:
    flow = a_queuing_flow()
    flow.advance(WAIT - 1)
    flow.crash()
    flow.advance(2)
    assert flow.ended() is Status.FAILED


def test_first_the_jobs_then_the_locks() -> None:
    flow = a_flow(Script(COPY, locks=[VM], lock_wait=WAIT), depends_on={A: Status.STARTED})
    flow.store.foreign_locks[VM] = "job-x"
    flow.submit()
    flow.advance(10 * WAIT)
    flow.job_ends(A)
    assert (flow.job.status, list(flow.store.places)) == (Status.PENDING, [VM])
    flow.advance(WAIT - 1)
    assert flow.job.status is Status.PENDING
    flow.lock_is_freed(VM)
    assert flow.verbs() == ["copy"]


def test_who_queues_can_be_cancelled() -> None:
    flow = a_queuing_flow(cancel=Cancel.NONE)
    flow.cancel()
    assert flow.ended() is Status.ABORTED
    assert not flow.store.places


def test_a_cancel_while_it_tries_in_vain_is_granted_as_it_waits() -> None:
    flow = a_queuing_flow(cancel=Cancel.REVERT)
    flow.hold = {"commit"}
    flow.take(ev.Woken(locks_free=True))
    flow.cancel()
    flow.hold = set()
    flow.settle()
    assert flow.cancel_answers == {1: None}
    assert flow.ended() is Status.ABORTED


# --- in a group ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: all or nothing (refused ones FAILED, the rest SKIPPED)")
def test_a_member_of_a_group_that_is_refused_never_begins() -> None:
    flow = a_flow(COPY, grouped=True, queues=False)
    flow.store.refusals.append(Failure(10, "GROUP_REFUSED", "job j-2 of the same group was refused", {"job_id": "j-2"}))
    flow.submit()
    assert flow.ended() is Status.SKIPPED
    assert flow.job.error is not None
    assert (flow.job.error.reason, flow.job.error.metadata["job_id"]) == ("SKIPPED", "j-2")
    assert flow.verbs() == []


def test_in_a_group_nobody_queues() -> None:
    assert a_queuing_flow(grouped=True, queues=False).ended() is Status.FAILED


def test_the_first_commit_of_a_member_is_whole_however_long_planning_takes() -> None:
    flow = a_flow(COPY, grouped=True)
    flow.hold = {"plan"}
    flow.submit()
    flow.advance(10)
    assert (flow.commit, flow.answers) == (None, 0)


# --- priority --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §8: Priority of a job and its tasks, changeable while it waits")
def test_the_priority_of_who_waits_can_be_changed() -> None:
    flow = a_waiting_flow()
    assert flow.wish(ev.PriorityAsked(1, 7, "ada", "urgent")) is None
    assert flow.job.priority == 7
    event = flow.store.events[-1]
    assert (event.event_type, event.user) == ("JOB_PRIORITY_CHANGED", "ada")
    flow.crash()
    assert flow.tree.job.priority == 7


@pytest.mark.rule("semantics §8: Priority of a job and its tasks, changeable while it waits")
def test_of_what_has_begun_it_counts_for_what_begins_later_and_for_tasks_that_wait_on_their_host() -> None:
    flow = a_running_flow(serially([COPY, task("h1", "sync", step="SYNC_IMAGE_DATA")]))
    waits = flow.leaf("copy").task_id
    assert flow.wish(ev.PriorityAsked(1, 7, "ada")) is None
    assert (flow.job.priority, flow.prioritised) == (7, {waits: 7})
    assert flow.event_types() == ["JOB_PRIORITY_CHANGED"]
    flow.crash()
    assert flow.tree.job.priority == 7  # with which all that is sent from now on is sent
    flow.host_says("copy")
    assert flow.wish(ev.PriorityAsked(2, 7, "ada")) is None
    assert flow.event_types() == ["JOB_PRIORITY_CHANGED"]  # it was that already


def test_a_wish_that_rides_in_a_commit_which_is_taken_back_is_not_lost() -> None:
    flow = a_flow(Script(COPY, reads=[VM]), entities=[VM])
    flow.hold = {"commit"}
    flow.submit()
    flow.take_wish(ev.PriorityAsked(1, 7, "ada"))
    flow.store.entities[VM].version += 1
    flow.hold = set()
    flow.settle()
    assert (flow.job.priority, flow.event_types()) == (7, ["JOB_PRIORITY_CHANGED"])
    assert flow.answers_to_wishes == {1: None}


def test_of_what_has_ended_it_cannot_be_changed_even_if_nobody_knows_yet() -> None:
    flow = a_running_flow(COPY)
    flow.hold = {"commit"}
    flow.host_says("copy")
    flow.take_wish(ev.PriorityAsked(1, 7, "ada"))
    flow.hold = set()
    flow.settle()
    refusal = flow.answers_to_wishes[1]
    assert refusal is not None
    assert refusal.reason == "JOB_ENDED"
    assert flow.ended() is Status.FINISHED
    assert flow.job.priority == 0
