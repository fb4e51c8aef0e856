"""The timeline: its order, its words, and how it fits a window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.rpc.status_pb2 import Status
from rich.console import Console

from waybill.v1.jobs_pb2 import (
    Command,
    CommandStatus,
    EntityType,
    Event,
    ExecutionStatus,
    HostTask,
    HostTaskKind,
    Job,
    Lock,
    Severity,
    Step,
    Subject,
    TaskResult,
    TaskState,
)
from waybill_cli.things import (
    Thing,
    began_at,
    in_order,
    of_command,
    of_event,
    of_job,
    of_lock,
    of_step,
    of_task,
    thing_record,
)
from waybill_cli.timeline import Timeline, exact_word, show_lines
from waybill_client.words import struct, timestamp

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DISK = Subject(entity_type=EntityType.ENTITY_TYPE_DISK, entity_id="d1")


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def a_job(status: str = "FINISHED", error: str = "") -> Job:
    return Job(
        job_id="j",
        command_type="RemoveVm",
        description="Removing VM web",
        status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"),
        create_time=timestamp(NOON),
        end_time=timestamp(at(3)),
        error=an_error(error),
    )


def a_task(result: str = "SUCCESS", error: str = "", kind: str = "TASK") -> HostTask:
    return HostTask(
        task_id="t",
        job_id="j",
        kind=HostTaskKind.Value(f"HOST_TASK_KIND_{kind}"),
        verb="" if kind == "WAIT" else "deleteImage",
        host_id="" if kind == "WAIT" else "host-1",
        entity=DISK,
        attempt=1,
        state=TaskState.TASK_STATE_FINISHED,
        result=TaskResult.Value(f"TASK_RESULT_{result}"),
        create_time=timestamp(at(1)),
        end_time=timestamp(at(2.25)),
        error=an_error(error),
        span_id="5" * 16,
    )


def an_event(severity: str = "NORMAL", message: str = "disk d1 is ILLEGAL") -> Event:
    return Event(
        event_id="e",
        time=timestamp(at(2)),
        event_type="DISK_ILLEGAL",
        severity=Severity.Value(f"SEVERITY_{severity}"),
        message=message,
    )


def an_error(message: str) -> Status | None:
    return Status(code=grpc.StatusCode.INTERNAL.value[0], message=message) if message else None


def lines(things: Sequence[Thing], width: int, *, ids: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(Timeline(things, at(10), ids=ids), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_things_come_by_time_and_the_whole_before_its_parts() -> None:
    pending = Step(step_id="s", step_type="FINALIZATION", status=ExecutionStatus.EXECUTION_STATUS_PENDING)
    started = Event(event_id="e", time=timestamp(NOON), event_type="JOB_STARTED")
    things = in_order([of_step(pending, {}), of_task(a_task()), of_event(started), of_job(a_job())])
    assert [thing.kind for thing in things] == ["job", "event", "task", "step"]


def test_what_was_skipped_stands_where_that_was_decided() -> None:
    step = Step(status=ExecutionStatus.EXECUTION_STATUS_SKIPPED, end_time=timestamp(at(4)))
    thing = of_step(step, {})
    assert (thing.time, thing.seconds(at(9))) == (at(4), None)


def test_a_step_is_where_its_task_is() -> None:
    step = Step(step_type="DELETE_IMAGE", external_id="t")
    assert of_step(step, {"t": "host-2"}).where == "host-2"
    assert of_step(step, {}).where == "coordinator"


def test_a_command_is_its_type_and_parameters() -> None:
    command = Command(
        command_type="RemoveImage",
        parameters=struct({"disk_id": "d1", "force": "", "size_mb": 4}),
        status=CommandStatus.COMMAND_STATUS_ACTIVE,
        create_time=timestamp(NOON),
    )
    thing = of_command(command)
    assert (thing.name, thing.status) == ("RemoveImage disk_id=d1 size_mb=4", "ACTIVE")
    assert (thing.seconds(), thing.seconds(at(1.5))) == (None, 1.5)


@pytest.mark.parametrize("kind", ["TASK", "CALL"])
def test_tasks_and_calls_are_a_verb_on_an_entity(kind: str) -> None:
    thing = of_task(a_task(kind=kind))
    assert (thing.kind, thing.name, thing.where) == (kind.lower(), "deleteImage DISK/d1", "host-1")


def test_a_wait_says_what_it_waits_for() -> None:
    task = a_task(kind="WAIT")
    assert (of_task(task).kind, of_task(task).name) == ("wait", "DISK/d1")
    task.arguments.update({"until": {"state": ["UP", "PAUSED"]}, "fails_if": {"state": ["DOWN"]}})
    assert of_task(task).name == "DISK/d1 until state UP or PAUSED"


def test_a_later_attempt_says_so() -> None:
    task = a_task()
    task.attempt = 2
    assert of_task(task).name == "attempt 2: deleteImage DISK/d1"


def test_a_lock_is_held() -> None:
    lock = Lock(entity_type=EntityType.ENTITY_TYPE_VM, entity_id="vm-1", exclusive=True, create_time=timestamp(NOON))
    thing = of_lock(lock)
    assert (thing.name, thing.status, thing.seconds()) == ("exclusive VM/vm-1", "HELD", None)


def test_an_event_that_somebody_should_look_at_says_so_as_an_error() -> None:
    assert (of_event(an_event()).status, of_event(an_event()).error) == ("", "")
    alarming = of_event(an_event("ALERT"))
    assert (alarming.name, alarming.status, alarming.error) == ("DISK_ILLEGAL", "ALERT", "disk d1 is ILLEGAL")


def test_a_line_tells_what_where_how_and_how_long() -> None:
    assert lines([of_job(a_job()), of_task(a_task())], 75) == [
        "AFTER    KIND    WHAT                       WHERE        STATUS      TOOK",
        "+0.000s  ✓ job   RemoveVm  Removing VM web  coordinator  FINISHED  3.000s",
        "+1.000s  ✓ task  deleteImage DISK/d1        host-1       SUCCESS   1.250s",
    ]


def test_the_wider_the_window_the_more_columns() -> None:
    things = [of_job(a_job()), of_task(a_task())]
    headings = [lines(things, width)[0].split() for width in (80, 100, 160)]
    assert headings[0][0] == "AFTER"
    assert headings[1][0] == "TIME"
    assert headings[2][-1] == "ID"


def test_in_a_narrow_window_names_are_cut_and_lines_are_not_folded() -> None:
    shown = lines([of_job(a_job("FAILED", "word " * 30)), of_task(a_task())], 64)
    assert all(len(line) <= 64 for line in shown)
    assert "RemoveVm  Removi…" in shown[1]


def test_with_ids_nothing_is_cut() -> None:
    shown = lines([of_job(a_job()), of_task(a_task())], 40, ids=True)
    assert shown[0].split()[-3:] == ["ID", "SPAN", "JOB"]
    assert shown[1].endswith("j")
    assert "deleteImage DISK/d1" in shown[2]
    assert shown[2].split()[-3:] == ["t", "5" * 16, "j"]


def test_what_went_wrong_is_said_once_where_it_did() -> None:
    shown = lines([of_job(a_job("FAILED", "in use")), of_task(a_task("CLEAN_FAILURE", "in use"))], 80)
    assert [index for index, line in enumerate(shown) if "in use" in line] == [3]
    assert shown[3].strip() == "INTERNAL: in use"


def test_an_error_that_no_task_tells_stands_beneath_the_job() -> None:
    shown = lines([of_job(a_job("FAILED", "no such VM")), of_task(a_task())], 80)
    assert shown[2].strip() == "INTERNAL: no such VM"


def test_nobodys_words_drive_a_terminal() -> None:
    things = [of_event(an_event(message="a\x1b[2Jb")), of_event(an_event("ERROR", message="[bold]\x1b]0;x\x07"))]
    text = "\n".join(lines(things, 100))
    assert "a\\x1b[2Jb" in text
    assert "[bold]\\x1b]0;x\\x07" in text
    assert "\x1b" not in text


def test_in_a_pipe_a_thing_is_a_line_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    show_lines([of_job(a_job()), of_task(a_task("CLEAN_FAILURE", "in use"))], at(10))
    heading, _, task = capsys.readouterr().out.splitlines()
    assert heading.split() == ["TIME", "AFTER", "KIND", "WHAT", "WHERE", "STATUS", "TOOK", "ID", "SPAN", "JOB", "ERROR"]
    assert task.startswith(at(1).astimezone().strftime("%Y-%m-%d %H:%M:%S.000"))
    assert task.endswith("INTERNAL: in use")


def test_nothing_is_a_heading() -> None:
    assert len(lines([], 80)) == 1
    assert began_at([]) is None


def test_as_data_all_kinds_have_the_same_fields() -> None:
    things = in_order([of_job(a_job()), of_task(a_task()), of_event(an_event()), of_step(Step(step_id="s"), {})])
    records = [thing_record(thing, began_at(things)) for thing in things]
    assert {tuple(record) for record in records} == {
        ("time", "after_seconds", "kind", "id", "name", "where", "status", "duration_seconds", "error", "record")
    }
    job, task, event, step = records
    assert (job["time"], job["after_seconds"], job["duration_seconds"]) == ("2026-11-21T12:00:00.000000Z", 0.0, 3.0)
    assert (task["after_seconds"], task["record"]["verb"]) == (1.0, "deleteImage")
    assert (event["duration_seconds"], step["time"], step["after_seconds"]) == (None, None, None)


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        (0, "0.000s"),
        (59.9994, "59.999s"),
        (59.9996, "1m00.000s"),
        (245.25, "4m05.250s"),
        (12_005, "3h20m05s"),
        (-1.5, "-1.500s"),
    ],
)
def test_durations_are_exact_to_the_millisecond(seconds: float, word: str) -> None:
    assert exact_word(seconds) == word
