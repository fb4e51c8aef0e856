"""Which VMs are where, as the store knows it.

Of use for commands that plan for hosts. What it says may be old when it is acted upon: a host may refuse, a VM may have
gone, and whoever asked must be able to bear that.

How many VMs each host has is asked at most once in a while. What was given out meanwhile is added, so that many that
are placed at once do not all go to the host that was empty before the first of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import grpc

from chassis.clock import Clock
from chassis.errors import failed_precondition, unavailable
from coordinator import wire
from coordinator.hosts.hostlink import HostAway
from coordinator.hosts.hosts import Hosts
from coordinator.retries import verdict
from coordinator.world import Entity
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

ASK_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 1.0
"""For how long the numbers of VMs are good."""
_PAGE: Final = 1000
_OVER: Final = jobs_pb2.TASK_STATE_FINISHED


class Directory:
    """See the module."""

    def __init__(self, store: jobstore_pb2_grpc.JobStoreStub, hosts: Hosts, clock: Clock) -> None:
        self._store = store
        self._hosts = hosts
        self._clock = clock
        self._loads: Counter[str] = Counter()
        self._asked: float | None = None  # when

    async def vms_on(self, host_id: str) -> list[Entity]:
        """Returns the VMs that were last seen on a host and not down, by id. Raises UNAVAILABLE."""
        return await self._list(f'host = "{quotable(host_id)}" AND state != "DOWN"')

    async def tasks_on(self, host_id: str) -> list[str]:
        """Returns the tasks that run on a host, in words: it says so itself. Raises HOST_UNREACHABLE."""
        link = self._hosts.link(host_id)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answer = await link.ask(link.stub.GetAllTasksInfo, hostagent_pb2.GetAllTasksInfoRequest())
        except (HostAway, TimeoutError) as error:
            message = f"host {host_id} cannot be asked what it does"
            raise failed_precondition("HOST_UNREACHABLE", message, host_id=host_id) from error
        running = [info for info in answer.infos if not info.call and info.status.state != _OVER]
        return [f"{info.spec.verb} ({info.spec.task_id})" for info in running]

    async def loads(self) -> Counter[str]:
        """Returns how many VMs that are not down each host has. Raises UNAVAILABLE."""
        now = self._clock.monotonic()
        if self._asked is None or now - self._asked >= FRESH_SECONDS:
            self._asked = now
            vms = await self._list('state != "DOWN"')
            self._loads = Counter(vm.observed.host_id for vm in vms if vm.observed.state)
        return self._loads

    def given(self, host_id: str) -> None:
        """A VM is going to be on a host."""
        self._loads[host_id] += 1

    async def _list(self, filter: str) -> list[Entity]:
        request = jobstore_pb2.ListEntitiesRequest(entity_type=jobs_pb2.ENTITY_TYPE_VM, filter=filter, page_size=_PAGE)
        found: list[Entity] = []
        while True:
            try:
                page = await self._store.ListEntities(request, timeout=ASK_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise verdict(error) or unavailable(f"VMs cannot be listed: {error.details()}") from error
            found += map(wire.entity_from, page.entities)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def quotable(text: str) -> str:
    """A text as it stands between the quotation marks of a filter."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("*", "\\*")
