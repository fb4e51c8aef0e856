"""What commands on disks have in common."""

from coordinator.commands.base import DISK
from coordinator.world import Entity, Refused, World


async def usable_disk(world: World, disk_id: str) -> Entity:
    """Returns a disk that can be worked with. Raises ENTITY_NOT_FOUND, DISK_ILLEGAL, DISK_NOWHERE.

    One that another flow works on is not refused here: its lock does that, and names who holds it.
    """
    disk = await world.get(DISK, disk_id)
    if disk.status == "ILLEGAL":
        message = f"disk {disk.title} is ILLEGAL; remove it"
        raise Refused("DISK_ILLEGAL", message, entity_type=DISK, entity_id=disk_id)
    if not disk.declared.get("host_id"):
        raise Refused("DISK_NOWHERE", f"disk {disk.title} is on no host", entity_type=DISK, entity_id=disk_id)
    return disk
