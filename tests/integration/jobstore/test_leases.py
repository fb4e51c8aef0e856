"""Leases, and what is taken over from those who lost theirs: over gRPC, as coordinators see it."""

from __future__ import annotations

import asyncpg
import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.flow import PENDING, Flow, a_flow, lock, request, vm

from chassis.errors import WaybillError
from waybill.v1 import jobs_pb2, jobstore_pb2

Connection = asyncpg.Connection


async def renew(jobstore: RunningJobstore, coordinator_id: str, counter: int) -> list[jobstore_pb2.Lease]:
    asked = jobstore_pb2.RenewLeaseRequest(
        coordinator_id=coordinator_id, counter=counter, address=f"{coordinator_id}:1"
    )
    return list((await jobstore.journal.RenewLease(asked)).leases)


async def claim(
    jobstore: RunningJobstore, coordinator_id: str, dead: str, counter: int = 0, limit: int = 0
) -> set[str]:
    asked = jobstore_pb2.ClaimFlowsRequest(
        coordinator_id=coordinator_id, dead_coordinator_id=dead, observed_counter=counter, limit=limit
    )
    return set((await jobstore.journal.ClaimFlows(asked)).flow_command_ids)


async def claim_hosts(jobstore: RunningJobstore, coordinator_id: str) -> list[str]:
    asked = jobstore_pb2.ClaimHostsRequest(coordinator_id=coordinator_id)
    return list((await jobstore.journal.ClaimHosts(asked)).host_ids)


async def release(jobstore: RunningJobstore, coordinator_id: str) -> None:
    await jobstore.journal.ReleaseLease(jobstore_pb2.ReleaseLeaseRequest(coordinator_id=coordinator_id))


async def begin(jobstore: RunningJobstore, coordinator_id: str, count: int, **job: object) -> list[Flow]:
    flows = [a_flow(**job) for _ in range(count)]
    await write(jobstore, coordinator_id, *(flow.first() for flow in flows))
    return flows


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
