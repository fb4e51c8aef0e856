"""Deletes ended jobs, each whole: with its steps, commands, tasks and events, in one transaction with its tombstone.

What is never deleted, whoever asks: a job without an end, one whose flow has a live command or a lock (that of a child
goes when its whole flow is over), one with a task that a host may still know (cleared is a task only when its host has
said so; a host that is away keeps its jobs). One that another job still depends on goes by hand alone: the sweeper
leaves it. The DELETE itself says so, under the writers' mutex, whatever was looked at before.

    journal's turn ─▶ DELETE … RETURNING ─▶ tombstones, of the turn's revision ─▶ watchers: removed_job_id
                        └ the rest goes with the job (foreign keys), its events in the same statement

A tombstone keeps the job's request id, and so the id stays used: a request that is repeated after its job was deleted
is refused as JOB_DELETED, not carried out a second time. When the tombstone goes, so does that memory, and with it the
means to tell a watcher that was away since then (`head.compacted_revision`).

| goes wrong | what happens |
| --- | --- |
| nobody knows whether it was committed | it is done again; what the first attempt has deleted counts as deleted |
| the job is repeated by its coordinator's last commit | the flow is unknown: refused, as any commit of no flow is |
| we die in the middle | each batch is whole or was not; the next sweep goes on |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from chassis.clock import Ids
from chassis.errors import failed_precondition, not_found
from jobstore.journal import rows, statements
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.journal.shapes import Row as Texts
from jobstore.messages import Row
from waybill.v1 import jobs_pb2, jobstore_pb2

TOMBSTONES_AT_ONCE: Final = 2_000

# In words that do not lead the planner to the index of all tasks that are not cleared, of whatever job.
_UNCLEARED: Final = "coalesce(host_task.cleared, false) = false"

# Each of the three arrays is read by its own index, for these jobs alone.
_DELETE: Final = f"""
    WITH ended AS (
        SELECT job.job_id FROM job
        WHERE job.job_id = ANY ($3::text[]) AND job.end_time < $4::timestamptz AND (job.auto_cleared OR $5::boolean)
          AND job.job_id <> ALL (ARRAY(
              SELECT host_task.job_id FROM host_task WHERE host_task.job_id = ANY ($3) AND {_UNCLEARED}))
          AND job.job_id <> ALL (ARRAY(
              SELECT command.job_id FROM command WHERE command.job_id = ANY ($3) AND command.end_time IS NULL))
          AND job.flow_command_id <> ALL (ARRAY(
              SELECT root.command_id FROM command AS root
              WHERE root.end_time IS NULL AND root.command_id = ANY (ARRAY(
                  SELECT part.flow_command_id FROM job AS part WHERE part.job_id = ANY ($3)))))
          AND job.flow_command_id <> ALL (ARRAY(
              SELECT entity_lock.flow_command_id FROM entity_lock
              WHERE entity_lock.flow_command_id = ANY (ARRAY(
                  SELECT root.flow_command_id FROM job AS root WHERE root.job_id = ANY ($3)))))
          AND ($5 OR job.job_id <> ALL (ARRAY(
              SELECT job_dependency.depends_on FROM job_dependency WHERE job_dependency.depends_on = ANY ($3))))
    ),
    events AS (DELETE FROM event WHERE event.job_id = ANY (ARRAY(SELECT job_id FROM ended)) AND event.job_id <> ''),
    deleted AS (
        DELETE FROM job WHERE job.job_id = ANY (ARRAY(SELECT job_id FROM ended))
        RETURNING job.job_id, job.owner, job.request_id
    )
    INSERT INTO tombstone (revision, time, job_id, owner, request_id)
    SELECT $1::bigint, $2::timestamptz, job_id, CASE WHEN request_id <> '' THEN owner END, nullif(request_id, '')
    FROM deleted
    ON CONFLICT (job_id) WHERE job_id IS NOT NULL DO UPDATE SET revision = excluded.revision, time = excluded.time
    RETURNING job_id
"""

_LOOK: Final = f"""
    SELECT job.description, job.status::text, job.correlation_id, job.end_time IS NOT NULL AS ended,
           ARRAY(SELECT host_task.host_id FROM host_task
                 WHERE host_task.job_id = $1 AND {_UNCLEARED}) AS uncleared
    FROM job WHERE job.job_id = $1
"""

# Revisions rise with time, so what is not above the last of the old ones is old.
_PURGE: Final = """
    WITH old AS (
        SELECT tombstone.revision FROM tombstone
        WHERE tombstone.job_id IS NOT NULL AND tombstone.revision > 0 AND tombstone.time < $1::timestamptz
        ORDER BY tombstone.revision LIMIT $2
    ),
    purged AS (
        DELETE FROM tombstone
        WHERE tombstone.job_id IS NOT NULL AND tombstone.revision <= (SELECT max(revision) FROM old)
        RETURNING tombstone.revision
    )
    UPDATE head SET compacted_revision = greatest(compacted_revision, (SELECT max(revision) FROM purged))
    WHERE one AND EXISTS (SELECT FROM purged)
    RETURNING (SELECT count(*) FROM purged) AS purged
"""

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Actor:
    """Who wants something gone, for the audit log."""

    user: str
    correlation_id: str
    """Of the call."""


class Deletion:
    """Deletes jobs, and in time the tombstones."""

    def __init__(self, journal: Journal, ids: Ids) -> None:
        self._journal = journal
        self._ids = ids

    async def delete_job(self, job_id: str, by: Actor) -> None:
        """Deletes a job, also one that is not cleared by itself.

        Raises JOB_NOT_FOUND, JOB_NOT_ENDED, or TASKS_NOT_CLEARED naming the hosts.
        """
        event_id, deleted = self._ids.new(), set[str]()
        await self._journal.alone(lambda turn: _delete_one(turn, job_id, by, event_id, deleted))

    async def delete_ended(self, job_ids: Sequence[str], before: datetime) -> int:
        """Deletes those of the jobs that ended before a time and may go; returns how many."""
        deleted = set[str]()
        await self._journal.alone(lambda turn: _delete_some(turn, job_ids, before, deleted))
        return len(deleted)

    async def note(self, by: Actor, message: str) -> None:
        """Writes into the audit log what somebody is about to delete."""
        event_id = self._ids.new()
        await self._journal.alone(lambda turn: _tell(turn, event_id, by, message, by.correlation_id))

    async def purge(self, before: datetime) -> int:
        """Purges some tombstones of jobs that were deleted before a time; returns how many, 0 if there are no more."""
        return await self._journal.alone(lambda turn: _purge(turn, before))


async def _delete_one(turn: Turn, job_id: str, by: Actor, event_id: str, deleted: set[str]) -> None:
    found = await turn.writer.fetch(_LOOK, job_id)
    if not found:
        if job_id in deleted:  # by an attempt of which nobody knew whether it was committed
            return
        raise not_found("JOB_NOT_FOUND", f"there is no job {job_id}", job_id=job_id)
    job = found[0]
    _check(job_id, job)
    await delete_whole(turn, job_id)
    deleted.add(job_id)
    message = f"Deleted job {job_id}: {job['description']} ({job['status']})"
    await _tell(turn, event_id, by, message, job["correlation_id"])


async def delete_whole(turn: Turn, job_id: str) -> None:
    """Deletes a job that is there, cleared by itself or not. Raises JOB_NOT_ENDED if anything of it is not over."""
    if not await _delete(turn, [job_id], _NEVER, even_kept=True):
        raise failed_precondition("JOB_NOT_ENDED", f"job {job_id} has ended, its flow has not", job_id=job_id)


def _check(job_id: str, job: Row) -> None:
    if not job["ended"]:
        raise failed_precondition(
            "JOB_NOT_ENDED", f"job {job_id} is {job['status']}; only ended jobs can be deleted", job_id=job_id
        )
    if job["uncleared"]:
        hosts = ", ".join(sorted(set(job["uncleared"])))
        raise failed_precondition(
            "TASKS_NOT_CLEARED",
            f"job {job_id} has tasks that are not cleared yet on {hosts}; they are once the host answers",
            job_id=job_id,
            host_ids=hosts,
        )


async def _delete_some(turn: Turn, job_ids: Sequence[str], before: datetime, deleted: set[str]) -> None:
    deleted.update(await _delete(turn, job_ids, before, even_kept=False))


async def _delete(turn: Turn, job_ids: Sequence[str], before: datetime, *, even_kept: bool) -> list[str]:
    found = await turn.writer.fetch(_DELETE, turn.revision, turn.time, job_ids, before, even_kept)
    turn.changed = turn.changed or bool(found)
    return [row["job_id"] for row in found]


async def _tell(turn: Turn, event_id: str, by: Actor, message: str, correlation_id: str) -> None:
    event = jobstore_pb2.EventRow(
        event_id=event_id,
        event_type="JOBS_DELETED",
        severity=jobs_pb2.SEVERITY_NORMAL,
        message=message,
        user=by.user,
    )
    told: list[Texts] = rows.event_rows([event])
    await turn.writer.insert(statements.INSERT_EVENTS_OF_NO_FLOW, turn.time, rows=told, last=[correlation_id])
    turn.changed = True


async def _purge(turn: Turn, before: datetime) -> int:
    found = await turn.writer.fetch(_PURGE, before, TOMBSTONES_AT_ONCE)
    turn.changed = bool(found)
    return found[0]["purged"] if found else 0
