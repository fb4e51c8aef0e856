"""The readers' face, called over the wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from tests.integration.jobstore.replay import Replay, assert_same, table
from tests.integration.jobstore.scribe import Scribe

from chassis.clock import SystemClock, Uuid7Ids
from chassis.errors import WaybillError
from chassis.server import Mount, Server
from jobstore.feed.feed import Feed
from jobstore.journal.deletion import Deletion
from jobstore.journal.entities import Entities
from jobstore.journal.journal import Journal
from jobstore.queries.audit import Audit
from jobstore.queries.consistency import Consistency
from jobstore.queries.queries import Queries
from jobstore.reads import JobStoreService
from jobstore.search.filter import job_filter
from jobstore.settings import Retention
from jobstore.snapshots import Pool, borrowed, reading_pool
from jobstore.sweeper import Sweeper
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc
from waybill.v1.jobs_pb2 import ENTITY_TYPE_UNSPECIFIED, ENTITY_TYPE_VM, JOB_VIEW_BASIC, JOB_VIEW_TREE
from waybill.v1.jobstore_pb2 import (
    FILTERED_KIND_EVENTS,
    CheckConsistencyRequest,
    DeleteJobRequest,
    DeleteJobsRequest,
    GetEntityRequest,
    GetJobRequest,
    GetModifiedJobsRequest,
    GetStepRequest,
    ListCommandsRequest,
    ListEntitiesRequest,
    ListEventsRequest,
    ListFilterFieldsRequest,
    ListHostTasksRequest,
    ListJobsRequest,
    ListLocksRequest,
    ListStepsRequest,
    PutEntitiesRequest,
    WatchJobsRequest,
)

NAME = "waybill.v1.JobStore"


@dataclass
class Wire:
    """A served jobstore, as a client has it."""

    stub: jobstore_pb2_grpc.JobStoreStub
    feed: Feed

    async def refusal(self, call: str, request: Any) -> WaybillError:
        answer = getattr(self.stub, call)(request, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (answer.read() if call == "WatchJobs" else answer)
        return WaybillError.from_rpc_error(caught.value)


@pytest.fixture
async def wire(database_url: str, pool: Pool, feed: Feed) -> AsyncIterator[Wire]:
    clock, ids = SystemClock(), Uuid7Ids()
    async with (
        Journal(database_url, clock) as journal,
        Sweeper(pool, Deletion(journal, ids), clock, Retention(-1, -1, 3_600)) as sweeper,
    ):
        service = JobStoreService(Queries(pool), Audit(pool), feed, Consistency(pool), Entities(pool, journal), sweeper)
        mount = Mount(NAME, service, jobstore_pb2_grpc.add_JobStoreServicer_to_server)
        async with Server("127.0.0.1:0", [mount], grace=0.5) as server:
            server.set_serving(True)
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield Wire(jobstore_pb2_grpc.JobStoreStub(channel), feed)


async def test_every_call_answers(wire: Wire, scribe: Scribe) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job(correlation_id="c-1")
        step_id = await scribe.add_step(job_id, description="X")
        await scribe.add_host_task(job_id)
        await scribe.add_lock(job_id, ("VM", "vm-1"))
        await scribe.add_entity("VM", "vm-1", name="web")
    stub = wire.stub
    job = await stub.GetJob(GetJobRequest(job_id=job_id))
    assert [step.description for step in job.steps] == ["X"]
    assert not (await stub.GetJob(GetJobRequest(command_id=job.flow_command_id, view=JOB_VIEW_BASIC))).steps
    listed = await stub.ListJobs(ListJobsRequest(filter="correlation_id = c-1", view=JOB_VIEW_TREE))
    assert listed.jobs == [job]
    modified = await stub.GetModifiedJobs(GetModifiedJobsRequest(since_revision=0))
    assert ([each.job_id for each in modified.jobs], modified.revision) == ([job_id], scribe.at)
    assert modified.store_epoch
    assert (await stub.ListSteps(ListStepsRequest(job_id=job_id))).steps == job.steps
    assert await stub.GetStep(GetStepRequest(step_id=step_id)) == job.steps[0]
    commands = (await stub.ListCommands(ListCommandsRequest(flow_command_id=job.flow_command_id))).commands
    assert [command.command_id for command in commands] == [job.flow_command_id]
    assert len((await stub.ListHostTasks(ListHostTasksRequest(job_id=job_id.upper()))).host_tasks) == 1
    assert len((await stub.ListHostTasks(ListHostTasksRequest(correlation_id="c-1"))).host_tasks) == 1
    assert len((await stub.ListLocks(ListLocksRequest())).locks) == 1
    events = (await stub.ListEvents(ListEventsRequest(filter=f"job_id = {job_id}"))).events
    assert [event.event_type for event in events] == ["JOB_STARTED"]
    assert (await stub.GetEntity(GetEntityRequest(entity_type=ENTITY_TYPE_VM, entity_id="vm-1"))).name == "web"
    assert len((await stub.ListEntities(ListEntitiesRequest())).entities) == 1
    assert not (await stub.CheckConsistency(CheckConsistencyRequest())).violations


async def test_the_fields_that_filters_may_name_can_be_asked_for(wire: Wire) -> None:
    fields = {field.name: field for field in (await wire.stub.ListFilterFields(ListFilterFieldsRequest())).fields}
    assert fields["command_type"].alias == "type"
    assert "FAILED" in fields["status"].values
    assert list(fields["duration"].operators) == ["=", "!=", "<", "<=", ">", ">=", ":"]
    events = await wire.stub.ListFilterFields(ListFilterFieldsRequest(kind=FILTERED_KIND_EVENTS))
    assert "severity" in [field.name for field in events.fields]


async def test_modified_jobs_take_a_filter(wire: Wire, scribe: Scribe) -> None:
    async with scribe.revision():
        wanted = await scribe.add_job(owner="anna")
        await scribe.add_job(owner="ben")
    answer = await wire.stub.GetModifiedJobs(GetModifiedJobsRequest(filter="owner = anna"))
    assert [job.job_id for job in answer.jobs] == [wanted]


async def test_entities_are_declared_and_read_back(wire: Wire) -> None:
    vm = jobs_pb2.Entity(entity_type=ENTITY_TYPE_VM, entity_id="vm-1", name="web")
    vm.declared.update({"memory_mb": 512, "disk_ids": ["d-1"]})
    [stored] = (await wire.stub.PutEntities(PutEntitiesRequest(entities=[vm]))).entities
    assert (stored.version, stored.status, stored.declared["memory_mb"]) == (1, "OK", 512)
    assert await wire.stub.GetEntity(GetEntityRequest(entity_type=ENTITY_TYPE_VM, entity_id="vm-1")) == stored


ID = "0198c0de-0000-7000-8000-00000000000a"


@pytest.mark.parametrize(
    ("call", "request_", "reason", "field"),
    [
        ("GetJob", GetJobRequest(), "REQUEST_INVALID", "job_id"),
        ("GetJob", GetJobRequest(job_id="7"), "REQUEST_INVALID", "job_id"),
        ("GetJob", GetJobRequest(job_id=f"{ID}\0"), "REQUEST_INVALID", "job_id"),
        ("GetJob", GetJobRequest(command_id="x"), "REQUEST_INVALID", "command_id"),
        ("GetJob", GetJobRequest(job_id=ID, view=9), "REQUEST_INVALID", "view"),  # type: ignore[arg-type]
        ("ListJobs", ListJobsRequest(filter="colour = red"), "FILTER_INVALID", "filter"),
        ("ListJobs", ListJobsRequest(order_by="status"), "REQUEST_INVALID", "order_by"),
        ("ListJobs", ListJobsRequest(page_size=-1), "REQUEST_INVALID", "page_size"),
        ("ListJobs", ListJobsRequest(page_token="x"), "PAGE_TOKEN_INVALID", "page_token"),
        ("GetModifiedJobs", GetModifiedJobsRequest(since_revision=-1), "REQUEST_INVALID", "since_revision"),
        ("GetModifiedJobs", GetModifiedJobsRequest(since_revision=9), "REVISION_UNKNOWN", "since_revision"),
        ("GetModifiedJobs", GetModifiedJobsRequest(filter="a AND"), "FILTER_INVALID", "filter"),
        ("DeleteJob", DeleteJobRequest(), "REQUEST_INVALID", "job_id"),
        ("DeleteJobs", DeleteJobsRequest(), "REQUEST_INVALID", "older_than"),
        ("ListFilterFields", ListFilterFieldsRequest(kind=9), "REQUEST_INVALID", "kind"),  # type: ignore[arg-type]
        ("ListEntities", ListEntitiesRequest(filter="owner = anna"), "FILTER_INVALID", "filter"),
        ("WatchJobs", WatchJobsRequest(resume_revision=9), "REVISION_UNKNOWN", "resume_revision"),
        ("WatchJobs", WatchJobsRequest(filter="status ="), "FILTER_INVALID", "filter"),
        ("WatchJobs", WatchJobsRequest(bookmark_interval=-1), "REQUEST_INVALID", "bookmark_interval"),
        ("ListSteps", ListStepsRequest(), "REQUEST_INVALID", "job_id"),
        ("GetStep", GetStepRequest(step_id="x"), "REQUEST_INVALID", "step_id"),
        ("ListCommands", ListCommandsRequest(), "REQUEST_INVALID", "flow_command_id"),
        ("ListHostTasks", ListHostTasksRequest(), "REQUEST_INVALID", "job_id"),
        ("ListHostTasks", ListHostTasksRequest(host_id="a\0b"), "REQUEST_INVALID", "host_id"),
        ("ListHostTasks", ListHostTasksRequest(correlation_id="a b"), "CORRELATION_ID_INVALID", "correlation_id"),
        (
            "ListHostTasks",
            ListHostTasksRequest(entity=jobs_pb2.Subject(entity_type=ENTITY_TYPE_VM)),
            "REQUEST_INVALID",
            "entity.entity_id",
        ),
        ("ListEvents", ListEventsRequest(filter="job_id = x"), "FILTER_INVALID", "filter"),
        (
            "GetEntity",
            GetEntityRequest(entity_type=ENTITY_TYPE_UNSPECIFIED, entity_id="x"),
            "REQUEST_INVALID",
            "entity_type",
        ),
        ("GetEntity", GetEntityRequest(entity_type=ENTITY_TYPE_VM, entity_id="a\0b"), "REQUEST_INVALID", "entity_id"),
        ("ListEntities", ListEntitiesRequest(entity_type=99), "REQUEST_INVALID", "entity_type"),  # type: ignore[arg-type]
    ],
)
async def test_a_bad_request_is_refused_with_its_field(
    call: str, request_: Any, reason: str, field: str, wire: Wire
) -> None:
    error = await wire.refusal(call, request_)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
    assert [violation[0] for violation in error.violations] == [field]


async def test_what_is_not_there_is_not_found(wire: Wire) -> None:
    for call, request, reason in [
        ("GetJob", GetJobRequest(job_id=ID), "JOB_NOT_FOUND"),
        ("ListSteps", ListStepsRequest(job_id=ID), "JOB_NOT_FOUND"),
        ("DeleteJob", DeleteJobRequest(job_id=ID), "JOB_NOT_FOUND"),
        ("ListCommands", ListCommandsRequest(flow_command_id=ID), "JOB_NOT_FOUND"),
        ("GetStep", GetStepRequest(step_id=ID), "STEP_NOT_FOUND"),
        ("GetEntity", GetEntityRequest(entity_type=ENTITY_TYPE_VM, entity_id="x"), "ENTITY_NOT_FOUND"),
    ]:
        error = await wire.refusal(call, request)
        assert (error.code.name, error.reason) == ("NOT_FOUND", reason)


async def test_without_a_database_the_answer_is_unavailable() -> None:
    async with (
        reading_pool("postgresql://nobody@127.0.0.1:1/nothing") as pool,
        Feed(pool, SystemClock(), random.Random(1)) as feed,
    ):
        for asked in (Queries(pool).get_job(ID, tree=True), anext(feed.watch_jobs(job_filter("")))):
            with pytest.raises(WaybillError) as caught:
                await asked
            assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")


async def test_a_statement_that_takes_too_long_is_ended_and_not_to_be_repeated(pool: Pool) -> None:
    async def take_too_long() -> None:
        async with borrowed(pool) as connection:
            await connection.execute("SET statement_timeout = '10ms'")
            await connection.fetchval("SELECT pg_sleep(20)")

    with pytest.raises(WaybillError) as caught:
        await take_too_long()
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")


async def test_readers_cannot_write(pool: Pool) -> None:
    async with borrowed(pool) as connection:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("UPDATE head SET revision = 7")


# --- watching over the wire ----------------------------------------------------------------------------------------


async def followed(
    call: grpc.aio.UnaryStreamCall[WatchJobsRequest, jobstore_pb2.WatchJobsResponse],
    replay: Replay,
    until: Callable[[Replay], bool],
) -> None:
    while not until(replay):
        message = await call.read()
        assert isinstance(message, jobstore_pb2.WatchJobsResponse)
        replay.take(message)


async def test_a_watch_over_the_wire_ends_with_a_bookmark_and_can_be_resumed(
    wire: Wire, pool: Pool, scribe: Scribe, queries: Queries
) -> None:
    replay = Replay()
    call = wire.stub.WatchJobs(WatchJobsRequest(view=JOB_VIEW_TREE))
    await followed(call, replay, lambda replay: replay.snapshot_done)
    async with scribe.revision() as first:
        job_id = await scribe.add_job()
        step_id = await scribe.add_step(job_id)
    await followed(call, replay, lambda replay: replay.revision >= first)
    await wire.feed.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await followed(call, replay, lambda replay: False)
    assert WaybillError.from_rpc_error(caught.value).reason == "SHUTTING_DOWN"
    assert replay.bookmarks[-1].revision == first
    async with scribe.revision():
        await scribe.change_step(job_id, step_id, progress=40)
    async with Feed(pool, SystemClock(), random.Random(1)) as feed:
        bookmark = replay.bookmarks[-1]
        stream = feed.watch_jobs(
            job_filter(""), resume_revision=bookmark.revision, store_epoch=bookmark.store_epoch, tree=True
        )
        await replay.to(stream, scribe.at)
        await stream.aclose()
    assert_same(replay.jobs, await table(queries, tree=True))


async def test_a_client_that_stops_reading_holds_up_neither_the_others_nor_itself_later(
    wire: Wire, scribe: Scribe, queries: Queries
) -> None:
    slow, quick = Replay(), Replay()
    slow_call = wire.stub.WatchJobs(WatchJobsRequest())
    quick_call = wire.stub.WatchJobs(WatchJobsRequest())
    for call, replay in ((slow_call, slow), (quick_call, quick)):
        await followed(call, replay, lambda replay: len(replay.bookmarks) > 0)
    async with scribe.revision():
        job_ids = [await scribe.add_job(parameters=f'{{"blob": "{"x" * 30_000}"}}') for _ in range(20)]
    for progress in range(1, 31):
        async with scribe.revision():
            for job_id in job_ids:
                await scribe.change_job(job_id, progress=progress)
        await followed(quick_call, quick, lambda replay: replay.revision >= scribe.at)
    await followed(slow_call, slow, lambda replay: replay.revision >= scribe.at)
    assert len(slow.upserts) < len(quick.upserts)
    assert_same(slow.jobs, await table(queries))
    assert_same(quick.jobs, slow.jobs)


async def test_a_client_that_goes_away_is_forgotten(wire: Wire, scribe: Scribe, pool: Pool) -> None:
    call = wire.stub.WatchJobs(WatchJobsRequest())
    await followed(call, Replay(), lambda replay: replay.snapshot_done)
    call.cancel()
    async with asyncio.timeout(10):
        await wire.feed._unwatched.wait()
