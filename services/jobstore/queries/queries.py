"""The read side: one method a question, one statement where one will do.

Every list is paged by key, names its columns and binds its values. Arguments come checked (`reads.py`), rows leave as
messages (`messages.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from chassis.errors import WaybillError, not_found
from jobstore.display import in_display_order, plan_order
from jobstore.feed.changes import read_batch, revision_before, steps_in_order
from jobstore.feed.head import check_resume, read_head
from jobstore.feed.selections import JobSelection
from jobstore.feed.window import Batch, JobChange, JobChanged, JobRemoved, Position
from jobstore.messages import (
    COMMAND_COLUMNS,
    ENTITY_COLUMNS,
    HOST_TASK_COLUMNS,
    JOB_COLUMNS,
    LOCK_COLUMNS,
    STEP_COLUMNS,
    Row,
    command_message,
    entity_message,
    host_task_message,
    job_message,
    lock_message,
    step_message,
)
from jobstore.queries.paging import LARGEST_ANSWER, Page, Paging, microseconds, time_of
from jobstore.search.filter import Filter, Verdict
from jobstore.search.kinds import Bindings
from jobstore.snapshots import Connection, Pool, borrowed, snapshot
from waybill.v1 import jobs_pb2, jobstore_pb2

__all__ = ["Queries", "entity_message", "job_message"]


# Of the steps that run and name an entity, but for those within another one. Open jobs are few, and have an index.
_PROGRESS: Final = """
    SELECT floor(sum(step.weight * step.progress) / nullif(sum(step.weight), 0))::integer
    FROM job JOIN step ON step.job_id = job.job_id AND step.status = 'STARTED' AND step.subjects @> $1::text::jsonb
    LEFT JOIN step AS above ON above.step_id = step.parent_step_id AND above.status = 'STARTED'
                               AND above.subjects @> $1::text::jsonb
    WHERE job.status IN ('PENDING', 'STARTED') AND above.step_id IS NULL
"""


class Queries:
    """Answers questions about what is stored."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def get_job(self, job_id: str, *, tree: bool) -> jobs_pb2.Job:
        """Returns a job; raises JOB_NOT_FOUND."""
        return await self._one_job("job.job_id = $1", job_id, tree=tree)

    async def get_job_of_command(self, command_id: str, *, tree: bool) -> jobs_pb2.Job:
        """Returns the job that shows a command, or else that of its flow; raises JOB_NOT_FOUND."""
        of_command = """job.job_id = (
            SELECT coalesce((SELECT part.job_id FROM job AS part
                             WHERE part.flow_command_id = command.flow_command_id AND part.parent_job_id <> ''
                                   AND part.command_id = command.command_id), command.job_id)
            FROM command WHERE command.command_id = $1)"""
        return await self._one_job(of_command, command_id, tree=tree)

    async def get_jobs(self, job_ids: Collection[str]) -> list[jobs_pb2.Job]:
        """Returns those of the jobs that exist, without steps, in no order."""
        if not job_ids:
            return []
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(f"SELECT {JOB_COLUMNS} FROM job WHERE job.job_id = ANY ($1)", list(job_ids))
        return [job_message(row) for row in rows]

    async def _one_job(self, condition: str, key: str, *, tree: bool) -> jobs_pb2.Job:
        async with (snapshot if tree else borrowed)(self._pool) as connection:
            row = await connection.fetchrow(f"SELECT {JOB_COLUMNS} FROM job WHERE {condition}", key)
            if row is None:
                raise no_job(key)
            job = job_message(row)
            if tree:
                await add_steps(connection, [job])
        return job

    async def list_jobs(self, filter: Filter, paging: Paging, *, oldest_first: bool, tree: bool) -> Page[jobs_pb2.Job]:
        """Lists jobs by the time they were made at."""
        bind = Bindings()
        condition = filter.sql(bind)
        direction, after = ("ASC", ">") if oldest_first else ("DESC", "<")
        if paging.after:
            create_time, job_id = paging.after
            key = f"({bind(time_of(create_time))}::timestamptz, {bind(job_id)}::text)"
            condition += f" AND (job.create_time, job.job_id) {after} {key}"
        statement = f"""
            SELECT {JOB_COLUMNS} FROM job WHERE {condition}
            ORDER BY job.create_time {direction}, job.job_id {direction} LIMIT {bind(paging.size + 1)}
        """
        async with (snapshot if tree else borrowed)(self._pool) as connection:
            rows = await connection.fetch(statement, *bind.values)
            jobs = [job_message(row) for row in rows]
            if tree:
                await add_steps(connection, jobs[: paging.size])
        return paging.page(jobs, [(microseconds(row["create_time"]), row["job_id"]) for row in rows])

    async def modified_jobs(
        self, since: int | datetime, store_epoch: str, limit: int, filter: Filter
    ) -> jobstore_pb2.GetModifiedJobsResponse:
        """Returns what changed after a revision, or since a time, as a watch with this filter would tell it."""
        async with snapshot(self._pool) as connection:
            head = await read_head(connection)
            field = "since_revision"
            if isinstance(since, datetime):
                since, field = await revision_before(connection, since), "since_time"
            check_resume(head, since, store_epoch, field=field)
            scope = JobSelection(filter).scope
            batch = await read_batch(connection, Position(since), scope, limit=limit, filter=filter)
        changes, until = _that_fit(batch)
        told = jobstore_pb2.GetModifiedJobsResponse(revision=until, store_epoch=head.store_epoch)
        for change in changes:
            if isinstance(change, JobRemoved):
                told.removed_job_ids.append(change.job_id)
            elif (verdict := filter.verdict(change)) is Verdict.MATCHES:
                told.jobs.append(change.job)
            elif verdict is Verdict.LEFT:
                told.removed_job_ids.append(change.job.job_id)
        return told

    # --- what jobs are made of -------------------------------------------------------------------------------------

    async def get_step(self, step_id: str) -> jobs_pb2.Step:
        """Returns a step; raises STEP_NOT_FOUND."""
        async with borrowed(self._pool) as connection:
            row = await connection.fetchrow(f"SELECT {STEP_COLUMNS} FROM step WHERE step.step_id = $1", step_id)
        if row is None:
            raise not_found("STEP_NOT_FOUND", f"there is no step {step_id}", step_id=step_id)
        return step_message(row)

    async def list_steps(self, job_id: str, paging: Paging) -> Page[jobs_pb2.Step]:
        """Lists a job's steps in display order; raises JOB_NOT_FOUND."""
        async with snapshot(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT step.step_id, step.parent_step_id, step.number FROM step WHERE step.job_id = $1", job_id
            )
            if not rows:
                await _check_job(connection, job_id)
            wanted = _slice([row["step_id"] for row in steps_in_order(rows)], paging)
            found = await connection.fetch(f"SELECT {STEP_COLUMNS} FROM step WHERE step.step_id = ANY($1)", wanted)
        steps = {row["step_id"]: step_message(row) for row in found}
        return paging.page([steps[step_id] for step_id in wanted], [(step_id,) for step_id in wanted])

    async def list_commands(self, flow_command_id: str, paging: Paging) -> Page[jobs_pb2.Command]:
        """Lists the commands of a flow, parents first, siblings in the order of the plan; raises JOB_NOT_FOUND."""
        async with snapshot(self._pool) as connection:
            rows = await connection.fetch(
                """
                SELECT command.command_id, command.parent_command_id, command.node FROM command
                WHERE command.job_id = (SELECT root.job_id FROM command AS root WHERE root.command_id = $1)
                      AND command.flow_command_id = $1
                """,
                flow_command_id,
            )
            if not rows:
                raise not_found("JOB_NOT_FOUND", f"there is no flow {flow_command_id}", flow_command_id=flow_command_id)
            wanted = _slice([row["command_id"] for row in _commands_in_order(rows)], paging)
            found = await connection.fetch(
                f"SELECT {COMMAND_COLUMNS} FROM command WHERE command.command_id = ANY($1)", wanted
            )
        commands = {row["command_id"]: command_message(row) for row in found}
        return paging.page([commands[command_id] for command_id in wanted], [(command_id,) for command_id in wanted])

    async def list_host_tasks(
        self,
        paging: Paging,
        *,
        job_id: str = "",
        entity: tuple[str, str] | None = None,
        host_id: str = "",
        correlation_id: str = "",
    ) -> Page[jobs_pb2.HostTask]:
        """Lists begun tasks, calls and waits that match all that is given, newest first."""
        bind = Bindings()
        conditions: list[str] = []
        if job_id:
            conditions.append(f"host_task.job_id = {bind(job_id)}")
        if entity:
            conditions.append(
                f"host_task.entity_type = {bind(entity[0])} AND host_task.entity_id = {bind(entity[1])}",
            )
        if host_id:
            conditions.append(f"host_task.host_id = {bind(host_id)}")
        if correlation_id:  # a task has its job's, and jobs are found by it
            of_jobs = f"SELECT job.job_id FROM job WHERE job.correlation_id = {bind(correlation_id)}"
            conditions.append(f"host_task.job_id IN ({of_jobs})")
        if paging.after:
            create_time, task_id = paging.after
            key = f"({bind(time_of(create_time))}::timestamptz, {bind(task_id)}::text)"
            conditions.append(f"(host_task.create_time, host_task.task_id) < {key}")
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {HOST_TASK_COLUMNS} FROM host_task WHERE {" AND ".join(conditions)}
                ORDER BY host_task.create_time DESC, host_task.task_id DESC LIMIT {bind(paging.size + 1)}
                """,
                *bind.values,
            )
        tasks = [host_task_message(row) for row in rows]
        return paging.page(tasks, [(microseconds(row["create_time"]), row["task_id"]) for row in rows])

    async def list_locks(self, paging: Paging) -> Page[jobs_pb2.Lock]:
        """Lists all held locks, by what is locked."""
        after = paging.after or ("", "", "")
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {LOCK_COLUMNS} FROM entity_lock
                WHERE (entity_lock.entity_type, entity_lock.entity_id, entity_lock.flow_command_id)
                      > ($1::text, $2::text, $3::text)
                ORDER BY entity_lock.entity_type, entity_lock.entity_id, entity_lock.flow_command_id LIMIT $4
                """,
                *after,
                paging.size + 1,
            )
        keys = [(row["entity_type"], row["entity_id"], row["flow_command_id"]) for row in rows]
        return paging.page([lock_message(row) for row in rows], keys)

    # --- entities --------------------------------------------------------------------------------------------------

    async def get_entity(self, entity_type: str, entity_id: str) -> jobs_pb2.Entity:
        """Returns an entity, with the progress of the work on it; raises ENTITY_NOT_FOUND."""
        async with borrowed(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {ENTITY_COLUMNS} FROM entity WHERE entity.entity_type = $1 AND entity.entity_id = $2",
                entity_type,
                entity_id,
            )
            subject = json.dumps([{"entity_type": entity_type, "entity_id": entity_id}])
            progress = await connection.fetchval(_PROGRESS, subject) if row is not None else None
        if row is None:
            what = f"there is no {entity_type} {entity_id}"
            raise not_found("ENTITY_NOT_FOUND", what, entity_type=entity_type, entity_id=entity_id)
        entity = entity_message(row)
        if progress is not None:
            entity.progress = progress
        return entity

    async def list_entities(self, entity_type: str | None, filter: Filter, paging: Paging) -> Page[jobs_pb2.Entity]:
        """Lists entities by type and id; of all types if no type is given."""
        bind = Bindings(*(paging.after or ("", "")))
        condition = filter.sql(bind)
        if entity_type:
            condition += f" AND entity.entity_type = {bind(entity_type)}"
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {ENTITY_COLUMNS} FROM entity
                WHERE (entity.entity_type, entity.entity_id) > ($1::text, $2::text) AND {condition}
                ORDER BY entity.entity_type, entity.entity_id LIMIT {bind(paging.size + 1)}
                """,
                *bind.values,
            )
        return paging.page(
            [entity_message(row) for row in rows], [(row["entity_type"], row["entity_id"]) for row in rows]
        )


def no_job(key: str) -> WaybillError:
    """Says that there is no such job."""
    return not_found("JOB_NOT_FOUND", f"there is no job {key}")


async def _check_job(connection: Connection, job_id: str) -> None:
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM job WHERE job.job_id = $1)", job_id):
        raise no_job(job_id)


async def add_steps(connection: Connection, jobs: Sequence[jobs_pb2.Job]) -> None:
    """Gives jobs their steps, in display order."""
    rows = await connection.fetch(
        f"SELECT {STEP_COLUMNS} FROM step WHERE step.job_id = ANY($1)", [job.job_id for job in jobs]
    )
    steps = defaultdict[str, list[Row]](list)
    for row in rows:
        steps[row["job_id"]].append(row)
    for job in jobs:
        job.steps.extend(step_message(row) for row in steps_in_order(steps[job.job_id]))


def _commands_in_order(rows: Iterable[Row]) -> list[Row]:
    return in_display_order(
        rows,
        name=lambda row: row["command_id"],
        parent=lambda row: row["parent_command_id"],
        number=lambda row: (plan_order(row["node"]), row["command_id"]),
    )


def _slice(ids: list[str], paging: Paging) -> list[str]:
    """The ids of a page and of one item more. The item after which it begins may have gone: then so have the rest."""
    if not paging.after:
        return ids[: paging.size + 1]
    [last] = paging.after
    start = ids.index(last) + 1 if last in ids else len(ids)
    return ids[start : start + paging.size + 1]


def _that_fit(batch: Batch) -> tuple[list[JobChange], int]:
    """The changes that fit into one answer, but those of one revision at least, and the revision that they go up to."""
    fitting: list[JobChange] = []
    size = 0
    for _, changes in groupby(batch.jobs, key=lambda change: change.revision):
        together = list(changes)
        size += sum(change.job.ByteSize() for change in together if isinstance(change, JobChanged))
        if size > LARGEST_ANSWER and fitting:
            return fitting, fitting[-1].revision
        fitting += together
    return fitting, batch.until.revision
