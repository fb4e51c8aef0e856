"""Between the contract's enums and Structs and the words that people use.

Protos say `EXECUTION_STATUS_STARTED`, everybody else says `STARTED`; Structs know no integers, people do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from waybill.v1 import jobs_pb2
from waybill.v1.jobs_pb2 import (
    CancelKind,
    CommandStatus,
    EntityType,
    ExecutionStatus,
    JobView,
    Severity,
    TaskResult,
    TaskState,
)

ENDED = frozenset(
    {
        ExecutionStatus.EXECUTION_STATUS_FINISHED,
        ExecutionStatus.EXECUTION_STATUS_FAILED,
        ExecutionStatus.EXECUTION_STATUS_ABORTED,
        ExecutionStatus.EXECUTION_STATUS_UNKNOWN,
        ExecutionStatus.EXECUTION_STATUS_SKIPPED,
    }
)


def is_ended(job_or_step: jobs_pb2.Job | jobs_pb2.Step) -> bool:
    """True in the end statuses, which never change again."""
    return job_or_step.status in ENDED


def is_finished(job_or_step: jobs_pb2.Job | jobs_pb2.Step) -> bool:
    """True if everything that was declared was done."""
    return job_or_step.status == ExecutionStatus.EXECUTION_STATUS_FINISHED


def status_word(status: ExecutionStatus.ValueType) -> str:
    """`STARTED` for EXECUTION_STATUS_STARTED."""
    return _word(ExecutionStatus.DESCRIPTOR, status, "EXECUTION_STATUS_")


def command_status_word(status: CommandStatus.ValueType) -> str:
    """`ACTIVE` for COMMAND_STATUS_ACTIVE."""
    return _word(CommandStatus.DESCRIPTOR, status, "COMMAND_STATUS_")


def severity_word(severity: Severity.ValueType) -> str:
    """`WARNING` for SEVERITY_WARNING."""
    return _word(Severity.DESCRIPTOR, severity, "SEVERITY_")


def cancel_word(kind: CancelKind.ValueType) -> str:
    """`REVERT` for CANCEL_KIND_REVERT."""
    return _word(CancelKind.DESCRIPTOR, kind, "CANCEL_KIND_")


def entity_word(entity_type: EntityType.ValueType) -> str:
    """`VM` for ENTITY_TYPE_VM."""
    return _word(EntityType.DESCRIPTOR, entity_type, "ENTITY_TYPE_")


def task_word(task: jobs_pb2.HostTask) -> str:
    """`RUNNING` while under way, then the result: `SUCCESS` ...; `UNKNOWN` when lost."""
    if task.result:
        return _word(TaskResult.DESCRIPTOR, task.result, "TASK_RESULT_")
    return _word(TaskState.DESCRIPTOR, task.state, "TASK_STATE_") if task.state else "RUNNING"


def entity_type(word: str) -> EntityType.ValueType:
    """ENTITY_TYPE_VM for `VM` or `vm`; ValueError names the known ones."""
    known = [value.name.removeprefix("ENTITY_TYPE_") for value in EntityType.DESCRIPTOR.values if value.number]
    if word.upper() not in known:
        raise ValueError(f"no entity type {word!r}; known: {', '.join(known)}")
    return EntityType.Value(f"ENTITY_TYPE_{word.upper()}")


def view_of(*, steps: bool) -> JobView.ValueType:
    """TREE with steps, BASIC without."""
    return JobView.JOB_VIEW_TREE if steps else JobView.JOB_VIEW_BASIC


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """A Struct of JSON-like values; ValueError if one of them is not."""
    message = struct_pb2.Struct()
    message.update(values)
    return message


def plain(value: struct_pb2.Struct | struct_pb2.Value | struct_pb2.ListValue) -> Any:
    """The JSON-like value of a Struct or Value; whole numbers come back as int."""
    return _whole(json_format.MessageToDict(value))


def moment(timestamp: Timestamp) -> datetime | None:
    """The time in UTC; None for one that is absent."""
    return timestamp.ToDatetime(UTC) if timestamp.seconds or timestamp.nanos else None


def timestamp(time: datetime) -> Timestamp:
    """The Timestamp of a time, which must know its zone."""
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone")
    message = Timestamp()
    message.FromDatetime(time)
    return message


def _word(enum: EnumDescriptor, number: int, prefix: str) -> str:
    """The word for a number; the number itself if a newer service sent one that is not known here."""
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(prefix) if value else str(number)


def _whole(value: Any) -> Any:
    match value:
        case dict():
            return {key: _whole(each) for key, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
