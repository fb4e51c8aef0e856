"""RunVm: starts a VM; ends when the VM is seen up. What fails on one host is tried on another."""

from typing import Final

from coordinator.commands.base import HOST, VM, Command, EntityId, command, exclusive
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import Attempt, Plan, call, cleanup, instead, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import Entity, Refused, World

BOOT_SECONDS: Final = 300.0
CALL_SECONDS: Final = 60.0
"""For how long a host is asked that does not answer."""
MOST_HOSTS: Final = 3


@command("RunVm", cancel=Cancel.BEFORE_START, description="Starting VM ${vm}", categories=["vm"])
class RunVm(Command):
    """Starts a VM on a host, the named one or the least loaded; ends when the VM is seen up.

    If it fails there it is tried on others, at most three in all; each is shown as a START_VM step.
    """

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
        host_id = self.host_id or await world.pick_host(preferred=vm.declared.get("host_id", ""))
        if host_id is None:
            raise Refused("NO_HOST", f"no host is up that could run VM {vm.title}")
        return start_vm(vm, host_id)

    async def after_failure(self, world: World, failed: FailedAttempt) -> Attempt | None:
        if failed.error.reason == "VM_IS_RUNNING":
            return None  # somebody else's; hands off
        if failed.number > 1 and not failed.went_well("0"):
            return None  # it may still come up where it was tried before, and must not run twice
        tried = failed.hosts_tried()
        end_there = call(tried[-1], "destroyVm", {"vm_id": self.vm_id}, deadline=CALL_SECONDS)
        host_id = await world.pick_host(excluded=tried) if len(tried) < MOST_HOSTS else None
        if host_id is None:
            return cleanup(end_there)
        vm = await world.get(VM, self.vm_id)
        return instead(serially([end_there, start_vm(vm, host_id)]))


def start_vm(vm: Entity, host_id: str) -> Plan:
    """Plans to have a host start a VM, and to wait until it is up there."""
    arguments = {"vm_id": vm.ref.entity_id, "memory_mb": vm.declared.get("memory_mb", 1024)}
    return serially(
        [
            call(host_id, "createVm", arguments, entity=vm.ref, deadline=CALL_SECONDS),
            wait_for(
                vm.ref,
                until=state("UP", host_id=host_id),
                fails_if=state("DOWN", "ERROR", host_id=host_id),
                deadline=BOOT_SECONDS,
            ),
        ],
        step="START_VM",
        description=f"Starting VM {vm.title} on host {host_id}",
        subjects=(vm.ref,),
    )
