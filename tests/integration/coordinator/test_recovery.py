"""Leases kept and lost, and the flows of those who are gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from tests.integration.coordinator.far_end import SILENCE, ScriptedJobStore, pass_time, turns, until

from chassis.clock import ManualClock
from chassis.errors import failed_precondition
from coordinator.deliveries import Deliveries
from coordinator.journal.journal import Journal
from coordinator.recovery.recovery import Lease, Recovery
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

LEASE_SECONDS = 3.0
ORPHAN_SECONDS = 20.0


class Coordinator:
    """As much of a coordinator as holds a lease and takes up flows."""

    def __init__(self, journal: Journal, clock: ManualClock, rng: random.Random) -> None:
        self.journal = journal
        self.lost: list[str] = []
        self.running: list[str] = []
        self.told: list[str] = []
        self.deliveries = Deliveries(enabled=True)
        self.deaths = 0
        self.recovery = Recovery(
            journal,
            clock,
            rng,
            coordinator_id="c1",
            lease_seconds=LEASE_SECONDS,
            on_flows=lambda flows: self.running.extend(flow.flow_command_id for flow in flows),
            on_death=self._died,
            on_untraced=lambda flows: self.told.extend(flow.flow_command_id for flow in flows),
            on_debt_told=lambda dead: self.told.append(f"all of {dead}"),
            is_running=lambda flow_command_id: flow_command_id in self.running,
            orphan_seconds=ORPHAN_SECONDS,
        )
        self.lease = Lease(
            journal,
            clock,
            rng,
            lease_seconds=LEASE_SECONDS,
            address="127.0.0.1:1",
            on_lost=self.lost.append,
            on_leases=self.recovery.leases_seen,
            deliveries=self.deliveries,
        )

    def _died(self) -> None:
        self.deaths += 1


@pytest.fixture
async def journal(
    journal_stub: jobstore_pb2_grpc.JournalStub, clock: ManualClock, rng: random.Random
) -> AsyncIterator[Journal]:
    async with Journal(journal_stub, "c1", clock, rng) as journal:
        yield journal


@pytest.fixture
def coordinator(journal: Journal, clock: ManualClock, rng: random.Random) -> Coordinator:
    return Coordinator(journal, clock, rng)


def another(store: ScriptedJobStore, counter: int, *flows: str, released: bool = False) -> None:
    """Another coordinator, with its lease and its flows."""
    store.leases["c0"] = jobstore_pb2.Lease(coordinator_id="c0", counter=counter, released=released)
    store.flows.setdefault("c0", []).extend(flows)


# --- the lease -------------------------------------------------------------------------------------------------------


async def test_a_lease_is_taken_renewed_and_released(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        assert store.leases["c1"].counter == 1
        begun = clock.monotonic()
        await pass_time(clock, lambda: store.leases["c1"].counter == 4)
        assert clock.monotonic() - begun == pytest.approx(LEASE_SECONDS, abs=0.5)
        assert store.released == []

    assert [request.coordinator_id for request in store.released] == ["c1"]
    assert coordinator.lost == []


async def test_a_lease_is_released_also_by_a_process_that_is_asked_to_end(
    coordinator: Coordinator, store: ScriptedJobStore
) -> None:
    holds = asyncio.Event()

    async def hold() -> None:
        async with coordinator.lease:
            holds.set()
            await asyncio.Event().wait()

    held = asyncio.create_task(hold())
    await holds.wait()
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    assert [request.coordinator_id for request in store.released] == ["c1"]
    assert coordinator.lost == []


async def test_a_lease_is_waited_for_while_the_jobstore_is_away(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.script.fail("RenewLease", SILENCE, times=3)

    async def hold() -> None:
        async with coordinator.lease:
            pass

    held = asyncio.create_task(hold())
    await pass_time(clock, held.done)
    assert store.leases["c1"].counter == 1


async def test_a_renewal_that_nobody_answered_is_repeated_with_the_same_counter(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        store.script.fail("RenewLease", SILENCE, times=2)
        await pass_time(clock, lambda: store.leases["c1"].counter == 2)
        assert store.script.asked["RenewLease"] == 4

    assert coordinator.lost == []


async def test_a_coordinator_whose_renewal_is_overdue_stops_itself(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        begun = clock.monotonic()
        store.script.fail("RenewLease", SILENCE, times=1000)
        await pass_time(clock, lambda: coordinator.lost)
        assert clock.monotonic() - begun == pytest.approx(LEASE_SECONDS, abs=0.5)

    assert len(coordinator.lost) == 1
    assert store.released == []


async def test_a_coordinator_that_was_paused_stops_before_it_asks(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        await turns()
        asked = store.script.asked["RenewLease"]
        clock.advance(LEASE_SECONDS)
        await until(lambda: coordinator.lost)
        assert store.script.asked["RenewLease"] == asked
        assert coordinator.lease.is_overdue


async def test_a_renewal_that_was_answered_too_late_is_no_renewal(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        gate = store.script.hold("RenewLease")
        await pass_time(clock, lambda: store.script.asked["RenewLease"] == 2)
        clock.advance(LEASE_SECONDS)
        gate.set()
        await until(lambda: coordinator.lost)


@pytest.mark.parametrize("call", ["RenewLease", "Commit"])
async def test_a_coordinator_that_is_told_that_its_lease_is_gone_stops_itself(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock, call: str
) -> None:
    async with coordinator.lease:
        store.script.fail(call, failed_precondition("LEASE_LOST", "claimed by another"))
        coordinator.journal.cleared(["t1"])
        await pass_time(clock, lambda: coordinator.lost)

    assert len(coordinator.lost) == 1
    assert store.released == []


async def test_renewals_say_what_is_delivered_until_one_is_answered(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    async with coordinator.lease:
        assert (store.renewals[-1].traced_revision, store.renewals[-1].traced_coordinator_ids) == (0, [])
        coordinator.deliveries.passed(7)
        coordinator.deliveries.settle("c0")
        store.script.fail("RenewLease", SILENCE, times=2)
        await pass_time(clock, lambda: store.leases["c1"].counter == 3)

    assert [(each.traced_revision, each.traced_coordinator_ids) for each in store.renewals[1:]] == [
        (7, ["c0"]),
        (7, []),
    ]


async def test_a_release_says_what_is_owed(coordinator: Coordinator, store: ScriptedJobStore) -> None:
    async with coordinator.lease:
        coordinator.deliveries.expect(7)
        coordinator.deliveries.settle("c0")

    [release] = store.released
    assert (release.traced_revision, release.traced_coordinator_ids) == (6, ["c0"])


# --- the flows of others ---------------------------------------------------------------------------------------------


async def test_flows_of_a_coordinator_that_stands_still_are_taken_up_after_the_lease_time(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 9, "f1", "f2")
    async with coordinator.recovery, coordinator.lease:
        begun = clock.monotonic()
        await pass_time(clock, lambda: coordinator.running, sleepers=2)
        assert LEASE_SECONDS <= clock.monotonic() - begun < LEASE_SECONDS + 1
        await until(lambda: coordinator.deaths and clock.sleeping == 2)  # and nothing more is done about it

    assert coordinator.deaths == 1
    assert coordinator.running == ["f1", "f2"]
    assert store.claims.count(("c0", 9)) == 2  # until none came
    assert store.script.asked["LoadFlows"] == 1


async def test_flows_of_a_coordinator_that_stopped_cleanly_are_taken_up_at_once(
    coordinator: Coordinator, store: ScriptedJobStore
) -> None:
    another(store, 9, "f1", released=True)
    async with coordinator.recovery, coordinator.lease:
        await until(lambda: coordinator.running)


async def test_a_coordinator_that_renews_keeps_its_flows(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 0, "f1")
    async with coordinator.recovery, coordinator.lease:
        for counter in range(10):
            another(store, counter)
            await pass_time(clock, lambda counter=counter: store.leases["c1"].counter == counter + 2, sleepers=2)

    assert coordinator.running == []
    assert "c0" not in {owner for owner, _ in store.claims}


async def test_many_flows_are_claimed_and_loaded_in_batches(coordinator: Coordinator, store: ScriptedJobStore) -> None:
    flows = [f"f{number}" for number in range(250)]
    another(store, 9, *flows, released=True)
    async with coordinator.recovery, coordinator.lease:
        await until(lambda: coordinator.deaths)

    assert coordinator.running == flows
    assert store.script.asked["LoadFlows"] == 3


async def test_flows_without_an_owner_are_taken_up_at_the_start_and_now_and_then(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.flows[""] = ["f1"]
    async with coordinator.recovery, coordinator.lease:
        await until(lambda: coordinator.running == ["f1"] and clock.sleeping == 2)  # all that there was is claimed
        store.flows[""] = ["f2"]
        await turns()
        assert coordinator.running == ["f1"]
        begun = clock.monotonic()
        await pass_time(clock, lambda: coordinator.running == ["f1", "f2"], step=0.5, sleepers=2)
        assert clock.monotonic() - begun <= ORPHAN_SECONDS + 1


async def test_flows_whose_claim_was_not_answered_are_found_among_our_own(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 9, "f1", "f2", released=True)
    store.flows["c1"] = ["begun here"]
    coordinator.running = ["begun here"]
    store.script.fail("ClaimFlows", SILENCE)  # after it was done
    async with coordinator.recovery, coordinator.lease:
        await pass_time(clock, lambda: coordinator.deaths, sleepers=2)

    assert coordinator.running == ["begun here", "f1", "f2"]
    assert ("c1", 0) in store.claims


async def test_claimed_flows_are_loaded_however_long_the_jobstore_is_away(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 9, "f1", released=True)
    store.script.fail("LoadFlows", SILENCE, times=20)
    async with coordinator.recovery, coordinator.lease:
        await pass_time(clock, lambda: coordinator.running, sleepers=2)

    assert coordinator.running == ["f1"]


# --- the spans that others owed --------------------------------------------------------------------------------------


async def test_spans_that_a_dead_coordinator_owed_are_told(coordinator: Coordinator, store: ScriptedJobStore) -> None:
    another(store, 9, "f1", released=True)
    store.untraced["c0"] = [f"ended {number}" for number in range(150)]
    async with coordinator.recovery, coordinator.lease:
        await until(lambda: coordinator.told[-1:] == ["all of c0"])

    assert coordinator.told == [*store.untraced["c0"], "all of c0"]
    assert coordinator.running == ["f1"]


async def test_spans_are_told_of_though_the_answer_to_the_claim_was_lost(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 9, "f1", released=True)
    store.untraced["c0"] = ["ended"]
    store.script.fail("ClaimFlows", SILENCE)  # after it was done
    async with coordinator.recovery, coordinator.lease:
        await pass_time(clock, lambda: coordinator.told, sleepers=2)

    assert coordinator.told == ["ended", "all of c0"]


@pytest.mark.parametrize("call", ["ListUntracedFlows", "LoadFlows"])
async def test_spans_that_cannot_be_told_of_now_are_told_of_later(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock, call: str
) -> None:
    another(store, 9, released=True)
    store.untraced["c0"] = ["ended"]
    store.script.fail(call, failed_precondition("NOT_NOW", "as the test wants it"))
    async with coordinator.recovery, coordinator.lease:
        await pass_time(clock, lambda: coordinator.told, sleepers=2)

    assert coordinator.told == ["ended", "all of c0"]


async def test_much_that_is_to_be_told_keeps_no_flow_waiting(
    coordinator: Coordinator, store: ScriptedJobStore, clock: ManualClock
) -> None:
    another(store, 9, released=True)
    store.untraced["c0"] = ["ended"]
    store.script.hold("ListUntracedFlows")
    async with coordinator.recovery, coordinator.lease:
        await until(lambda: store.script.asked["ListUntracedFlows"])
        store.leases["c2"] = jobstore_pb2.Lease(coordinator_id="c2", counter=1, released=True)
        store.flows["c2"] = ["f1"]
        await pass_time(clock, lambda: coordinator.running, sleepers=2)

    assert coordinator.running == ["f1"]
