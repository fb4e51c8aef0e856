"""ActivateVds: puts a host into service; ends when it is seen up."""

from typing import Final

from coordinator.commands.base import HOST, Command, EntityId, command, exclusive
from coordinator.plan import Plan, call, serially, state, wait_for
from coordinator.rows import Cancel, LockKey
from coordinator.world import World

CALL_SECONDS: Final = 60.0
ACTIVATION_SECONDS: Final = 300.0


@command("ActivateVds", cancel=Cancel.BEFORE_START, description="Activating host ${host}", categories=["host"])
class ActivateVds(Command):
    """Puts a host into service; ends when it is seen up."""

    host_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(HOST, self.host_id)

    async def validate(self, world: World) -> None:
        await world.get(HOST, self.host_id)

    async def execute(self, world: World) -> Plan:
        host = await world.get(HOST, self.host_id)
        world.change(host, status="ACTIVATING")
        return serially(
            [
                call(self.host_id, "connectStorage", {"storage_domain_id": "all"}, deadline=CALL_SECONDS),
                call(self.host_id, "activateHost", deadline=CALL_SECONDS),
                wait_for(host.ref, until=state("UP"), fails_if=state("NON_OPERATIONAL"), deadline=ACTIVATION_SECONDS),
            ],
            step="ACTIVATE_HOST",
            description=f"Activating host {host.title}",
            subjects=(host.ref,),
        )

    async def end_successfully(self, world: World) -> None:
        world.change(await world.find(HOST, self.host_id), status="OK")
