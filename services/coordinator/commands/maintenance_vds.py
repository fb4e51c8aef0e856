"""MaintenanceVds: takes one host out of service; its VMs go to others first."""

from typing import Final

from coordinator.commands.base import HOST, Command, EntityId, command, exclusive
from coordinator.commands.migrate_vm import MigrateVm
from coordinator.plan import Plan, call, child, concurrently, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import Entity, Refused, World

CALL_SECONDS: Final = 60.0
MAINTENANCE_SECONDS: Final = 600.0
PREPARING: Final = "PREPARING_FOR_MAINTENANCE"
MAINTENANCE: Final = "MAINTENANCE"


@command(
    "MaintenanceVds", cancel=Cancel.BEFORE_START, description="Moving host ${host} to maintenance", categories=["host"]
)
class MaintenanceVds(Command):
    """Takes one host out of service: migrates its VMs, disconnects it; ends when it is seen in maintenance."""

    host_id: EntityId
    excluded_host_ids: tuple[EntityId, ...] = ()
    shown_by_parent: bool = False

    def locks(self) -> list[LockKey]:
        return exclusive(HOST, self.host_id)

    async def validate(self, world: World) -> None:
        await refuse_unless_maintainable(world, [self.host_id], self.excluded_host_ids)

    async def execute(self, world: World) -> Plan:
        host = await world.get(HOST, self.host_id)
        if host.status != PREPARING:
            world.change(host, status=PREPARING)
        vms = await world.vms_on(self.host_id)
        return serially(
            [
                concurrently(self._migrate(vm) for vm in vms),
                call(
                    self.host_id,
                    "disconnectStorage",
                    {"storage_domain_id": "all"},
                    step="DISCONNECT_FROM_STORAGE",
                    description=f"Disconnecting host {host.title} from its storage",
                    deadline=CALL_SECONDS,
                ),
                call(self.host_id, "enterMaintenance", deadline=CALL_SECONDS),
                wait_for(
                    host.ref,
                    until=state(MAINTENANCE),
                    fails_if=state("NON_OPERATIONAL"),
                    deadline=MAINTENANCE_SECONDS,
                ),
            ],
            step="" if self.shown_by_parent else "MAINTENANCE_HOST",
            description=f"Moving host {host.title} to maintenance",
            subjects=(host.ref,),
        )

    def _migrate(self, vm: Entity) -> Plan:
        migrate = MigrateVm(
            vm_id=vm.ref.entity_id,
            excluded_host_ids=(self.host_id, *self.excluded_host_ids),
            shown_by_parent=True,
        )
        return child(migrate, step="MIGRATE_VM", description=f"Migrating VM {vm.title}", subjects=(vm.ref,))

    async def end_successfully(self, world: World) -> None:
        world.change(await world.find(HOST, self.host_id), status=MAINTENANCE)

    async def end_with_failure(self, world: World) -> None:
        await take_back_preparations(world, [self.host_id])


async def refuse_unless_maintainable(world: World, host_ids: list[str], excluded: tuple[str, ...] = ()) -> None:
    """Raises Refused if one of the hosts cannot be taken out of service now."""
    others = {host.ref.entity_id for host in world.hosts_up()} - {*host_ids, *excluded}
    for host_id in host_ids:
        host = await world.get(HOST, host_id)
        facts = {"entity_type": HOST, "entity_id": host_id}
        if host.status == MAINTENANCE:
            raise Refused("HOST_IN_MAINTENANCE", f"host {host.title} is in maintenance already", **facts)
        if tasks := await world.tasks_on(host_id):
            message = f"host {host.title} has running tasks: {', '.join(tasks[:5])}; wait for them or stop them"
            raise Refused("HOST_HAS_TASKS", message, **facts)
        if not others and (vms := await world.vms_on(host_id)):
            names = ", ".join(vm.title for vm in vms[:5])
            raise Refused("NO_HOST", f"no other host is up to take the VMs of host {host.title}: {names}", **facts)


async def take_back_preparations(world: World, host_ids: list[str]) -> None:
    """Notes that hosts that were to be taken out of service are not, but for those that are seen to be."""
    for host_id in host_ids:
        host = await world.find(HOST, host_id)
        if host.exists and host.status == PREPARING:
            world.change(host, status=MAINTENANCE if host.observed.state == MAINTENANCE else "OK")
