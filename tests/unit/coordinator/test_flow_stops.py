"""Tasks of a flow that somebody wants stopped."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import HOST_STOPPED, VM, Scenario, a_running_flow

from coordinator.flow import events as ev
from coordinator.plan import call, concurrently, serially, state, task, wait_for
from coordinator.rows import Status

PAIR = concurrently([task("h1", "copy", step="COPY_IMAGE"), task("h2", "move", step="MOVE_IMAGE")])


def stop(flow: Scenario, *task_ids: str, token: int = 1) -> str:
    """Asks for a stop; returns the reason of its refusal, empty if it was granted."""
    refusal = flow.wish(ev.StopAsked(token, task_ids, "ada", "because"))
    return refusal.reason if refusal is not None else ""


@pytest.mark.rule("semantics §8: Stop chosen tasks or all tasks of a command")
def test_a_chosen_task_is_stopped_and_the_others_run_on() -> None:
    flow = a_running_flow(PAIR)
    copy = flow.leaf("copy").task_id
    assert stop(flow, copy) == ""
    assert flow.stopped == [copy]
    assert [leaf.state for leaf in flow.store.leaves.values()] == ["ABORTING", ""]
    flow.report(copy, "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.advance(1)
    assert flow.statuses()["COPY_IMAGE"] == "ABORTED"
    flow.host_says("move")
    assert flow.ended() is Status.ABORTED
    assert flow.event_types() == ["TASKS_STOPPED"]


def test_without_names_all_that_run_are_stopped_once() -> None:
    flow = a_running_flow(PAIR)
    stop(flow)
    stop(flow, token=2)
    assert len(flow.stopped) == 2
    assert flow.event_types() == ["TASKS_STOPPED"]


def test_a_task_that_ends_well_all_the_same_has_ended_well() -> None:
    flow = a_running_flow(PAIR)
    stop(flow)
    flow.host_says("copy")
    flow.host_says("move")
    assert flow.ended() is Status.FINISHED


def test_one_that_is_over_is_no_error_and_one_that_is_not_there_is() -> None:
    flow = a_running_flow(PAIR)
    copy = flow.leaf("copy").task_id
    flow.host_says("copy")
    assert stop(flow, copy) == ""
    assert stop(flow, copy, "nobody-s", token=2) == "TASK_UNKNOWN"
    assert flow.stopped == []


def test_calls_are_awaited_and_waits_are_no_work() -> None:
    flow = a_running_flow(serially([call("h1", "create"), wait_for(VM, until=state("UP"))]))
    assert stop(flow, flow.leaf("create").task_id) == "TASK_STATE"
    flow.host_says("create", answer={}, incarnation="i1", observation_number=1)
    [wait] = [leaf.task_id for leaf in flow.store.leaves.values() if not leaf.over]
    assert stop(flow, wait, token=2) == "TASK_STATE"
    assert stop(flow, token=3) == ""
    flow.sees(VM, "UP", 2)
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("commit_is_lost", [True, False])
def test_a_stop_survives_a_crash_or_was_never_granted(commit_is_lost: bool) -> None:
    flow = a_running_flow(task("h1", "copy"))
    task_id = flow.leaf("copy").task_id
    flow.hold = {"commit"}
    flow.take(ev.StopAsked(1, (), "ada", "", "request-1"))
    flow.hold = set()
    assert flow.stopped == []  # record, then act
    flow.crash(commit_is_lost=commit_is_lost)
    assert flow.stopped == ([] if commit_is_lost else [task_id])
    assert flow.store.handled["request-1"] == (not commit_is_lost)
    if commit_is_lost:
        flow.wish(ev.StopAsked(0, (), "ada", "", "request-1"))
        assert flow.stopped == [task_id]


def test_of_what_has_ended_nothing_can_be_stopped() -> None:
    flow = a_running_flow(task("h1", "copy"))
    flow.host_says("copy")
    assert stop(flow) == "JOB_ENDED"
