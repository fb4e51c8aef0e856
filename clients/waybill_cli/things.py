"""Whatever bears a correlation id, reduced to what a timeline tells of it: all kinds alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.struct_pb2 import Struct

from waybill.v1.jobs_pb2 import Command, Event, HostTask, HostTaskKind, Job, Lock, Severity, Step
from waybill_cli.jaeger import Span
from waybill_cli.output import subject_word
from waybill_cli.records import record
from waybill_cli.tree import reason_line, step_title
from waybill_client.words import (
    command_status_word,
    entity_word,
    moment,
    plain,
    severity_word,
    status_word,
    task_word,
)

KINDS = ("job", "command", "step", "lock", "task", "call", "wait", "span", "event")
"""From the whole to its parts."""

_TASK_KINDS = {HostTaskKind.HOST_TASK_KIND_CALL: "call", HostTaskKind.HOST_TASK_KIND_WAIT: "wait"}
_SERVICE = "coordinator"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Thing:
    """A line of the timeline."""

    kind: str
    """One of KINDS."""
    id: str
    name: str
    where: str
    """The host, else the service."""
    status: str
    """Empty where there is nothing to say: an event that is only for the record, a span without an error."""
    start: datetime | None
    """None: it has not begun, or never did."""
    end: datetime | None
    error: str
    record: Mapping[str, Any] = field(repr=False)
    """All of it, as plain data."""
    lasts: bool = True
    """False: it takes no time."""

    @property
    def time(self) -> datetime | None:
        """When it came into the world; of what was skipped, when that was decided."""
        return self.start or self.end

    def seconds(self, now: datetime | None = None) -> float | None:
        """How long it took; with a time, until then if it is still open. None for what has no duration (yet)."""
        end = self.end or now
        return (end - self.start).total_seconds() if self.lasts and self.start and end else None


def of_job(job: Job) -> Thing:
    """A job."""
    words = "" if job.description == job.command_type else job.description
    return Thing(
        "job",
        job.job_id,
        f"{job.command_type}  {words}".rstrip(),
        _SERVICE,
        status_word(job.status),
        moment(job.create_time),
        moment(job.end_time),
        _reason(job),
        record(job),
    )


def of_step(step: Step, hosts: Mapping[str, str]) -> Thing:
    """A step; `hosts` says on which host a task is."""
    return Thing(
        "step",
        step.step_id,
        step_title(step).plain,
        hosts.get(step.external_id, "") or _SERVICE,
        status_word(step.status),
        moment(step.start_time),
        moment(step.end_time),
        _reason(step),
        record(step),
    )


def of_command(command: Command) -> Thing:
    """A command."""
    return Thing(
        "command",
        command.command_id,
        f"{command.command_type} {_in_words(command.parameters)}".rstrip(),
        _SERVICE,
        command_status_word(command.status),
        moment(command.create_time),
        moment(command.end_time),
        _reason(command),
        record(command),
    )


def of_task(task: HostTask) -> Thing:
    """What was begun on a host, or waited for."""
    kind = _TASK_KINDS.get(task.kind, "task")
    verb = f"attempt {task.attempt}: {task.verb}" if task.attempt > 1 else task.verb
    what = subject_word(task.entity) or _in_words(task.arguments)
    if kind == "wait":
        what = f"{subject_word(task.entity)} {_condition(task.arguments)}"
    return Thing(
        kind,
        task.task_id,
        f"{verb} {what}".strip(),
        task.host_id or _SERVICE,
        task_word(task),
        moment(task.create_time),
        moment(task.end_time),
        _reason(task),
        record(task),
    )


def of_event(event: Event) -> Thing:
    """A line of the audit log. What somebody should look at, it says as an error."""
    normal = event.severity == Severity.SEVERITY_NORMAL
    time = moment(event.time)
    return Thing(
        "event",
        event.event_id,
        f"{event.event_type}  {event.message}".rstrip() if normal else event.event_type,
        "",
        "" if normal else severity_word(event.severity),
        time,
        time,
        "" if normal else event.message,
        record(event),
        lasts=False,
    )


def of_lock(lock: Lock) -> Thing:
    """A lock that is held now."""
    entity = f"{entity_word(lock.entity_type)}/{lock.entity_id}"
    kind = "exclusive" if lock.exclusive else "shared"
    return Thing("lock", entity, f"{kind} {entity}", _SERVICE, "HELD", moment(lock.create_time), None, "", record(lock))


def of_span(span: Span) -> Thing:
    """A span of a trace."""
    return Thing(
        "span",
        span.span_id,
        span.name,
        str(span.resource.get("host.id", "")) or span.service.removeprefix("waybill-"),
        "ERROR" if span.failed else "",
        span.start,
        span.end,
        span.message,
        _span_record(span),
    )


def in_order(things: Iterable[Thing]) -> list[Thing]:
    """By time; what begins together, from the whole to its parts; what has not begun, last."""
    return sorted(things, key=lambda each: (each.time is None, each.time or _EPOCH, KINDS.index(each.kind)))


def began_at(things: Iterable[Thing]) -> datetime | None:
    """When the first of them began."""
    return min((each.time for each in things if each.time), default=None)


def thing_record(thing: Thing, began: datetime | None) -> dict[str, Any]:
    """A thing as plain data: what the timeline shows, the same fields for all kinds, and its own record."""
    after = (thing.time - began).total_seconds() if thing.time and began else None
    return {
        "time": _iso(thing.time),
        "after_seconds": after,
        "kind": thing.kind,
        "id": thing.id,
        "name": thing.name,
        "where": thing.where,
        "status": thing.status,
        "duration_seconds": thing.seconds(),
        "error": thing.error,
        "record": dict(thing.record),
    }


def _reason(of: Job | Step | Command | HostTask) -> str:
    return reason_line(of.error) if of.HasField("error") else ""


def _in_words(parameters: Struct) -> str:
    values: dict[str, Any] = plain(parameters)
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()) if value not in (None, "", [], {}))


def _condition(arguments: Struct) -> str:
    """`until state UP`: what a wait waits for."""
    until = plain(arguments).get("until", {})
    terms = [f"{name} {' or '.join(map(str, values))}" for name, values in until.items() if isinstance(values, list)]
    return f"until {' and '.join(terms)}" if terms else ""


def _iso(time: datetime | None) -> str | None:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z") if time else None


def _span_record(span: Span) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "job_id": str(span.attributes.get("job.id", "")),
        "name": span.name,
        "kind": span.kind,
        "service": span.service,
        "resource": dict(span.resource),
        "start_time": _iso(span.start),
        "end_time": _iso(span.end),
        "failed": span.failed,
        "message": span.message,
        "attributes": dict(span.attributes),
        "events": [{**event, "time": _iso(event["time"])} for event in span.events],
        "links": [dict(link) for link in span.links],
    }
