"""The leases of the other coordinators, as one coordinator sees them. Pure.

    seen with a counter ─▶ standing ─── the counter moved: it lives, the clock starts anew
                              │
                              └─ unchanged for the lease time, or released ─▶ dead ─▶ taken over

Nobody's clock but our own monotonic one decides: how long *we* have seen the counter stand still. Whoever holds the
lease counted from before it renewed, so it has stopped itself by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from waybill.v1 import jobstore_pb2


@dataclass(slots=True)
class Standing:
    """Another coordinator's lease."""

    coordinator_id: str
    counter: int
    since: float  # when this counter was first seen, on our clock
    released: bool = False
    taken_over: bool = False  # at this counter

    def is_dead(self, now: float, lease_seconds: float) -> bool:
        return not self.taken_over and (self.released or now - self.since >= lease_seconds)


class LeaseBook:
    """Who holds leases, and for how long each has stood still."""

    def __init__(self, own_id: str, lease_seconds: float) -> None:
        self._own_id = own_id
        self._lease_seconds = lease_seconds
        self._others: dict[str, Standing] = {}

    def seen(self, leases: Iterable[jobstore_pb2.Lease], now: float) -> None:
        """Takes all leases as they are now; those that are not there any more are nobody's concern."""
        former, self._others = self._others, {}
        for lease in leases:
            if lease.coordinator_id != self._own_id:
                self._others[lease.coordinator_id] = _updated(former.get(lease.coordinator_id), lease, now)

    def dead(self, now: float) -> list[Standing]:
        """Returns those that are to be taken over."""
        return [other for other in self._others.values() if other.is_dead(now, self._lease_seconds)]

    def next_death(self, now: float) -> float:
        """Returns in how many seconds the next one is dead if nothing is heard of it; infinity if there is none."""
        deaths = (other.since + self._lease_seconds - now for other in self._others.values() if not other.taken_over)
        return max(0.0, min(deaths, default=float("inf")))


def _updated(standing: Standing | None, lease: jobstore_pb2.Lease, now: float) -> Standing:
    if standing is None or standing.counter != lease.counter:
        return Standing(lease.coordinator_id, lease.counter, now, lease.released)
    standing.released = lease.released
    return standing
