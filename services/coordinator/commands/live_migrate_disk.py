"""LiveMigrateDisk: moves the disk of a running VM to another host, stage by stage, while the VM writes to it.

    CREATE_SNAPSHOT ─▶ CLONE_IMAGE_STRUCTURE ─▶ REPLICATE_START ─▶ SYNC_IMAGE_DATA ─▶ REPLICATE_FINISH ─┐ the switch
        source             destination              source            destination        source         │
    ┌───────────────────────────────────────────────────────────────────────────────────────────────────┘
    └▶ the disk is on the destination ─▶ DELETE_IMAGE, source ─▶ MERGE_SNAPSHOTS, destination

| what fails | then |
| --- | --- |
| a stage before the switch, or the switch itself | back on the source: replication ended, the copy deleted, the |
| | snapshot merged; FAILED |
| the snapshot, and it was not rolled back, and merging it fails | the disk is ILLEGAL: nobody can tell what it holds |
| nobody can tell whether the switch was made | it is asked for again: who has made it says so. If that fails too, the |
| | disk is ILLEGAL |
| a stage after it | the disk is on the destination; FINISHED, and an event names what is left over |
"""

from typing import Final

from coordinator.commands.base import DISK, HOST, VM, Command, EntityId, command, exclusive, shared
from coordinator.commands.discard_volume import DiscardVolume
from coordinator.commands.disks import usable_disk
from coordinator.commands.merge_snapshot import MergeSnapshot
from coordinator.flow.attempts import FailedAttempt
from coordinator.plan import Attempt, Plan, call, change, child, cleanup, instead, serially, task
from coordinator.rows import Cancel, LockKey
from coordinator.world import Entity, Refused, World

SNAPSHOT, CLONE, REPLICATE, SYNC, SWITCH = "0", "1", "2", "3", "4"
"""Where in the first plan these stages are."""
CALL_SECONDS: Final = 600.0


@command(
    "LiveMigrateDisk",
    cancel=Cancel.FINISH_FORWARD,
    description="Moving disk ${disk} to host ${destination_host_id}",
    categories=["storage"],
)
class LiveMigrateDisk(Command):
    """Moves the disk of a running VM to another host while the VM goes on."""

    disk_id: EntityId
    destination_host_id: EntityId

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id)

    async def validate(self, world: World) -> None:
        disk = await usable_disk(world, self.disk_id)
        if disk.declared["host_id"] == self.destination_host_id:
            message = f"disk {disk.title} is on host {self.destination_host_id} already"
            raise Refused("DISK_IS_THERE", message, entity_type=DISK, entity_id=self.disk_id)
        vm = await world.find(VM, disk.declared.get("vm_id") or "?")
        if not vm.exists or vm.observed.state != "UP":
            message = f"disk {disk.title} belongs to no VM that is up; only a disk in use is moved live"
            raise Refused("VM_IS_NOT_UP", message, entity_type=DISK, entity_id=self.disk_id)
        await world.get(HOST, self.destination_host_id)
        if self.destination_host_id not in {host.ref.entity_id for host in world.hosts_up()}:
            message = f"host {self.destination_host_id} is not up"
            raise Refused("NO_HOST", message, entity_type=HOST, entity_id=self.destination_host_id)

    async def execute(self, world: World) -> Plan:
        disk = world.change(await world.get(DISK, self.disk_id), status="LOCKED")
        world.lock(shared(VM, disk.declared["vm_id"]))
        move = _Move(disk, self.destination_host_id)
        return serially([*move.up_to_the_switch(), *move.from_the_switch_on()])

    async def after_failure(self, world: World, failed: FailedAttempt) -> Attempt | None:
        move = _Move(await world.get(DISK, self.disk_id), self.destination_host_id)
        if failed.number > 1:
            return None
        if SWITCH in failed.unknown:
            return instead(serially(move.from_the_switch_on()))
        return cleanup(serially(move.back(failed)))

    async def end_successfully(self, world: World) -> None:
        world.change(await world.find(DISK, self.disk_id), status="OK")


class _Move:
    """The stages of one move, in terms of hosts and volumes."""

    def __init__(self, disk: Entity, destination: str) -> None:
        self._disk = disk
        self._disk_id = disk.ref.entity_id
        self._source: str = disk.declared["host_id"]
        self._destination = destination
        self._volume_id: str = disk.declared.get("volume_id", self._disk_id)
        self._snapshot_id = f"{self._disk_id}-live-migration"
        self._replication = {"vm_id": disk.declared.get("vm_id", ""), "volume_id": self._volume_id}

    def up_to_the_switch(self) -> list[Plan]:
        snapshots = [*self._disk.declared.get("snapshot_ids", []), self._snapshot_id]
        structure = {"volume_id": self._volume_id, "size_mb": self._disk.declared["size_mb"], "snapshots": snapshots}
        snapshot = {"volume_id": self._volume_id, "snapshot_id": self._snapshot_id}
        title, on = self._disk.title, {"entity": self._disk.ref}
        return [
            task(
                self._source,
                "createSnapshot",
                snapshot,
                step="CREATE_SNAPSHOT",
                description=f"Taking a snapshot of disk {title} on host {self._source}",
                **on,
            ),
            task(
                self._destination,
                "cloneImageStructure",
                structure,
                step="CLONE_IMAGE_STRUCTURE",
                description=f"Cloning the structure of disk {title} on host {self._destination}",
                expected_generation=0,
                **on,
            ),
            call(
                self._source,
                "replicateDiskStart",
                self._replication,
                step="REPLICATE_START",
                description=f"Starting to replicate what is written to disk {title}",
                deadline=CALL_SECONDS,
                **on,
            ),
            task(
                self._destination,
                "syncImageData",
                {"volume_id": self._volume_id},
                step="SYNC_IMAGE_DATA",
                description=f"Copying the data of disk {title} to host {self._destination}",
                expected_generation=1,
                weight=5,
                **on,
            ),
        ]

    def from_the_switch_on(self) -> list[Plan]:
        title = self._disk.title
        return [
            call(
                self._source,
                "replicateDiskFinish",
                {**self._replication, "destination": self._destination},
                step="REPLICATE_FINISH",
                description=f"Switching to disk {title} on host {self._destination}",
                entity=self._disk.ref,
                no_return=True,
            ),
            change(self._disk, declared={"host_id": self._destination}),
            self._discard(self._source, f"Deleting the former image of disk {title} on host {self._source}"),
            self._merge(self._destination),
        ]

    def back(self, failed: FailedAttempt) -> list[Plan]:
        """What takes back the stages that began, the last one first."""
        undone: list[Plan] = []
        if failed.has_begun(REPLICATE):
            undone.append(call(self._source, "replicateDiskFinish", self._replication))
        if failed.may_have_left(CLONE):
            undone.append(self._discard(self._destination, f"Deleting what was copied to host {self._destination}"))
        if failed.may_have_left(SNAPSHOT):
            undone.append(self._merge(self._source, best_effort=failed.went_well(SNAPSHOT)))
        return undone

    def _discard(self, host_id: str, description: str) -> Plan:
        discard = DiscardVolume(host_id=host_id, volume_id=self._volume_id, disk_id=self._disk_id)
        return child(
            discard, step="DELETE_IMAGE", description=description, subjects=(self._disk.ref,), best_effort=True
        )

    def _merge(self, host_id: str, *, best_effort: bool = True) -> Plan:
        merge = MergeSnapshot(
            host_id=host_id, volume_id=self._volume_id, snapshot_id=self._snapshot_id, disk_id=self._disk_id
        )
        return child(
            merge,
            step="MERGE_SNAPSHOTS",
            description=f"Merging the snapshot of disk {self._disk.title} on host {host_id}",
            subjects=(self._disk.ref,),
            best_effort=best_effort,
        )
