"""What a RunCommand request must be like before anything comes of it: checked whole, refused by naming the field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import context
from chassis.errors import WaybillError, invalid_argument, invalid_field, reject_control
from coordinator import wire
from coordinator.commands.base import Command, CommandType, Registry
from coordinator.rows import Dependency, DependencyPolicy, Job, Subject
from waybill.v1 import coordinator_pb2, jobs_pb2, jobstore_pb2

MAX_PARAMETERS_BYTES: Final = 256 << 10
MAX_DEPTH: Final = 32
MAX_NAME: Final = 256
MAX_PRIORITY: Final = 1_000_000
MAX_DEPENDENCIES: Final = 100
MAX_TASKS: Final = 1000
LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999, in Unix time."""
CORRELATION_ID_RULE: Final = "1-50 characters of [0-9A-Za-z_-]"


def read(
    request: coordinator_pb2.RunCommandRequest, registry: Registry, call: context.CallContext, job_id: str
) -> tuple[Job, Command]:
    """Returns the job and the command that a request asks for.

    Raises:
        WaybillError: what is wrong with the request, with the field; nothing is stored then.
    """
    _check_names(request)
    kind = registry.find(request.command_type)
    parameters = _parameters(request.parameters)
    command = kind.read(kind.version, parameters)
    job = _job(request, kind, call, job_id, {**parameters, **command.parameters()})
    # In ids only: names are read while planning, which a slow store may outlast.
    job.description = kind.describe(command, lambda ref: "")
    job.subjects = tuple(Subject(ref.entity_type, ref.entity_id) for ref in command.subjects())
    return job, command


def _check_names(request: coordinator_pb2.RunCommandRequest) -> None:
    if not request.command_type:
        raise invalid_field("command_type", "is required; ListCommandTypes has those there are")
    for field in ("command_type", "request_id"):
        _check_name(field, getattr(request, field))
    if request.correlation_id and not context.valid_correlation_id(request.correlation_id):
        raise invalid_field("correlation_id", f"must be {CORRELATION_ID_RULE}", reason="CORRELATION_ID_INVALID")
    checked_priority(request.priority)
    if request.HasField("deadline"):
        _check_time("deadline", request.deadline)
    if request.dependency_policy not in jobs_pb2.DependencyPolicy.values():
        raise invalid_field("dependency_policy", f"there is no policy {request.dependency_policy}")
    if request.external_job_id:
        checked_id("external_job_id", request.external_job_id)


def _check_name(field: str, text: str) -> None:
    if len(text) > MAX_NAME:
        raise invalid_field(field, f"has {len(text)} characters; at most {MAX_NAME} are taken")
    reject_control(field, text)


def _check_time(field: str, time: Timestamp) -> None:
    if not 0 < time.seconds <= LAST_SECOND or not 0 <= time.nanos < 1_000_000_000:
        raise invalid_field(field, "must be a time between the years 1970 and 9999")


def _job(
    request: coordinator_pb2.RunCommandRequest,
    kind: CommandType,
    call: context.CallContext,
    job_id: str,
    parameters: dict[str, Any],
) -> Job:
    return Job(
        job_id=job_id,
        command_type=kind.name,
        description=kind.name,
        owner=call.user,
        correlation_id=request.correlation_id or call.correlation_id,
        parameters=parameters,
        visible=request.visible if request.HasField("visible") else kind.monitored and not request.external_job_id,
        priority=request.priority,
        request_id=request.request_id,
        request_hash=_body_hash(request, parameters) if request.request_id else b"",
        deadline=wire.seconds_of(request.deadline),
        categories=kind.categories,
        external_job_id=checked_id("external_job_id", request.external_job_id) if request.external_job_id else "",
    )


def _parameters(message: struct_pb2.Struct) -> dict[str, Any]:
    """The parameters as plain JSON, within the limits of size and depth and free of what Postgres cannot keep."""
    size = message.ByteSize()
    if size > 2 * MAX_PARAMETERS_BYTES:
        raise _too_large(size)
    plain = _plain(message, "parameters", 1)
    if size > MAX_PARAMETERS_BYTES // 2:  # only then can its JSON be over the limit
        size = len(wire.dump(plain).encode())
        if size > MAX_PARAMETERS_BYTES:
            raise _too_large(size)
    return plain


def _too_large(size: int) -> WaybillError:
    message = f"parameters have {size} bytes; at most {MAX_PARAMETERS_BYTES} are taken"
    return invalid_argument("PARAMETERS_TOO_LARGE", message, ("parameters", message))


def _plain(message: struct_pb2.Struct, path: str, depth: int) -> dict[str, Any]:
    _check_depth(path, depth)
    return {
        name: _value(value, f"{path}.{name}", depth) for name, value in message.fields.items() if _sound(path, name)
    }


def _sound(path: str, name: str) -> bool:
    if "\x00" in name:
        reject_control(path, name)
    return True


def _value(value: struct_pb2.Value, path: str, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        if "\x00" in value.string_value:
            reject_control(path, value.string_value)
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if number != number or number in (float("inf"), float("-inf")):
            raise invalid_field(path, "must be a finite number")
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return _plain(value.struct_value, path, depth + 1)
    if kind == "list_value":
        _check_depth(path, depth + 1)
        return [_value(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value.list_value.values)]
    return value.bool_value if kind == "bool_value" else None


def _check_depth(path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        message = f"nested deeper than {MAX_DEPTH}"
        raise invalid_argument("PARAMETERS_TOO_LARGE", f"parameters: {message}", (path[:200], message))


def _body_hash(request: coordinator_pb2.RunCommandRequest, parameters: Mapping[str, Any]) -> bytes:
    """What makes two requests of one request id the same: everything but correlation id and trace."""
    body: dict[str, Any] = {
        "command_type": request.command_type,
        "parameters": parameters,
        "priority": request.priority,
        "deadline": [request.deadline.seconds, request.deadline.nanos],
        "visible": request.visible if request.HasField("visible") else None,
    }
    if request.external_job_id:
        body["external_job_id"] = request.external_job_id
    if request.depends_on:  # older requests had none: their hashes stay
        body["depends_on"] = [*request.depends_on]
        body["dependency_policy"] = request.dependency_policy
    return hashlib.sha256(wire.dump_sorted(body)).digest()


def restarted(
    former: jobstore_pb2.FlowRows,
    request: coordinator_pb2.RestartJobRequest,
    registry: Registry,
    call: context.CallContext,
    job_id: str,
) -> tuple[Job, Command]:
    """Returns the job and the command that do again what a former flow did not do well.

    Raises:
        WaybillError: what is wrong with the request, or with what it wants done again.
    """
    _check_name("request_id", request.request_id)
    checked_reason(request.reason)
    root = next(row for row in former.commands if not row.parent_command_id)
    kind = registry.find(root.command_type)
    command = kind.read(root.parameters_version, json.loads(root.parameters_json or "{}"))
    body = wire.dump_sorted({"restart": former.job.job_id})
    job = Job(
        job_id=job_id,
        command_type=kind.name,
        description=kind.describe(command, lambda ref: ""),
        owner=call.user,
        correlation_id=call.correlation_id,
        parameters={**json.loads(former.job.parameters_json or "{}"), **command.parameters()},
        subjects=tuple(Subject(ref.entity_type, ref.entity_id) for ref in command.subjects()),
        visible=former.job.visible,
        auto_cleared=former.job.auto_cleared,
        priority=former.job.priority,
        restarted_from=former.job.job_id,
        request_id=request.request_id,
        request_hash=hashlib.sha256(body).digest() if request.request_id else b"",
        categories=kind.categories,
    )
    return job, command


def dependencies_of(request: coordinator_pb2.RunCommandRequest) -> list[Dependency]:
    """Returns the jobs that must end before a command begins, each once. Raises REQUEST_INVALID."""
    if len(request.depends_on) > MAX_DEPENDENCIES:
        raise invalid_field("depends_on", f"are {len(request.depends_on)}; at most {MAX_DEPENDENCIES} are taken")
    policy = DependencyPolicy(wire.POLICY_NAMES[request.dependency_policy])
    named = [checked_job_id(job_id, f"depends_on[{index}]") for index, job_id in enumerate(request.depends_on)]
    return [Dependency(job_id, policy) for job_id in dict.fromkeys(named)]


def located(error: WaybillError, where: str) -> WaybillError:
    """Returns the same refusal with its fields below a place in a larger request: `commands[2].`."""
    violations = [(f"{where}{field}", words) for field, words in error.violations]
    return WaybillError(
        error.code, error.reason, f"{where}{error.message}", metadata=error.metadata, violations=violations
    )


def checked_job_id(text: str, field: str = "job_id") -> str:
    """Returns a job id in its usual spelling. Raises REQUEST_INVALID."""
    return checked_id(field, text)


def checked_id(field: str, text: str) -> str:
    """Returns an id in its usual spelling. Raises REQUEST_INVALID."""
    try:
        return str(UUID(text))
    except ValueError:
        raise invalid_field(field, "must be a UUID") from None


def checked_task_ids(task_ids: Sequence[str]) -> list[str]:
    """Returns the ids of tasks in their usual spelling, each once. Raises REQUEST_INVALID."""
    if len(task_ids) > MAX_TASKS:
        raise invalid_field("task_ids", f"are {len(task_ids)}; at most {MAX_TASKS} are taken. None stops all")
    return list(dict.fromkeys(checked_job_id(each, f"task_ids[{index}]") for index, each in enumerate(task_ids)))


def checked_priority(priority: int) -> int:
    """Returns a priority. Raises REQUEST_INVALID."""
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise invalid_field("priority", f"must be between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    return priority


def checked_reason(text: str) -> str:
    """Returns somebody's reason for the audit log. Raises REQUEST_INVALID."""
    _check_name("reason", text)
    return text
