"""RemoveAllVmImages: removes the images of all disks of a VM, each whatever becomes of the others."""

from coordinator.commands.base import DISK, VM, Command, EntityId, command
from coordinator.commands.remove_image import RemoveImage
from coordinator.plan import EntityRef, Plan, child, concurrently
from coordinator.rows import Cancel
from coordinator.world import World


@command(
    "RemoveAllVmImages",
    cancel=Cancel.FINISH_FORWARD,
    description="Removing all images of VM ${vm_id}",
    categories=["storage"],
)
class RemoveAllVmImages(Command):
    """Removes the images of all disks of a VM."""

    vm_id: EntityId

    async def execute(self, world: World) -> Plan:
        vm = await world.get(VM, self.vm_id)
        disks = await world.find_all([EntityRef(DISK, disk_id) for disk_id in vm.declared.get("disk_ids", [])])
        return concurrently(
            child(
                RemoveImage(disk_id=disk.ref.entity_id),
                step="DELETE_IMAGE",
                description=f"Deleting the image of disk {disk.title}",
                subjects=(disk.ref,),
            )
            for disk in disks
        )
