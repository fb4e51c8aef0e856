"""What tasks, calls, observations and objects look like on the wire; what comes in is checked for its shape.

A task whose spec is malformed is refused alone; the others of its batch are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from chassis import errors
from chassis.context import valid_correlation_id
from chassis.errors import WaybillError
from hostagent import values
from hostagent.drivers.driver import ObjectView, Verb
from hostagent.observations import Observation
from hostagent.record import Record
from hostagent.task import TaskResult, TaskSpec, TaskState
from waybill.v1 import hostagent_pb2, jobs_pb2

_LONGEST_NAME: Final = 256
_MOST_ARGUMENTS: Final = 256 * 1024

_STATES: Final[dict[TaskState, Any]] = {
    **{state: jobs_pb2.TaskState.Value(f"TASK_STATE_{state}") for state in TaskState},
    # To a coordinator UNKNOWN is final: the truth is lost. Here it is about to be found out, by the next free worker.
    TaskState.UNKNOWN: jobs_pb2.TASK_STATE_INIT,
}
_RESULTS: Final[dict[TaskResult, Any]] = {
    result: jobs_pb2.TaskResult.Value(f"TASK_RESULT_{result}") for result in TaskResult
}
_ENTITY_TYPES: Final[dict[str, Any]] = {
    "HOST": jobs_pb2.ENTITY_TYPE_HOST,
    "VM": jobs_pb2.ENTITY_TYPE_VM,
}


def spec_from(message: hostagent_pb2.TaskSpec) -> TaskSpec:
    """Reads a task's spec. Raises WaybillError naming the first malformed field."""
    spec = TaskSpec(
        message.task_id,
        message.verb,
        _arguments_from(message),
        message.flow_command_id,
        message.epoch,
        message.incarnation,
        message.priority,
        message.correlation_id,
        message.traceparent,
        message.expected_generation if message.HasField("expected_generation") else None,
        message.job_id,
        message.command_id,
        message.span_id,
    )
    _check_texts(spec)
    return spec


def _check_texts(spec: TaskSpec) -> None:
    if not spec.task_id:
        raise errors.invalid_field("task_id", "is missing")
    if spec.correlation_id and not valid_correlation_id(spec.correlation_id):
        raise errors.invalid_field(
            "correlation_id", "must be 1-50 characters of [0-9A-Za-z_-]", reason="CORRELATION_ID_INVALID"
        )
    texts = (
        spec.task_id,
        spec.verb,
        spec.flow_command_id,
        spec.incarnation,
        spec.traceparent,
        spec.job_id,
        spec.command_id,
        spec.span_id,
    )
    if max(map(len, texts)) > _LONGEST_NAME or not "".join(texts).isprintable():
        _find_bad_text(spec)


def _find_bad_text(spec: TaskSpec) -> None:
    for field, text in spec._asdict().items():
        if isinstance(text, str):
            if len(text) > _LONGEST_NAME:
                raise errors.invalid_field(field, f"is longer than {_LONGEST_NAME} characters")
            errors.reject_control(field, text)


def _arguments_from(message: hostagent_pb2.TaskSpec) -> dict[str, Any]:
    if message.arguments.ByteSize() > _MOST_ARGUMENTS:
        raise errors.invalid_field("arguments", f"have more than {_MOST_ARGUMENTS} bytes", reason="ARGUMENTS_INVALID")
    try:
        return values.struct_to_plain(message.arguments)
    except values.TooDeep:
        raise errors.invalid_field(
            "arguments", f"are nested deeper than {values.DEEPEST}", reason="ARGUMENTS_INVALID"
        ) from None


def status_of(record: Record) -> hostagent_pb2.TaskStatus:
    """Says how a task is."""
    task = record.task
    ending = task.ending
    if ending is None:
        return hostagent_pb2.TaskStatus(task_id=record.spec.task_id, state=_STATES[task.state], progress=task.progress)
    return hostagent_pb2.TaskStatus(
        task_id=record.spec.task_id,
        state=_STATES[task.state],
        result=_RESULTS[ending.result],
        progress=task.progress,
        error=None if ending.error is None else status_of_error(ending.error),
        answer=None if ending.answer is None else values.plain_to_value(ending.answer),
    )


def status_of_error(error: Exception) -> Any:
    """Says why a task failed, as `google.rpc.Status`."""
    return (error if isinstance(error, WaybillError) else errors.internal(str(error))).to_status()


def info_of(record: Record) -> hostagent_pb2.TaskInfo:
    """Says what a task is."""
    row = record.row
    return hostagent_pb2.TaskInfo(
        spec=_spec_to(record.spec),
        status=status_of(record),
        create_time=_timestamp(row.create_time),
        end_time=None if row.end_time is None else _timestamp(row.end_time),
        call=row.is_call,
    )


def _spec_to(spec: TaskSpec) -> hostagent_pb2.TaskSpec:
    plain = {name: value for name, value in spec._asdict().items() if name != "arguments" and value is not None}
    return hostagent_pb2.TaskSpec(arguments=values.plain_to_struct(spec.arguments), **plain)


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e6) * 1000)
    return stamp


def call_response(record: Record, agent: hostagent_pb2.AgentIdentity) -> hostagent_pb2.CallResponse:
    """Says what a call that is over has answered."""
    ending = record.task.ending
    assert ending is not None
    return hostagent_pb2.CallResponse(
        task_id=record.spec.task_id,
        answer=None if ending.answer is None else values.plain_to_value(ending.answer),
        error=None if ending.error is None else status_of_error(ending.error),
        observation_number=record.row.observation_number,
        agent=agent,
    )


def observation_to(observation: Observation) -> hostagent_pb2.Observation:
    """Says what was seen."""
    return hostagent_pb2.Observation(
        entity_type=_ENTITY_TYPES[observation.entity_type],
        entity_id=observation.entity_id,
        state=observation.state,
        error=observation.error,
        number=observation.number,
    )


def verb_to(verb: Verb) -> hostagent_pb2.VerbInfo:
    """Says what a verb is."""
    return hostagent_pb2.VerbInfo(verb=verb.name, call=verb.is_call, description=verb.description)


def objects_to(objects: Iterable[ObjectView]) -> list[hostagent_pb2.HostObject]:
    """Says what objects a host has."""
    return [
        hostagent_pb2.HostObject(
            kind=each.kind,
            object_id=each.object_id,
            state=each.state,
            generation=each.generation,
            counters=[
                hostagent_pb2.VerbCounter(verb=verb, attempts=attempts, effects=effects)
                for verb, (attempts, effects) in sorted(each.counters.items())
            ],
            details=values.plain_to_struct(each.details),
        )
        for each in objects
    ]
