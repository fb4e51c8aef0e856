"""Watches against a scripted jobstore: what the reader sees when the stream breaks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from tests.integration.waybill_client.far_end import Context, ScriptedJobStore, Stream, refuse

from waybill.v1.jobs_pb2 import ExecutionStatus, Job, Step
from waybill.v1.jobstore_pb2 import Bookmark, JobChangeEvent, WatchJobsRequest, WatchJobsResponse
from waybill_client import (
    Complete,
    InvalidArgument,
    JobChange,
    NotFound,
    Removed,
    Resync,
    Unavailable,
    Upserted,
    WaybillClient,
)


def a_job(job_id: str, revision: int, status: str = "STARTED") -> Job:
    return Job(job_id=job_id, revision=revision, status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"))


def changed(
    *jobs: Job, revision: int = 0, snapshot_done: bool = False, removed: tuple[str, ...] = ()
) -> WatchJobsResponse:
    changes = [JobChangeEvent(upsert=job) for job in jobs] + [JobChangeEvent(removed_job_id=each) for each in removed]
    return WatchJobsResponse(changes=changes, revision=revision, snapshot_done=snapshot_done)


def marked(revision: int, store_epoch: str = "e1") -> WatchJobsResponse:
    return WatchJobsResponse(bookmark=Bookmark(revision=revision, store_epoch=store_epoch))


def sends(*responses: WatchJobsResponse, then: str = "stay") -> Stream:
    """A stream of these messages that then stays open, ends politely, or is `lost`."""

    async def stream(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        for response in responses:
            yield response
        if then == "lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        if then == "stay":
            await asyncio.Event().wait()

    return stream


def refuses(code: grpc.StatusCode, reason: str) -> Stream:
    async def stream(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        await refuse(context, code, reason, "no")
        yield WatchJobsResponse()

    return stream


async def take(
    client: WaybillClient, count: int, *, resume_revision: int = 0, give_up_after: float = math.inf
) -> list[JobChange]:
    changes = client.watch_jobs(resume_revision=resume_revision, give_up_after=give_up_after)
    async with aclosing(changes):
        return [await anext(changes) for _ in range(count)]


async def test_a_snapshot_and_then_changes(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    a, b = a_job("a", 1), a_job("b", 2)
    jobstore.streams = [sends(changed(a, revision=1, snapshot_done=True), changed(b, removed=("a",), revision=2))]
    assert await take(client, 5) == [Upserted(a), Complete(1, snapshot=True), Upserted(b), Removed("a"), Complete(2)]


@pytest.mark.parametrize("end", ["lost", "end"])
async def test_a_broken_stream_resumes_after_its_last_complete_revision(
    client: WaybillClient, jobstore: ScriptedJobStore, end: str
) -> None:
    a, half, b = a_job("a", 1), a_job("a", 2), a_job("b", 2)
    jobstore.streams = [
        sends(changed(a, revision=1, snapshot_done=True), marked(1), changed(half), then=end),
        sends(changed(half, b, revision=2)),
    ]
    changes = await take(client, 7)
    assert changes[3:] == [Upserted(half), Upserted(half), Upserted(b), Complete(2)]
    assert (jobstore.watches[1].resume_revision, jobstore.watches[1].store_epoch) == (1, "e1")


async def test_a_bookmark_moves_the_place_to_resume_from(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.streams = [sends(changed(snapshot_done=True, revision=1), marked(8), then="lost"), sends(marked(9))]
    await take(client, 3)
    assert jobstore.watches[-1].resume_revision == 8


async def test_a_snapshot_that_broke_is_started_over(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    gone, a = a_job("gone", 1), a_job("a", 2)
    jobstore.streams = [
        sends(changed(gone, revision=1), then="lost"),
        sends(changed(a), changed(revision=2, snapshot_done=True)),
    ]
    changes = await take(client, 5)
    assert changes[2:] == [Resync("SNAPSHOT_INTERRUPTED"), Upserted(a), Complete(2, snapshot=True)]
    assert jobstore.watches[1].resume_revision == 0


@pytest.mark.parametrize("reason", ["REVISION_COMPACTED", "STORE_EPOCH_CHANGED"])
async def test_a_revision_that_is_not_kept_starts_over(
    client: WaybillClient, jobstore: ScriptedJobStore, reason: str
) -> None:
    jobstore.streams = [
        refuses(grpc.StatusCode.OUT_OF_RANGE, reason),
        sends(changed(revision=90, snapshot_done=True)),
    ]
    assert await take(client, 2, resume_revision=5) == [Resync(reason), Complete(90, snapshot=True)]
    assert (jobstore.watches[1].resume_revision, jobstore.watches[1].store_epoch) == (0, "")


async def test_a_revision_from_the_future_is_refused(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.streams = [refuses(grpc.StatusCode.INVALID_ARGUMENT, "REVISION_UNKNOWN")]
    with pytest.raises(InvalidArgument):
        await take(client, 1, resume_revision=5)


async def test_a_store_that_went_back_in_time_starts_over(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.streams = [
        sends(changed(revision=7, snapshot_done=True), then="lost"),
        refuses(grpc.StatusCode.INVALID_ARGUMENT, "REVISION_UNKNOWN"),
        sends(changed(revision=3, snapshot_done=True)),
    ]
    assert (await take(client, 3))[1:] == [Resync("REVISION_UNKNOWN"), Complete(3, snapshot=True)]


async def test_a_jobstore_that_was_never_there_is_unavailable() -> None:
    async with WaybillClient("127.0.0.1:1", "127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await take(client, 1)


async def test_a_jobstore_that_stays_away_is_given_up(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.streams = [
        sends(changed(revision=1, snapshot_done=True), then="lost"),
        *[sends(then="lost") for _ in range(100)],
    ]
    with pytest.raises(Unavailable):
        await take(client, 2, give_up_after=0.3)


async def test_a_defect_is_raised(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.streams = [refuses(grpc.StatusCode.INTERNAL, "INTERNAL")]
    with pytest.raises(Exception, match="INTERNAL"):
        await take(client, 1)


async def test_a_reader_that_stops_ends_the_stream(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    ended = asyncio.Event()

    async def stream(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        context.add_done_callback(lambda _: ended.set())
        yield changed(revision=1, snapshot_done=True)
        await asyncio.Event().wait()

    jobstore.streams = [stream]
    await take(client, 1)
    await ended.wait()


async def test_waiting_ends_with_the_job(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.jobs["a"] = a_job("a", 1)
    jobstore.streams = [
        sends(changed(a_job("a", 1), revision=1, snapshot_done=True), then="lost"),
        sends(changed(a_job("a", 2, "FINISHED"), revision=2)),
    ]
    job = await client.wait("a")
    assert (job.status, job.revision) == (ExecutionStatus.EXECUTION_STATUS_FINISHED, 2)
    assert jobstore.watches[0].filter == 'job_id = "a"'


async def test_a_tree_that_comes_in_several_messages_is_shown_when_it_is_whole(
    client: WaybillClient, jobstore: ScriptedJobStore
) -> None:
    def a_tree(revision: int, status: str, *numbers: int) -> Job:
        job = a_job("a", revision, status)
        job.steps.extend(Step(step_id=str(number), number=number, status=job.status) for number in numbers)
        return job

    jobstore.jobs["a"] = a_tree(1, "STARTED", 0, 1)
    jobstore.streams = [
        sends(
            changed(a_tree(1, "STARTED", 0, 1), revision=1, snapshot_done=True),
            changed(a_tree(2, "FINISHED", 0)),
            changed(a_tree(2, "FINISHED", 1), revision=2),
        )
    ]
    job = await client.wait("a")
    assert [step.status for step in job.steps] == [ExecutionStatus.EXECUTION_STATUS_FINISHED] * 2


async def test_waiting_for_an_ended_job_needs_no_watch(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.jobs["a"] = a_job("a", 4, "FAILED")
    assert (await client.wait("a")).revision == 4
    assert jobstore.watches == []


async def test_waiting_for_nothing_is_not_found(client: WaybillClient) -> None:
    with pytest.raises(NotFound):
        await client.wait("nobody")


async def test_a_wait_asks_itself_when_the_watch_only_idles(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.jobs["a"] = a_job("a", 1)

    async def blind(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        yield changed(a_job("a", 1), revision=1, snapshot_done=True)
        yield marked(1)
        jobstore.jobs["a"] = a_job("a", 2, "FINISHED")
        yield marked(2)
        await asyncio.Event().wait()

    jobstore.streams = [blind]
    assert (await client.wait("a")).revision == 2


async def test_waiting_for_a_job_that_is_deleted_is_not_found(
    client: WaybillClient, jobstore: ScriptedJobStore
) -> None:
    jobstore.jobs["a"] = a_job("a", 1)

    async def deleting(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        yield changed(a_job("a", 1), revision=1, snapshot_done=True)
        jobstore.jobs.clear()
        yield changed(revision=2, removed=("a",))
        await asyncio.Event().wait()

    jobstore.streams = [deleting]
    with pytest.raises(NotFound):
        await client.wait("a")


async def test_a_wait_can_be_limited(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.jobs["a"] = a_job("a", 1)
    jobstore.streams = [sends(changed(a_job("a", 1), revision=1, snapshot_done=True))]
    with pytest.raises(TimeoutError):
        await client.wait("a", timeout=0.2)
