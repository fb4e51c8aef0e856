"""Work that another system does, from its first report to its end, on the real stack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from tests.e2e.datacentre import ABORTED, FAILED, FINISHED, STARTED, UNKNOWN, DataCentre, data_centre
from typer.testing import CliRunner, Result

from waybill.v1.jobs_pb2 import JobView
from waybill_cli.__main__ import app
from waybill_client import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable, WaybillError, where

Answer = TypeVar("Answer")

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    environment = {"COORDINATOR_POLL_SECONDS": "1", "COORDINATOR_LEASE_SECONDS": "2"}
    async with data_centre(tmp_path_factory.mktemp("external"), hosts=1, coordinators=2, environment=environment) as it:
        yield it


@pytest.mark.rule("semantics §4: Written by compare-and-set; no coordinator owns them")
@pytest.mark.rule("semantics §4: External jobs: a restart leaves them STARTED")
async def test_a_job_goes_on_through_the_death_of_everybody(centre: DataCentre) -> None:
    client = centre.client
    job = await client.add_external_job("Nightly backup", correlation_id="backup-7", heartbeat_seconds=600)
    step = await client.add_external_step(job.job_id, "Copying", external_id="copy-1")
    for process in (*centre.stack.coordinators, *centre.stack.jobstores):
        await centre.stack.kill(process)
    after = await client.get_job(job.job_id)
    assert (after.status, [each.status for each in after.steps]) == (STARTED, [STARTED])
    assert (await client.heartbeat_external_job(job.job_id)).status == STARTED
    await client.end_external_step(step.step_id)
    ended = await client.end_external_job(job.job_id)
    assert (ended.status, ended.progress) == (FINISHED, 100)
    assert await client.check_consistency() == []


@pytest.mark.rule("semantics §4: Written by compare-and-set")
async def test_reports_that_are_repeated_while_everybody_dies_take_effect_once(centre: DataCentre) -> None:
    client = centre.client
    job = await client.add_external_job("Many steps")

    async def report(number: int) -> None:
        name = f"step {number}"
        step = await _until_taken(lambda: client.add_external_step(job.job_id, name, request_id=name))
        await _until_taken(lambda: client.end_external_step(step.step_id))

    async def kill() -> None:
        for process in (*centre.stack.jobstores, *centre.stack.coordinators):
            await centre.stack.kill(process)

    await asyncio.gather(*map(report, range(10)), kill(), *map(report, range(10, 20)))
    ended = await _until_taken(lambda: client.end_external_job(job.job_id))
    tree = await client.get_job(job.job_id)
    assert (ended.status, len(tree.steps)) == (FINISHED, 20)
    assert sorted(step.number for step in tree.steps) == list(range(20))
    assert {step.status for step in tree.steps} == {FINISHED}
    assert await client.check_consistency() == []


async def _until_taken(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Repeats a report until somebody has answered it."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Unavailable, DeadlineExceeded):
                return await call()


async def test_it_is_listed_watched_and_told_of_like_any_job(centre: DataCentre) -> None:
    client = centre.client
    job = await client.add_external_job("Import", command_type="Import", correlation_id="import-1")
    listed = [each async for each in client.list_jobs(where(correlation_id="import-1"))]
    assert [(each.job_id, each.external) for each in listed] == [(job.job_id, True)]
    states = client.follow_job(job.job_id)
    assert (await anext(states)).status == STARTED
    await client.add_external_step(job.job_id, "Reading")
    assert [step.description for step in (await anext(states)).steps] == ["Reading"]
    await client.end_external_job(job.job_id, succeeded=False, reason="the tape is torn")
    last = await anext(states)
    assert (last.status, last.error.message) == (FAILED, "the tape is torn")
    await states.aclose()
    events = [event async for event in client.list_events(where(job_id=job.job_id))]
    assert {event.correlation_id for event in events} == {"import-1"}
    assert [event.event_type for event in events] == ["JOB_STARTED", "STEP_STARTED", "STEP_ENDED", "JOB_ENDED"]


@pytest.mark.rule("semantics §4: Only on external jobs")
async def test_nothing_is_reported_of_a_job_that_a_coordinator_runs_nor_is_an_external_one_cancelled(
    centre: DataCentre,
) -> None:
    ours = await centre.run("AddDisk", {"disk_id": "d-1", "size_mb": 1, "host_id": "host-1"})
    for call in (
        centre.client.add_external_step(ours.job_id, "more"),
        centre.client.end_external_step(ours.steps[0].step_id),
        centre.client.end_external_job(ours.job_id, force=True),
        centre.client.clear_external_job(ours.job_id),
        centre.client.heartbeat_external_job(ours.job_id),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await call
        assert refused.value.reason == "NOT_EXTERNAL"
    assert (await centre.client.get_job(ours.job_id)).revision == ours.revision
    external = await centre.client.add_external_job("theirs")
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.cancel_job(external.job_id)
    assert refused.value.reason == "NOT_CANCELABLE"
    await centre.client.end_external_job(external.job_id)


@pytest.mark.rule("semantics §4: an optional heartbeat deadline ends a silent one as UNKNOWN")
async def test_a_job_of_which_nothing_is_heard_ends_unknown(centre: DataCentre) -> None:
    job = await centre.client.add_external_job("abandoned", heartbeat_seconds=1)
    await centre.client.add_external_step(job.job_id, "half-way")
    ended = await centre.ended(job)
    assert (ended.status, ended.steps[0].status) == (UNKNOWN, UNKNOWN)
    await centre.client.clear_external_job(job.job_id)
    with pytest.raises(NotFound):
        await centre.client.get_job(job.job_id, JobView.JOB_VIEW_BASIC)


class TestAttachedCommands:
    pytestmark = pytest.mark.rule("semantics §4: A command may be attached to an external job as a step")

    async def test_a_step_shows_the_command_and_ends_with_it(self, centre: DataCentre) -> None:
        client = centre.client
        external = await client.add_external_job("Migration", correlation_id="migration-1")
        await client.end_external_step((await client.add_external_step(external.job_id, "Asking the user")).step_id)
        job = await centre.run(
            "AddDisk", {"disk_id": "d-2", "size_mb": 1, "host_id": "host-1"}, external_job_id=external.job_id
        )
        assert (job.status, job.visible, job.external) == (FINISHED, False, False)
        tree = await client.get_job(external.job_id)
        shown = tree.steps[1]
        assert (tree.status, tree.progress) == (STARTED, 99)
        assert (shown.step_type, shown.description, shown.status) == ("AddDisk", job.description, FINISHED)
        assert (shown.number, shown.command_id, shown.progress) == (1, job.flow_command_id, 100)
        assert (await client.get_job_of_command(shown.command_id)).job_id == job.job_id
        assert (await client.end_external_job(external.job_id)).status == FINISHED
        assert job.job_id not in {each.job_id async for each in client.list_jobs()}

    async def test_one_that_fails_fails_the_external_job(self, centre: DataCentre) -> None:
        external = await centre.client.add_external_job("Migration")
        await centre.client.add_external_step(external.job_id, "open meanwhile")
        await centre.program("host-1", {"verb": "createVolume", "outcome": "fail"})
        parameters = {"disk_id": "d-3", "size_mb": 1, "host_id": "host-1"}
        job = await centre.run("AddDisk", parameters, external_job_id=external.job_id)
        tree = await centre.client.get_job(external.job_id)
        assert (job.status, tree.status, [step.status for step in tree.steps]) == (FAILED, FAILED, [ABORTED, FAILED])
        assert tree.steps[1].error.message == job.error.message

    async def test_one_that_is_refused_by_its_own_rules_fails_the_external_job(self, centre: DataCentre) -> None:
        external = await centre.client.add_external_job("Migration")
        job = await centre.run("RemoveVm", {"vm_id": "nobody-s"}, external_job_id=external.job_id)
        tree = await centre.client.get_job(external.job_id)
        assert (job.status, tree.status, tree.steps[0].status) == (FAILED, FAILED, FAILED)

    async def test_it_goes_on_when_its_coordinator_dies(self, centre: DataCentre) -> None:
        external = await centre.client.add_external_job("Migration")
        await centre.program("host-1", {"verb": "createVolume", "work_ms": 1000})
        parameters = {"disk_id": "d-4", "size_mb": 1, "host_id": "host-1"}
        job = await centre.client.run_command("AddDisk", parameters, external_job_id=external.job_id)
        await centre.until_running(job)
        for coordinator in centre.stack.coordinators:
            await centre.stack.kill(coordinator)
        assert (await centre.ended(job)).status == FINISHED
        tree = await centre.client.get_job(external.job_id)
        assert (tree.status, tree.steps[0].status) == (STARTED, FINISHED)
        await centre.client.end_external_job(external.job_id)

    async def test_an_external_job_that_ends_before_leaves_the_command_alone(self, centre: DataCentre) -> None:
        external = await centre.client.add_external_job("Migration")
        await centre.program("host-1", {"verb": "createVolume", "work_ms": 2000})
        parameters = {"disk_id": "d-5", "size_mb": 1, "host_id": "host-1"}
        job = await centre.client.run_command("AddDisk", parameters, external_job_id=external.job_id)
        await centre.until_running(job)
        with pytest.raises(FailedPrecondition) as refused:
            await centre.client.end_external_job(external.job_id)
        assert refused.value.reason == "STEPS_OPEN"
        shown = (await centre.client.get_job(external.job_id)).steps[0]
        with pytest.raises(FailedPrecondition) as refused:
            await centre.client.end_external_step(shown.step_id)
        assert refused.value.reason == "STEP_OF_COMMAND"
        assert (await centre.client.end_external_job(external.job_id, force=True)).status == ABORTED
        assert (await centre.ended(job)).status == FINISHED
        assert (await centre.client.get_job(external.job_id)).steps[0].status == ABORTED
        await centre.client.clear_external_job(external.job_id)

    async def test_only_an_open_external_job_takes_one_and_else_nothing_is_stored(self, centre: DataCentre) -> None:
        over = await centre.client.add_external_job("over")
        await centre.client.end_external_job(over.job_id)
        ours = await centre.run("AddDisk", {"disk_id": "d-6", "size_mb": 1, "host_id": "host-1"})
        parameters = {"disk_id": "d-7", "size_mb": 1, "host_id": "host-1"}
        await centre.until_rest()
        before = await centre.stored()
        for job_id, reason in (
            (over.job_id, "JOB_ENDED"),
            (ours.job_id, "NOT_EXTERNAL"),
            (over.job_id.replace("0", "1"), "JOB_NOT_FOUND"),
        ):
            with pytest.raises(WaybillError) as refused:
                await centre.client.run_command("AddDisk", parameters, external_job_id=job_id)
            assert refused.value.reason == reason
        assert await centre.stored() == before
        assert await centre.effects("d-7") == {}


async def test_a_script_reports_its_work_by_the_program(centre: DataCentre) -> None:
    add = ("add", "Nightly backup", "--type", "Backup", "--entity", "VM/vm-1", "--heartbeat", "600", "--keep")
    job = await told(centre, *add, "--correlation-id", "from-a-script")
    assert (job["status"], job["command_type"], job["external"]) == ("STARTED", "Backup", True)
    step = await told(centre, "step", job["job_id"], "Copying", "--external-id", "copy-1")
    below = await told(centre, "step", job["job_id"], "Disk 1", "--below", step["step_id"], "--type", "COPY")
    assert (await told(centre, "heartbeat", job["job_id"][-12:]))["status"] == "STARTED"
    early = await waybill(centre, "end", job["job_id"])
    assert (early.exit_code, "STEPS_OPEN" in early.output, "--force" in early.output) == (4, True, True)
    for each in (below, step):
        assert (await told(centre, "end-step", each["step_id"]))["status"] == "FINISHED"
    assert (await told(centre, "end", job["job_id"]))["status"] == "FINISHED"
    assert (await told(centre, "clear", job["job_id"]))["job_id"] == job["job_id"]
    malformed = await waybill(centre, "add", "x", "--entity", "nothing")
    assert (malformed.exit_code, "TYPE/ID" in malformed.output) == (2, True)
    failing = await told(centre, "add", "fails")
    last = await told(centre, "step", failing["job_id"], "last")
    assert (await told(centre, "end-step", last["step_id"], "--failed", "no space"))["status"] == "FAILED"


async def waybill(centre: DataCentre, *words: str) -> Result:
    client = centre.client
    program = ["--coordinator", client.coordinator_address, "--jobstore", client.jobstore_address, "external", *words]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, program))


async def told(centre: DataCentre, *words: str) -> Any:
    """What the program tells other programs."""
    ended = await waybill(centre, *words, "-o", "json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)
