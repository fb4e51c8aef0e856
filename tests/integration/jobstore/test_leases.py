"""Leases, and what is taken over from those who lost theirs: over gRPC, as coordinators see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.flow import PENDING, Flow, a_flow, lock, request, vm

from chassis.errors import WaybillError
from jobstore.queries import flows
from waybill.v1 import jobs_pb2, jobstore_pb2

Connection = asyncpg.Connection


async def renew(
    jobstore: RunningJobstore, coordinator_id: str, counter: int, *, traced: int = 0, settled: Sequence[str] = ()
) -> list[jobstore_pb2.Lease]:
    asked = jobstore_pb2.RenewLeaseRequest(
        coordinator_id=coordinator_id,
        counter=counter,
        address=f"{coordinator_id}:1",
        traced_revision=traced,
        traced_coordinator_ids=settled,
    )
    return list((await jobstore.journal.RenewLease(asked)).leases)


async def claim(
    jobstore: RunningJobstore, coordinator_id: str, dead: str, counter: int = 0, limit: int = 0
) -> set[str]:
    asked = jobstore_pb2.ClaimFlowsRequest(
        coordinator_id=coordinator_id, dead_coordinator_id=dead, observed_counter=counter, limit=limit
    )
    return set((await jobstore.journal.ClaimFlows(asked)).flow_command_ids)


async def inherit(jobstore: RunningJobstore, coordinator_id: str, dead: str, counter: int = 1) -> dict[str, list[str]]:
    """Claims; returns who owes spans, and of which flows."""
    asked = jobstore_pb2.ClaimFlowsRequest(
        coordinator_id=coordinator_id, dead_coordinator_id=dead, observed_counter=counter
    )
    claimed = await jobstore.journal.ClaimFlows(asked)
    return {
        each: [flow for part in await untraced(jobstore, each) for flow in part]
        for each in claimed.untraced_coordinator_ids
    }


async def untraced(jobstore: RunningJobstore, dead: str) -> list[list[str]]:
    """The flows whose spans it owes, part by part."""
    parts, revision, more = list[list[str]](), 0, True
    while more:
        asked = jobstore_pb2.ListUntracedFlowsRequest(coordinator_id=dead, after_revision=revision)
        part = await jobstore.journal.ListUntracedFlows(asked)
        parts.append(list(part.flow_command_ids))
        revision, more = part.revision, part.revision > 0
    return parts


async def claim_hosts(jobstore: RunningJobstore, coordinator_id: str) -> list[str]:
    asked = jobstore_pb2.ClaimHostsRequest(coordinator_id=coordinator_id)
    return list((await jobstore.journal.ClaimHosts(asked)).host_ids)


async def release(jobstore: RunningJobstore, coordinator_id: str, **traced: Any) -> None:
    await jobstore.journal.ReleaseLease(jobstore_pb2.ReleaseLeaseRequest(coordinator_id=coordinator_id, **traced))


async def begin(jobstore: RunningJobstore, coordinator_id: str, count: int, **job: object) -> list[Flow]:
    flows = [a_flow(**job) for _ in range(count)]
    await write(jobstore, coordinator_id, *(flow.first() for flow in flows))
    return flows


async def ended(jobstore: RunningJobstore, coordinator_id: str) -> Flow:
    """A traced flow of that coordinator, ended."""
    [flow] = await begin(jobstore, coordinator_id, 1, trace_id="ab" * 16, span_id="cd" * 8)
    await write(jobstore, coordinator_id, flow.last())
    return flow


async def write(jobstore: RunningJobstore, coordinator_id: str, *commits: jobstore_pb2.FlowCommit) -> None:
    response = await jobstore.journal.Commit(request(*commits, coordinator_id=coordinator_id))
    for result in response.results:
        if result.HasField("error"):
            raise WaybillError.from_status(result.error)


async def test_a_lease_is_taken_and_renewed(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "a", 1)
    await renew(jobstore, "b", 1)
    leases = await renew(jobstore, "a", 2)
    assert [(lease.coordinator_id, lease.counter, lease.address) for lease in leases] == [
        ("a", 2, "a:1"),
        ("b", 1, "b:1"),
    ]


async def test_a_renewal_may_be_repeated(jobstore: RunningJobstore) -> None:
    for counter in (1, 1, 2, 2):
        await renew(jobstore, "a", counter)


@pytest.mark.parametrize("counter", [0, 2, 9])
async def test_a_lease_that_is_not_there_cannot_be_renewed(jobstore: RunningJobstore, counter: int) -> None:
    with pytest.raises(Exception, match="has no lease"):
        await renew(jobstore, "a", counter)


async def test_a_released_lease_cannot_be_renewed_nor_written_under(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "a", 1)
    await release(jobstore, "a")
    await release(jobstore, "a")
    with pytest.raises(Exception, match="has no lease"):
        await renew(jobstore, "a", 2)
    with pytest.raises(Exception, match="has no lease"):
        await begin(jobstore, "a", 1)


@pytest.mark.rule("semantics §2: Every flow goes on, in whichever coordinator claims it")
async def test_flows_of_a_dead_coordinator_are_claimed_and_their_epochs_raised(
    jobstore: RunningJobstore, connection: Connection
) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    flows = await begin(jobstore, "dead", 3)
    ended, *living = flows
    await write(jobstore, "dead", ended.last())
    assert await claim(jobstore, "heir", "dead", counter=1) == {flow.flow_command_id for flow in living}
    assert await claim(jobstore, "heir", "dead", counter=1) == set()
    roots = await connection.fetch("SELECT coordinator_id, epoch FROM command ORDER BY epoch")
    assert [tuple(row) for row in roots] == [("dead", 1), ("heir", 2), ("heir", 2)]
    events = await connection.fetch("SELECT event_type, job_id, correlation_id FROM event")
    assert {(row["event_type"], row["job_id"]) for row in events} == {
        ("FLOW_TAKEN_OVER", flow.job_id) for flow in living
    }
    assert all(row["correlation_id"].startswith("test-") for row in events)


async def test_the_dead_one_can_write_nowhere(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    [flow] = await begin(jobstore, "dead", 1)
    await claim(jobstore, "heir", "dead", counter=1)
    with pytest.raises(Exception, match="has no lease"):
        await write(jobstore, "dead", flow.progress(10))
    with pytest.raises(Exception, match="has no lease"):
        await renew(jobstore, "dead", 2)


async def test_the_heir_goes_on_under_the_new_epoch(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    [flow] = await begin(jobstore, "dead", 1, status=PENDING)
    await claim(jobstore, "heir", "dead", counter=1)
    flow.epoch = 2
    await write(jobstore, "heir", flow.last())


async def test_a_coordinator_that_was_only_slow_keeps_its_flows(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "slow", 1)
    await renew(jobstore, "heir", 1)
    [flow] = await begin(jobstore, "slow", 1)
    await renew(jobstore, "slow", 2)
    assert await claim(jobstore, "heir", "slow", counter=1) == set()
    await write(jobstore, "slow", flow.progress(10))


async def test_a_released_lease_is_claimed_whatever_its_counter(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "gone", 1)
    await renew(jobstore, "heir", 1)
    [flow] = await begin(jobstore, "gone", 1)
    await renew(jobstore, "gone", 2)
    await release(jobstore, "gone")
    assert await claim(jobstore, "heir", "gone", counter=1) == {flow.flow_command_id}


async def test_flows_are_claimed_in_portions_each_once(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    flows = await begin(jobstore, "dead", 5)
    portions = [await claim(jobstore, "heir", "dead", counter=1, limit=2) for _ in range(4)]
    assert [len(portion) for portion in portions] == [2, 2, 1, 0]
    assert set().union(*portions) == {flow.flow_command_id for flow in flows}


async def test_two_heirs_share_and_do_not_take_from_each_other(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    for heir in ("one", "two"):
        await renew(jobstore, heir, 1)
    flows = await begin(jobstore, "dead", 4)
    one = await claim(jobstore, "one", "dead", counter=1, limit=2)
    two = await claim(jobstore, "two", "dead", counter=1)
    assert not one & two
    assert one | two == {flow.flow_command_id for flow in flows}


async def test_flows_of_owners_without_any_lease_are_claimed(jobstore: RunningJobstore, connection: Connection) -> None:
    await renew(jobstore, "gone", 1)
    await renew(jobstore, "alive", 1)
    [orphan] = await begin(jobstore, "gone", 1)
    await begin(jobstore, "alive", 1)
    await connection.execute("DELETE FROM coordinator_lease WHERE coordinator_id = 'gone'")
    await renew(jobstore, "heir", 1)
    assert await claim(jobstore, "heir", "") == {orphan.flow_command_id}


async def test_whoever_did_not_hear_the_answer_asks_for_its_own(
    jobstore: RunningJobstore, connection: Connection
) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    flows = await begin(jobstore, "dead", 3)
    await claim(jobstore, "heir", "dead", counter=1)
    assert await claim(jobstore, "heir", "heir") == {flow.flow_command_id for flow in flows}
    assert await connection.fetchval("SELECT max(epoch) FROM command") == 2


async def test_who_has_no_lease_claims_nothing(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await begin(jobstore, "dead", 1)
    with pytest.raises(Exception, match="has no lease"):
        await claim(jobstore, "nobody", "dead", counter=1)
    with pytest.raises(Exception, match="has no lease"):
        await claim_hosts(jobstore, "nobody")


async def test_hosts_are_owned_by_one_and_come_free_with_the_lease(jobstore: RunningJobstore) -> None:
    for coordinator_id in ("one", "two"):
        await renew(jobstore, coordinator_id, 1)
    await put_hosts(jobstore, "h1", "h2")
    assert await claim_hosts(jobstore, "one") == ["h1", "h2"]
    assert await claim_hosts(jobstore, "two") == []
    await put_hosts(jobstore, "h3")
    assert await claim_hosts(jobstore, "two") == ["h3"]
    await claim(jobstore, "two", "one", counter=1)
    assert await claim_hosts(jobstore, "two") == ["h1", "h2", "h3"]
    await release(jobstore, "two")
    await renew(jobstore, "three", 1)
    assert await claim_hosts(jobstore, "three") == ["h1", "h2", "h3"]


async def put_hosts(jobstore: RunningJobstore, *host_ids: str) -> None:
    hosts = [jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id=host_id) for host_id in host_ids]
    await jobstore.reads.PutEntities(jobstore_pb2.PutEntitiesRequest(entities=hosts))


@pytest.mark.rule("semantics §5: Held through restarts without a gap")
async def test_locks_are_held_through_a_take_over(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    flow = a_flow()
    await write(jobstore, "dead", flow.first(locks=[lock(vm("vm-1"))]))
    await claim(jobstore, "heir", "dead", counter=1)
    with pytest.raises(WaybillError, match="is locked by job"):
        await write(jobstore, "heir", a_flow().first(locks=[lock(vm("vm-1"))]))


# --- spans that are owed ---------------------------------------------------------------------------------------------


async def test_ended_flows_whose_spans_a_dead_coordinator_owed_are_named_to_its_heir_once(
    jobstore: RunningJobstore,
) -> None:
    for coordinator_id in ("dead", "heir", "another"):
        await renew(jobstore, coordinator_id, 1)
    delivered, owed, _ = [await ended(jobstore, whose) for whose in ("dead", "dead", "another")]
    await begin(jobstore, "dead", 1)
    await renew(jobstore, "dead", 2, traced=await revision_of(jobstore, delivered))
    assert await inherit(jobstore, "heir", "dead", counter=2) == {"dead": [owed.flow_command_id]}
    assert await inherit(jobstore, "heir", "dead", counter=2) == {}
    assert await inherit(jobstore, "heir", "") == {}


async def test_many_such_flows_are_named_part_by_part_and_none_of_one_transaction_is_missed(
    jobstore: RunningJobstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for coordinator_id in ("dead", "heir", "another"):
        await renew(jobstore, coordinator_id, 1)
    traced = {"trace_id": "ab" * 16, "span_id": "cd" * 8}
    owed = [await begin(jobstore, "dead", count, **traced) for count in (1, 3, 2, 1)]
    for together in owed:
        await write(jobstore, "dead", *(flow.last() for flow in together))
        await ended(jobstore, "another")
    await inherit(jobstore, "heir", "dead")
    monkeypatch.setattr(flows, "JOBS_AT_ONCE", 4)
    parts = await untraced(jobstore, "dead")
    ids = [[flow.flow_command_id for flow in together] for together in owed]
    assert [set(part) for part in parts] == [set(ids[0]), set(ids[1]), set(ids[2]), set(ids[3])]


async def test_a_coordinator_that_makes_no_spans_owes_none(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1, traced=-1)
    await renew(jobstore, "heir", 1)
    await ended(jobstore, "dead")
    assert await inherit(jobstore, "heir", "dead") == {}


async def test_one_that_dies_before_any_of_its_flows_was_delivered_owes_from_where_it_began(
    jobstore: RunningJobstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await renew(jobstore, "earlier", 1)
    for _ in range(3):
        await ended(jobstore, "earlier")
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "dead", 2)
    await renew(jobstore, "heir", 1)
    owed = await ended(jobstore, "dead")
    monkeypatch.setattr(flows, "JOBS_AT_ONCE", 3)
    assert await inherit(jobstore, "heir", "dead", counter=2) == {"dead": [owed.flow_command_id]}
    assert await untraced(jobstore, "dead") == [[owed.flow_command_id]]


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_an_heir_that_is_gone_before_it_has_delivered_them_leaves_them_to_its_own_heir(
    jobstore: RunningJobstore, how: str
) -> None:
    for coordinator_id in ("dead", "heir", "last"):
        await renew(jobstore, coordinator_id, 1)
    owed = await ended(jobstore, "dead")
    assert await inherit(jobstore, "heir", "dead") == {"dead": [owed.flow_command_id]}
    own = await ended(jobstore, "heir")  # which is delivered: that says nothing of those that it has inherited
    traced = await revision_of(jobstore, own)
    await renew(jobstore, "heir", 2, traced=traced)
    assert await inherit(jobstore, "last", "heir", counter=1) == {}, "it lives"
    if how == "stopped":
        await release(jobstore, "heir", traced_revision=traced)
    assert await inherit(jobstore, "last", "heir", counter=2) == {"dead": [owed.flow_command_id], "heir": []}
    assert await inherit(jobstore, "last", "heir", counter=2) == {}


async def test_debts_of_several_come_together_at_last(jobstore: RunningJobstore) -> None:
    for coordinator_id in ("dead", "heir", "last"):
        await renew(jobstore, coordinator_id, 1)
    first = await ended(jobstore, "dead")
    await inherit(jobstore, "heir", "dead")
    second = await ended(jobstore, "heir")
    assert await inherit(jobstore, "last", "heir") == {
        "dead": [first.flow_command_id],
        "heir": [second.flow_command_id],
    }


@pytest.mark.parametrize("how", ["renewal", "release"])
async def test_what_is_delivered_is_nobodys_debt(jobstore: RunningJobstore, connection: Connection, how: str) -> None:
    for coordinator_id in ("dead", "heir", "last"):
        await renew(jobstore, coordinator_id, 1)
    await ended(jobstore, "dead")
    await inherit(jobstore, "heir", "dead")
    if how == "renewal":
        await renew(jobstore, "heir", 2, settled=["dead"])
    else:
        await release(jobstore, "heir", traced_revision=0, traced_coordinator_ids=["dead"])
    assert await connection.fetchval("SELECT count(*) FROM span_debt") == 0
    assert await inherit(jobstore, "last", "heir", counter=2) == {"heir": []}


async def test_only_the_heir_can_say_that_they_are_delivered(jobstore: RunningJobstore) -> None:
    for coordinator_id in ("dead", "heir", "last"):
        await renew(jobstore, coordinator_id, 1)
    owed = await ended(jobstore, "dead")
    await inherit(jobstore, "heir", "dead")
    await renew(jobstore, "last", 2, settled=["dead"])
    assert await inherit(jobstore, "last", "heir") == {"dead": [owed.flow_command_id], "heir": []}


async def test_whoever_did_not_hear_the_answer_hears_of_the_spans_too(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "dead", 1)
    await renew(jobstore, "heir", 1)
    owed = await ended(jobstore, "dead")
    await inherit(jobstore, "heir", "dead")
    assert await inherit(jobstore, "heir", "heir") == {"dead": [owed.flow_command_id]}


async def test_a_coordinator_that_stopped_while_the_collector_was_away_owes_what_it_says(
    jobstore: RunningJobstore,
) -> None:
    await renew(jobstore, "gone", 1)
    await renew(jobstore, "heir", 1)
    delivered, owed = [await ended(jobstore, "gone") for _ in range(2)]
    await release(jobstore, "gone", traced_revision=await revision_of(jobstore, delivered))
    assert await inherit(jobstore, "heir", "gone") == {"gone": [owed.flow_command_id]}


async def test_who_is_not_dead_or_owes_nothing_has_no_such_flows(jobstore: RunningJobstore) -> None:
    await renew(jobstore, "alive", 1)
    await ended(jobstore, "alive")
    assert await untraced(jobstore, "alive") == [[]]
    assert await untraced(jobstore, "nobody") == [[]]


async def revision_of(jobstore: RunningJobstore, flow: Flow) -> int:
    asked = jobstore_pb2.LoadFlowsRequest(flow_command_ids=[flow.flow_command_id])
    [rows] = (await jobstore.journal.LoadFlows(asked)).flows
    return rows.job.revision
