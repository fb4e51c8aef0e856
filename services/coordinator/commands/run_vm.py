"""RunVm: starts a VM; ends when the VM is seen up."""

from coordinator.commands.base import HOST, VM, Command, EntityId, command, exclusive
from coordinator.plan import EntityRef, Plan, call, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World

BOOT_SECONDS = 300.0


@command("RunVm", cancel=Cancel.BEFORE_START, description="Starting VM ${vm}", categories=["vm"])
class RunVm(Command):
    """Starts a VM on a host; ends when the VM is seen up."""

    vm_id: EntityId
    host_id: EntityId | None = None

    def locks(self) -> list[LockKey]:
        return exclusive(VM, self.vm_id)

    async def validate(self, world: World) -> None:
        vm = await world.get(VM, self.vm_id)
        if vm.observed.state not in ("", "DOWN"):
            message = f"VM {vm.title} is {vm.observed.state} on {vm.observed.host_id} already"
            raise Refused("VM_IS_RUNNING", message, entity_type=VM, entity_id=self.vm_id)
        if self.host_id:
            await world.get(HOST, self.host_id)
        elif not world.hosts_up():
            raise Refused("NO_HOST", f"no host is up that could run VM {vm.title}")

    async def execute(self, world: World) -> Plan:
        vm = await world.get(VM, self.vm_id)
        host_id = self.host_id or self._preferred(vm.declared.get("host_id", ""), world)
        arguments = {"vm_id": self.vm_id, "memory_mb": vm.declared.get("memory_mb", 1024)}
        return serially(
            [
                call(host_id, "createVm", arguments, entity=vm.ref),
                wait_for(
                    EntityRef(VM, self.vm_id), until=state("UP"), fails_if=state("DOWN", "ERROR"), deadline=BOOT_SECONDS
                ),
            ],
            step="START_VM",
            description=f"Starting VM {vm.title} on host {host_id}",
            subjects=(vm.ref,),
        )

    def _preferred(self, host_id: str, world: World) -> str:
        up = [host.ref.entity_id for host in world.hosts_up()]
        return host_id if host_id in up else up[0]
