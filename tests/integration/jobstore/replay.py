"""A reader's copy, made of a watch alone, and how it is held against the table."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import AsyncIterator, Callable, Iterable

from jobstore.queries.paging import Paging
from jobstore.queries.queries import Queries
from jobstore.search.filter import job_filter
from waybill.v1.jobs_pb2 import Job, Step
from waybill.v1.jobstore_pb2 import Bookmark, ListJobsRequest, WatchJobsResponse


class Replay:
    """What a reader holds, and what it noticed on the way.

    Complains by AssertionError about what no stream may do: changes out of order, one revision of a job twice, a digest
    that is not the copy's.
    """

    def __init__(self, revision: int = 0) -> None:
        self.jobs: dict[str, Job] = {}
        self.revision = revision
        """Complete up to here."""
        self.snapshot_done = revision > 0
        self.bookmarks: list[Bookmark] = []
        self.upserts: list[Job] = []
        self.removed: list[str] = []
        self.messages = 0
        self._newest = 0
        self._seen: set[tuple[str, int]] = set()

    def take(self, message: bytes | WatchJobsResponse) -> WatchJobsResponse:
        """Applies a message of the stream."""
        response = WatchJobsResponse.FromString(message) if isinstance(message, bytes) else message
        self.messages += 1
        for change in response.changes:
            if change.HasField("upsert"):
                self._upsert(change.upsert)
            else:
                self.removed.append(change.removed_job_id)
                self.jobs.pop(change.removed_job_id, None)
        if response.snapshot_done:
            assert not self.snapshot_done
            self.snapshot_done = True
        if response.revision:
            assert response.revision >= max(self.revision, self._newest)
            self.revision = response.revision
        if response.HasField("bookmark"):
            assert response.bookmark.revision >= self.revision
            self.revision = response.bookmark.revision
            self.bookmarks.append(response.bookmark)
            if response.bookmark.digest:
                proof = (response.bookmark.matching_jobs, response.bookmark.digest)
                assert proof == (len(self.jobs), self.digest()), "a digest is of what was sent before it"
        return response

    def _upsert(self, job: Job) -> None:
        if self.snapshot_done:
            assert job.revision >= self._newest, "changes come in order of revision"
            assert (job.job_id, job.revision) not in self._seen, "one revision of a job comes once"
            self._newest = job.revision
            self._seen.add((job.job_id, job.revision))
        copy = Job()
        copy.CopyFrom(job)
        self.upserts.append(copy)
        held = self.jobs.get(job.job_id)
        self.jobs[job.job_id] = job if held is None else _merged(held, job)

    def digest(self) -> str:
        """The digest of what is held, by the words of the contract."""
        return digest_of(self.jobs.values())

    async def follow(self, stream: AsyncIterator[bytes], until: Callable[[Replay], bool]) -> WatchJobsResponse:
        """Reads on until something is so; returns the message that made it so."""
        while True:
            response = self.take(await anext(stream))
            if until(self):
                return response

    async def to(self, stream: AsyncIterator[bytes], revision: int) -> None:
        """Reads on until the copy is complete up to a revision."""
        if not (self.snapshot_done and self.revision >= revision):
            await self.follow(stream, lambda replay: replay.snapshot_done and replay.revision >= revision)

    async def to_bookmark(self, stream: AsyncIterator[bytes]) -> Bookmark:
        """Reads on until the next bookmark."""
        known = len(self.bookmarks)
        return (await self.follow(stream, lambda replay: len(replay.bookmarks) > known)).bookmark


def _merged(held: Job, changed: Job) -> Job:
    """As view TREE has it: the job's own fields are replaced, steps are added or replaced one by one."""
    steps: dict[str, Step] = {step.step_id: step for step in (*held.steps, *changed.steps)}
    changed.ClearField("steps")
    changed.steps.extend(steps.values())
    return changed


def digest_of(jobs: Iterable[Job]) -> str:
    """XOR of the first 8 bytes of md5("job_id:revision"), as 16 hex digits."""
    hashes = (hashlib.md5(f"{job.job_id}:{job.revision}".encode()).digest()[:8] for job in jobs)
    return f"{functools.reduce(operator.xor, (int.from_bytes(each, 'big') for each in hashes), 0):016x}"


async def table(queries: Queries, filter: str = "", *, tree: bool = False) -> dict[str, Job]:
    """All that matches, read from the table."""
    jobs: dict[str, Job] = {}
    request = ListJobsRequest(page_size=1_000, filter=filter)
    while True:
        paging = Paging(request, int, str)
        page = await queries.list_jobs(job_filter(filter), paging, oldest_first=False, tree=tree)
        jobs |= {job.job_id: job for job in page.items}
        request.page_token = page.next_page_token
        if not request.page_token:
            return jobs


def assert_same(held: dict[str, Job], stored: dict[str, Job]) -> None:
    """Both hold the same jobs with the same steps; the order of steps is for the eye."""
    assert held.keys() == stored.keys()
    for job_id, job in stored.items():
        assert _plain(held[job_id]) == _plain(job), job_id


def _plain(job: Job) -> tuple[Job, dict[str, Step]]:
    bare = Job()
    bare.CopyFrom(job)
    bare.ClearField("steps")
    return bare, {step.step_id: step for step in job.steps}
