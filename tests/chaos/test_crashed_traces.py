"""kill -9 of a random process at random moments: every flow is one connected trace in the end, and each piece of work
has exactly one final span; what runs is seen while it runs."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.chaos.round import Rounds
from tests.chaos.test_crashes import kill
from tests.otlp_sink import OtlpSink, SinkSpan
from tests.traces import assert_whole, of_trace, outline

from waybill.v1.jobs_pb2 import HostTaskKind, Job
from waybill_cli.stack import Stack
from waybill_client import WaybillClient

CRASHES = int(os.environ.get("WAYBILL_CRASHES", "5"))
SEED = int(os.environ.get("WAYBILL_SEED", "1"))
VICTIMS = ("coordinator", "jobstore", "hostagent", "postgres")
WORK_MS = 1_200  # so that RemoveVm, with its two stages, lasts for longer than it may be unseen
LATEST = 2.0
SEEN_WITHIN = 2.0  # the design's promise
DELIVERED_WITHIN = 15.0  # a coordinator's heir waits for its lease first


class DatedSink(OtlpSink):
    """A collector that knows when it first heard of each span, and of what a span is below."""

    def __init__(self) -> None:
        super().__init__()
        self.first_heard: dict[str, float] = {}

    async def take(self, request: Any) -> grpc.StatusCode:
        before = len(self.spans)
        answer = await super().take(request)
        for span in self.spans[before:]:
            for span_id in (span.span_id, span.parent_span_id):
                self.first_heard.setdefault(span_id, time.time())
        return answer


@asynccontextmanager
async def traced_client(stack: Stack, sink: OtlpSink) -> AsyncIterator[WaybillClient]:
    provider = TracerProvider(resource=Resource.create({"service.name": "client"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=sink.address, insecure=True, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
    async with stack.client(tracer_provider=provider) as client:
        yield client
    await asyncio.to_thread(provider.shutdown)


@pytest.mark.timeout(120 + 20 * CRASHES)
async def test_whoever_is_killed_each_flow_is_one_trace_and_each_work_has_one_span(tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} traces")
    async with DatedSink() as sink:
        names = ("COORDINATOR_TRACES_ENDPOINT", "JOBSTORE_TRACES_ENDPOINT", "HOSTAGENT_TRACES_ENDPOINT")
        environment = {**dict.fromkeys(names, sink.address), "HOSTAGENT_SIM_WORK_MS": str(WORK_MS)}
        async with Stack(tmp_path, hosts=2, environment=environment, longest_delay=0.2) as stack:
            async with traced_client(stack, sink) as client:
                rounds = Rounds(stack, client)
                await rounds.furnish_first()
                deaths: list[float] = []
                for _ in range(CRASHES):
                    victim, moment = rng.choice(VICTIMS), rng.uniform(0.0, LATEST)

                    async def crash(victim: str = victim, moment: float = moment) -> None:
                        await asyncio.sleep(moment)  # the moment of the crash: time itself is what the test is about
                        deaths.append(time.time())
                        await kill(stack, victim, rng)

                    await rounds.play(crash)
                works = [await work_of(client, job) for job in rounds.jobs]
            assert len(deaths) == CRASHES
            for job, work in zip(rounds.jobs, works, strict=True):
                await assert_one_trace(sink, job, work)
                assert_seen_in_time(sink, job, work, deaths)


Work = Mapping[str, tuple[str, float, float]]
"""Name, start and end by span id."""


async def work_of(client: WaybillClient, job: Job) -> Work:
    """What there must be a final span of, by the rows."""
    commands = {
        command.span_id: (command.command_type, _seconds(command.create_time), _seconds(command.end_time))
        async for command in client.list_commands(job.flow_command_id)
    }
    tasks = {
        task.span_id: (f"task {task.verb}", _seconds(task.create_time), _seconds(task.end_time))
        async for task in client.list_host_tasks(job_id=job.job_id)
        if task.kind == HostTaskKind.HOST_TASK_KIND_TASK
    }
    return {**commands, **tasks}


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


async def assert_one_trace(sink: OtlpSink, job: Job, work: Work) -> None:
    def complete(spans: Sequence[SinkSpan]) -> bool:
        return set(work) <= {span.span_id for span in spans if span.trace_id == job.trace_id}

    try:
        await sink.wait_for(complete, seconds=DELIVERED_WITHIN)
    except TimeoutError:
        there = {span.span_id for span in sink.spans}
        lost = [name for span_id, (name, _, _) in work.items() if span_id not in there]
        raise AssertionError(f"{job.description} has no span of {lost}") from None
    spans = of_trace(sink.spans, job.trace_id)
    assert_whole(spans)
    final = {span.span_id: span.name for span in spans if span.span_id in work}
    assert final == {span_id: name for span_id, (name, _, _) in work.items()}, outline(spans)
    assert {span.attributes["correlation_id"] for span in spans if "correlation_id" in span.attributes} == {
        job.correlation_id
    }


def assert_seen_in_time(sink: DatedSink, job: Job, work: Work, deaths: Sequence[float]) -> None:
    """But for what somebody's death kept from being told."""
    for span_id, (name, start, end) in work.items():
        disturbed = any(start - 5.0 <= death <= start + SEEN_WITHIN for death in deaths)
        if not name.startswith("task ") and end - start > SEEN_WITHIN and not disturbed:
            assert sink.first_heard[span_id] - start <= SEEN_WITHIN, f"{name} of {job.description}"
