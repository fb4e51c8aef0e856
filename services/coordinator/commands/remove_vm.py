"""RemoveVm: removes a VM and every disk image it owns."""

from coordinator.commands.base import VM, Command, EntityId, command, exclusive
from coordinator.commands.remove_all_vm_images import RemoveAllVmImages
from coordinator.plan import Plan, child, nothing
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World


@command("RemoveVm", cancel=Cancel.FINISH_FORWARD, description="Removing VM ${vm}", categories=["vm"])
class RemoveVm(Command):
    """Removes a VM and every disk image it owns."""

    vm_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(VM, self.vm_id)

    async def validate(self, world: World) -> None:
        vm = await world.get(VM, self.vm_id)
        if vm.observed.state not in ("", "DOWN"):
            message = f"VM {vm.title} is {vm.observed.state} on {vm.observed.host_id}; stop it first"
            raise Refused("VM_IS_RUNNING", message, entity_type=VM, entity_id=self.vm_id)

    async def execute(self, world: World) -> Plan:
        vm = await world.get(VM, self.vm_id)
        return child(RemoveAllVmImages(vm_id=self.vm_id)) if vm.declared.get("disk_ids") else nothing()

    async def end_successfully(self, world: World) -> None:
        world.remove(await world.find(VM, self.vm_id))

    end_with_failure = end_successfully  # the VM is gone either way; an image that stayed is ILLEGAL
