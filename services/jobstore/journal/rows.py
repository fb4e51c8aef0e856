"""From the messages of a commit to the rows of the tables.

Done when a commit arrives, before its transaction, so that as little as possible happens under the writers' mutex. A
commit's rows are tuples of texts, table by table, in the order of that table's shape (`shapes.py`); the transaction
concatenates those of the commits that it applies.

What the commit does not say is added there: revision and times (the transaction's), and, as the last column, the
flow's correlation id.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import invalid_argument, invalid_field
from jobstore.journal.shapes import Row
from waybill.v1 import jobs_pb2, jobstore_pb2

Key = tuple[str, str]
"""An entity: type and id."""


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
_DEPENDENCY_POLICY: Final = _short_names(jobs_pb2.DependencyPolicy.items())
_SEVERITY: Final = _short_names(jobs_pb2.Severity.items())


def key_of(entity: jobstore_pb2.EntityRef | jobs_pb2.Entity | jobs_pb2.Subject) -> Key:
    """Returns the entity's key, its type by name."""
    return _ENTITY_TYPE[entity.entity_type], entity.entity_id


def subjects_json(subjects: Iterable[jobs_pb2.Subject]) -> str:
    """Returns the column `subjects` of a job or step."""
    content = [
        {"entity_type": _ENTITY_TYPE[subject.entity_type], "entity_id": subject.entity_id, "name": subject.name}
        for subject in subjects
    ]
    return json.dumps(content, ensure_ascii=False) if content else "[]"


def _error(message: Message) -> str:
    if not message.HasField("error"):
        return ""
    serialised: bytes = message.error.SerializeToString()  # type: ignore[attr-defined]
    return serialised.hex()


def _boolean(value: bool) -> str:
    return "t" if value else "f"


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


def _job(commit: jobstore_pb2.FlowCommit, job: jobstore_pb2.JobRow, job_id: str) -> Row:
    return (
        job_id,
        commit.flow_command_id,
        job.command_type,
        job.description,
        _EXECUTION_STATUS[job.status],
        job.owner,
        job.correlation_id,
        job.trace_id,
        job.span_id,
        job.parameters_json or "{}",
        subjects_json(job.subjects),
        str(job.progress),
        _boolean(job.visible),
        _boolean(job.auto_cleared),
        _CANCEL_KIND[job.cancelable] or "NONE",
        str(job.priority),
        job.restarted_from,
        _error(job),
        job.request_id,
        job.request_hash.hex(),
        _time(job, "deadline"),
        _array(tuple(job.categories)),
        job.cancel_requested_by,
    )


def _child_job(commit: jobstore_pb2.FlowCommit, job: jobstore_pb2.JobRow) -> Row:
    return (*_job(commit, job, job.job_id), job.parent_job_id, job.command_id)


def _subjects(subjects: Iterable[jobs_pb2.Subject], job_id: str) -> list[Row]:
    return [(*key, job_id) for key in dict.fromkeys(map(key_of, subjects))]


def _job_change(job: jobstore_pb2.JobChange, job_id: str) -> Row:
    """All of it may be empty: the job's revision rises with each change of a step, and with each task that is begun.

    Progress never falls, so 0 stays.
    """
    return (
        job_id,
        _EXECUTION_STATUS[job.status],
        str(job.progress),
        _CANCEL_KIND[job.cancelable],
        _error(job),
        job.cancel_requested_by,
    )


def step_row(step: jobstore_pb2.StepRow, job_id: str) -> Row:
    """Returns the row of a new step."""
    return (
        job_id,
        step.step_id,
        step.parent_step_id,
        step.command_id,
        step.step_type,
        step.description,
        str(step.number),
        _EXECUTION_STATUS[step.status],
        str(step.progress),
        step.external_id,
        _EXTERNAL_SYSTEM_TYPE[step.external_system_type],
        step.span_id,
        subjects_json(step.subjects),
        _error(step),
        str(step.weight),
    )


def _step_change(step: jobstore_pb2.StepChange) -> Row:
    return (
        step.step_id,
        _EXECUTION_STATUS[step.status],
        str(step.progress),
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
        str(command.parameters_version),
        _COMMAND_STATUS[command.status],
        command.plans_json or "[]",
        str(command.end_attempts),
        _error(command),
        command.span_id,
        command.traceparent,
        command.node,
        *((coordinator_id, str(commit.epoch), str(commit.sequence)) if is_root else ("", "", "")),
    )


def _command_change(command: jobstore_pb2.CommandChange, commit: jobstore_pb2.FlowCommit) -> Row:
    return (
        command.command_id,
        _COMMAND_STATUS[command.status],
        command.plans_json,
        str(command.end_attempts),
        _error(command),
        str(commit.sequence) if command.command_id == commit.flow_command_id else "",
    )


def _command_changes(commit: jobstore_pb2.FlowCommit) -> list[Row]:
    """The changed commands and, in any case, the root: it keeps the flow's sequence."""
    changes = [_command_change(command, commit) for command in commit.commands]
    if commit.sequence > 1 and not any(change[-1] for change in changes):
        changes.append((commit.flow_command_id, "", "", "0", "", str(commit.sequence)))
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
        str(task.attempt),
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
        _boolean(lock.exclusive),
        lock.reason,
    )


def _dependency(dependency: jobstore_pb2.Dependency, flow_command_id: str) -> Row:
    return (flow_command_id, dependency.job_id, _DEPENDENCY_POLICY[dependency.policy] or "SKIP")


def _place(lock: jobstore_pb2.LockRow, commit: jobstore_pb2.FlowCommit) -> Row:
    return (*_lock(lock, commit), _time(commit, "waits_until"))


def _snapshot(snapshot: jobstore_pb2.SnapshotRow, flow_command_id: str) -> Row:
    return (
        flow_command_id,
        str(snapshot.number),
        snapshot.command_id,
        *key_of(snapshot.entity),
        snapshot.former_json,
    )


def event_row(event: jobstore_pb2.EventRow, job_id: str) -> Row:
    """Returns the row of an event; of no job if the id is empty."""
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
    return (*key_of(row.entity), seen.state, seen.host_id, seen.error, seen.incarnation, str(seen.number))


# --- what arrives ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """Rows by table, of one commit or of many."""

    jobs: list[Row] = field(default_factory=list)
    child_jobs: list[Row] = field(default_factory=list)
    subjects: list[Row] = field(default_factory=list)
    names: list[Row] = field(default_factory=list)
    more_subjects: list[Row] = field(default_factory=list)
    job_changes: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    step_changes: list[Row] = field(default_factory=list)
    commands: list[Row] = field(default_factory=list)
    command_changes: list[Row] = field(default_factory=list)
    tasks: list[Row] = field(default_factory=list)
    task_changes: list[Row] = field(default_factory=list)
    snapshots: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    dependencies: list[Row] = field(default_factory=list)
    places: list[Row] = field(default_factory=list)
    priorities: list[Row] = field(default_factory=list)


@contextmanager
def _known_enums() -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise invalid_argument("REQUEST_INVALID", "an enum has a value that this release does not know") from None


def rows_of(commit: jobstore_pb2.FlowCommit, coordinator_id: str) -> Rows:
    """Returns the rows of a commit; raises INVALID_ARGUMENT for an enum's value that we do not know."""
    with _known_enums():
        return _rows_of(commit, coordinator_id)


def _rows_of(commit: jobstore_pb2.FlowCommit, coordinator_id: str) -> Rows:
    job_id = commit.job_id
    rows = Rows(
        steps=[step_row(step, step.job_id or job_id) for step in commit.new_steps],
        step_changes=[_step_change(step) for step in commit.steps],
        commands=[_command(command, commit, coordinator_id) for command in commit.new_commands],
        command_changes=_command_changes(commit),
        tasks=[_task(task, commit) for task in commit.new_tasks],
        task_changes=[_task_change(task) for task in commit.tasks],
        events=[event_row(event, job_id) for event in commit.events],
    )
    if commit.HasField("new_job"):
        _require_root(commit)
        rows.jobs = [_job(commit, commit.new_job, job_id)]
        rows.subjects = _subjects(commit.new_job.subjects, job_id)
    elif commit.HasField("job") or rows.steps or rows.step_changes or _reaches_host(commit):
        rows.job_changes = [_job_change(commit.job, job_id)]
    if commit.new_child_jobs or commit.child_jobs:
        _add_child_jobs(rows, commit)
    if commit.job.HasField("named"):
        _add_names(rows, commit.job.named, job_id)
    if commit.dependencies:
        rows.dependencies = [_dependency(each, commit.flow_command_id) for each in commit.dependencies]
    if commit.lock_waits:
        if not commit.HasField("waits_until"):
            raise invalid_field("waits_until", "is required with lock_waits")
        rows.places = [_place(lock, commit) for lock in _each_once(commit.lock_waits)]
    if commit.job.HasField("priority"):
        rows.priorities.append((job_id, str(commit.job.priority)))
    if not commit.ends_flow:  # else they would go with the same transaction
        rows.snapshots = [_snapshot(snapshot, commit.flow_command_id) for snapshot in commit.snapshots]
    return rows


def _add_child_jobs(rows: Rows, commit: jobstore_pb2.FlowCommit) -> None:
    for job in commit.new_child_jobs:
        rows.child_jobs.append(_child_job(commit, job))
        rows.subjects += _subjects(job.subjects, job.job_id)
    for change in commit.child_jobs:
        rows.job_changes.append(_job_change(change, change.job_id))
        if change.HasField("priority"):
            rows.priorities.append((change.job_id, str(change.priority)))
        if change.HasField("named"):
            _add_names(rows, change.named, change.job_id)


def _add_names(rows: Rows, named: jobstore_pb2.JobNames, job_id: str) -> None:
    rows.names.append((job_id, named.description, subjects_json(named.subjects)))
    rows.more_subjects += _subjects(named.subjects, job_id)


def _reaches_host(commit: jobstore_pb2.FlowCommit) -> bool:
    """Whether a watch for the jobs of a host may have to be told of the job."""
    return any(task.host_id for task in commit.new_tasks)


def _require_root(commit: jobstore_pb2.FlowCommit) -> None:
    """A flow without its root command could never be written again, nor claimed."""
    if all(command.command_id != commit.flow_command_id for command in commit.new_commands):
        raise invalid_field("new_commands", "the first commit of a flow has its root command")


def _each_once(locks: Iterable[jobstore_pb2.LockRow]) -> Iterable[jobstore_pb2.LockRow]:
    wanted: dict[Key, jobstore_pb2.LockRow] = {}
    for lock in locks:
        key = key_of(lock.entity)
        if key not in wanted or lock.exclusive:
            wanted[key] = lock
    return wanted.values()


def lock_rows(commit: jobstore_pb2.FlowCommit, wanted: Iterable[jobstore_pb2.LockRow]) -> list[Row]:
    """Returns the rows of locks that a commit takes."""
    return [_lock(lock, commit) for lock in wanted]


def event_rows(events: Iterable[jobstore_pb2.EventRow]) -> list[Row]:
    """Returns the rows of events that belong to no flow; raises as `rows_of` does."""
    with _known_enums():
        return [event_row(event, "") for event in events]


def task_event_rows(events: Iterable[jobstore_pb2.EventRow]) -> list[Row]:
    """Returns the rows of events about tasks, each once; raises as `rows_of` does."""
    with _known_enums():
        return [
            (event.event_id, event.event_type, _SEVERITY[event.severity], event.message, event.task_id)
            for event in {event.event_id: event for event in events}.values()
        ]


def observation_rows(observed: Iterable[jobstore_pb2.ObservedRow]) -> list[Row]:
    """Returns the rows of what hosts reported; raises as `rows_of` does."""
    with _known_enums():
        return [_observation(row) for row in observed]


def newest(observations: Iterable[Row]) -> list[list[Row]]:
    """Returns what each host saw last of each entity, in rounds of one row an entity, to be written one after another.

    Within an incarnation the number decides, not the order. Who of several hosts is right the store decides.
    """
    rows: dict[Row, dict[str, Row]] = {}
    for row in observations:
        by_host = rows.setdefault(row[:2], {})
        former = by_host.get(_host(row))
        if former is None or _incarnation(former) != _incarnation(row) or _number(former) < _number(row):
            by_host[_host(row)] = row
    rounds = zip_longest(*(by_host.values() for by_host in rows.values()))
    return [[row for row in each if row is not None] for each in rounds]


def _host(observation: Row) -> str:
    return str(observation[3])


def _incarnation(observation: Row) -> str:
    return observation[-2]


def _number(observation: Row) -> int:
    return int(observation[-1])
