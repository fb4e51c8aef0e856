"""Everything that bears a correlation id, in the order of time: a line for each thing, what went wrong beneath.

correlation id  spring-cleaning
began           2026-11-21 12:30:05.123

AFTER    KIND       WHAT                       WHERE        STATUS                TOOK
+0.000s  ✗ job      RemoveVm  Removing VM web  coordinator  FAILED              3.120s
+0.012s  ✗ task     deleteImage DISK/disk-2    host-1       CLEAN_FAILURE       1.704s
           TASK_FAILED: the volume is in use

Where the window is wide enough, the time of day goes before it and the id after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.struct_pb2 import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from waybill.v1.jobs_pb2 import Command, Event, HostTask, HostTaskKind, Job, Lock, Severity, Step
from waybill_cli.jaeger import Span
from waybill_cli.output import Column, Format, printable, show_rows, subject_word
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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = "WHAT"
_LEAST_NAME = 16  # so much of it there always is
_ENOUGH = 60  # beyond it, other columns are worth more
_GAP = 2
_NO_SIGN = "  "
_ON_HOSTS = ("task", "call", "wait")
_IDS = ("ID", "SPAN", "JOB")
_SERVICE = "coordinator"
KINDS = ("job", "command", "step", "lock", "task", "call", "wait", "span", "event")
_TASK_KINDS = {HostTaskKind.HOST_TASK_KIND_CALL: "call", HostTaskKind.HOST_TASK_KIND_WAIT: "wait"}

_STYLES = {
    word: style
    for style, words in {
        "green": ("FINISHED", "SUCCEEDED", "ENDED_SUCCESSFULLY", "SUCCESS"),
        "red": ("FAILED", "EXECUTION_FAILED", "ENDED_WITH_FAILURE", "CLEAN_FAILURE", "ERROR", "ALERT"),
        "yellow": ("ABORTED", "ABORTING", "CLEANING", "CLEAN_SUCCESS", "WARNING"),
        "cyan": ("STARTED", "ACTIVE", "RUNNING", "HELD"),
        "magenta": ("UNKNOWN",),
        "dim": ("PENDING", "SKIPPED", "NOT_STARTED"),
    }.items()
    for word in words
}
_SIGNS = {"green": "✓", "red": "✗", "yellow": "■", "cyan": "◐", "magenta": "?", "dim": "○"}


@dataclass(frozen=True)
class Thing:
    """One line of the timeline."""

    kind: str
    """One of job, command, step, lock, task, call, wait, span, event."""
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


# --- things ----------------------------------------------------------------------------------------------------------


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


# --- how it looks ----------------------------------------------------------------------------------------------------


class Facet(NamedTuple):
    """A heading, and the words under it."""

    heading: str
    words: Callable[[Thing], str]


class Timeline:
    """The lines for a window; `ids`: with all words and ids, even if they make the lines longer than it is wide."""

    def __init__(self, things: Sequence[Thing], now: datetime, *, ids: bool = False) -> None:
        self._things = things
        self._facets = _facets(began_at(things), now)
        self._ids = ids

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = {each.heading: [printable(each.words(thing)) for thing in self._things] for each in self._facets}
        cells["KIND"] = [f"{_SIGNS.get(_STYLES.get(thing.status, ''), '·')} {thing.kind}" for thing in self._things]
        widths = {heading: max(map(cell_len, (heading, *column))) for heading, column in cells.items()}
        shown, widths[_NAME] = self._fitted(widths, options.max_width)
        indent = sum(widths[heading] + _GAP for heading in shown[: shown.index("KIND")]) + len(_NO_SIGN)
        yield _line([Text(heading, "bold") for heading in shown], shown, widths)
        for index, (thing, error) in enumerate(zip(self._things, _errors(self._things), strict=True)):
            words = [Text(cells[heading][index], _style(heading, thing)) for heading in shown]
            yield _line(words, shown, widths)
            style = _STYLES.get(thing.status, "")
            for line in Text(error, style).wrap(console, max(_LEAST_NAME, options.max_width - indent)) if error else ():
                yield _unwrapped(Text(" " * indent) + line)

    def _fitted(self, widths: Mapping[str, int], window: int) -> tuple[list[str], int]:
        """The columns that there is room for, and how wide the names may be among them."""
        shown = [heading for heading in widths if heading not in ("TIME", *_IDS, "ERROR")]
        room = window - sum(widths[heading] + _GAP for heading in shown if heading != _NAME)
        if room - widths["TIME"] - _GAP >= min(widths[_NAME], _ENOUGH):
            shown, room = ["TIME", *shown], room - widths["TIME"] - _GAP
        if self._ids:
            return [*shown, *_IDS], widths[_NAME]
        if room - widths["ID"] - _GAP >= min(widths[_NAME], _ENOUGH):
            shown, room = [*shown, "ID"], room - widths["ID"] - _GAP
        return shown, min(widths[_NAME], max(_LEAST_NAME, room))


def show_lines(things: Sequence[Thing], now: datetime) -> None:
    """The lines for a pipe: all columns, each thing in one line."""
    columns = [Column(each.heading, each.words) for each in _facets(began_at(things), now, date=True)]
    show_rows(things, columns, Format.TABLE)


def began_at(things: Iterable[Thing]) -> datetime | None:
    """When the first of them began."""
    return min((each.time for each in things if each.time), default=None)


def _facets(began: datetime | None, now: datetime, *, date: bool = False) -> list[Facet]:
    clock = "%Y-%m-%d %H:%M:%S.%f" if date else "%H:%M:%S.%f"
    return [
        Facet("TIME", lambda thing: thing.time.astimezone().strftime(clock)[:-3] if thing.time else ""),
        Facet(
            "AFTER",
            lambda thing: f"+{exact_word((thing.time - began).total_seconds())}" if thing.time and began else "",
        ),
        Facet("KIND", lambda thing: thing.kind),
        Facet(_NAME, lambda thing: thing.name),
        Facet("WHERE", lambda thing: thing.where),
        Facet("STATUS", lambda thing: thing.status),
        Facet("TOOK", lambda thing: "" if (took := thing.seconds(now)) is None else exact_word(took)),
        Facet("ID", lambda thing: thing.id),
        Facet("SPAN", lambda thing: thing.record.get("span_id", "")),
        Facet("JOB", lambda thing: thing.record.get("job_id", "")),
        Facet("ERROR", lambda thing: thing.error),
    ]


def exact_word(seconds: float) -> str:
    """`0.012s`, `4m05.250s`, `3h20m05s`."""
    sign, thousandths = "-" if seconds < 0 else "", round(abs(seconds) * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    if not minutes:
        return f"{sign}{rest / 1000:.3f}s"
    if minutes < 60:
        return f"{sign}{minutes}m{rest / 1000:06.3f}s"
    return f"{sign}{minutes // 60}h{minutes % 60:02}m{rest // 1000:02}s"


def _errors(things: Sequence[Thing]) -> Iterator[str]:
    """What is said beneath each: a task says what went wrong, and what it is a part of does not say it again."""
    said = {thing.error for thing in things if thing.kind in _ON_HOSTS}
    for thing in things:
        repeated = thing.kind not in _ON_HOSTS and any(each.endswith(thing.error) for each in said)
        yield "" if repeated else printable(thing.error)
        said.add(thing.error)


def _style(heading: str, thing: Thing) -> str:
    match heading:
        case "KIND" | "STATUS":
            return _STYLES.get(thing.status, "")
        case "TIME" | "AFTER" | "TOOK" | "ID" | "SPAN" | "JOB":
            return "dim"
        case "WHAT":
            return "bold" if thing.kind == "job" else ""
        case _:
            return ""


def _line(words: Sequence[Text], shown: Sequence[str], widths: Mapping[str, int]) -> Text:
    for each, heading in zip(words, shown, strict=True):
        each.truncate(widths[heading], overflow="ellipsis")
        each.align("right" if heading == "TOOK" else "left", widths[heading])
    return _unwrapped(Text(" " * _GAP).join(words))


def _unwrapped(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    text.rstrip()
    return text


def _reason(of: Job | Step | Command | HostTask) -> str:
    return reason_line(of.error) if of.HasField("error") else ""


def _in_words(parameters: Struct) -> str:
    values: dict[str, Any] = plain(parameters)
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()) if value not in (None, "", [], {}))


def _iso(time: datetime | None) -> str | None:
    return time.isoformat().replace("+00:00", "Z") if time else None


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
