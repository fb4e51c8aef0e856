"""What a host's words say about the tasks in our care."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from tests.unit.texts import any_text

from chassis.errors import failed_precondition, resource_exhausted
from coordinator.hosts.refusals import is_for_now, result_of, too_late
from coordinator.hosts.taskbook import TaskBook, TaskReport, plain
from waybill.v1 import hostagent_pb2, jobs_pb2

INIT, RUNNING, FINISHED, UNKNOWN = (
    jobs_pb2.TASK_STATE_INIT,
    jobs_pb2.TASK_STATE_RUNNING,
    jobs_pb2.TASK_STATE_FINISHED,
    jobs_pb2.TASK_STATE_UNKNOWN,
)


def a_book(*task_ids: str, accepted: bool = True) -> TaskBook:
    book = TaskBook("h1")
    book.met("i1")
    for task_id in task_ids:
        book.care(hostagent_pb2.TaskSpec(task_id=task_id), None)
        if accepted:
            book.accepted(task_id)
    return book


def a_status(task_id: str, state: jobs_pb2.TaskState.ValueType, progress: int = 0) -> hostagent_pb2.TaskStatus:
    result = jobs_pb2.TASK_RESULT_SUCCESS if state == FINISHED else jobs_pb2.TASK_RESULT_UNSPECIFIED
    return hostagent_pb2.TaskStatus(task_id=task_id, state=state, progress=progress, result=result)


def test_a_finished_task_is_reported_once_with_its_answer() -> None:
    book = a_book("t1")
    status = a_status("t1", FINISHED, 100)
    status.answer.string_value = "done"

    report = book.heard(status)

    assert report == TaskReport("h1", "t1", "FINISHED", "SUCCESS", 100, None, "done", "i1")
    assert book.heard(status) is None
    assert len(book) == 0


@pytest.mark.rule("semantics §1: A failed task is finished; only its result tells")
def test_a_failed_task_is_reported_with_its_error() -> None:
    status = a_status("t1", FINISHED)
    status.result = jobs_pb2.TASK_RESULT_CLEAN_FAILURE
    status.error.message = "no space"

    report = a_book("t1").heard(status)

    assert report is not None
    assert (report.result, report.error and report.error.message) == ("CLEAN_FAILURE", "no space")


def test_a_task_that_nobody_here_waits_for_is_ignored() -> None:
    assert a_book("t1").heard(a_status("another's", FINISHED)) is None


def test_progress_is_reported_when_it_changes_and_that_a_task_began_is_not() -> None:
    book = a_book("t1")

    reports = [
        book.heard(a_status("t1", *said))
        for said in [(INIT, 0), (RUNNING, 0), (RUNNING, 5), (RUNNING, 5), (RUNNING, 9)]
    ]

    assert [report and (report.state, report.progress) for report in reports] == [
        None,
        None,
        ("RUNNING", 5),
        None,
        ("RUNNING", 9),
    ]


def test_a_task_whose_truth_the_host_lost_is_lost() -> None:
    report = a_book("t1").heard(a_status("t1", UNKNOWN))

    assert report is not None
    assert report.lost
    assert (report.state, report.result) == ("UNKNOWN", "")


def test_a_status_heard_before_the_answer_to_the_start_accepts_the_task() -> None:
    book = a_book("t1", accepted=False)
    book.heard(a_status("t1", RUNNING))

    assert book.accepted_ids() == ["t1"]
    assert book.refused("t1", failed_precondition("STALE_EPOCH", "late answer").to_status()) is None


def test_one_denial_is_a_doubt_and_the_second_loses_the_task() -> None:
    book = a_book("t1", "t2")

    assert book.denied(book.question(), {"t2"}) == ([], ["t1"])
    lost, doubts = book.denied(book.question(), set(), ["t1"])

    assert ([report.task_id for report in lost], doubts) == (["t1"], [])
    assert lost[0].lost
    assert "t2" in book


def test_a_word_about_the_task_ends_the_doubt() -> None:
    book = a_book("t1")
    book.denied(book.question(), set())
    book.heard(a_status("t1", RUNNING, 1))

    assert book.denied(book.question(), set()) == ([], ["t1"])


def test_a_host_cannot_deny_what_it_was_not_known_to_have_when_it_was_asked() -> None:
    book = a_book("t1", accepted=False)
    question = book.question()
    book.accepted("t1")

    assert book.denied(question, set()) == ([], [])


@pytest.mark.rule("semantics §3: Lost = the host denies a task whose acceptance we saw, in the same incarnation")
def test_a_start_that_nobody_answered_is_never_lost() -> None:
    book = a_book("t1", accepted=False)

    for _ in range(5):
        assert book.denied(book.question(), set()) == ([], [])


def test_another_incarnation_loses_what_the_former_accepted_and_nothing_else() -> None:
    book = a_book("t1")
    book.care(hostagent_pb2.TaskSpec(task_id="t2"), None)

    assert [report.task_id for report in book.met("i2")] == ["t1"]
    assert book.met("i2") == []
    assert "t2" in book


@pytest.mark.parametrize("reason", ["INCARNATION_CHANGED", "ALREADY_CLEARED"])
def test_a_refusal_that_leaves_open_what_happened_loses_the_task(reason: str) -> None:
    report = a_book("t1", accepted=False).refused("t1", failed_precondition(reason, "").to_status())

    assert report is not None
    assert (report.lost, report.refused, report.result) == (True, False, "")


def test_another_refusal_says_that_nothing_was_done() -> None:
    report = a_book("t1", accepted=False).refused("t1", failed_precondition("GENERATION_MISMATCH", "").to_status())

    assert report is not None
    assert (report.lost, report.refused, report.result) == (False, True, "CLEAN_SUCCESS")


def test_a_forgotten_task_is_neither_reported_nor_sent() -> None:
    book = TaskBook("h1")
    entry = book.care(hostagent_pb2.TaskSpec(task_id="t1"), None)
    book.forget("t1")

    assert entry.withdrawn
    assert book.heard(a_status("t1", FINISHED)) is None


def test_tasks_without_a_word_since_their_acceptance_are_known() -> None:
    book = a_book("t1", "t2")
    book.heard(a_status("t2", INIT))

    assert book.unheard_ids() == {"t1"}


def test_a_full_queue_is_for_now_and_a_stale_epoch_for_good() -> None:
    assert is_for_now(resource_exhausted("full", reason="QUEUE_FULL").to_status())
    assert not is_for_now(failed_precondition("STALE_EPOCH", "").to_status())
    assert not is_for_now(too_late(hostagent_pb2.TaskSpec(verb="copyImage")))


def test_a_failed_call_was_rolled_back_unless_it_says_otherwise() -> None:
    failed = failed_precondition("TASK_FAILED", "", result="CLEAN_FAILURE").to_status()

    assert result_of(None) == "SUCCESS"
    assert result_of(failed_precondition("OBJECT_NOT_FOUND", "").to_status()) == "CLEAN_SUCCESS"
    assert result_of(failed) == "CLEAN_FAILURE"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | any_text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(any_text(), parts, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_an_answer_comes_out_as_it_went_in(value: object) -> None:
    message = json_format.ParseDict(value, struct_pb2.Value())

    assert plain(message) == value


class CareMachine(RuleBasedStateMachine):
    """A host that tells the truth, heard late and in any order: nothing that it has is ever said to be lost."""

    tasks = Bundle("tasks")
    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.book = a_book()
        self.on_host: dict[str, hostagent_pb2.TaskStatus] = {}
        self.reports: list[TaskReport] = []
        self.count = 0

    def _take(self, report: TaskReport | None) -> None:
        if report is not None:
            self.reports.append(report)

    @rule(target=tasks)
    def care(self) -> str:
        self.count += 1
        task_id = f"t{self.count}"
        self.book.care(hostagent_pb2.TaskSpec(task_id=task_id), None)
        return task_id

    @rule(task_id=tasks)
    def host_takes_it(self, task_id: str) -> None:
        self.on_host.setdefault(task_id, a_status(task_id, INIT))

    @rule(task_id=tasks)
    def answer_to_the_start_arrives(self, task_id: str) -> None:
        if task_id in self.on_host:
            self.book.accepted(task_id)

    @rule(task_id=tasks, progress=st.integers(0, 100))
    def host_works(self, task_id: str, progress: int) -> None:
        if task_id in self.on_host and self.on_host[task_id].state != FINISHED:
            self.on_host[task_id] = a_status(task_id, FINISHED if progress == 100 else RUNNING, progress)

    @rule(task_id=tasks)
    def push_arrives(self, task_id: str) -> None:
        if task_id in self.on_host:
            self._take(self.book.heard(self.on_host[task_id]))

    @rule(target=questions)
    def ask(self) -> tuple[int, list[hostagent_pb2.TaskStatus]]:
        return self.book.question(), list(self.on_host.values())

    @rule(question=consumes(questions))
    def answer_arrives(self, question: tuple[int, list[hostagent_pb2.TaskStatus]]) -> None:
        number, statuses = question
        for status in statuses:
            self._take(self.book.heard(status))
        lost, _ = self.book.denied(number, {status.task_id for status in statuses})
        self.reports += lost

    @invariant()
    def nothing_is_lost(self) -> None:
        assert not [report for report in self.reports if report.lost]

    @invariant()
    def every_end_is_true_and_reported_once(self) -> None:
        ended = [report.task_id for report in self.reports if report.result]
        assert len(ended) == len(set(ended))
        assert all(self.on_host[task_id].state == FINISHED for task_id in ended)


CareMachine.TestCase.settings = settings(stateful_step_count=30)
TestCare: Callable[..., object] = CareMachine.TestCase


# --- standing still --------------------------------------------------------------------------------------------------


def a_working_book(*task_ids: str) -> TaskBook:
    """A book with tasks that run, and that were looked at once."""
    book = a_book(*task_ids)
    for task_id in task_ids:
        book.heard(a_status(task_id, RUNNING, 10))
    assert book.still(0.0, 60.0) == []
    return book


@pytest.mark.rule("semantics §3: Liveness is by progress, not age")
def test_only_a_task_that_comes_no_further_stands_still() -> None:
    book = a_working_book("slow", "stuck")
    for progress in range(11, 20):
        book.heard(a_status("slow", RUNNING, progress))
        stalled = book.still(10.0, 60.0)
        assert stalled == ([("stuck", 60.0)] if progress == 16 else [])


def test_what_was_told_of_a_task_is_told_again_only_after_as_long() -> None:
    book = a_working_book("stuck")
    told = [bool(book.still(10.0, 30.0)) for _ in range(9)]
    assert told == [False, False, True] * 3


def test_a_task_that_is_being_stopped_has_its_time_anew() -> None:
    book = a_working_book("stuck")
    assert book.still(30.0, 30.0) == [("stuck", 30.0)]
    book.heard(a_status("stuck", jobs_pb2.TASK_STATE_ABORTING, 10))
    assert book.still(30.0, 30.0) == []
    assert book.still(30.0, 30.0) == [("stuck", 30.0)]


def test_a_task_that_waits_for_a_place_does_not_stand_still() -> None:
    book = a_book("queued", "unheard")
    book.heard(a_status("queued", jobs_pb2.TASK_STATE_INIT))
    assert book.still(0.0, 60.0) == []
    assert book.still(100.0, 60.0) == []


def test_time_in_which_the_host_does_not_answer_does_not_count() -> None:
    book = a_working_book("stuck")
    book.still(50.0, 60.0)
    assert book.still(0.0, 60.0) == []  # the first answer after a silence
    assert book.still(10.0, 60.0) == [("stuck", 60.0)]


def test_a_task_may_have_a_limit_of_its_own() -> None:
    book = a_book()
    book.care(hostagent_pb2.TaskSpec(task_id="patient"), None, 120.0)
    book.accepted("patient")
    book.heard(a_status("patient", RUNNING, 10))
    book.still(0.0, 60.0)
    assert book.still(100.0, 60.0) == []
    assert book.still(20.0, 60.0) == [("patient", 120.0)]
