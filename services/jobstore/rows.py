"""From the messages of a commit to the rows of the tables.

Done when a commit arrives, before its transaction, so that as little as possible happens under the writers' mutex. A
commit's rows are tuples, table by table, in the order of that table's `Shape`; the transaction concatenates those of
the commits that it applies and hands each table's columns to one `unnest`.

What the commit does not say is added there: revision and times (the transaction's), and, as the last column, the
flow's correlation id.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import invalid_argument, invalid_field
from waybill.v1 import jobs_pb2, jobstore_pb2

Row = tuple[Any, ...]
Key = tuple[str, str]
"""An entity: type and id."""


# --- tables ----------------------------------------------------------------------------------------------------------


class Shape:
    """The columns of a table that rows of ours fill, and how they travel: as one array a column.

    Declared as in SQL. A `?` behind the type: absent values travel as the empty value of what carries them, because the
    encoder takes several times as long for None as for a text. What has no carrier here travels as its text.
    """

    def __init__(self, columns: str) -> None:
        self._columns = [column.split() for column in columns.replace("\n", " ").split(",")]

    @property
    def names(self) -> str:
        """The columns, for INSERT."""
        return ", ".join(name for name, _ in self._columns)

    @property
    def values(self) -> str:
        """The same of the relation `u`, for SELECT."""
        return ", ".join(f"u.{name}" for name, _ in self._columns)

    def rows(self, first: int) -> str:
        """The rows as a relation `u` of the declared types; the arrays are the parameters from number `first` on."""
        arrays = (f"${number}::{_carrier(kind)}[]" for number, (_, kind) in enumerate(self._columns, first))
        values = (f"{_value(name, kind)} AS {name}" for name, kind in self._columns)
        return f"(SELECT {', '.join(values)} FROM unnest({', '.join(arrays)}) AS carried ({self.names})) AS u"


_CARRIED: Final = {"text": "''", "bytea": "''", "int": "0", "bigint": "0", "float": "0", "boolean": "false"}
"""What travels as itself, and its empty value."""


def _carrier(kind: str) -> str:
    kind = kind.rstrip("?")
    return kind if kind in _CARRIED else "text"


def _value(name: str, kind: str) -> str:
    carrier = _carrier(kind)
    value = f"nullif({name}, {_CARRIED[carrier]})" if kind.endswith("?") else name
    return value if carrier == kind.rstrip("?") else f"{value}::{kind.rstrip('?')}"


JOB: Final = Shape(
    """job_id text, flow_command_id text, command_type text, description text, status text?, owner text,
    correlation_id text, trace_id text, span_id text, parameters jsonb, subjects jsonb, progress int, visible boolean,
    auto_cleared boolean, cancelable text, priority int, restarted_from text, error bytea?, request_id text,
    request_hash bytea?, deadline timestamptz?, categories text[], cancel_requested_by text"""
)
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
SNAPSHOT: Final = Shape(
    "flow_command_id text, number int, command_id text, entity_type text?, entity_id text, former jsonb?"
)
EVENT: Final = Shape(
    """event_id text, event_type text, severity text?, message text, entity_type text?, entity_id text, "user" text,
    job_id text, correlation_id text"""
)
ENTITY: Final = Shape("entity_type text?, entity_id text, name text, status text, declared jsonb")
ENTITY_CHANGE: Final = Shape("entity_type text, entity_id text, name text, status text, declared jsonb")
ENTITY_KEY: Final = Shape("entity_type text, entity_id text")
OBSERVATION: Final = Shape(
    """entity_type text, entity_id text, observed_state text, observed_host_id text, observed_error text,
    observed_incarnation text, observed_number bigint"""
)


# --- values ----------------------------------------------------------------------------------------------------------


def _short_names(items: Iterable[tuple[str, int]]) -> dict[int, str]:
    """An enum's names by number, without their prefix; UNSPECIFIED, number 0, is empty."""
    names = {number: name for name, number in items}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return {number: name.removeprefix(prefix) if number else "" for number, name in names.items()}


_EXECUTION_STATUS: Final = _short_names(jobs_pb2.ExecutionStatus.items())
_COMMAND_STATUS: Final = _short_names(jobs_pb2.CommandStatus.items())
_HOST_TASK_KIND: Final = _short_names(jobs_pb2.HostTaskKind.items())
_TASK_STATE: Final = _short_names(jobs_pb2.TaskState.items())
_TASK_RESULT: Final = _short_names(jobs_pb2.TaskResult.items())
_ENTITY_TYPE: Final = _short_names(jobs_pb2.EntityType.items())
_EXTERNAL_SYSTEM_TYPE: Final = _short_names(jobs_pb2.ExternalSystemType.items())
_CANCEL_KIND: Final = _short_names(jobs_pb2.CancelKind.items())
_SEVERITY: Final = _short_names(jobs_pb2.Severity.items())


def key_of(entity: jobstore_pb2.EntityRef | jobs_pb2.Entity | jobs_pb2.Subject) -> Key:
    """Returns the entity's key, its type by name."""
    return _ENTITY_TYPE[entity.entity_type], entity.entity_id


def _subjects(subjects: Iterable[jobs_pb2.Subject]) -> str:
    content = [
        {"entity_type": _ENTITY_TYPE[subject.entity_type], "entity_id": subject.entity_id, "name": subject.name}
        for subject in subjects
    ]
    return json.dumps(content, ensure_ascii=False) if content else "[]"


def _error(message: Message) -> bytes:
    if not message.HasField("error"):
        return b""
    serialised: bytes = message.error.SerializeToString()  # type: ignore[attr-defined]
    return serialised


def _time(message: Message, field: str) -> str:
    if not message.HasField(field):
        return ""
    time: Timestamp = getattr(message, field)
    return time.ToJsonString()


def _entity(message: Message) -> Key:
    """Most rows name none, and asking for what is not there makes it."""
    return key_of(message.entity) if message.HasField("entity") else ("", "")  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=1024)  # a command type always has the same categories
def _array(texts: tuple[str, ...]) -> str:
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _job(commit: jobstore_pb2.FlowCommit) -> Row:
    job = commit.new_job
    return (
        commit.job_id,
        commit.flow_command_id,
        job.command_type,
        job.description,
        _EXECUTION_STATUS[job.status],
        job.owner,
        job.correlation_id,
        job.trace_id,
        job.span_id,
        job.parameters_json or "{}",
        _subjects(job.subjects),
        job.progress,
        job.visible,
        job.auto_cleared,
        _CANCEL_KIND[job.cancelable] or "NONE",
        job.priority,
        job.restarted_from,
        _error(job),
        job.request_id,
        job.request_hash,
        _time(job, "deadline"),
        _array(tuple(job.categories)),
        job.cancel_requested_by,
    )


def _job_change(commit: jobstore_pb2.FlowCommit) -> Row:
    """All of it may be empty: the job's revision rises with each change of a step. Progress never falls, so 0 stays."""
    job = commit.job
    return (
        commit.job_id,
        _EXECUTION_STATUS[job.status],
        job.progress,
        _CANCEL_KIND[job.cancelable],
        _error(job),
        job.cancel_requested_by,
    )


def _step(step: jobstore_pb2.StepRow, job_id: str) -> Row:
    return (
        job_id,
        step.step_id,
        step.parent_step_id,
        step.command_id,
        step.step_type,
        step.description,
        step.number,
        _EXECUTION_STATUS[step.status],
        step.progress,
        step.external_id,
        _EXTERNAL_SYSTEM_TYPE[step.external_system_type],
        step.span_id,
        _subjects(step.subjects),
        _error(step),
        step.weight,
    )


def _step_change(step: jobstore_pb2.StepChange) -> Row:
    return (
        step.step_id,
        _EXECUTION_STATUS[step.status],
        step.progress,
        step.external_id,
        _EXTERNAL_SYSTEM_TYPE[step.external_system_type],
        _error(step),
    )


def _command(command: jobstore_pb2.CommandRow, commit: jobstore_pb2.FlowCommit, coordinator_id: str) -> Row:
    is_root = command.command_id == commit.flow_command_id
    return (
        commit.job_id,
        commit.flow_command_id,
        command.command_id,
        command.parent_command_id,
        command.step_id,
        command.command_type,
        command.parameters_json or "{}",
        command.parameters_version,
        _COMMAND_STATUS[command.status],
        command.plans_json or "[]",
        command.end_attempts,
        _error(command),
        command.span_id,
        command.traceparent,
        command.node,
        *((coordinator_id, commit.epoch, commit.sequence) if is_root else ("", 0, 0)),
    )


def _command_change(command: jobstore_pb2.CommandChange, commit: jobstore_pb2.FlowCommit) -> Row:
    return (
        command.command_id,
        _COMMAND_STATUS[command.status],
        command.plans_json,
        command.end_attempts,
        _error(command),
        commit.sequence if command.command_id == commit.flow_command_id else 0,
    )


def _command_changes(commit: jobstore_pb2.FlowCommit) -> list[Row]:
    """The changed commands and, in any case, the root: it keeps the flow's sequence."""
    changes = [_command_change(command, commit) for command in commit.commands]
    if commit.sequence > 1 and not any(change[-1] for change in changes):
        changes.append((commit.flow_command_id, "", "", 0, b"", commit.sequence))
    return changes


def _task(task: jobstore_pb2.TaskRow, commit: jobstore_pb2.FlowCommit) -> Row:
    return (
        commit.job_id,
        commit.flow_command_id,
        task.task_id,
        _HOST_TASK_KIND[task.kind],
        task.command_id,
        task.step_id,
        task.host_id,
        task.verb,
        task.arguments_json or "{}",
        task.attempt,
        task.path,
        *_entity(task),
        _TASK_STATE[task.state],
        _TASK_RESULT[task.result],
        task.answer_json,
        _error(task),
        task.incarnation,
        task.span_id,
        _time(task, "deadline"),
    )


def _task_change(task: jobstore_pb2.TaskChange) -> Row:
    return (
        task.task_id,
        _TASK_STATE[task.state],
        _TASK_RESULT[task.result],
        task.answer_json,
        _error(task),
        task.incarnation,
    )


def _lock(lock: jobstore_pb2.LockRow, commit: jobstore_pb2.FlowCommit) -> Row:
    return (
        *key_of(lock.entity),
        commit.flow_command_id,
        commit.job_id,
        lock.command_id,
        lock.exclusive,
        lock.reason,
    )


def _snapshot(snapshot: jobstore_pb2.SnapshotRow, flow_command_id: str) -> Row:
    return (
        flow_command_id,
        snapshot.number,
        snapshot.command_id,
        *key_of(snapshot.entity),
        snapshot.former_json,
    )


def _event(event: jobstore_pb2.EventRow, job_id: str) -> Row:
    return (
        event.event_id,
        event.event_type,
        _SEVERITY[event.severity],
        event.message,
        *_entity(event),
        event.user,
        job_id,
    )


def _observation(row: jobstore_pb2.ObservedRow) -> Row:
    seen = row.observed
    return (*key_of(row.entity), seen.state, seen.host_id, seen.error, seen.incarnation, seen.number)


# --- what arrives ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """Rows by table, of one commit or of many."""

    jobs: list[Row] = field(default_factory=list)
    subjects: list[Row] = field(default_factory=list)
    job_changes: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    step_changes: list[Row] = field(default_factory=list)
    commands: list[Row] = field(default_factory=list)
    command_changes: list[Row] = field(default_factory=list)
    tasks: list[Row] = field(default_factory=list)
    task_changes: list[Row] = field(default_factory=list)
    snapshots: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)


def rows_of(commit: jobstore_pb2.FlowCommit, coordinator_id: str) -> Rows:
    """Returns the rows of a commit; raises INVALID_ARGUMENT for an enum's value that we do not know."""
    try:
        return _rows_of(commit, coordinator_id)
    except KeyError:
        raise invalid_argument("REQUEST_INVALID", "an enum has a value that this release does not know") from None


def _rows_of(commit: jobstore_pb2.FlowCommit, coordinator_id: str) -> Rows:
    job_id = commit.job_id
    rows = Rows(
        steps=[_step(step, job_id) for step in commit.new_steps],
        step_changes=[_step_change(step) for step in commit.steps],
        commands=[_command(command, commit, coordinator_id) for command in commit.new_commands],
        command_changes=_command_changes(commit),
        tasks=[_task(task, commit) for task in commit.new_tasks],
        task_changes=[_task_change(task) for task in commit.tasks],
        events=[_event(event, job_id) for event in commit.events],
    )
    if commit.HasField("new_job"):
        _require_root(commit)
        rows.jobs = [_job(commit)]
        rows.subjects = [(*key, job_id) for key in dict.fromkeys(map(key_of, commit.new_job.subjects))]
    elif commit.HasField("job") or rows.steps or rows.step_changes:
        rows.job_changes = [_job_change(commit)]
    if not commit.ends_flow:  # else they would go with the same transaction
        rows.snapshots = [_snapshot(snapshot, commit.flow_command_id) for snapshot in commit.snapshots]
    return rows


def _require_root(commit: jobstore_pb2.FlowCommit) -> None:
    """A flow without its root command could never be written again, nor claimed."""
    if all(command.command_id != commit.flow_command_id for command in commit.new_commands):
        raise invalid_field("new_commands", "the first commit of a flow has its root command")


def lock_rows(commit: jobstore_pb2.FlowCommit, wanted: Iterable[jobstore_pb2.LockRow]) -> list[Row]:
    """Returns the rows of locks that a commit takes."""
    return [_lock(lock, commit) for lock in wanted]


def event_rows(events: Iterable[jobstore_pb2.EventRow]) -> list[Row]:
    """Returns the rows of events that belong to no flow."""
    return [_event(event, "") for event in events]


def newest_observations(observed: Iterable[jobstore_pb2.ObservedRow]) -> list[Row]:
    """Returns one row an entity: what was seen last. Within an incarnation the number decides, not the order."""
    newest: dict[Row, Row] = {}
    for row in map(_observation, observed):
        former = newest.get(row[:2])
        if former is None or former[5] != row[5] or former[6] < row[6]:
            newest[row[:2]] = row
    return list(newest.values())
