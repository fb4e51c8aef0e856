"""Turns rows into the messages of waybill.v1; each list of columns stands beside the function that reads it.

Enums are stored by their short names (STARTED), absent messages, times and unspecified enums as NULL, errors as a
serialised google.rpc.Status, JSON as JSON.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from waybill.v1 import jobs_pb2, jobstore_pb2

V = TypeVar("V", bound=int)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_SMALL: Final = 1_000


class Row(Protocol):
    """A row, its columns by name."""

    def __getitem__(self, column: str, /) -> Any: ...


# --- values --------------------------------------------------------------------------------------------------------


def short_names(items: Iterable[tuple[str, V]]) -> dict[str | None, V]:
    """An enum's values by the names that everything but the protos uses; UNSPECIFIED is None.

    `short_names(jobs_pb2.ExecutionStatus.items())["STARTED"]` is `EXECUTION_STATUS_STARTED`.
    """
    names = dict(items)
    unspecified = next(name for name, number in names.items() if number == 0)
    prefix = unspecified.removesuffix("UNSPECIFIED")
    return {None if number == 0 else name.removeprefix(prefix): number for name, number in names.items()}


EXECUTION_STATUS: Final = short_names(jobs_pb2.ExecutionStatus.items())
COMMAND_STATUS: Final = short_names(jobs_pb2.CommandStatus.items())
HOST_TASK_KIND: Final = short_names(jobs_pb2.HostTaskKind.items())
TASK_STATE: Final = short_names(jobs_pb2.TaskState.items())
TASK_RESULT: Final = short_names(jobs_pb2.TaskResult.items())
ENTITY_TYPE: Final = short_names(jobs_pb2.EntityType.items())
EXTERNAL_SYSTEM_TYPE: Final = short_names(jobs_pb2.ExternalSystemType.items())
CANCEL_KIND: Final = short_names(jobs_pb2.CancelKind.items())
SEVERITY: Final = short_names(jobs_pb2.Severity.items())

ENTITY_TYPE_NAME: Final = {number: name for name, number in ENTITY_TYPE.items()}


@lru_cache(maxsize=1_024)
def timestamp(time: datetime | None) -> Timestamp | None:
    """A time of the database; absent stays absent. Kept, for the rows of a commit share theirs: not to be changed."""
    if time is None:
        return None
    since = time - EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def status(error: bytes | None) -> Status | None:
    """An error as stored; absent stays absent."""
    return None if error is None else Status.FromString(error)


def struct(text: str) -> Struct | None:
    """A JSON object; absent if it is empty. A small one is kept, for its row is read again: not to be changed."""
    if text == "{}":
        return None
    return _kept_struct(text) if len(text) <= _SMALL else _struct(text)


@lru_cache(maxsize=512)
def _kept_struct(text: str) -> Struct:
    return _struct(text)


def _struct(text: str) -> Struct:
    message = Struct()
    message.update(json.loads(text))
    return message


def value(text: str | None) -> Value | None:
    """Any JSON; absent stays absent."""
    return None if text is None else _value(json.loads(text))


def _value(content: Any) -> Value:
    # Struct knows how to hold whatever JSON can say; Value, by itself, does not.
    holder = Struct()
    holder.update({"": content})
    return holder.fields[""]


def subjects(text: str) -> list[jobs_pb2.Subject]:
    """A JSON array of {"entity_type", "entity_id", "name"}."""
    if text == "[]":
        return []
    return [subject(each["entity_type"], each["entity_id"], each.get("name", "")) for each in json.loads(text)]


def subject(entity_type: str | None, entity_id: str, name: str = "") -> jobs_pb2.Subject:
    """An entity that something is about."""
    return jobs_pb2.Subject(entity_type=ENTITY_TYPE[entity_type], entity_id=entity_id, name=name)


# --- rows ----------------------------------------------------------------------------------------------------------

JOB_COLUMNS: Final = """
    job.job_id, job.flow_command_id, job.command_type, job.description, job.status, job.owner, job.correlation_id,
    job.trace_id, job.span_id, job.parameters, job.subjects, job.create_time, job.start_time, job.end_time,
    job.update_time, job.revision, job.progress, job.visible, job.external, job.auto_cleared, job.cancelable,
    job.priority, job.restarted_from, job.error, job.request_id, job.deadline, job.categories, job.parent_job_id,
    job.command_id
"""


def job_message(row: Row) -> jobs_pb2.Job:
    """A job without its steps."""
    return jobs_pb2.Job(
        job_id=row["job_id"],
        flow_command_id=row["flow_command_id"],
        command_type=row["command_type"],
        description=row["description"],
        status=EXECUTION_STATUS[row["status"]],
        owner=row["owner"],
        correlation_id=row["correlation_id"],
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parameters=struct(row["parameters"]),
        subjects=subjects(row["subjects"]),
        create_time=timestamp(row["create_time"]),
        start_time=timestamp(row["start_time"]),
        end_time=timestamp(row["end_time"]),
        update_time=timestamp(row["update_time"]),
        revision=row["revision"],
        progress=row["progress"],
        visible=row["visible"],
        external=row["external"],
        auto_cleared=row["auto_cleared"],
        cancelable=CANCEL_KIND[row["cancelable"]],
        priority=row["priority"],
        restarted_from=row["restarted_from"],
        error=status(row["error"]),
        request_id=row["request_id"],
        deadline=timestamp(row["deadline"]),
        categories=row["categories"],
        parent_job_id=row["parent_job_id"],
        command_id=row["command_id"] or row["flow_command_id"],
    )


STEP_COLUMNS: Final = """
    step.step_id, step.parent_step_id, step.job_id, step.command_id, step.step_type, step.description, step.number,
    step.status, step.progress, step.start_time, step.end_time, step.correlation_id, step.external_id,
    step.external_system_type, step.span_id, step.subjects, step.error
"""


def step_message(row: Row) -> jobs_pb2.Step:
    """A step."""
    return jobs_pb2.Step(
        step_id=row["step_id"],
        parent_step_id=row["parent_step_id"],
        job_id=row["job_id"],
        command_id=row["command_id"],
        step_type=row["step_type"],
        description=row["description"],
        number=row["number"],
        status=EXECUTION_STATUS[row["status"]],
        progress=row["progress"],
        start_time=timestamp(row["start_time"]),
        end_time=timestamp(row["end_time"]),
        correlation_id=row["correlation_id"],
        external_id=row["external_id"],
        external_system_type=EXTERNAL_SYSTEM_TYPE[row["external_system_type"]],
        span_id=row["span_id"],
        subjects=subjects(row["subjects"]),
        error=status(row["error"]),
    )


COMMAND_COLUMNS: Final = """
    command.command_id, command.flow_command_id, command.parent_command_id, command.job_id, command.step_id,
    command.command_type, command.parameters, command.parameters_version, command.status, command.plans,
    command.end_attempts, command.error, command.correlation_id, command.span_id, command.create_time,
    command.end_time, command.coordinator_id, command.epoch
"""


def command_message(row: Row) -> jobs_pb2.Command:
    """A command; who owns the flow only on its root."""
    return jobs_pb2.Command(
        command_id=row["command_id"],
        flow_command_id=row["flow_command_id"],
        parent_command_id=row["parent_command_id"],
        job_id=row["job_id"],
        step_id=row["step_id"],
        command_type=row["command_type"],
        parameters=struct(row["parameters"]),
        parameters_version=row["parameters_version"],
        status=COMMAND_STATUS[row["status"]],
        plans=[_value(plan) for plan in json.loads(row["plans"])],
        end_attempts=row["end_attempts"],
        error=status(row["error"]),
        correlation_id=row["correlation_id"],
        span_id=row["span_id"],
        create_time=timestamp(row["create_time"]),
        end_time=timestamp(row["end_time"]),
        coordinator_id=row["coordinator_id"] or "",
        epoch=row["epoch"] or 0,
    )


HOST_TASK_COLUMNS: Final = """
    host_task.task_id, host_task.kind, host_task.command_id, host_task.flow_command_id, host_task.job_id,
    host_task.step_id, host_task.host_id, host_task.verb, host_task.arguments, host_task.attempt, host_task.path,
    host_task.entity_type, host_task.entity_id, host_task.state, host_task.result, host_task.answer, host_task.error,
    host_task.incarnation, host_task.correlation_id, host_task.create_time, host_task.end_time, host_task.cleared,
    host_task.span_id, host_task.deadline
"""


def host_task_message(row: Row) -> jobs_pb2.HostTask:
    """A begun task, call or wait."""
    return jobs_pb2.HostTask(
        task_id=row["task_id"],
        kind=HOST_TASK_KIND[row["kind"]],
        command_id=row["command_id"],
        flow_command_id=row["flow_command_id"],
        job_id=row["job_id"],
        step_id=row["step_id"],
        host_id=row["host_id"],
        verb=row["verb"],
        arguments=struct(row["arguments"]),
        attempt=row["attempt"],
        path=row["path"],
        entity=_entity_named(row),
        state=TASK_STATE[row["state"]],
        result=TASK_RESULT[row["result"]],
        answer=value(row["answer"]),
        error=status(row["error"]),
        incarnation=row["incarnation"],
        correlation_id=row["correlation_id"],
        create_time=timestamp(row["create_time"]),
        end_time=timestamp(row["end_time"]),
        cleared=row["cleared"],
        span_id=row["span_id"],
        deadline=timestamp(row["deadline"]),
    )


def _entity_named(row: Row) -> jobs_pb2.Subject | None:
    return None if row["entity_type"] is None else subject(row["entity_type"], row["entity_id"])


ENTITY_COLUMNS: Final = """
    entity.entity_type, entity.entity_id, entity.name, entity.status, entity.declared, entity.observed_state,
    entity.observed_host_id, entity.observed_error, entity.observed_incarnation, entity.observed_number,
    entity.version, entity.revision
"""


def entity_message(row: Row) -> jobs_pb2.Entity:
    """An entity, declared and observed; never seen by a host: `observed` is absent."""
    return jobs_pb2.Entity(
        entity_type=ENTITY_TYPE[row["entity_type"]],
        entity_id=row["entity_id"],
        name=row["name"],
        status=row["status"],
        declared=struct(row["declared"]),
        observed=_observed(row),
        version=row["version"],
        revision=row["revision"],
    )


def _observed(row: Row) -> jobs_pb2.Observed | None:
    if not row["observed_incarnation"] and not row["observed_number"]:
        return None
    return jobs_pb2.Observed(
        state=row["observed_state"],
        host_id=row["observed_host_id"],
        error=row["observed_error"],
        incarnation=row["observed_incarnation"],
        number=row["observed_number"],
    )


LOCK_COLUMNS: Final = """
    entity_lock.entity_type, entity_lock.entity_id, entity_lock.exclusive, entity_lock.flow_command_id,
    entity_lock.job_id, entity_lock.command_id, entity_lock.reason, entity_lock.create_time, entity_lock.waits_until
"""


def lock_message(row: Row) -> jobs_pb2.Lock:
    """A held lock, or a place in the queue for it."""
    return jobs_pb2.Lock(
        entity_type=ENTITY_TYPE[row["entity_type"]],
        entity_id=row["entity_id"],
        exclusive=row["exclusive"],
        flow_command_id=row["flow_command_id"],
        job_id=row["job_id"],
        command_id=row["command_id"],
        reason=row["reason"],
        create_time=timestamp(row["create_time"]),
        waiting=row["waits_until"] is not None,
        waits_until=timestamp(row["waits_until"]),
    )


def flow_request_message(row: Row) -> jobstore_pb2.FlowRequest:
    """An intent for the owner of a flow."""
    return jobstore_pb2.FlowRequest(
        request_id=row["request_id"],
        flow_command_id=row["flow_command_id"],
        kind=row["kind"],
        user=row["user"],
        reason=row["reason"],
        arguments_json=row["arguments"] if row["arguments"] != "{}" else "",
    )
