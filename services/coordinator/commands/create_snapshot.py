"""CreateSnapshot: takes a snapshot of a disk."""

from coordinator.commands.base import DISK, SNAPSHOT, Command, EntityId, Name, command, exclusive
from coordinator.commands.disks import usable_disk
from coordinator.plan import Plan, task
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World


@command(
    "CreateSnapshot",
    cancel=Cancel.REVERT,
    description="Taking snapshot ${snapshot} of disk ${disk}",
    categories=["storage"],
)
class CreateSnapshot(Command):
    """Takes a snapshot of a disk."""

    disk_id: EntityId
    snapshot_id: EntityId
    name: Name = ""

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id) + exclusive(SNAPSHOT, self.snapshot_id)

    async def validate(self, world: World) -> None:
        await usable_disk(world, self.disk_id)
        if (await world.find(SNAPSHOT, self.snapshot_id)).exists:
            message = f"there is a snapshot {self.snapshot_id} already; choose another id"
            raise Refused("ENTITY_EXISTS", message, entity_type=SNAPSHOT, entity_id=self.snapshot_id)

    async def execute(self, world: World) -> Plan:
        disk = await world.get(DISK, self.disk_id)
        world.change(disk, status="LOCKED")
        snapshot = await world.find(SNAPSHOT, self.snapshot_id)
        world.change(snapshot, name=self.name, status="LOCKED", disk_id=self.disk_id)
        return task(
            disk.declared.get("host_id", ""),
            "createSnapshot",
            {"volume_id": disk.declared.get("volume_id", self.disk_id), "snapshot_id": self.snapshot_id},
            step="CREATE_SNAPSHOT",
            description=f"Taking snapshot {self.snapshot_id} of disk {disk.title}",
            entity=disk.ref,
        )

    async def end_successfully(self, world: World) -> None:
        disk = await world.find(DISK, self.disk_id)
        world.change(disk, status="OK", snapshot_ids=[*disk.declared.get("snapshot_ids", []), self.snapshot_id])
        world.change(await world.find(SNAPSHOT, self.snapshot_id), status="OK")
