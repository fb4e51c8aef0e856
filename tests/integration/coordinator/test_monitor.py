"""The monitor between a host that says what it sees and the jobstore that it is written to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.integration.coordinator.far_end import SILENCE, ScriptedHost, ScriptedJobStore, pass_time, turns, until

from chassis.clock import ManualClock
from chassis.server import Server
from coordinator.hosts.hosts import Hosts
from coordinator.journal.journal import Journal
from coordinator.monitor.hostwatch import UNREACHABLE_SECONDS
from coordinator.monitor.monitor import Monitor
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

HOST, VM = jobs_pb2.ENTITY_TYPE_HOST, jobs_pb2.ENTITY_TYPE_VM
SWEEP_SECONDS = 100.0
CLAIM_SECONDS = 30.0


@pytest.fixture
async def server(host: ScriptedHost) -> AsyncIterator[Server]:
    async with host.serve() as server:
        yield server


@pytest.fixture
async def monitor(
    store: ScriptedJobStore, store_channel: grpc.aio.Channel, server: Server, clock: ManualClock, rng: random.Random
) -> AsyncIterator[Monitor]:
    """A monitor that owns host h1."""
    store.hosts = ["h1"]
    store.snapshot = [a_host(server.address)]
    journal = Journal(jobstore_pb2_grpc.JournalStub(store_channel), "c1", clock, rng)
    hosts = Hosts(clock, rng, 10.0, lambda report: None, journal.cleared, "c1")
    journal.on_entities(lambda entities: [hosts.learn(entity) for entity in entities] and None)
    monitor = Monitor(
        journal,
        jobstore_pb2_grpc.JobStoreStub(store_channel),
        hosts,
        clock,
        rng,
        coordinator_id="c1",
        claim_seconds=CLAIM_SECONDS,
        sweep_seconds=SWEEP_SECONDS,
    )
    async with journal, hosts, monitor:
        yield monitor


def a_host(address: str, host_id: str = "h1", version: int = 1) -> jobs_pb2.Entity:
    entity = jobs_pb2.Entity(entity_type=HOST, entity_id=host_id, version=version)
    entity.declared["address"] = address
    return entity


def an_observation(name: str, state: str, number: int) -> hostagent_pb2.Observation:
    return hostagent_pb2.Observation(
        entity_type=HOST if name == "h1" else VM, entity_id=name, state=state, number=number
    )


def say(host: ScriptedHost, *observations: hostagent_pb2.Observation) -> None:
    host.listeners.publish(hostagent_pb2.WatchEventsResponse(observations=observations, agent=host.agent))


def observed(store: ScriptedJobStore) -> list[tuple[str, str, int]]:
    """What was written, in order."""
    return [
        (row.entity.entity_id, row.observed.state, row.observed.number)
        for request in store.commits
        for row in request.observations
    ]


async def listening(host: ScriptedHost, clock: ManualClock) -> None:
    await pass_time(clock, lambda: len(host.listeners))


@pytest.mark.usefixtures("monitor")
async def test_what_a_host_sees_is_written(host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock) -> None:
    await listening(host, clock)
    say(host, an_observation("h1", "UP", 1), an_observation("v1", "POWERING_UP", 2))
    await until(lambda: len(observed(store)) == 2)
    say(host, an_observation("v1", "UP", 3))
    await until(lambda: len(observed(store)) == 3)

    assert observed(store) == [("h1", "UP", 1), ("v1", "POWERING_UP", 2), ("v1", "UP", 3)]
    last = store.commits[-1].observations[0].observed
    assert (last.host_id, last.incarnation) == ("h1", "i1")


@pytest.mark.usefixtures("monitor")
async def test_a_stream_that_opens_again_writes_only_what_is_new(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock
) -> None:
    host.seen = [an_observation("v1", "POWERING_UP", 1)]
    await listening(host, clock)
    await until(lambda: observed(store))
    host.listeners.publish(SILENCE)
    await until(lambda: not len(host.listeners))
    host.seen = [an_observation("v1", "POWERING_UP", 1), an_observation("v2", "UP", 2)]
    await pass_time(clock, lambda: len(observed(store)) > 1)

    assert observed(store) == [("v1", "POWERING_UP", 1), ("v2", "UP", 2)]


@pytest.mark.usefixtures("monitor")
async def test_a_vm_that_the_store_says_is_here_and_the_host_does_not_show_is_down(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock
) -> None:
    host.seen, host.newest_number = [an_observation("v1", "UP", 2)], 8
    store.vms = [jobs_pb2.Entity(entity_type=VM, entity_id=vm_id) for vm_id in ("v1", "v2")]
    await pass_time(clock, lambda: len(observed(store)) == 2)

    assert observed(store) == [("v1", "UP", 2), ("v2", "DOWN", 8)]
    assert store.filters == ['host = "h1" AND state != "DOWN"']


async def test_a_host_that_is_silent_for_long_is_unreachable_until_it_speaks(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock, server: Server, monitor: Monitor
) -> None:
    host.seen = [an_observation("h1", "UP", 1), an_observation("v1", "UP", 2)]
    await listening(host, clock)
    await until(lambda: len(observed(store)) == 2)
    await server.stop(0)
    begun = clock.monotonic()
    await pass_time(clock, lambda: len(observed(store)) == 3, step=0.5)
    assert clock.monotonic() - begun >= UNREACHABLE_SECONDS

    async with host.serve(server.address):
        await pass_time(clock, lambda: len(observed(store)) == 4, step=0.5)
    assert observed(store)[2:] == [("h1", "UNREACHABLE", 1), ("h1", "UP", 1)]


@pytest.mark.usefixtures("monitor")
async def test_leftovers_are_cleared_when_a_host_becomes_ours(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.leftovers = {"h1": ["t1", "t2"]}
    await pass_time(clock, lambda: not store.leftovers["h1"])

    assert host.cleared == [["t1", "t2"]]


async def test_leftovers_are_looked_for_when_another_coordinator_is_gone_and_now_and_then(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock, monitor: Monitor
) -> None:
    await until(lambda: store.script.asked["ListUnclearedTasks"])
    store.leftovers = {"h1": ["t1"]}
    await turns()
    monitor.look_around()
    await pass_time(clock, lambda: not store.leftovers["h1"])

    store.leftovers = {"h1": ["t2"]}
    begun = clock.monotonic()
    await pass_time(clock, lambda: not store.leftovers["h1"], step=1.0, sleepers=2)
    assert SWEEP_SECONDS / 2 <= clock.monotonic() - begun <= SWEEP_SECONDS + 5


@pytest.mark.usefixtures("monitor")
async def test_a_host_that_is_declared_later_is_claimed_at_once(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock
) -> None:
    await until(lambda: len(store.watchers))
    await until(lambda: store.script.asked["ClaimHosts"])
    other = ScriptedHost("h2")
    async with other.serve() as server:
        store.hosts = ["h1", "h2"]
        store.watchers.publish(jobstore_pb2.JournalWatchResponse(entities=[a_host(server.address, "h2")], revision=101))
        await until(lambda: len(other.listeners))


@pytest.mark.usefixtures("monitor")
async def test_a_host_that_is_not_ours_any_more_is_left_alone(
    host: ScriptedHost, store: ScriptedJobStore, clock: ManualClock
) -> None:
    await listening(host, clock)
    store.hosts = []
    await pass_time(clock, lambda: not len(host.listeners), step=1.0)
