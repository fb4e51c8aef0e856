"""`waybill trace`, and links to Jaeger, with scripted services and a scripted Jaeger at the far end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from tests.integration.waybill_cli.scripted import FarEnd, ScriptedJaeger, waybill
from typer.testing import Result

from waybill.v1.coordinator_pb2 import RunCommandRequest
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
    TaskResult,
    TaskState,
)
from waybill_client.words import timestamp

ANSWER = (Path(__file__).parents[2] / "unit" / "waybill_cli" / "jaeger_answer.json").read_bytes()
TRACE_ID = "e36dba174354a05cb8accc3bc657b243"
SPAN_ID = "b2eb9417a07cc4b5"
JOB_ID = "01a20078-c384-72eb-b2eb-94168eda12c1"
OTHER_ID = "01a20078-0000-7000-8000-000000000002"
BEGAN = datetime(2026, 11, 21, 23, 37, 24, 131_000, UTC)  # as in the answer


def a_job(job_id: str = JOB_ID, correlation_id: str = "spring-cleaning", *, traced: bool = True) -> Job:
    return Job(
        job_id=job_id,
        flow_command_id=f"flow-of-{job_id}",
        command_type="RemoveVm",
        description="Removing VM web",
        status=ExecutionStatus.EXECUTION_STATUS_FINISHED,
        correlation_id=correlation_id,
        trace_id=TRACE_ID if traced else "",
        span_id=SPAN_ID if traced else "",
        create_time=timestamp(BEGAN),
        end_time=timestamp(BEGAN + timedelta(seconds=2.6)),
        steps=[
            Step(
                step_id="s",
                job_id=job_id,
                step_type="EXECUTION",
                status=ExecutionStatus.EXECUTION_STATUS_FINISHED,
                start_time=timestamp(BEGAN),
                end_time=timestamp(BEGAN + timedelta(seconds=2.5)),
            )
        ],
    )


def holds_an_action(far_end: FarEnd, *, traced: bool = True) -> None:
    """A job with a thing of each kind, and another job of another action."""
    for job in (a_job(traced=traced), a_job(OTHER_ID, "another")):
        far_end.jobstore.jobs[job.job_id] = job
        time, owned = timestamp(BEGAN), {"job_id": job.job_id, "correlation_id": job.correlation_id}
        far_end.jobstore.commands.append(
            Command(
                command_id="c",
                flow_command_id=job.flow_command_id,
                command_type="RemoveVm",
                status=CommandStatus.COMMAND_STATUS_ENDED_SUCCESSFULLY,
                create_time=time,
                **owned,
            )
        )
        far_end.jobstore.host_tasks.append(
            HostTask(
                task_id="t",
                kind=HostTaskKind.HOST_TASK_KIND_TASK,
                verb="deleteImage",
                host_id="host-1",
                attempt=1,
                state=TaskState.TASK_STATE_FINISHED,
                result=TaskResult.TASK_RESULT_SUCCESS,
                create_time=time,
                **owned,
            )
        )
        far_end.jobstore.locks.append(
            Lock(entity_type=EntityType.ENTITY_TYPE_VM, entity_id="vm-1", job_id=job.job_id, create_time=time)
        )
        for event_type in ("JOB_STARTED", "STEP_STARTED"):
            far_end.jobstore.events.append(
                Event(event_type=event_type, severity=Severity.SEVERITY_NORMAL, time=time, **owned)
            )


def kinds(ended: Result) -> list[str]:
    """The kinds of what is told, line by line."""
    assert ended.exit_code == 0, ended.output
    return [line.split()[3] for line in ended.stdout.splitlines()[1:]]


def test_all_that_bears_a_correlation_id_is_shown_and_nothing_else(far_end: FarEnd) -> None:
    holds_an_action(far_end)
    ended = waybill("trace", "spring-cleaning")
    assert kinds(ended) == ["job", "command", "step", "lock", "task", "event"]
    assert OTHER_ID not in ended.stdout


def test_the_events_of_steps_are_for_programs(far_end: FarEnd) -> None:
    holds_an_action(far_end)
    told = json.loads(waybill("trace", "spring-cleaning", "-o", "json").stdout)
    events = [each["record"]["event_type"] for each in told["timeline"] if each["kind"] == "event"]
    assert events == ["JOB_STARTED", "STEP_STARTED"]


@pytest.mark.parametrize("id", [JOB_ID, JOB_ID[-8:]])
def test_a_job_stands_for_its_correlation_id_and_that_is_said(far_end: FarEnd, id: str) -> None:
    holds_an_action(far_end)
    ended = waybill("trace", id)
    assert len(kinds(ended)) == 6
    assert f"job {JOB_ID} bears the correlation id spring-cleaning" in ended.stderr


def test_several_jobs_of_one_action_are_shown_together(far_end: FarEnd) -> None:
    far_end.jobstore.jobs = {each: a_job(each, traced=False) for each in (JOB_ID, OTHER_ID)}
    told = json.loads(waybill("trace", "spring-cleaning", "-o", "json").stdout)
    assert told["job_ids"] == [JOB_ID, OTHER_ID]
    assert [each["id"] for each in told["timeline"] if each["kind"] == "job"] == [JOB_ID, OTHER_ID]


def test_what_bears_the_id_without_a_job_is_shown(far_end: FarEnd) -> None:
    far_end.jobstore.events = [Event(event_type="COMMAND_REFUSED", correlation_id="lost", time=timestamp(BEGAN))]
    assert kinds(waybill("trace", "lost")) == ["event"]


def test_invisible_jobs_are_asked_for_too(far_end: FarEnd) -> None:
    holds_an_action(far_end)
    waybill("trace", "spring-cleaning")
    assert sorted(far_end.jobstore.filters) == [
        'correlation_id = "spring-cleaning" AND visible = false',
        'correlation_id = "spring-cleaning" AND visible = true',
    ]


def test_what_nothing_bears_is_exit_code_4(far_end: FarEnd) -> None:
    ended = waybill("trace", "nobody")
    assert ended.exit_code == 4
    assert "nothing bears the correlation id 'nobody', and no job is like it" in ended.stderr


def test_a_job_that_is_not_there_is_exit_code_4(far_end: FarEnd) -> None:
    ended = waybill("trace", OTHER_ID)
    assert ended.exit_code == 4
    assert "no job is like it" in ended.stderr


@pytest.mark.parametrize("id", ["a b", "x" * 51, "", "ü", 'a" AND owner != "'])
def test_an_id_of_a_wrong_shape_is_exit_code_2_and_nothing_is_asked(far_end: FarEnd, id: str) -> None:
    ended = waybill("trace", id)
    assert ended.exit_code == 2
    assert "1-50 of letters, digits, _ and -" in " ".join(ended.stderr.replace("│", "").split())
    assert far_end.jobstore.filters == []


def test_the_spans_stand_among_the_rest(far_end: FarEnd, jaeger: ScriptedJaeger) -> None:
    holds_an_action(far_end)
    jaeger.answer = lambda path: (200, ANSWER)
    ended = waybill("trace", "spring-cleaning")
    shown = kinds(ended)
    assert shown.count("span") == 5
    assert shown[:3] == ["span", "span", "job"]  # the client called before there was a job
    assert "task deleteImage" in ended.stdout
    assert "host-2" in ended.stdout
    assert jaeger.asked == [f"/api/traces/{TRACE_ID}?raw=true"]


@pytest.mark.parametrize(("format", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_spans_and_links(far_end: FarEnd, jaeger: ScriptedJaeger, format: str, read: object) -> None:
    holds_an_action(far_end)
    jaeger.answer = lambda path: (200, ANSWER)
    assert callable(read)
    told = read(waybill("trace", "spring-cleaning", "-o", format).stdout)
    assert told["traces"] == [{"trace_id": TRACE_ID, "link": f"{jaeger.url}/trace/{TRACE_ID}"}]
    assert (told["correlation_id"], told["problems"]) == ("spring-cleaning", [])
    task = [each for each in told["timeline"] if each["kind"] == "span"][-1]
    assert (task["name"], task["where"], task["status"]) == ("task deleteImage", "host-2", "ERROR")
    assert (task["error"], task["record"]["job_id"]) == ("TASK_FAILED: the volume is in use", JOB_ID)
    assert [event["name"] for event in task["record"]["events"]] == ["RUNNING", "progress", "progress", "CLEANING"]


def test_a_jaeger_that_is_away_is_said_in_a_line_and_the_rest_is_shown(
    far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds_an_action(far_end)
    monkeypatch.setenv("WAYBILL_JAEGER_URL", "http://127.0.0.1:1")
    ended = waybill("trace", "spring-cleaning")
    assert len(kinds(ended)) == 6
    assert ended.stderr.splitlines() == [
        "the spans are not here: cannot reach Jaeger at http://127.0.0.1:1: Connection refused"
    ]


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (404, b'{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}', f"does not know trace {TRACE_ID}"),
        (500, b"", "answers HTTP 500"),
        (200, b"<html>a login page</html>", "does not answer as a Jaeger does"),
        (200, b'{"data":null}', "does not answer as a Jaeger does"),
        (200, b'{"data":[{"spans":[{"spanID":7}],"processes":{}}]}', "does not answer as a Jaeger does"),
        (200, b"[]", "does not answer as a Jaeger does"),
        (200, b"\xff\xfe", "does not answer as a Jaeger does"),
    ],
)
def test_an_answer_without_spans_is_said_in_a_line_and_the_rest_is_shown(
    far_end: FarEnd, jaeger: ScriptedJaeger, code: int, body: bytes, says: str
) -> None:
    holds_an_action(far_end)
    jaeger.answer = lambda path: (code, body)
    ended = waybill("trace", "spring-cleaning")
    assert len(kinds(ended)) == 6
    (line,) = ended.stderr.splitlines()
    assert says in line


def test_without_a_jaeger_it_is_said_where_to_name_one(far_end: FarEnd) -> None:
    holds_an_action(far_end)
    assert "set WAYBILL_JAEGER_URL" in waybill("trace", "spring-cleaning").stderr


def test_where_nothing_is_traced_nothing_is_said_of_it(far_end: FarEnd) -> None:
    holds_an_action(far_end, traced=False)
    assert waybill("trace", "spring-cleaning").stderr == ""


def test_the_link_of_a_job_is_printed(far_end: FarEnd, jaeger: ScriptedJaeger) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job()
    ended = waybill("jobs", "get", JOB_ID, "--web")
    assert ended.stdout == f"{jaeger.url}/trace/{TRACE_ID}?uiFind={SPAN_ID}\n"


def test_without_a_jaeger_there_is_no_link_but_a_remedy(far_end: FarEnd) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job()
    ended = waybill("jobs", "get", JOB_ID, "--web")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "WAYBILL_JAEGER_URL" in ended.stderr


def test_a_job_that_was_not_traced_has_no_link_but_a_remedy(far_end: FarEnd, jaeger: ScriptedJaeger) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job(traced=False)
    ended = waybill("jobs", "get", JOB_ID, "--web")
    assert (ended.exit_code, ended.stdout) == (4, "")
    assert "COORDINATOR_TRACES_ENDPOINT" in ended.stderr


@pytest.mark.parametrize("command", ["trace x", "run RemoveVm", "jobs list -o wide", f"jobs get {JOB_ID} --web"])
def test_a_url_that_is_none_is_exit_code_2_and_nothing_is_asked(far_end: FarEnd, command: str) -> None:
    ended = waybill("--jaeger", "localhost:16686", *command.split())
    assert ended.exit_code == 2
    assert "is no URL of a Jaeger" in ended.stderr
    assert (far_end.coordinator.requests, far_end.jobstore.filters) == ([], [])


@pytest.mark.parametrize("command", [("jobs", "list"), ("jobs", "get", JOB_ID)])
def test_wide_adds_the_trace_and_its_link(far_end: FarEnd, jaeger: ScriptedJaeger, command: tuple[str, ...]) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job()
    link = f"{jaeger.url}/trace/{TRACE_ID}?uiFind={SPAN_ID}"
    assert link in waybill(*command, "-o", "wide").stdout
    assert TRACE_ID not in waybill(*command).stdout


def test_wide_without_a_jaeger_has_the_trace_alone(far_end: FarEnd) -> None:
    far_end.jobstore.jobs[JOB_ID] = a_job()
    shown = waybill("jobs", "get", JOB_ID, "-o", "wide").stdout
    assert TRACE_ID in shown
    assert "http" not in shown


@pytest.mark.parametrize("flag", ["--watch", "--wait"])
def test_a_run_that_is_traced_ends_with_the_link(far_end: FarEnd, jaeger: ScriptedJaeger, flag: str) -> None:
    accepts(far_end, a_job())
    ended = waybill("run", "RemoveVm", flag)
    assert ended.stderr.splitlines() == [f"trace: {jaeger.url}/trace/{TRACE_ID}?uiFind={SPAN_ID}"]


@pytest.mark.parametrize("flag", ["--watch", "--wait"])
def test_a_run_that_is_not_traced_says_nothing_of_it(far_end: FarEnd, jaeger: ScriptedJaeger, flag: str) -> None:
    accepts(far_end, a_job(traced=False))
    assert waybill("run", "RemoveVm", flag).stderr == ""


def accepts(far_end: FarEnd, job: Job) -> None:
    """A command becomes this job, which has ended already."""

    async def answer(request: RunCommandRequest, context: object) -> Job:
        far_end.jobstore.jobs[job.job_id] = job
        return job

    far_end.coordinator.answer = answer
