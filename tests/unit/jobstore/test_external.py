"""What may become of an external job: no database, a job and its steps in, what ends comes out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import WaybillError
from jobstore.journal.external import (
    DEEPEST,
    MOST_STEPS,
    OPEN,
    Job,
    Outcome,
    Step,
    check_alive,
    check_clear,
    check_new_step,
    end_job,
    end_step,
    fall_silent,
    progress,
)

RUNNING = Job("job-1", True, "STARTED")


def a_job(status: str = "STARTED", *, external: bool = True) -> Job:
    return Job("job-1", external, status)


def a_step(step_id: str, above: str = "", status: str = "STARTED", command_id: str = "") -> Step:
    return Step(step_id, above, status, command_id)


def ends(outcome: Outcome) -> dict[str, str]:
    """What ends how; the job under `job`."""
    steps = {step_id: end.status for step_id, end in outcome.steps.items()}
    return {**steps, "job": outcome.job.status} if outcome.job else steps


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(WaybillError) as caught:
        what()
    return caught.value.reason


class TestOnlyExternalJobs:
    pytestmark = pytest.mark.rule("semantics §4: Only on external jobs")

    def test_nothing_is_reported_of_a_job_that_a_coordinator_runs(self) -> None:
        ours = a_job(external=False)
        assert refusal(lambda: check_alive(ours)) == "NOT_EXTERNAL"
        assert refusal(lambda: check_new_step(ours, [], 0)) == "NOT_EXTERNAL"
        assert refusal(lambda: end_step(ours, a_step("a"), [], succeeded=True)) == "NOT_EXTERNAL"
        assert refusal(lambda: end_job(ours, [], succeeded=True, force=True)) == "NOT_EXTERNAL"
        assert refusal(lambda: check_clear(a_job("FINISHED", external=False))) == "NOT_EXTERNAL"


class TestNewSteps:
    def test_an_ended_job_takes_none(self) -> None:
        assert refusal(lambda: check_new_step(a_job("FAILED"), [], 0)) == "JOB_ENDED"

    def test_an_ended_step_takes_none_below_it(self) -> None:
        assert refusal(lambda: check_new_step(RUNNING, [a_step("a", status="FINISHED")], 1)) == "STEP_ENDED"

    def test_a_step_that_shows_a_command_takes_none_below_it(self) -> None:
        assert refusal(lambda: check_new_step(RUNNING, [a_step("a", command_id="c")], 1)) == "STEP_OF_COMMAND"

    def test_they_nest_only_so_deep(self) -> None:
        above = [a_step(str(depth)) for depth in range(DEEPEST)]
        check_new_step(RUNNING, above[1:], DEEPEST)
        assert refusal(lambda: check_new_step(RUNNING, above, DEEPEST)) == "LIMIT_EXCEEDED"

    def test_there_are_only_so_many(self) -> None:
        check_new_step(RUNNING, [], MOST_STEPS - 1)
        assert refusal(lambda: check_new_step(RUNNING, [], MOST_STEPS)) == "LIMIT_EXCEEDED"


class TestEndingAStep:
    def test_one_that_succeeded_ends_alone(self) -> None:
        assert ends(end_step(RUNNING, a_step("a"), [], succeeded=True)) == {"a": "FINISHED"}

    def test_one_does_not_succeed_over_an_open_one_below(self) -> None:
        assert refusal(lambda: end_step(RUNNING, a_step("a"), [], succeeded=True, below="b")) == "STEPS_OPEN"

    @pytest.mark.rule("semantics §4: a failed step fails the job and closes its open steps")
    def test_one_that_failed_fails_those_above_and_the_job_and_closes_the_rest(self) -> None:
        failed = a_step("a.1", "a")
        others = [a_step("a"), a_step("a.2", "a"), a_step("b"), a_step("c", status="PENDING")]
        outcome = end_step(RUNNING, failed, [failed, *others], succeeded=False, reason="no space")
        assert ends(outcome) == {
            "a.1": "FAILED",
            "a": "FAILED",
            "a.2": "ABORTED",
            "b": "ABORTED",
            "c": "SKIPPED",
            "job": "FAILED",
        }
        why = outcome.steps["a.1"].error
        assert why is not None
        assert (why.reason, why.message) == ("EXTERNAL_FAILED", "no space")
        assert outcome.job is not None
        assert outcome.job.error is not None
        assert "no space" in outcome.job.error.message

    def test_saying_so_again_changes_nothing(self) -> None:
        assert end_step(RUNNING, a_step("a", status="FINISHED"), [], succeeded=True) == Outcome()
        assert end_step(a_job("FAILED"), a_step("a", status="FAILED"), [], succeeded=False) == Outcome()

    @pytest.mark.parametrize("status", ["FAILED", "ABORTED", "UNKNOWN", "SKIPPED"])
    def test_one_that_ended_otherwise_is_not_said_to_have_succeeded(self, status: str) -> None:
        step = a_step("a", status=status)
        assert refusal(lambda: end_step(a_job("FAILED"), step, [], succeeded=True)) == "STEP_ENDED"

    def test_one_that_shows_a_command_ends_with_it(self) -> None:
        step = a_step("a", command_id="command-1")
        assert refusal(lambda: end_step(RUNNING, step, [step], succeeded=False)) == "STEP_OF_COMMAND"


class TestEndingAJob:
    def test_one_without_open_steps_succeeds_or_fails_as_it_is_said(self) -> None:
        assert ends(end_job(RUNNING, [], succeeded=True, force=False)) == {"job": "FINISHED"}
        assert ends(end_job(RUNNING, [], succeeded=False, force=False)) == {"job": "FAILED"}

    def test_one_does_not_succeed_over_open_steps(self) -> None:
        assert refusal(lambda: end_job(RUNNING, [a_step("a")], succeeded=True, force=False)) == "STEPS_OPEN"

    def test_one_that_failed_closes_its_open_steps(self) -> None:
        assert ends(end_job(RUNNING, [a_step("a")], succeeded=False, force=False)) == {"a": "ABORTED", "job": "FAILED"}

    @pytest.mark.rule("semantics §4: `force` aborts open steps")
    def test_by_force_open_steps_are_aborted_and_it_has_not_succeeded(self) -> None:
        assert ends(end_job(RUNNING, [a_step("a")], succeeded=True, force=True)) == {"a": "ABORTED", "job": "ABORTED"}

    @pytest.mark.parametrize(
        ("status", "succeeded", "force"),
        [("FINISHED", True, False), ("FINISHED", True, True), ("ABORTED", True, True), ("FAILED", False, False)],
    )
    def test_saying_so_again_changes_nothing(self, status: str, succeeded: bool, force: bool) -> None:
        assert end_job(a_job(status), [], succeeded=succeeded, force=force) == Outcome()

    @pytest.mark.parametrize(
        ("status", "succeeded", "force"),
        [("FINISHED", False, True), ("ABORTED", True, False), ("FAILED", True, True), ("UNKNOWN", True, True)],
    )
    def test_one_that_ended_otherwise_stays_as_it_is(self, status: str, succeeded: bool, force: bool) -> None:
        assert refusal(lambda: end_job(a_job(status), [], succeeded=succeeded, force=force)) == "JOB_ENDED"

    def test_only_an_ended_one_is_cleared(self) -> None:
        check_clear(a_job("UNKNOWN"))
        assert refusal(lambda: check_clear(RUNNING)) == "JOB_NOT_ENDED"


@pytest.mark.rule("semantics §4: an optional heartbeat deadline ends a silent one as UNKNOWN")
def test_a_silent_job_ends_unknown_with_its_open_steps() -> None:
    outcome = fall_silent([a_step("a"), a_step("b", "a")], 30)
    assert ends(outcome) == {"a": "UNKNOWN", "b": "UNKNOWN", "job": "UNKNOWN"}
    assert outcome.job is not None
    assert outcome.job.error is not None
    assert outcome.job.error.reason == "HEARTBEAT_MISSED"


def test_progress_is_the_share_of_finished_steps_and_never_all_before_the_end() -> None:
    assert [progress(0, 0), progress(4, 0), progress(4, 1), progress(4, 4), progress(10_000, 9_999)] == [
        0,
        0,
        25,
        99,
        99,
    ]


@st.composite
def trees(draw: st.DrawFn) -> list[Step]:
    """Steps, each below an open one before it or at the top, as they can have come about."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 12))):
        parents = ["", *(step.step_id for step in steps if step.status in OPEN)]
        status = draw(st.sampled_from(["STARTED", "STARTED", "PENDING", "FINISHED"]))
        steps.append(a_step(f"s{number}", draw(st.sampled_from(parents)), status))
    return steps


@given(trees(), st.data())
def test_whatever_ends_a_job_leaves_no_step_open_and_touches_no_ended_one(
    steps: list[Step], data: st.DataObject
) -> None:
    still_open = [step for step in steps if step.status in OPEN]
    outcomes = [
        end_job(RUNNING, still_open, succeeded=data.draw(st.booleans()), force=True),
        fall_silent(still_open, 1),
        *[end_step(RUNNING, step, still_open, succeeded=False) for step in still_open[:1]],
    ]
    for outcome in outcomes:
        assert outcome.job is not None
        assert outcome.job.status not in OPEN
        assert set(outcome.steps) == {step.step_id for step in still_open}
        assert not still_open or outcome.job.status != "FINISHED"
        assert all(end.status not in (*OPEN, "FINISHED") and end.error is not None for end in outcome.steps.values())
