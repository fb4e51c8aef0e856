"""RemoveDisk: removes a disk with its image, and takes it from its VM."""

from coordinator.commands.base import DISK, VM, Command, EntityId, command, exclusive, shared
from coordinator.commands.remove_image import RemoveImage
from coordinator.plan import Plan, child
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World


@command(
    "RemoveDisk",
    cancel=Cancel.FINISH_FORWARD,
    description="Removing disk ${disk}",
    categories=["storage"],
    by_entity=True,
)
class RemoveDisk(Command):
    """Removes a disk with its image, and takes it from its VM."""

    disk_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id)

    async def validate(self, world: World) -> None:
        disk = await world.get(DISK, self.disk_id)
        vm = await world.find(VM, disk.declared.get("vm_id") or "?")
        if vm.exists and vm.observed.state not in ("", "DOWN"):
            message = f"disk {disk.title} is in use: VM {vm.title} is {vm.observed.state} on {vm.observed.host_id}"
            raise Refused("VM_IS_RUNNING", message, entity_type=VM, entity_id=vm.ref.entity_id)

    async def execute(self, world: World) -> Plan:
        disk = await world.get(DISK, self.disk_id)
        if vm_id := disk.declared.get("vm_id"):
            world.lock(shared(VM, vm_id))
        return child(
            RemoveImage(disk_id=self.disk_id, detach=True),
            step="DELETE_IMAGE",
            description=f"Deleting the image of disk {disk.title}",
            subjects=(disk.ref,),
        )
