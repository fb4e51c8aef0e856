"""Starts a coordinator: `python -m coordinator`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from chassis import logs
from chassis.background import Background
from chassis.channels import open_channel
from chassis.clock import SystemClock, Uuid7Ids
from chassis.metrics import open_metrics
from chassis.policy import load as load_policy
from chassis.principal import warn_if_open
from chassis.server import Mount, end_process, run, serve
from chassis.settings import load
from chassis.tracing import open_tracing
from coordinator import wire
from coordinator.commands.base import Registry
from coordinator.engine.directory import Directory
from coordinator.engine.engine import Engine, going_down
from coordinator.hosts.hosts import Hosts
from coordinator.journal.journal import Journal
from coordinator.monitor.monitor import Monitor
from coordinator.permissions import PermittedCoordinator, unknown_commands
from coordinator.recovery.recovery import Lease, Recovery
from coordinator.service import CoordinatorService
from coordinator.settings import Settings
from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc

log = logs.get_logger(__name__)

DRAIN_SECONDS = 2.0  # for what hosts have forgotten and reported to be written, too
JOURNAL_MESSAGE_MIB = 64  # one commit of a flow with thousands of children


async def main(settings: Settings) -> None:
    """Serves until the process is asked to end or its lease is lost."""
    logs.configure("coordinator", level=settings.log_level)
    policy = load_policy(settings.policy_file)
    warn_if_open(policy, settings.listen, "COORDINATOR_POLICY_FILE")
    clock, ids, rng = SystemClock(), Uuid7Ids(), random.Random()
    coordinator_id = ids.new()
    registry = Registry.load()
    if unknown := unknown_commands(policy, registry):
        log.warning("the policy file names commands that are not here", commands=unknown)
    ready = asyncio.Event()
    async with (
        open_metrics(settings.metrics_listen, clock) as metrics,
        open_channel(settings.jobstore, max_message_mib=JOURNAL_MESSAGE_MIB, sticky=True) as writing,
        open_channel(settings.jobstore) as reading,
        Journal(jobstore_pb2_grpc.JournalStub(writing), coordinator_id, clock, rng) as journal,
        Hosts(
            clock,
            rng,
            settings.poll_seconds,
            lambda report: engine.task_reported(report),
            journal.cleared,
            coordinator_id,
            stalled=lambda task_id, seconds: engine.task_stalled(task_id, seconds),
            stall_seconds=settings.stall_seconds,
            outlived=lambda host_id, task_id, verb: journal.note(wire.leftover(host_id, task_id, verb)),
        ) as hosts,
        Background() as background,
        open_tracing(settings.traces_endpoint, "waybill-coordinator") as tracing,
    ):
        store = jobstore_pb2_grpc.JobStoreStub(reading)
        directory = Directory(store, hosts, clock)
        engine = Engine(
            journal,
            hosts,
            registry,
            background,
            clock,
            ids,
            rng,
            tracing=tracing,
            directory=directory,
            plan_seconds=settings.plan_seconds,
        )
        monitor = Monitor(journal, store, hosts, clock, rng, coordinator_id=coordinator_id)
        recovery = Recovery(
            journal,
            clock,
            rng,
            coordinator_id=coordinator_id,
            lease_seconds=settings.lease_seconds,
            on_flows=engine.flows_claimed,
            on_death=monitor.look_around,
            on_untraced=engine.ended_untold,
            on_debt_told=engine.debt_told,
            is_running=engine.is_running,
        )
        lease = Lease(
            journal,
            clock,
            rng,
            lease_seconds=settings.lease_seconds,
            address=settings.listen,
            on_lost=lambda why: give_up(engine, why),
            on_leases=recovery.leases_seen,
            deliveries=engine.deliveries,
        )
        metrics.add(engine.metrics, journal.metrics, hosts.metrics, lease.metrics)
        background.start(coordinate(journal, engine, lease, monitor, recovery, ready), "coordinate")
        parts = (engine, registry, store, ids)
        service = CoordinatorService(*parts) if policy.is_open else PermittedCoordinator(policy, *parts)
        mount = Mount("waybill.v1.Coordinator", service, coordinator_pb2_grpc.add_CoordinatorServicer_to_server)
        await serve(
            settings.listen,
            [mount],
            ready=until(ready),
            before_stop=lambda: let_go(engine, journal),
            observers=[tracing.observer, *metrics.observers],
        )
        await journal.drain(DRAIN_SECONDS)


async def coordinate(
    journal: Journal, engine: Engine, lease: Lease, monitor: Monitor, recovery: Recovery, ready: asyncio.Event
) -> None:
    """Holds the lease, and with it everything that needs one, until cancelled."""
    engine.start()
    await journal.first_snapshot.wait()
    async with lease, monitor, recovery:
        engine.open()
        ready.set()
        await asyncio.Event().wait()


async def let_go(engine: Engine, journal: Journal) -> None:
    """Answers all who wait, before their calls are broken off: with what is being written, or that they ask again."""
    await journal.drain(DRAIN_SECONDS)
    engine.stop(going_down())


def give_up(engine: Engine, why: str) -> None:
    """The lease is lost: nothing that waits here will come about here."""
    engine.stop(going_down())
    end_process(f"lease lost: {why}")


def until(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    """Waits for an event."""

    async def wait() -> None:
        await event.wait()

    return wait


if __name__ == "__main__":
    run(main(load(Settings)))
