"""The fields that filters may name: how each is written, where it is found in SQL, how it is compared in a message.

Published by kind of thing: `JOBS`, `EVENTS`, `ENTITIES`. All fields of a job but its status are set when it is made and
never change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from chassis.context import valid_correlation_id
from jobstore.messages import ENTITY_TYPE, EXECUTION_STATUS, SEVERITY
from waybill.v1 import jobs_pb2

MAX_NAME_LENGTH: Final = 256
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

Value = str | bool | tuple[str, str]
"""A value as compared: a text or an enum's short name, a truth, or an entity's type and id."""


class Bindings:
    """The values of one statement, in the order of their placeholders."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)

    def __call__(self, value: object) -> str:
        """Binds a value and returns its placeholder, `$3`."""
        self.values.append(value)
        return f"${len(self.values)}"


Read = Callable[[str], Value]
"""Text as written to value; raises ValueError saying what would be right."""


@dataclass(frozen=True)
class Field:
    """A published field: how its value is written, where it is found in SQL, and how it is compared in a job."""

    name: str
    read: Read = field(compare=False)
    equals: Callable[[Bindings, Value], str] = field(compare=False)
    """The SQL condition for "is equal to"."""
    differs: Callable[[Bindings, Value], str] | None = field(default=None, compare=False)
    """The one for "is not equal to", where there is a better one than the opposite of that."""
    holds: Callable[[jobs_pb2.Job, Value], bool] | None = field(default=None, compare=False)
    """The same of a message; None: nobody watches this kind of thing."""
    changing: bool = False
    """True: it may have another value tomorrow."""


def _text(text: str) -> str:
    if len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"must be at most {MAX_NAME_LENGTH} characters")
    return text


def _uuid(text: str) -> str:
    if not UUID.fullmatch(text):
        raise ValueError("must be a UUID")
    return text.lower()


def _correlation_id(text: str) -> str:
    if not valid_correlation_id(text):
        raise ValueError("must be 1-50 of [0-9A-Za-z_-]")
    return text


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _one_of(names: Mapping[str | None, int]) -> Read:
    known = [name for name in names if name is not None]

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return text

    return read


def _entity(text: str) -> tuple[str, str]:
    entity_type, slash, entity_id = text.partition("/")
    if not slash or not entity_id or entity_type not in ENTITY_TYPE:
        known = ", ".join(name for name in ENTITY_TYPE if name is not None)
        raise ValueError(f"must be TYPE/id, as in VM/vm-1, with TYPE one of {known}")
    return entity_type, _text(entity_id)


def _column(column: str) -> Callable[[Bindings, Value], str]:
    return lambda bind, value: f"{column} = {bind(value)}"


_UNFINISHED: Final = "job.status <> 'FINISHED'"


def _status(bind: Bindings, value: Value) -> str:
    """Nearly every job is FINISHED, so the index by status leaves those out, and must be told that we do, too."""
    rest = "" if value == "FINISHED" else f" AND {_UNFINISHED}"
    return f"job.status = {bind(value)}{rest}"


def _not_status(bind: Bindings, value: Value) -> str:
    return _UNFINISHED if value == "FINISHED" else f"job.status <> {bind(value)}"


def _subject(bind: Bindings, value: Value) -> str:
    assert isinstance(value, tuple)
    return (
        "EXISTS (SELECT FROM job_subject_entity AS subject WHERE subject.job_id = job.job_id"
        f" AND subject.entity_type = {bind(value[0])} AND subject.entity_id = {bind(value[1])})"
    )


def _has_subject(job: jobs_pb2.Job, value: Value) -> bool:
    assert isinstance(value, tuple)
    entity_type = ENTITY_TYPE[value[0]]
    return any(each.entity_id == value[1] and each.entity_type == entity_type for each in job.subjects)


def _event_entity(bind: Bindings, value: Value) -> str:
    assert isinstance(value, tuple)
    return f"event.entity_type = {bind(value[0])} AND event.entity_id = {bind(value[1])}"


def _published(*fields: Field) -> Mapping[str, Field]:
    return {each.name: each for each in fields}


JOBS: Final = _published(
    Field("job_id", _uuid, _column("job.job_id"), holds=lambda job, value: job.job_id == value),
    Field(
        "status",
        _one_of(EXECUTION_STATUS),
        _status,
        differs=_not_status,
        holds=lambda job, value: job.status == EXECUTION_STATUS[str(value)],
        changing=True,
    ),
    Field("command_type", _text, _column("job.command_type"), holds=lambda job, value: job.command_type == value),
    Field(
        "correlation_id",
        _correlation_id,
        _column("job.correlation_id"),
        holds=lambda job, value: job.correlation_id == value,
    ),
    Field("owner", _text, _column("job.owner"), holds=lambda job, value: job.owner == value),
    Field("entity", _entity, _subject, holds=_has_subject),
    Field("visible", _truth, _column("job.visible"), holds=lambda job, value: job.visible == value),
)

EVENTS: Final = _published(
    Field("job_id", _uuid, _column("event.job_id")),
    Field("correlation_id", _correlation_id, _column("event.correlation_id")),
    Field("entity", _entity, _event_entity),
    Field("severity", _one_of(SEVERITY), _column("event.severity")),
    Field("event_type", _text, _column("event.event_type")),
)

ENTITIES: Final = _published(
    Field("name", _text, _column("entity.name")),
    Field("status", _text, _column("entity.status")),
    Field("state", _text, _column("entity.observed_state")),
    Field("host", _text, _column("entity.observed_host_id")),
)
