"""Ownership: our own lease, and the flows of those who lost theirs.

    Lease      take (counter 1) ─▶ renew, thrice a lease time ─▶ release at a clean stop
                                      └─ overdue, or refused ─▶ on_lost: the coordinator stops itself
    Recovery   a lease stands still for the lease time ─▶ claim its flows, batch by batch ─▶ load ─▶ on_flows

The renewal runs in the loop that does the work, so a loop that is stuck loses its lease; and it counts from before the
question was sent, so it gives up before anybody else may begin. A coordinator that was paused finds its renewal overdue
first thing, whatever else waits for it; what slips through is refused by its older epoch.

| when | answer |
| --- | --- |
| a renewal is not answered | the same counter again, until it is overdue |
| the answer to a claim is lost | some flows are ours and we do not know which: all that are ours are asked for |
| the jobstore is away while claimed flows are loaded | waited for: they are ours |
| the dead one was only slow | its counter has moved: nothing is claimed |
| flows of an owner without a lease | claimed at the start, when somebody died, and now and then |
| the dead one had not delivered all spans of its ended flows | told once more, beside the rest, for it may be much |
| we die before those are delivered | the store still has its debt, and names it to our heir |
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock
from chassis.errors import WaybillError, failed_precondition
from coordinator.deliveries import Deliveries
from coordinator.doorbell import Doorbell
from coordinator.journal.journal import Journal
from coordinator.metrics import LeaseTallies
from coordinator.recovery.leases import LeaseBook
from coordinator.retries import Backoff
from waybill.v1 import jobs_pb2, jobstore_pb2

log = logs.get_logger(__name__)

RELEASE_SECONDS: Final = 2.0
"""How long a clean stop waits for the release; without it the others wait for the lease time."""
ORPHAN_SECONDS: Final = 300.0
"""How often flows of owners without a lease are looked for."""
FLOWS_AT_ONCE: Final = 100
"""Claimed, and loaded."""
_UNFINISHED: Final = (jobs_pb2.EXECUTION_STATUS_PENDING, jobs_pb2.EXECUTION_STATUS_STARTED)


class Lease:
    """Our right to write. Held inside `async with`, unless `on_lost` says otherwise."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        rng: random.Random,
        *,
        lease_seconds: float,
        address: str,
        on_lost: Callable[[str], None],
        on_leases: Callable[[Sequence[jobstore_pb2.Lease]], None],
        deliveries: Deliveries | None = None,
    ) -> None:
        """`address`: where we listen. `on_lost` is told why, once; `on_leases` of all leases, at each renewal.

        `deliveries`: what is owed to the collector; the store is told with each renewal. None: nothing ever is.
        """
        self._journal = journal
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._address = address
        self._on_lost = on_lost
        self._on_leases = on_leases
        self._deliveries = deliveries or Deliveries(enabled=False)
        self._counter = 0  # of the last renewal that was answered
        self._held_from = 0.0  # when that renewal was sent
        self._pauses = Backoff(rng)
        self._background = Background()
        self.lost = False
        self.metrics = LeaseTallies(clock, held=lambda: self.is_held, renewed=lambda: self._held_from)

    async def __aenter__(self) -> Lease:
        """Takes the lease; waits for as long as the jobstore is away."""
        while not await self._renew(self._lease_seconds):
            if self.lost:
                raise failed_precondition("LEASE_LOST", "the lease was refused from the beginning")
            await self._clock.sleep(self._pauses.next())
        await self._background.__aenter__()
        self._background.start(self._renew_for_ever(), "lease")
        self._background.start(self._heed_journal(), "lease of the journal")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._background.__aexit__(kind, error, trace)
        finally:  # a process that is asked to end cancels us, and that goes on from the line above
            if not self.lost:
                await self._release()

    @property
    def is_held(self) -> bool:
        """Tells whether we may write, as far as we know."""
        return self._counter > 0 and not self.lost and not self.is_overdue

    @property
    def is_overdue(self) -> bool:
        """Tells whether others may think us dead: nothing may be done in our name any more."""
        return self._clock.monotonic() - self._held_from >= self._lease_seconds

    async def _renew_for_ever(self) -> None:
        pause = self._lease_seconds / 3
        while not self.lost:
            await self._clock.sleep(pause)
            if self.is_overdue:
                return self._lose("the renewal is overdue")
            left = self._held_from + self._lease_seconds - self._clock.monotonic()
            renewed = await self._renew(min(left, self._lease_seconds / 3))
            if self.is_overdue:
                return self._lose("the renewal came too late")
            pause = self._lease_seconds / 3 if renewed else self._pauses.next()
        return None

    async def _renew(self, seconds: float) -> bool:
        """Renews in one attempt; tells whether that was answered."""
        asked, traced, settled = self._clock.monotonic(), self._deliveries.mark, self._deliveries.settled
        try:
            leases = await self._journal.renew_lease(self._counter + 1, self._address, seconds, traced, settled)
        except WaybillError as error:
            if error.reason == "LEASE_LOST":
                self._lose(error.message)
            else:
                log.warning("the lease was not renewed", reason=error.reason, message=error.message)
            return False
        self._counter += 1
        self._held_from = asked
        self._pauses.reset()
        self._deliveries.known(settled)
        self._on_leases(leases)
        return True

    async def _heed_journal(self) -> None:
        """A commit may be told before a renewal is."""
        await self._journal.lease_lost.wait()
        self._lose("a commit was refused")

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            log.error("the lease is lost", why=why)
            self._on_lost(why)

    async def _release(self) -> None:
        try:
            await self._journal.release_lease(RELEASE_SECONDS, self._deliveries.mark, self._deliveries.settled)
        except WaybillError as error:
            log.warning("the lease was not released", reason=error.reason, message=error.message)


class Recovery:
    """Takes up the flows of coordinators that are gone."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        rng: random.Random,
        *,
        coordinator_id: str,
        lease_seconds: float,
        on_flows: Callable[[Sequence[jobstore_pb2.FlowRows]], None],
        on_death: Callable[[], None],
        on_untraced: Callable[[Sequence[jobstore_pb2.FlowRows]], None] = lambda flows: None,
        on_debt_told: Callable[[str], None] = lambda dead_coordinator_id: None,
        is_running: Callable[[str], bool] = lambda flow_command_id: False,
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> None:
        """`on_flows` takes claimed flows up. `on_death`: a coordinator is gone, its flows are claimed.

        `on_untraced` delivers the spans of flows that had ended, which the dead one may not have done; `on_debt_told`
        is told whose they were, by its id, after the last of them.

        `is_running` tells whether a flow of ours is at work already, by its id.
        """
        self._journal = journal
        self._clock = clock
        self._coordinator_id = coordinator_id
        self._on_flows = on_flows
        self._on_death = on_death
        self._on_untraced = on_untraced
        self._on_debt_told = on_debt_told
        self._is_running = is_running
        self._orphan_seconds = orphan_seconds
        self._leases = LeaseBook(coordinator_id, lease_seconds)
        self._bell = Doorbell(clock)
        self._orphans_due = clock.monotonic()
        self._in_doubt = False  # the answer to a claim was lost
        self._debts: asyncio.Queue[str] = asyncio.Queue()  # dead coordinators whose spans are ours to deliver
        self._rng = rng
        self._pauses = Backoff(rng)
        self._background = Background()

    async def __aenter__(self) -> Recovery:
        await self._background.__aenter__()
        self._background.start(self._recover(), "recovery")
        self._background.start(self._tell(), "spans of the dead")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.__aexit__(kind, error, trace)

    def leases_seen(self, leases: Sequence[jobstore_pb2.Lease]) -> None:
        """Takes all leases as a renewal showed them."""
        self._leases.seen(leases, self._clock.monotonic())
        self._bell.ring()

    async def _recover(self) -> None:
        while True:
            try:
                await self._take_over()
                self._pauses.reset()
            except WaybillError as error:
                log.warning("flows cannot be claimed now", reason=error.reason, message=error.message)
                await self._clock.sleep(self._pauses.next())
            else:
                await self._bell.wait(self._next())

    def _next(self) -> float:
        now = self._clock.monotonic()
        return min(self._leases.next_death(now), max(0.0, self._orphans_due - now))

    async def _take_over(self) -> None:
        if self._in_doubt:
            await self._load(await self._claim(self._coordinator_id, 0))
            self._in_doubt = False
        for other in self._leases.dead(self._clock.monotonic()):
            log.warning("a coordinator is gone", coordinator_id=other.coordinator_id, released=other.released)
            await self._claim_all(other.coordinator_id, other.counter)
            other.taken_over = True
            self._orphans_due = self._clock.monotonic()
            self._on_death()
        if self._clock.monotonic() >= self._orphans_due:
            await self._claim_all("", 0)
            self._orphans_due = self._clock.monotonic() + self._orphan_seconds

    async def _claim_all(self, coordinator_id: str, counter: int) -> None:
        while flow_command_ids := await self._claim(coordinator_id, counter):
            await self._load(flow_command_ids)

    async def _claim(self, coordinator_id: str, counter: int) -> list[str]:
        """Claims some flows. When it raises, nobody knows whether it did."""
        try:
            claimed = await self._journal.claim_flows(coordinator_id, counter, FLOWS_AT_ONCE)
        except WaybillError as error:
            self._in_doubt = self._in_doubt or error.reason != "LEASE_LOST"
            raise
        for dead in claimed.untraced_coordinator_ids:
            self._debts.put_nowait(dead)
        return list(claimed.flow_command_ids)

    async def _load(self, flow_command_ids: Sequence[str]) -> None:
        missing = [each for each in flow_command_ids if not self._is_running(each)]
        for first in range(0, len(missing), FLOWS_AT_ONCE):
            flows = await self._journal.load_flows(missing[first : first + FLOWS_AT_ONCE])
            unfinished = [flow for flow in flows if flow.job.status in _UNFINISHED]
            log.info("flows are taken up", count=len(unfinished))
            self._on_flows(unfinished)

    async def _tell(self) -> None:
        pauses = Backoff(self._rng)
        while True:
            dead = await self._debts.get()
            try:
                await self._tell_of(dead)
                pauses.reset()
            except WaybillError as error:
                log.warning("spans cannot be told of now", reason=error.reason, message=error.message)
                self._debts.put_nowait(dead)
                await self._clock.sleep(pauses.next())

    async def _tell_of(self, dead_coordinator_id: str) -> None:
        async for untraced in self._journal.untraced_flows(dead_coordinator_id):
            for first in range(0, len(untraced), FLOWS_AT_ONCE):
                self._on_untraced(await self._journal.load_flows(untraced[first : first + FLOWS_AT_ONCE]))
        self._on_debt_told(dead_coordinator_id)
