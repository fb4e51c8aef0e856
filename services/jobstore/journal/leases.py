"""Leases of coordinators, and who takes over what a dead one leaves behind.

    take (counter 1) ─▶ renew (counter + 1) ─▶ … ─▶ release ─▶ its flows may be claimed at once
                             │ stands still, seen so by another coordinator, on its own clock, for the lease time
                             ▼
                     claimed: the lease is deleted (if its counter still stands), epochs are raised

Nobody here looks at a clock: who is dead is decided by whoever watched the counter. What makes that safe is the
deletion. It happens under the writers' mutex, so it lies between two commits: those before it are the dead one's, all
later ones of it are refused for want of a lease, and those that it sends under an old epoch for its being old. A
coordinator that was only slow finds its renewal refused and stops.

Renewal is the one write that does not take its turn: a journal that is busy must not cost anybody the lease.

Ended flows need no owner, but their spans may be owed. So a lease says up to which revision they are delivered, and
what is missing when it ends becomes a debt:

    lease ends ─▶ span_debt ─▶ whoever claims is its heir, and delivers ─▶ says so with a renewal: deleted
                                    │ has no lease any more
                                    └─▶ whoever claims next
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from chassis.clock import Ids
from jobstore.journal.guards import lease_lost
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.snapshots import Pool, borrowed
from waybill.v1 import jobstore_pb2

FLOWS_AT_ONCE: Final = 100
LEASE_SECONDS: Final = 2.0
"""How long a renewal may take: later it would be too late."""

# One of whose flows none has ended yet owes from where it began, not from the beginning of the store.
_RENEW: Final = """
    UPDATE coordinator_lease
    SET counter = $2, address = $3, update_time = clock_timestamp(),
        traced_revision = CASE $4::bigint WHEN 0 THEN traced_revision ELSE $4 END
    WHERE coordinator_id = $1 AND counter IN ($2 - 1, $2) AND NOT released
    RETURNING true
"""
_TAKE: Final = """
    INSERT INTO coordinator_lease (coordinator_id, counter, address, traced_revision, update_time)
    SELECT $1, 1, $2, CASE $3::bigint WHEN 0 THEN revision ELSE $3 END, clock_timestamp() FROM head WHERE one
    ON CONFLICT (coordinator_id) DO NOTHING
    RETURNING true
"""
_LEASES: Final = "SELECT coordinator_id, counter, address, released FROM coordinator_lease ORDER BY coordinator_id"
_RELEASE: Final = """
    WITH unowned AS (DELETE FROM host_claim WHERE coordinator_id = $1)
    UPDATE coordinator_lease
    SET released = true, traced_revision = CASE $2::bigint WHEN 0 THEN traced_revision ELSE $2 END
    WHERE coordinator_id = $1
"""

_HAS_LEASE: Final = "SELECT EXISTS (SELECT FROM coordinator_lease WHERE coordinator_id = $1 AND NOT released) AS alive"
_END_LEASE: Final = """
    DELETE FROM coordinator_lease WHERE coordinator_id = $1 AND (counter = $2 OR released)
    RETURNING traced_revision
"""
_IS_LEASED: Final = "SELECT EXISTS (SELECT FROM coordinator_lease WHERE coordinator_id = $1) AS leased"

# Unfinished flows are few, and found by an index of their own on their jobs' status.
_UNFINISHED: Final = """
    SELECT command_id, coordinator_id FROM command
    WHERE command_id = ANY (ARRAY(SELECT flow_command_id FROM job WHERE status IN ('PENDING', 'STARTED')))
"""
_OF_ONE: Final = f"{_UNFINISHED} AND coordinator_id = $1 ORDER BY create_time, command_id LIMIT $2"
_OF_NOBODY: Final = f"""
    {_UNFINISHED} AND coordinator_id <> ALL (ARRAY(SELECT coordinator_id FROM coordinator_lease))
    ORDER BY create_time, command_id LIMIT $1
"""
_OWE: Final = """
    INSERT INTO span_debt (coordinator_id, traced_revision, heir_id) VALUES ($1, $2, $1)
    ON CONFLICT (coordinator_id) DO UPDATE SET heir_id = excluded.heir_id
"""
_INHERIT: Final = """
    UPDATE span_debt SET heir_id = $1
    WHERE heir_id = $2 OR heir_id <> ALL (ARRAY(SELECT coordinator_id FROM coordinator_lease))
    RETURNING coordinator_id
"""
_SETTLE: Final = "DELETE FROM span_debt WHERE heir_id = $1 AND coordinator_id = ANY ($2::text[])"
_TAKE_OVER: Final = """
    UPDATE command SET coordinator_id = $1, epoch = epoch + 1 WHERE command_id = ANY ($2::text[])
    RETURNING command_id, job_id, correlation_id
"""
_TELL: Final = """
    INSERT INTO event (event_id, time, event_type, severity, message, job_id, correlation_id)
    SELECT u.event_id, $1::timestamptz, 'FLOW_TAKEN_OVER', 'WARNING', u.message, u.job_id, u.correlation_id
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS u (event_id, message, job_id, correlation_id)
"""

_CLAIM_HOSTS: Final = """
    INSERT INTO host_claim (host_id, coordinator_id, create_time)
    SELECT entity_id, $1::text, $2::timestamptz FROM entity WHERE entity_type = 'HOST'
    ON CONFLICT (host_id) DO UPDATE SET coordinator_id = excluded.coordinator_id, create_time = excluded.create_time
    WHERE host_claim.coordinator_id IN (SELECT coordinator_id FROM coordinator_lease WHERE released)
"""
_HOSTS: Final = """
    SELECT host_id FROM host_claim JOIN entity ON entity.entity_type = 'HOST' AND entity.entity_id = host_claim.host_id
    WHERE host_claim.coordinator_id = $1 ORDER BY host_id
"""


@asynccontextmanager
async def lease_pool(url: str) -> AsyncIterator[Pool]:
    """Yields the connections of the renewals: few, and nobody else's."""
    async with asyncpg.create_pool(
        url,
        min_size=0,
        max_size=2,
        timeout=LEASE_SECONDS,
        command_timeout=LEASE_SECONDS,
        server_settings={"application_name": "waybill leases", "statement_timeout": f"{LEASE_SECONDS:.0f}s"},
    ) as pool:
        yield pool


class Leases:
    """Keeps the leases, and hands over what they covered."""

    def __init__(self, pool: Pool, journal: Journal, ids: Ids) -> None:
        """`pool` has connections that may write, apart from the journal's."""
        self._pool = pool
        self._journal = journal
        self._ids = ids

    # -- one's own

    async def renew(self, request: jobstore_pb2.RenewLeaseRequest) -> list[jobstore_pb2.Lease]:
        """Takes a lease (counter 1) or renews it, and returns all leases; raises LEASE_LOST."""
        coordinator_id, address, traced = request.coordinator_id, request.address, request.traced_revision
        async with borrowed(self._pool) as connection:
            held = await connection.fetchval(_RENEW, coordinator_id, request.counter, address, traced)
            if not held and request.counter == 1:
                held = await connection.fetchval(_TAKE, coordinator_id, address, traced)
            if not held:
                raise lease_lost(coordinator_id)
            if request.traced_coordinator_ids:
                await connection.execute(_SETTLE, coordinator_id, request.traced_coordinator_ids)
            return [_lease(row) for row in await connection.fetch(_LEASES)]

    async def release(self, request: jobstore_pb2.ReleaseLeaseRequest) -> None:
        """Gives a lease up; its hosts are unowned at once."""
        traced = request.traced_revision if request.HasField("traced_revision") else -1
        async with borrowed(self._pool) as connection:
            if request.traced_coordinator_ids:
                await connection.execute(_SETTLE, request.coordinator_id, request.traced_coordinator_ids)
            await connection.execute(_RELEASE, request.coordinator_id, traced)

    # -- another's

    async def claim_flows(self, request: jobstore_pb2.ClaimFlowsRequest) -> jobstore_pb2.ClaimFlowsResponse:
        """Takes over unfinished flows of a dead coordinator, or of none, and returns them; raises LEASE_LOST.

        With them come the spans that are owed by those who are dead. Of oneself, it takes nothing and returns all:
        for whoever did not hear the answer to a claim.
        """
        return await self._journal.alone(lambda turn: self._claim_flows(turn, request), repeatable=False)

    async def _claim_flows(
        self, turn: Turn, request: jobstore_pb2.ClaimFlowsRequest
    ) -> jobstore_pb2.ClaimFlowsResponse:
        heir_id = request.coordinator_id
        await _require_lease(turn, heir_id)
        if request.dead_coordinator_id == heir_id:
            flows = [row["command_id"] for row in await turn.writer.fetch(_OF_ONE, heir_id, None)]
            untraced = await _inherited(turn, heir_id, also_of=heir_id)
        else:
            orphans = await _orphans(turn, request)
            if orphans:
                await self._take_over(turn, heir_id, orphans)
            flows, untraced = list(orphans), await _inherited(turn, heir_id)
        return jobstore_pb2.ClaimFlowsResponse(flow_command_ids=flows, untraced_coordinator_ids=untraced)

    async def _take_over(self, turn: Turn, coordinator_id: str, orphans: Mapping[str, str]) -> None:
        """Fences the former owners: their epoch is an old one from here on."""
        turn.changed = True
        taken = await turn.writer.fetch(_TAKE_OVER, coordinator_id, list(orphans))
        await turn.writer.change(
            _TELL,
            turn.time,
            [self._ids.new() for _ in taken],
            [f"Coordinator {coordinator_id} took over from {orphans[row['command_id']]}" for row in taken],
            [row["job_id"] for row in taken],
            [row["correlation_id"] for row in taken],
        )

    async def claim_hosts(self, coordinator_id: str) -> list[str]:
        """Takes the hosts that nobody with a lease owns, and returns all that the coordinator owns now."""
        return await self._journal.alone(lambda turn: _claim_hosts(turn, coordinator_id))


async def _orphans(turn: Turn, request: jobstore_pb2.ClaimFlowsRequest) -> dict[str, str]:
    """Returns flows that may be taken over and whose they were, none if the lease has moved since it stood still."""
    dead, limit = request.dead_coordinator_id, request.limit or FLOWS_AT_ONCE
    if not dead:
        rows = await turn.writer.fetch(_OF_NOBODY, limit)
        return {row["command_id"]: row["coordinator_id"] for row in rows}
    for ended in await turn.writer.fetch(_END_LEASE, dead, request.observed_counter):
        turn.changed = True
        if ended["traced_revision"] >= 0:
            await turn.writer.change(_OWE, dead, ended["traced_revision"])
    [row] = await turn.writer.fetch(_IS_LEASED, dead)
    rows = [] if row["leased"] else await turn.writer.fetch(_OF_ONE, dead, limit)
    return {row["command_id"]: row["coordinator_id"] for row in rows}


async def _inherited(turn: Turn, heir_id: str, *, also_of: str = "") -> list[str]:
    """Hands debts whose heir has no lease to this one; returns whose they were. `also_of`: of this heir, too."""
    debts = await turn.writer.fetch(_INHERIT, heir_id, also_of)
    turn.changed = turn.changed or bool(debts)
    return [row["coordinator_id"] for row in debts]


async def _claim_hosts(turn: Turn, coordinator_id: str) -> list[str]:
    await _require_lease(turn, coordinator_id)
    turn.changed = await turn.writer.change(_CLAIM_HOSTS, coordinator_id, turn.time) > 0
    return [row["host_id"] for row in await turn.writer.fetch(_HOSTS, coordinator_id)]


async def _require_lease(turn: Turn, coordinator_id: str) -> None:
    [row] = await turn.writer.fetch(_HAS_LEASE, coordinator_id)
    if not row["alive"]:
        raise lease_lost(coordinator_id)


def _lease(row: asyncpg.Record) -> jobstore_pb2.Lease:
    return jobstore_pb2.Lease(
        coordinator_id=row["coordinator_id"],
        counter=row["counter"],
        address=row["address"],
        released=row["released"],
    )
