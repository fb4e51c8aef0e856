"""What is refused, how it is said, and that nothing of it is stored.

A request that cannot be understood is an error of the call: it names the reason and the field, and leaves the store at
its revision. A command that must not run now is a job that FAILED in VALIDATION, and no host hears of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tests.e2e.datacentre import (
    FAILED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    outline,
    reason_of,
    steps_of,
)

from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc
from waybill.v1.coordinator_pb2 import (
    RunCommandRequest,
    RunMultipleCommandsRequest,
)
from waybill.v1.jobs_pb2 import Entity, EntityType, Job, Subject
from waybill.v1.jobstore_pb2 import (
    GetEntityRequest,
    GetJobRequest,
    GetModifiedJobsRequest,
    GetStepRequest,
    ListCommandsRequest,
    ListEntitiesRequest,
    ListEventsRequest,
    ListHostTasksRequest,
    ListJobsRequest,
    ListLocksRequest,
    ListStepsRequest,
    PutEntitiesRequest,
    WatchJobsRequest,
)
from waybill_client import AlreadyExists, WaybillError, command_request
from waybill_client.errors import WaybillError as Refusal
from waybill_client.words import struct

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODYS_ID = "01936f2e-7b1c-7d55-8f7e-000000000001"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

Case = tuple[Message, grpc.StatusCode, str, str]
"""A request, and how it is refused: code, reason, field (empty: none is to blame)."""


def work(**parameters: Any) -> RunCommandRequest:
    return command_request("BenchWork", {"host_id": "host-1", "object_id": "never", **parameters})


def run(**fields: Any) -> RunCommandRequest:
    request = work()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def until(seconds: int, nanos: int = 0) -> RunCommandRequest:
    request = work()
    request.deadline.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    return request


def deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels - 1):
        inner = [inner]
    return inner


COMMANDS: dict[str, Case] = {
    "no type": (run(command_type=""), INVALID, "REQUEST_INVALID", "command_type"),
    "unknown type": (run(command_type="MakeCoffee"), NOT_FOUND, "COMMAND_TYPE_UNKNOWN", ""),
    "NUL in the type": (run(command_type="Bench\0Work"), INVALID, "REQUEST_INVALID", "command_type"),
    "long type": (run(command_type="x" * 257), INVALID, "REQUEST_INVALID", "command_type"),
    "missing parameter": (command_request("BenchWork"), INVALID, "PARAMETERS_INVALID", "parameters.host_id"),
    "wrong kind": (work(object_id=7), INVALID, "PARAMETERS_INVALID", "parameters.object_id"),
    "empty id": (work(object_id=""), INVALID, "PARAMETERS_INVALID", "parameters.object_id"),
    "long id": (work(object_id="x" * 257), INVALID, "PARAMETERS_INVALID", "parameters.object_id"),
    "control character in an id": (work(object_id="a\nb"), INVALID, "PARAMETERS_INVALID", "parameters.object_id"),
    "NUL in an id": (work(object_id="a\0b"), INVALID, "REQUEST_INVALID", "parameters.object_id"),
    "NUL deep within": (work(note={"a": ["b\0"]}), INVALID, "REQUEST_INVALID", "parameters.note.a[0]"),
    "NUL in a name": (work(**{"no\0te": 1}), INVALID, "REQUEST_INVALID", "parameters"),
    "not a number": (work(note=float("nan")), INVALID, "REQUEST_INVALID", "parameters.note"),
    "no end": (work(note=float("inf")), INVALID, "REQUEST_INVALID", "parameters.note"),
    "300 KiB": (work(note="x" * (300 << 10)), INVALID, "PARAMETERS_TOO_LARGE", "parameters"),
    "300 KiB of quotes": (work(note='"' * (150 << 10)), INVALID, "PARAMETERS_TOO_LARGE", "parameters"),
    "1 MiB": (work(note="x" * (1 << 20)), INVALID, "PARAMETERS_TOO_LARGE", "parameters"),
    "too deep": (work(note=deep(33)), INVALID, "PARAMETERS_TOO_LARGE", "parameters.note[0][0]"),
    "out of range": (
        command_request("AddDisk", {"disk_id": "d", "host_id": "host-1", "size_mb": 0}),
        INVALID,
        "PARAMETERS_INVALID",
        "parameters.size_mb",
    ),
    "not whole": (
        command_request("AddDisk", {"disk_id": "d", "host_id": "host-1", "size_mb": 1.5}),
        INVALID,
        "PARAMETERS_INVALID",
        "parameters.size_mb",
    ),
    "long request id": (run(request_id="x" * 257), INVALID, "REQUEST_INVALID", "request_id"),
    "NUL in the request id": (run(request_id="x\0"), INVALID, "REQUEST_INVALID", "request_id"),
    "long correlation id": (run(correlation_id="x" * 51), INVALID, "CORRELATION_ID_INVALID", "correlation_id"),
    "correlation id of other characters": (
        run(correlation_id="Ünterwegs"),
        INVALID,
        "CORRELATION_ID_INVALID",
        "correlation_id",
    ),
    "NUL in the correlation id": (run(correlation_id="x\0"), INVALID, "CORRELATION_ID_INVALID", "correlation_id"),
    "deadline out of the calendar": (until(1 << 60), INVALID, "REQUEST_INVALID", "deadline"),
    "deadline before all times": (until(-1), INVALID, "REQUEST_INVALID", "deadline"),
    "deadline that is no time": (until(1, 2_000_000_000), INVALID, "REQUEST_INVALID", "deadline"),
    "priority out of range": (run(priority=2_000_000), INVALID, "REQUEST_INVALID", "priority"),
}

READS: dict[str, Case] = {
    "no job": (GetJobRequest(), INVALID, "REQUEST_INVALID", "job_id"),
    "job id of no shape": (GetJobRequest(job_id="j1"), INVALID, "REQUEST_INVALID", "job_id"),
    "NUL in a job id": (GetJobRequest(job_id="\0"), INVALID, "REQUEST_INVALID", "job_id"),
    "job that there is not": (GetJobRequest(job_id=NOBODYS_ID), NOT_FOUND, "JOB_NOT_FOUND", ""),
    "job of no command": (GetJobRequest(command_id=NOBODYS_ID), NOT_FOUND, "JOB_NOT_FOUND", ""),
    "unknown view": (GetJobRequest(job_id=NOBODYS_ID, view=9), INVALID, "REQUEST_INVALID", "view"),  # type: ignore[arg-type]
    "no filter": (ListJobsRequest(filter="what AND"), INVALID, "FILTER_INVALID", "filter"),
    "unknown field": (ListJobsRequest(filter="colour = red"), INVALID, "FILTER_INVALID", "filter"),
    "unknown status": (ListJobsRequest(filter="status = FINE"), INVALID, "FILTER_INVALID", "filter"),
    "NUL in a filter": (ListJobsRequest(filter="owner = 'a\0'"), INVALID, "FILTER_INVALID", "filter"),
    "long filter": (ListJobsRequest(filter="owner = a" + " AND owner = a" * 400), INVALID, "FILTER_INVALID", "filter"),
    "unknown order": (ListJobsRequest(order_by="status"), INVALID, "REQUEST_INVALID", "order_by"),
    "negative page": (ListJobsRequest(page_size=-1), INVALID, "REQUEST_INVALID", "page_size"),
    "token of nobody": (ListJobsRequest(page_token="AAAA"), INVALID, "PAGE_TOKEN_INVALID", "page_token"),
    "token that is none": (ListJobsRequest(page_token="§§"), INVALID, "PAGE_TOKEN_INVALID", "page_token"),
    "NUL in a token": (ListJobsRequest(page_token="\0"), INVALID, "PAGE_TOKEN_INVALID", "page_token"),
    "long token": (ListLocksRequest(page_token="A" * 100_000), INVALID, "PAGE_TOKEN_INVALID", "page_token"),
    "steps of no job": (ListStepsRequest(job_id=NOBODYS_ID), NOT_FOUND, "JOB_NOT_FOUND", ""),
    "step that there is not": (GetStepRequest(step_id=NOBODYS_ID), NOT_FOUND, "STEP_NOT_FOUND", ""),
    "commands of nothing": (ListCommandsRequest(), INVALID, "REQUEST_INVALID", "flow_command_id"),
    "tasks of nothing": (ListHostTasksRequest(), INVALID, "REQUEST_INVALID", "job_id"),
    "tasks of a long name": (
        ListHostTasksRequest(correlation_id="x" * 51),
        INVALID,
        "CORRELATION_ID_INVALID",
        "correlation_id",
    ),
    "tasks on half an entity": (
        ListHostTasksRequest(entity=Subject(entity_id="x")),
        INVALID,
        "REQUEST_INVALID",
        "entity.entity_type",
    ),
    "events of no severity": (ListEventsRequest(filter="severity = LOUD"), INVALID, "FILTER_INVALID", "filter"),
    "entity that there is not": (
        GetEntityRequest(entity_type=VM, entity_id="nobody"),
        NOT_FOUND,
        "ENTITY_NOT_FOUND",
        "",
    ),
    "entity of no type": (GetEntityRequest(entity_id="x"), INVALID, "REQUEST_INVALID", "entity_type"),
    "entities of an unknown type": (
        ListEntitiesRequest(entity_type=99),  # type: ignore[arg-type]
        INVALID,
        "REQUEST_INVALID",
        "entity_type",
    ),
    "changes since the future": (
        GetModifiedJobsRequest(since_revision=1 << 60),
        INVALID,
        "REVISION_UNKNOWN",
        "since_revision",
    ),
    "changes since no time": (
        GetModifiedJobsRequest(since_time=Timestamp(seconds=1 << 60)),
        INVALID,
        "REQUEST_INVALID",
        "since_time",
    ),
    "watch from the future": (
        WatchJobsRequest(resume_revision=1 << 60),
        INVALID,
        "REVISION_UNKNOWN",
        "resume_revision",
    ),
    "watch of another store": (
        WatchJobsRequest(resume_revision=1, store_epoch="another"),
        grpc.StatusCode.OUT_OF_RANGE,
        "STORE_EPOCH_CHANGED",
        "",
    ),
    "watch of no filter": (WatchJobsRequest(filter="("), INVALID, "FILTER_INVALID", "filter"),
    "watch backwards": (WatchJobsRequest(resume_revision=-1), INVALID, "REQUEST_INVALID", "resume_revision"),
}

ENTITIES: dict[str, tuple[list[Entity], str]] = {
    "no type": ([Entity(entity_id="x")], "entities[0].entity_type"),
    "unknown type": ([Entity(entity_type=99, entity_id="x")], "entities[0].entity_type"),  # type: ignore[arg-type]
    "no id": ([Entity(entity_type=VM)], "entities[0].entity_id"),
    "long id": ([Entity(entity_type=VM, entity_id="x" * 257)], "entities[0].entity_id"),
    "NUL in an id": ([Entity(entity_type=VM, entity_id="x\0")], "entities[0].entity_id"),
    "long status": ([Entity(entity_type=VM, entity_id="x", status="x" * 257)], "entities[0].status"),
    "NUL in a name": ([Entity(entity_type=VM, entity_id="x", name="\0")], "entities[0].name"),
    "NUL in a declared field": (
        [Entity(entity_type=VM, entity_id="x", declared=struct({"note": "\0"}))],
        "entities[0].declared",
    ),
    "not a number": (
        [Entity(entity_type=VM, entity_id="x", declared=struct({"note": float("nan")}))],
        "entities[0].declared",
    ),
    "twice": ([Entity(entity_type=VM, entity_id="x")] * 2, "entities[1]"),
    "too many": ([Entity(entity_type=VM, entity_id=f"x{number}") for number in range(1001)], "entities"),
}


# --- requests that cannot be understood ------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: It and the shape of the parameters are checked: bad → the call is refused (RPC error")
@pytest.mark.parametrize("case", COMMANDS.values(), ids=COMMANDS.keys())
async def test_a_malformed_command_is_refused_with_its_field(centre: DataCentre, case: Case) -> None:
    request, code, reason, field = case
    before = await centre.stored()
    async with grpc.aio.insecure_channel(centre.stack.coordinators[0].address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        _assert_says(await _refusal(lambda: stub.RunCommand(request)), code, reason, field)
    assert await centre.stored() == before


@pytest.mark.parametrize("case", READS.values(), ids=READS.keys())
async def test_a_malformed_question_is_refused_with_its_field(centre: DataCentre, case: Case) -> None:
    request, code, reason, field = case
    async with grpc.aio.insecure_channel(centre.stack.jobstores[0].address) as channel:
        method = getattr(jobstore_pb2_grpc.JobStoreStub(channel), request.DESCRIPTOR.name.removesuffix("Request"))
        call = (lambda: method(request).read()) if isinstance(request, WatchJobsRequest) else lambda: method(request)
        _assert_says(await _refusal(call), code, reason, field)


@pytest.mark.parametrize("case", ENTITIES.values(), ids=ENTITIES.keys())
async def test_a_malformed_entity_is_refused_with_its_field_and_all_that_came_with_it(
    centre: DataCentre, case: tuple[list[Entity], str]
) -> None:
    entities, field = case
    before = await centre.stored()
    async with grpc.aio.insecure_channel(centre.stack.jobstores[0].address) as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        refused = await _refusal(lambda: stub.PutEntities(PutEntitiesRequest(entities=entities)))
    assert (refused.code, refused.reason) == (INVALID, "REQUEST_INVALID"), refused
    assert refused.violations[0].field.startswith(field)
    assert await centre.stored() == before


@pytest.mark.rule("semantics §4: Correlation id: 1–50 of `[0-9A-Za-z_-]`; anything else is refused, never cut or")
@pytest.mark.rule("semantics §2: It and the shape of the parameters are checked: bad → the call is refused (RPC error")
@pytest.mark.parametrize(
    "metadata",
    [
        (("x-correlation-id", "x" * 51),),
        (("x-correlation-id", ""),),
        (("x-correlation-id", "with spaces"),),
        (("x-correlation-id", "one"), ("x-correlation-id", "other")),
    ],
    ids=["51 characters", "empty", "other characters", "two of them"],
)
async def test_a_bad_correlation_id_in_the_metadata_is_refused_by_every_service(
    centre: DataCentre, metadata: Any
) -> None:
    before = await centre.stored()
    async with (
        grpc.aio.insecure_channel(centre.stack.coordinators[0].address) as to_coordinator,
        grpc.aio.insecure_channel(centre.stack.jobstores[0].address) as to_jobstore,
    ):
        coordinator = coordinator_pb2_grpc.CoordinatorStub(to_coordinator)
        jobstore = jobstore_pb2_grpc.JobStoreStub(to_jobstore)
        for call in (
            lambda: coordinator.RunCommand(work(), metadata=metadata),
            lambda: jobstore.ListJobs(ListJobsRequest(), metadata=metadata),
            lambda: jobstore.WatchJobs(WatchJobsRequest(), metadata=metadata).read(),
        ):
            _assert_says(await _refusal(call), INVALID, "CORRELATION_ID_INVALID", "correlation_id")
    assert await centre.stored() == before


async def test_a_correlation_id_that_is_said_twice_must_be_the_same(centre: DataCentre) -> None:
    before = await centre.stored()
    async with grpc.aio.insecure_channel(centre.stack.coordinators[0].address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        refused = await _refusal(
            lambda: stub.RunCommand(run(correlation_id="one"), metadata=(("x-correlation-id", "other"),))
        )
        _assert_says(refused, INVALID, "CORRELATION_ID_INVALID", "correlation_id")
        assert await centre.stored() == before
        job = await stub.RunCommand(run(correlation_id="one"), metadata=(("x-correlation-id", "one"),))
    assert_all_finished([await centre.ended(job)])


async def test_a_request_id_with_another_body_is_refused_and_names_the_job(centre: DataCentre) -> None:
    first = await centre.run("BenchWork", {"host_id": "host-1", "object_id": "first"}, request_id="taken")
    await centre.until_rest()
    before = await centre.stored()
    with pytest.raises(AlreadyExists) as refused:
        await centre.client.run_command("BenchWork", {"host_id": "host-1", "object_id": "other"}, request_id="taken")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert refused.value.metadata["job_id"] == first.job_id
    assert await centre.effects("other") == {}
    assert await centre.stored() == before


async def test_a_policy_that_there_is_not_is_refused(centre: DataCentre) -> None:
    async with grpc.aio.insecure_channel(centre.stack.coordinators[0].address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        refused = await _refusal(lambda: stub.RunMultipleCommands(RunMultipleCommandsRequest(policy=99)))  # type: ignore[arg-type]
    _assert_says(refused, INVALID, "REQUEST_INVALID", "policy")


async def test_bytes_that_are_no_request_are_the_callers_mistake(centre: DataCentre) -> None:
    before = await centre.stored()
    async with grpc.aio.insecure_channel(centre.stack.coordinators[0].address) as channel:
        run_command = channel.unary_unary("/waybill.v1.Coordinator/RunCommand")
        _assert_says(await _refusal(lambda: run_command(b"\xff\xff nonsense")), INVALID, "REQUEST_INVALID", "")
        too_large = await _refusal(lambda: run_command(b"\0" * (5 << 20)))
        assert too_large.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        no_such = channel.unary_unary("/waybill.v1.Coordinator/MakeCoffee")
        assert (await _refusal(lambda: no_such(b""))).code is grpc.StatusCode.UNIMPLEMENTED
    assert await centre.stored() == before


async def test_hosts_with_nonsense_for_addresses_harm_nobody(centre: DataCentre) -> None:
    for number, address in enumerate(["", "garbage", "a:1,b:2", 7, None, ":"]):
        host = Entity(entity_type=EntityType.ENTITY_TYPE_HOST, entity_id=f"nonsense-{number}")
        host.declared["address"] = address
        await centre.client.put_entities([host])
    job = await centre.run("BenchWork", {"host_id": "host-1", "object_id": "after-the-nonsense"})
    assert_all_finished([job])
    assert centre.stack.coordinators[0].starts == 1


async def test_a_disk_that_is_declared_to_be_on_nonsense_fails_its_removal_alone(centre: DataCentre) -> None:
    await centre.furnish("vm-odd", disks=2)
    odd = Entity(entity_type=EntityType.ENTITY_TYPE_DISK, entity_id="odd-disk")
    odd.declared.update({"host_id": 7, "volume_id": ["a"]})
    await centre.client.put_entities([odd])
    vm = await centre.entity(VM, "vm-odd")
    assert vm is not None
    vm.declared["disk_ids"].append("odd-disk")  # type: ignore[union-attr]
    await centre.client.put_entities([vm])
    job = await centre.run("RemoveVm", {"vm_id": "vm-odd"})
    assert job.status == FAILED
    assert sorted(reason_of(step) for step in steps_of(job, "DELETE_IMAGE")) == ["", "", "COMMAND_RAISED"]
    assert await centre.entity(VM, "vm-odd") is None
    await assert_all_over(centre, [job])


# --- commands that must not run now ----------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: What `validate` or a lock refuses is a stored job too: VALIDATION FAILED with the")
async def test_a_command_on_an_unknown_vm_is_a_failed_job(centre: DataCentre) -> None:
    before = await centre.counters()
    for command_type in ("RemoveVm", "RunVm", "StopVm"):
        job = await centre.run(command_type, {"vm_id": "nobody"})
        _assert_failed_in_validation(job, "ENTITY_NOT_FOUND")
        await assert_all_over(centre, [job])
    assert await centre.counters() == before


async def test_a_running_vm_is_neither_removed_nor_started(centre: DataCentre) -> None:
    await centre.furnish("vm-running", disks=2)
    assert_all_finished([await centre.run("RunVm", {"vm_id": "vm-running"})])
    before = await centre.counters()
    for command_type in ("RemoveVm", "RunVm"):
        job = await centre.run(command_type, {"vm_id": "vm-running"})
        _assert_failed_in_validation(job, "VM_IS_RUNNING")
        assert "vm-running's name is UP" in job.error.message
        await assert_all_over(centre, [job])
    assert await centre.counters() == before
    assert await centre.entity(VM, "vm-running") is not None


@pytest.mark.rule("semantics §2: What `validate` or a lock refuses is a stored job too: VALIDATION FAILED with the")
@pytest.mark.rule("semantics §5: Refusal names the holder's job and reason")
async def test_a_locked_vm_refuses_naming_the_holder(centre: DataCentre) -> None:
    await centre.furnish("vm-locked", disks=2)
    await centre.program("host-1", {"verb": "deleteImage", "work_ms": 2000})
    holder = await centre.client.run_command("RemoveVm", {"vm_id": "vm-locked"})
    await centre.until_running(holder, tasks=1)
    before = {key for key in await centre.counters() if key[2] != "deleteImage"}
    for command_type in ("RemoveVm", "RunVm", "StopVm"):
        job = await centre.run(command_type, {"vm_id": "vm-locked"})
        _assert_failed_in_validation(job, "LOCKED")
        metadata = Refusal.from_status(job.error).metadata
        assert metadata["job_id"] == holder.job_id
        assert (metadata["entity_type"], metadata["entity_id"]) == ("VM", "vm-locked")
        assert metadata["holder_reason"] == holder.description
        assert holder.job_id in job.error.message
    assert {key for key in await centre.counters() if key[2] != "deleteImage"} == before
    assert_all_finished([await centre.ended(holder)])


async def test_a_locked_vm_cannot_be_declared_anew(centre: DataCentre) -> None:
    await centre.furnish("vm-held", disks=1)
    await centre.program("host-1", {"verb": "deleteImage", "work_ms": 1500})
    holder = await centre.client.run_command("RemoveVm", {"vm_id": "vm-held"})
    with pytest.raises(WaybillError) as refused:
        await centre.declare_vm("vm-held")
    assert refused.value.reason == "LOCKED"
    assert refused.value.metadata["job_id"] == holder.job_id
    assert_all_finished([await centre.ended(holder)])
    assert await centre.entity(VM, "vm-held") is None


async def test_a_disk_that_exists_is_not_added_again(centre: DataCentre) -> None:
    [disk_id] = await centre.furnish("vm-twice", disks=1)
    before = await centre.counters()
    job = await centre.add_disk(disk_id, "vm-twice")
    _assert_failed_in_validation(job, "ENTITY_EXISTS")
    assert await centre.counters() == before


async def test_a_command_on_an_unknown_host_is_a_failed_job(centre: DataCentre) -> None:
    job = await centre.run("AddDisk", {"disk_id": "d", "size_mb": 1, "host_id": "nowhere"})
    _assert_failed_in_validation(job, "ENTITY_NOT_FOUND")
    assert Refusal.from_status(job.error).metadata == {"entity_type": "HOST", "entity_id": "nowhere"}


async def _refusal(call: Callable[[], Awaitable[Any]]) -> WaybillError:
    try:
        answer = await call()
    except grpc.aio.AioRpcError as error:
        return WaybillError.from_rpc_error(error, peer="service")
    raise AssertionError(f"it was answered: {answer}")


def _assert_says(refused: WaybillError, code: grpc.StatusCode, reason: str, field: str) -> None:
    assert (refused.code, refused.reason) == (code, reason), refused
    fields = [violation.field for violation in refused.violations]
    assert any(each.startswith(field) for each in fields) if field else not fields, refused
    assert refused.message
    assert all(character.isprintable() for character in refused.message)


def _assert_failed_in_validation(job: Job, reason: str) -> None:
    assert job.status == FAILED
    assert outline(job) == [("VALIDATION", "FAILED"), ("EXECUTION", "SKIPPED")]
    assert reason_of(job) == reason, job.error
    assert reason_of(steps_of(job, "VALIDATION")[0]) == reason
    skipped = Refusal.from_status(steps_of(job, "EXECUTION")[0].error)
    assert skipped.metadata == {"step_id": steps_of(job, "VALIDATION")[0].step_id}
