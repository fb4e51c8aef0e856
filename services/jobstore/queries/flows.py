"""What coordinators ask about flows: their rows, to take them up again; tasks that hosts may still know; and intents
that they leave for each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from chassis.errors import failed_precondition, invalid_field, not_found
from jobstore import messages
from jobstore.display import in_display_order, plan_order
from jobstore.feed.changes import steps_in_order
from jobstore.feed.waiting import read_waits
from jobstore.journal.external import step_of
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.messages import Row, entity_message, flow_request_message, timestamp
from jobstore.snapshots import Connection, Pool, borrowed, snapshot
from waybill.v1 import jobs_pb2, jobstore_pb2

MOST_LOADED: Final = 100
MOST_TASKS: Final = 1_000
JOBS_AT_ONCE: Final = 10_000
"""Looked through for those of a dead coordinator: more than can end in one transaction."""

_ROOTS: Final = """
    SELECT command_id, coordinator_id, epoch, sequence, job_id FROM command
    WHERE (command_id = ANY ($1::text[]) OR job_id = ANY ($2::text[])) AND parent_command_id = ''
"""
_JOBS: Final = f"""
    SELECT {messages.JOB_COLUMNS}, job.request_hash, job.cancel_requested_by FROM job
    WHERE job.job_id = ANY ($1::text[])
"""
# Of children that show as jobs.
_CHILD_JOBS: Final = f"""
    SELECT {messages.JOB_COLUMNS}, job.request_hash, job.cancel_requested_by FROM job
    WHERE job.flow_command_id = ANY ($1::text[]) AND job.parent_job_id <> '' ORDER BY job.create_time, job.job_id
"""
_ONE_JOB: Final = f"SELECT {messages.JOB_COLUMNS} FROM job WHERE job.job_id = $1"
_JOB_OF_STEP: Final = f"""
    SELECT {messages.JOB_COLUMNS} FROM job WHERE job.job_id = (SELECT step.job_id FROM step WHERE step.step_id = $1)
"""
_STEPS: Final = f"SELECT {messages.STEP_COLUMNS}, step.weight FROM step WHERE step.job_id = ANY ($1::text[])"
_COMMANDS: Final = f"""
    SELECT {messages.COMMAND_COLUMNS}, command.traceparent, command.node FROM command
    WHERE command.job_id = ANY ($1::text[])
"""
_TASKS: Final = f"""
    SELECT {messages.HOST_TASK_COLUMNS} FROM host_task WHERE host_task.job_id = ANY ($1::text[])
    ORDER BY host_task.create_time, host_task.attempt, host_task.path
"""
_DEBT: Final = "SELECT traced_revision FROM span_debt WHERE coordinator_id = $1"
_TRACED_SINCE: Final = """
    SELECT revision, flow_command_id FROM job WHERE revision > $1 AND end_time IS NOT NULL AND trace_id <> ''
    ORDER BY revision LIMIT $2
"""
_OF_COORDINATOR: Final = "SELECT command_id FROM command WHERE coordinator_id = $1 AND command_id = ANY ($2::text[])"
_SNAPSHOTS: Final = """
    SELECT flow_command_id, command_id, number, entity_type, entity_id, former FROM entity_snapshot
    WHERE flow_command_id = ANY ($1::text[]) ORDER BY number
"""
# What open waits look at: their entities, and those beside.
_WAITED: Final = f"""
    SELECT host_task.flow_command_id, {messages.ENTITY_COLUMNS} FROM host_task
    JOIN entity ON entity.entity_type = host_task.entity_type AND entity.entity_id = host_task.entity_id
    WHERE host_task.job_id = ANY ($1::text[]) AND host_task.kind = 'WAIT' AND host_task.end_time IS NULL
  UNION
    SELECT host_task.flow_command_id, {messages.ENTITY_COLUMNS} FROM host_task
    JOIN entity ON entity.entity_type = host_task.arguments #>> '{{beside,0}}'
                   AND entity.entity_id = host_task.arguments #>> '{{beside,1}}'
    WHERE host_task.job_id = ANY ($1::text[]) AND host_task.kind = 'WAIT' AND host_task.end_time IS NULL
"""
_REQUESTS: Final = """
    SELECT request_id, flow_command_id, kind, "user", reason, arguments FROM flow_request
    WHERE flow_command_id = ANY ($1::text[]) ORDER BY revision, request_id
"""
# The steps that show flows in external jobs.
_ATTACHED: Final = "SELECT step_id, job_id FROM step WHERE step_id = ANY ($1::text[])"

# Tasks of live flows are those flows' business; a call is kept by its host like a task.
_UNCLEARED: Final = """
    SELECT host_task.task_id FROM host_task JOIN job USING (job_id)
    WHERE host_task.host_id = $1 AND NOT host_task.cleared AND job.end_time IS NOT NULL
    ORDER BY host_task.create_time LIMIT $2
"""

_FLOW: Final = """
    SELECT command.job_id, job.end_time IS NOT NULL AS ended FROM command JOIN job USING (job_id)
    WHERE command.command_id = $1 AND command.parent_command_id = ''
"""
_LEAVE_REQUEST: Final = """
    INSERT INTO flow_request
        (revision, create_time, request_id, flow_command_id, job_id, kind, "user", reason, arguments)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb)
    ON CONFLICT (request_id) DO NOTHING
"""


class Flows:
    """The rows of flows, for those who run them."""

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def load(self, flow_command_ids: Sequence[str], job_ids: Sequence[str] = ()) -> list[jobstore_pb2.FlowRows]:
        """Returns all rows of each flow, in the order asked, of one state of the store; unknown flows are left out.

        After them come the flows of the jobs.
        """
        for field, ids in (("flow_command_ids", flow_command_ids), ("job_ids", job_ids)):
            if len(ids) > MOST_LOADED:
                raise invalid_field(field, f"at most {MOST_LOADED} at once")
        async with snapshot(self._pool) as connection:
            roots = {row["command_id"]: row for row in await connection.fetch(_ROOTS, flow_command_ids, job_ids)}
            tables = await _read_tables(connection, list(roots), [row["job_id"] for row in roots.values()])
            flows = [_flow(roots[flow], tables) for flow in dict.fromkeys((*flow_command_ids, *roots)) if flow in roots]
            waiting = [flow for flow in flows if flow.job.status == jobs_pb2.EXECUTION_STATUS_PENDING]
            if waiting:
                waits = await read_waits(connection, [flow.flow_command_id for flow in waiting])
                for flow in waiting:
                    waits.fill(flow)
        return flows

    async def job(self, *, job_id: str = "", step_id: str = "") -> jobs_pb2.Job:
        """Returns a job without its steps, by its id or a step's; raises JOB_NOT_FOUND or STEP_NOT_FOUND."""
        key = step_id or job_id
        async with borrowed(self._pool) as connection:
            row = await connection.fetchrow(_JOB_OF_STEP if step_id else _ONE_JOB, key)
        if row is None:
            if step_id:
                raise not_found("STEP_NOT_FOUND", f"there is no step {key}", step_id=key)
            raise not_found("JOB_NOT_FOUND", f"there is no job {key}", job_id=key)
        return messages.job_message(row)

    async def uncleared_tasks(self, host_id: str, limit: int) -> list[str]:
        """Returns ids of tasks and calls of ended flows that a host may still know, oldest first."""
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(_UNCLEARED, host_id, limit or MOST_TASKS)
        return [row["task_id"] for row in rows]

    async def untraced(self, coordinator_id: str, after_revision: int) -> tuple[list[str], int]:
        """Returns ended flows whose spans a dead coordinator owes, by revision, and where to go on; 0: nowhere."""
        async with borrowed(self._pool) as connection:
            owed_after = await connection.fetchval(_DEBT, coordinator_id)
            if owed_after is None:
                return [], 0
            ended = await connection.fetch(_TRACED_SINCE, max(owed_after, after_revision), JOBS_AT_ONCE)
            on = 0
            if len(ended) == JOBS_AT_ONCE:  # perhaps in the midst of a transaction's
                on = ended[-1]["revision"] - 1
            flows = dict.fromkeys(row["flow_command_id"] for row in ended if not on or row["revision"] <= on)
            theirs = {row["command_id"] for row in await connection.fetch(_OF_COORDINATOR, coordinator_id, list(flows))}
        return [flow for flow in flows if flow in theirs], on

    async def leave_request(self, request: jobstore_pb2.FlowRequest, job_id: str) -> int:
        """Stores an intent for a flow's owner and returns the revision that has it.

        Raises JOB_NOT_FOUND for a flow that is not there (or not the job's), JOB_ENDED for one that has ended.
        """
        return await self._journal.alone(lambda turn: _leave_request(turn, request, job_id))


async def _leave_request(turn: Turn, request: jobstore_pb2.FlowRequest, job_id: str) -> int:
    flows = await turn.writer.fetch(_FLOW, request.flow_command_id)
    if not flows or flows[0]["job_id"] != job_id:
        raise not_found("JOB_NOT_FOUND", f"there is no job {job_id} of flow {request.flow_command_id}", job_id=job_id)
    if flows[0]["ended"]:
        raise failed_precondition("JOB_ENDED", f"job {job_id} has ended", job_id=job_id)
    columns = (request.request_id, request.flow_command_id, job_id, request.kind, request.user, request.reason)
    arguments = request.arguments_json or "{}"
    stored = await turn.writer.change(_LEAVE_REQUEST, turn.revision, turn.time, *columns, arguments)
    turn.changed = stored > 0
    return turn.revision if stored else turn.revision - 1  # it was left before: whatever is committed has it


# --- the rows of a flow ----------------------------------------------------------------------------------------------

_Tables = Mapping[str, Mapping[str, Sequence[Row]]]
"""Rows by table, and by the job or flow that they are of."""


async def _read_tables(connection: Connection, flows: Sequence[str], jobs: Sequence[str]) -> _Tables:
    child_jobs = await connection.fetch(_CHILD_JOBS, flows)
    with_steps = [*jobs, *(row["job_id"] for row in child_jobs)]
    return {
        "job": _grouped("job_id", await connection.fetch(_JOBS, jobs)),
        "child_job": _grouped("flow_command_id", child_jobs),
        "step": _grouped("job_id", await connection.fetch(_STEPS, with_steps)),
        "command": _grouped("job_id", await connection.fetch(_COMMANDS, jobs)),
        "host_task": _grouped("job_id", await connection.fetch(_TASKS, jobs)),
        "snapshot": _grouped("flow_command_id", await connection.fetch(_SNAPSHOTS, flows)),
        "waited": _grouped("flow_command_id", await connection.fetch(_WAITED, jobs)),
        "request": _grouped("flow_command_id", await connection.fetch(_REQUESTS, flows)),
        "attached": _grouped("step_id", await connection.fetch(_ATTACHED, list(map(step_of, jobs)))),
    }


def _grouped(column: str, rows: Iterable[asyncpg.Record]) -> defaultdict[str, list[Row]]:
    groups = defaultdict[str, list[Row]](list)
    for row in rows:
        groups[row[column]].append(row)
    return groups


def _flow(root: Row, tables: _Tables) -> jobstore_pb2.FlowRows:
    flow, job = root["command_id"], root["job_id"]
    return jobstore_pb2.FlowRows(
        flow_command_id=flow,
        coordinator_id=root["coordinator_id"],
        epoch=root["epoch"],
        sequence=root["sequence"],
        job=_job(tables["job"][job][0]),
        child_jobs=[_job(child) for child in tables["child_job"][flow]],
        steps=[
            *(_step(step) for step in steps_in_order(tables["step"][job])),
            *(_step_of_child(step) for child in tables["child_job"][flow] for step in _steps_of(child, tables)),
        ],
        commands=map(_command, _commands_in_order(tables["command"][job])),
        tasks=map(_task, tables["host_task"][job]),
        snapshots=map(_snapshot, tables["snapshot"][flow]),
        waited_entities=map(entity_message, tables["waited"][flow]),
        requests=map(flow_request_message, tables["request"][flow]),
        external_job_id="".join(row["job_id"] for row in tables["attached"][step_of(job)]),
    )


def _commands_in_order(rows: Iterable[Row]) -> list[Row]:
    return in_display_order(
        rows,
        name=lambda row: row["command_id"],
        parent=lambda row: row["parent_command_id"],
        number=lambda row: (plan_order(row["node"]), row["command_id"]),
    )


def _job(row: Row) -> jobstore_pb2.JobRow:
    return jobstore_pb2.JobRow(
        **_same(row, *_JOB_FIELDS),
        status=messages.EXECUTION_STATUS[row["status"]],
        cancelable=messages.CANCEL_KIND[row["cancelable"]],
        parameters_json=row["parameters"],
        subjects=messages.subjects(row["subjects"]),
        error=messages.status(row["error"]),
        request_hash=row["request_hash"] or b"",
        deadline=timestamp(row["deadline"]),
        create_time=timestamp(row["create_time"]),
        start_time=timestamp(row["start_time"]),
        update_time=timestamp(row["update_time"]),
        end_time=timestamp(row["end_time"]),
    )


def _step(row: Row) -> jobstore_pb2.StepRow:
    return jobstore_pb2.StepRow(
        **_same(row, *_STEP_FIELDS),
        status=messages.EXECUTION_STATUS[row["status"]],
        external_system_type=messages.EXTERNAL_SYSTEM_TYPE[row["external_system_type"]],
        subjects=messages.subjects(row["subjects"]),
        error=messages.status(row["error"]),
        start_time=timestamp(row["start_time"]),
    )


def _steps_of(job: Row, tables: _Tables) -> Sequence[Row]:
    return steps_in_order(tables["step"][job["job_id"]])


def _step_of_child(row: Row) -> jobstore_pb2.StepRow:
    step = _step(row)
    step.job_id = row["job_id"]
    return step


def _command(row: Row) -> jobstore_pb2.CommandRow:
    return jobstore_pb2.CommandRow(
        **_same(row, *_COMMAND_FIELDS),
        status=messages.COMMAND_STATUS[row["status"]],
        parameters_json=row["parameters"],
        plans_json=row["plans"],
        error=messages.status(row["error"]),
        create_time=timestamp(row["create_time"]),
        end_time=timestamp(row["end_time"]),
    )


def _task(row: Row) -> jobstore_pb2.TaskRow:
    return jobstore_pb2.TaskRow(
        **_same(row, *_TASK_FIELDS),
        kind=messages.HOST_TASK_KIND[row["kind"]],
        arguments_json=row["arguments"],
        entity=_ref(row) if row["entity_id"] else None,
        state=messages.TASK_STATE[row["state"]],
        result=messages.TASK_RESULT[row["result"]],
        answer_json=row["answer"] or "",
        error=messages.status(row["error"]),
        deadline=timestamp(row["deadline"]),
        create_time=timestamp(row["create_time"]),
    )


def _snapshot(row: Row) -> jobstore_pb2.SnapshotRow:
    return jobstore_pb2.SnapshotRow(
        **_same(row, "command_id", "number"), entity=_ref(row), former_json=row["former"] or ""
    )


def _ref(row: Row) -> jobstore_pb2.EntityRef:
    return jobstore_pb2.EntityRef(entity_type=messages.ENTITY_TYPE[row["entity_type"]], entity_id=row["entity_id"])


def _same(row: Row, *names: str) -> dict[str, Any]:
    """Columns that are fields of the same name and type."""
    return {name: row[name] for name in names}


_JOB_FIELDS: Final = (
    "job_id",
    "command_type",
    "description",
    "owner",
    "correlation_id",
    "trace_id",
    "span_id",
    "progress",
    "visible",
    "auto_cleared",
    "priority",
    "restarted_from",
    "request_id",
    "categories",
    "cancel_requested_by",
    "revision",
    "parent_job_id",
    "command_id",
)
_STEP_FIELDS: Final = (
    "step_id",
    "parent_step_id",
    "command_id",
    "step_type",
    "description",
    "number",
    "progress",
    "external_id",
    "span_id",
    "weight",
)
_COMMAND_FIELDS: Final = (
    "command_id",
    "step_id",
    "parent_command_id",
    "command_type",
    "parameters_version",
    "end_attempts",
    "span_id",
    "traceparent",
    "node",
)
_TASK_FIELDS: Final = (
    "task_id",
    "command_id",
    "step_id",
    "host_id",
    "verb",
    "attempt",
    "path",
    "incarnation",
    "span_id",
)
