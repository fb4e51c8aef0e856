"""Batches, windows, and what a watcher is sent of them. No clock, no loop, no database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from chassis.errors import WaybillError
from jobstore.feed.changes import status_may_have_changed
from jobstore.feed.head import Head, check_resume
from jobstore.feed.selections import JobSelection, JournalSelection, SnapshotPage
from jobstore.feed.watcher import Turn, Watcher
from jobstore.feed.window import (
    LARGEST_MESSAGE,
    Batch,
    EntityChanged,
    FlowRequested,
    JobChange,
    JobChanged,
    JobRemoved,
    JournalChange,
    Position,
    Scope,
    Window,
)
from jobstore.search.filter import job_filter
from waybill.v1.jobs_pb2 import EXECUTION_STATUS_FINISHED, EXECUTION_STATUS_STARTED, Entity, Job, Step
from waybill.v1.jobstore_pb2 import FlowRequest, JournalWatchResponse, WatchJobsResponse

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
EVERYTHING = Scope.JOBS | Scope.STEPS | Scope.TREES | Scope.JOURNAL


def a_head(revision: int = 10, *, epoch: str = "store", compacted: int = 0) -> Head:
    return Head(revision, compacted, NOON, epoch)


def a_change(job_id: str = "j", revision: int = 5, *, steps: str = "", whole: str = "", **job: object) -> JobChanged:
    fields: dict[str, object] = {"status": EXECUTION_STATUS_STARTED, "visible": True, "owner": "anna"} | job
    change = JobChanged(revision, Job(job_id=job_id, revision=revision, **fields), bool(whole))  # type: ignore[arg-type]
    change.changed_steps = [Step(step_id=name) for name in steps]
    change.steps = [Step(step_id=name) for name in whole] if whole else None
    return change


def a_batch(
    since: int,
    until: int,
    *jobs: JobChange,
    scope: Scope = EVERYTHING,
    head: int | None = None,
    journal: list[JournalChange] | None = None,
) -> Batch:
    head = until if head is None else head
    return Batch(Position(since), Position(until, NOON), scope, a_head(head), jobs=list(jobs), journal=journal or [])


def a_window(*batches: Batch, capacity: int = 1 << 20) -> Window:
    window = Window(capacity)
    window.skip_to(batches[0].since if batches else Position(0))
    for batch in batches:
        window.append(batch)
    return window


def a_watcher(filter: str = "", *, tree: bool = False, at: int = 10, digest: bool = False) -> Watcher:
    """One that has caught up."""
    selection = JobSelection(job_filter(filter), tree)
    watcher = Watcher(selection, a_head(at), at, interval=10, digest=digest, now=0)
    watcher.take_table_page(a_batch(at, at), 0, "")
    return watcher


def read(messages: list[bytes]) -> WatchJobsResponse:
    """The messages as one: that is what one after the other means."""
    return WatchJobsResponse.FromString(b"".join(messages))


def told(messages: list[bytes]) -> list[str]:
    """+j for an upsert, with its steps; -j for a removal."""
    return [
        f"+{change.upsert.job_id}{''.join(step.step_id for step in change.upsert.steps)}"
        if change.HasField("upsert")
        else f"-{change.removed_job_id}"
        for change in read(messages).changes
    ]


# --- selections ----------------------------------------------------------------------------------------------------


def test_bytes_made_by_hand_are_the_message() -> None:
    change = a_change(steps="ab", description="ü" * 200)
    expected = Job.FromString(change.job.SerializeToString())
    expected.steps.extend([Step(step_id="a"), Step(step_id="b")])
    assert read(change.with_changed_steps).changes[0].upsert == expected
    assert WatchJobsResponse.FromString(JobRemoved(1, "j").removal).changes[0].removed_job_id == "j"


def test_without_steps_a_job_comes_bare() -> None:
    batch = a_batch(4, 5, a_change(steps="ab", whole="abc"))
    assert told(JobSelection(job_filter("")).messages(batch, 4)) == ["+j"]


def test_with_steps_it_brings_those_that_changed() -> None:
    batch = a_batch(4, 5, a_change(steps="ab", whole="abc"))
    assert told(JobSelection(job_filter("owner = anna"), tree=True).messages(batch, 4)) == ["+jab"]


def test_a_job_that_may_match_only_now_brings_all_its_steps() -> None:
    selection = JobSelection(job_filter("status = STARTED"), tree=True)
    assert told(selection.messages(a_batch(4, 5, a_change(steps="ab", whole="abc")), 4)) == ["+jabc"]
    assert told(selection.messages(a_batch(4, 5, a_change(steps="ab")), 4)) == ["+jab"]


def test_matching_left_and_never() -> None:
    batch = a_batch(
        4,
        8,
        a_change("a", 5),
        a_change("b", 6, status=EXECUTION_STATUS_FINISHED),
        a_change("c", 7, owner="ben"),
        JobRemoved(8, "d"),
    )
    selection = JobSelection(job_filter("status = STARTED AND owner = anna"))
    assert told(selection.messages(batch, 4)) == ["+a", "-b", "-d"]


def test_what_a_watcher_knows_already_is_not_sent_again() -> None:
    batch = a_batch(4, 8, a_change("a", 5), a_change("b", 6), JobRemoved(7, "c"), a_change("d", 8))
    selection = JobSelection(job_filter(""))
    assert told(selection.messages(batch, 6)) == ["-c", "+d"]
    assert told(selection.messages(batch, 4)) == ["+a", "+b", "-c", "+d"]  # another's knowledge is not everybody's
    assert told(selection.messages(batch, 7)) == ["+d"]


def test_those_who_want_the_same_share_the_bytes() -> None:
    batch = a_batch(4, 5, a_change())
    one, same = JobSelection(job_filter("owner = anna")), JobSelection(job_filter("owner='anna'"))
    assert one.messages(batch, 4) is same.messages(batch, 4)
    assert JobSelection(job_filter("owner = ben")).messages(batch, 4) == []


def test_a_large_batch_comes_in_several_messages() -> None:
    changes = [a_change(str(number), 5, description="x" * 300_000) for number in range(10)]
    messages = JobSelection(job_filter("")).messages(a_batch(4, 5, *changes), 4)
    assert len(messages) == 4
    assert max(map(len, messages)) < LARGEST_MESSAGE
    assert len(read(messages).changes) == 10


def test_a_tree_too_large_for_a_message_comes_as_several_upserts_of_the_same_job() -> None:
    change = a_change()
    change.changed_steps = [Step(step_id=f"s{number}", description="x" * 1_000) for number in range(3_000)]
    messages = JobSelection(job_filter(""), tree=True).messages(a_batch(4, 5, change), 4)
    upserts = [each.upsert for message in messages for each in WatchJobsResponse.FromString(message).changes]
    assert max(map(len, messages)) < 2 * LARGEST_MESSAGE
    assert len(upserts) > 2
    assert [step.step_id for job in upserts for step in job.steps] == [f"s{number}" for number in range(3_000)]
    assert {job.revision for job in upserts} == {5}


def test_a_coordinator_hears_of_entities_and_of_requests_for_its_own_flows() -> None:
    journal: list[JournalChange] = [
        EntityChanged(5, Entity(entity_id="vm-1")),
        FlowRequested(6, "mine", FlowRequest(request_id="for me")),
        FlowRequested(7, "other", FlowRequest(request_id="for another")),
    ]
    batch = a_batch(4, 7, journal=journal)
    response = JournalWatchResponse.FromString(b"".join(JournalSelection("mine").messages(batch, 4)))
    assert [entity.entity_id for entity in response.entities] == ["vm-1"]
    assert [request.request_id for request in response.flow_requests] == ["for me"]
    assert JournalSelection("mine").messages(batch, 6) == []


# --- the window ----------------------------------------------------------------------------------------------------


def test_a_window_gives_what_is_after_a_position() -> None:
    first, second = a_batch(10, 12), a_batch(12, 15)
    window = a_window(first, second)
    assert window.after(10, Scope.JOBS) == [first, second]
    assert window.after(11, Scope.JOBS) == [first, second]
    assert window.after(12, Scope.JOBS) == [second]
    assert window.after(15, Scope.JOBS) == []
    assert window.after(16, Scope.JOBS) == []  # a watcher may have read the table after us
    assert window.after(9, Scope.JOBS) is None


def test_a_window_drops_its_oldest_when_it_is_full() -> None:
    window = a_window(*[a_batch(n, n + 1, a_change(revision=n + 1)) for n in range(10, 20)], capacity=8_000)
    assert window.after(10, Scope.JOBS) is None
    assert [batch.until.revision for batch in window.after(18, Scope.JOBS) or ()] == [19, 20]


def test_a_batch_that_lacks_what_is_wanted_does_not_count() -> None:
    window = a_window(a_batch(10, 12, scope=Scope.JOBS), a_batch(12, 15))
    assert window.after(10, Scope.JOBS | Scope.STEPS) is None
    assert len(window.after(12, Scope.JOBS | Scope.STEPS) or ()) == 1


def test_a_window_that_begins_anew_has_nobody_who_is_behind() -> None:
    window = a_window(a_batch(10, 12))
    window.skip_to(Position(20))
    assert window.after(12, Scope.JOBS) is None
    assert window.after(20, Scope.JOBS) == []


# --- a watcher's turns ---------------------------------------------------------------------------------------------


def test_from_0_a_watcher_reads_the_snapshot_then_the_table_then_the_window() -> None:
    watcher = Watcher(JobSelection(job_filter("")), a_head(10), 0, interval=10, digest=False, now=0)
    window = a_window(a_batch(10, 12))
    assert watcher.turn(window, 0) is Turn.SNAPSHOT
    watcher.take_snapshot_page(SnapshotPage([b""], "cursor"))
    assert (watcher.turn(window, 0), watcher.snapshot_cursor) == (Turn.SNAPSHOT, "cursor")
    watcher.take_snapshot_page(SnapshotPage([], ""))
    assert (watcher.turn(window, 0), watcher.is_state) == (Turn.TABLE, False)
    response = read(watcher.take_table_page(a_batch(10, 11), 0, ""))
    assert (response.snapshot_done, response.revision, response.bookmark.revision) == (True, 11, 11)
    assert (watcher.turn(window, 0), watcher.is_state) == (Turn.WINDOW, True)


def test_revision_is_said_once_all_pages_of_the_table_are_sent() -> None:
    watcher = Watcher(JobSelection(job_filter("")), a_head(10), 4, interval=10, digest=False, now=0)
    pages = [
        a_batch(4, 6, a_change("a", 6), head=9),
        a_batch(6, 8, a_change("b", 8), head=9),
        a_batch(8, 9, head=9),
    ]
    responses = [read(watcher.take_table_page(page, 0, "")) for page in pages]
    assert [response.revision for response in responses] == [0, 0, 9]
    assert (responses[-1].snapshot_done, responses[-1].bookmark.revision) == (False, 9)
    assert watcher.position == Position(9, NOON)


def test_what_waits_in_the_window_comes_as_one_message() -> None:
    watcher = a_watcher(at=10)
    window = a_window(a_batch(10, 11, a_change("a", 11)), a_batch(11, 12, a_change("b", 12)))
    [message] = watcher.take_window(window)
    assert told([message]) == ["+a", "+b"]
    assert read([message]).revision == 12
    assert watcher.turn(window, 0) is Turn.WAIT


def test_a_watcher_that_wants_nothing_of_it_moves_on_in_silence() -> None:
    watcher = a_watcher("owner = ben", at=10)
    window = a_window(a_batch(10, 11, a_change("a", 11)))
    assert watcher.turn(window, 0) is Turn.WINDOW
    assert watcher.take_window(window) == []
    assert watcher.position.revision == 11


def test_a_watcher_that_fell_behind_reads_the_table_from_its_position() -> None:
    watcher = a_watcher(at=10)
    assert watcher.turn(a_window(a_batch(12, 15)), 0) is Turn.TABLE
    assert watcher.table_cursor == 10
    response = read(watcher.take_table_page(a_batch(10, 15, a_change("a", 13)), 0, ""))
    assert (response.revision, response.HasField("bookmark")) == (15, False)


def test_silence_is_broken_by_a_bookmark() -> None:
    watcher, window = a_watcher(at=10), a_window(a_batch(8, 10))
    assert watcher.turn(window, 9.9) is Turn.WAIT
    assert watcher.turn(window, 10) is Turn.BOOKMARK
    assert read([watcher.bookmark()]).bookmark.store_epoch == "store"
    watcher.spoke(10)
    assert watcher.turn(window, 19.9) is Turn.WAIT


def test_a_bookmark_with_a_digest_comes_from_the_table() -> None:
    watcher, window = a_watcher(at=10, digest=True), a_window(a_batch(8, 10))
    assert watcher.turn(window, 10) is Turn.TABLE
    page = a_batch(10, 12, a_change("a", 12))
    assert watcher.wants_digest(page)
    messages = watcher.take_table_page(page, 7, "00ff")
    assert told(messages) == ["+a"]
    bookmark = read(messages).bookmark
    assert (bookmark.revision, bookmark.matching_jobs, bookmark.digest) == (12, 7, "00ff")


def test_a_snapshot_in_the_making_is_no_place_for_a_bookmark() -> None:
    watcher = Watcher(JobSelection(job_filter("")), a_head(10), 0, interval=1, digest=False, now=0)
    assert not watcher.silent_too_long(1_000)


# --- where a watch may begin, and go on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "epoch", "reason"),
    [
        (3, "", "REVISION_COMPACTED"),
        (11, "", "REVISION_UNKNOWN"),
        (5, "other", "STORE_EPOCH_CHANGED"),
        (0, "other", "STORE_EPOCH_CHANGED"),
        (-1, "", "REQUEST_INVALID"),
    ],
)
def test_a_revision_whose_changes_are_not_known_is_refused(revision: int, epoch: str, reason: str) -> None:
    with pytest.raises(WaybillError) as caught:
        check_resume(a_head(10, compacted=4), revision, epoch)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("revision", "epoch"), [(0, ""), (4, ""), (10, "store")])
def test_any_other_revision_will_do(revision: int, epoch: str) -> None:
    check_resume(a_head(10, compacted=4), revision, epoch)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (a_head(12, epoch="other"), "STORE_EPOCH_CHANGED"),
        (a_head(9), "STORE_EPOCH_CHANGED"),
        (a_head(12, compacted=11), "REVISION_COMPACTED"),
    ],
)
def test_a_watch_does_not_go_on_in_another_history(head: Head, reason: str) -> None:
    with pytest.raises(WaybillError) as caught:
        a_watcher(at=10).check(head)
    assert caught.value.reason == reason


def test_a_status_changed_if_its_time_is_later_or_nothing_is_known() -> None:
    later = NOON + timedelta(microseconds=1)
    assert status_may_have_changed({"start_time": NOON, "end_time": later}, NOON)
    assert not status_may_have_changed({"start_time": NOON, "end_time": None}, NOON)
    assert status_may_have_changed({"start_time": NOON, "end_time": None}, None)
    assert not status_may_have_changed({"start_time": None, "end_time": None}, None)
