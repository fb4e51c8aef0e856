"""Traces in a real Jaeger beside the stack: what is sent there is read back by its query API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import pytest_asyncio
from tests.e2e.datacentre import DataCentre, data_centre

from chassis.tracing import open_tracing
from waybill_cli import jaegerd, stack
from waybill_cli.jaeger import Jaeger, NoSpans, Span
from waybill_cli.process import StartFailed
from waybill_cli.stack import Stack
from waybill_spans import Context, Event, FinishedSpan

# A Jaeger that has to be built first takes minutes.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

TRACE, ANOTHER_TRACE = "0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"
BEGAN = 1_760_000_000.0

CLIENT, COORDINATOR, HOST_AGENT = "waybill-client", "waybill-coordinator", "waybill-hostagent"
RUN_COMMAND = "waybill.v1.Coordinator/RunCommand"
REMOVAL = {
    (CLIENT, RUN_COMMAND): 1,
    (COORDINATOR, RUN_COMMAND): 1,
    (COORDINATOR, "RemoveVm"): 1,
    (COORDINATOR, "RemoveAllVmImages"): 1,
    (COORDINATOR, "RemoveImage"): 4,
    (HOST_AGENT, "task deleteImage"): 4,
}


@pytest.fixture(scope="module")
def binary() -> Path:
    """Jaeger. The CI builds it if it can, which takes minutes; whoever runs the tests is asked to, not made to."""
    if not os.environ.get("CI"):
        if not jaegerd.BINARY.exists():
            pytest.skip("there is no Jaeger in build/jaeger: `make jaeger` gets one")
    else:
        built = subprocess.run([jaegerd.CONFIGURATION / "get.sh"], stderr=subprocess.PIPE, text=True, check=False)
        if built.returncode == 3:
            pytest.skip(f"no Jaeger can be had here: {built.stderr}")
        assert built.returncode == 0, built.stderr
    return jaegerd.BINARY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def centre(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    async with data_centre(tmp_path_factory.mktemp("centre"), jaeger=True) as centre:
        yield centre


async def test_the_removal_of_a_vm_is_one_trace_from_its_client_to_both_hosts(centre: DataCentre) -> None:
    await centre.furnish("vm-traced")
    job = await _run(centre.stack, "RemoveVm", "vm_id=vm-traced")
    spans = await _spans(centre, job["trace_id"], REMOVAL)
    assert Counter((span.service, span.name) for span in spans) == REMOVAL
    _assert_one_tree(spans, root=(CLIENT, RUN_COMMAND))
    _assert_parts_lie_within(spans, "RemoveVm", "RemoveAllVmImages", "RemoveImage", "task deleteImage")
    assert {span.attributes["correlation_id"] for span in spans} == {job["correlation_id"]}
    work = [span for span in spans if span.name != RUN_COMMAND]
    assert {span.attributes["job.id"] for span in work} == {job["job_id"]}
    [command] = [span for span in spans if span.name == "RemoveVm"]
    assert (command.span_id, command.attributes["entity.id"]) == (job["span_id"], "vm-traced")
    images = [span for span in spans if span.name == "RemoveImage"]
    assert {span.attributes["entity.id"] for span in images} == {f"vm-traced-disk-{number}" for number in range(4)}
    tasks = [span for span in spans if span.service == HOST_AGENT]
    assert {span.attributes["host.id"] for span in tasks} == {"host-1", "host-2"}
    assert not [span for span in spans if span.failed]


async def test_traces_are_found_by_service_operation_and_correlation_id(centre: DataCentre) -> None:
    await centre.furnish("vm-found")
    job = await _run(centre.stack, "RemoveVm", "vm_id=vm-found", "--correlation-id", "spring-cleaning")
    await _spans(centre, job["trace_id"], REMOVAL)
    assert set(await _ask(centre, "/api/services")) >= {CLIENT, COORDINATOR, HOST_AGENT}
    for service, operation in REMOVAL:
        assert operation in await _ask(centre, f"/api/services/{service}/operations")
    tags = quote(json.dumps({"correlation_id": "spring-cleaning"}))
    for service in (CLIENT, COORDINATOR, HOST_AGENT):
        found = await _ask(centre, f"/api/traces?service={service}&tags={tags}")
        assert [trace["traceID"] for trace in found] == [job["trace_id"]]


async def test_a_span_of_work_is_read_back_with_all_that_was_said_in_it(centre: DataCentre) -> None:
    task = FinishedSpan(
        "task deleteImage",
        Context(TRACE, "00f067aa0ba902b7"),
        "b7ad6b7169203331",
        BEGAN,
        BEGAN + 1.5,
        {"correlation_id": "cleaning", "job.id": "job-1", "attempt": 2},
        [Event("progress", BEGAN + 0.5, {"percent": 50})],
        "the disk is on fire",
        [Context(ANOTHER_TRACE, "00f067aa0ba902b8")],
    )
    await _send(centre.stack, task)
    [span] = await _reader(centre).spans(TRACE)
    assert (span.name, span.span_id, span.parent_span_id) == (task.name, task.context.span_id, task.parent_span_id)
    assert (span.start.timestamp(), span.end.timestamp()) == (task.start, task.end)
    assert span.attributes.items() >= task.attributes.items()
    assert (span.failed, span.message) == (True, "the disk is on fire")
    [event] = span.events
    assert (event["name"], event["attributes"]) == ("progress", {"percent": 50})
    assert [link["trace_id"] for link in span.links] == [ANOTHER_TRACE]
    assert (span.service, span.resource["host.id"]) == (HOST_AGENT, "host-1")


async def test_the_span_of_a_command_takes_the_place_of_the_one_that_said_it_started(centre: DataCentre) -> None:
    trace_id = "1" * 32
    context = Context(trace_id, "00f067aa0ba902b7")
    await _send(centre.stack, FinishedSpan("RemoveVm started", context, "", BEGAN, BEGAN + 1))
    [span] = await _reader(centre).spans(trace_id)
    assert span.name == "RemoveVm started"
    await _send(centre.stack, FinishedSpan("RemoveVm", context, "", BEGAN, BEGAN + 60))
    await _send(centre.stack, FinishedSpan("RemoveVm", context, "", BEGAN, BEGAN + 60))  # by another coordinator
    [span] = await _reader(centre).spans(trace_id)
    assert (span.name, span.end.timestamp()) == ("RemoveVm", BEGAN + 60)


async def test_a_killed_jaeger_comes_back_with_what_it_was_given(centre: DataCentre) -> None:
    trace_id = "2" * 32
    await _send(centre.stack, FinishedSpan("RemoveVm", Context(trace_id, "00f067aa0ba902b7"), "", BEGAN, BEGAN + 1))
    jaeger = centre.stack.jaeger
    assert jaeger is not None
    await centre.stack.kill(jaeger)
    await jaeger.serving()
    assert jaeger.starts == 2
    [span] = await _reader(centre).spans(trace_id)
    assert span.name == "RemoveVm"


async def test_waybill_up_tells_where_jaeger_is_and_ends_it_with_the_stack(binary: Path, tmp_path: Path) -> None:
    async with _waybill_up(tmp_path) as (up, told):
        assert await asyncio.to_thread(_get, told["url"], "/api/services") == []
        assert told["traces_endpoint"].startswith("127.0.0.1:")
        up.send_signal(signal.SIGINT)
        assert await up.wait() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(told["pid"], 0)


async def test_a_jaeger_does_not_outlive_a_killed_supervisor(binary: Path, tmp_path: Path) -> None:
    async with _waybill_up(tmp_path) as (up, told):
        gone = asyncio.Event()
        handle = os.pidfd_open(told["pid"])
        asyncio.get_running_loop().add_reader(handle, gone.set)
        up.kill()
        async with asyncio.timeout(20):
            await gone.wait()
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


async def test_without_a_jaeger_the_stack_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BINARY", tmp_path / "nowhere")
    with pytest.raises(StartFailed, match="`make jaeger` gets one"):
        async with Stack(tmp_path, jaeger=True):
            pass


@pytest.mark.parametrize("storage", ["memory", "badger"])
async def test_jaeger_takes_its_configuration(binary: Path, storage: str) -> None:
    files = [jaegerd.CONFIGURATION / f"{name}.yaml" for name in ("jaeger", storage)]
    command = [binary, "validate", *(f"--config={file}" for file in files)]
    checking = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, said = await checking.communicate()
    assert checking.returncode == 0, said.decode()


# --- what is sent and asked ------------------------------------------------------------------------------------------


@asynccontextmanager
async def _waybill_up(data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Mapping[str, Any]]]:
    """`waybill up --jaeger` as a program, and what it tells of Jaeger."""
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "waybill_cli", "up", "--jaeger", "--json", "--ports", "auto", "--data", str(data)),
        stdout=subprocess.PIPE,
    )
    try:
        assert up.stdout is not None
        yield up, json.loads(await up.stdout.readline())["jaeger"]
    finally:
        if up.returncode is None:
            up.kill()
        await up.communicate()


async def _run(stack: Stack, *command: str) -> Mapping[str, Any]:
    """Runs a command by the program `waybill`, which traces; returns its job when it has ended."""
    client = stack.client()
    addresses = {"WAYBILL_COORDINATOR": client.coordinator_address, "WAYBILL_JOBSTORE": client.jobstore_address}
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "waybill_cli", "run", *command, "--wait", "-o", "json"),
        stdout=subprocess.PIPE,
        env={**os.environ, **addresses, "WAYBILL_TRACES_ENDPOINT": stack.traces_endpoint},
    )
    printed, _ = await ran.communicate()
    assert ran.returncode == 0
    job: Mapping[str, Any] = json.loads(printed)
    return job


async def _send(stack: Stack, span: FinishedSpan) -> None:
    """Sends a span as a host agent does, and waits until it is delivered."""
    delivered = asyncio.Event()
    async with open_tracing(stack.traces_endpoint, HOST_AGENT, {"host.id": "host-1"}) as tracing:
        tracing.record(span, delivered.set)
        async with asyncio.timeout(20):
            await delivered.wait()


async def _spans(centre: DataCentre, trace_id: str, expected: Mapping[tuple[str, str], int]) -> list[Span]:
    """Waits until a trace has so many spans, and returns all final ones."""
    spans: list[Span] = []

    async def are_there() -> bool:
        try:
            spans[:] = [each for each in await _reader(centre).spans(trace_id) if not each.name.endswith(" started")]
        except NoSpans:
            return False
        return len(spans) >= sum(expected.values())

    await centre.until(are_there)
    return spans


def _reader(centre: DataCentre) -> Jaeger:
    return Jaeger(centre.stack.jaeger_url)


async def _ask(centre: DataCentre, path: str) -> Any:
    return await asyncio.to_thread(_get, centre.stack.jaeger_url, path)


def _get(url: str, path: str) -> Any:
    with urlopen(url + path) as answer:
        return json.load(answer)["data"] or []


def _assert_one_tree(spans: list[Span], root: tuple[str, str]) -> None:
    """One root, every parent there, nobody its own ancestor, every id once."""
    parents = {span.span_id: span.parent_span_id for span in spans}
    assert len(parents) == len(spans)
    assert [(span.service, span.name) for span in spans if not span.parent_span_id] == [root]
    for span_id in parents:
        path = [span_id]
        while parents[path[-1]]:
            path.append(parents[path[-1]])
            assert len(set(path)) == len(path)


def _assert_parts_lie_within(spans: list[Span], *names: str) -> None:
    """Each of a name is a child of one of the name before, and within its time: all clocks are one machine's."""
    by_id = {span.span_id: span for span in spans}
    for whole, part in pairwise(names):
        for span in spans:
            if span.name == part:
                parent = by_id[span.parent_span_id]
                assert parent.name == whole
                assert parent.start <= span.start <= span.end <= parent.end
