"""The audit log: events that were stored, and those that jobs and steps themselves tell.

That a step started and ended is in its row; storing it again would cost more than everything else about a step. So
these events are derived when somebody asks about a job or a correlation id, and read as if they had been stored: they
have ids that stay the same, obey the filter, and stand in one order with the others:

    time, then job, then the way through the step tree (a step's start, its children, its end), then id

which puts what happened in one commit, and so at one time, in the order that it has for people.
"""

from __future__ import annotations

from typing import Final

from jobstore.messages import SEVERITY, Row, status, subject, timestamp
from jobstore.queries.paging import Page, Paging, microseconds, time_of
from jobstore.search.filter import Filter
from jobstore.search.kinds import Bindings
from jobstore.snapshots import Pool, borrowed
from waybill.v1 import jobs_pb2

_STORED: Final = """
    event.time, event.event_id, event.event_type, event.severity, event.job_id, event.correlation_id,
    event.entity_type, event.entity_id, event."user", event.message
"""

# A way is an array of numbers, compared one by one. 2147483647 stands behind every step: stored events, the job's end.
_DERIVED: Final = """
    WITH RECURSIVE
    told AS (
        SELECT job_id, status, owner, correlation_id, description, start_time, end_time, error
        FROM job WHERE {jobs}
    ),
    walked AS (
        SELECT step.step_id, step.job_id, ARRAY[step.number] AS way
        FROM told JOIN step ON step.job_id = told.job_id AND step.parent_step_id = ''
        UNION ALL
        SELECT step.step_id, step.job_id, walked.way || step.number
        FROM walked JOIN step ON step.job_id = walked.job_id AND step.parent_step_id = walked.step_id
    ),
    listed AS (
        SELECT step.step_id, step.job_id, step.correlation_id, coalesce(nullif(step.description, ''), step.step_type)
                   AS description, step.status, step.start_time,
               step.end_time, step.error, step.subjects -> 0 AS subject, walked.way
        FROM walked JOIN step ON step.step_id = walked.step_id
    ),
    happened AS (
        SELECT time, event_id, event_type, severity::text, job_id, correlation_id, entity_type::text, entity_id,
               "user", message, '' AS step_id, '' AS status, NULL::bytea AS error, ARRAY[2147483647] AS way
        FROM event WHERE job_id IN (SELECT job_id FROM told) {jobless}
      UNION ALL
        SELECT start_time, md5(job_id || ' started')::uuid::text, 'JOB_STARTED', 'NORMAL', job_id, correlation_id,
               NULL, '', owner, description, '', 'STARTED', NULL, ARRAY[-1]
        FROM told WHERE start_time IS NOT NULL
      UNION ALL
        SELECT end_time, md5(job_id || ' ended')::uuid::text, 'JOB_ENDED', {severity}, job_id, correlation_id,
               NULL, '', '', description, '', status, error, ARRAY[2147483647, 0]
        FROM told WHERE end_time IS NOT NULL
      UNION ALL
        SELECT start_time, md5(step_id || ' started')::uuid::text, 'STEP_STARTED', 'NORMAL', job_id, correlation_id,
               subject ->> 'entity_type', coalesce(subject ->> 'entity_id', ''), '', description, step_id, 'STARTED',
               NULL, way || -1
        FROM listed WHERE start_time IS NOT NULL
      UNION ALL
        SELECT end_time, md5(step_id || ' ended')::uuid::text, 'STEP_ENDED', {severity}, job_id, correlation_id,
               subject ->> 'entity_type', coalesce(subject ->> 'entity_id', ''), '', description, step_id, status,
               error, way || 2147483647
        FROM listed WHERE end_time IS NOT NULL
    )
    SELECT time, event_id, event_type, severity, job_id, correlation_id, entity_type, entity_id, "user", message,
           step_id, status, error, way
    FROM happened AS event
"""

_SEVERITY_OF_END: Final = """
    CASE status WHEN 'FINISHED' THEN 'NORMAL' WHEN 'SKIPPED' THEN 'WARNING' WHEN 'ABORTED' THEN 'WARNING'
                ELSE 'ERROR' END
"""

STORED_KEY: Final = (int, str)
DERIVED_KEY: Final = (int, str, list, str)


def key_kinds(filter: Filter) -> tuple[type[object], ...]:
    """The kinds of key that pages of this filter's events have."""
    return DERIVED_KEY if _asks_about_jobs(filter) else STORED_KEY


def _asks_about_jobs(filter: Filter) -> bool:
    return filter.demanded("job_id") is not None or filter.demanded("correlation_id") is not None


class Audit:
    """Reads the audit log."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_events(self, filter: Filter, paging: Paging) -> Page[jobs_pb2.Event]:
        """Lists events, oldest first; with those that are derived if the filter names a job or a correlation id."""
        if _asks_about_jobs(filter):
            return await self._derived(filter, paging)
        return await self._stored(filter, paging)

    async def _stored(self, filter: Filter, paging: Paging) -> Page[jobs_pb2.Event]:
        bind = Bindings()
        condition = filter.sql(bind)
        if paging.after:
            time, event_id = paging.after
            condition += f" AND (event.time, event.event_id) > ({bind(time_of(time))}, {bind(event_id)})"
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_STORED} FROM event WHERE {condition}
                ORDER BY event.time, event.event_id LIMIT {bind(paging.size + 1)}
                """,
                *bind.values,
            )
        return paging.page(
            [_event(row) for row in rows], [(microseconds(row["time"]), row["event_id"]) for row in rows]
        )

    async def _derived(self, filter: Filter, paging: Paging) -> Page[jobs_pb2.Event]:
        bind = Bindings()
        jobs, jobless = _whose(filter, bind)
        condition = filter.sql(bind)
        if paging.after:
            time, job_id, way, event_id = paging.after
            key = f"{bind(time_of(time))}, {bind(job_id)}, {bind(way)}::integer[], {bind(event_id)}"
            condition += f" AND (event.time, event.job_id, event.way, event.event_id) > ({key})"
        events = _DERIVED.format(jobs=jobs, jobless=jobless, severity=_SEVERITY_OF_END)
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                {events} WHERE {condition}
                ORDER BY event.time, event.job_id, event.way, event.event_id LIMIT {bind(paging.size + 1)}
                """,
                *bind.values,
            )
        keys = [(microseconds(row["time"]), row["job_id"], row["way"], row["event_id"]) for row in rows]
        return paging.page([_derived_event(row) for row in rows], keys)


def _whose(filter: Filter, bind: Bindings) -> tuple[str, str]:
    """Which jobs are told of, and which events besides theirs."""
    job_id = filter.demanded("job_id")
    if job_id is not None:
        return f"job_id = {bind(job_id)}", ""
    correlation_id = bind(filter.demanded("correlation_id"))
    jobless = f"OR (job_id = '' AND correlation_id <> '' AND correlation_id = {correlation_id})"
    return f"correlation_id = {correlation_id}", jobless


def _event(row: Row) -> jobs_pb2.Event:
    return jobs_pb2.Event(
        event_id=row["event_id"],
        time=timestamp(row["time"]),
        event_type=row["event_type"],
        severity=SEVERITY[row["severity"]],
        message=row["message"],
        job_id=row["job_id"],
        correlation_id=row["correlation_id"],
        entity=None if row["entity_type"] is None else subject(row["entity_type"], row["entity_id"]),
        user=row["user"],
    )


def _derived_event(row: Row) -> jobs_pb2.Event:
    event = _event(row)
    event.step_id = row["step_id"]
    if row["status"]:
        event.message = _in_words(row)
    return event


def _in_words(row: Row) -> str:
    """`Removing image d1: FAILED, no such volume`."""
    error = status(row["error"])
    reason = f", {error.message}" if error is not None and error.message else ""
    return f"{row['message']}: {row['status']}{reason}"
