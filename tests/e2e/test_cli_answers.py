"""What the program says and how it ends, with scripted services at the far end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from tests.integration.waybill_cli.scripted import FarEnd, waybill
from tests.integration.waybill_client.far_end import Context, refuse
from typer.testing import CliRunner

from waybill.v1.coordinator_pb2 import CommandType, RunCommandRequest
from waybill.v1.jobs_pb2 import EntityType, ExecutionStatus, Job, Step
from waybill.v1.jobstore_pb2 import DeleteJobsResponse, JobChangeEvent, Violation, WatchJobsRequest, WatchJobsResponse
from waybill_cli.__main__ import app
from waybill_client.words import plain, struct

JOB_ID = "01936f2e-7b1c-7d55-8f7e-000000000001"
SCHEMA = {
    "properties": {"disk_id": {"type": "string"}, "size_mb": {"type": "integer", "description": "its size"}},
    "required": ["disk_id"],
}


@pytest.fixture
def far_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    far_end = FarEnd()
    far_end.coordinator.command_types = [
        CommandType(name="AddDisk", version=1, description="Adds a disk", parameters_schema=struct(SCHEMA))
    ]
    far_end.start()
    monkeypatch.setenv("WAYBILL_COORDINATOR", far_end.address)
    monkeypatch.setenv("WAYBILL_JOBSTORE", far_end.address)
    yield far_end
    far_end.stop()


def a_job(status: str = "STARTED", revision: int = 1, *steps: Step) -> Job:
    return Job(
        job_id=JOB_ID,
        command_type="AddDisk",
        description="Adding disk d1",
        status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"),
        revision=revision,
        steps=steps,
    )


def answers_with(far_end: FarEnd, job: Job) -> None:
    async def answer(request: RunCommandRequest, context: Context) -> Job:
        far_end.jobstore.jobs[job.job_id] = job
        return job

    far_end.coordinator.answer = answer


def changes_to(far_end: FarEnd, *jobs: Job) -> None:
    async def stream(request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        yield WatchJobsResponse(revision=1, snapshot_done=True)
        for job in jobs:
            yield WatchJobsResponse(changes=[JobChangeEvent(upsert=job)], revision=job.revision)
        await asyncio.Event().wait()

    far_end.jobstore.streams.append(stream)


def test_a_command_is_sent_with_typed_parameters(far_end: FarEnd) -> None:
    answers_with(far_end, a_job())
    ended = waybill("run", "AddDisk", "disk_id=7", "size_mb=64", "--correlation-id", "c-1", "--priority", "2")
    request = far_end.coordinator.requests[0]
    assert ended.exit_code == 0
    assert plain(request.parameters) == {"disk_id": "7", "size_mb": 64}
    assert (request.correlation_id, request.priority) == ("c-1", 2)
    assert "Adding disk d1" in ended.stdout
    assert f"jobs watch {JOB_ID}" in ended.stderr


def test_a_wait_ends_with_the_job(far_end: FarEnd) -> None:
    answers_with(far_end, a_job())
    changes_to(far_end, a_job("FINISHED", 2))
    ended = waybill("run", "AddDisk", "disk_id=d1", "--wait", "-o", "json")
    assert (ended.exit_code, json.loads(ended.stdout)["status"]) == (0, "FINISHED")


def test_a_job_that_fails_is_exit_code_1(far_end: FarEnd) -> None:
    answers_with(far_end, a_job())
    changes_to(far_end, a_job("FAILED", 2))
    assert waybill("run", "AddDisk", "disk_id=d1", "--wait").exit_code == 1


def test_a_command_that_was_refused_as_a_job_is_exit_code_1(far_end: FarEnd) -> None:
    answers_with(far_end, a_job("FAILED"))
    assert waybill("run", "AddDisk", "disk_id=d1").exit_code == 1


def test_in_a_pipe_a_watch_tells_each_change_in_a_line(far_end: FarEnd) -> None:
    step = Step(step_id="s", step_type="EXECUTION", status=ExecutionStatus.EXECUTION_STATUS_STARTED, progress=50)
    answers_with(far_end, a_job())
    changes_to(far_end, a_job("STARTED", 2, step), a_job("FINISHED", 3))
    ended = waybill("run", "AddDisk", "disk_id=d1", "--watch")
    assert [line.split(maxsplit=1)[1] for line in ended.stdout.splitlines()] == [
        "STARTED     0%  Adding disk d1",
        "STARTED    50%  EXECUTION",
        "FINISHED    0%  Adding disk d1",
    ]


def test_a_watch_in_json_is_one_job_a_line(far_end: FarEnd) -> None:
    answers_with(far_end, a_job())
    changes_to(far_end, a_job("FINISHED", 2))
    ended = waybill("run", "AddDisk", "disk_id=d1", "--watch", "-o", "json")
    assert [json.loads(line)["status"] for line in ended.stdout.splitlines()] == ["STARTED", "FINISHED"]


def test_a_value_that_does_not_fit_is_exit_code_2_and_nothing_is_sent(far_end: FarEnd) -> None:
    ended = waybill("run", "AddDisk", "size_mb=big")
    assert ended.exit_code == 2
    assert "parameter 'size_mb' cannot be 'big'" in ended.stderr
    assert "it takes integer" in ended.stderr
    assert far_end.coordinator.requests == []


def test_what_a_service_refuses_as_malformed_is_exit_code_2(far_end: FarEnd) -> None:
    async def refused(request: RunCommandRequest, context: Context) -> Job:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "CORRELATION_ID_INVALID", "51 characters")
        raise AssertionError

    far_end.coordinator.answer = refused
    ended = waybill("run", "AddDisk", "disk_id=d1")
    assert ended.exit_code == 2
    assert "51 characters (CORRELATION_ID_INVALID)" in ended.stderr
    assert "made-by-the-service" in ended.stderr


def test_what_is_not_there_is_exit_code_4_with_a_remedy(far_end: FarEnd) -> None:
    ended = waybill("jobs", "get", JOB_ID)
    assert ended.exit_code == 4
    assert "waybill jobs list" in ended.stderr


def test_what_cannot_be_reached_is_exit_code_3_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_JOBSTORE", "127.0.0.1:1")
    ended = waybill("jobs", "list")
    assert ended.exit_code == 3
    assert "cannot reach the jobstore at 127.0.0.1:1" in ended.stderr
    assert "waybill up" in ended.stderr
    assert "Traceback" not in ended.output


def test_what_may_have_been_accepted_says_how_to_repeat_it_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = waybill("--coordinator", "127.0.0.1:1", "run", "AddDisk", "--request-id", "r-1")
    assert ended.exit_code == 3
    assert "--request-id r-1 is safe" in ended.stderr


def test_the_filter_is_made_of_the_options(far_end: FarEnd) -> None:
    waybill("jobs", "list", "--status", "failed", "--entity", "VM/vm-1", "--filter", "owner != ann")
    assert far_end.jobstore.filters == ['status = "FAILED" AND entity = "VM/vm-1" AND owner != ann']


def test_a_limit_is_kept(far_end: FarEnd) -> None:
    far_end.jobstore.jobs = {str(number): Job(job_id=str(number)) for number in range(9)}
    ended = waybill("jobs", "list", "--limit", "2", "-o", "json")
    assert [job["job_id"] for job in json.loads(ended.stdout)] == ["0", "1"]


def test_the_end_of_a_job_id_will_do(far_end: FarEnd) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job("FINISHED")
    assert JOB_ID in waybill("jobs", "get", "0001").stdout


def test_a_part_of_an_id_that_two_jobs_share_is_refused(far_end: FarEnd) -> None:
    far_end.jobstore.jobs = {"ab1": Job(job_id="ab1"), "ab2": Job(job_id="ab2")}
    ended = waybill("jobs", "get", "ab")
    assert ended.exit_code == 2
    assert "2 jobs are like 'ab'" in ended.stderr


def test_a_text_that_can_be_no_part_of_an_id_is_not_looked_up(far_end: FarEnd) -> None:
    ended = waybill("jobs", "get", "no-such*")
    assert ended.exit_code == 4
    assert "no job like 'no-such*'" in ended.stderr
    assert far_end.jobstore.filters == []


def test_jobs_are_deleted_by_name(far_end: FarEnd) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job("FINISHED")
    other = JOB_ID.replace("1", "2")
    assert waybill("jobs", "delete", "0001", other).exit_code == 0
    assert far_end.jobstore.deleted == [JOB_ID, other]


def test_old_jobs_are_deleted_until_all_are(far_end: FarEnd) -> None:
    far_end.jobstore.deletions = [
        DeleteJobsResponse(deleted=40, kept=1),
        DeleteJobsResponse(deleted=2, kept=3, complete=True),
    ]
    before = datetime.now(UTC)
    ended = waybill("jobs", "delete", "--older-than", "7d")
    assert ended.exit_code == 0
    assert "deleted 42 jobs" in ended.stderr
    assert "3 older ones stay" in ended.stderr
    asked = [request.older_than.ToDatetime(UTC) for request in far_end.jobstore.asked_to_delete]
    assert asked[0] == asked[1]
    assert timedelta() <= asked[0] + timedelta(days=7) - before < timedelta(minutes=1)


@pytest.mark.parametrize(
    "words", [(), ("--older-than", "7"), ("--older-than", "-1d"), ("--older-than", ""), ("ab", "--older-than", "1d")]
)
def test_what_is_to_be_deleted_must_be_said_in_one_way(far_end: FarEnd, words: tuple[str, ...]) -> None:
    assert waybill("jobs", "delete", *words).exit_code == 2
    assert far_end.jobstore.asked_to_delete == []


def test_a_cancel_goes_to_the_coordinator_with_its_reason(far_end: FarEnd) -> None:
    ended = waybill("jobs", "cancel", JOB_ID, "--reason", "not now")
    assert ended.exit_code == 0
    assert [(each.job_id, each.reason) for each in far_end.coordinator.cancelled] == [(JOB_ID, "not now")]


def test_a_file_of_entities_is_loaded(far_end: FarEnd, tmp_path: Path) -> None:
    file = tmp_path / "vms.yaml"
    file.write_text("- {entity_type: VM, entity_id: vm-1, declared: {memory_mb: 1}}")
    ended = waybill("entities", "load", str(file), "-o", "json")
    assert ended.exit_code == 0
    assert [each.entity_type for each in far_end.jobstore.entities] == [EntityType.ENTITY_TYPE_VM]


def test_a_command_type_is_described_with_its_parameters(far_end: FarEnd) -> None:
    ended = waybill("commands", "describe", "AddDisk")
    assert "size_mb" in ended.stdout
    assert "its size" in ended.stdout
    assert "waybill run AddDisk disk_id=… --watch" in ended.stdout


def test_an_unknown_command_type_is_refused_with_a_near_one(far_end: FarEnd) -> None:
    ended = waybill("commands", "describe", "AddDsk")
    assert ended.exit_code == 4
    assert "did you mean AddDisk?" in ended.stderr


def test_a_check_that_finds_something_is_exit_code_1(far_end: FarEnd) -> None:
    assert waybill("check").exit_code == 0
    far_end.jobstore.violations = [Violation(rule="END_TIME_MISSING", job_id=JOB_ID, message="no end")]
    ended = waybill("check")
    assert ended.exit_code == 1
    assert "END_TIME_MISSING" in ended.stdout


def hears_ctrl_c() -> None:
    """What a terminal gives a program; one whose tests run in the background would inherit a SIGINT that is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_return(far_end: FarEnd) -> None:
    answers_with(far_end, a_job())
    changes_to(far_end)
    command = [sys.executable, "-m", "waybill_cli", "run", "AddDisk", "disk_id=d1", "--watch"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=hears_ctrl_c,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert "STARTED" in program.stdout.readline()
        program.send_signal(signal.SIGINT)
        said = program.stderr.read()
        assert program.wait(10) == 130
    assert f"waybill jobs watch {JOB_ID}" in said
    assert "Traceback" not in said
    assert far_end.coordinator.cancelled == []


def test_the_shell_is_offered_command_types_and_parameters(far_end: FarEnd) -> None:
    def offered(line: str, position: int) -> str:
        environment = {"_WAYBILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(position)}
        return CliRunner().invoke(app, [], env=environment, prog_name="waybill").stdout

    assert "AddDisk" in offered("waybill run Add", 2)
    assert "disk_id=" in offered("waybill run AddDisk d", 3)
