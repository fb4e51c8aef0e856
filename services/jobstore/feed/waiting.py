"""Flows that wait before they begin, and when there is news for them.

A flow may wait for other jobs to end (`job_dependency`) and in queues for locks (`entity_lock.waits_since`). Both are
rows of its own, which go when it begins or ends. Who waits is woken through the journal's watch:

    another job ended, or was deleted ─▶ its revision (or tombstone) is above the watcher's: news, whenever it is read
    locks were freed ──────────────────▶ nothing tells by its revision; so each time that anything has changed, those
                                         queues are looked at, if there are any

The first is told once a change, the second again and again until the flow has taken its locks: a word too many is
harmless, one too few is not. A flow that is loaded comes with what it waits for, as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from jobstore.feed.window import FlowWoken
from jobstore.messages import EXECUTION_STATUS, Row, short_names, timestamp
from jobstore.snapshots import Connection
from waybill.v1 import jobs_pb2, jobstore_pb2

_POLICY: Final = short_names(jobs_pb2.DependencyPolicy.items())

_DEPENDENCIES: Final = """
    SELECT job_dependency.flow_command_id, job_dependency.depends_on AS job_id, job_dependency.policy, job.status
    FROM job_dependency LEFT JOIN job ON job.job_id = job_dependency.depends_on
    WHERE job_dependency.flow_command_id = ANY ($1::text[])
    ORDER BY job_dependency.flow_command_id, job_dependency.depends_on
"""
_WAITERS: Final = """
    SELECT DISTINCT job_dependency.flow_command_id FROM job_dependency
    JOIN job ON job.job_id = job_dependency.depends_on
    WHERE job.revision > $1 AND job.end_time IS NOT NULL
  UNION
    SELECT flow_command_id FROM job_dependency WHERE depends_on = ANY ($2::text[])
"""
_PLACES: Final = """
    SELECT place.flow_command_id, max(place.waits_until) AS waits_until,
           NOT bool_or(EXISTS (
               SELECT FROM entity_lock AS other
               WHERE other.entity_type = place.entity_type AND other.entity_id = place.entity_id
                     AND other.flow_command_id <> place.flow_command_id AND (other.exclusive OR place.exclusive)
                     AND (other.waits_since IS NULL OR (other.waits_since, other.flow_command_id)
                                                       < (place.waits_since, place.flow_command_id))
           )) AS free
    FROM entity_lock AS place WHERE place.waits_since IS NOT NULL
    GROUP BY place.flow_command_id
"""
_OWNERS: Final = "SELECT command_id, coordinator_id FROM command WHERE command_id = ANY ($1::text[])"


class Waits:
    """What some flows wait for, as it is in one snapshot."""

    def __init__(self, dependencies: Mapping[str, Sequence[Row]], places: Mapping[str, Row]) -> None:
        self._dependencies = dependencies
        self._places = places

    def flows(self) -> set[str]:
        """The flows that wait for something."""
        return {*self._dependencies, *self._places}

    def fill(self, rows: jobstore_pb2.FlowRows) -> None:
        """Adds to a flow's rows what it waits for."""
        rows.dependencies.extend(self._dependencies_of(rows.flow_command_id))
        if place := self._places.get(rows.flow_command_id):
            until = timestamp(place["waits_until"])
            assert until is not None  # the schema: a place has an end
            rows.waits_until.CopyFrom(until)
            rows.locks_free = place["free"]

    def wake(self, flow_command_id: str) -> jobstore_pb2.FlowWake | None:
        """What is new for a flow; None if nothing is."""
        place = self._places.get(flow_command_id)
        dependencies = self._dependencies_of(flow_command_id)
        free = place is not None and bool(place["free"])
        if not dependencies and not free:
            return None
        return jobstore_pb2.FlowWake(flow_command_id=flow_command_id, dependencies=dependencies, locks_free=free)

    def _dependencies_of(self, flow_command_id: str) -> list[jobstore_pb2.Dependency]:
        return [
            jobstore_pb2.Dependency(
                job_id=row["job_id"], policy=_POLICY[row["policy"]], status=EXECUTION_STATUS[row["status"]]
            )
            for row in self._dependencies.get(flow_command_id, ())
        ]


async def read_waits(connection: Connection, flow_command_ids: Sequence[str]) -> Waits:
    """Reads what these flows wait for."""
    wanted = set(flow_command_ids)
    places = {row["flow_command_id"]: row for row in await connection.fetch(_PLACES)}
    return Waits(
        await _dependencies(connection, flow_command_ids),
        {flow: place for flow, place in places.items() if flow in wanted},
    )


async def read_news(
    connection: Connection, after: int, until: int, removed_jobs: Iterable[str], *, dependencies: bool, places: bool
) -> list[FlowWoken]:
    """Reads what is new for waiting flows since a revision; told as of `until`.

    `dependencies`, `places`: whether anybody waits so at all.
    """
    waiters: list[str] = []
    if dependencies:
        waiters = [row["flow_command_id"] for row in await connection.fetch(_WAITERS, after, list(removed_jobs))]
    in_queues = {row["flow_command_id"]: row for row in await connection.fetch(_PLACES)} if places else {}
    waits = Waits(await _dependencies(connection, waiters) if waiters else {}, in_queues)
    return await _woken(connection, waits, until)


async def read_all_news(connection: Connection) -> list[FlowWoken]:
    """Reads how it stands with everybody who waits."""
    everybody = [
        row["flow_command_id"] for row in await connection.fetch("SELECT DISTINCT flow_command_id FROM job_dependency")
    ]
    places = {row["flow_command_id"]: row for row in await connection.fetch(_PLACES)}
    waits = Waits(await _dependencies(connection, everybody), places)
    return await _woken(connection, waits, 1)


async def _dependencies(connection: Connection, flow_command_ids: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in await connection.fetch(_DEPENDENCIES, flow_command_ids):
        found[row["flow_command_id"]].append(row)
    return dict(found)


async def _woken(connection: Connection, waits: Waits, revision: int) -> list[FlowWoken]:
    wakes = [wake for flow in sorted(waits.flows()) if (wake := waits.wake(flow)) is not None]
    if not wakes:
        return []
    owners = dict(map(tuple, await connection.fetch(_OWNERS, [wake.flow_command_id for wake in wakes])))
    return [FlowWoken(revision, owners.get(wake.flow_command_id) or "", wake) for wake in wakes]
