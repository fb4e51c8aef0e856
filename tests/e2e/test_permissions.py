"""A policy on the real stack: who may run what, see which jobs, stop whose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from tests.e2e.datacentre import ABORTED, FAILED, FINISHED, DataCentre, data_centre

from waybill.v1.coordinator_pb2 import MULTIPLE_POLICY_ALL_OR_NOTHING
from waybill.v1.jobs_pb2 import Entity, EntityType, Job, JobView
from waybill_cli.stack import Stack
from waybill_client import Complete, WaybillClient, WaybillError, where
from waybill_client.client import command_request

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

POLICY = """
[users]
anonymous = ["admin"]
ann = ["storage"]
bob = ["storage", "auditor"]
system = ["reporter"]

[[roles.admin]]
do = ["*"]
commands = ["*"]
jobs = "any"

[[roles.storage]]
do = ["run", "see", "cancel"]
commands = ["AddDisk", "RemoveDisk", "BenchWork"]

[[roles.storage]]
do = ["declare"]
entities = ["DISK/*"]

[[roles.auditor]]
do = ["see"]
commands = ["*"]
jobs = "any"

[[roles.reporter]]
do = ["run", "see", "clear"]
commands = ["external"]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    folder = tmp_path_factory.mktemp("permissions")
    (folder / "policy.toml").write_text(POLICY)
    file = str(folder / "policy.toml")
    environment = {
        "COORDINATOR_POLL_SECONDS": "1",
        "COORDINATOR_POLICY_FILE": file,
        "JOBSTORE_POLICY_FILE": file,
    }
    async with data_centre(folder / "data", hosts=1, environment=environment) as centre:
        yield centre


class Users:
    """Clients by the name of who uses them."""

    def __init__(self, centre: DataCentre, clients: dict[str, WaybillClient]) -> None:
        self.centre = centre
        self.clients = clients

    @property
    def stack(self) -> Stack:
        """What is looked at after each test."""
        return self.centre.stack

    def __getattr__(self, name: str) -> WaybillClient:
        return self.clients[name]

    async def add_disk(self, name: str, disk_id: str, **options: Any) -> Job:
        return await self.clients[name].run_command("AddDisk", _disk(disk_id), **options)


@pytest_asyncio.fixture(loop_scope="module")
async def users(centre: DataCentre) -> AsyncIterator[Users]:
    async with AsyncExitStack() as open_clients:
        clients = {
            name: await open_clients.enter_async_context(centre.stack.client(user=name))
            for name in ("ann", "bob", "system", "stranger")
        }
        yield Users(centre, clients)


def _disk(disk_id: str) -> dict[str, Any]:
    return {"disk_id": disk_id, "size_mb": 1, "host_id": "host-1"}


async def refusal(call: Awaitable[object]) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        await call
    return caught.value


def said(error: WaybillError, *ids: str) -> tuple[object, ...]:
    """All of an error, but for the ids that were asked for."""
    message, metadata = error.message, {**error.metadata}
    for each in ids:
        message = message.replace(each, "ID")
        metadata = {key: value.replace(each, "ID") for key, value in metadata.items()}
    return error.code, error.reason, message, metadata, error.violations


async def test_a_type_that_one_may_never_run_is_unknown_and_not_listed(users: Users) -> None:
    before = await users.centre.stored()
    denied = await refusal(users.ann.run_command("RemoveVm", {"vm_id": "vm-1"}))
    missing = await refusal(users.ann.run_command("NoSuchThing", {"vm_id": "vm-1"}))
    assert said(denied, "RemoveVm") == said(missing, "NoSuchThing")
    assert denied.reason == "COMMAND_TYPE_UNKNOWN"
    assert {each.name for each in await users.ann.list_command_types()} >= {"AddDisk"}
    assert "RemoveVm" not in {each.name for each in await users.ann.list_command_types()}
    assert "RemoveVm" in {each.name for each in await users.centre.client.list_command_types()}
    assert await users.stranger.list_command_types() == []
    assert await users.centre.stored() == before


async def test_of_several_each_is_let_through_or_refused_by_itself(users: Users) -> None:
    commands = [
        command_request("AddDisk", _disk("several-1")),
        command_request("RemoveVm", {"vm_id": "vm-1"}),
        command_request("AddDisk", _disk("several-2")),
    ]
    one, refused, other = await users.ann.run_multiple_commands(commands)
    assert isinstance(one, Job)
    assert isinstance(other, Job)
    assert isinstance(refused, WaybillError)
    assert refused.reason == "COMMAND_TYPE_UNKNOWN"
    for job in (one, other):
        assert (await users.centre.ended(job)).status == FINISHED
    together = [command_request("AddDisk", _disk("several-3")), *commands[1:2]]
    error = await refusal(users.ann.run_multiple_commands(together, policy=MULTIPLE_POLICY_ALL_OR_NOTHING))
    assert error.reason == "COMMAND_TYPE_UNKNOWN"
    assert await users.centre.effects("several-3") == {}


async def test_what_one_may_not_see_looks_as_if_it_were_not_there(users: Users) -> None:
    job = await users.centre.ended(await users.add_disk("bob", "hidden", correlation_id="bobs-own"))
    nobodys = str(uuid4())
    ann = users.ann
    for denied, missing, ids in (
        (ann.get_job(job.job_id), ann.get_job(nobodys), (job.job_id, nobodys)),
        (
            ann.get_job_of_command(job.flow_command_id),
            ann.get_job_of_command(nobodys),
            (job.flow_command_id, nobodys),
        ),
        (ann.get_step(job.steps[0].step_id), ann.get_step(nobodys), (job.steps[0].step_id, nobodys)),
        (anext(aiter(ann.list_steps(job.job_id))), anext(aiter(ann.list_steps(nobodys))), (job.job_id, nobodys)),
        (
            anext(aiter(ann.list_commands(job.flow_command_id))),
            anext(aiter(ann.list_commands(nobodys))),
            (job.flow_command_id, nobodys),
        ),
        (ann.cancel_job(job.job_id), ann.cancel_job(nobodys), (job.job_id, nobodys)),
        (ann.end_external_job(job.job_id), ann.end_external_job(nobodys), (job.job_id, nobodys)),
        (
            ann.end_external_step(job.steps[0].step_id),
            ann.end_external_step(nobodys),
            (job.steps[0].step_id, nobodys),
        ),
    ):
        of_denied, of_missing = await refusal(denied), await refusal(missing)
        assert of_denied.code is grpc.StatusCode.NOT_FOUND
        assert said(of_denied, ids[0]) == said(of_missing, ids[1])
    assert [each async for each in ann.list_jobs(where(correlation_id="bobs-own"))] == []
    assert [each async for each in ann.list_host_tasks(job_id=job.job_id)] == []
    assert [each async for each in ann.list_host_tasks(correlation_id="bobs-own")] == []
    assert [each async for each in ann.list_events(where(job_id=job.job_id))] == []
    assert [each async for each in ann.list_events(where(correlation_id="bobs-own"))] == []
    modified = await ann.get_modified_jobs(0, page_size=1000)
    assert {each.owner for each in modified.jobs} <= {"ann"}
    assert (await users.bob.get_job(job.job_id)).job_id == job.job_id
    assert [each async for each in users.bob.list_host_tasks(job_id=job.job_id)] != []
    assert [each async for each in users.bob.list_events(where(job_id=job.job_id))] != []


async def test_lists_and_watches_show_ones_own_and_an_auditor_everything(users: Users) -> None:
    ours = [await users.centre.ended(await users.add_disk("ann", f"ann-{number}")) for number in range(2)]
    theirs = await users.centre.ended(await users.add_disk("bob", "bob-0"))
    listed = [job async for job in users.ann.list_jobs()]
    assert {job.owner for job in listed} == {"ann"}
    assert {job.job_id for job in ours} <= {job.job_id for job in listed}
    assert await _watched(users.ann) == {job.job_id for job in listed}
    audited = {job.job_id async for job in users.bob.list_jobs()}
    assert {theirs.job_id, *(job.job_id for job in ours)} <= audited
    assert await _watched(users.stranger) == set()
    assert [job async for job in users.stranger.list_jobs()] == []


async def _watched(client: WaybillClient) -> set[str]:
    """What a watch shows of what is there."""
    found: set[str] = set()
    async for change in client.watch_jobs():
        if isinstance(change, Complete):
            break
        found.add(change.job.job_id)  # type: ignore[union-attr]
    return found


async def test_what_one_sees_and_may_not_stop_is_denied(users: Users) -> None:
    await users.centre.program("host-1", {"verb": "createVolume", "work_ms": 60_000})
    job = await users.add_disk("ann", "slow")
    await users.centre.until_running(job)
    assert [lock.job_id async for lock in users.ann.list_locks()] == [job.job_id]
    assert [lock async for lock in users.stranger.list_locks()] == []
    denied = await refusal(users.bob.cancel_job(job.job_id))
    assert (denied.code, denied.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert (await refusal(users.stranger.cancel_job(job.job_id))).reason == "JOB_NOT_FOUND"
    await users.ann.cancel_job(job.job_id)
    assert (await users.centre.ended(job)).status in (ABORTED, FAILED)


async def test_jobs_are_deleted_by_those_who_are_let(users: Users) -> None:
    job = await users.centre.ended(await users.add_disk("ann", "deleted"))
    await users.centre.until_rest()
    assert (await refusal(users.ann.delete_job(job.job_id))).reason == "PERMISSION_DENIED"
    denied, nobodys = await refusal(users.stranger.delete_job(job.job_id)), str(uuid4())
    assert said(denied, job.job_id) == said(await refusal(users.stranger.delete_job(nobodys)), nobodys)
    for client in (users.ann, users.system):
        assert (await refusal(client.delete_jobs(datetime.now(UTC)))).reason == "PERMISSION_DENIED"
    await users.centre.client.delete_job(job.job_id)
    assert (await refusal(users.ann.get_job(job.job_id))).reason == "JOB_NOT_FOUND"


async def test_entities_are_declared_by_those_who_are_let_and_read_by_all(users: Users) -> None:
    disk = Entity(entity_type=EntityType.ENTITY_TYPE_DISK, entity_id="declared")
    vm = Entity(entity_type=EntityType.ENTITY_TYPE_VM, entity_id="declared")
    await users.ann.put_entities([disk])
    assert (await refusal(users.ann.put_entities([disk, vm]))).reason == "PERMISSION_DENIED"
    assert (await refusal(users.stranger.put_entities([disk]))).reason == "PERMISSION_DENIED"
    assert (await users.stranger.get_entity(EntityType.ENTITY_TYPE_DISK, "declared")).version == 1


async def test_a_reporter_reports_of_his_own_jobs_and_runs_nothing(users: Users) -> None:
    system = users.system
    job = await system.add_external_job("Backup", command_type="AddDisk")
    step = await system.add_external_step(job.job_id, "Copying")
    for call in (users.ann.end_external_step(step.step_id), users.ann.get_job(job.job_id, JobView.JOB_VIEW_BASIC)):
        assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND  # that it is named AddDisk does not make it one
    assert (await refusal(users.bob.end_external_job(job.job_id))).reason == "PERMISSION_DENIED"
    assert (await refusal(users.ann.add_external_job("mine"))).reason == "PERMISSION_DENIED"
    refused = await refusal(users.add_disk("bob", "attached", external_job_id=job.job_id))
    assert refused.reason == "PERMISSION_DENIED"
    assert (await refusal(users.add_disk("system", "not-his"))).reason == "COMMAND_TYPE_UNKNOWN"
    await system.end_external_step(step.step_id)
    await system.heartbeat_external_job(job.job_id)
    assert (await system.end_external_job(job.job_id)).status == FINISHED
    assert (await refusal(users.bob.clear_external_job(job.job_id))).reason == "PERMISSION_DENIED"
    await system.clear_external_job(job.job_id)


async def test_a_malformed_request_is_still_told_what_is_wrong(users: Users) -> None:
    error = await refusal(users.ann.run_command("AddDisk", {"disk_id": 7}))
    assert error.reason == "PARAMETERS_INVALID"
    assert (await refusal(users.ann.cancel_job("nonsense"))).reason == "REQUEST_INVALID"
