"""MigrateVm: moves a running VM to another host; ends when it is seen up there."""

from typing import Final

from coordinator.commands.base import HOST, VM, Command, EntityId, command, exclusive
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import Attempt, EntityRef, Plan, Serially, call, instead, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import Entity, Refused, World

MIGRATION_SECONDS: Final = 600.0
CALL_SECONDS: Final = 60.0
MOST_DESTINATIONS: Final = 3


@command(
    "MigrateVm",
    cancel=Cancel.FINISH_FORWARD,  # once its host was told, nobody can say where it will be until it is there
    description="Migrating VM ${vm}",
    categories=["vm"],
)
class MigrateVm(Command):
    """Moves a running VM to another host, the named one or the least loaded; ends when it is seen up there.

    If it comes back to its host it is sent to another one, at most three in all; each is shown as a MIGRATE_VM step.
    """

    vm_id: EntityId
    host_id: EntityId | None = None
    excluded_host_ids: tuple[EntityId, ...] = ()
    shown_by_parent: bool = False

    def locks(self) -> list[LockKey]:
        return exclusive(VM, self.vm_id)

    async def validate(self, world: World) -> None:
        vm = await world.get(VM, self.vm_id)
        if vm.observed.state != "UP":
            message = f"VM {vm.title} is {vm.observed.state or 'DOWN'}; only one that is UP is migrated"
            raise Refused("VM_IS_NOT_UP", message, entity_type=VM, entity_id=self.vm_id)
        if self.host_id is None:
            return
        host = await world.get(HOST, self.host_id)
        if self.host_id == vm.observed.host_id:
            message = f"VM {vm.title} is on host {host.title} already"
            raise Refused("VM_IS_THERE", message, entity_type=VM, entity_id=self.vm_id)
        if self.host_id not in {up.ref.entity_id for up in world.hosts_up()}:
            raise Refused("NO_HOST", f"host {host.title} is not up", entity_type=HOST, entity_id=self.host_id)

    async def execute(self, world: World) -> Plan:
        vm = await world.get(VM, self.vm_id)
        plan = await self._to_another_host(vm, world, [])
        if plan is None:
            raise Refused("NO_HOST", f"no host is up that could take VM {vm.title}")
        return plan

    async def after_failure(self, world: World, failed: FailedAttempt) -> Attempt | None:
        vm = await world.get(VM, self.vm_id)
        tried = [_destination_of(plan) for plan in failed.plans]
        is_back = vm.observed.state == "UP" and vm.observed.host_id in failed.hosts_tried()
        if not is_back or len(tried) >= MOST_DESTINATIONS:
            return None
        plan = await self._to_another_host(vm, world, tried)
        return instead(plan) if plan is not None else None

    async def _to_another_host(self, vm: Entity, world: World, tried: list[str]) -> Plan | None:
        source = vm.observed.host_id
        excluded = {source, *self.excluded_host_ids, *tried}
        destination = (self.host_id if not tried else None) or await world.pick_host(excluded=excluded)
        if destination is None:
            return None
        address = (await world.get(HOST, destination)).declared.get("address", "")
        arguments = {"vm_id": self.vm_id, "destination": destination, "destination_address": address}
        return serially(
            [
                call(source, "migrateVm", arguments, entity=vm.ref, deadline=CALL_SECONDS),
                wait_for(
                    vm.ref,
                    until=state("UP", host_id=destination),
                    fails_if=state("UP", "ERROR", host_id=source),
                    deadline=MIGRATION_SECONDS,
                    beside=EntityRef(HOST, source),
                    gives_up_if=state("MAINTENANCE"),  # where it has no VMs any more
                ),
            ],
            step="" if self.shown_by_parent and not tried else "MIGRATE_VM",
            description=f"Migrating VM {vm.title} from host {source} to host {destination}",
            subjects=(vm.ref,),
        )


def _destination_of(plan: Plan) -> str:
    assert isinstance(plan, Serially)
    return str(getattr(plan.plans[0], "arguments", {}).get("destination", ""))
