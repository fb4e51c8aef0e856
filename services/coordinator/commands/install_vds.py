"""InstallVds: installs on a host what it needs to run VMs."""

from coordinator.commands.base import HOST, Command, EntityId, command, exclusive
from coordinator.plan import Plan, task
from coordinator.rows import Cancel, LockKey, Severity
from coordinator.world import World


@command("InstallVds", cancel=Cancel.BEFORE_START, description="Installing host ${host}", categories=["host"])
class InstallVds(Command):
    """Installs on a host what it needs to run VMs; ends when that is done. One that fails stays INSTALL_FAILED."""

    host_id: EntityId
    shown_by_parent: bool = False

    def locks(self) -> list[LockKey]:
        return exclusive(HOST, self.host_id)

    async def validate(self, world: World) -> None:
        await world.get(HOST, self.host_id)

    async def execute(self, world: World) -> Plan:
        host = await world.get(HOST, self.host_id)
        if host.status != "INSTALLING":
            world.change(host, status="INSTALLING")
        return task(
            self.host_id,
            "installHost",
            step="" if self.shown_by_parent else "INSTALLING_HOST",
            description=f"Installing host {host.title}",
            entity=host.ref,
        )

    async def end_successfully(self, world: World) -> None:
        world.change(await world.find(HOST, self.host_id), status="OK")

    async def end_with_failure(self, world: World) -> None:
        host = await world.find(HOST, self.host_id)
        if host.exists:
            world.change(host, status="INSTALL_FAILED")
            message = f"host {host.title} could not be installed; install it again or remove it"
            world.tell("INSTALL_FAILED", message, severity=Severity.ERROR, entity=host.ref)
