"""MaintenanceNumberOfVds: takes several hosts out of service at once."""

from typing import Annotated

from pydantic import Field

from coordinator.commands.base import HOST, Command, EntityId, command, exclusive
from coordinator.commands.maintenance_vds import (
    PREPARING,
    MaintenanceVds,
    refuse_unless_maintainable,
    take_back_preparations,
)
from coordinator.plan import EntityRef, Plan, change, child, concurrently, serially
from coordinator.rows import Cancel, LockKey
from coordinator.world import World


@command(
    "MaintenanceNumberOfVds", cancel=Cancel.BEFORE_START, description="Moving hosts to maintenance", categories=["host"]
)
class MaintenanceNumberOfVds(Command):
    """Takes several hosts out of service, each in a branch of its own; ends when each is there or has failed."""

    host_ids: Annotated[tuple[EntityId, ...], Field(min_length=1, max_length=100)]

    @property
    def _hosts(self) -> list[str]:
        return list(dict.fromkeys(self.host_ids))

    def locks(self) -> list[LockKey]:
        return [key for host_id in self._hosts for key in exclusive(HOST, host_id)]

    async def validate(self, world: World) -> None:
        await refuse_unless_maintainable(world, self._hosts)

    async def execute(self, world: World) -> Plan:
        hosts = await world.find_all([EntityRef(HOST, host_id) for host_id in self._hosts])
        prepare = concurrently(
            (change(host, status=PREPARING) for host in hosts),
            step="PREPARE_FOR_MAINTENANCE",
            description=f"Preparing {', '.join(host.title for host in hosts[:5])} for maintenance",
            subjects=tuple(host.ref for host in hosts),
        )
        branches = concurrently(
            child(
                MaintenanceVds(host_id=host.ref.entity_id, excluded_host_ids=tuple(self._hosts), shown_by_parent=True),
                step="MAINTENANCE_HOST",
                description=f"Moving host {host.title} to maintenance",
                subjects=(host.ref,),
            )
            for host in hosts
        )
        return serially([prepare, branches])

    async def end_with_failure(self, world: World) -> None:
        await take_back_preparations(world, self._hosts)  # what is in maintenance stays there
