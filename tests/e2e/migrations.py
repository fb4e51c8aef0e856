"""A running VM with a disk, the disk on its way to another host, and where it really is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.e2e.datacentre import DISK, DataCentre, assert_all_finished

from waybill.v1.jobs_pb2 import Job
from waybill_client.words import plain

STAGES = {
    "createSnapshot": "CREATE_SNAPSHOT",
    "cloneImageStructure": "CLONE_IMAGE_STRUCTURE",
    "replicateDiskStart": "REPLICATE_START",
    "syncImageData": "SYNC_IMAGE_DATA",
    "replicateDiskFinish": "REPLICATE_FINISH",
    "deleteImage": "DELETE_IMAGE",
    "mergeSnapshots": "MERGE_SNAPSHOTS",
}
"""The steps by their verbs, in order."""


async def a_running_vm(centre: DataCentre, vm_id: str) -> str:
    """Starts a VM on host-1 with a disk there; returns the disk's id."""
    await centre.declare_vm(vm_id)
    disk_id = f"{vm_id}-disk-0"
    parameters = {"disk_id": disk_id, "size_mb": 10, "host_id": "host-1", "vm_id": vm_id}
    assert_all_finished(
        [await centre.run("AddDisk", parameters), await centre.run("RunVm", {"vm_id": vm_id, "host_id": "host-1"})]
    )
    return disk_id


async def migrate(centre: DataCentre, disk_id: str) -> Job:
    """Begins to move a disk to host-2."""
    return await centre.client.run_command(
        "LiveMigrateDisk", {"disk_id": disk_id, "destination_host_id": "host-2"}, request_id=disk_id
    )


@dataclass
class Whereabouts:
    """Where a disk is: what the store says of it, and what the hosts have."""

    status: str
    declared_host: str
    volumes: dict[str, str] = field(default_factory=dict)
    """Legality by host."""
    snapshots: dict[str, list[str]] = field(default_factory=dict)
    writes_to: str = ""
    """The host to whose volume the VM writes; both, joined by +, while it is replicated."""


async def where_it_is(centre: DataCentre, disk_id: str) -> Whereabouts:
    """Finds a disk that was made on host-1 and may have been moved to host-2."""
    disk = await centre.entity(DISK, disk_id)
    assert disk is not None
    there = Whereabouts(disk.status, plain(disk.declared)["host_id"])
    details: dict[str, dict[str, Any]] = {}
    for host_id, host in centre.hosts.items():
        for thing in (await host.get_host()).objects:
            if (thing.kind, thing.object_id) == ("volume", disk_id) and thing.state != "GONE":
                there.volumes[host_id] = thing.state
                details[host_id] = plain(thing.details)
                there.snapshots[host_id] = list(details[host_id]["snapshots"])
    source = details.get("host-1")
    if source is None:
        there.writes_to = "host-2"
    elif source["replicating"]:
        there.writes_to = "host-1+host-2"
    else:
        there.writes_to = source["moved_to"] or "host-1"
    return there
