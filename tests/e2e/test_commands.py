"""Commands from their request to their end: what is planned, what is shown, and whose name is on everything."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest
from tests.e2e.datacentre import (
    DISK,
    FAILED,
    FINISHED,
    VM,
    DataCentre,
    assert_all_finished,
    assert_all_over,
    outline,
    reason_of,
    steps_of,
)

from waybill.v1 import coordinator_pb2_grpc, hostagent_pb2, hostagent_pb2_grpc, jobstore_pb2, jobstore_pb2_grpc
from waybill.v1.coordinator_pb2 import ListCommandTypesRequest
from waybill.v1.jobs_pb2 import CancelKind, EntityType, ExecutionStatus, Job
from waybill_client import NotFound, command_request, where
from waybill_client.words import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORRELATION_ID = re.compile("[0-9A-Za-z_-]{1,50}")


# --- the commands that ship ------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §7: `RunVm`: V; X → START_VM; ends: VM up")
@pytest.mark.rule("semantics §7: `StopVm`: V; X → STOP_VM; ends: call, then VM seen down")
@pytest.mark.rule("semantics §2: Entities have observed fields, written only from what hosts report, ordered by")
async def test_a_started_vm_is_seen_up_and_a_stopped_one_down(centre: DataCentre) -> None:
    await centre.declare_vm("vm-up", host_id="host-2")
    started = await centre.run("RunVm", {"vm_id": "vm-up"})
    assert outline(started)[2:] == [("START_VM", "FINISHED"), ("FINALIZATION", "FINISHED")]
    vm = await centre.entity(VM, "vm-up")
    assert vm is not None
    assert (vm.observed.state, vm.observed.host_id) == ("UP", "host-2")
    stopped = await centre.run("StopVm", {"vm_id": "vm-up"})
    assert outline(stopped)[2:] == [("STOP_VM", "FINISHED"), ("FINALIZATION", "FINISHED")]
    vm = await centre.entity(VM, "vm-up")
    assert vm is not None
    assert vm.observed.state == "DOWN"
    assert vm.version == 1  # what hosts report is not declared
    assert await centre.effects("vm-up") == {"createVm": 1, "shutdownVm": 1}
    await assert_all_over(centre, [started, stopped])


@pytest.mark.rule("semantics §7: `StopVm`: already down → success, no host call")
async def test_stopping_a_vm_that_is_down_asks_no_host(centre: DataCentre) -> None:
    await centre.declare_vm("vm-down")
    before = await centre.counters()
    job = await centre.run("StopVm", {"vm_id": "vm-down"})
    assert ("STOP_VM", "FINISHED") in outline(job)
    assert_all_finished([job])
    assert await centre.counters() == before


async def test_a_vm_that_does_not_get_up_fails_its_job_with_the_hosts_words(centre: DataCentre) -> None:
    await centre.declare_vm("vm-ill", host_id="host-1")
    rule = {"verb": "createVm", "match": {"vm_id": "vm-ill"}, "outcome": "never_up", "error": "no bootable device"}
    for host_id in centre.hosts:
        await centre.program(host_id, rule)
    job = await centre.run("RunVm", {"vm_id": "vm-ill"})
    assert job.status == FAILED
    steps = steps_of(job, "START_VM")
    assert [step.status for step in steps] == [FAILED, FAILED]
    for step in steps:
        assert reason_of(step) == "WAIT_FAILED"
        assert "no bootable device" in step.error.message
    await assert_all_over(centre, [job])


async def test_a_call_that_its_host_refuses_fails_the_job_at_once(centre: DataCentre) -> None:
    await centre.declare_vm("vm-no", host_id="host-1")
    for host_id in centre.hosts:
        await centre.program(host_id, {"verb": "createVm", "outcome": "refuse", "error": "not enough memory"})
    job = await centre.run("RunVm", {"vm_id": "vm-no"})
    assert job.status == FAILED
    assert "not enough memory" in steps_of(job, "START_VM")[0].error.message
    assert await centre.effects("vm-no") == {}
    await assert_all_over(centre, [job])


async def test_an_added_disk_belongs_to_its_vm(centre: DataCentre) -> None:
    [disk_id] = await centre.furnish("vm-home", disks=1)
    vm, disk = await centre.entity(VM, "vm-home"), await centre.entity(DISK, disk_id)
    assert vm is not None
    assert disk is not None
    assert plain(vm.declared)["disk_ids"] == [disk_id]
    assert disk.status == "OK"
    assert plain(disk.declared) == {"host_id": "host-1", "volume_id": disk_id, "size_mb": 10, "vm_id": "vm-home"}
    assert await centre.volume_state(disk_id) == "LEGAL"


# --- planned only ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: `validate_only` can return the planned tree")
@pytest.mark.rule("semantics §2: Neither has an effect: they read entities")
async def test_validate_only_shows_the_plan_and_stores_nothing(centre: DataCentre) -> None:
    await centre.furnish("vm-plan")
    await centre.until_rest()
    before, counters = await centre.stored(), await centre.counters()
    planned = await centre.client.run_command("RemoveVm", {"vm_id": "vm-plan"}, validate_only=True)
    assert (planned.job_id, planned.flow_command_id) == ("", "")
    assert planned.status == ExecutionStatus.EXECUTION_STATUS_PENDING
    assert planned.description == "Removing VM vm-plan's name"
    assert outline(planned) == [
        ("VALIDATION", "PENDING"),
        ("EXECUTION", "PENDING"),
        *[("DELETE_IMAGE", "PENDING")] * 4,
        ("FINALIZATION", "PENDING"),
    ]
    assert await centre.stored() == before
    assert await centre.counters() == counters


async def test_validate_only_of_what_would_be_refused_says_why(centre: DataCentre) -> None:
    before = await centre.stored()
    planned = await centre.client.run_command("RemoveVm", {"vm_id": "vm-nowhere"}, validate_only=True)
    assert planned.status == FAILED
    assert planned.job_id == ""
    assert reason_of(planned) == "ENTITY_NOT_FOUND"
    assert outline(planned) == [("VALIDATION", "FAILED"), ("EXECUTION", "SKIPPED")]
    assert await centre.stored() == before


# --- the same request again ------------------------------------------------------------------------------------------


async def test_one_request_id_makes_one_job_however_often_it_comes_at_once(centre: DataCentre) -> None:
    request = {"host_id": "host-1", "object_id": "once"}
    jobs = await asyncio.gather(
        *(
            centre.client.run_command("BenchWork", request, request_id="once", correlation_id=f"try-{number}")
            for number in range(20)
        )
    )
    assert len({job.job_id for job in jobs}) == 1
    assert_all_finished([await centre.ended(jobs[0])])
    again = await centre.client.run_command("BenchWork", request, request_id="once")
    assert (again.job_id, again.status) == (jobs[0].job_id, FINISHED)
    assert await centre.effects("once") == {"simWork": 1}
    assert len([job async for job in centre.client.list_jobs(where(command_type="BenchWork"))]) == 1


async def test_a_request_id_is_its_owners_alone(centre: DataCentre) -> None:
    request = {"host_id": "host-1", "object_id": "shared"}
    async with centre.stack.client(user="alice") as alice, centre.stack.client(user="bob") as bob:
        hers = await alice.run_command("BenchWork", request, request_id="mine")
        his = await bob.run_command("BenchWork", request, request_id="mine")
    assert (hers.owner, his.owner) == ("alice", "bob")
    assert hers.job_id != his.job_id
    assert_all_finished([await centre.ended(hers), await centre.ended(his)])


@pytest.mark.rule("semantics §2: Several at once (`RunMultipleCommands`): one call, a list; each becomes a job")
@pytest.mark.rule("semantics §2: Results come back in order")
async def test_several_commands_are_answered_in_order_each_for_itself(centre: DataCentre) -> None:
    commands = [
        command_request("BenchWork", {"host_id": "host-1", "object_id": "several"}, correlation_id="several-0"),
        command_request("NoSuchThing"),
        command_request("BenchWork", {"host_id": 7}),
        command_request("RemoveVm", {"vm_id": "vm-nowhere"}),
        command_request("BenchWork", {"host_id": "host-2", "object_id": "several"}),
    ]
    results = await centre.client.run_multiple_commands(commands)
    kinds = [each.command_type if isinstance(each, Job) else each.reason for each in results]
    assert kinds == ["BenchWork", "COMMAND_TYPE_UNKNOWN", "PARAMETERS_INVALID", "RemoveVm", "BenchWork"]
    jobs = [await centre.ended(each) for each in results if isinstance(each, Job)]
    assert [job.status for job in jobs] == [FINISHED, FAILED, FINISHED]
    assert jobs[0].correlation_id == "several-0"


# --- what can be run -------------------------------------------------------------------------------------------------


async def test_the_command_types_are_listed_with_their_schema(centre: DataCentre) -> None:
    types = {each.name: each for each in await centre.client.list_command_types()}
    assert {"AddDisk", "BenchWork", "RemoveAllVmImages", "RemoveImage", "RemoveVm", "RunVm", "StopVm"} <= types.keys()
    add_disk = types["AddDisk"]
    assert add_disk.cancel == CancelKind.CANCEL_KIND_REVERT
    schema = plain(add_disk.parameters_schema)
    assert set(schema["required"]) == {"disk_id", "size_mb", "host_id"}
    assert schema["properties"]["size_mb"]["type"] == "integer"


# --- whose name is on everything -------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Correlation id: given, else the parent's, else made")
async def test_a_correlation_id_is_on_all_that_comes_of_the_action(centre: DataCentre) -> None:
    await centre.furnish("vm-named")
    await centre.program("host-1", {"verb": "deleteImage", "work_ms": 1500})
    rule = {"verb": "deleteImage", "match": {"volume_id": "vm-named-disk-1"}, "outcome": "fail", "work_ms": 1500}
    await centre.program("host-2", rule)
    job = await centre.client.run_command("RemoveVm", {"vm_id": "vm-named"}, correlation_id="one_Name-42")
    on_hosts = await centre.until_running(job, tasks=4)
    job = await centre.ended(job)
    await assert_all_over(centre, [job])
    commands = [command async for command in centre.client.list_commands(job.flow_command_id)]
    named: dict[str, list[Any]] = {
        "job": [job],
        "steps": list(job.steps),
        "commands": commands,
        "tasks": await centre.host_tasks(job),
        "events": await centre.events(job),
        "what hosts keep": [info.spec for info in on_hosts],
        "what hosts were sent": centre.specs_sent(job),
    }
    for what, things in named.items():
        assert [thing.correlation_id for thing in things] == ["one_Name-42"] * len(things), what
    assert [len(things) for things in named.values()][:4] == [1, 7, 6, 4]
    found = [event async for event in centre.client.list_events(where(correlation_id="one_Name-42"))]
    assert {"JOB_STARTED", "STEP_STARTED", "STEP_ENDED", "DISK_ILLEGAL", "JOB_ENDED"} <= {
        event.event_type for event in found
    }


async def test_every_answer_says_the_correlation_id_of_its_call(centre: DataCentre) -> None:
    process = {"coordinator": centre.stack.coordinators[0], "jobstore": centre.stack.jobstores[0]}
    async with (
        grpc.aio.insecure_channel(process["coordinator"].address) as to_coordinator,
        grpc.aio.insecure_channel(process["jobstore"].address) as to_jobstore,
        grpc.aio.insecure_channel(centre.stack.hosts[0].address) as to_host,
    ):
        coordinator = coordinator_pb2_grpc.CoordinatorStub(to_coordinator)
        jobstore = jobstore_pb2_grpc.JobStoreStub(to_jobstore)
        host = hostagent_pb2_grpc.HostAgentStub(to_host)
        calls = [
            (coordinator.ListCommandTypes, ListCommandTypesRequest()),
            (coordinator.RunCommand, command_request("RemoveVm", {"vm_id": "vm-nowhere"})),
            (coordinator.RunCommand, command_request("NoSuchThing")),
            (jobstore.ListJobs, jobstore_pb2.ListJobsRequest()),
            (jobstore.GetJob, jobstore_pb2.GetJobRequest(job_id="nonsense")),
            (host.GetHost, hostagent_pb2.GetHostRequest()),
        ]
        for method, request in calls:
            assert await _echo(method(request, metadata=(("x-correlation-id", "call-7"),))) == "call-7"
            made = await _echo(method(request))
            assert CORRELATION_ID.fullmatch(made)
        watch = jobstore.WatchJobs(jobstore_pb2.WatchJobsRequest(), metadata=(("x-correlation-id", "watch-7"),))
        assert await _echo(watch) == "watch-7"
        watch.cancel()


@pytest.mark.rule("semantics §2: Correlation id: given, else the parent's, else made")
async def test_a_job_without_a_name_is_given_one_that_finds_it(centre: DataCentre) -> None:
    job = await centre.run("BenchWork", {"host_id": "host-1", "object_id": "nameless"})
    assert CORRELATION_ID.fullmatch(job.correlation_id)
    assert {step.correlation_id for step in job.steps} == {job.correlation_id}
    found = [each.job_id async for each in centre.client.list_jobs(where(correlation_id=job.correlation_id))]
    assert found == [job.job_id]


async def test_a_job_is_found_by_any_of_its_commands_and_by_what_it_is_about(centre: DataCentre) -> None:
    await centre.furnish("vm-find", disks=2)
    job = await centre.run("RemoveVm", {"vm_id": "vm-find"})
    async for command in centre.client.list_commands(job.flow_command_id):
        assert (await centre.client.get_job_of_command(command.command_id)).job_id == job.job_id
    about = [each.job_id async for each in centre.client.list_jobs('entity = "VM/vm-find" AND command_type = RemoveVm')]
    assert about == [job.job_id]
    task = (await centre.host_tasks(job))[0]
    entity = (EntityType.ENTITY_TYPE_DISK, task.entity.entity_id)
    on_disk = [each.task_id async for each in centre.client.list_host_tasks(entity=entity)]
    assert task.task_id in on_disk
    with pytest.raises(NotFound):
        await centre.client.get_job_of_command(task.task_id)


async def _echo(call: Any) -> str:
    metadata = dict([*await call.initial_metadata()])
    return str(metadata.get("x-correlation-id", ""))
