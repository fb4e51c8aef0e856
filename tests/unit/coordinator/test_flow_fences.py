"""Tasks that go silent or whose host has another memory: stopped, found out about, fenced."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.flow_scenario import DISK, HOST_STOPPED, Scenario, a_running_flow

from coordinator import events as ev
from coordinator.plan import Plan, serially, task
from coordinator.rows import Severity, Status

COPY = task("h1", "copy", entity=DISK)
SYNC = task("h1", "sync", {"volume_id": "v1"}, entity=DISK, expected_generation=7)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_a_task_is_asked_for_again_with_the_generation_that_it_expects() -> None:
    flow = a_running_flow(SYNC)
    flow.crash()
    assert flow.leaf("sync").expected_generation == 7
    flow.host_says("sync")
    flow.advance(1)
    assert flow.ended() is Status.FINISHED


# --- no progress -----------------------------------------------------------------------------------------------------


def a_stalled_flow(plan: Plan = COPY, **options: Any) -> Scenario:
    """A flow whose task has made no progress for 600 s."""
    flow = a_running_flow(plan, **options)
    flow.take(ev.TaskStalled(flow.leaf("copy").task_id, 600.0))
    return flow


@pytest.mark.rule("semantics §3: no progress for the limit → alarm event → stop → failed only when the host confirms")
def test_a_task_without_progress_is_stopped_aloud_and_has_failed_only_when_its_host_says_so() -> None:
    flow = a_stalled_flow()
    [alarm] = flow.store.events
    assert (alarm.event_type, alarm.severity, alarm.entity) == ("TASK_STALLED", Severity.ALERT, DISK)
    assert flow.leaf("copy").task_id in alarm.message
    assert flow.stopped == [flow.leaf("copy").task_id]
    assert flow.job.status is Status.STARTED
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "TASK_STALLED"


def test_the_alarm_comes_before_the_stop() -> None:
    flow = a_running_flow(COPY)
    flow.hold = {"commit"}
    flow.take(ev.TaskStalled(flow.leaf("copy").task_id, 600.0))
    assert flow.commit is not None
    assert [event.event_type for event in flow.commit.events] == ["TASK_STALLED"]
    assert flow.stopped == []
    flow.record()
    assert flow.stopped == [flow.leaf("copy").task_id]


def test_a_crash_forgets_neither_the_alarm_nor_the_stop() -> None:
    flow = a_stalled_flow()
    flow.stopped.clear()
    flow.crash()
    assert flow.stopped == [flow.leaf("copy").task_id]
    flow.take(ev.TaskStalled(flow.leaf("copy").task_id, 600.0))  # the new owner has counted from its beginning
    assert flow.event_types() == ["TASK_STALLED"]
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.advance(1)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "TASK_STALLED"


@pytest.mark.parametrize("crashes", [False, True])
def test_a_task_that_ends_well_after_all_has_ended_well(crashes: bool) -> None:
    flow = a_stalled_flow(serially([COPY, task("h1", "later")]))
    if crashes:
        flow.crash()
    flow.host_says("copy")
    [copied] = [leaf for leaf in flow.store.leaves.values() if leaf.verb == "copy"]
    assert (copied.result, copied.error) == ("SUCCESS", None)
    flow.host_says("later")
    flow.advance(1)
    assert flow.ended() is Status.FINISHED


def test_a_cancelled_task_without_progress_is_aborted_when_its_host_says_so() -> None:
    flow = a_stalled_flow()
    flow.cancel()
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.ended() is Status.ABORTED


def test_a_task_that_is_over_cannot_stall() -> None:
    flow = a_running_flow(serially([COPY, task("h1", "later")]))
    over = flow.leaf("copy").task_id
    flow.host_says("copy")
    commits = flow.commits
    flow.take(ev.TaskStalled(over, 600.0))
    assert (flow.commits, flow.stopped, flow.event_types()) == (commits, [], [])


def test_a_stop_that_does_not_help_is_sent_again_and_costs_no_commit() -> None:
    flow = a_stalled_flow()
    commits, task_id = flow.commits, flow.leaf("copy").task_id
    flow.take(ev.TaskStalled(task_id, 600.0))
    assert (flow.commits, flow.stopped) == (commits, [task_id, task_id])
