"""RemoveImage: removes a disk's image from its host, and with it the disk."""

from coordinator.commands.base import DISK, VM, Command, EntityId, command, exclusive
from coordinator.plan import Plan, nothing, task
from coordinator.rows import Cancel, LockKey, Severity
from coordinator.world import Entity, World


@command(
    "RemoveImage",
    cancel=Cancel.FINISH_FORWARD,
    description="Removing the image of disk ${disk}",
    categories=["storage"],
)
class RemoveImage(Command):
    """Removes a disk's image from its host, and with it the disk. An image that is missing counts as removed."""

    disk_id: EntityId
    detach: bool = False
    """Also takes it from its VM, which stays."""

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id)

    async def execute(self, world: World) -> Plan:
        disk = await world.find(DISK, self.disk_id)
        host_id = disk.declared.get("host_id")
        if not disk.exists or not host_id:
            return nothing()
        volume_id = disk.declared.get("volume_id", self.disk_id)
        return task(host_id, "deleteImage", {"volume_id": volume_id}, entity=disk.ref)

    async def end_successfully(self, world: World) -> None:
        disk = await world.find(DISK, self.disk_id)
        if self.detach and (vm_id := disk.declared.get("vm_id")):
            self._detach(world, await world.find(VM, vm_id))
        world.remove(disk)

    def _detach(self, world: World, vm: Entity) -> None:
        disk_ids = vm.declared.get("disk_ids", [])
        if vm.exists and self.disk_id in disk_ids:
            world.change(vm, disk_ids=[each for each in disk_ids if each != self.disk_id])

    async def end_with_failure(self, world: World) -> None:
        disk = await world.find(DISK, self.disk_id)
        if not disk.exists:
            return
        world.change(disk, status="ILLEGAL")
        where = f"volume {disk.declared.get('volume_id', self.disk_id)} on host {disk.declared.get('host_id', '?')}"
        message = f"disk {disk.title} ({self.disk_id}) is ILLEGAL: its image was not removed; {where} may remain"
        world.tell("DISK_ILLEGAL", message, severity=Severity.ERROR, entity=disk.ref)
