"""Whether everything that was written down anywhere leads back to the action that it comes from.

A *bearer* is whatever bears ids: a row of a table, a log line, an entry of a host's ledger, a span. All of them are
checked alike, by the names of their ids: every id is known, all lead to one job, and correlation id and trace id are
that job's. What each kind must have beyond that is said where it is checked.

    tables ─▶ Book ─┐
    rows, log lines, ledger entries, spans ─▶ complaints (none: all is well)

Pure: what is checked was collected before (collect.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.otlp_sink import SinkSpan

Facts = Mapping[str, Any]
Tables = Mapping[str, Sequence[Facts]]
"""Rows by table."""

KINDS: Final = {
    "job_id": "job",
    "restarted_from": "job",
    "flow_command_id": "command",
    "command_id": "command",
    "parent_command_id": "command",
    "step_id": "step",
    "parent_step_id": "step",
    "task_id": "task",
    "external_id": "task",  # of a step: nobody but hosts has work outside here
    "span_id": "span",
}
"""What an id is the id of, by the name that it goes by."""

_OWN_IDS: Final = {"job": "job_id", "command": "command_id", "step": "step_id", "host_task": "task_id"}
_SPANNED: Final = ("command", "host_task")
_OF_NO_FLOW: Final = frozenset(
    {"entity", "head", "coordinator_lease", "host_claim", "migration", "span_debt", "tombstone"}
)


class Line(NamedTuple):
    """A line of a log, as it is there."""

    log: str
    number: int
    text: str


class Entry(NamedTuple):
    """A row of a host's ledger."""

    host_id: str
    table: str
    facts: Facts


class Book:
    """Which job each id belongs to, by the tables; and what the client asked for."""

    def __init__(self, tables: Tables, calls: Mapping[str, str]) -> None:
        """`calls`: the correlation id under which the client made each call, by the call's trace id."""
        self.calls = calls
        self.jobs = {row["job_id"]: row for row in tables["job"]}
        self.tasks = {row["task_id"]: row for row in tables["host_task"]}
        self.job_of: dict[tuple[str, str], str] = {}
        for table, own in _OWN_IDS.items():
            for row in tables[table]:
                self.job_of[KINDS[own], row[own]] = row["job_id"]
                if table in _SPANNED and row["span_id"]:
                    self.job_of["span", row["span_id"]] = row["job_id"]

    def strays(self, facts: Facts) -> Iterator[str]:
        """What is wrong with the ids of a bearer."""
        owners = set()
        for name, kind in KINDS.items():
            if id := facts.get(name):
                owner = self.job_of.get((kind, id))
                if owner in self.jobs:
                    owners.add(owner)
                else:
                    yield f"{name} {id} belongs to nothing"
        if len(owners) > 1:
            yield f"its ids are of several jobs: {sorted(owners)}"
        for owner in sorted(owners)[:1]:
            yield from self._foreign(facts, self.jobs[owner])

    def _foreign(self, facts: Facts, job: Facts) -> Iterator[str]:
        if "correlation_id" in facts and facts["correlation_id"] != job["correlation_id"]:
            yield f"has the correlation id {facts['correlation_id']!r} instead of {job['correlation_id']!r}"
        if "trace_id" in facts and facts["trace_id"] != job["trace_id"]:
            yield f"has the trace id {facts['trace_id']!r} instead of {job['trace_id']!r}"


def of_jobs(tables: Tables, book: Book, flows: Mapping[str, str]) -> list[str]:
    """Complaints about jobs that nobody asked for, or that are missing.

    `flows`: the job that the client was told of by correlation id; empty where it was refused.
    """
    complaints = []
    stored: dict[str, list[str]] = {}
    for job in tables["job"]:
        stored.setdefault(job["correlation_id"], []).append(job["job_id"])
        if book.calls.get(job["trace_id"]) != job["correlation_id"]:
            complaints.append(f"job {job['job_id']}: no call of {job['correlation_id']} has its trace id")
    for correlation_id, job_id in flows.items():
        if stored.get(correlation_id, []) != ([job_id] if job_id else []):
            complaints.append(f"{correlation_id}: has the jobs {stored.get(correlation_id)} instead of {job_id!r}")
    complaints += [f"{correlation_id}: nobody asked for it" for correlation_id in stored.keys() - flows.keys()]
    reserved = Counter(row["span_id"] for table in _SPANNED for row in tables[table] if row["span_id"])
    return complaints + [
        f"span id {span_id} is reserved {times} times" for span_id, times in reserved.items() if times > 1
    ]


def of_rows(tables: Tables, book: Book) -> list[str]:
    """Complaints about rows: all tables but those that no flow writes must lead to a job."""
    return [
        f"a row of {table}: {problem}: {dict(row)}"
        for table, rows in tables.items()
        for row in rows
        for problem in _row_problems(table, row, book)
    ]


def _row_problems(table: str, row: Facts, book: Book) -> Iterator[str]:
    facts = _unpacked(row)
    yield from book.strays(facts)
    if not any(facts.get(name) for name in KINDS):
        if table == "event":  # of a host, say
            if facts["correlation_id"] and facts["correlation_id"] not in book.calls.values():
                yield "has a correlation id that nobody gave"
        elif table not in _OF_NO_FLOW:
            yield "leads to no job"


def of_lines(lines: Iterable[Line], book: Book) -> list[str]:
    """Complaints about log lines. One that names a job, command, step or task must have its correlation id."""
    complaints = []
    for line in lines:
        complaints += [
            f"{line.log}, line {line.number}: {problem}: {line.text}" for problem in _line_problems(line, book)
        ]
    return complaints


def _line_problems(line: Line, book: Book) -> Iterator[str]:
    try:
        facts = json.loads(line.text)
    except ValueError:
        yield "is no JSON"
        return
    if names_work(facts):
        facts.setdefault("correlation_id", "")
        if not facts.get("trace_id"):
            facts.pop("trace_id", None)
        yield from book.strays(facts)


def names_work(facts: Facts) -> bool:
    """Tells whether there is an id of a job, command, step or task."""
    return any(facts.get(name) for name, kind in KINDS.items() if kind != "span")


def of_entries(entries: Iterable[Entry], book: Book) -> list[str]:
    """Complaints about ledger entries: each is of a task, and of one that is this host's."""
    return [
        f"ledger of {entry.host_id}, {entry.table}: {problem}: {dict(entry.facts)}"
        for entry in entries
        for problem in _entry_problems(entry, book)
    ]


def _entry_problems(entry: Entry, book: Book) -> Iterator[str]:
    facts = _unpacked(entry.facts)
    yield from book.strays(facts)
    if not names_work(facts):
        yield "is of nothing"
    task = book.tasks.get(facts.get("task_id"))
    if task is not None and task["host_id"] != entry.host_id:
        yield f"is a task of {task['host_id']}"


def of_spans(spans: Iterable[SinkSpan], book: Book) -> list[str]:
    """Complaints about spans. Each is of a call of the client's, and has the correlation id of that call."""
    return [
        f"span {span.name} of {span.service}: {problem}: {dict(span.attributes)}"
        for span in spans
        for problem in _span_problems(span, book)
    ]


def _span_problems(span: SinkSpan, book: Book) -> Iterator[str]:
    facts = {name.replace(".", "_"): value for name, value in span.attributes.items()}
    facts.setdefault("correlation_id", "")
    if span.trace_id not in book.calls:
        yield f"no call has its trace id {span.trace_id}"
    elif facts["correlation_id"] != book.calls[span.trace_id]:
        yield f"has the correlation id {facts['correlation_id']!r} instead of {book.calls[span.trace_id]!r}"
    if span.kind == "INTERNAL":  # work, under an id that a row reserves; or the news that it began
        facts["span_id"] = span.parent_span_id if span.name.endswith(" started") else span.span_id
        facts["trace_id"] = span.trace_id
        if not names_work(facts):
            yield "is of nothing"
    yield from book.strays(facts)


def missing(tables: Tables, lines: Iterable[Line], entries: Iterable[Entry], spans: Iterable[SinkSpan]) -> list[str]:
    """Complaints about jobs that no log line or no span tells of, and about hosts' tasks that no ledger has.

    The other direction: who holds an id finds all of it.
    """
    logged = {job_id for line in lines if (job_id := json.loads(line.text).get("job_id"))}
    traced = {span.span_id for span in spans}
    ledgered = {(entry.host_id, entry.facts["task_id"]) for entry in entries if entry.table != "flow_epoch"}
    complaints = [f"job {row['job_id']}: no log tells of it" for row in tables["job"] if row["job_id"] not in logged]
    commands = [(f"{row['command_type']} {row['command_id']}", row["span_id"]) for row in tables["command"]]
    tasks = [(f"{row['verb']} {row['task_id']}", row) for row in tables["host_task"] if row["kind"] != "WAIT"]
    complaints += [
        f"{name}: {row['host_id']} does not remember it"
        for name, row in tasks
        if (row["host_id"], row["task_id"]) not in ledgered
    ]
    works = commands + [(name, row["span_id"]) for name, row in tasks if row["kind"] == "TASK"]
    return complaints + [f"{name}: has no span" for name, span_id in works if span_id not in traced]


def _unpacked(row: Facts) -> dict[str, Any]:
    """A row's facts, with the trace id of a traceparent by its own name."""
    facts = dict(row)
    if "traceparent" in facts:
        facts["trace_id"] = (facts["traceparent"].split("-") + [""])[1]
    return facts
