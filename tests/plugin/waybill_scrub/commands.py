"""ScrubDisk: has a disk's host read its volume from end to end, and repair what it can."""

from coordinator.commands.base import DISK, Command, EntityId, command, exclusive
from coordinator.plan import Plan, task
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World


@command("ScrubDisk", cancel=Cancel.REVERT, description="Scrubbing disk ${disk}", categories=["storage"])
class ScrubDisk(Command):
    """Reads a disk from end to end, and repairs what can be repaired."""

    disk_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id)

    async def validate(self, world: World) -> None:
        disk = await world.get(DISK, self.disk_id)
        if disk.status == "ILLEGAL":
            message = f"disk {disk.title} is ILLEGAL: there is nothing left to repair; remove it"
            raise Refused("DISK_ILLEGAL", message, entity_type=DISK, entity_id=self.disk_id)

    async def execute(self, world: World) -> Plan:
        disk = await world.get(DISK, self.disk_id)
        return task(
            disk.declared["host_id"],
            "scrubVolume",
            {"volume_id": disk.declared["volume_id"]},
            step="SCRUB_DISK",
            description=f"Scrubbing disk {disk.title}",
            entity=disk.ref,
        )

    async def end_successfully(self, world: World) -> None:
        disk = await world.get(DISK, self.disk_id)
        world.change(disk, scrubs=disk.declared.get("scrubs", 0) + 1)
