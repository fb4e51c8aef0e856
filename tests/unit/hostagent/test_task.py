"""The task state machine: every state meets every move, and random moves keep its promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.task import Ending, IllegalMove, Task, TaskResult, TaskSpec, TaskState

INIT, RUNNING, FINISHED = TaskState.INIT, TaskState.RUNNING, TaskState.FINISHED
ABORTING, CLEANING, UNKNOWN = TaskState.ABORTING, TaskState.CLEANING, TaskState.UNKNOWN
SUCCESS, CLEAN_SUCCESS, CLEAN_FAILURE = TaskResult.SUCCESS, TaskResult.CLEAN_SUCCESS, TaskResult.CLEAN_FAILURE

Move = Callable[[Task], object]


def a_task(state: TaskState, result: TaskResult = SUCCESS) -> Task:
    """Returns a task that has come to a state on a legal way."""
    task = Task.found(0) if state is UNKNOWN else Task()
    if state in (RUNNING, CLEANING, FINISHED):
        task.begin()
    if state is ABORTING:
        task.stop()
    if state is CLEANING or result is CLEAN_FAILURE:
        task.clean()
    if state is FINISHED:
        task.finish(Ending(result))
    assert task.state is state
    return task


def finish(result: TaskResult) -> Move:
    return lambda task: task.finish(Ending(result))


MOVES: dict[str, Move] = {
    "begin": Task.begin,
    "stop": Task.stop,
    "clean": Task.clean,
    "revert": Task.revert,
    **{f"finish {result}": finish(result) for result in TaskResult},
}

# Where each move leads from each state; a state that is not here refuses it.
LEGAL: dict[str, dict[TaskState, TaskState]] = {
    "begin": {INIT: RUNNING, UNKNOWN: RUNNING},
    "stop": {
        INIT: ABORTING,
        RUNNING: ABORTING,
        UNKNOWN: ABORTING,
        ABORTING: ABORTING,
        CLEANING: CLEANING,
        FINISHED: FINISHED,
    },
    "clean": {RUNNING: CLEANING, ABORTING: CLEANING, UNKNOWN: CLEANING},
    "revert": {FINISHED: CLEANING, CLEANING: CLEANING},
    "finish SUCCESS": {RUNNING: FINISHED, ABORTING: FINISHED, UNKNOWN: FINISHED},
    "finish CLEAN_SUCCESS": {RUNNING: FINISHED, ABORTING: FINISHED, CLEANING: FINISHED, UNKNOWN: FINISHED},
    "finish CLEAN_FAILURE": {CLEANING: FINISHED, UNKNOWN: FINISHED},
}


@pytest.mark.rule("semantics §3: States move INIT → RUNNING → FINISHED; stop: → ABORTING → (CLEANING) → FINISHED")
@pytest.mark.rule("semantics §3: Illegal moves are refused")
@pytest.mark.parametrize(("state", "move"), list(itertools.product(TaskState, MOVES)))
def test_every_state_takes_the_legal_moves_and_refuses_the_others(state: TaskState, move: str) -> None:
    task = a_task(state)
    if state in LEGAL[move]:
        MOVES[move](task)
        assert task.state is LEGAL[move][state]
    else:
        with pytest.raises(IllegalMove):
            MOVES[move](task)
        assert task.state is state


def test_a_task_waits_runs_and_succeeds() -> None:
    task = Task()
    task.begin()
    task.finish(Ending(SUCCESS, answer={"generation": 2}))
    assert (task.state, task.progress) == (FINISHED, 100)
    assert task.ending == Ending(SUCCESS, None, {"generation": 2})


@pytest.mark.rule("semantics §1: A failed task is finished; only its result tells")
def test_a_task_that_fails_keeps_how_far_it_came() -> None:
    task = Task()
    task.begin()
    task.advance(40)
    task.clean()
    task.finish(Ending(CLEAN_SUCCESS, ValueError("no")))
    assert (task.is_over, task.progress) == (True, 40)


def test_stopping_twice_changes_nothing_the_second_time() -> None:
    task = Task()
    assert task.stop()
    assert not task.stop()
    assert task.state is ABORTING


def test_stopping_a_finished_task_changes_nothing_and_is_no_error() -> None:
    task = a_task(FINISHED)
    assert not task.stop()
    assert task.ending == Ending(SUCCESS)


def test_work_that_was_done_before_the_stop_reached_it_is_a_success() -> None:
    task = a_task(RUNNING)
    task.stop()
    task.finish(Ending(SUCCESS))
    assert task.ending == Ending(SUCCESS)


@pytest.mark.rule("semantics §3: Revert only when finished")
def test_only_what_is_over_can_be_reverted() -> None:
    for state in (INIT, RUNNING, ABORTING, UNKNOWN):
        with pytest.raises(IllegalMove, match="revert"):
            a_task(state).revert()


def test_a_reverted_task_ends_clean() -> None:
    task = a_task(FINISHED)
    assert task.revert()
    assert (task.state, task.ending) == (CLEANING, None)
    task.finish(Ending(CLEAN_SUCCESS))
    assert task.ending == Ending(CLEAN_SUCCESS)


def test_reverting_what_is_taken_back_already_changes_nothing() -> None:
    task = a_task(FINISHED, CLEAN_SUCCESS)
    assert not task.revert()
    assert task.is_over


def test_a_failed_roll_back_can_be_tried_again() -> None:
    task = a_task(FINISHED, CLEAN_FAILURE)
    assert task.revert()
    task.finish(Ending(CLEAN_SUCCESS))
    assert task.ending == Ending(CLEAN_SUCCESS)


@pytest.mark.rule("semantics §3: Progress 0–100 never falls")
def test_progress_never_falls_and_never_passes_100() -> None:
    task = a_task(RUNNING)
    assert task.advance(30)
    assert not task.advance(30)
    assert not task.advance(10)
    assert task.advance(170)
    assert task.progress == 100


def test_a_task_found_by_a_new_process_goes_on_from_its_progress() -> None:
    task = Task.found(60)
    task.begin()
    assert not task.advance(50)
    assert task.progress == 60


def test_a_task_that_was_over_is_told_as_it_was() -> None:
    ending = Ending(CLEAN_FAILURE, ValueError("x"))
    task = Task.over(30, ending)
    assert (task.state, task.progress, task.ending) == (FINISHED, 30, ending)


def test_the_same_work_under_another_epoch_is_a_repeat() -> None:
    spec = TaskSpec("t", "copyImage", {"volume_id": "v"}, epoch=1)
    assert spec.asks_the_same_as(spec._replace(epoch=2, priority=5, traceparent="x"))
    assert not spec.asks_the_same_as(spec._replace(verb="moveImage"))
    assert not spec.asks_the_same_as(spec._replace(arguments={"volume_id": "w"}))
    assert not spec.asks_the_same_as(spec._replace(expected_generation=3))


moves = st.one_of(st.sampled_from(sorted(MOVES)), st.integers(-5, 130))


@given(st.lists(moves, max_size=30), st.booleans())
def test_whatever_is_asked_of_a_task_it_stays_within_the_diagram(asked: list[str | int], found: bool) -> None:
    task = Task.found(0) if found else Task()
    progress = 0
    for move in asked:
        before, ending = task.state, task.ending
        if isinstance(move, int):
            task.advance(move)
            assert task.state is before
        else:
            try:
                MOVES[move](task)
            except IllegalMove:
                assert (task.state, task.ending) == (before, ending)
            else:
                refused_revert = move == "revert" and ending is not None and ending.result is CLEAN_SUCCESS
                assert task.state is (before if refused_revert else LEGAL[move][before])
        assert progress <= task.progress <= 100
        progress = task.progress
        assert (task.ending is not None) == task.is_over
        if before is FINISHED and move != "revert":
            assert task.ending is ending
