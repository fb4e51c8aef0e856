"""The check of all ids does complain: one fault of each kind, planted into what is otherwise right."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.chaos import ids
from tests.chaos.ids import Book, Entry, Line
from tests.otlp_sink import SinkSpan

TRACE, OTHER_TRACE = "a" * 32, "b" * 32
CALLS = {TRACE: "flow-1", OTHER_TRACE: "flow-2"}


def tables(number: int = 1, trace_id: str = TRACE) -> dict[str, list[dict[str, Any]]]:
    """A flow of one command with one task, as stored."""
    names = {"job_id": f"job-{number}", "correlation_id": f"flow-{number}"}
    command = {"command_id": f"command-{number}", "flow_command_id": f"command-{number}"}
    step = {"step_id": f"step-{number}"}
    task = {"task_id": f"task-{number}", "host_id": "host-1", "kind": "TASK", "verb": "createVolume"}
    return {
        "job": [{**names, "trace_id": trace_id, "span_id": f"span-c{number}", "flow_command_id": f"command-{number}"}],
        "step": [{**names, **step, "parent_step_id": "", "external_id": f"task-{number}", "span_id": ""}],
        "command": [
            {
                **names,
                **command,
                "command_type": "AddDisk",
                "span_id": f"span-c{number}",
                "traceparent": f"00-{trace_id}-{'c' * 16}-01",
            }
        ],
        "host_task": [{**names, **command, **step, **task, "span_id": f"span-t{number}"}],
        "event": [{**names}, {"job_id": "", "correlation_id": ""}],
        "entity_lock": [],
        "entity": [{"entity_id": "disk-1"}],
    }


STORED = {table: [*rows, *tables(2, OTHER_TRACE)[table]] for table, rows in tables().items()}
BOOK = Book(STORED, CALLS)

LINE = {
    "event": "task over",
    "correlation_id": "flow-1",
    "trace_id": TRACE,
    "span_id": "span-t1",
    "job_id": "job-1",
    "task_id": "task-1",
}
TASK = {
    "task_id": "task-1",
    "flow_command_id": "command-1",
    "job_id": "job-1",
    "correlation_id": "flow-1",
    "traceparent": f"00-{TRACE}-{'c' * 16}-01",
    "span_id": "span-t1",
}
SPAN = SinkSpan(
    service="waybill-hostagent",
    name="task createVolume",
    kind="INTERNAL",
    trace_id=TRACE,
    span_id="span-t1",
    parent_span_id="span-c1",
    start=1.0,
    end=2.0,
    status="UNSET",
    message="",
    attributes={"correlation_id": "flow-1", "job.id": "job-1", "command.id": "command-1", "task.id": "task-1"},
    events=(),
    links=(),
    resource={},
)
COMMAND_SPANS = [
    dataclasses.replace(
        SPAN,
        name="AddDisk",
        span_id=f"span-c{number}",
        trace_id=trace_id,
        attributes={"correlation_id": f"flow-{number}", "job.id": f"job-{number}"},
    )
    for number, trace_id in ((1, TRACE), (2, OTHER_TRACE))
]


def only(complaints: list[str], words: str) -> None:
    [complaint] = complaints
    assert words in complaint


def test_what_is_right_is_not_complained_of() -> None:
    assert ids.of_jobs(STORED, BOOK, {"flow-1": "job-1", "flow-2": "job-2", "flow-3": ""}) == []
    assert ids.of_rows(STORED, BOOK) == []
    assert ids.of_lines([line(), line(trace_id=""), Line("jobstore.log", 2, '{"event": "serving"}')], BOOK) == []
    assert (
        ids.of_entries([Entry("host-1", "task", TASK), Entry("host-1", "cleared", {"task_id": "task-1"})], BOOK) == []
    )
    assert ids.of_spans([SPAN, *COMMAND_SPANS], BOOK) == []


@pytest.mark.parametrize(
    ("flows", "words"),
    [
        ({"flow-1": "job-1"}, "nobody asked for it"),
        ({"flow-1": "job-1", "flow-2": "job-2", "flow-3": "job-3"}, "has the jobs None"),
        ({"flow-1": "job-1", "flow-2": ""}, "has the jobs ['job-2']"),
    ],
)
def test_a_job_too_many_or_too_few(flows: dict[str, str], words: str) -> None:
    only(ids.of_jobs(STORED, BOOK, flows), words)


def test_a_job_in_a_trace_that_no_call_began() -> None:
    strange = {**STORED, "job": [STORED["job"][0], {**STORED["job"][1], "trace_id": "d" * 32}]}
    only(ids.of_jobs(strange, BOOK, {"flow-1": "job-1", "flow-2": "job-2"}), "no call of flow-2 has its trace id")


def test_a_span_id_that_is_reserved_twice() -> None:
    twice = {**STORED, "host_task": [{**row, "span_id": "span-t1"} for row in STORED["host_task"]]}
    only(ids.of_jobs(twice, BOOK, {"flow-1": "job-1", "flow-2": "job-2"}), "reserved 2 times")


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("job", {"correlation_id": ""}, "has the correlation id ''"),
        ("step", {"correlation_id": "flow-2"}, "has the correlation id 'flow-2'"),
        ("step", {"external_id": "task-9"}, "external_id task-9 belongs to nothing"),
        ("step", {"parent_step_id": "step-2"}, "of several jobs"),
        ("command", {"traceparent": f"00-{OTHER_TRACE}-{'c' * 16}-01"}, "has the trace id"),
        ("command", {"traceparent": ""}, "has the trace id ''"),
        ("host_task", {"command_id": "command-9"}, "command_id command-9 belongs to nothing"),
        ("host_task", {"flow_command_id": "command-2"}, "of several jobs"),
        ("event", {"correlation_id": "flow-9"}, "has the correlation id 'flow-9'"),
        ("event", {"job_id": "", "correlation_id": "flow-9"}, "nobody gave"),
        ("event", {"job_id": "job-9"}, "job_id job-9 belongs to nothing"),
    ],
)
def test_a_row_that_does_not_fit(table: str, change: dict[str, str], words: str) -> None:
    only(ids.of_rows({table: [{**STORED[table][0], **change}]}, BOOK), words)


def test_a_row_that_leads_nowhere() -> None:
    only(ids.of_rows({"entity_lock": [{"entity_id": "disk-1"}]}, BOOK), "leads to no job")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"correlation_id": ""}, "has the correlation id ''"),
        ({"correlation_id": "flow-2"}, "has the correlation id 'flow-2'"),
        ({"trace_id": OTHER_TRACE}, "has the trace id"),
        ({"span_id": "span-9"}, "span_id span-9 belongs to nothing"),
        ({"span_id": "span-t2"}, "of several jobs"),
        ({"job_id": "job-9"}, "job_id job-9 belongs to nothing"),
        ({"task_id": "task-2"}, "of several jobs"),
    ],
)
def test_a_log_line_that_does_not_fit(change: dict[str, str], words: str) -> None:
    only(ids.of_lines([line(**change)], BOOK), words)


def test_a_log_line_with_half_of_the_ids_or_that_is_none() -> None:
    only(ids.of_lines([Line("host-1.log", 1, '{"task_id": "task-1"}')], BOOK), "has the correlation id ''")
    only(ids.of_lines([Line("host-1.log", 1, "Traceback (most recent call last):")], BOOK), "is no JSON")


@pytest.mark.parametrize(
    ("host_id", "table", "facts", "words"),
    [
        ("host-1", "task", {**TASK, "correlation_id": "flow-2"}, "has the correlation id 'flow-2'"),
        ("host-1", "task", {**TASK, "traceparent": ""}, "has the trace id ''"),
        ("host-1", "task", {**TASK, "span_id": "span-9"}, "span_id span-9 belongs to nothing"),
        ("host-2", "task", TASK, "is a task of host-1"),
        ("host-1", "cleared", {"task_id": "task-9"}, "task_id task-9 belongs to nothing"),
        ("host-1", "flow_epoch", {"flow_command_id": "command-9"}, "command_id command-9 belongs to nothing"),
        ("host-1", "task", {"task_id": ""}, "is of nothing"),
    ],
)
def test_a_ledger_entry_that_does_not_fit(host_id: str, table: str, facts: dict[str, str], words: str) -> None:
    only(ids.of_entries([Entry(host_id, table, facts)], BOOK), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "SERVER", "trace_id": "d" * 32}, "no call has its trace id"),
        ({"kind": "SERVER", "attributes": {}}, "has the correlation id '' instead of 'flow-1'"),
        ({"kind": "CLIENT", "attributes": {"correlation_id": "flow-2"}}, "has the correlation id 'flow-2'"),
        ({"attributes": {"correlation_id": "flow-1"}}, "is of nothing"),
        ({"attributes": {"correlation_id": "flow-1", "task.id": "task-9"}}, "task_id task-9 belongs to nothing"),
        ({"span_id": "span-9"}, "span_id span-9 belongs to nothing"),
        ({"name": "AddDisk started", "parent_span_id": "span-9"}, "span_id span-9 belongs to nothing"),
        ({"span_id": "span-t2"}, "of several jobs"),
    ],
)
def test_a_span_that_does_not_fit(change: dict[str, Any], words: str) -> None:
    only(ids.of_spans([dataclasses.replace(SPAN, **change)], BOOK), words)


def test_what_is_told_nowhere() -> None:
    stored = tables()
    everything = ([line()], [Entry("host-1", "cleared", {"task_id": "task-1"})], [SPAN, COMMAND_SPANS[0]])
    lines, entries, spans = everything
    assert ids.missing(stored, *everything) == []
    only(ids.missing(stored, [], entries, spans), "no log tells of it")
    only(ids.missing(stored, lines, [Entry("host-2", "cleared", {"task_id": "task-1"})], spans), "does not remember it")
    only(ids.missing(stored, lines, entries, spans[:1]), "AddDisk command-1: has no span")
    only(ids.missing(stored, lines, entries, spans[1:]), "createVolume task-1: has no span")


def line(**change: str) -> Line:
    return Line("host-1.log", 7, json.dumps({**LINE, **change}))
