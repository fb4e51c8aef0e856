"""What the program sends for those who control jobs, with scripted services at the far end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.waybill_cli.scripted import FarEnd, waybill

from waybill.v1.coordinator_pb2 import (
    MULTIPLE_POLICY_IN_SEQUENCE,
    ForceEndJobRequest,
    RestartJobRequest,
    SetPriorityRequest,
)
from waybill.v1.coordinator_pb2 import StopTasksRequest as Stop
from waybill.v1.jobs_pb2 import DependencyPolicy

JOB_ID = "01936f2e-7b1c-7d55-8f7e-000000000001"
TASK_ID = "01936f2e-7b1c-7d55-8f7e-000000000002"


@pytest.fixture
def far_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    far_end = FarEnd()
    far_end.start()
    monkeypatch.setenv("WAYBILL_COORDINATOR", far_end.address)
    monkeypatch.setenv("WAYBILL_JOBSTORE", far_end.address)
    yield far_end
    far_end.stop()


def test_what_a_job_depends_on_is_sent_with_what_to_do_after_a_failure(far_end: FarEnd) -> None:
    ended = waybill("run", "AddDisk", "--depends-on", JOB_ID, "--on-failure", "run")
    assert ended.exit_code == 0, ended.output
    [request] = far_end.coordinator.requests
    assert list(request.depends_on) == [JOB_ID]
    assert request.dependency_policy == DependencyPolicy.DEPENDENCY_POLICY_RUN


def test_several_commands_are_read_from_a_file(far_end: FarEnd, tmp_path: Path) -> None:
    file = tmp_path / "commands.json"
    commands = [{"command_type": "AddDisk", "parameters": {"disk_id": "d"}, "request_id": "r"}, {"command_type": "B"}]
    file.write_text(json.dumps(commands))
    ended = waybill("run-many", str(file), "--policy", "in-sequence", "--correlation-id", "c-1")
    assert ended.exit_code == 0, ended.output
    [request] = far_end.coordinator.together
    assert request.policy == MULTIPLE_POLICY_IN_SEQUENCE
    assert [(each.command_type, each.correlation_id) for each in request.commands] == [("AddDisk", "c-1"), ("B", "c-1")]
    assert request.commands[0].request_id == "r"
    assert request.commands[1].request_id != ""


def test_which_of_several_was_refused_is_said(far_end: FarEnd, tmp_path: Path) -> None:
    file = tmp_path / "commands.json"
    file.write_text('[{"command_type": "AddDisk"}, {"command_type": "Unknown"}]')
    ended = waybill("run-many", str(file))
    assert ended.exit_code == 4
    assert "command 1 (Unknown): COMMAND_TYPE_UNKNOWN" in ended.output


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "no JSON"),
        ("{}", "no JSON array"),
        ("[{}]", "command 0 has no command_type"),
        ('[{"command_type": "A", "paramters": {}}]', "command 0 has paramters"),
        ('[{"command_type": "A", "parameters": 7}]', "command 0 cannot be sent"),
    ],
)
def test_a_file_that_cannot_be_read_is_complained_of(
    far_end: FarEnd, tmp_path: Path, content: str, complaint: str
) -> None:
    file = tmp_path / "commands.json"
    file.write_text(content)
    ended = waybill("run-many", str(file))
    assert ended.exit_code == 2
    assert complaint in ended.output
    assert far_end.coordinator.together == []


def test_wishes_about_a_job_are_sent_with_their_reasons(far_end: FarEnd) -> None:
    for arguments in (
        ("priority", JOB_ID, "7", "--reason", "urgent"),
        ("stop-tasks", JOB_ID, TASK_ID, "--reason", "slow"),
        ("force-end", JOB_ID, "--reason", "stuck", "--yes"),
    ):
        ended = waybill("jobs", *arguments)
        assert ended.exit_code == 0, ended.output
    assert far_end.coordinator.wishes == [
        SetPriorityRequest(job_id=JOB_ID, priority=7, reason="urgent"),
        Stop(job_id=JOB_ID, task_ids=[TASK_ID], reason="slow"),
        ForceEndJobRequest(job_id=JOB_ID, reason="stuck"),
    ]


def test_nothing_is_ended_by_force_without_a_reason_and_a_yes(far_end: FarEnd) -> None:
    assert waybill("jobs", "force-end", JOB_ID, "--yes").exit_code == 2
    assert waybill("jobs", "force-end", JOB_ID, "--reason", "stuck").exit_code != 0
    assert far_end.coordinator.wishes == []


def test_a_restart_may_only_be_shown(far_end: FarEnd) -> None:
    ended = waybill("jobs", "restart", JOB_ID, "--reason", "mended", "--validate-only")
    assert ended.exit_code == 0, ended.output
    assert far_end.coordinator.wishes == [RestartJobRequest(job_id=JOB_ID, reason="mended", validate_only=True)]
    waybill("jobs", "restart", JOB_ID)
    request = far_end.coordinator.wishes[1]
    assert isinstance(request, RestartJobRequest)
    assert request.request_id != ""
