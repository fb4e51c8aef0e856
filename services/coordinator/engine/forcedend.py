"""The forced end of a flow: what is left to write when nobody can, or wants to, go on with it. Pure.

It is made of the stored rows alone, as they came, so that it works also where they cannot be gone on with: whatever
keeps a flow from ending (a defect, a type that is gone, a host that never answers) is not asked.

| what | becomes |
| --- | --- |
| the job, and those of its children | FAILED, FORCE_ENDED |
| a step that was begun, that was not | ABORTED, SKIPPED |
| a command that was begun, that was not | UNKNOWN, ENDED_WITH_FAILURE |
| a task, call or wait that is under way | UNKNOWN: its host is told to stop and forget it, as with all of ended flows |
| an entity that a command had changed which has not ended | what it was; ILLEGAL if begun work on it is not known to |
| | be rolled back |
| locks, places in queues, snapshots, intents | gone, with the flow |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from google.rpc import status_pb2

from coordinator import wire
from coordinator.flow.failures import ABORTED, FAILED_PRECONDITION, skipped_because_of
from coordinator.plan import EntityRef
from coordinator.rows import Failure
from waybill.v1 import jobs_pb2, jobstore_pb2

_OVER: Final = (jobs_pb2.TASK_STATE_FINISHED, jobs_pb2.TASK_STATE_UNKNOWN)


def forced_end(rows: jobstore_pb2.FlowRows, user: str, reason: str, event_id: str) -> jobstore_pb2.FlowCommit:
    """Returns the commit that ends a flow which has not ended."""
    why = f"ended by force by {user}: {reason}"
    failure = Failure(ABORTED, "FORCE_ENDED", why)
    error = wire.status_of(failure)
    commit = jobstore_pb2.FlowCommit(
        flow_command_id=rows.flow_command_id,
        epoch=rows.epoch,
        sequence=rows.sequence + 1,
        job_id=rows.job.job_id,
        job=jobstore_pb2.JobChange(
            status=jobs_pb2.EXECUTION_STATUS_FAILED, cancelable=jobs_pb2.CANCEL_KIND_NONE, error=error
        ),
        child_jobs=_child_jobs(rows, error),
        steps=_steps(rows, failure),
        commands=_commands(rows, failure),
        entities=_entities(rows),
        ends_flow=True,
        ends_wait=True,
    )
    for task in rows.tasks:
        if task.state not in _OVER:
            commit.tasks.add(task_id=task.task_id, state=jobs_pb2.TASK_STATE_UNKNOWN, error=error)
    commit.events.add(
        event_id=event_id,
        event_type="JOB_FORCE_ENDED",
        severity=jobs_pb2.SEVERITY_WARNING,
        message=why,
        user=user,
    )
    return commit


def tasks_by_host(rows: jobstore_pb2.FlowRows) -> dict[str, list[str]]:
    """All tasks and calls that hosts may know, to be cleared."""
    found: dict[str, list[str]] = {}
    for task in rows.tasks:
        if task.host_id:
            found.setdefault(task.host_id, []).append(task.task_id)
    return found


def has_ended(rows: jobstore_pb2.FlowRows) -> bool:
    """Tells whether there is nothing left to end."""
    return rows.job.HasField("end_time")


def job_ended(rows: jobstore_pb2.FlowRows) -> Failure:
    """Why it is not ended by force."""
    status = wire.STATUS_NAMES[rows.job.status]
    return Failure(FAILED_PRECONDITION, "JOB_ENDED", f"job {rows.job.job_id} has ended {status}")


def _child_jobs(rows: jobstore_pb2.FlowRows, error: status_pb2.Status) -> Iterator[jobstore_pb2.JobChange]:
    for job in rows.child_jobs:
        if not job.HasField("end_time"):
            yield jobstore_pb2.JobChange(job_id=job.job_id, status=jobs_pb2.EXECUTION_STATUS_FAILED, error=error)


def _steps(rows: jobstore_pb2.FlowRows, failure: Failure) -> Iterator[jobstore_pb2.StepChange]:
    for step in rows.steps:
        if step.status == jobs_pb2.EXECUTION_STATUS_STARTED:
            status, why = jobs_pb2.EXECUTION_STATUS_ABORTED, failure
        elif step.status == jobs_pb2.EXECUTION_STATUS_PENDING:
            status, why = jobs_pb2.EXECUTION_STATUS_SKIPPED, skipped_because_of("its job's forced end", None)
        else:
            continue
        yield jobstore_pb2.StepChange(step_id=step.step_id, status=status, error=wire.status_of(why))


def _commands(rows: jobstore_pb2.FlowRows, failure: Failure) -> Iterator[jobstore_pb2.CommandChange]:
    for command in rows.commands:
        if not command.HasField("end_time"):
            begun = command.status != jobs_pb2.COMMAND_STATUS_NOT_STARTED
            status = jobs_pb2.COMMAND_STATUS_UNKNOWN if begun else jobs_pb2.COMMAND_STATUS_ENDED_WITH_FAILURE
            yield jobstore_pb2.CommandChange(
                command_id=command.command_id, status=status, error=wire.status_of(failure)
            )


def _entities(rows: jobstore_pb2.FlowRows) -> Iterator[jobstore_pb2.EntityChange]:
    """Undoes what commands had changed that have not ended: newest first, each entity once, to its oldest self."""
    live = {command.command_id for command in rows.commands if not command.HasField("end_time")}
    oldest: dict[EntityRef, jobstore_pb2.SnapshotRow] = {}
    for snapshot in sorted(rows.snapshots, key=lambda row: -row.number):
        if snapshot.command_id in live:
            oldest[wire.ref_from(snapshot.entity)] = snapshot
    doubtful = {
        wire.ref_from(task.entity)
        for task in rows.tasks
        if task.HasField("entity") and task.host_id and task.result != jobs_pb2.TASK_RESULT_CLEAN_SUCCESS
    }
    for ref, snapshot in oldest.items():
        yield _former_self(snapshot, illegal=ref in doubtful)


def _former_self(snapshot: jobstore_pb2.SnapshotRow, *, illegal: bool) -> jobstore_pb2.EntityChange:
    change = jobstore_pb2.EntityChange(entity=snapshot.entity)
    if snapshot.former_json:
        former = json.loads(snapshot.former_json)
        change.name, change.status = former["name"], former["status"]
        change.declared_json = wire.dump(former["declared"])
    elif not illegal:
        change.remove = True
    if illegal:
        change.status = "ILLEGAL"
    return change
