"""DiscardVolume: deletes a volume that nothing needs any more; says so if it stays."""

from typing import Final

from coordinator.commands.base import DISK, Command, EntityId, command
from coordinator.plan import EntityRef, Plan, task
from coordinator.rows import Cancel, Severity
from coordinator.world import World

DISCARD_SECONDS: Final = 600.0


@command(
    "DiscardVolume",
    cancel=Cancel.FINISH_FORWARD,
    description="Deleting volume ${volume_id} on host ${host_id}",
    categories=["storage", "internal"],
    monitored=False,
)
class DiscardVolume(Command):
    """Deletes a volume that nothing needs any more. One that is missing counts as deleted."""

    host_id: EntityId
    volume_id: EntityId
    disk_id: EntityId

    def subjects(self) -> list[EntityRef]:
        return [EntityRef(DISK, self.disk_id)]

    async def execute(self, world: World) -> Plan:
        return task(self.host_id, "deleteImage", {"volume_id": self.volume_id}, deadline=DISCARD_SECONDS)

    async def end_with_failure(self, world: World) -> None:
        message = f"volume {self.volume_id} of disk {self.disk_id} may remain on host {self.host_id}; nothing needs it"
        world.tell("LEFTOVER", message, severity=Severity.WARNING, entity=EntityRef(DISK, self.disk_id))
