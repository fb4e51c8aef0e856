"""StopVm: shuts a VM down; ends when the VM is seen down."""

from coordinator.commands.base import VM, Command, EntityId, command, exclusive
from coordinator.plan import EntityRef, Plan, call, nothing, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import World

SHUTDOWN_SECONDS = 300.0


@command("StopVm", cancel=Cancel.BEFORE_START, description="Stopping VM ${vm}", categories=["vm"])
class StopVm(Command):
    """Shuts a VM down; ends when the VM is seen down. One that is down already needs no host."""

    vm_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(VM, self.vm_id)

    async def validate(self, world: World) -> None:
        await world.get(VM, self.vm_id)

    async def execute(self, world: World) -> Plan:
        vm = await world.get(VM, self.vm_id)
        if vm.observed.state in ("", "DOWN"):
            return nothing(step="STOP_VM", description=f"VM {vm.title} is down already", subjects=(vm.ref,))
        host_id = vm.observed.host_id
        return serially(
            [
                call(host_id, "shutdownVm", {"vm_id": self.vm_id}, entity=vm.ref),
                wait_for(EntityRef(VM, self.vm_id), until=state("DOWN"), deadline=SHUTDOWN_SECONDS),
            ],
            step="STOP_VM",
            description=f"Stopping VM {vm.title} on host {host_id}",
            subjects=(vm.ref,),
        )
