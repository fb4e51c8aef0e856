"""Calls against a scripted service."""

from __future__ import annotations

import asyncio
from uuid import UUID

import grpc
import pytest
from tests.integration.waybill_client.far_end import Context, ScriptedCoordinator, ScriptedJobStore, accept, refuse

from waybill.v1.coordinator_pb2 import RunCommandRequest
from waybill.v1.jobs_pb2 import Job
from waybill_client import DeadlineExceeded, InvalidArgument, NotFound, Unavailable, WaybillClient, command_request
from waybill_client.words import plain


async def test_a_command_goes_out_as_asked(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    job = await client.run_command("AddDisk", {"size_mb": 10}, correlation_id="c-1", priority=3)
    request = coordinator.requests[0]
    assert (job.job_id, request.command_type, request.priority) == ("j1", "AddDisk", 3)
    assert plain(request.parameters) == {"size_mb": 10}
    assert coordinator.metadata[0]["x-correlation-id"] == request.correlation_id == "c-1"
    assert coordinator.metadata[0]["x-waybill-user"] == "ann"


async def test_a_request_id_is_made_for_each_command(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    await client.run_command("AddDisk")
    await client.run_command("AddDisk")
    first, second = (UUID(request.request_id) for request in coordinator.requests)
    assert first != second


async def test_a_validation_needs_no_request_id(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    await client.run_command("AddDisk", validate_only=True)
    assert coordinator.requests[0].request_id == ""


async def test_a_call_is_repeated_under_the_same_request_id_while_unavailable(
    client: WaybillClient, coordinator: ScriptedCoordinator
) -> None:
    async def second_time_lucky(request: RunCommandRequest, context: Context) -> Job:
        if len(coordinator.requests) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return await accept(request, context)

    coordinator.answer = second_time_lucky
    assert (await client.run_command("AddDisk")).job_id == "j1"
    assert len({request.request_id for request in coordinator.requests}) == 1
    assert len(coordinator.requests) == 3


async def test_a_call_that_breaks_when_a_part_of_the_answer_has_come_is_repeated_too(
    client: WaybillClient, coordinator: ScriptedCoordinator
) -> None:
    async def second_time_lucky(request: RunCommandRequest, context: Context) -> Job:
        await context.send_initial_metadata((("x-correlation-id", "c-1"),))
        if len(coordinator.requests) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return await accept(request, context)

    coordinator.answer = second_time_lucky
    assert (await client.run_command("AddDisk")).job_id == "j1"
    assert len({request.request_id for request in coordinator.requests}) == 1


async def test_nothing_else_is_repeated(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    async def refused(request: RunCommandRequest, context: Context) -> Job:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "PARAMETERS_INVALID", "bad shape", field="x")
        raise AssertionError

    coordinator.answer = refused
    with pytest.raises(InvalidArgument) as raised:
        await client.run_command("AddDisk")
    assert (raised.value.reason, raised.value.metadata) == ("PARAMETERS_INVALID", {"field": "x"})
    assert raised.value.correlation_id == "made-by-the-service"
    assert len(coordinator.requests) == 1


async def test_a_cancelled_caller_cancels_its_call(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    reached, cancelled = asyncio.Event(), asyncio.Event()

    async def stuck(request: RunCommandRequest, context: Context) -> Job:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    coordinator.answer = stuck
    call = asyncio.ensure_future(client.run_command("AddDisk"))
    await reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await cancelled.wait()


async def test_every_call_has_a_deadline(client: WaybillClient, coordinator: ScriptedCoordinator) -> None:
    async def stuck(request: RunCommandRequest, context: Context) -> Job:
        assert (context.time_remaining() or 99) <= 0.2
        await asyncio.Event().wait()
        raise AssertionError

    coordinator.answer = stuck
    with pytest.raises(DeadlineExceeded):
        await client.run_command("AddDisk", timeout=0.2)


async def test_several_commands_come_back_in_order(client: WaybillClient) -> None:
    results = await client.run_multiple_commands(command_request(each) for each in ("RunVm", "Unknown", "StopVm"))
    ran, refused, stopped = results
    assert isinstance(ran, Job)
    assert isinstance(stopped, Job)
    assert (ran.command_type, stopped.command_type) == ("RunVm", "StopVm")
    assert isinstance(refused, NotFound)
    assert refused.reason == "COMMAND_TYPE_UNKNOWN"


async def test_a_list_fetches_its_pages_as_they_are_needed(client: WaybillClient, jobstore: ScriptedJobStore) -> None:
    jobstore.jobs = {str(number): Job(job_id=str(number)) for number in range(7)}
    assert [job.job_id async for job in client.list_jobs(page_size=3)] == list("0123456")


async def test_a_missing_job_is_not_found(client: WaybillClient) -> None:
    with pytest.raises(NotFound) as raised:
        await client.get_job("nobody")
    assert raised.value.reason == "JOB_NOT_FOUND"


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with WaybillClient("127.0.0.1:1", "127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await client.list_command_types()


def test_addresses_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_COORDINATOR", "10.0.0.1:1")
    monkeypatch.delenv("WAYBILL_JOBSTORE", raising=False)
    client = WaybillClient()
    assert (client.coordinator_address, client.jobstore_address) == ("10.0.0.1:1", "127.0.0.1:50052")
