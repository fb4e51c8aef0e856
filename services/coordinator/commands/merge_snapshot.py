"""MergeSnapshot: merges a snapshot of a volume into it; says so if it stays."""

from typing import Final

from coordinator.commands.base import DISK, Command, EntityId, command
from coordinator.plan import EntityRef, Plan, task
from coordinator.rows import Cancel, Severity
from coordinator.world import World

MERGE_SECONDS: Final = 3600.0


@command(
    "MergeSnapshot",
    cancel=Cancel.FINISH_FORWARD,
    description="Merging snapshot ${snapshot_id} of disk ${disk}",
    categories=["storage", "internal"],
    monitored=False,
)
class MergeSnapshot(Command):
    """Merges a snapshot of a volume into it."""

    host_id: EntityId
    volume_id: EntityId
    snapshot_id: EntityId
    disk_id: EntityId

    def subjects(self) -> list[EntityRef]:
        return [EntityRef(DISK, self.disk_id)]

    async def execute(self, world: World) -> Plan:
        arguments = {"volume_id": self.volume_id, "snapshot_id": self.snapshot_id}
        return task(self.host_id, "mergeSnapshots", arguments, deadline=MERGE_SECONDS)

    async def end_with_failure(self, world: World) -> None:
        where = f"of volume {self.volume_id} on host {self.host_id}"
        message = f"snapshot {self.snapshot_id} {where} may remain unmerged; disk {self.disk_id} works with it"
        world.tell("LEFTOVER", message, severity=Severity.WARNING, entity=EntityRef(DISK, self.disk_id))
