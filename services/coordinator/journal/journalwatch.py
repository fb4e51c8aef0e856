"""What the jobstore tells coordinators: entities as they change, and intents for flows.

Reconnecting is connecting: the stream resumes after the last complete revision, and opens with a snapshot when that is
no longer kept. A snapshot does not say what is gone, so the hosts that were known and are not in it are passed on as
removed: whoever listens hears of changes only and needs no second way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import grpc

from chassis import logs
from chassis.clock import Clock
from chassis.errors import WaybillError
from coordinator.retries import Backoff, verdict
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

log = logs.get_logger(__name__)

HeardEntities = Callable[[Sequence[jobs_pb2.Entity]], None]
HeardRequests = Callable[[Sequence[jobstore_pb2.FlowRequest]], None]
HeardWakes = Callable[[Sequence[jobstore_pb2.FlowWake]], None]


class WatchPosition:
    """How far the watch has come, and which hosts it has shown. Pure."""

    def __init__(self) -> None:
        self.revision = 0
        """Complete up to here; 0: nothing is, the next stream opens with a snapshot."""
        self._hosts: set[str] = set()
        self._in_snapshot: set[str] | None = set()  # None once the snapshot is complete

    def begin(self) -> None:
        """A stream opens at `revision`."""
        self._in_snapshot = set() if self.revision == 0 else None

    def forget(self) -> None:
        """The revision is not kept, or not of this store: the next stream opens with a snapshot."""
        self.revision = 0

    def heard(self, message: jobstore_pb2.JournalWatchResponse) -> Sequence[jobs_pb2.Entity]:
        """Takes a message and returns the entities to pass on: its own, and the hosts that a snapshot shows gone."""
        for entity in message.entities:
            if entity.entity_type == jobs_pb2.ENTITY_TYPE_HOST:
                self._host(entity)
        entities: Sequence[jobs_pb2.Entity] = message.entities
        if message.snapshot_done and self._in_snapshot is not None:
            gone = self._hosts - self._in_snapshot
            self._hosts -= gone
            self._in_snapshot = None
            entities = [*entities, *map(_removed_host, sorted(gone))]
        if self._in_snapshot is None and message.revision:
            self.revision = message.revision
        return entities

    def _host(self, entity: jobs_pb2.Entity) -> None:
        if entity.version == 0:
            self._hosts.discard(entity.entity_id)
        else:
            self._hosts.add(entity.entity_id)
            if self._in_snapshot is not None:
                self._in_snapshot.add(entity.entity_id)


def _removed_host(host_id: str) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id=host_id)


class JournalWatch:
    """Keeps the stream open and passes on what it says."""

    def __init__(
        self, stub: jobstore_pb2_grpc.JournalStub, coordinator_id: str, clock: Clock, rng: random.Random
    ) -> None:
        self._stub = stub
        self._coordinator_id = coordinator_id
        self._clock = clock
        self._position = WatchPosition()
        self._pauses = Backoff(rng)
        self._entity_listeners: list[HeardEntities] = []
        self._request_listeners: list[HeardRequests] = []
        self._wake_listeners: list[HeardWakes] = []
        self.first_snapshot = asyncio.Event()

    def on_entities(self, heard: HeardEntities) -> None:
        self._entity_listeners.append(heard)

    def on_requests(self, heard: HeardRequests) -> None:
        self._request_listeners.append(heard)

    def on_wakes(self, heard: HeardWakes) -> None:
        self._wake_listeners.append(heard)

    async def run(self) -> None:
        """Watches for ever."""
        while True:
            try:
                await self._follow()
            except grpc.aio.AioRpcError as error:
                if refusal := verdict(error):
                    self._refused(refusal)
            await self._clock.sleep(self._pauses.next())

    async def _follow(self) -> None:
        self._position.begin()
        request = jobstore_pb2.JournalWatchRequest(
            coordinator_id=self._coordinator_id, resume_revision=self._position.revision
        )
        async for message in self._stub.Watch(request):
            self._pauses.reset()
            self._pass_on(message)

    def _pass_on(self, message: jobstore_pb2.JournalWatchResponse) -> None:
        if entities := self._position.heard(message):
            for heard_entities in self._entity_listeners:
                heard_entities(entities)
        if message.flow_requests:
            for heard_requests in self._request_listeners:
                heard_requests(message.flow_requests)
        if message.wakes:
            for heard_wakes in self._wake_listeners:
                heard_wakes(message.wakes)
        if message.snapshot_done:
            self.first_snapshot.set()

    def _refused(self, refusal: WaybillError) -> None:
        """Starts over: compacted, another store's, or from the future are all answered by a snapshot."""
        log.warning("journal watch starts over", reason=refusal.reason, revision=self._position.revision)
        self._position.forget()
