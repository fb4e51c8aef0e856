"""A reader's copy of the jobs: what it holds after which changes, and its proof."""

from __future__ import annotations

import hashlib
from functools import reduce
from operator import xor

from waybill.v1.jobs_pb2 import ExecutionStatus, Job, Step
from waybill.v1.jobstore_pb2 import Bookmark
from waybill_client import Complete, JobsView, Marked, Removed, Resync, Upserted
from waybill_client.view import in_display_order


def a_job(job_id: str, revision: int, *steps: Step) -> Job:
    return Job(job_id=job_id, revision=revision, steps=steps)


def a_step(step_id: str, parent: str = "", number: int = 0, progress: int = 0) -> Step:
    return Step(step_id=step_id, parent_step_id=parent, number=number, progress=progress)


def a_view(*jobs: Job, revision: int = 1) -> JobsView:
    view = JobsView()
    for job in jobs:
        view.apply(Upserted(job))
    view.apply(Complete(revision, snapshot=True))
    return view


def digest_of(*jobs: Job) -> str:
    hashes = (hashlib.md5(f"{job.job_id}:{job.revision}".encode()).digest()[:8] for job in jobs)
    return f"{reduce(xor, (int.from_bytes(each, 'big') for each in hashes), 0):016x}"


def test_a_copy_is_empty_until_its_snapshot_is_complete() -> None:
    view = JobsView()
    view.apply(Upserted(a_job("a", 1)))
    assert (list(view), view.complete) == ([], False)
    view.apply(Complete(3, snapshot=True))
    assert (list(view), view.complete, view.revision) == (["a"], True, 3)


def test_a_live_change_is_seen_at_once() -> None:
    view = a_view(a_job("a", 1))
    view.apply(Upserted(a_job("a", 2)))
    view.apply(Upserted(a_job("b", 2)))
    view.apply(Complete(2))
    assert {job_id: job.revision for job_id, job in view.items()} == {"a": 2, "b": 2}
    assert view.revision == 2


def test_a_removed_job_is_gone_and_an_unheld_one_is_ignored() -> None:
    view = a_view(a_job("a", 1))
    view.apply(Removed("a"))
    view.apply(Removed("never seen"))
    assert not view
    assert view.digest() == "0" * 16


def test_a_resync_keeps_the_old_state_until_the_new_one_is_whole() -> None:
    view = a_view(a_job("old", 1), a_job("both", 1))
    view.apply(Resync("STORE_EPOCH_CHANGED"))
    view.apply(Upserted(a_job("both", 9)))
    assert set(view) == {"old", "both"}
    view.apply(Complete(9, snapshot=True))
    assert set(view) == {"both"}
    assert view.digest() == digest_of(a_job("both", 9))


def test_the_digest_follows_every_change() -> None:
    view = a_view(a_job("a", 1), a_job("b", 2), a_job("c", 3), revision=3)
    view.apply(Upserted(a_job("b", 4)))
    view.apply(Removed("c"))
    assert view.digest() == digest_of(a_job("a", 1), a_job("b", 4))


def test_a_copy_agrees_with_a_bookmark_of_the_same_state_only() -> None:
    jobs = a_job("a", 1), a_job("b", 2)
    view = a_view(*jobs, revision=2)
    mark = Bookmark(revision=2, matching_jobs=2, digest=digest_of(*jobs))
    assert view.agrees_with(mark)
    assert not view.agrees_with(Bookmark(revision=2, matching_jobs=1, digest=mark.digest))
    assert not view.agrees_with(Bookmark(revision=2, matching_jobs=2, digest=digest_of(jobs[0])))
    assert not view.agrees_with(Bookmark(revision=3, matching_jobs=2, digest=mark.digest))


def test_a_bookmark_moves_the_revision_on() -> None:
    view = a_view(a_job("a", 1))
    view.apply(Marked(Bookmark(revision=70)))
    assert view.revision == 70


def test_a_kept_copy_goes_on_after_its_revision() -> None:
    view = JobsView.resumed([a_job("a", 1)], revision=5)
    view.apply(Upserted(a_job("b", 6)))
    view.apply(Complete(6))
    assert (set(view), view.revision, view.complete) == ({"a", "b"}, 6, True)


def test_changed_steps_join_those_that_are_held() -> None:
    view = a_view(a_job("a", 1, a_step("x", number=0), a_step("y", number=1)))
    view.apply(Upserted(a_job("a", 2, a_step("y", number=1, progress=50))))
    assert [(step.step_id, step.progress) for step in view["a"].steps] == [("x", 0), ("y", 50)]


def test_a_new_step_takes_its_place_in_the_order() -> None:
    view = a_view(a_job("a", 1, a_step("x", number=0), a_step("z", number=1)))
    view.apply(Upserted(a_job("a", 2, a_step("y", parent="x", number=0))))
    assert [step.step_id for step in view["a"].steps] == ["x", "y", "z"]


def test_an_upsert_without_steps_keeps_them() -> None:
    view = a_view(a_job("a", 1, a_step("x")))
    view.apply(Upserted(Job(job_id="a", revision=2, status=ExecutionStatus.EXECUTION_STATUS_FINISHED)))
    assert [step.step_id for step in view["a"].steps] == ["x"]


def test_a_change_never_touches_a_job_that_was_handed_out() -> None:
    view = a_view(a_job("a", 1, a_step("x")))
    before = view["a"]
    view.apply(Upserted(a_job("a", 2, a_step("x", progress=10))))
    assert (before.revision, before.steps[0].progress) == (1, 0)


def test_steps_are_ordered_parents_first_and_by_number() -> None:
    shuffled = [a_step("b1", "b"), a_step("a2", "a", 1), a_step("b", number=1), a_step("a"), a_step("a1", "a", 0)]
    assert [step.step_id for step in in_display_order(shuffled)] == ["a", "a1", "a2", "b", "b1"]
