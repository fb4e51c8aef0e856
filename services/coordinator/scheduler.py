"""Which host is to take a VM. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.world import Entity


def is_fit(host: Entity) -> bool:
    """Tells whether a host takes VMs: it was last seen up, and nothing is being done to it."""
    return host.observed.state == "UP" and host.status == "OK"


def pick_host(
    hosts: Iterable[Entity],
    loads: Mapping[str, int],
    *,
    excluded: Collection[str] = (),
    preferred: str = "",
) -> str | None:
    """Returns the id of the host that a VM goes to, None if there is none.

    `loads` are the VMs on each host by its id. The preferred one if it is fit, else the one with the fewest; of several
    the first by its id.
    """
    fit = {host.ref.entity_id for host in hosts if is_fit(host)}.difference(excluded)
    if preferred in fit:
        return preferred
    return min(fit, key=lambda host_id: (loads.get(host_id, 0), host_id), default=None)
