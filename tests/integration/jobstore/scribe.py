"""Writes rows as the journal does (head first, so revisions are in order of commits), but any rows.

scribe = Scribe(connection)
async with scribe.revision():
    job_id = await scribe.add_job(status="STARTED")
    await scribe.add_step(job_id, step_type="EXECUTION")
async with scribe.revision():
    await scribe.change_job(job_id, status="FINISHED")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg

from chassis.clock import Uuid7Ids

OPEN = ("PENDING", "STARTED")
LIVE = ("NOT_STARTED", "ACTIVE", "EXECUTION_FAILED", "SUCCEEDED", "FAILED")


class Scribe:
    """A writer with a pen of its own."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection
        self.ids = Uuid7Ids()
        self.at = 0
        """The revision that is being written, or was last."""
        self.time: datetime | None = None
        """Its time."""

    @asynccontextmanager
    async def revision(self, *, ring: bool = True) -> AsyncIterator[int]:
        """One commit: what is written inside has this revision. Without a ring nobody is told of it."""
        async with self.connection.transaction():
            row = await self.connection.fetchrow(
                """
                UPDATE head
                SET revision = revision + 1, time = greatest(clock_timestamp(), time + interval '1 microsecond')
                RETURNING revision, time
                """
            )
            assert row is not None
            self.at, self.time = row["revision"], row["time"]
            yield self.at
            if ring:
                await self.connection.execute("SELECT pg_notify('waybill_revision', $1)", str(self.at))

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def add_job(self, **columns: Any) -> str:
        """Adds a job and its root command; returns the job's id."""
        job_id = columns.setdefault("job_id", self.ids.new())
        status = columns.setdefault("status", "STARTED")
        flow = columns.setdefault("flow_command_id", self.ids.new())
        subjects = columns.pop("subjects", [])
        defaults = {
            "revision": self.at,
            "create_time": self.time,
            "update_time": self.time,
            "start_time": None if status in ("PENDING", "SKIPPED") else self.time,
            "end_time": None if status in OPEN else self.time,
            "command_type": "Bench",
            "owner": "anonymous",
            "correlation_id": "c-1",
            "description": f"Job {job_id}",
            "subjects": json.dumps([{"entity_type": t, "entity_id": i, "name": ""} for t, i in subjects]),
        }
        await self._insert("job", defaults | columns)
        for entity_type, entity_id in subjects:
            await self._insert(
                "job_subject_entity", {"entity_type": entity_type, "entity_id": entity_id, "job_id": job_id}
            )
        if not columns.get("external"):
            await self.add_command(job_id, command_id=flow, status="ACTIVE" if status in OPEN else "ENDED_SUCCESSFULLY")
        return str(job_id)

    async def change_job(self, job_id: str, **columns: Any) -> None:
        """Changes a job in this revision; times follow the status, as they do in the journal."""
        status = columns.get("status")
        if status == "STARTED":
            columns.setdefault("start_time", self.time)
        elif status is not None and status not in OPEN:
            columns.setdefault("end_time", self.time)
        await self._update("job", "job_id", job_id, {"revision": self.at, "update_time": self.time} | columns)

    async def end_job(self, job_id: str, status: str = "FINISHED") -> None:
        """Ends a job and its commands."""
        await self.change_job(job_id, status=status)
        await self.connection.execute(
            "UPDATE command SET status = $2, end_time = $3 WHERE job_id = $1",
            job_id,
            "ENDED_SUCCESSFULLY" if status == "FINISHED" else "ENDED_WITH_FAILURE",
            self.time,
        )

    async def delete_job(self, job_id: str) -> None:
        """Deletes a job and leaves its tombstone."""
        await self.connection.execute("DELETE FROM job WHERE job_id = $1", job_id)
        await self._insert("tombstone", {"revision": self.at, "time": self.time, "job_id": job_id})

    async def compact(self, revision: int) -> None:
        """Purges tombstones up to a revision."""
        await self.connection.execute("DELETE FROM tombstone WHERE revision <= $1", revision)
        await self.connection.execute("UPDATE head SET compacted_revision = $1", revision)

    # --- what they are made of -------------------------------------------------------------------------------------

    async def add_command(self, job_id: str, **columns: Any) -> str:
        """Adds a command; without a parent it is the root of its flow."""
        command_id = columns.setdefault("command_id", self.ids.new())
        root = not columns.get("parent_command_id")
        status = columns.setdefault("status", "ACTIVE")
        owned = {"coordinator_id": "coordinator-1", "epoch": 1, "sequence": 1, "commit_revision": self.at}
        defaults = {
            "create_time": self.time,
            "end_time": None if status in LIVE else self.time,
            "job_id": job_id,
            "flow_command_id": command_id if root else await self.root_of(job_id),
            "correlation_id": "c-1",
            "command_type": "Bench",
            **(owned | {"commit_time": self.time} if root else {}),
        }
        await self._insert("command", defaults | columns)
        return str(command_id)

    async def root_of(self, job_id: str) -> str:
        """The root command of a job."""
        return str(await self.connection.fetchval("SELECT flow_command_id FROM job WHERE job_id = $1", job_id))

    async def add_step(self, job_id: str, **columns: Any) -> str:
        """Adds a step."""
        step_id = columns.setdefault("step_id", self.ids.new())
        status = columns.setdefault("status", "PENDING")
        defaults = {
            "revision": self.at,
            "start_time": None if status in ("PENDING", "SKIPPED") else self.time,
            "end_time": None if status in OPEN else self.time,
            "job_id": job_id,
            "step_type": "EXECUTION",
            "correlation_id": "c-1",
        }
        await self._insert("step", defaults | columns)
        return str(step_id)

    async def change_step(self, job_id: str, step_id: str, **columns: Any) -> None:
        """Changes a step, and with it its job's revision."""
        status = columns.get("status")
        if status == "STARTED":
            columns.setdefault("start_time", self.time)
        elif status is not None and status not in OPEN:
            columns.setdefault("end_time", self.time)
        await self._update("step", "step_id", step_id, {"revision": self.at} | columns)
        await self.change_job(job_id)

    async def add_host_task(self, job_id: str, **columns: Any) -> str:
        """Adds a begun leaf; with a result it is over."""
        task_id = columns.setdefault("task_id", self.ids.new())
        over = columns.get("result") is not None
        root = await self.root_of(job_id)
        defaults = {
            "create_time": self.time,
            "end_time": self.time if over else None,
            "state": "FINISHED" if over else None,
            "kind": "TASK",
            "host_id": "host-1",
            "verb": "simWork",
            "job_id": job_id,
            "flow_command_id": root,
            "command_id": root,
            "correlation_id": "c-1",
        }
        await self._insert("host_task", defaults | columns)
        return str(task_id)

    async def add_lock(self, job_id: str, entity: tuple[str, str], **columns: Any) -> None:
        """Takes a lock."""
        root = await self.root_of(job_id)
        defaults = {
            "create_time": self.time,
            "exclusive": True,
            "entity_type": entity[0],
            "entity_id": entity[1],
            "flow_command_id": root,
            "job_id": job_id,
            "command_id": root,
        }
        await self._insert("entity_lock", defaults | columns)

    async def add_event(self, event_type: str, **columns: Any) -> str:
        """Stores an event."""
        event_id = columns.setdefault("event_id", self.ids.new())
        defaults = {"time": self.time, "event_type": event_type, "severity": "NORMAL", "message": event_type}
        await self._insert("event", defaults | columns)
        return str(event_id)

    async def add_entity(self, entity_type: str, entity_id: str, **columns: Any) -> None:
        """Declares an entity."""
        defaults = {"revision": self.at, "version": 1, "entity_type": entity_type, "entity_id": entity_id}
        await self._insert("entity", defaults | columns)

    async def change_entity(self, entity_type: str, entity_id: str, **columns: Any) -> None:
        """Changes an entity."""
        values = {"revision": self.at} | columns
        assignments = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 3))
        await self.connection.execute(
            f"UPDATE entity SET {assignments} WHERE entity_type = $1 AND entity_id = $2",
            entity_type,
            entity_id,
            *values.values(),
        )

    async def remove_entity(self, entity_type: str, entity_id: str) -> None:
        """Removes an entity and leaves its tombstone."""
        await self.connection.execute(
            "DELETE FROM entity WHERE entity_type = $1 AND entity_id = $2", entity_type, entity_id
        )
        tombstone = {"revision": self.at, "time": self.time, "version": 1}
        await self._insert("tombstone", tombstone | {"entity_type": entity_type, "entity_id": entity_id})

    async def request_flow(self, job_id: str, kind: str = "CANCEL") -> str:
        """Leaves an intent for the owner of a job's flow."""
        request_id = self.ids.new()
        await self._insert(
            "flow_request",
            {
                "revision": self.at,
                "create_time": self.time,
                "request_id": request_id,
                "flow_command_id": await self.root_of(job_id),
                "job_id": job_id,
                "kind": kind,
            },
        )
        return request_id

    async def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        await self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *columns.values())

    async def _update(self, table: str, key: str, value: str, columns: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, 2))
        await self.connection.execute(f"UPDATE {table} SET {assignments} WHERE {key} = $1", value, *columns.values())
