"""Tasks that go silent or whose host has another memory: stopped, found out about, fenced."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.flow_scenario import DISK, HOST_STOPPED, Scenario, a_running_flow
from tests.unit.coordinator.flow_store import conflict

from coordinator.flow import events as ev
from coordinator.plan import Plan, serially, task
from coordinator.rows import Failure, Leaf, LeafKind, Severity, Status

COPY = task("h1", "copy", entity=DISK)
SYNC = task("h1", "sync", {"volume_id": "v1"}, entity=DISK, expected_generation=7)
REPLACED = Failure(9, "TASK_LOST", "the host's data were replaced", {"incarnation": "i2"})
CHANGED = Failure(9, "INCARNATION_CHANGED", "another memory", {"incarnation": "i2"})
DENIED = Failure(9, "TASK_LOST", "the host does not know it any more")
NO_VOLUME = Failure(5, "OBJECT_NOT_FOUND", "this host has no volume v1")


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


# --- another memory --------------------------------------------------------------------------------------------------


def a_flow_of_a_replaced_host(why: Failure = REPLACED, plan: Plan = SYNC, **options: Any) -> Scenario:
    """A flow whose host has another memory than the one that its task was made for."""
    flow = a_running_flow(plan, **options)
    flow.report(flow.leaf("sync").task_id, "", lost=True, error=why)
    return flow


def says(outcome: str, generation: int, legality: str = "LEGAL") -> dict[str, Any]:
    """What a host answers to a fence."""
    return {"answer": {"outcome": outcome, "generation": generation, "legality": legality}}


def the_task(flow: Scenario) -> Leaf:
    """The row of the task that is fenced."""
    [found] = [leaf for leaf in flow.store.leaves.values() if leaf.verb == "sync"]
    return found


@pytest.mark.rule(
    "semantics §3: another one refuses it with `INCARNATION_CHANGED` → the object's generation tells what"
)
@pytest.mark.parametrize("why", [REPLACED, CHANGED])
def test_the_volume_is_asked_what_a_task_did_whose_host_has_another_memory(why: Failure) -> None:
    flow = a_flow_of_a_replaced_host(why)
    assert flow.verbs() == ["fenceVolume"]
    fence = flow.leaf("fenceVolume")
    assert fence.arguments == {
        "volume_id": "v1",
        "generation": 7,
        "fenced_generation": 107,
        "writer": the_task(flow).task_id,
    }
    assert not flow.store.ended


def test_the_fence_is_stored_before_it_is_sent() -> None:
    flow = a_running_flow(SYNC)
    flow.hold = {"commit"}
    flow.report(flow.leaf("sync").task_id, "", lost=True, error=REPLACED)
    assert flow.commit is not None
    assert [(leaf.verb, leaf.kind) for leaf in flow.commit.new_leaves] == [("fenceVolume", LeafKind.CALL)]
    assert flow.verbs() == []
    flow.record()
    assert flow.verbs() == ["fenceVolume"]


@pytest.mark.rule("semantics §3: So one read of an object tells whether a silent host did the work")
def test_work_that_the_volume_shows_to_be_done_is_done_and_the_flow_goes_on() -> None:
    flow = a_flow_of_a_replaced_host(plan=serially([SYNC, task("h1", "later")]))
    flow.host_says("fenceVolume", **says("DONE", 8))
    assert (the_task(flow).result, the_task(flow).answer, the_task(flow).error) == ("SUCCESS", {"generation": 8}, None)
    assert flow.event_types() == ["TASK_FOUND_DONE"]
    flow.host_says("later")
    assert flow.ended() is Status.FINISHED


@pytest.mark.rule("semantics §2: Success reported with less done than declared must be impossible")
@pytest.mark.parametrize(
    "said",
    [
        says("DONE", 8, "ILLEGAL"),
        says("DONE", 9),
        says("DONE", 7),
        says("DOUBTFUL", 8),
        says("FENCED", 8),
        {"answer": None},
        {"answer": "DONE"},
        {"result": "CLEAN_SUCCESS", "error": NO_VOLUME},
        {"result": "CLEAN_FAILURE", "error": NO_VOLUME, **says("DONE", 8)},
        {"result": "", "lost": True, "error": DENIED},
    ],
)
def test_in_doubt_the_task_is_lost(said: dict[str, Any]) -> None:
    flow = a_flow_of_a_replaced_host()
    flow.host_says("fenceVolume", **said)
    assert flow.ended() is Status.FAILED
    assert (the_task(flow).state, the_task(flow).error) == ("UNKNOWN", REPLACED)
    assert flow.event_types() == ["FENCE_FAILED", "TASK_LOST"]


@pytest.mark.rule("semantics §3: else the task is lost: step UNKNOWN, job FAILED")
def test_a_task_that_names_no_generation_is_lost_with_the_memory_of_its_host() -> None:
    plain = task("h1", "sync", {"volume_id": "v1"}, step="SYNC_IMAGE_DATA")
    flow = a_flow_of_a_replaced_host(plan=plain)
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["SYNC_IMAGE_DATA"] == "UNKNOWN"
    assert flow.event_types() == ["TASK_LOST"]


@pytest.mark.rule("semantics §3: No query ever answers success for a lost task")
def test_a_task_that_its_host_denies_in_the_same_memory_is_lost_whatever_its_volume_says() -> None:
    flow = a_flow_of_a_replaced_host(DENIED)
    assert flow.ended() is Status.FAILED
    assert the_task(flow).state == "UNKNOWN"


@pytest.mark.rule("semantics §3: a fence (raising the generation) makes sure that it no longer will")
@pytest.mark.parametrize(("legality", "result"), [("LEGAL", "CLEAN_SUCCESS"), ("ILLEGAL", "CLEAN_FAILURE")])
def test_work_that_was_not_done_and_never_will_be_has_failed(legality: str, result: str) -> None:
    flow = a_flow_of_a_replaced_host()
    flow.host_says("fenceVolume", **says("FENCED", 107, legality))
    assert flow.ended() is Status.FAILED
    assert the_task(flow).result == result
    fenced = flow.store.events[0]
    assert (fenced.event_type, fenced.entity) == ("FENCED", DISK)
    assert "h1" in fenced.message
    assert the_task(flow).task_id in fenced.message


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("said", [says("DONE", 8), says("FENCED", 107), says("DOUBTFUL", 9)])
def test_a_fence_survives_a_crash(said: dict[str, Any], committed: bool) -> None:
    flow = a_running_flow(SYNC)
    flow.hold = {"commit"}
    flow.report(flow.leaf("sync").task_id, "", lost=True, error=CHANGED)
    flow.crash(commit_is_lost=not committed)
    flow.hold = set()
    flow.settle()
    if not committed:  # it is sent again, and refused again
        assert flow.verbs() == ["sync"]
        flow.report(flow.leaf("sync").task_id, "", lost=True, error=CHANGED)
    assert flow.verbs() == ["fenceVolume"]
    flow.hold = {"commit"}
    task_id = flow.leaf("fenceVolume").task_id
    flow.host_says("fenceVolume", **said)
    flow.crash()  # what the fence said is not stored: it is asked again, and says the same
    flow.hold = set()
    assert [leaf.task_id for leaf in flow.begun.values()] == [task_id]
    flow.host_says("fenceVolume", **said)
    flow.advance(1)
    outcome = said["answer"]["outcome"]
    assert flow.ended() is (Status.FINISHED if outcome == "DONE" else Status.FAILED)
    assert flow.event_types().count({"DONE": "TASK_FOUND_DONE"}.get(outcome, outcome)) == (outcome != "DOUBTFUL")


# --- no progress, and no stop ----------------------------------------------------------------------------------------


def a_deaf_flow(**options: Any) -> Scenario:
    """A flow whose task has made no progress, was stopped, and has made no progress again."""
    flow = a_running_flow(SYNC, **options)
    for _ in range(2):
        flow.take(ev.TaskStalled(flow.leaf("sync").task_id, 600.0))
    return flow


@pytest.mark.rule("semantics §3: alarm event → stop → failed only when the host confirms or the object is fenced")
def test_a_task_that_heeds_no_stop_has_failed_when_it_is_fenced() -> None:
    flow = a_deaf_flow()
    assert flow.verbs() == ["fenceVolume", "sync"]
    flow.host_says("fenceVolume", **says("FENCED", 107, "ILLEGAL"))
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "TASK_STALLED"
    assert flow.event_types() == ["TASK_STALLED", "FENCED", "TASK_NOT_ROLLED_BACK"]
    assert set(flow.cleared) == set(flow.store.leaves)


def test_a_task_is_fenced_once() -> None:
    flow = a_deaf_flow()
    commits = flow.commits
    flow.take(ev.TaskStalled(flow.leaf("sync").task_id, 600.0))
    assert (flow.commits, flow.verbs()) == (commits, ["fenceVolume", "sync"])
    flow.host_says("fenceVolume", "CLEAN_SUCCESS", error=NO_VOLUME)
    flow.take(ev.TaskStalled(flow.leaf("sync").task_id, 600.0))
    assert flow.verbs() == ["sync"]
    assert flow.event_types() == ["TASK_STALLED", "FENCE_FAILED"]


@pytest.mark.rule("semantics §2: A command never ends early")
@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("result", ["SUCCESS", "CLEAN_SUCCESS"])
def test_what_the_host_says_while_a_task_is_fenced_counts_when_the_fence_is_over(result: str, crashes: bool) -> None:
    flow = a_deaf_flow()
    flow.host_says("sync", result, error=HOST_STOPPED if result == "CLEAN_SUCCESS" else None)
    assert not flow.store.ended
    flow.advance(2)
    if crashes:
        flow.crash()
    assert flow.verbs() == ["fenceVolume"]
    flow.host_says("fenceVolume", "CLEAN_SUCCESS", error=NO_VOLUME)
    flow.advance(1)
    assert flow.ended() is (Status.FINISHED if result == "SUCCESS" else Status.FAILED)
    assert the_task(flow).result == result
    assert flow.event_types() == ["TASK_STALLED"]


@pytest.mark.parametrize("crashes", [False, True])
def test_a_task_whose_fence_failed_is_its_host_s_to_end(crashes: bool) -> None:
    flow = a_deaf_flow()
    flow.host_says("fenceVolume", "CLEAN_SUCCESS", error=NO_VOLUME)
    if crashes:
        flow.crash()
    assert flow.verbs() == ["sync"]
    flow.host_says("sync", "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.advance(1)
    assert flow.ended() is Status.FAILED


def test_a_host_that_loses_its_memory_while_a_task_is_fenced_leaves_it_to_the_fence() -> None:
    flow = a_deaf_flow()
    flow.report(the_task(flow).task_id, "", lost=True, error=REPLACED)
    flow.crash()
    assert flow.verbs() == ["fenceVolume"]
    flow.host_says("fenceVolume", **says("DOUBTFUL", 7))
    flow.advance(1)
    assert flow.ended() is Status.FAILED
    assert the_task(flow).state == "UNKNOWN"


def test_a_cancelled_flow_waits_for_its_fence() -> None:
    flow = a_deaf_flow()
    flow.cancel()
    flow.host_says("sync", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert not flow.store.ended
    flow.host_says("fenceVolume", **says("FENCED", 107))
    assert flow.ended() is Status.ABORTED


def test_a_fence_s_commit_that_is_refused_is_decided_again() -> None:
    flow = a_running_flow(SYNC)
    flow.store.refusals = [conflict(DISK)]
    flow.report(flow.leaf("sync").task_id, "", lost=True, error=REPLACED)
    assert flow.verbs() == ["fenceVolume"]
    flow.store.refusals = [conflict(DISK)]
    flow.host_says("fenceVolume", **says("DONE", 8))
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("crashes", [False, True])
def test_a_deadline_asks_nothing_of_a_host_that_lost_its_memory(crashes: bool) -> None:
    flow = a_flow_of_a_replaced_host(plan=task("h1", "sync", {"volume_id": "v1"}, expected_generation=7, deadline=60))
    if crashes:
        flow.crash()
    flow.advance(61)
    assert flow.stopped == []
    assert flow.verbs() == ["fenceVolume"]
