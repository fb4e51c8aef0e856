"""The tables as the journal fills them, and how rows travel to Postgres.

Rows go a column at a time, for all rows of a statement at once, and a column goes as *one text*: its values, each as
Postgres reads it, with a separator between. Postgres takes them apart again into the relation `u`, which a statement
reads like a table. Compared with arrays, which the driver encodes value by value, this saves a third of all that a
journal computes (measured), and Postgres does not mind.

The separator is U+001F, made for the purpose in 1963. A text that has one of its own (an error message, at worst) keeps
its picture, U+241F: no row may get out of step for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Row = tuple[str, ...]
"""A row of a shape; each value in the form in which Postgres reads its type."""

_SEPARATOR: Final = "\x1f"
_ITS_PICTURE: Final = "\u241f"


def carried(column: Sequence[str]) -> str:
    """Returns a column as one text."""
    text = _SEPARATOR.join(column)
    if text.count(_SEPARATOR) != max(len(column) - 1, 0):
        text = _SEPARATOR.join(value.replace(_SEPARATOR, _ITS_PICTURE) for value in column)
    return text


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Returns the columns of rows, each as one text."""
    return [carried(column) for column in zip(*rows, strict=True)]


def values_of(parameter: int) -> str:
    """The values of a column as an array, in SQL."""
    return f"string_to_array(${parameter}::text, E'\\x1f')"


class Shape:
    """The columns of a table that rows of ours fill, declared as in SQL.

    A `?` behind the type: an empty value is NULL. Without it, empty is empty, as in the protos.
    """

    def __init__(self, columns: str) -> None:
        self._columns = [column.split() for column in columns.replace("\n", " ").split(",")]

    def index(self, column: str) -> int:
        """Returns where in a row a column is."""
        return [name for name, _ in self._columns].index(column)

    @property
    def names(self) -> str:
        """The columns, for INSERT."""
        return ", ".join(name for name, _ in self._columns)

    @property
    def values(self) -> str:
        """The same of the relation `u`, for SELECT."""
        return ", ".join(f"u.{name}" for name, _ in self._columns)

    def rows(self, first: int) -> str:
        """The rows as a relation `u`; its columns are the parameters from number `first` on."""
        parameters = range(first, first + len(self._columns))
        columns = ", ".join(f"string_to_table(${number}::text, E'\\x1f')" for number in parameters)
        values = ", ".join(f"{_value(name, kind)} AS {name}" for name, kind in self._columns)
        return f"(SELECT {values} FROM ROWS FROM ({columns}) AS carried ({self.names})) AS u"


def _value(name: str, kind: str) -> str:
    """What was carried, as what it is. A column of one empty text arrives as a column of nothing."""
    value = f"nullif({name}, '')" if kind.endswith("?") else f"coalesce({name}, '')"
    match kind.rstrip("?"):
        case "text":
            return value
        case "bytea":
            return f"decode({value}, 'hex')"
        case other:
            return f"{value}::{other}"


JOB: Final = Shape(
    """job_id text, flow_command_id text, command_type text, description text, status text?, owner text,
    correlation_id text, trace_id text, span_id text, parameters jsonb, subjects jsonb, progress int, visible boolean,
    auto_cleared boolean, cancelable text, priority int, restarted_from text, error bytea?, request_id text,
    request_hash bytea?, deadline timestamptz?, categories text[], cancel_requested_by text"""
)
CHILD_JOB: Final = Shape(
    """job_id text, flow_command_id text, command_type text, description text, status text?, owner text,
    correlation_id text, trace_id text, span_id text, parameters jsonb, subjects jsonb, progress int, visible boolean,
    auto_cleared boolean, cancelable text, priority int, restarted_from text, error bytea?, request_id text,
    request_hash bytea?, deadline timestamptz?, categories text[], cancel_requested_by text, parent_job_id text,
    command_id text"""
)
JOB_NAMES: Final = Shape("job_id text, description text, subjects jsonb")
SUBJECT: Final = Shape("entity_type text?, entity_id text, job_id text")
JOB_CHANGE: Final = Shape(
    "job_id text, status text?, progress int, cancelable text?, error bytea?, cancel_requested_by text?"
)
STEP: Final = Shape(
    """job_id text, step_id text, parent_step_id text, command_id text, step_type text, description text, number int,
    status text?, progress int, external_id text, external_system_type text?, span_id text, subjects jsonb,
    error bytea?, weight float, correlation_id text"""
)
STEP_CHANGE: Final = Shape(
    "step_id text, status text?, progress int, external_id text?, external_system_type text?, error bytea?"
)
COMMAND: Final = Shape(
    """job_id text, flow_command_id text, command_id text, parent_command_id text, step_id text, command_type text,
    parameters jsonb, parameters_version int, status text?, plans jsonb, end_attempts int, error bytea?, span_id text,
    traceparent text, node text, coordinator_id text?, epoch bigint?, sequence bigint?, correlation_id text"""
)
COMMAND_CHANGE: Final = Shape(
    "command_id text, status text?, plans jsonb?, end_attempts int, error bytea?, sequence bigint?"
)
TASK: Final = Shape(
    """job_id text, flow_command_id text, task_id text, kind text?, command_id text, step_id text, host_id text,
    verb text, arguments jsonb, attempt int, path text, entity_type text?, entity_id text, state text?, result text?,
    answer jsonb?, error bytea?, incarnation text, span_id text, deadline timestamptz?, correlation_id text"""
)
TASK_CHANGE: Final = Shape("task_id text, state text?, result text?, answer jsonb?, error bytea?, incarnation text?")
LOCK: Final = Shape(
    """entity_type text?, entity_id text, flow_command_id text, job_id text, command_id text, exclusive boolean,
    reason text"""
)
DEPENDENCY: Final = Shape("flow_command_id text, depends_on text, policy text")
PRIORITY: Final = Shape("job_id text, priority int")
PLACE: Final = Shape(
    """entity_type text?, entity_id text, flow_command_id text, job_id text, command_id text, exclusive boolean,
    reason text, waits_until timestamptz"""
)
SNAPSHOT: Final = Shape(
    "flow_command_id text, number int, command_id text, entity_type text?, entity_id text, former jsonb?"
)
EVENT: Final = Shape(
    """event_id text, event_type text, severity text?, message text, entity_type text?, entity_id text, "user" text,
    job_id text, correlation_id text"""
)
TASK_EVENT: Final = Shape("event_id text, event_type text, severity text?, message text, task_id text")
ENTITY: Final = Shape("entity_type text?, entity_id text, name text, status text, declared jsonb")
# Anew: nothing stays as it was, an empty name neither.
ENTITY_CHANGE: Final = Shape("entity_type text, entity_id text, name text, status text?, declared jsonb?, anew boolean")
ENTITY_KEY: Final = Shape("entity_type text, entity_id text")
OBSERVATION: Final = Shape(
    """entity_type text, entity_id text, observed_state text, observed_host_id text, observed_error text,
    observed_incarnation text, observed_number bigint"""
)
