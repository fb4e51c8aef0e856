"""Rows, entities and failures of the pure core ⇄ protobuf messages. No decisions here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

from chassis.errors import DOMAIN, WaybillError
from coordinator.flow.mutations import Mutations
from coordinator.flow.nodes import derived_id, namespace_of
from coordinator.flow.tree import FlowTree
from coordinator.plan import EntityRef, Former, Observation
from coordinator.rows import (
    Cancel,
    Command,
    CommandStatus,
    Dependency,
    DependencyPolicy,
    EntityChange,
    EventNote,
    Failure,
    FlowRows,
    Job,
    Leaf,
    LeafKind,
    LockKey,
    LockScope,
    Snapshot,
    Status,
    Step,
    Subject,
)
from coordinator.world import Entity
from waybill.v1 import jobs_pb2, jobstore_pb2


def _numbers(enum: Any, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): number for name, number in enum.items()}


LONGEST_WORDS: Final = 4_000
"""Characters of an error that are kept: every step and command on its way up has a copy."""

STATUS = _numbers(jobs_pb2.ExecutionStatus, "EXECUTION_STATUS_")
COMMAND_STATUS = _numbers(jobs_pb2.CommandStatus, "COMMAND_STATUS_")
KIND = _numbers(jobs_pb2.HostTaskKind, "HOST_TASK_KIND_")
STATE = {**_numbers(jobs_pb2.TaskState, "TASK_STATE_"), "": 0}
RESULT = {**_numbers(jobs_pb2.TaskResult, "TASK_RESULT_"), "": 0}
ENTITY = _numbers(jobs_pb2.EntityType, "ENTITY_TYPE_")
CANCEL = _numbers(jobs_pb2.CancelKind, "CANCEL_KIND_")
POLICY = _numbers(jobs_pb2.DependencyPolicy, "DEPENDENCY_POLICY_")
SEVERITY = _numbers(jobs_pb2.Severity, "SEVERITY_")

STATUS_NAMES = {number: name for name, number in STATUS.items()}
COMMAND_STATUS_NAMES = {number: name for name, number in COMMAND_STATUS.items()}
KIND_NAMES = {number: name for name, number in KIND.items()}
STATE_NAMES = {number: name for name, number in STATE.items() if number} | {0: ""}
RESULT_NAMES = {number: name for name, number in RESULT.items() if number} | {0: ""}
POLICY_NAMES = {number: name for name, number in POLICY.items() if number} | {0: "SKIP"}
ENTITY_NAMES = {number: name for name, number in ENTITY.items()}
CANCEL_NAMES = {number: name for name, number in CANCEL.items()}

# --- small things ----------------------------------------------------------------------------------------------------


_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_STRICTLY: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def dump(value: Any) -> str:
    """JSON, compact."""
    try:
        return orjson.dumps(value, option=_STRICTLY).decode()
    except TypeError:  # numbers of more than 64 bits, keys that are no text
        return _to_json(value)


def dump_sorted(value: Any) -> bytes:
    """JSON, compact, the same for equal values."""
    try:
        return orjson.dumps(value, option=_STRICTLY | orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Unix seconds as a timestamp, to the microsecond."""
    micros = round(seconds * 1e6)
    return timestamp_pb2.Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def seconds_of(stamp: timestamp_pb2.Timestamp) -> float:
    """A timestamp as Unix seconds; 0.0 if it is not set."""
    return stamp.seconds + stamp.nanos / 1e9


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """A JSON object as a message."""
    message = struct_pb2.Struct()
    message.update(values)
    return message


def plain(value: struct_pb2.Value) -> Any:
    """A JSON value from a message; whole numbers are ints."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [plain(item) for item in value.list_value.values]
        case _:
            return None


def plain_struct(message: struct_pb2.Struct) -> dict[str, Any]:
    """A JSON object from a message."""
    return {name: plain(value) for name, value in message.fields.items()}


def failure_of(error: WaybillError) -> Failure:
    """A refusal or an error as the core keeps it: in words that can be stored, whoever made them."""
    metadata = {legible(name): legible(value) for name, value in error.metadata.items()}
    return Failure(error.code.value[0], legible(error.reason), legible(error.message), metadata)


def legible(text: object) -> str:
    """What somebody else's code said, as it can be stored and shown: not endless, and no control characters."""
    return "".join(map(_legible_character, str(text)[:LONGEST_WORDS]))


def _legible_character(character: str) -> str:
    return character if character.isprintable() or character == "\n" else ascii(character)[1:-1]


def failure_from(status: status_pb2.Status) -> Failure:
    """The core's view of a status."""
    return failure_of(WaybillError.from_status(status))


def status_of(failure: Failure) -> status_pb2.Status:
    """A failure as a status."""
    status = status_pb2.Status(code=failure.code, message=failure.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=failure.metadata)
    )
    return status


def error_from(failure: Failure) -> WaybillError:
    """A failure as the error of a call."""
    return WaybillError.from_status(status_of(failure))


@lru_cache(maxsize=4096)
def ref_message(ref: EntityRef) -> jobstore_pb2.EntityRef:
    """An entity's key as a message; shared, must not be changed."""
    return jobstore_pb2.EntityRef(entity_type=ENTITY[ref.entity_type], entity_id=ref.entity_id)


def ref_from(message: jobstore_pb2.EntityRef) -> EntityRef:
    """An entity's key."""
    return EntityRef(ENTITY_NAMES[message.entity_type], message.entity_id)


def observation_from(message: jobs_pb2.Observed) -> Observation:
    """What hosts reported of an entity."""
    return Observation(message.state, message.host_id, message.error, message.incarnation, message.number)


def entity_from(message: jobs_pb2.Entity) -> Entity:
    """An entity as the store sent it."""
    return Entity(
        ref=EntityRef(ENTITY_NAMES[message.entity_type], message.entity_id),
        name=message.name,
        status=message.status,
        declared=plain_struct(message.declared),
        observed=observation_from(message.observed),
        version=message.version,
    )


# --- a commit --------------------------------------------------------------------------------------------------------


def commit_message(tree: FlowTree, mutations: Mutations, sequence: int, new_id: Any) -> jobstore_pb2.FlowCommit:
    """Writes a commit down, so that the tree may go on changing its rows. `new_id()` makes ids of events."""
    message = jobstore_pb2.FlowCommit(
        flow_command_id=tree.root.command_id,
        epoch=tree.epoch,
        sequence=sequence,
        job_id=tree.job.job_id,
        new_steps=[_step_row(step) for step in mutations.new_steps.values()],
        steps=[_step_change(step) for step in mutations.steps.values()],
        new_commands=[_command_row(command) for command in mutations.new_commands.values()],
        commands=[_command_change(row, mutations) for row in mutations.commands.values()],
        new_tasks=[_task_row(leaf) for leaf in mutations.new_leaves.values()],
        tasks=[_task_change(leaf) for leaf in mutations.leaves.values()],
        ends_flow=mutations.ends_flow,
        handled_requests=mutations.handled_requests,
        external_job_id=tree.job.external_job_id,
        ends_wait=mutations.ends_wait,
    )
    if tree.child_jobs:
        _add_child_jobs(message, tree, mutations)
    if mutations.dependencies or mutations.lock_waits:
        _add_waits(message, tree, mutations)
    if mutations.new_job:
        message.new_job.CopyFrom(_job_row(tree.job))
    elif mutations.job:
        message.job.CopyFrom(_job_change(tree.job))
        if mutations.priority:
            message.job.priority = tree.job.priority
        if tree.job.job_id in mutations.named:
            _name(message.job, tree.job)
    for ref in mutations.report_entities:
        message.report_entities.append(ref_message(ref))
    _add_notes(message, tree, mutations, new_id)
    return message


def _add_child_jobs(message: jobstore_pb2.FlowCommit, tree: FlowTree, mutations: Mutations) -> None:
    """Adds the jobs of children: those that are new, and those that changed or whose steps did."""
    message.new_child_jobs.extend(_job_row(job) for job in mutations.new_child_jobs.values())
    changed = {step.job_id for step in (*mutations.new_steps.values(), *mutations.steps.values()) if step.job_id}
    for job_id in sorted((changed | mutations.child_jobs.keys()) - mutations.new_child_jobs.keys()):
        job = tree.child_jobs[job_id]
        change = _job_change(job)
        change.job_id = job_id
        if mutations.priority and job_id in mutations.child_jobs:
            change.priority = job.priority
        if job_id in mutations.named:
            _name(change, job)
        message.child_jobs.append(change)


def _name(change: jobstore_pb2.JobChange, job: Job) -> None:
    change.named.description = job.description
    change.named.subjects.extend(map(subject_message, job.subjects))


def _add_notes(message: jobstore_pb2.FlowCommit, tree: FlowTree, mutations: Mutations, new_id: Any) -> None:
    for (command_id, _), notes in mutations.notes.items():
        for ref, version in notes.read_versions.items():
            message.read_versions.add(entity=ref_message(ref), version=version)
        for key in notes.locks:
            message.locks.append(_lock_row(key, command_id, tree))
        message.entities.extend(_entity_change(change) for change in notes.changes)
        message.events.extend(_event_row(note, new_id()) for note in notes.events)
    message.snapshots.extend(_snapshot_row(snapshot) for snapshot in mutations.snapshots)
    message.events.extend(_event_row(note, new_id()) for note in mutations.events)


def _lock_row(key: LockKey, command_id: str, tree: FlowTree) -> jobstore_pb2.LockRow:
    return jobstore_pb2.LockRow(
        entity=ref_message(key.entity),
        exclusive=key.exclusive,
        command_id=command_id,
        reason=key.reason or tree.job.description,
        passing=key.scope is LockScope.EXECUTION,
    )


def _add_waits(message: jobstore_pb2.FlowCommit, tree: FlowTree, mutations: Mutations) -> None:
    for each in mutations.dependencies:
        message.dependencies.add(job_id=each.job_id, policy=POLICY[each.policy])
    if mutations.lock_waits:
        message.lock_waits.extend(_lock_row(key, tree.root.command_id, tree) for key in mutations.lock_waits)
        message.waits_until.CopyFrom(timestamp(mutations.waits_until))


def dependencies_from(messages: Iterable[jobstore_pb2.Dependency]) -> list[Dependency]:
    """How the jobs are that a flow depends on."""
    return [
        Dependency(
            each.job_id,
            DependencyPolicy(POLICY_NAMES[each.policy]),
            Status(STATUS_NAMES[each.status]) if each.status else Status.PENDING,
            gone=not each.status,
        )
        for each in messages
    ]


def _job_row(job: Job) -> jobstore_pb2.JobRow:
    row = jobstore_pb2.JobRow(
        job_id=job.job_id,
        command_type=job.command_type,
        description=job.description,
        status=STATUS[job.status],
        owner=job.owner,
        correlation_id=job.correlation_id,
        trace_id=job.trace_id,
        span_id=job.span_id,
        parameters_json=dump(job.parameters),
        subjects=[subject_message(subject) for subject in job.subjects],
        progress=job.progress,
        visible=job.visible,
        auto_cleared=job.auto_cleared,
        cancelable=CANCEL[job.cancelable],
        priority=job.priority,
        restarted_from=job.restarted_from,
        request_id=job.request_id,
        request_hash=job.request_hash,
        categories=job.categories,
        cancel_requested_by=job.cancel_requested_by,
        parent_job_id=job.parent_job_id,
        command_id=job.command_id,
    )
    if job.error is not None:
        row.error.CopyFrom(status_of(job.error))
    if job.deadline:
        row.deadline.CopyFrom(timestamp(job.deadline))
    return row


def _job_change(job: Job) -> jobstore_pb2.JobChange:
    change = jobstore_pb2.JobChange(
        status=STATUS[job.status],
        progress=job.progress,
        cancelable=CANCEL[job.cancelable],
        cancel_requested_by=job.cancel_requested_by,
    )
    if job.error is not None:
        change.error.CopyFrom(status_of(job.error))
    return change


def _external_system(step: Step) -> jobs_pb2.ExternalSystemType.ValueType:
    if step.external_id:
        return jobs_pb2.EXTERNAL_SYSTEM_TYPE_HOST_AGENT
    return jobs_pb2.EXTERNAL_SYSTEM_TYPE_UNSPECIFIED


def _step_row(step: Step) -> jobstore_pb2.StepRow:
    row = jobstore_pb2.StepRow(
        step_id=step.step_id,
        parent_step_id=step.parent_step_id,
        command_id=step.command_id,
        step_type=step.step_type,
        description=step.description,
        number=step.number,
        status=STATUS[step.status],
        progress=step.progress,
        external_id=step.external_id,
        external_system_type=_external_system(step),
        span_id=step.span_id,
        subjects=[subject_message(subject) for subject in step.subjects],
        weight=step.weight,
        job_id=step.job_id,
    )
    if step.error is not None:
        row.error.CopyFrom(status_of(step.error))
    return row


def _step_change(step: Step) -> jobstore_pb2.StepChange:
    change = jobstore_pb2.StepChange(
        step_id=step.step_id,
        status=STATUS[step.status],
        progress=step.progress,
        external_id=step.external_id,
        external_system_type=_external_system(step),
    )
    if step.error is not None:
        change.error.CopyFrom(status_of(step.error))
    return change


def _command_row(command: Command) -> jobstore_pb2.CommandRow:
    row = jobstore_pb2.CommandRow(
        command_id=command.command_id,
        parent_command_id=command.parent_command_id,
        step_id=command.step_id,
        command_type=command.command_type,
        parameters_json=dump(command.parameters),
        parameters_version=command.parameters_version,
        status=COMMAND_STATUS[command.status],
        plans_json=dump(command.plans),
        end_attempts=command.end_attempts,
        span_id=command.span_id,
        traceparent=command.traceparent,
        node=command.node,
    )
    if command.error is not None:
        row.error.CopyFrom(status_of(command.error))
    return row


def _command_change(command: Command, mutations: Mutations) -> jobstore_pb2.CommandChange:
    change = jobstore_pb2.CommandChange(
        command_id=command.command_id,
        status=COMMAND_STATUS[command.status],
        plans_json=dump(command.plans) if command.command_id in mutations.sealed else "",
        end_attempts=command.end_attempts,
    )
    if command.error is not None:
        change.error.CopyFrom(status_of(command.error))
    return change


def _task_row(leaf: Leaf) -> jobstore_pb2.TaskRow:
    row = jobstore_pb2.TaskRow(
        task_id=leaf.task_id,
        kind=KIND[leaf.kind],
        command_id=leaf.command_id,
        step_id=leaf.step_id,
        host_id=leaf.host_id,
        verb=leaf.verb,
        arguments_json=dump(leaf.arguments),
        attempt=leaf.attempt,
        path=leaf.path,
        incarnation=leaf.incarnation,
        span_id=leaf.span_id,
        state=STATE[leaf.state],
        result=RESULT[leaf.result],
        answer_json="" if leaf.answer is None else dump(leaf.answer),
    )
    if leaf.entity is not None:
        row.entity.CopyFrom(ref_message(leaf.entity))
    if leaf.error is not None:
        row.error.CopyFrom(status_of(leaf.error))
    if leaf.deadline:
        row.deadline.CopyFrom(timestamp(leaf.deadline))
    return row


def _task_change(leaf: Leaf) -> jobstore_pb2.TaskChange:
    change = jobstore_pb2.TaskChange(
        task_id=leaf.task_id,
        state=STATE[leaf.state],
        result=RESULT[leaf.result],
        answer_json="" if leaf.answer is None else dump(leaf.answer),
        incarnation=leaf.incarnation,
    )
    if leaf.error is not None:
        change.error.CopyFrom(status_of(leaf.error))
    return change


def _entity_change(change: EntityChange) -> jobstore_pb2.EntityChange:
    return jobstore_pb2.EntityChange(
        entity=ref_message(change.entity),
        remove=change.remove,
        name=change.name or "",
        status=change.status or "",
        declared_json="" if change.declared is None else dump(change.declared),
    )


def _snapshot_row(snapshot: Snapshot) -> jobstore_pb2.SnapshotRow:
    former = snapshot.former
    written = {"name": former.name, "status": former.status, "declared": former.declared} if former else None
    return jobstore_pb2.SnapshotRow(
        command_id=snapshot.command_id,
        number=snapshot.number,
        entity=ref_message(snapshot.entity),
        former_json=dump(written) if written else "",
    )


def _event_row(note: EventNote, event_id: str) -> jobstore_pb2.EventRow:
    row = jobstore_pb2.EventRow(
        event_id=event_id,
        event_type=note.event_type,
        severity=SEVERITY[note.severity],
        message=note.message,
        user=note.user,
    )
    if note.entity is not None:
        row.entity.CopyFrom(ref_message(note.entity))
    return row


def leftover(host_id: str, task_id: str, verb: str) -> jobstore_pb2.EventRow:
    """Says, once however often it is said, that a host still works on a task of a flow that is over."""
    return jobstore_pb2.EventRow(
        event_id=derived_id(namespace_of(task_id), 0, "", "leftover"),
        event_type="LEFTOVER",
        severity=jobs_pb2.SEVERITY_WARNING,
        message=f"{verb} on {host_id} (task {task_id}) outlived its flow; it is to be stopped and forgotten",
        task_id=task_id,
    )


# --- loading ---------------------------------------------------------------------------------------------------------


def rows_from(message: jobstore_pb2.FlowRows) -> FlowRows:
    """All rows of a flow, to take it up again."""
    job = _job_from(message.job)
    job.external_job_id = message.external_job_id
    return FlowRows(
        job=job,
        commands=[_command_from(row) for row in message.commands],
        steps=[_step_from(row) for row in message.steps],
        leaves=[_leaf_from(row) for row in message.tasks],
        snapshots=[_snapshot_from(row) for row in message.snapshots],
        child_jobs=[_job_from(row) for row in message.child_jobs],
        seen={
            EntityRef(ENTITY_NAMES[entity.entity_type], entity.entity_id): observation_from(entity.observed)
            for entity in message.waited_entities
        },
        epoch=message.epoch,
        sequence=message.sequence,
        dependencies=dependencies_from(message.dependencies),
        waits_until=seconds_of(message.waits_until),
        locks_free=message.locks_free,
    )


def _failure_in(message: Any) -> Failure | None:
    return failure_from(message.error) if message.HasField("error") else None


def _job_from(row: jobstore_pb2.JobRow) -> Job:
    return Job(
        job_id=row.job_id,
        command_type=row.command_type,
        description=row.description,
        owner=row.owner,
        correlation_id=row.correlation_id,
        parameters=json.loads(row.parameters_json or "{}"),
        status=Status(STATUS_NAMES[row.status]),
        subjects=tuple(_subject_from(subject) for subject in row.subjects),
        progress=row.progress,
        visible=row.visible,
        auto_cleared=row.auto_cleared,
        cancelable=Cancel(CANCEL_NAMES[row.cancelable]),
        priority=row.priority,
        restarted_from=row.restarted_from,
        error=_failure_in(row),
        request_id=row.request_id,
        request_hash=row.request_hash,
        deadline=seconds_of(row.deadline),
        categories=tuple(row.categories),
        cancel_requested_by=row.cancel_requested_by,
        trace_id=row.trace_id,
        span_id=row.span_id,
        create_time=seconds_of(row.create_time),
        start_time=seconds_of(row.start_time),
        update_time=seconds_of(row.update_time),
        revision=row.revision,
        parent_job_id=row.parent_job_id,
        command_id=row.command_id,
    )


def _step_from(row: jobstore_pb2.StepRow) -> Step:
    return Step(
        step_id=row.step_id,
        parent_step_id=row.parent_step_id,
        command_id=row.command_id,
        step_type=row.step_type,
        number=row.number,
        description=row.description,
        status=Status(STATUS_NAMES[row.status]),
        progress=row.progress,
        external_id=row.external_id,
        subjects=tuple(_subject_from(subject) for subject in row.subjects),
        error=_failure_in(row),
        weight=row.weight,
        span_id=row.span_id,
        job_id=row.job_id,
    )


def _command_from(row: jobstore_pb2.CommandRow) -> Command:
    return Command(
        command_id=row.command_id,
        parent_command_id=row.parent_command_id,
        command_type=row.command_type,
        parameters=json.loads(row.parameters_json or "{}"),
        parameters_version=row.parameters_version,
        step_id=row.step_id,
        status=CommandStatus(COMMAND_STATUS_NAMES[row.status]),
        plans=json.loads(row.plans_json or "[]"),
        end_attempts=row.end_attempts,
        error=_failure_in(row),
        node=row.node,
        span_id=row.span_id,
        traceparent=row.traceparent,
    )


def _leaf_from(row: jobstore_pb2.TaskRow) -> Leaf:
    return Leaf(
        task_id=row.task_id,
        kind=LeafKind(KIND_NAMES[row.kind]),
        command_id=row.command_id,
        step_id=row.step_id,
        host_id=row.host_id,
        verb=row.verb,
        arguments=json.loads(row.arguments_json or "{}"),
        attempt=row.attempt,
        path=row.path,
        entity=ref_from(row.entity) if row.HasField("entity") else None,
        state=STATE_NAMES[row.state],
        result=RESULT_NAMES[row.result],
        answer=json.loads(row.answer_json) if row.answer_json else None,
        error=_failure_in(row),
        incarnation=row.incarnation,
        deadline=seconds_of(row.deadline),
        span_id=row.span_id,
    )


def _snapshot_from(row: jobstore_pb2.SnapshotRow) -> Snapshot:
    former = json.loads(row.former_json) if row.former_json else None
    return Snapshot(row.command_id, row.number, ref_from(row.entity), Former(**former) if former else None)


def _subject_from(subject: jobs_pb2.Subject) -> Subject:
    return Subject(ENTITY_NAMES[subject.entity_type], subject.entity_id, subject.name)


# --- what callers see ------------------------------------------------------------------------------------------------


def subject_message(subject: Subject) -> jobs_pb2.Subject:
    """What a job is about."""
    return jobs_pb2.Subject(entity_type=ENTITY[subject.entity_type], entity_id=subject.entity_id, name=subject.name)


def job_message(job: Job, flow_command_id: str, steps: Iterable[Step] = ()) -> jobs_pb2.Job:
    """A job as its caller sees it."""
    message = jobs_pb2.Job(
        job_id=job.job_id,
        flow_command_id=flow_command_id,
        command_type=job.command_type,
        description=job.description,
        status=STATUS[job.status],
        owner=job.owner,
        correlation_id=job.correlation_id,
        trace_id=job.trace_id,
        span_id=job.span_id,
        parameters=struct(job.parameters),
        subjects=[subject_message(subject) for subject in job.subjects],
        revision=job.revision,
        progress=job.progress,
        visible=job.visible,
        auto_cleared=job.auto_cleared,
        cancelable=CANCEL[job.cancelable],
        priority=job.priority,
        restarted_from=job.restarted_from,
        request_id=job.request_id,
        categories=job.categories,
        parent_job_id=job.parent_job_id,
        command_id=job.command_id or flow_command_id,
        steps=[_step_message(step, job) for step in steps],
    )
    for name in ("create_time", "start_time", "end_time", "update_time", "deadline"):
        if seconds := getattr(job, name):
            getattr(message, name).CopyFrom(timestamp(seconds))
    if job.error is not None:
        message.error.CopyFrom(status_of(job.error))
    return message


def _step_message(step: Step, job: Job) -> jobs_pb2.Step:
    message = jobs_pb2.Step(
        step_id=step.step_id,
        parent_step_id=step.parent_step_id,
        job_id=job.job_id,
        command_id=step.command_id,
        step_type=step.step_type,
        description=step.description,
        number=step.number,
        status=STATUS[step.status],
        progress=step.progress,
        correlation_id=job.correlation_id,
        external_id=step.external_id,
        external_system_type=_external_system(step),
        span_id=step.span_id,
        subjects=[subject_message(subject) for subject in step.subjects],
    )
    if step.error is not None:
        message.error.CopyFrom(status_of(step.error))
    return message


def json_of(message: Any) -> Any:
    """Any message as JSON with the proto's field names."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
