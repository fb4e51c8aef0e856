"""The SQL of the journal: one statement a table for what is new, one for what has changed.

First come the transaction's revision and time, as far as a statement needs them, then the rows, one text a column
(`shapes.py`). Every change is conditional on what makes it legal; that it found all its rows is checked by their count
(`writer.py`), so nothing is ever half applied or silently skipped.

Why a key is compared twice, with its row of `u` and with the whole column: plans are made once and kept, on tables that
may be empty then and huge later. A join alone may be planned from the wrong side, reading the table's index whole;
`= ANY (…)` gives the planner no other way than to look up exactly the keys.
"""

from __future__ import annotations

from typing import Final

from jobstore.journal import shapes
from jobstore.messages import ENTITY_COLUMNS, JOB_COLUMNS

CHANNEL: Final = "waybill_revision"

# --- the turn --------------------------------------------------------------------------------------------------------

# The row lock is the writers' mutex, so nothing is read before it is held. If it had to wait, Postgres evaluates the
# time anew. No two commits have the same time, whatever the machine's clock does: "since that commit" can be told by
# times as well as by revisions. The notification is a doorbell: sent with the commit, dropped with a rollback.
TAKE_TURN: Final = f"""
    UPDATE head SET revision = revision + 1, time = greatest(clock_timestamp(), time + interval '1 microsecond')
    WHERE one
    RETURNING revision, time, pg_notify('{CHANNEL}', revision::text)
"""

# All that a batch is guarded by, in one question: coordinators, flows, (owner, request id)s, lock keys, entity keys.
READ_GUARDS: Final = """
    SELECT
        ARRAY(SELECT coordinator_id FROM coordinator_lease
              WHERE coordinator_id = ANY ($1::text[]) AND NOT released) AS leases,
        ARRAY(SELECT (command_id, coordinator_id, epoch, sequence, commit_revision, commit_time, job_id, correlation_id,
                      end_time IS NOT NULL, command_type, traceparent,
                      extract(epoch FROM create_time)::float8) FROM command
              WHERE command_id = ANY ($2::text[]) AND parent_command_id = '') AS roots,
        ARRAY(SELECT (job.owner, job.request_id, job.job_id, job.request_hash)
              FROM unnest($3::text[], $4::text[]) AS u (owner, request_id)
              JOIN job ON job.owner = u.owner AND job.request_id = u.request_id
              WHERE job.owner = ANY ($3) AND job.request_id = ANY ($4) AND job.request_id <> '') AS requests,
        ARRAY(SELECT (tombstone.owner, tombstone.request_id, tombstone.job_id)
              FROM unnest($3::text[], $4::text[]) AS u (owner, request_id)
              JOIN tombstone ON tombstone.owner = u.owner AND tombstone.request_id = u.request_id
              WHERE tombstone.owner = ANY ($3) AND tombstone.request_id = ANY ($4)
                    AND tombstone.request_id IS NOT NULL) AS spent_requests,
        ARRAY(SELECT (entity_lock.entity_type::text, entity_lock.entity_id, entity_lock.flow_command_id,
                      entity_lock.job_id, entity_lock.exclusive, entity_lock.reason,
                      coalesce(entity_lock.waits_since, 0))
              FROM unnest($5::text[], $6::text[]) AS u (entity_type, entity_id)
              JOIN entity_lock ON entity_lock.entity_type = u.entity_type AND entity_lock.entity_id = u.entity_id
              WHERE entity_lock.entity_type = ANY ($5) AND entity_lock.entity_id = ANY ($6)) AS locks,
        ARRAY(SELECT (entity.entity_type::text, entity.entity_id, entity.version)
              FROM unnest($7::text[], $8::text[]) AS u (entity_type, entity_id)
              JOIN entity ON entity.entity_type = u.entity_type AND entity.entity_id = u.entity_id
              WHERE entity.entity_type = ANY ($7) AND entity.entity_id = ANY ($8)) AS versions
"""

# Only asked if a flow is to wait for jobs, or says that it does.
READ_DEPENDED: Final = "SELECT job_id, status FROM job WHERE job_id = ANY ($1::text[])"

# --- times follow statuses -------------------------------------------------------------------------------------------

_BEGUN: Final = "CASE WHEN u.status NOT IN ('PENDING', 'SKIPPED', 'ABORTED') THEN $2::timestamptz END"
_ENDED: Final = "CASE WHEN u.status NOT IN ('PENDING', 'STARTED') THEN $2::timestamptz END"
_COMMAND_ENDED: Final = (
    "CASE WHEN u.status IN ('ENDED_SUCCESSFULLY', 'ENDED_WITH_FAILURE', 'UNKNOWN') THEN $2::timestamptz END"
)
_OVER: Final = "coalesce(u.state IN ('FINISHED', 'UNKNOWN'), false)"
_TASK_ENDED: Final = f"CASE WHEN {_OVER} THEN $2::timestamptz END"


def _is(table: str, key: str, first: int) -> str:
    """Finds the rows of `table` that `u` names; its keys are parameter number `first`."""
    return f"{table}.{key} = u.{key} AND {table}.{key} = ANY ({shapes.values_of(first)})"


def _may_change(table: str) -> str:
    """An end status never changes again."""
    return f"({table}.end_time IS NULL OR u.status IS NULL OR u.status = {table}.status)"


# --- what is new -----------------------------------------------------------------------------------------------------

INSERT_JOBS: Final = f"""
    INSERT INTO job (revision, create_time, update_time, start_time, end_time, {shapes.JOB.names})
    SELECT $1::bigint, $2::timestamptz, $2::timestamptz, {_BEGUN}, {_ENDED}, {shapes.JOB.values}
    FROM {shapes.JOB.rows(3)}
"""
INSERT_CHILD_JOBS: Final = f"""
    INSERT INTO job (revision, create_time, update_time, start_time, end_time, {shapes.CHILD_JOB.names})
    SELECT $1::bigint, $2::timestamptz, $2::timestamptz, {_BEGUN}, {_ENDED}, {shapes.CHILD_JOB.values}
    FROM {shapes.CHILD_JOB.rows(3)}
"""
INSERT_SUBJECTS: Final = f"""
    INSERT INTO job_subject_entity ({shapes.SUBJECT.names}) SELECT {shapes.SUBJECT.values} FROM {shapes.SUBJECT.rows(1)}
"""
# Of a job that was stored before its names were known: rare.
INSERT_MORE_SUBJECTS: Final = f"{INSERT_SUBJECTS} ON CONFLICT DO NOTHING"
INSERT_STEPS: Final = f"""
    INSERT INTO step (revision, start_time, end_time, {shapes.STEP.names})
    SELECT $1::bigint, {_BEGUN}, {_ENDED}, {shapes.STEP.values}
    FROM {shapes.STEP.rows(3)}
"""
INSERT_COMMANDS: Final = f"""
    INSERT INTO command (create_time, end_time, commit_revision, commit_time, {shapes.COMMAND.names})
    SELECT $2::timestamptz, {_COMMAND_ENDED}, CASE WHEN u.sequence IS NOT NULL THEN $1::bigint END,
           CASE WHEN u.sequence IS NOT NULL THEN $2::timestamptz END, {shapes.COMMAND.values}
    FROM {shapes.COMMAND.rows(3)}
"""
# A wait asks no host, so there is nothing to clear once it is over.
INSERT_TASKS: Final = f"""
    INSERT INTO host_task (create_time, end_time, cleared, {shapes.TASK.names})
    SELECT $1::timestamptz, {_TASK_ENDED.replace("$2", "$1")}, u.kind = 'WAIT' AND {_OVER}, {shapes.TASK.values}
    FROM {shapes.TASK.rows(2)}
"""
INSERT_LOCKS: Final = f"""
    INSERT INTO entity_lock (create_time, {shapes.LOCK.names})
    SELECT $1::timestamptz, {shapes.LOCK.values} FROM {shapes.LOCK.rows(2)}
    ON CONFLICT (entity_type, entity_id, flow_command_id) DO UPDATE SET exclusive = true
"""
INSERT_DEPENDENCIES: Final = f"""
    INSERT INTO job_dependency ({shapes.DEPENDENCY.names})
    SELECT {shapes.DEPENDENCY.values} FROM {shapes.DEPENDENCY.rows(1)}
"""
# Who queues already keeps the place; who holds it (shared) needs none.
INSERT_PLACES: Final = f"""
    INSERT INTO entity_lock (waits_since, create_time, {shapes.PLACE.names})
    SELECT $1::bigint, $2::timestamptz, {shapes.PLACE.values} FROM {shapes.PLACE.rows(3)}
    ON CONFLICT (entity_type, entity_id, flow_command_id) DO UPDATE
        SET exclusive = excluded.exclusive, waits_until = excluded.waits_until
        WHERE entity_lock.waits_since IS NOT NULL
"""
INSERT_SNAPSHOTS: Final = f"""
    INSERT INTO entity_snapshot ({shapes.SNAPSHOT.names}) SELECT {shapes.SNAPSHOT.values} FROM {shapes.SNAPSHOT.rows(1)}
"""
INSERT_EVENTS: Final = f"""
    INSERT INTO event (time, {shapes.EVENT.names})
    SELECT $1::timestamptz, {shapes.EVENT.values} FROM {shapes.EVENT.rows(2)}
"""
INSERT_EVENTS_OF_NO_FLOW: Final = f"""
    {INSERT_EVENTS}
    ON CONFLICT (event_id) WHERE job_id = '' DO NOTHING
"""
# About tasks of flows that are over: no sequence guards them, but the writers' mutex does.
INSERT_EVENTS_OF_TASKS: Final = f"""
    INSERT INTO event (time, event_id, event_type, severity, message, job_id, correlation_id, entity_type, entity_id)
    SELECT $1::timestamptz, u.event_id, u.event_type, u.severity, u.message, host_task.job_id,
           host_task.correlation_id, host_task.entity_type, host_task.entity_id
    FROM {shapes.TASK_EVENT.rows(2)} JOIN host_task ON {_is("host_task", "task_id", 6)}
    WHERE u.event_id <> ALL (ARRAY(SELECT event.event_id FROM event WHERE event.job_id <> ''
                                                                      AND event.job_id = host_task.job_id))
"""

# --- what has changed ------------------------------------------------------------------------------------------------

CHANGE_JOBS: Final = f"""
    UPDATE job SET
        revision = $1::bigint,
        update_time = $2::timestamptz,
        status = coalesce(u.status, job.status),
        start_time = coalesce(job.start_time, {_BEGUN}),
        end_time = coalesce(job.end_time, {_ENDED}),
        progress = greatest(job.progress, u.progress),
        cancelable = coalesce(u.cancelable, job.cancelable),
        error = coalesce(u.error, job.error),
        cancel_requested_by = coalesce(u.cancel_requested_by, job.cancel_requested_by)
    FROM {shapes.JOB_CHANGE.rows(3)}
    WHERE {_is("job", "job_id", 3)} AND {_may_change("job")}
"""
# Also with the commit that ends the job: that it had not ended before is judged (`guards.py`).
CHANGE_PRIORITIES: Final = f"""
    UPDATE job SET priority = u.priority FROM {shapes.PRIORITY.rows(1)}
    WHERE {_is("job", "job_id", 1)}
"""
NAME_JOBS: Final = f"""
    UPDATE job SET description = u.description, subjects = u.subjects FROM {shapes.JOB_NAMES.rows(1)}
    WHERE {_is("job", "job_id", 1)}
"""
CHANGE_STEPS: Final = f"""
    UPDATE step SET
        revision = $1::bigint,
        status = coalesce(u.status, step.status),
        start_time = coalesce(step.start_time, {_BEGUN}),
        end_time = coalesce(step.end_time, {_ENDED}),
        progress = greatest(step.progress, u.progress),
        external_id = coalesce(u.external_id, step.external_id),
        external_system_type = coalesce(u.external_system_type, step.external_system_type),
        error = coalesce(u.error, step.error)
    FROM {shapes.STEP_CHANGE.rows(3)}
    WHERE {_is("step", "step_id", 3)} AND {_may_change("step")}
"""
# A sequence marks the root of a flow that was written.
CHANGE_COMMANDS: Final = f"""
    UPDATE command SET
        status = coalesce(u.status, command.status),
        end_time = coalesce(command.end_time, {_COMMAND_ENDED}),
        plans = coalesce(u.plans, command.plans),
        end_attempts = greatest(command.end_attempts, u.end_attempts),
        error = coalesce(u.error, command.error),
        sequence = coalesce(u.sequence, command.sequence),
        commit_revision = CASE WHEN u.sequence IS NULL THEN command.commit_revision ELSE $1::bigint END,
        commit_time = CASE WHEN u.sequence IS NULL THEN command.commit_time ELSE $2::timestamptz END
    FROM {shapes.COMMAND_CHANGE.rows(3)}
    WHERE {_is("command", "command_id", 3)} AND {_may_change("command")}
"""
CHANGE_TASKS: Final = f"""
    UPDATE host_task SET
        state = coalesce(u.state, host_task.state),
        end_time = coalesce(host_task.end_time, {_TASK_ENDED.replace("$2", "$1")}),
        cleared = host_task.cleared OR (host_task.kind = 'WAIT' AND {_OVER}),
        result = coalesce(u.result, host_task.result),
        answer = coalesce(u.answer, host_task.answer),
        error = CASE WHEN u.result = 'SUCCESS' THEN NULL ELSE coalesce(u.error, host_task.error) END,
        incarnation = coalesce(u.incarnation, host_task.incarnation)
    FROM {shapes.TASK_CHANGE.rows(2)}
    WHERE {_is("host_task", "task_id", 2)}
"""
CLEAR_TASKS: Final = """
    UPDATE host_task SET cleared = true WHERE task_id = ANY ($1::text[]) AND NOT cleared AND end_time IS NOT NULL
"""

# Who has begun, or never will, stands in no queue. Before locks are taken: a place is no lock.
END_WAITS: Final = """
    WITH places AS (DELETE FROM entity_lock WHERE flow_command_id = ANY ($1::text[]) AND waits_since IS NOT NULL)
    DELETE FROM job_dependency WHERE flow_command_id = ANY ($1::text[])
"""
# What a flow holds goes with its last commit.
END_FLOWS: Final = """
    WITH locks AS (DELETE FROM entity_lock WHERE flow_command_id = ANY ($1::text[])),
         snapshots AS (DELETE FROM entity_snapshot WHERE flow_command_id = ANY ($1::text[]))
    DELETE FROM flow_request WHERE flow_command_id = ANY ($1::text[])
"""
HANDLE_REQUESTS: Final = "DELETE FROM flow_request WHERE request_id = ANY ($1::text[])"

# --- entities --------------------------------------------------------------------------------------------------------


def _is_entity(table: str, first: int) -> str:
    return f"{_is(table, 'entity_type', first)} AND {_is(table, 'entity_id', first + 1)}"


# One that was there before goes on from its last version, so that nobody takes the new one for the old one.
CREATE_ENTITIES: Final = f"""
    WITH u AS MATERIALIZED (SELECT * FROM {shapes.ENTITY.rows(2)}),
         buried AS (
             DELETE FROM tombstone USING u
             WHERE {_is_entity("tombstone", 2)}
             RETURNING tombstone.entity_type, tombstone.entity_id, tombstone.version
         )
    INSERT INTO entity (revision, version, {shapes.ENTITY.names})
    SELECT $1::bigint, coalesce(buried.version, 0) + 1, {shapes.ENTITY.values}
    FROM u LEFT JOIN buried ON buried.entity_type = u.entity_type AND buried.entity_id = u.entity_id
"""
CHANGE_ENTITIES: Final = f"""
    UPDATE entity SET
        revision = $1::bigint,
        version = entity.version + 1,
        name = CASE WHEN u.anew OR u.name <> '' THEN u.name ELSE entity.name END,
        status = coalesce(u.status, entity.status),
        declared = coalesce(u.declared, entity.declared)
    FROM {shapes.ENTITY_CHANGE.rows(2)}
    WHERE {_is_entity("entity", 2)}
"""
REMOVE_ENTITIES: Final = f"""
    WITH removed AS (
        DELETE FROM entity USING {shapes.ENTITY_KEY.rows(3)}
        WHERE {_is_entity("entity", 3)}
        RETURNING entity.entity_type, entity.entity_id, entity.version
    )
    INSERT INTO tombstone (revision, time, version, entity_type, entity_id)
    SELECT $1::bigint, $2::timestamptz, version, entity_type, entity_id FROM removed
"""
# Numbers are comparable within an incarnation only; another incarnation is news by itself. The same number with other
# content is what a coordinator adds to what the host said last: that it cannot be reached, say.
# A VM may be on its way from one host to another, and what the former says of it may come late. So only the host where
# it was seen last speaks of it, unless it was seen down there, or another one says that it has it.
OBSERVE: Final = f"""
    UPDATE entity SET
        revision = $1::bigint,
        observed_state = u.observed_state,
        observed_host_id = u.observed_host_id,
        observed_error = u.observed_error,
        observed_incarnation = u.observed_incarnation,
        observed_number = u.observed_number
    FROM {shapes.OBSERVATION.rows(2)}
    WHERE {_is_entity("entity", 2)}
      AND (entity.observed_incarnation <> u.observed_incarnation OR entity.observed_number < u.observed_number
           OR (entity.observed_number = u.observed_number
               AND (entity.observed_state, entity.observed_host_id, entity.observed_error)
                   IS DISTINCT FROM (u.observed_state, u.observed_host_id, u.observed_error)))
      AND (entity.observed_host_id IN ('', u.observed_host_id) OR entity.observed_state IN ('', 'DOWN')
           OR u.observed_state IN ('UP', 'POWERING_UP'))
"""

# --- answers ---------------------------------------------------------------------------------------------------------

READ_ENTITIES: Final = f"""
    SELECT {ENTITY_COLUMNS} FROM unnest($1::text[], $2::text[]) AS u (entity_type, entity_id)
    JOIN entity ON entity.entity_type = u.entity_type AND entity.entity_id = u.entity_id
    WHERE entity.entity_type = ANY ($1) AND entity.entity_id = ANY ($2)
"""
READ_JOBS: Final = f"SELECT {JOB_COLUMNS} FROM job WHERE job_id = ANY ($1::text[])"
