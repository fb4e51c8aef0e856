"""A reader's own copy of the jobs that a watch delivers, and the proof that it is the store's.

Changes go in by `apply`. While a snapshot is coming in, it gathers apart: the copy that readers see is always a state
that the store once had.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from waybill.v1.jobs_pb2 import Job, Step
from waybill.v1.jobstore_pb2 import Bookmark
from waybill_client.watch import Complete, JobChange, Marked, Removed, Resync, Upserted


class JobsView(Mapping[str, Job]):
    """Jobs by id, as of `revision`; `complete` once the first snapshot was."""

    def __init__(self) -> None:
        self.complete = False
        self.revision = 0
        self._jobs = _Copy()
        self._gathering: _Copy | None = _Copy()  # None when live: changes go straight into what readers see

    @classmethod
    def resumed(cls, jobs: Iterable[Job], revision: int) -> JobsView:
        """A copy that was kept, for a watch that resumes after its revision."""
        view = cls()
        for job in jobs:
            view._jobs.put(job)
        view._gathering, view.complete, view.revision = None, True, revision
        return view

    def apply(self, change: JobChange) -> None:
        """Takes one change of the stream."""
        into = self._jobs if self._gathering is None else self._gathering
        match change:
            case Upserted(job):
                into.put(job)
            case Removed(job_id):
                into.remove(job_id)
            case Resync():
                self._gathering = _Copy()
            case Complete(revision, snapshot):
                self._completed(revision, snapshot)
            case Marked(bookmark):
                self._completed(bookmark.revision, snapshot=False)

    def _completed(self, revision: int, snapshot: bool) -> None:
        if snapshot and self._gathering is not None:
            self._jobs, self._gathering, self.complete, self.revision = self._gathering, None, True, revision
        elif self._gathering is None:
            self.revision = max(revision, self.revision)

    def digest(self) -> str:
        """XOR over the jobs of the first 8 bytes of md5("job_id:revision"), as 16 hex digits: what bookmarks carry."""
        return f"{self._jobs.digest:016x}"

    def agrees_with(self, bookmark: Bookmark) -> bool:
        """True if this copy is what the store had at the bookmark, which has a digest and was applied last."""
        return (self.revision, len(self), self.digest()) == (
            bookmark.revision,
            bookmark.matching_jobs,
            bookmark.digest,
        )

    def __getitem__(self, job_id: str) -> Job:
        return self._jobs.jobs[job_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs.jobs)

    def __len__(self) -> int:
        return len(self._jobs.jobs)


class _Copy:
    """Jobs and their digest, which is kept up with each change: XOR takes a job out as it put it in."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.digest = 0

    def put(self, job: Job) -> None:
        held = self.jobs.get(job.job_id)
        if held is not None:
            self.digest ^= _fingerprint(held)
            job = with_earlier_steps(job, held)
        self.jobs[job.job_id] = job
        self.digest ^= _fingerprint(job)

    def remove(self, job_id: str) -> None:
        held = self.jobs.pop(job_id, None)
        if held is not None:
            self.digest ^= _fingerprint(held)


def with_earlier_steps(job: Job, held: Job) -> Job:
    """The job with the steps that it does not repeat, in display order."""
    if not held.steps or not job.steps:
        steps = list(job.steps or held.steps)
    else:
        newer = {step.step_id: step for step in job.steps}
        earlier = [newer.pop(step.step_id, step) for step in held.steps]
        steps = in_display_order([*earlier, *newer.values()]) if newer else earlier
    whole = Job()
    whole.CopyFrom(job)
    del whole.steps[:]
    whole.steps.extend(steps)
    return whole


def in_display_order(steps: Iterable[Step]) -> list[Step]:
    """Parents before children, siblings by number."""
    below: defaultdict[str, list[Step]] = defaultdict(list)
    for step in steps:
        below[step.parent_step_id].append(step)
    ordered: list[Step] = []
    waiting = sorted(below[""], key=lambda step: step.number, reverse=True)
    while waiting:
        step = waiting.pop()
        ordered.append(step)
        waiting.extend(sorted(below[step.step_id], key=lambda each: each.number, reverse=True))
    return ordered


def _fingerprint(job: Job) -> int:
    return int.from_bytes(hashlib.md5(f"{job.job_id}:{job.revision}".encode()).digest()[:8], "big")
