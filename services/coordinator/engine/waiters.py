"""The flows here that wait before they begin: push to wake, poll to be safe.

The store's watch says when there is news for one (`jobstore/feed/waiting.py`). Beneath that they are looked at now and
then, and once, at once, when they are taken up: what came while a flow was on its way from its rows found nobody here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError
from coordinator import wire
from coordinator.flow import events as ev
from coordinator.journal.journal import Journal
from waybill.v1 import jobstore_pb2

log = logs.get_logger(__name__)

LOOK_SECONDS: Final = 10.0
FLOWS_AT_ONCE: Final = 100

HeardRequests = Callable[[Sequence[jobstore_pb2.FlowRequest]], None]


class Waiter(Protocol):
    """What it needs of an actor."""

    dropped: bool

    @property
    def flow_command_id(self) -> str: ...
    @property
    def is_waiting(self) -> bool: ...
    def post(self, event: ev.Event) -> None: ...


class Waiters:
    """See the module."""

    def __init__(self, journal: Journal, background: Background, clock: Clock, on_requests: HeardRequests) -> None:
        """`on_requests` is told of intents that are found beside, for they may have been missed, too."""
        self._journal = journal
        self._background = background
        self._clock = clock
        self._on_requests = on_requests
        self._waiting: dict[str, Waiter] = {}
        self._looking = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter, *, at_once: bool) -> None:
        """Looks after a flow that waits, for as long as it does."""
        self._waiting[waiter.flow_command_id] = waiter
        if at_once:
            self._background.start(self._look([waiter.flow_command_id]), "look after who was taken up")
        if not self._looking:
            self._looking = True
            self._background.start(self._look_now_and_then(), "look after who waits")

    def wake(self, wakes: Sequence[jobstore_pb2.FlowWake]) -> None:
        """Takes news from the store."""
        for wake in wakes:
            self._tell(wake.flow_command_id, wake.dependencies, locks_free=wake.locks_free)

    def _tell(self, flow_command_id: str, dependencies: Sequence[jobstore_pb2.Dependency], *, locks_free: bool) -> None:
        waiter = self._waiting.get(flow_command_id)
        if waiter is not None and not waiter.dropped:
            waiter.post(ev.Woken(wire.dependencies_from(dependencies), locks_free))

    async def _look_now_and_then(self) -> None:
        """Runs while anybody waits."""
        while self._waiting:
            await self._clock.sleep(LOOK_SECONDS)
            for flow, waiter in list(self._waiting.items()):
                if waiter.dropped or not waiter.is_waiting:
                    del self._waiting[flow]
            await self._look(list(self._waiting))
        self._looking = False

    async def _look(self, flow_command_ids: Sequence[str]) -> None:
        for first in range(0, len(flow_command_ids), FLOWS_AT_ONCE):
            try:
                flows = await self._journal.load_flows(flow_command_ids[first : first + FLOWS_AT_ONCE])
            except WaybillError as error:
                log.warning("nobody can be looked after now", reason=error.reason, message=error.message)
                return
            for flow in flows:
                self._tell(flow.flow_command_id, flow.dependencies, locks_free=flow.locks_free)
                self._on_requests(flow.requests)
