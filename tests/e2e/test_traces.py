"""One action, one trace: from the client's call to the last host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.e2e.datacentre import ABORTED, FAILED, FINISHED, DataCentre, data_centre
from tests.otlp_sink import OtlpSink, SinkSpan
from tests.traces import assert_whole, names, of_trace, outline

from waybill.v1.jobs_pb2 import Job
from waybill_client import WaybillClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

COLLECTORS = ("COORDINATOR_TRACES_ENDPOINT", "JOBSTORE_TRACES_ENDPOINT", "HOSTAGENT_TRACES_ENDPOINT")


@dataclass
class Traced:
    """A data centre whose processes, and whose client, send their spans to one collector."""

    centre: DataCentre
    client: WaybillClient
    sink: OtlpSink

    async def run(self, command_type: str, parameters: dict[str, Any], **options: Any) -> Job:
        job = await self.client.run_command(command_type, parameters, **options)
        return await self.centre.ended(job)

    async def trace_of(self, job: Job, **wanted: int) -> list[SinkSpan]:
        """The job's trace, once it has as many spans of each name as wanted."""

        def complete(spans: Any) -> bool:
            counts = names(of_trace(spans, job.trace_id))
            return all(counts.get(name.replace("__", " "), 0) >= count for name, count in wanted.items())

        return of_trace(await self.sink.wait_for(complete), job.trace_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    async with OtlpSink() as sink:
        environment = dict.fromkeys(COLLECTORS, sink.address)
        async with data_centre(tmp_path_factory.mktemp("traced"), environment=environment) as centre:
            provider = TracerProvider(resource=Resource.create({"service.name": "client"}), shutdown_on_exit=False)
            # Delivers in a thread of its own: the collector runs in this loop.
            exporter = OTLPSpanExporter(endpoint=sink.address, insecure=True, timeout=5)
            provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
            async with centre.stack.client(tracer_provider=provider) as client:
                yield Traced(centre, client, sink)
            provider.shutdown()


RPC = "waybill.v1.Coordinator/RunCommand"
TREE = [
    f"client: {RPC}",
    f"  waybill-coordinator: {RPC}",
    "  waybill-coordinator: RemoveVm",
    "    waybill-coordinator: RemoveAllVmImages",
    *["      waybill-coordinator: RemoveImage", "        waybill-hostagent: task deleteImage"] * 4,
]


async def test_remove_vm_is_one_tree_from_the_client_to_both_hosts(traced: Traced) -> None:
    await traced.centre.furnish("vm-tree")
    job = await traced.run("RemoveVm", {"vm_id": "vm-tree"}, correlation_id="corr-tree")
    assert job.status == FINISHED
    spans = await traced.trace_of(job, RemoveVm=1, task__deleteImage=4)
    assert outline(spans) == TREE
    assert assert_whole(spans).name == RPC
    assert {span.attributes["correlation_id"] for span in spans} == {"corr-tree"}
    assert {span.attributes.get("job.id") for span in spans} == {job.job_id}
    assert {span.attributes["host.id"] for span in spans if "host.id" in span.attributes} == {"host-1", "host-2"}
    assert {span.status for span in spans} == {"UNSET"}


async def test_the_rows_name_their_spans(traced: Traced) -> None:
    await traced.centre.furnish("vm-rows")
    job = await traced.run("RemoveVm", {"vm_id": "vm-rows"})
    spans = {span.span_id: span for span in await traced.trace_of(job, RemoveVm=1, task__deleteImage=4)}
    assert spans[job.span_id].name == "RemoveVm"
    steps = [step for step in job.steps if step.step_type == "DELETE_IMAGE"]
    assert [spans[step.span_id].name for step in steps] == ["RemoveImage"] * 4
    assert [step.span_id for step in job.steps if step.step_type == "EXECUTION"] == [""]
    commands = [command async for command in traced.client.list_commands(job.flow_command_id)]
    assert {spans[command.span_id].name for command in commands} == {"RemoveVm", "RemoveAllVmImages", "RemoveImage"}
    tasks = await traced.centre.host_tasks(job)
    assert [spans[task.span_id].attributes["task.id"] for task in tasks] == [task.task_id for task in tasks]


async def test_a_command_s_span_has_the_store_s_times_and_its_phases(traced: Traced) -> None:
    await traced.centre.declare_vm("vm-times")
    job = await traced.run("AddDisk", _a_disk("vm-times"))
    spans = await traced.trace_of(job, AddDisk=1, task__createVolume=1)
    [span] = [span for span in spans if span.span_id == job.span_id]
    assert span.start == pytest.approx(job.start_time.ToDatetime(UTC).timestamp(), abs=1e-6)
    assert span.end == pytest.approx(job.end_time.ToDatetime(UTC).timestamp(), abs=1e-6)
    assert [event.name for event in span.events] == ["VALIDATION", "EXECUTION", "FINALIZATION"]
    assert (span.attributes["entity.type"], span.attributes["entity.id"]) == ("DISK", "vm-times-disk-0")
    assert span.attributes["command.status"] == "ENDED_SUCCESSFULLY"


async def test_only_what_failed_has_an_error(traced: Traced) -> None:
    await traced.centre.furnish("vm-error")
    rule = {"verb": "deleteImage", "match": {"volume_id": "vm-error-disk-1"}, "outcome": "fail", "error": "on fire"}
    await traced.centre.program("host-2", rule)
    job = await traced.run("RemoveVm", {"vm_id": "vm-error"})
    await traced.centre.behave()
    assert job.status == FAILED
    spans = await traced.trace_of(job, RemoveVm=1, task__deleteImage=4)
    assert outline(spans) == TREE
    in_error = [span.name for span in spans if span.status == "ERROR"]
    assert sorted(in_error) == ["RemoveAllVmImages", "RemoveImage", "RemoveVm", "task deleteImage"]
    [task] = [span for span in spans if span.status == "ERROR" and span.name == "task deleteImage"]
    assert task.attributes["host.id"] == "host-2"


async def test_what_takes_long_is_seen_while_it_runs(traced: Traced) -> None:
    await traced.centre.declare_vm("vm-long")
    await traced.centre.program("host-1", {"verb": "createVolume", "outcome": "hang"})
    job = await traced.client.run_command("AddDisk", _a_disk("vm-long"))
    spans = await traced.trace_of(job, AddDisk__started=1)
    [started] = [span for span in spans if span.name == "AddDisk started"]
    assert started.parent_span_id == job.span_id
    assert [span for span in spans if span.span_id == job.span_id] == []
    await traced.centre.behave()
    await traced.client.cancel_job(job.job_id)
    job = await traced.centre.ended(job)
    assert job.status == ABORTED
    spans = await traced.trace_of(job, AddDisk=1)
    [span] = [span for span in spans if span.span_id == job.span_id]
    assert (span.status, span.attributes["command.status"]) == ("UNSET", "ENDED_WITH_FAILURE")  # asked for: no error


async def test_a_call_about_a_job_points_to_the_job_s_trace(traced: Traced) -> None:
    await traced.centre.declare_vm("vm-links")
    first = await traced.client.run_command("AddDisk", _a_disk("vm-links"), request_id="links")
    again = await traced.client.run_command("AddDisk", _a_disk("vm-links"), request_id="links")
    assert again.job_id == first.job_id
    await traced.centre.ended(first)
    links = [(first.trace_id, first.span_id)]
    found = await traced.sink.wait_for(lambda spans: [span for span in spans if span.links == links])
    [call] = [span for span in found if span.links == links]
    assert (call.name, call.kind) == (RPC, "SERVER")
    assert call.trace_id != first.trace_id


async def test_a_caller_that_makes_no_spans_has_a_trace_all_the_same(traced: Traced) -> None:
    await traced.centre.declare_vm("vm-untraced")
    job = await traced.centre.run("AddDisk", _a_disk("vm-untraced"))
    spans = await traced.trace_of(job, AddDisk=1, task__createVolume=1)
    assert outline(spans) == [
        f"waybill-coordinator: {RPC}",
        "  waybill-coordinator: AddDisk",
        "    waybill-hostagent: task createVolume",
    ]


async def test_what_a_dead_coordinator_owed_is_delivered_though_its_heir_dies_too(traced: Traced) -> None:
    centre = traced.centre
    await centre.declare_vm("vm-owed")
    await centre.program("host-2", {"verb": "createVolume", "outcome": "hang"})
    elsewhere = {"disk_id": "disk-going-on", "size_mb": 10, "host_id": "host-2"}
    going_on = await centre.client.run_command("AddDisk", elsewhere)
    await centre.until_running(going_on)
    await traced.sink.stop()
    job = await centre.run("AddDisk", _a_disk("vm-owed"))
    for deaths in (1, 2):
        await centre.stack.kill(centre.stack.coordinators[0])

        async def is_inherited(deaths: int = deaths) -> bool:
            return len(await centre.events(going_on, "FLOW_TAKEN_OVER")) == deaths

        await centre.until(is_inherited)
    await traced.sink.start()
    spans = await traced.trace_of(job, AddDisk=1, task__createVolume=1)
    [owed, *_] = [span for span in spans if span.name == "AddDisk"]
    assert (owed.span_id, owed.attributes["command.status"]) == (job.span_id, "ENDED_SUCCESSFULLY")
    await centre.behave()
    await centre.client.cancel_job(going_on.job_id)
    await centre.ended(going_on)


async def test_what_a_coordinator_could_not_deliver_before_it_was_stopped_the_next_one_delivers(traced: Traced) -> None:
    centre = traced.centre
    [coordinator] = centre.stack.coordinators
    await centre.declare_vm("vm-stopped")
    await traced.sink.stop()
    job = await centre.run("AddDisk", _a_disk("vm-stopped"))
    await coordinator.stop()
    await traced.sink.start()
    await coordinator.start()
    spans = await traced.trace_of(job, AddDisk=1)
    assert [span.span_id for span in spans if span.name == "AddDisk"] == [job.span_id]


def _a_disk(vm_id: str) -> dict[str, Any]:
    return {"disk_id": f"{vm_id}-disk-0", "size_mb": 10, "host_id": "host-1", "vm_id": vm_id}
