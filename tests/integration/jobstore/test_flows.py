"""Rows of flows, entities and intents, over gRPC, as coordinators see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from google.rpc import status_pb2
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.flow import COORDINATOR, IDS, STARTED, a_flow, host, lock, request, vm

from chassis.errors import WaybillError
from waybill.v1 import jobs_pb2, jobstore_pb2

Connection = asyncpg.Connection


@pytest.fixture(autouse=True)
async def lease(jobstore: RunningJobstore) -> None:
    await jobstore.journal.RenewLease(jobstore_pb2.RenewLeaseRequest(coordinator_id=COORDINATOR, counter=1))


async def write(jobstore: RunningJobstore, *commits: jobstore_pb2.FlowCommit) -> None:
    response = await jobstore.journal.Commit(request(*commits))
    assert not [result for result in response.results if result.HasField("error")]


async def load(jobstore: RunningJobstore, *flow_command_ids: str) -> list[jobstore_pb2.FlowRows]:
    asked = jobstore_pb2.LoadFlowsRequest(flow_command_ids=flow_command_ids)
    return list((await jobstore.journal.LoadFlows(asked)).flows)


def an_entity(entity_id: str, **fields: object) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id=entity_id, **fields)


async def put(jobstore: RunningJobstore, *entities: jobs_pb2.Entity) -> list[jobs_pb2.Entity]:
    return list((await jobstore.reads.PutEntities(jobstore_pb2.PutEntitiesRequest(entities=entities))).entities)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Parameters are stored with the command, once, as JSON with their version")
async def test_a_flow_is_loaded_as_it_was_written(jobstore: RunningJobstore) -> None:
    await put(jobstore, an_entity("vm-1", name="web"), an_entity("vm-2", name="beside"))
    flow = a_flow(
        request_id="r1",
        request_hash=b"hash",
        categories=["storage", 'a "quoted", one'],
        subjects=[jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1", name="web")],
        error=status_pb2.Status(code=9, message="not yet"),
    )
    first = flow.first(
        snapshots=[
            jobstore_pb2.SnapshotRow(
                command_id=flow.flow_command_id, number=1, entity=vm("vm-1"), former_json='{"name": "web"}'
            )
        ],
    )
    first.new_job.deadline.seconds = 1_900_000_000
    first.new_tasks.add(
        task_id="wait",
        kind=jobs_pb2.HOST_TASK_KIND_WAIT,
        command_id=flow.flow_command_id,
        entity=vm("vm-1"),
        arguments_json='{"until": {"state": ["UP"]}, "beside": ["VM", "vm-2"]}',
        attempt=1,
        path="1",
    )
    await write(jobstore, first)
    [rows] = await load(jobstore, flow.flow_command_id, "unknown")
    assert (rows.coordinator_id, rows.epoch, rows.sequence) == (COORDINATOR, 1, 1)
    assert [step.step_type for step in rows.steps] == ["VALIDATION", "EXECUTION", "DELETE_IMAGE", "FINALIZATION"]
    assert [task.task_id for task in rows.tasks] == [flow.task_id, "wait"]
    assert sorted(entity.name for entity in rows.waited_entities) == ["beside", "web"]
    for stored in (rows.job, *rows.tasks, *rows.steps, *rows.commands):
        for name in ("create_time", "start_time", "update_time", "revision"):
            if name in stored.DESCRIPTOR.fields_by_name:
                stored.ClearField(name)
    assert rows.job == first.new_job
    assert {step.step_id: step for step in rows.steps} == {step.step_id: step for step in first.new_steps}
    assert list(rows.commands) == list(first.new_commands)
    assert list(rows.tasks) == list(first.new_tasks)
    assert list(rows.snapshots) == list(first.snapshots)


async def test_flows_are_loaded_in_the_order_asked(jobstore: RunningJobstore) -> None:
    flows = [a_flow() for _ in range(3)]
    await write(jobstore, *(flow.first() for flow in flows))
    wanted = [flow.flow_command_id for flow in reversed(flows)]
    assert [rows.flow_command_id for rows in await load(jobstore, *wanted)] == wanted


async def test_children_come_after_their_parents(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    await write(jobstore, flow.first())
    root = flow.flow_command_id
    rows = [("a-grandchild", "z-child", "1:0"), ("z-child", root, "1:0.2"), ("b-child", root, "1:0.10")]
    commands = [
        jobstore_pb2.CommandRow(
            command_id=name, parent_command_id=parent, node=node, status=jobs_pb2.COMMAND_STATUS_ACTIVE
        )
        for name, parent, node in rows
    ]
    await write(jobstore, flow.next(new_commands=commands))
    [loaded] = await load(jobstore, root)
    assert [command.command_id for command in loaded.commands] == [root, "z-child", "a-grandchild", "b-child"]


# --- intents ---------------------------------------------------------------------------------------------------------


def cancel(flow_command_id: str, request_id: str = "q1") -> jobstore_pb2.FlowRequest:
    return jobstore_pb2.FlowRequest(
        request_id=request_id, flow_command_id=flow_command_id, kind="CANCEL", user="alice", reason="changed my mind"
    )


async def leave(jobstore: RunningJobstore, intent: jobstore_pb2.FlowRequest, job_id: str) -> int:
    asked = jobstore_pb2.RequestFlowRequest(request=intent, job_id=job_id)
    return (await jobstore.journal.RequestFlow(asked)).revision


async def test_an_intent_stays_until_a_commit_has_dealt_with_it(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    await write(jobstore, flow.first())
    intent = cancel(flow.flow_command_id)
    assert await leave(jobstore, intent, flow.job_id) == 2
    assert await leave(jobstore, intent, flow.job_id) >= 2  # may be repeated
    [rows] = await load(jobstore, flow.flow_command_id)
    assert list(rows.requests) == [intent]
    await write(jobstore, flow.next(job=jobstore_pb2.JobChange(cancel_requested_by="alice"), handled_requests=["q1"]))
    [rows] = await load(jobstore, flow.flow_command_id)
    assert list(rows.requests) == []
    assert rows.job.cancel_requested_by == "alice"


async def test_an_intent_goes_with_its_flow(jobstore: RunningJobstore, connection: Connection) -> None:
    flow = a_flow()
    await write(jobstore, flow.first())
    await leave(jobstore, cancel(flow.flow_command_id), flow.job_id)
    await write(jobstore, flow.last())
    assert await connection.fetchval("SELECT count(*) FROM flow_request") == 0


async def test_an_ended_flow_takes_no_intents(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    await write(jobstore, flow.first())
    await write(jobstore, flow.last())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await leave(jobstore, cancel(flow.flow_command_id), flow.job_id)
    assert WaybillError.from_rpc_error(refused.value).reason == "JOB_ENDED"


async def test_an_unknown_flow_takes_no_intents(jobstore: RunningJobstore) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await leave(jobstore, cancel("nobody"), "nothing")
    assert WaybillError.from_rpc_error(refused.value).reason == "JOB_NOT_FOUND"


async def test_the_watch_brings_an_intent(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    await write(jobstore, flow.first())
    watch = jobstore.journal.Watch(jobstore_pb2.JournalWatchRequest(coordinator_id=COORDINATOR))
    async for response in watch:
        if response.snapshot_done:
            break
    await leave(jobstore, cancel(flow.flow_command_id), flow.job_id)
    async for response in watch:
        if response.flow_requests:
            assert list(response.flow_requests) == [cancel(flow.flow_command_id)]
            break
    watch.cancel()


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Last commit: tasks marked to be cleared")
async def test_tasks_of_ended_flows_are_left_to_clear(jobstore: RunningJobstore) -> None:
    ended, live = a_flow(), a_flow()
    await write(jobstore, ended.first(), live.first())
    await write(jobstore, ended.last())
    asked = jobstore_pb2.ListUnclearedTasksRequest(host_id="host-1")
    assert list((await jobstore.journal.ListUnclearedTasks(asked)).task_ids) == [ended.task_id]
    cleared = jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, cleared_task_ids=[ended.task_id])
    await jobstore.journal.Commit(cleared)
    assert list((await jobstore.journal.ListUnclearedTasks(asked)).task_ids) == []


# --- entities --------------------------------------------------------------------------------------------------------


async def test_entities_are_declared_all_in_one_revision(jobstore: RunningJobstore) -> None:
    stored = await put(jobstore, an_entity("vm-1", name="web"), an_entity("vm-2", status="ILLEGAL"))
    assert [(entity.name, entity.status, entity.version, entity.revision) for entity in stored] == [
        ("web", "OK", 1, 1),
        ("", "ILLEGAL", 1, 1),
    ]


async def test_declaring_again_replaces_everything_declared(jobstore: RunningJobstore) -> None:
    before = an_entity("vm-1", name="web", status="ILLEGAL")
    before.declared.update({"memory_mb": 64, "disk_ids": ["d1", "d2"]})
    after = an_entity("vm-1")
    after.declared.update({"memory_mb": 128})
    await put(jobstore, before)
    [stored] = await put(jobstore, after)
    assert (stored.name, stored.status, stored.version) == ("", "OK", 2)
    assert dict(stored.declared.items()) == {"memory_mb": 128}


async def test_a_locked_entity_is_not_declared_nor_those_with_it(
    jobstore: RunningJobstore, connection: Connection
) -> None:
    await write(jobstore, a_flow().first(locks=[lock(vm("vm-1"), exclusive=False)]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(jobstore, an_entity("vm-0"), an_entity("vm-1"))
    assert WaybillError.from_rpc_error(refused.value).reason == "LOCKED"
    assert await connection.fetchval("SELECT count(*) FROM entity") == 0
    assert await connection.fetchval("SELECT revision FROM head") == 1


@pytest.mark.parametrize(
    "entities",
    [
        [jobs_pb2.Entity(entity_id="vm-1")],
        [an_entity("")],
        [an_entity("x" * 257)],
        [an_entity("vm-1"), an_entity("vm-1")],
        [an_entity("a\0b")],
        [an_entity("vm-1", name="\x1b[2J")],
        [an_entity(f"vm-{number}") for number in range(1001)],
    ],
    ids=["no type", "no id", "long id", "twice", "NUL", "control character", "too many"],
)
async def test_malformed_entities_are_refused(
    jobstore: RunningJobstore, connection: Connection, entities: list[jobs_pb2.Entity]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(jobstore, *entities)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await connection.fetchval("SELECT count(*) FROM entity") == 0


async def test_entities_are_read_in_the_order_asked_and_absent_ones_have_no_version(jobstore: RunningJobstore) -> None:
    await put(jobstore, an_entity("vm-1"), an_entity("vm-2"))
    asked = jobstore_pb2.ReadEntitiesRequest(entities=[vm("vm-2"), host("vm-1"), vm("vm-1")])
    entities = (await jobstore.journal.ReadEntities(asked)).entities
    assert [(entity.entity_id, entity.version) for entity in entities] == [("vm-2", 1), ("vm-1", 0), ("vm-1", 1)]


# --- large ones ------------------------------------------------------------------------------------------------------


async def test_a_flow_of_thousands_of_steps_is_committed_at_once(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    steps = [
        jobstore_pb2.StepRow(step_id=f"step-{number}", step_type="WORK", description="x" * 1000, status=STARTED)
        for number in range(5_000)
    ]
    await write(jobstore, flow.first())
    await write(jobstore, flow.next(new_steps=steps))
    [rows] = await load(jobstore, flow.flow_command_id)
    assert len(rows.steps) == 5_004


@pytest.mark.rule("semantics §4: Description and subject names are resolved when the job is created")
async def test_a_job_that_was_stored_before_its_names_were_known_is_named_by_a_later_commit(
    jobstore: RunningJobstore,
) -> None:
    flow = a_flow(description="Stopping VM vm-1", subjects=[_a_subject("vm-1")])
    await write(jobstore, flow.first())
    before = await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=flow.job_id))
    watch = jobstore.reads.WatchJobs(jobstore_pb2.WatchJobsRequest(resume_revision=before.revision))
    names = jobstore_pb2.JobNames(
        description="Stopping VM web", subjects=[_a_subject("vm-1", "web"), _a_subject("vm-2", "db")]
    )
    await write(jobstore, flow.next(job=jobstore_pb2.JobChange(named=names)))
    named = await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=flow.job_id))
    assert (named.description, list(named.subjects)) == (names.description, list(names.subjects))
    assert named.revision > before.revision
    changes = [change async for message in _until_change(watch) for change in message.changes]
    assert [change.upsert.description for change in changes] == ["Stopping VM web"]
    for entity_id in ("vm-1", "vm-2"):
        request = jobstore_pb2.ListJobsRequest(filter=f'entity:"VM/{entity_id}"')
        assert [job.job_id for job in (await jobstore.reads.ListJobs(request)).jobs] == [flow.job_id]


async def _until_change(watch: Any) -> AsyncIterator[jobstore_pb2.WatchJobsResponse]:
    async for message in watch:
        yield message
        if message.changes:
            break
    watch.cancel()


def _a_subject(entity_id: str, name: str = "") -> jobs_pb2.Subject:
    return jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id=entity_id, name=name)


async def test_the_job_of_a_child_is_stored_loaded_and_ended_with_its_flow(jobstore: RunningJobstore) -> None:
    flow = a_flow()
    first = flow.first()
    part = first.new_child_jobs.add(
        job_id=IDS.new(),
        command_type="Part",
        description="Doing the part",
        status=STARTED,
        owner="alice",
        correlation_id=first.new_job.correlation_id,
        parameters_json="{}",
        visible=True,
        parent_job_id=flow.job_id,
        command_id="part",
    )
    first.new_commands.add(command_id="part", parent_command_id=flow.flow_command_id, command_type="Part", status=2)
    first.new_steps.add(step_id="part-x", command_id="part", step_type="EXECUTION", status=STARTED, job_id=part.job_id)
    await write(jobstore, first)
    [rows] = await load(jobstore, flow.flow_command_id)
    assert [job.job_id for job in rows.child_jobs] == [part.job_id]
    assert [step.step_id for step in rows.steps if step.job_id == part.job_id] == ["part-x"]
    assert [step.job_id for step in rows.steps if step.step_id != "part-x"] == [""] * 4
    shown = await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=part.job_id))
    assert [step.step_id for step in shown.steps] == ["part-x"]
    assert (shown.parent_job_id, shown.command_id, shown.flow_command_id) == (
        flow.job_id,
        "part",
        flow.flow_command_id,
    )
    whole = await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=flow.job_id))
    assert (whole.parent_job_id, whole.command_id) == ("", flow.flow_command_id)
    assert "part-x" not in {step.step_id for step in whole.steps}
    end = flow.last()
    end.child_jobs.add(job_id=part.job_id, status=jobs_pb2.EXECUTION_STATUS_FINISHED, progress=100)
    end.commands.add(command_id="part", status=jobs_pb2.COMMAND_STATUS_ENDED_SUCCESSFULLY)
    end.steps.add(step_id="part-x", status=jobs_pb2.EXECUTION_STATUS_FINISHED, progress=100)
    await write(jobstore, end)
    shown = await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=part.job_id))
    assert (shown.status, shown.progress) == (jobs_pb2.EXECUTION_STATUS_FINISHED, 100)
