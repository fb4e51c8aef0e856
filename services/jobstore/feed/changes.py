"""What changed since a revision.

Rows carry the revision of their last change, so "what changed since R" needs no log: it is the rows above R, and the
tombstones above R for those that are gone. Three things follow from revisions being the order of the commits:

* Read in one snapshot together with its head H, the rows above R are everything between R and H, each change folded
  into its row's last.
* Read page by page, in order of revision, each page in a snapshot of its own, they are that too, once a page comes up
  short: a row that changes meanwhile moves up, ahead of the reader, never down behind it.
* Only then, though. In the middle, at r < H, a row whose change below r was folded into one above r has not been sent,
  so r is no place for a reader of *steps* to resume from: a step changed at r1 < r of a job that moved on to r2 > r
  would be found neither by "jobs above r, steps above r", nor have been sent before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from jobstore.display import in_display_order
from jobstore.feed.head import head_of
from jobstore.feed.waiting import read_all_news, read_news
from jobstore.feed.window import (
    Batch,
    EntityChanged,
    FlowRequested,
    FlowWoken,
    JobChange,
    JobChanged,
    JobRemoved,
    JournalChange,
    Position,
    Scope,
)
from jobstore.messages import (
    ENTITY_COLUMNS,
    ENTITY_TYPE,
    JOB_COLUMNS,
    STEP_COLUMNS,
    Row,
    entity_message,
    flow_request_message,
    job_message,
    step_message,
)
from jobstore.search.filter import Filter
from jobstore.search.kinds import Bindings
from jobstore.snapshots import Connection
from waybill.v1 import jobs_pb2

_HEAD: Final = """
    SELECT revision, compacted_revision, time, store_epoch,
           EXISTS (SELECT FROM tombstone WHERE tombstone.revision > $1) AS tombstones,
           EXISTS (SELECT FROM entity WHERE entity.revision > $1) AS entities,
           EXISTS (SELECT FROM flow_request WHERE flow_request.revision > $1) AS flow_requests,
           EXISTS (SELECT FROM job_dependency) AS dependencies,
           EXISTS (SELECT FROM entity_lock WHERE entity_lock.waits_since IS NOT NULL) AS places
    FROM head
"""


async def read_batch(
    connection: Connection,
    since: Position,
    scope: Scope,
    *,
    limit: int,
    cursor: int | None = None,
    filter: Filter | None = None,
) -> Batch:
    """Reads what changed after a position, in the one snapshot that the connection is in; about `limit` of each kind.

    What shares a revision stays together. A batch that is not complete is followed by one read with `cursor` where it
    ended and the same `since`: it is since then that steps and statuses must have changed to count. With a filter, jobs
    that can never match it are left out.
    """
    after = since.revision if cursor is None else cursor
    found = await connection.fetchrow(_HEAD, after)
    assert found is not None  # the schema: one row
    head = head_of(found)
    jobs = await _jobs(connection, after, limit, filter) if Scope.JOBS in scope else []
    tombstones = await _tombstones(connection, after, limit) if scope and found["tombstones"] else []
    entities = await _entities(connection, after, limit) if Scope.JOURNAL in scope and found["entities"] else []
    requests = await _flow_requests(connection, after) if Scope.JOURNAL in scope and found["flow_requests"] else []

    until = min(rows[-1]["revision"] if len(rows) >= limit else head.revision for rows in (jobs, tombstones, entities))
    changed = [_changed(row, since) for row in jobs if row["revision"] <= until]
    if Scope.STEPS in scope:
        await _add_steps(connection, changed, since.revision, scope)
    if Scope.HOSTS in scope:
        await _add_hosts(connection, changed)
    news: list[FlowWoken] = []
    if Scope.JOURNAL in scope and (found["dependencies"] or found["places"]):
        gone = [row["job_id"] for row in tombstones if row["job_id"]]
        waits = {"dependencies": found["dependencies"], "places": found["places"]}
        news = await read_news(connection, after, until, gone, **waits)
    return Batch(
        since=Position(after, since.time),
        until=Position(until, head.time if until == head.revision else None),
        scope=scope,
        head=head,
        jobs=_in_order(changed, [row for row in tombstones if row["revision"] <= until]),
        journal=[*_journal(entities, tombstones, requests, until), *news] if Scope.JOURNAL in scope else [],
    )


# --- jobs ----------------------------------------------------------------------------------------------------------


async def _jobs(connection: Connection, after: int, limit: int, filter: Filter | None) -> Sequence[Row]:
    bind = Bindings(after, limit)
    possible = filter.possible_sql(bind) if filter else "true"
    return await connection.fetch(
        f"""
        SELECT {JOB_COLUMNS} FROM job WHERE job.revision > $1 AND {possible}
        ORDER BY job.revision FETCH FIRST $2 ROWS WITH TIES
        """,
        *bind.values,
    )


async def _tombstones(connection: Connection, after: int, limit: int) -> Sequence[Row]:
    return await connection.fetch(
        """
        SELECT tombstone.revision, tombstone.job_id, tombstone.entity_type, tombstone.entity_id FROM tombstone
        WHERE tombstone.revision > $1 ORDER BY tombstone.revision FETCH FIRST $2 ROWS WITH TIES
        """,
        after,
        limit,
    )


def _changed(row: Row, since: Position) -> JobChanged:
    return JobChanged(row["revision"], job_message(row), status_may_have_changed(row, since.time))


def status_may_have_changed(row: Row, since: datetime | None) -> bool:
    """Tells whether a job's status may have changed after a time; if that is not known, it may have.

    Every change of status but the first sets start or end time, to the time of its commit, which no other commit has;
    and all steps of a job that was made since then have changed since then.
    """
    changed = row["end_time"] or row["start_time"]
    return changed is not None and (since is None or changed > since)


def _in_order(changed: Iterable[JobChanged], tombstones: Iterable[Row]) -> list[JobChange]:
    removed = [JobRemoved(row["revision"], row["job_id"]) for row in tombstones if row["job_id"] is not None]
    return sorted((*changed, *removed), key=lambda change: change.revision) if removed else list(changed)


async def _add_steps(connection: Connection, changed: Sequence[JobChanged], since: int, scope: Scope) -> None:
    """Reads the steps that changed, and where they are wanted whole, those of the jobs that may have begun to match."""
    trees, all_whole = Scope.TREES in scope, Scope.WHOLE in scope
    wholes = {change.job.job_id for change in changed if all_whole or (trees and change.status_changed)}
    steps = await _steps(connection, [change.job.job_id for change in changed], since, list(wholes))
    for change in changed:
        rows = steps.get(change.job.job_id, [])
        change.changed_steps = [step_message(row) for row in rows if row["revision"] > since]
        change.steps = [step_message(row) for row in rows] if change.job.job_id in wholes else None


async def _add_hosts(connection: Connection, changed: Sequence[JobChanged]) -> None:
    """Reads where jobs have begun something. A row of a task comes with a new revision of its job, and never goes."""
    if not changed:
        return
    rows = await connection.fetch(
        """
        SELECT host_task.job_id, array_agg(DISTINCT host_task.host_id) AS hosts FROM host_task
        WHERE host_task.job_id = ANY($1) AND host_task.host_id <> '' GROUP BY host_task.job_id
        """,
        [change.job.job_id for change in changed],
    )
    hosts = {row["job_id"]: frozenset(row["hosts"]) for row in rows}
    for change in changed:
        change.hosts = hosts.get(change.job.job_id, frozenset())


async def _steps(
    connection: Connection, job_ids: Sequence[str], since: int, wholes: Sequence[str]
) -> dict[str, list[Row]]:
    if not job_ids:
        return {}
    rows = await connection.fetch(
        f"""
        SELECT {STEP_COLUMNS}, step.revision FROM step
        WHERE step.job_id = ANY($1) AND (step.revision > $2 OR step.job_id = ANY($3))
        """,
        job_ids,
        since,
        wholes,
    )
    steps = defaultdict[str, list[Row]](list)
    for row in rows:
        steps[row["job_id"]].append(row)
    return {job_id: steps_in_order(rows) for job_id, rows in steps.items()}


def steps_in_order(rows: Iterable[Row]) -> list[Row]:
    """Steps as they are shown: parents before children, siblings by number."""
    return in_display_order(
        rows,
        name=lambda row: row["step_id"],
        parent=lambda row: row["parent_step_id"],
        number=lambda row: (row["number"], row["step_id"]),
    )


async def read_snapshot_page(
    connection: Connection, filter: Filter, after_job_id: str, *, tree: bool, limit: int
) -> list[JobChanged]:
    """Reads some of the jobs that match, by id, as they are now."""
    bind = Bindings(after_job_id, limit)
    rows = await connection.fetch(
        f"SELECT {JOB_COLUMNS} FROM job WHERE job.job_id > $1 AND {filter.sql(bind)} ORDER BY job.job_id LIMIT $2",
        *bind.values,
    )
    page = [JobChanged(row["revision"], job_message(row), True) for row in rows]
    if tree:
        await _add_steps(connection, page, 0, Scope.WHOLE)
    return page


async def read_digest(connection: Connection, filter: Filter) -> tuple[int, str]:
    """Counts the jobs that match and folds their ids and revisions to 16 hex digits (rule 6 of the watch)."""
    bind = Bindings()
    row = await connection.fetchrow(
        f"""
        SELECT count(*) AS jobs,
               bit_xor(('x' || left(md5(job.job_id || ':' || job.revision), 16))::bit(64)::bigint) AS digest
        FROM job WHERE {filter.sql(bind)}
        """,
        *bind.values,
    )
    assert row is not None  # an aggregate
    return row["jobs"], f"{(row['digest'] or 0) & 0xFFFF_FFFF_FFFF_FFFF:016x}"


async def revision_before(connection: Connection, time: datetime) -> int:
    """Finds a revision after which everything is that changed at a time or later.

    Times never go back while revisions rise, so the index by revision is one by time too, walked from its end.
    """
    found = await connection.fetchval(
        """
        SELECT greatest(
            (SELECT revision FROM job WHERE update_time < $1 ORDER BY revision DESC LIMIT 1),
            (SELECT revision FROM tombstone WHERE time < $1 ORDER BY revision DESC LIMIT 1),
            (SELECT revision FROM head WHERE time < $1)
        )
        """,
        time,
    )
    return int(found or 0)


# --- what concerns coordinators ------------------------------------------------------------------------------------


async def _entities(connection: Connection, after: int, limit: int) -> Sequence[Row]:
    return await connection.fetch(
        f"""
        SELECT {ENTITY_COLUMNS} FROM entity WHERE entity.revision > $1
        ORDER BY entity.revision FETCH FIRST $2 ROWS WITH TIES
        """,
        after,
        limit,
    )


async def _flow_requests(connection: Connection, after: int) -> Sequence[Row]:
    """Intents that nobody has dealt with, each with the owner that its flow has now: a later one loads it itself."""
    return await connection.fetch(
        """
        SELECT flow_request.revision, flow_request.request_id, flow_request.flow_command_id, flow_request.kind,
               flow_request."user", flow_request.reason, flow_request.arguments, root.coordinator_id
        FROM flow_request JOIN command AS root ON root.command_id = flow_request.flow_command_id
        WHERE flow_request.revision > $1 ORDER BY flow_request.revision, flow_request.request_id
        """,
        after,
    )


def _journal(
    entities: Iterable[Row], tombstones: Iterable[Row], requests: Iterable[Row], until: int
) -> list[JournalChange]:
    changes: list[JournalChange] = [EntityChanged(row["revision"], entity_message(row)) for row in entities]
    changes += [EntityChanged(row["revision"], _removed_entity(row)) for row in tombstones if row["entity_id"]]
    changes += [_requested(row) for row in requests]
    return sorted((change for change in changes if change.revision <= until), key=lambda change: change.revision)


def _removed_entity(row: Row) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(
        entity_type=ENTITY_TYPE[row["entity_type"]], entity_id=row["entity_id"], revision=row["revision"]
    )


def _requested(row: Row) -> FlowRequested:
    return FlowRequested(row["revision"], row["coordinator_id"], flow_request_message(row))


async def read_journal_snapshot(connection: Connection) -> list[JournalChange]:
    """Reads all hosts, all intents that nobody has dealt with, and how it stands with all who wait."""
    hosts = await connection.fetch(
        f"SELECT {ENTITY_COLUMNS} FROM entity WHERE entity.entity_type = 'HOST' ORDER BY entity.entity_id"
    )
    requests = await _flow_requests(connection, 0)
    return [*await read_all_news(connection), *_journal(hosts, [], requests, until=1 << 62)]
