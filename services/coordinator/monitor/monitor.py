"""Listens to the hosts that are ours, writes what they see into the observed fields, and clears what was left there.

    claim ─▶ for each host of ours: WatchEvents ─▶ Sightings ─▶ Journal.observe
      ▲                           └ leftovers of flows that are over ─▶ Hosts.clear
      └ a host was declared, another coordinator is gone, or (rarely) nothing happened for a while

A host has one listener among all coordinators (`host_claim`). Leftovers come to be only where a coordinator ends
between a flow's last commit and the clearing that follows it. So they are looked for when a host becomes ours and
when another coordinator is gone, within seconds; the slow round beneath is for what we have not thought of. An idle
system asks next to nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import TracebackType

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError
from coordinator.doorbell import Doorbell
from coordinator.hosts.hosts import Hosts
from coordinator.journal.journal import Journal
from coordinator.monitor.hostwatch import HostWatch
from waybill.v1 import jobs_pb2, jobstore_pb2_grpc

log = logs.get_logger(__name__)


class Monitor:
    """Sees to the hosts that are ours."""

    def __init__(
        self,
        journal: Journal,
        store: jobstore_pb2_grpc.JobStoreStub,
        hosts: Hosts,
        clock: Clock,
        rng: random.Random,
        *,
        coordinator_id: str = "",
        claim_seconds: float = 300.0,
        sweep_seconds: float = 10_800.0,
    ) -> None:
        """`claim_seconds`, `sweep_seconds`: the slow rounds beneath, for hosts that nobody owns and for leftovers."""
        self._journal = journal
        self._store = store
        self._hosts = hosts
        self._clock = clock
        self._rng = rng
        self._coordinator_id = coordinator_id
        self._claim_seconds = claim_seconds
        self._sweep_seconds = sweep_seconds
        self._background = Background()
        self._claim_bell = Doorbell(clock)
        self._ours: dict[str, HostWatch] = {}
        journal.on_entities(self._entities_changed)

    async def __aenter__(self) -> Monitor:
        await self._background.__aenter__()
        self._background.start(self._claim_for_ever(), "host claims")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.__aexit__(kind, error, trace)

    def look_around(self) -> None:
        """Another coordinator is gone: its hosts are to be had, and it may have left tasks on ours."""
        self._claim_bell.ring()
        for watch in self._ours.values():
            watch.sweep_soon()

    def _entities_changed(self, entities: Sequence[jobs_pb2.Entity]) -> None:
        hosts = (entity for entity in entities if entity.entity_type == jobs_pb2.ENTITY_TYPE_HOST)
        if any((host.entity_id in self._ours) != bool(host.version) for host in hosts):
            self._claim_bell.ring()

    async def _claim_for_ever(self) -> None:
        while True:
            try:
                self._own(await self._journal.claim_hosts())
            except WaybillError as error:
                log.warning("hosts cannot be claimed now", reason=error.reason, message=error.message)
            await self._claim_bell.wait(self._claim_seconds * (0.5 + self._rng.random() / 2))

    def _own(self, host_ids: Sequence[str]) -> None:
        """Begins with the hosts that became ours and ends with those that are not any more."""
        for host_id in self._ours.keys() - set(host_ids):
            self._ours.pop(host_id).end()
        for host_id in host_ids:
            if host_id not in self._ours:
                log.info("host is ours", host_id=host_id)
                self._ours[host_id] = self._watch(host_id)

    def _watch(self, host_id: str) -> HostWatch:
        watch = HostWatch(
            self._hosts.link(host_id),
            self._journal,
            self._store,
            self._hosts,
            self._clock,
            self._rng,
            coordinator_id=self._coordinator_id,
            sweep_seconds=self._sweep_seconds,
        )
        watch.begin(self._background)
        return watch
