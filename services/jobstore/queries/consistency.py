"""What must always hold, and every case in which it does not.

Each rule is one statement, so each sees one state of the store; the one about sealed plans cannot be said in SQL and
goes through the finished jobs page by page. A rule may be broken only by a defect of ours, or by hand: the answer of
`check` is empty after anything, or something is wrong.

Most of END_TIME_MISSING and END_BEFORE_START the schema itself forbids. They are looked for all the same: constraints
can be dropped, and data restored from elsewhere.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from jobstore.messages import Row
from jobstore.queries.sealed import CommandFacts, LeafFacts, undone
from jobstore.snapshots import Connection, Pool, borrowed, snapshot
from waybill.v1 import jobstore_pb2

MOST_OF_A_RULE: Final = 1_000
_PAGE: Final = 500

_RULES: Final = {
    "ENDED_JOB_WITH_LIVE_COMMAND": """
        SELECT job.job_id, format('job is %s, command %s is %s', job.status, command.command_id, command.status)
        FROM command JOIN job ON job.job_id = command.job_id
        WHERE command.end_time IS NULL AND job.status NOT IN ('PENDING', 'STARTED')
      UNION ALL
        SELECT job.job_id, format('job is %s, its command %s is %s', job.status, command.command_id, command.status)
        FROM command JOIN job ON job.command_id = command.command_id AND job.parent_job_id <> ''
        WHERE command.end_time IS NULL AND job.status NOT IN ('PENDING', 'STARTED')
    """,
    "OPEN_JOB_WITHOUT_FLOW": """
        SELECT job.job_id, format('job is %s, its root command %s', job.status,
                                  coalesce(root.command_id || ' is ' || root.status, 'does not exist'))
        FROM job LEFT JOIN command AS root ON root.command_id = job.flow_command_id
        WHERE job.status IN ('PENDING', 'STARTED') AND NOT job.external
              AND (root.command_id IS NULL OR root.end_time IS NOT NULL)
      UNION ALL
        SELECT job.job_id, format('job is %s, its command %s', job.status, command.status)
        FROM job JOIN command ON command.command_id = job.command_id
        WHERE job.parent_job_id <> '' AND job.status IN ('PENDING', 'STARTED') AND command.end_time IS NOT NULL
    """,
    "ENDED_JOB_WITH_LOCK": """
        SELECT job.job_id, format('job is %s and holds %s/%s', job.status, entity_lock.entity_type,
                                  entity_lock.entity_id)
        FROM entity_lock JOIN job ON job.job_id = entity_lock.job_id
        WHERE job.status NOT IN ('PENDING', 'STARTED')
    """,
    "LOCK_WITHOUT_FLOW": """
        SELECT entity_lock.job_id, format('%s/%s is held by flow %s, which %s', entity_lock.entity_type,
                                          entity_lock.entity_id, entity_lock.flow_command_id,
                                          coalesce('is ' || root.status, 'does not exist'))
        FROM entity_lock LEFT JOIN command AS root
             ON root.command_id = entity_lock.flow_command_id AND root.parent_command_id = ''
        WHERE root.command_id IS NULL OR root.end_time IS NOT NULL
    """,
    "WAITING_JOB_WITH_LOCK": """
        SELECT job.job_id, format('job waits and holds %s/%s', entity_lock.entity_type, entity_lock.entity_id)
        FROM entity_lock JOIN job ON job.job_id = entity_lock.job_id
        WHERE job.status = 'PENDING' AND entity_lock.waits_since IS NULL
    """,
    "WAIT_WITHOUT_WAITING_FLOW": """
        SELECT coalesce(root.job_id, ''), format('flow %s waits for job %s, but %s', job_dependency.flow_command_id,
                                                 job_dependency.depends_on, coalesce('is ' || root.status, 'is gone'))
        FROM job_dependency LEFT JOIN command AS root ON root.command_id = job_dependency.flow_command_id
        WHERE coalesce(root.status, '') <> 'NOT_STARTED'
      UNION ALL
        SELECT entity_lock.job_id, format('flow %s queues for %s/%s, but %s', entity_lock.flow_command_id,
                                          entity_lock.entity_type, entity_lock.entity_id,
                                          coalesce('is ' || root.status, 'is gone'))
        FROM entity_lock LEFT JOIN command AS root ON root.command_id = entity_lock.flow_command_id
        WHERE entity_lock.waits_since IS NOT NULL AND coalesce(root.status, '') <> 'NOT_STARTED'
    """,
    "SNAPSHOT_WITHOUT_FLOW": """
        SELECT root.job_id, format('flow %s is %s and keeps the former %s/%s', root.command_id, root.status,
                                   entity_snapshot.entity_type, entity_snapshot.entity_id)
        FROM entity_snapshot JOIN command AS root ON root.command_id = entity_snapshot.flow_command_id
        WHERE root.end_time IS NOT NULL
    """,
    "RUNNING_TASK_WITHOUT_FLOW": """
        SELECT host_task.job_id, format('%s %s is under way, its flow %s %s', host_task.kind, host_task.task_id,
                                        host_task.flow_command_id, coalesce('is ' || root.status, 'does not exist'))
        FROM host_task LEFT JOIN command AS root
             ON root.command_id = host_task.flow_command_id AND root.parent_command_id = ''
        WHERE host_task.end_time IS NULL AND (root.command_id IS NULL OR root.end_time IS NOT NULL)
    """,
    "OPEN_STEP_IN_ENDED_JOB": """
        SELECT job.job_id, format('job is %s, step %s (%s) is %s', job.status, step.step_id, step.step_type,
                                  step.status)
        FROM step JOIN job ON job.job_id = step.job_id
        WHERE step.status IN ('PENDING', 'STARTED') AND job.status NOT IN ('PENDING', 'STARTED')
    """,
    "END_TIME_MISSING": """
        SELECT job_id, format('job is %s', status) FROM job
        WHERE end_time IS NULL AND status NOT IN ('PENDING', 'STARTED')
      UNION ALL
        SELECT job_id, format('step %s is %s', step_id, status) FROM step
        WHERE end_time IS NULL AND status NOT IN ('PENDING', 'STARTED')
      UNION ALL
        SELECT job_id, format('command %s is %s', command_id, status) FROM command
        WHERE end_time IS NULL AND status IN ('ENDED_SUCCESSFULLY', 'ENDED_WITH_FAILURE', 'UNKNOWN')
      UNION ALL
        SELECT job_id, format('%s %s is %s', kind, task_id, state) FROM host_task
        WHERE end_time IS NULL AND state IN ('FINISHED', 'UNKNOWN')
    """,
    "END_BEFORE_START": """
        SELECT job_id, format('job began %s and ended %s', start_time, end_time) FROM job WHERE end_time < start_time
      UNION ALL
        SELECT job_id, format('step %s began %s and ended %s', step_id, start_time, end_time) FROM step
        WHERE end_time < start_time
      UNION ALL
        SELECT job_id, format('command %s began %s and ended %s', command_id, create_time, end_time) FROM command
        WHERE end_time < create_time
      UNION ALL
        SELECT job_id, format('%s %s began %s and ended %s', kind, task_id, create_time, end_time) FROM host_task
        WHERE end_time < create_time
    """,
    "REVISION_OUT_OF_ORDER": """
        SELECT job.job_id, format('job is at revision %s, the store at %s', job.revision, head.revision)
        FROM head JOIN job ON job.revision > head.revision
      UNION ALL
        SELECT job.job_id, format('step %s is at revision %s, its job at %s', step.step_id, step.revision, job.revision)
        FROM step JOIN job ON job.job_id = step.job_id WHERE step.revision > job.revision
    """,
    "FINISHED_WITH_UNFINISHED_WORK": """
        SELECT job.job_id, format('job is FINISHED, its step %s (%s) is %s', step.step_id, step.step_type, step.status)
        FROM step JOIN job ON job.job_id = step.job_id
        WHERE job.status = 'FINISHED' AND step.status NOT IN ('FINISHED', 'PENDING', 'STARTED')
              AND ((step.parent_step_id = '' AND step.step_type IN ('VALIDATION', 'EXECUTION')) OR job.external)
    """,
    "ENDED_JOB_LISTENED_TO": """
        SELECT job.job_id, format('job is %s, and is to be heard of every %s s', job.status,
                                  external_job.heartbeat_seconds)
        FROM external_job JOIN job ON job.job_id = external_job.job_id
        WHERE external_job.heartbeat_seconds IS NOT NULL AND job.status NOT IN ('PENDING', 'STARTED')
    """,
}


class Consistency:
    """Looks for what must not be."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def check(self) -> list[jobstore_pb2.Violation]:
        """Returns every violation, at most `MOST_OF_A_RULE` of each rule; empty when all is well."""
        violations: list[jobstore_pb2.Violation] = []
        for rule, statement in _RULES.items():
            violations += await self._broken(rule, statement)
        return violations + await self._unfinished_work()

    async def _broken(self, rule: str, statement: str) -> list[jobstore_pb2.Violation]:
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT job_id, message FROM ({statement}) AS broken (job_id, message) ORDER BY 1, 2 LIMIT $1",
                MOST_OF_A_RULE,
            )
        return [jobstore_pb2.Violation(rule=rule, job_id=row["job_id"], message=row["message"]) for row in rows]

    async def _unfinished_work(self) -> list[jobstore_pb2.Violation]:
        """Goes through the finished jobs; each page is a snapshot, for a job may be deleted meanwhile."""
        violations: list[jobstore_pb2.Violation] = []
        last = ""
        while len(violations) < MOST_OF_A_RULE:
            async with snapshot(self._pool) as connection:
                job_ids = await _finished_jobs(connection, last)
                commands = await _commands(connection, job_ids)
                leaves = await _leaves(connection, job_ids)
            violations += _unfinished(commands, leaves)
            if len(job_ids) < _PAGE:
                break
            last = job_ids[-1]
        return violations[:MOST_OF_A_RULE]


async def _finished_jobs(connection: Connection, last: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT job_id FROM job WHERE job_id > $1 AND status = 'FINISHED' AND NOT external ORDER BY job_id LIMIT $2",
        last,
        _PAGE,
    )
    return [row["job_id"] for row in rows]


async def _commands(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[CommandFacts]]:
    rows = await connection.fetch(
        """
        SELECT job_id, command_id, parent_command_id, node, command_type, status, plans
        FROM command WHERE job_id = ANY($1) ORDER BY job_id
        """,
        job_ids,
    )
    commands = defaultdict[str, list[CommandFacts]](list)
    for row in rows:
        commands[row["job_id"]].append(_command(row))
    return commands


async def _leaves(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[LeafFacts]]:
    rows = await connection.fetch(
        """
        SELECT job_id, command_id, attempt || ':' || path AS node, task_id,
               coalesce(result, state, 'under way') AS outcome
        FROM host_task WHERE job_id = ANY($1)
        """,
        job_ids,
    )
    leaves = defaultdict[str, list[LeafFacts]](list)
    for row in rows:
        leaves[row["job_id"]].append(LeafFacts(row["command_id"], row["node"], row["task_id"], row["outcome"]))
    return leaves


def _command(row: Row) -> CommandFacts:
    return CommandFacts(
        command_id=row["command_id"],
        parent_command_id=row["parent_command_id"],
        node=row["node"],
        command_type=row["command_type"],
        status=row["status"],
        plans=json.loads(row["plans"]),
    )


def _unfinished(
    commands: Mapping[str, list[CommandFacts]], leaves: Mapping[str, list[LeafFacts]]
) -> Iterator[jobstore_pb2.Violation]:
    for job_id, of_job in commands.items():
        for what in undone(of_job, leaves.get(job_id, [])):
            yield jobstore_pb2.Violation(
                rule="FINISHED_WITH_UNFINISHED_WORK", job_id=job_id, message=f"job is FINISHED, but {what}"
            )
