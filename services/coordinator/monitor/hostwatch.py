"""One host that is ours: what it sees is passed on, and what flows left there is cleared."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Final

import grpc

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError
from coordinator.doorbell import Doorbell
from coordinator.engine.directory import quotable
from coordinator.hosts.hostlink import HostAway, HostLink
from coordinator.hosts.hosts import Hosts
from coordinator.journal.journal import ASK_SECONDS, MOST_LEFTOVERS, Journal
from coordinator.monitor.sightings import Sightings
from coordinator.retries import Backoff, verdict
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

log = logs.get_logger(__name__)

UNREACHABLE_SECONDS: Final = 15.0
"""How long a host is silent before its observed state says so."""
NEXT_SWEEP_SECONDS: Final = 2.0
"""When leftovers are looked for again that were too many for once, or could not be asked for."""
_PAGE: Final = 1000


class HostWatch:
    """Listens to a host's events and clears its leftovers until it is ended."""

    def __init__(
        self,
        link: HostLink,
        journal: Journal,
        store: jobstore_pb2_grpc.JobStoreStub,
        hosts: Hosts,
        clock: Clock,
        rng: random.Random,
        *,
        coordinator_id: str,
        sweep_seconds: float,
    ) -> None:
        self._link = link
        self._journal = journal
        self._store = store
        self._hosts = hosts
        self._clock = clock
        self._rng = rng
        self._coordinator_id = coordinator_id
        self._sweep_seconds = sweep_seconds
        self._sightings = Sightings(link.host_id)
        self._silent_since: float | None = clock.monotonic()  # None while it speaks
        self._sweep_bell = Doorbell(clock)
        self._loops: list[asyncio.Task[None]] = []

    def begin(self, background: Background) -> None:
        """The host is ours."""
        self._loops = [
            background.start(self._listen_for_ever(), f"events of {self._link.host_id}"),
            background.start(self._sweep_for_ever(), f"leftovers on {self._link.host_id}"),
        ]

    def end(self) -> None:
        """The host is not ours any more."""
        for loop in self._loops:
            loop.cancel()

    def sweep_soon(self) -> None:
        """Something may have been left on the host."""
        self._sweep_bell.ring()

    # ---------------------------------------------------------------- observations

    async def _listen_for_ever(self) -> None:
        pauses = Backoff(self._rng, longest=5.0)
        while True:
            try:
                await self._listen(pauses)
            except HostAway:
                self._note_silence()
                await self._clock.sleep(pauses.next())

    async def _listen(self, pauses: Backoff) -> None:
        request = hostagent_pb2.WatchEventsRequest(watcher=self._coordinator_id)
        self._sightings.begin()
        async with aclosing(self._link.listen(self._link.stub.WatchEvents, request)) as messages:
            async for message in messages:
                pauses.reset()
                self._silent_since = None
                for row in self._sightings.heard(message):
                    self._journal.observe(row)
                if message.snapshot_done:
                    await self._note_absences()

    def _note_silence(self) -> None:
        """Says that the host is unreachable once it has been for long; of its VMs nobody knows, so nothing is said."""
        now = self._clock.monotonic()
        if self._silent_since is None:  # it spoke until now
            self._silent_since = now
        if now - self._silent_since >= UNREACHABLE_SECONDS and (row := self._sightings.unreachable()):
            log.warning("host is unreachable", host_id=self._link.host_id)
            self._journal.observe(row)

    async def _note_absences(self) -> None:
        """Finds the VMs that the store says are up here and that the host does not have."""
        for row in self._sightings.absent(await self._vms_said_to_be_up()):
            log.warning("a VM is not on its host any more", host_id=self._link.host_id, vm_id=row.entity.entity_id)
            self._journal.observe(row)

    async def _vms_said_to_be_up(self) -> list[jobs_pb2.Entity]:
        """Asks the store, for as long as it is away: nothing that is seen can be stored meanwhile."""
        pauses = Backoff(self._rng)
        while True:
            try:
                return await self._list_vms()
            except grpc.aio.AioRpcError as error:
                if refusal := verdict(error):
                    log.error("VMs cannot be listed", reason=refusal.reason, message=refusal.message)
                    return []
            await self._clock.sleep(pauses.next())

    async def _list_vms(self) -> list[jobs_pb2.Entity]:
        request = jobstore_pb2.ListEntitiesRequest(
            entity_type=jobs_pb2.ENTITY_TYPE_VM,
            filter=f'host = "{quotable(self._link.host_id)}" AND state != "DOWN"',
            page_size=_PAGE,
        )
        vms: list[jobs_pb2.Entity] = []
        while True:
            page = await self._store.ListEntities(request, timeout=ASK_SECONDS)
            vms += page.entities
            if not page.next_page_token:
                return vms
            request.page_token = page.next_page_token

    # ---------------------------------------------------------------- leftovers

    async def _sweep_for_ever(self) -> None:
        while True:
            await self._sweep_bell.wait(await self._sweep())

    async def _sweep(self) -> float:
        """Has the host forget what flows left there; returns when to look again, in seconds."""
        try:
            task_ids = await self._journal.uncleared_tasks(self._link.host_id)
        except WaybillError as error:
            log.warning("leftovers cannot be asked for now", host_id=self._link.host_id, reason=error.reason)
            return NEXT_SWEEP_SECONDS
        if task_ids:
            self._hosts.clear(self._link.host_id, task_ids)
        if len(task_ids) >= MOST_LEFTOVERS:
            return NEXT_SWEEP_SECONDS
        return self._sweep_seconds * (0.5 + self._rng.random() / 2)
