"""The program against the real services, command by command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.datacentre import violations
from typer.testing import CliRunner, Result

from waybill_cli.__main__ import app
from waybill_client import HostClient


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    data = str(tmp_path_factory.mktemp("up"))
    command = [sys.executable, "-m", "waybill_cli", "up", "--json", "--ports", "auto", "--data", data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as up:
        assert up.stdout is not None
        yield json.loads(up.stdout.readline())
        up.terminate()
        assert up.wait(30) == 0


@pytest.fixture(autouse=True)
def _at(described: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WAYBILL_COORDINATOR", described["coordinators"][0]["address"])
    monkeypatch.setenv("WAYBILL_JOBSTORE", described["jobstores"][0]["address"])
    yield
    assert violations(described["jobstores"][0]["address"]) == []


def waybill(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def told(*words: str) -> Any:
    """What a command tells programs."""
    ended = waybill(*words, "-o", "json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def declare(folder: Path, *entities: dict[str, Any]) -> None:
    file = folder / "entities.yaml"
    file.write_text(yaml.safe_dump(list(entities)))
    assert waybill("entities", "load", str(file)).exit_code == 0


def test_a_command_runs_to_its_end_and_is_found_again() -> None:
    job = told(
        "run", "AddDisk", "disk_id=c-1", "size_mb=4", "host_id=host-1", "--correlation-id", "first-try", "--wait"
    )
    assert (job["status"], job["progress"]) == ("FINISHED", 100)
    assert [each["job_id"] for each in told("jobs", "list", "--correlation-id", "first-try")] == [job["job_id"]]
    assert told("jobs", "get", job["job_id"])["steps"][0]["step_type"] == "VALIDATION"
    assert told("jobs", "get", job["job_id"][-12:])["job_id"] == job["job_id"]
    (task,) = told("jobs", "tasks", job["job_id"])
    assert (task["verb"], task["host_id"], task["result"]) == ("createVolume", "host-1", "SUCCESS")
    events = told("events", "--job", job["job_id"])
    assert {event["correlation_id"] for event in events} == {"first-try"}
    assert [event["event_type"] for event in (events[0], events[-1])] == ["JOB_STARTED", "JOB_ENDED"]


def test_all_that_bears_a_correlation_id_is_found_also_by_a_job_of_it() -> None:
    job = told("run", "AddDisk", "disk_id=t-1", "size_mb=4", "host_id=host-2", "--correlation-id", "traced", "--wait")
    trace = told("trace", "traced")
    assert told("trace", job["job_id"]) == trace
    assert trace["job_ids"] == [job["job_id"]]
    assert {each["record"].get("correlation_id") for each in trace["timeline"]} == {"traced"}
    assert {each["kind"] for each in trace["timeline"]} == {"job", "command", "step", "task", "event"}
    (task,) = [each for each in trace["timeline"] if each["kind"] == "task"]
    assert (task["name"], task["where"], task["status"]) == ("createVolume DISK/t-1", "host-2", "SUCCESS")
    times = [each["time"] for each in trace["timeline"]]
    assert times == sorted(times)


def test_a_watch_in_a_pipe_tells_the_story() -> None:
    ended = waybill("run", "AddDisk", "disk_id=c-2", "size_mb=4", "host_id=host-2", "--watch")
    assert ended.exit_code == 0
    assert "CREATE_VOLUME" in ended.stdout
    assert ended.stdout.count("FINISHED  100%  Adding disk c-2") == 1


def test_a_watch_of_an_ended_job_ends_at_once() -> None:
    job = told("run", "AddDisk", "disk_id=c-3", "size_mb=4", "host_id=host-1", "--wait")
    ended = waybill("jobs", "watch", job["job_id"])
    assert ended.exit_code == 0
    assert "FINISHED" in ended.stdout


def test_the_same_request_makes_one_job() -> None:
    words = ("run", "AddDisk", "disk_id=c-4", "size_mb=4", "host_id=host-1", "--request-id", "only-once", "--wait")
    assert told(*words)["job_id"] == told(*words)["job_id"]


def test_a_request_id_with_another_body_is_refused() -> None:
    waybill("run", "AddDisk", "disk_id=c-5", "size_mb=4", "host_id=host-1", "--request-id", "taken")
    ended = waybill("run", "AddDisk", "disk_id=c-6", "size_mb=4", "host_id=host-1", "--request-id", "taken")
    assert ended.exit_code == 4
    assert "REQUEST_ID_REUSED" in ended.stderr


def test_a_validation_shows_what_would_be_done_and_stores_nothing() -> None:
    planned = told("run", "AddDisk", "disk_id=c-7", "size_mb=4", "host_id=host-1", "--validate-only")
    assert [step["step_type"] for step in planned["steps"]] == [
        "VALIDATION",
        "EXECUTION",
        "CREATE_VOLUME",
        "FINALIZATION",
    ]
    assert "DISK/c-7" not in waybill("entities", "list", "DISK").stdout


def test_what_validation_refuses_is_a_failed_job() -> None:
    ended = waybill("run", "RemoveVm", "vm_id=nobody", "--wait")
    assert ended.exit_code == 1
    assert "ENTITY_NOT_FOUND" in ended.stdout


def test_an_unknown_command_is_refused_with_a_remedy() -> None:
    ended = waybill("run", "RemoveEverything", "--params", "{}")
    assert ended.exit_code == 4
    assert "waybill commands list" in ended.stderr


def test_a_correlation_id_that_is_too_long_is_malformed() -> None:
    ended = waybill("run", "AddDisk", "disk_id=c-8", "--correlation-id", "x" * 51)
    assert ended.exit_code == 2
    assert "CORRELATION_ID_INVALID" in ended.stderr


def test_a_parameter_that_is_missing_is_named() -> None:
    ended = waybill("run", "AddDisk", "disk_id=c-9", "host_id=host-1")
    assert ended.exit_code == 2
    assert "size_mb" in ended.stderr


def test_a_vm_lives_and_dies(tmp_path: Path) -> None:
    declare(tmp_path, {"entity_type": "VM", "entity_id": "vm-c", "name": "cli", "declared": {"memory_mb": 64}})
    assert (
        waybill("run", "AddDisk", "disk_id=c-10", "size_mb=4", "host_id=host-1", "vm_id=vm-c", "--wait").exit_code == 0
    )
    assert waybill("run", "RunVm", "vm_id=vm-c", "--wait").exit_code == 0
    assert waybill("run", "RemoveVm", "vm_id=vm-c").exit_code == 1
    assert waybill("run", "StopVm", "vm_id=vm-c", "--wait").exit_code == 0
    assert waybill("run", "RemoveVm", "vm_id=vm-c", "--wait").exit_code == 0
    assert "vm-c" not in waybill("entities", "list", "VM").stdout
    assert "VM/vm-c" not in waybill("locks").stdout


def test_jobs_are_filtered() -> None:
    waybill("run", "AddDisk", "disk_id=c-11", "size_mb=4", "host_id=host-1", "--wait")
    disks = told("jobs", "list", "--type", "AddDisk", "--status", "finished", "--entity", "DISK/c-11")
    assert [job["subjects"][0]["entity_id"] for job in disks] == ["c-11"]


def test_a_filter_that_is_no_good_is_malformed_with_an_example() -> None:
    ended = waybill("jobs", "list", "--filter", "colour = red")
    assert ended.exit_code == 2
    assert "FILTER_INVALID" in ended.stderr
    assert "status = FAILED" in ended.stderr


def test_an_ended_job_cannot_be_cancelled() -> None:
    job = told("run", "AddDisk", "disk_id=c-12", "size_mb=4", "host_id=host-1", "--wait")
    ended = waybill("jobs", "cancel", job["job_id"])
    assert ended.exit_code == 4
    assert "JOB_ENDED" in ended.stderr


# --- many are cancelled ----------------------------------------------------------------------------------------------


def program(host: dict[str, Any], *rules: dict[str, Any]) -> None:
    """Tells a host how its verbs behave from now on."""

    async def work() -> None:
        async with HostClient(host["address"]) as client:
            await client.program(rules)

    asyncio.run(work())


@pytest.fixture
def hanging(described: dict[str, Any]) -> Iterator[Callable[[str], str]]:
    """Begins a job whose task does not end by itself, under a correlation id; returns the job's id."""
    host = described["hosts"][0]
    program(host, {"verb": "createVolume", "outcome": "hang"})

    def begin(name: str) -> str:
        disk = f"disk_id=cancel-{next(numbers)}"
        job = told("run", "AddDisk", disk, "size_mb=4", "host_id=host-1", "--correlation-id", name)
        return str(job["job_id"])

    yield begin
    program(host)
    assert waybill("jobs", "cancel", "--filter", "status = (PENDING OR STARTED)", "--yes", "--wait").exit_code == 0


numbers = count()


def statuses(*job_ids: str) -> list[str]:
    return [told("jobs", "get", job_id)["status"] for job_id in job_ids]


def test_all_that_match_a_filter_are_cancelled_and_no_more(hanging: Callable[[str], str]) -> None:
    meant, spared = [hanging("many-1"), hanging("many-1")], hanging("many-2")
    later = told(
        *("run", "AddDisk", "disk_id=cancel-later", "size_mb=4", "host_id=host-1"),
        *("--correlation-id", "many-1", "--depends-on", spared),
    )["job_id"]
    cancelled = told(
        "jobs", "cancel", "--filter", "correlation_id = many-1", "--reason", "no money left", "--yes", "--wait"
    )
    assert {each["job_id"]: each["status"] for each in cancelled} == dict.fromkeys([*meant, later], "ABORTED")
    assert statuses(*meant, later, spared) == ["ABORTED", "ABORTED", "ABORTED", "STARTED"]
    assert "no money left" in told("jobs", "get", meant[0])["error"]["message"]
    assert told("jobs", "cancel", "--filter", "correlation_id = many-1") == []  # nothing is left to ask about


def test_without_a_terminal_many_are_cancelled_only_by_a_yes(hanging: Callable[[str], str]) -> None:
    jobs = [hanging("unsure"), hanging("unsure")]
    ended = waybill("jobs", "cancel", "--filter", "correlation_id = unsure")
    assert ended.exit_code == 2
    assert "2 jobs match" in ended.stderr
    assert "--yes" in ended.stderr
    assert statuses(*jobs) == ["STARTED", "STARTED"]


def at_a_terminal(typed: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the program for somebody who types this, and whose output goes to a file."""
    terminal, programs_side = os.openpty()
    try:
        os.write(terminal, typed.encode())
        program = [sys.executable, "-m", "waybill_cli", *words]
        return subprocess.run(
            program,
            stdin=programs_side,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )
    finally:
        os.close(terminal)
        os.close(programs_side)


@pytest.mark.parametrize("typed", ["n\n", "\n", "\x04"])
def test_on_a_terminal_nothing_is_cancelled_unless_it_is_meant(hanging: Callable[[str], str], typed: str) -> None:
    jobs = [hanging("asked"), hanging("asked")]
    ended = at_a_terminal(typed, "jobs", "cancel", "--filter", "correlation_id = asked AND status = STARTED")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "cancel 2 jobs? [y/N]: " in ended.stderr
    assert "nothing was done" in ended.stderr
    assert statuses(*jobs) == ["STARTED", "STARTED"]


def test_ctrl_c_at_the_question_ends_the_program_at_once(hanging: Callable[[str], str]) -> None:
    job = hanging("left")
    terminal, programs_side = os.openpty()
    program = [sys.executable, "-m", "waybill_cli", "jobs", "cancel", "--filter", "correlation_id = left"]
    try:
        with subprocess.Popen(program, stdin=programs_side, stderr=subprocess.PIPE) as asked:
            assert asked.stderr is not None
            while asked.stderr.read(1) not in (b":", b""):
                pass
            asked.send_signal(signal.SIGINT)
            assert asked.wait(30) == 130
    finally:
        os.close(terminal)
        os.close(programs_side)
    assert statuses(job) == ["STARTED"]


def test_on_a_terminal_all_are_cancelled_if_it_is_meant(hanging: Callable[[str], str]) -> None:
    jobs = [hanging("meant"), hanging("meant")]
    ended = at_a_terminal("y\n", "jobs", "cancel", "--filter", "correlation_id = meant", "--wait", "-o", "yaml")
    assert ended.returncode == 0, ended.stderr
    assert "cancel 2 jobs?" in ended.stderr
    assert {each["job_id"]: each["status"] for each in yaml.safe_load(ended.stdout)} == dict.fromkeys(jobs, "ABORTED")


def test_who_refuses_is_named_and_the_others_are_cancelled(
    hanging: Callable[[str], str], described: dict[str, Any]
) -> None:
    willing = hanging("refusing")
    told("run", "AddDisk", "disk_id=stays", "size_mb=4", "host_id=host-2", "--wait")
    program(described["hosts"][1], {"verb": "deleteImage", "work_ms": 2000})
    removal = told("run", "RemoveDisk", "disk_id=stays", "--correlation-id", "refusing")["job_id"]
    ended = waybill("jobs", "cancel", "--filter", "correlation_id = refusing", "--yes", "--wait", "-o", "json")
    assert ended.exit_code == 4
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [removal]
    assert {each["job_id"]: each["status"] for each in json.loads(ended.stdout)} == {
        willing: "ABORTED",
        removal: "STARTED",
    }
    program(described["hosts"][1])
    assert waybill("jobs", "watch", removal).exit_code == 0


@pytest.mark.parametrize("filter", ["colour = red", " ", "correlation_id = spared OR", '"', "(", "correlation_id ="])
def test_by_a_filter_that_is_no_good_nothing_is_cancelled(hanging: Callable[[str], str], filter: str) -> None:
    job = hanging("spared")
    ended = waybill("jobs", "cancel", "--filter", filter, "--yes")
    assert ended.exit_code == 2, ended.output
    assert statuses(job) == ["STARTED"]


def test_one_is_named_or_a_filter_is_given_and_not_both(hanging: Callable[[str], str]) -> None:
    job = hanging("which")
    for words in ((), (job, "--filter", "correlation_id = which")):
        ended = waybill("jobs", "cancel", *words, "--yes")
        assert ended.exit_code == 2
        assert "which job?" in ended.stderr
    assert statuses(job) == ["STARTED"]


# --- what there is ---------------------------------------------------------------------------------------------------


def test_command_types_are_listed_and_described() -> None:
    listed = waybill("commands", "list").stdout
    assert all(name in listed for name in ("AddDisk", "RunVm", "StopVm", "RemoveVm"))
    assert "size_mb" in waybill("commands", "describe", "AddDisk").stdout


def test_hosts_tell_how_they_are_and_what_they_have() -> None:
    waybill("run", "AddDisk", "disk_id=c-13", "size_mb=4", "host_id=host-2", "--wait")
    assert [(host["entity_id"], host["agent"]["driver"]) for host in told("hosts")] == [
        ("host-1", "sim"),
        ("host-2", "sim"),
    ]
    things = {thing["object_id"]: thing for thing in told("hosts", "--objects")}
    assert (things["c-13"]["host_id"], things["c-13"]["state"]) == ("host-2", "LEGAL")


def test_what_entities_list_can_be_loaded_again(tmp_path: Path) -> None:
    declare(tmp_path, {"entity_type": "CLUSTER", "entity_id": "cl-1", "name": "one", "declared": {"hosts": ["host-1"]}})
    file = tmp_path / "listed.yaml"
    file.write_text(waybill("entities", "list", "CLUSTER", "-o", "yaml").stdout)
    assert waybill("entities", "load", str(file)).exit_code == 0
    (entity,) = told("entities", "list", "CLUSTER")
    assert (entity["version"], entity["declared"]) == (2, {"hosts": ["host-1"]})


def test_the_store_is_consistent() -> None:
    assert waybill("check").exit_code == 0


def test_jobs_are_found_by_what_filters_can_say() -> None:
    job = told("run", "AddDisk", "disk_id=f-1", "size_mb=4", "host_id=host-1", "--correlation-id", "found-1", "--wait")
    for filter in (
        'entity:"DISK/f-*" AND status = (FINISHED OR FAILED)',
        "correlation_id = found-1 AND host = host-1 AND -has(error)",
        'correlation_id:"found*" type:AddDisk duration < 1h',
        '"f-1" AND NOT create_time < 2020-01-01T00:00:00Z',
    ):
        assert [each["job_id"] for each in told("jobs", "list", "--filter", filter)] == [job["job_id"]], filter
    refused = waybill("jobs", "list", "--filter", "status = FINISHED AND colour = red")
    assert refused.exit_code == 2
    assert "at character 23: there is no field colour; there are job_id, status," in refused.stderr
    assert "`waybill jobs fields` shows what can be asked" in refused.stderr


def test_the_fields_of_filters_are_shown() -> None:
    assert {"name": "command_type", "alias": "type"}.items() <= told("jobs", "fields")[2].items()
    assert "severity" in waybill("jobs", "fields", "--of", "events").stdout


def test_an_ended_job_is_deleted() -> None:
    job_id = told("run", "AddDisk", "disk_id=gone", "size_mb=4", "host_id=host-1", "--wait")["job_id"]
    while not all(task["cleared"] for task in told("jobs", "tasks", job_id)):
        pass  # the host is asked to forget them once the job has ended
    assert waybill("jobs", "delete", job_id).exit_code == 0
    again = waybill("jobs", "delete", job_id)
    assert again.exit_code == 4
    assert "JOB_NOT_FOUND" in again.stderr
    assert "deleted 0 jobs" in waybill("jobs", "delete", "--older-than", "9d").stderr
