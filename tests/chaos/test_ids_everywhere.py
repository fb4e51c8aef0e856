"""Random flows while processes are killed: everything that is written down anywhere leads to the action it comes from.

`WAYBILL_FLOWS` says how many flows (60 in `make test`), `WAYBILL_SEED` which. In every twenty a process is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.chaos import ids
from tests.chaos.collect import Written, log_lines, written
from tests.chaos.round import until_answered
from tests.chaos.test_crashes import kill
from tests.otlp_sink import OtlpSink, SinkSpan
from tests.traces import assert_whole, of_trace

from waybill.v1.jobs_pb2 import Entity, EntityType, ExecutionStatus
from waybill_cli.stack import Stack
from waybill_client import InvalidArgument, WaybillClient

FLOWS = int(os.environ.get("WAYBILL_FLOWS", "60"))
SEED = int(os.environ.get("WAYBILL_SEED", "1"))
AT_ONCE = 16
FLOWS_PER_CRASH = 20
VICTIMS = ("coordinator", "jobstore", "hostagent")
WORK_MS, BOOT_MS = 100, 50
DELIVERED_WITHIN = 20.0  # a coordinator's heir waits for its lease first
CLEARED_WITHIN = 10.0  # the design's promise

FINISHED, FAILED = ExecutionStatus.EXECUTION_STATUS_FINISHED, ExecutionStatus.EXECUTION_STATUS_FAILED

_flow: ContextVar[str] = ContextVar("flow", default="")


class Calls(SpanProcessor):
    """Knows under which correlation id each call of the client was made, by its trace id: not by what its span says."""

    def __init__(self) -> None:
        self.flow_of: dict[str, str] = {}

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.flow_of[f"{span.context.trace_id:032x}"] = _flow.get()


@asynccontextmanager
async def traced_client(stack: Stack, sink: OtlpSink, calls: Calls) -> AsyncIterator[WaybillClient]:
    provider = TracerProvider(resource=Resource.create({"service.name": "client"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=sink.address, insecure=True, timeout=5)
    provider.add_span_processor(calls)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
    async with stack.client(tracer_provider=provider) as client:
        yield client
    await asyncio.to_thread(provider.shutdown)


class Traffic:
    """Flows of several people at once, each busy with VMs of their own; and the book of what was asked for."""

    def __init__(self, stack: Stack, client: WaybillClient) -> None:
        self._stack = stack
        self._client = client
        self._numbers = iter(range(1, FLOWS + 1))
        self.over = 0
        self.progress = asyncio.Condition()
        self.flows: dict[str, str] = {}
        """The job of each by its correlation id; empty: the call was refused."""

    async def run(self) -> None:
        """Runs all flows."""
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(self._person(number, random.Random(f"{SEED} person {number}")))

    async def _person(self, person: int, rng: random.Random) -> None:
        vm_number, vm_id, up = 0, "", False
        for number in self._numbers:
            if not vm_id:
                vm_number, vm_id, up = vm_number + 1, f"vm-{person}-{vm_number + 1}", False
                await self._declare_vm(vm_id)
            wish = rng.choice(["AddDisk", "AddDisk", "StopVm" if up else "RunVm", "RemoveVm", "refused", "malformed"])
            if wish == "malformed":
                await self._refused(number)
            elif wish == "refused":
                await self._end(number, rng.choice(["RunVm", "StopVm", "RemoveVm"]), {"vm_id": "vm-nobodys"})
            elif wish == "AddDisk":
                await self._end(number, wish, self._disk(number, vm_id, rng))
            else:
                done = await self._end(number, wish, {"vm_id": vm_id}) == FINISHED
                up = up if wish == "RemoveVm" else (wish == "RunVm")
                if not done or wish == "RemoveVm":
                    vm_id = ""  # it is gone, or a crash made a mess of it: another one

    def _disk(self, number: int, vm_id: str, rng: random.Random) -> dict[str, Any]:
        host_id = rng.choice(self._stack.hosts).name
        return {"disk_id": f"disk-{number}", "size_mb": 10, "host_id": host_id, "vm_id": vm_id}

    async def _declare_vm(self, vm_id: str) -> None:
        vm = Entity(entity_type=EntityType.ENTITY_TYPE_VM, entity_id=vm_id, name=vm_id)
        vm.declared.update({"disk_ids": [], "memory_mb": 64})
        await until_answered(lambda: self._client.put_entities([vm]))

    async def _end(self, number: int, command_type: str, parameters: dict[str, Any]) -> int:
        """Runs a command to its end, whatever that is."""
        flow = f"flow-{number}"
        _flow.set(flow)
        job = await until_answered(
            lambda: self._client.run_command(command_type, parameters, request_id=flow, correlation_id=flow)
        )
        self.flows[flow] = job.job_id
        job = await until_answered(lambda: self._client.wait(job.job_id))
        await self._count()
        return job.status

    async def _refused(self, number: int) -> None:
        flow = f"flow-{number}"
        _flow.set(flow)
        with pytest.raises(InvalidArgument):
            await until_answered(lambda: self._client.run_command("RunVm", {}, request_id=flow, correlation_id=flow))
        self.flows[flow] = ""
        await self._count()

    async def _count(self) -> None:
        async with self.progress:
            self.over += 1
            self.progress.notify_all()

    async def wait_for(self, over: int) -> None:
        """Waits until so many flows are over."""
        async with self.progress:
            await self.progress.wait_for(lambda: self.over >= over)


@pytest.mark.timeout(120 + FLOWS)
async def test_whatever_is_written_anywhere_leads_to_the_action_it_comes_from(tmp_path: Path) -> None:
    calls = Calls()
    async with OtlpSink() as sink:
        names = ("COORDINATOR_TRACES_ENDPOINT", "JOBSTORE_TRACES_ENDPOINT", "HOSTAGENT_TRACES_ENDPOINT")
        environment = {
            **dict.fromkeys(names, sink.address),
            "HOSTAGENT_SIM_WORK_MS": str(WORK_MS),
            "HOSTAGENT_SIM_BOOT_MS": str(BOOT_MS),
        }
        async with Stack(tmp_path, hosts=2, environment=environment, longest_delay=0.2) as stack:
            async with traced_client(stack, sink, calls) as client:
                traffic = Traffic(stack, client)
                found = Written()
                async with asyncio.TaskGroup() as both:
                    both.create_task(traffic.run())
                    both.create_task(crash_and_look(stack, traffic, found))
            tables = (last := await all_over(stack)).tables
            found.add(last)
            book = ids.Book(tables, calls.flow_of)
            spans = await all_spans(sink, tables, calls)
            await nothing_owed(stack)
            lines = log_lines(stack)
    _tell(found, lines, spans)
    complaints = [
        *ids.of_jobs(tables, book, traffic.flows),
        *ids.of_rows(found.tables, book),
        *ids.of_lines(lines, book),
        *ids.of_entries(found.entries, book),
        *ids.of_spans(spans, book),
        *ids.missing(tables, lines, last.entries, spans),
    ]
    assert not complaints, f"{len(complaints)} complaints:\n" + "\n".join(complaints[:50])
    assert [row for table in ("entity_lock", "entity_snapshot") for row in tables[table]] == []
    by_trace: dict[str, list[SinkSpan]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    for trace_id, those in by_trace.items():
        assert assert_whole(of_trace(those, trace_id)).service == "client"


async def crash_and_look(stack: Stack, traffic: Traffic, found: Written) -> None:
    """Kills now and then; looks before, for what is there only while something is under way."""
    rng = random.Random(f"{SEED} ids")
    for over in range(FLOWS_PER_CRASH // 2, FLOWS, FLOWS_PER_CRASH):
        await traffic.wait_for(over)
        found.add(await written(stack))
        await kill(stack, rng.choice(VICTIMS), rng)
        await stack.serving()


async def all_over(stack: Stack) -> Written:
    """What is written down once no host has a task any more."""
    async with asyncio.timeout(CLEARED_WITHIN):
        while True:
            now = await written(stack)
            if not any(entry.table in ("task", "span") for entry in now.entries):
                return now
            await asyncio.sleep(0.1)  # nobody announces that a host has forgotten; the limit is the promise


async def all_spans(sink: OtlpSink, tables: ids.Tables, calls: Calls) -> list[SinkSpan]:
    """All spans, once those of all calls, commands and tasks are delivered."""
    awaited = {row["span_id"] for row in tables["command"]}
    awaited |= {row["span_id"] for row in tables["host_task"] if row["kind"] == "TASK"}
    roots = set(calls.flow_of)
    seen = 0

    def complete(spans: Any) -> bool:
        nonlocal seen
        for span in spans[seen:]:
            awaited.discard(span.span_id)
            roots.discard(span.trace_id if not span.parent_span_id else "")
        seen = len(spans)
        return not awaited and not roots

    try:
        return await sink.wait_for(complete, seconds=DELIVERED_WITHIN)
    except TimeoutError:
        missing = [
            f"{row['correlation_id']}: {row.get('command_type') or row['verb']}, ended {row['end_time']}"
            for row in [*tables["command"], *tables["host_task"]]
            if row["span_id"] in awaited
        ]
        missing += [f"{calls.flow_of[root]}: the client's" for root in roots]
        pytest.fail(f"{len(missing)} spans are not delivered after {DELIVERED_WITHIN} s:\n" + "\n".join(missing[:50]))


async def nothing_owed(stack: Stack) -> None:
    """Waits until the store knows, by a renewal, that dead coordinators owe no spans."""
    async with asyncio.timeout(CLEARED_WITHIN):
        while (await written(stack)).tables["span_debt"]:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.1)


def _tell(found: Written, lines: list[ids.Line], spans: list[SinkSpan]) -> None:
    rows = {table: len(those) for table, those in found.tables.items() if those}
    naming = sum(ids.names_work(json.loads(line.text)) for line in lines)
    print(f"rows {rows}; {len(found.entries)} ledger entries; {len(lines)} lines, {naming} of work; {len(spans)} spans")
