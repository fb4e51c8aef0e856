"""The fields that filters may name, each said once: what it is, of which kind (`kinds.py`), where it stands in SQL, how
it is read off a message, and whether it may have another value tomorrow.

Published by kind of thing: `JOBS`, `EVENTS`, `ENTITIES`. The list that people see is made of these (ListFilterFields).

A field has one value, none, or, if it stands `among` others, any number of them. A comparison holds if any of the
values fulfils it; what has no value fulfils nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final, Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from jobstore.messages import ENTITY_TYPE_NAME, EPOCH, EXECUTION_STATUS, SEVERITY
from jobstore.search.kinds import (
    Choice,
    CorrelationId,
    Duration,
    EntityName,
    Flag,
    Kind,
    Number,
    Prose,
    Something,
    Status,
    Text,
    Time,
    Uuid,
)
from waybill.v1 import jobs_pb2, jobstore_pb2


class Seen(Protocol):
    """A job as a watch sees it."""

    @property
    def job(self) -> jobs_pb2.Job:
        """Without steps."""
        ...

    @property
    def hosts(self) -> Collection[str]:
        """Where it has begun something; need not be known unless a filter mentions `host`."""
        ...


class Changes(IntEnum):
    """When a field may get another value."""

    NEVER = 0
    WITH_STATUS = 1
    """With a change of the job's status only."""
    ANY_TIME = 2


@dataclass(frozen=True)
class Among:
    """A place in SQL where a job has many values of a field."""

    column: str
    """One of them."""
    sql: str
    """What stands around a condition (`{}`) on one of them."""


@dataclass(frozen=True)
class Field:
    """A published field."""

    name: str
    kind: Kind = field(compare=False)
    column: str = field(compare=False)
    """Its value in SQL; empty if it has many."""
    about: str = field(compare=False)
    """What it is, for people."""
    get: Callable[[Seen], Any] | None = field(default=None, compare=False)
    """Its value in a message, None if it has none; of one that has many, all. None: nobody watches this kind of
    thing."""
    changes: Changes = field(default=Changes.NEVER, compare=False)
    among: tuple[Among, ...] = field(default=(), compare=False)
    """Where it has many values; empty: it has one at most."""
    alias: str = field(default="", compare=False)
    """Another name for it."""

    def __str__(self) -> str:
        return f"{self.name} (or {self.alias})" if self.alias else self.name


class Published:
    """The fields of a kind of thing."""

    def __init__(self, *fields: Field, text: str) -> None:
        """`text` names the field in which words by themselves are searched for."""
        self._fields = fields
        self._by_name = {each.name: each for each in fields} | {each.alias: each for each in fields if each.alias}
        self.text = self._by_name[text]

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields)

    def __str__(self) -> str:
        return ", ".join(map(str, self._fields))


# --- jobs ----------------------------------------------------------------------------------------------------------


def _moment(time: Timestamp) -> datetime:
    return EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1_000)


def _time(name: str) -> Callable[[Seen], datetime | None]:
    def get(seen: Seen) -> datetime | None:
        return _moment(getattr(seen.job, name)) if seen.job.HasField(name) else None  # type: ignore[arg-type]

    return get


def _duration(seen: Seen) -> timedelta | None:
    job = seen.job
    if not (job.HasField("start_time") and job.HasField("end_time")):
        return None
    return _moment(job.end_time) - _moment(job.start_time)


def error_reason(error: status_pb2.Status) -> str | None:
    """The reason that an error gives, None if it gives none; SQL has a function of this name that says the same."""
    info = error_details_pb2.ErrorInfo()
    for detail in error.details:
        if detail.Unpack(info):
            return info.reason or None
    return None


_STATUS_NAME: Final = {number: name for name, number in EXECUTION_STATUS.items()}


def _hosts(seen: Seen) -> set[str]:
    subjects = {each.entity_id for each in seen.job.subjects if each.entity_type == jobs_pb2.ENTITY_TYPE_HOST}
    return subjects.union(seen.hosts)


_SUBJECTS: Final = "SELECT FROM job_subject_entity AS subject WHERE subject.job_id = job.job_id"
_TASKS: Final = "SELECT FROM host_task WHERE host_task.job_id = job.job_id AND host_task.host_id <> ''"

JOBS: Final = Published(
    Field("job_id", Uuid(), "job.job_id", "Id of the job.", lambda seen: seen.job.job_id),
    Field(
        "status",
        Status(EXECUTION_STATUS),
        "job.status",
        "How far it is.",
        lambda seen: _STATUS_NAME[seen.job.status],
        Changes.WITH_STATUS,
    ),
    Field(
        "command_type",
        Text(),
        "job.command_type",
        "Type of its command, like RemoveVm.",
        lambda seen: seen.job.command_type,
        alias="type",
    ),
    Field(
        "category",
        Text(),
        "",
        "Any category of its command's type.",
        lambda seen: seen.job.categories,
        among=(Among("category", "EXISTS (SELECT FROM unnest(job.categories) AS category WHERE {})"),),
    ),
    Field("owner", Text(), "job.owner", "Who asked for it.", lambda seen: seen.job.owner),
    Field(
        "correlation_id",
        CorrelationId(),
        "job.correlation_id",
        "What ties it to an action elsewhere.",
        lambda seen: seen.job.correlation_id,
    ),
    Field(
        "entity",
        EntityName(),
        "",
        "Any entity that it is about.",
        lambda seen: [(ENTITY_TYPE_NAME[each.entity_type], each.entity_id) for each in seen.job.subjects],
        among=(Among("subject", f"EXISTS ({_SUBJECTS} AND {{}})"),),
    ),
    Field(
        "host",
        Text(),
        "",
        "Any host that it is about, or on which it has begun something.",
        _hosts,
        Changes.ANY_TIME,
        among=(
            Among("host_task.host_id", f"EXISTS ({_TASKS} AND {{}})"),
            Among("subject.entity_id", f"EXISTS ({_SUBJECTS} AND subject.entity_type = 'HOST' AND {{}})"),
        ),
    ),
    Field("create_time", Time(), "job.create_time", "When it was stored.", _time("create_time")),
    Field(
        "start_time",
        Time(),
        "job.start_time",
        "When it began; none before.",
        _time("start_time"),
        Changes.WITH_STATUS,
    ),
    Field("end_time", Time(), "job.end_time", "When it ended; none before.", _time("end_time"), Changes.WITH_STATUS),
    Field("update_time", Time(), "job.update_time", "When it last changed.", _time("update_time"), Changes.ANY_TIME),
    Field("deadline", Time(), "job.deadline", "When it is to have ended; none: never.", _time("deadline")),
    Field(
        "duration",
        Duration(),
        "(job.end_time - job.start_time)",
        "From its start to its end; none before.",
        _duration,
        Changes.WITH_STATUS,
    ),
    Field(
        "progress",
        Number(),
        "job.progress",
        "In percent.",
        lambda seen: seen.job.progress,
        Changes.ANY_TIME,
    ),
    Field(
        "priority",
        Number(),
        "job.priority",
        "Higher goes first.",
        lambda seen: seen.job.priority,
        Changes.ANY_TIME,
    ),
    Field(
        "visible",
        Flag(),
        "job.visible",
        "Whether lists show it by themselves. Unless a filter names this field, it asks for visible jobs.",
        lambda seen: seen.job.visible,
    ),
    Field("external", Flag(), "job.external", "Whether another system reports it.", lambda seen: seen.job.external),
    Field(
        "description",
        Prose(),
        "job.description",
        "What it does, in words. A word by itself is searched for here.",
        lambda seen: seen.job.description,
    ),
    Field(
        "error",
        Something("error.reason can be compared"),
        "job.error",
        "Why it did not end well: has(error).",
        lambda seen: seen.job.error if seen.job.HasField("error") else None,
        Changes.WITH_STATUS,
    ),
    Field(
        "error.reason",
        Text(),
        "error_reason(job.error)",
        "The reason that its error gives, like LOCKED.",
        lambda seen: error_reason(seen.job.error) if seen.job.HasField("error") else None,
        Changes.WITH_STATUS,
    ),
    Field(
        "restarted_from",
        Uuid(),
        "job.restarted_from",
        "The failed job that it repeats; none: it repeats none.",
        lambda seen: seen.job.restarted_from,
    ),
    Field(
        "parent_job_id",
        Uuid(),
        "job.parent_job_id",
        "The job whose plan began it as a job of its own; none: nobody's did.",
        lambda seen: seen.job.parent_job_id,
    ),
    text="description",
)

# --- what nobody watches -------------------------------------------------------------------------------------------

EVENTS: Final = Published(
    Field("job_id", Uuid(), "event.job_id", "The job that it is about. By this or the next, step events are told."),
    Field("correlation_id", CorrelationId(), "event.correlation_id", "What ties it to an action elsewhere."),
    Field("entity", EntityName(), "event", "What it is about."),
    Field("severity", Choice(SEVERITY), "event.severity", "How bad it is."),
    Field("event_type", Text(), "event.event_type", "What happened, like JOB_ENDED.", alias="type"),
    Field("time", Time(), "event.time", "When it happened."),
    Field("user", Text(), 'event."user"', "Who caused it; none: the system."),
    Field("message", Prose(), "event.message", "In words. A word by itself is searched for here."),
    text="message",
)

ENTITIES: Final = Published(
    Field("entity_id", Text(), "entity.entity_id", "Its id."),
    Field("name", Prose(), "entity.name", "For people. A word by itself is searched for here."),
    Field("status", Text(), "entity.status", "As declared: OK, LOCKED, ILLEGAL ..."),
    Field("state", Text(), "entity.observed_state", "As seen: UP, DOWN ...; none: never seen."),
    Field("host", Text(), "entity.observed_host_id", "The host on which it was seen."),
    Field("error", Text(), "entity.observed_error", "What its host says is wrong with it."),
    text="name",
)

# --- for people ----------------------------------------------------------------------------------------------------

FILTERED: Final[Mapping[jobstore_pb2.FilteredKind.ValueType, Published]] = {
    jobstore_pb2.FILTERED_KIND_UNSPECIFIED: JOBS,
    jobstore_pb2.FILTERED_KIND_JOBS: JOBS,
    jobstore_pb2.FILTERED_KIND_EVENTS: EVENTS,
    jobstore_pb2.FILTERED_KIND_ENTITIES: ENTITIES,
}


def filter_field_message(field: Field) -> jobstore_pb2.FilterField:
    """What is told of a field."""
    return jobstore_pb2.FilterField(
        name=field.name,
        alias=field.alias,
        description=field.about,
        value_format=field.kind.expected,
        values=field.kind.names if isinstance(field.kind, Choice) else [],
        operators=field.kind.operators,
        changing=field.changes is not Changes.NEVER,
        repeated=bool(field.among),
    )
