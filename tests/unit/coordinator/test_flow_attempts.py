"""What is tried after a plan that did not go well: instead of it, or to clean up after it."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    HOST_STOPPED,
    RAISED,
    ROOT_ID,
    Scenario,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)

from coordinator.flow.attempts import MOST_ATTEMPTS
from coordinator.plan import Cleanup, Instead, Plan, cleanup, concurrently, instead, serially, task
from coordinator.rows import Cancel, CommandStatus, Status

RULE = "semantics §2: each is a further attempt, stored like the first, the failed one stays visible"


def on(host_id: str, **options: object) -> Plan:
    return task(host_id, f"start on {host_id}", step="START", **options)


def a_failing_flow(*after: Instead | Cleanup | None, **options: object) -> Scenario:
    """A flow whose first attempt, on host h1, is under way."""
    return a_running_flow(Script(on("h1"), after=after), **options)  # type: ignore[arg-type]


@pytest.mark.rule("semantics §4: EXECUTION follows the last attempt; so does the job")
@pytest.mark.rule(RULE)
def test_what_is_tried_instead_replaces_the_failure_which_stays_visible() -> None:
    flow = a_failing_flow(instead(on("h2")))
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.verbs() == ["start on h2"]
    assert flow.step("EXECUTION").status is Status.STARTED
    flow.host_says("start on h2")
    assert flow.ended() is Status.FINISHED
    assert flow.statuses() == {
        "VALIDATION": "FINISHED",
        "EXECUTION": "FINISHED",
        "START": "FAILED FINISHED",
        "FINALIZATION": "FINISHED",
    }
    assert [leaf.attempt for leaf in flow.store.leaves.values()] == [1, 2]
    assert flow.job.error is None


@pytest.mark.rule(RULE)
def test_a_further_attempt_rides_in_the_commit_that_ends_the_one_before() -> None:
    flow = a_failing_flow(instead(on("h2")))
    before = flow.commits
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.commits == before + 1


def test_each_failure_is_asked_about_until_nothing_more_is_tried() -> None:
    flow = a_failing_flow(instead(on("h2")), instead(on("h3")))
    for host_id in ("h1", "h2", "h3"):
        flow.host_says(f"start on {host_id}", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.job.error == BROKEN
    assert flow.statuses()["START"] == "FAILED FAILED FAILED"
    assert [failed.hosts_tried() for failed in flow.failed] == [["h1"], ["h1", "h2"], ["h1", "h2", "h3"]]
    assert flow.statuses()["EXECUTION"] == "FAILED"


def test_who_is_asked_is_told_what_began_what_went_well_and_why_it_failed() -> None:
    plan = serially([task("h1", "copy"), task("h1", "switch", no_return=True), task("h1", "tidy")])
    flow = a_running_flow(plan)
    flow.host_says("copy")
    flow.host_says("switch", "CLEAN_SUCCESS", error=BROKEN)
    [failed] = flow.failed
    assert (failed.error, failed.begun, failed.done) == (BROKEN, {"", "0", "1"}, {"0"})
    assert failed.past_no_return
    assert not failed.canceled


@pytest.mark.rule("semantics §1: CommandStatus: `NOT_STARTED` · `ACTIVE` · `EXECUTION_FAILED`")
@pytest.mark.rule("semantics §2: cleanup(plan): the failure stands")
def test_a_clean_up_puts_right_what_was_left_and_the_failure_stands() -> None:
    flow = a_failing_flow(cleanup(task("h1", "tidy up", step="TIDY")))
    flow.host_says("start on h1", "CLEAN_FAILURE", error=BROKEN)
    assert flow.store.commands[ROOT_ID].status is CommandStatus.EXECUTION_FAILED
    flow.host_says("tidy up")
    assert flow.ended() is Status.FAILED
    assert flow.job.error == BROKEN
    assert flow.statuses()["TIDY"] == "FINISHED"
    assert flow.statuses()["EXECUTION"] == "FAILED"


def test_a_clean_up_that_fails_is_said_aloud_and_nothing_more_is_tried() -> None:
    flow = a_failing_flow(cleanup(task("h1", "tidy up")), instead(on("h2")))
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    flow.host_says("tidy up", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.event_types() == ["CLEANUP_FAILED"]
    assert len(flow.failed) == 1


@pytest.mark.rule("semantics §8: REVERT: stop running tasks, await calls, the rest SKIPPED, cleanup, ABORTED")
def test_a_cancel_stops_the_work_has_it_cleaned_up_and_ends_aborted() -> None:
    plan = serially([task("h1", "copy"), task("h1", "switch", step="SWITCH")])
    flow = a_running_flow(Script(plan, after=[cleanup(serially([task("h1", "remove"), task("h1", "merge")]))]))
    flow.cancel()
    flow.host_says("copy", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.failed[0].canceled
    assert flow.statuses()["SWITCH"] == "SKIPPED"
    flow.host_says("remove")
    flow.host_says("merge")
    assert flow.ended() is Status.ABORTED
    assert flow.stopped == [leaf.task_id for leaf in flow.store.leaves.values() if leaf.verb == "copy"]


def test_a_cancelled_flow_tries_nothing_instead() -> None:
    flow = a_failing_flow(instead(on("h2")))
    flow.cancel()
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert flow.ended() is Status.ABORTED
    assert flow.verbs() == []


def test_a_clean_up_cannot_be_cancelled() -> None:
    flow = a_failing_flow(cleanup(task("h1", "tidy up")))
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.job.cancelable is Cancel.NONE
    flow.cancel()
    answer = flow.cancel_answers[1]
    assert answer is not None
    assert answer.reason == "NOT_CANCELABLE"
    flow.host_says("tidy up")
    assert flow.ended() is Status.FAILED


def test_a_cancel_leaves_the_clean_up_of_a_child_and_all_below_it_alone() -> None:
    children = {
        "Failing": Script(task("h1", "copy"), after=[cleanup(serially([a_child("Tidy"), task("h1", "check")]))]),
        "Tidy": Script(task("h2", "tidy up")),
    }
    flow = a_running_flow(concurrently([a_child("Failing"), task("h3", "other")]), children)
    flow.host_says("copy", "CLEAN_SUCCESS", error=BROKEN)
    flow.cancel()
    assert [flow.store.leaves[task_id].verb for task_id in flow.stopped] == ["other"]
    flow.host_says("other", "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.host_says("tidy up")
    flow.host_says("check")
    assert flow.ended() is Status.FAILED


@pytest.mark.rule("semantics §2: a stage has begun if and only if its row exists, so a restart goes on there")
@pytest.mark.parametrize("commit_is_lost", [True, False])
def test_a_restart_between_two_attempts_tries_each_once(commit_is_lost: bool) -> None:
    flow = a_failing_flow(instead(on("h2")))
    flow.hold = {"commit"}
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    flow.hold = set()
    flow.crash(commit_is_lost=commit_is_lost)
    if commit_is_lost:
        flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.verbs() == ["start on h2"]
    flow.host_says("start on h2")
    flow.advance(1)
    assert flow.ended() is Status.FINISHED


def test_a_clean_up_goes_on_after_a_restart_and_what_was_passed_stays_passed() -> None:
    plan = serially([task("h1", "switch", no_return=True), task("h1", "tidy")])
    flow = a_running_flow(
        Script(plan, after=[instead(on("h2")), cleanup(task("h1", "tidy up"))]), cancel=Cancel.FINISH_FORWARD
    )
    flow.host_says("switch", "CLEAN_SUCCESS", error=BROKEN)
    flow.crash()
    flow.cancel()
    answer = flow.cancel_answers[1]
    assert answer is not None
    assert answer.reason == "PAST_NO_RETURN"
    flow.host_says("start on h2", "CLEAN_SUCCESS", error=BROKEN)
    flow.crash()
    assert flow.verbs() == ["tidy up"]
    assert flow.failed[-1].past_no_return
    flow.host_says("tidy up")
    flow.advance(1)
    assert flow.ended() is Status.FAILED


def test_a_restart_of_a_cancelled_flow_goes_on_cleaning_up() -> None:
    flow = a_failing_flow(cleanup(serially([task("h1", "remove"), task("h1", "merge")])))
    flow.cancel()
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=HOST_STOPPED)
    flow.crash()
    flow.host_says("remove")
    flow.crash()
    flow.host_says("merge")
    flow.advance(1)
    assert flow.ended() is Status.ABORTED
    assert len(flow.stopped) == 1


def test_code_that_raises_after_a_failure_lets_it_stand_and_is_said_aloud() -> None:
    flow = a_running_flow(Script(on("h1"), after=[RAISED]))
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.job.error == BROKEN
    assert flow.event_types() == ["AFTER_FAILURE_RAISED"]


def test_a_command_that_never_gives_up_is_given_up() -> None:
    flow = a_running_flow(Script(on("h1"), after=[instead(on("h1"))] * 99))
    for _ in range(MOST_ATTEMPTS):
        flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "LIMIT_EXCEEDED"


def test_a_child_that_is_tried_again_shows_its_attempts_below_its_step() -> None:
    flow = a_running_flow(a_child("Start", step="CHILD"), {"Start": Script(on("h1"), after=[instead(on("h2"))])})
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    flow.host_says("start on h2")
    assert flow.ended() is Status.FINISHED
    assert {step.parent_step_id for step in flow.steps("START")} == {flow.step("CHILD").step_id}
    assert [step.number for step in flow.steps("START")] == [0, 1]


def test_progress_never_falls_and_counts_the_attempt_that_came_furthest() -> None:
    plan = concurrently([a_child("Start"), task("h9", "other")])
    flow = a_flow(plan, {"Start": Script(on("h1"), after=[instead(on("h2"))])}).submit()
    flow.host_says("start on h1", "", progress=80)
    flow.advance(1)
    assert flow.job.progress == 40
    flow.host_says("start on h1", "CLEAN_SUCCESS", error=BROKEN)
    flow.host_says("start on h2", "", progress=60)
    flow.advance(1)
    assert flow.job.progress == 40
    flow.host_says("start on h2", "", progress=90)
    flow.advance(1)
    assert flow.job.progress == 45
