"""AddDisk: creates a disk with its volume on a host, and attaches it to a VM if one is named."""

from typing import Annotated

from pydantic import Field

from coordinator.commands.base import DISK, HOST, VM, Command, EntityId, Name, command, exclusive, shared
from coordinator.plan import EntityRef, Plan, task
from coordinator.rows import Cancel, LockKey
from coordinator.world import Entity, Refused, World


@command("AddDisk", cancel=Cancel.REVERT, description="Adding disk ${disk}", categories=["storage"])
class AddDisk(Command):
    """Creates a disk with its volume on a host, and attaches it to a VM if one is named."""

    disk_id: EntityId
    name: Name = ""
    size_mb: Annotated[int, Field(ge=1, le=1 << 30)]
    host_id: EntityId
    vm_id: EntityId | None = None

    def locks(self) -> list[LockKey]:
        return exclusive(DISK, self.disk_id) + (shared(VM, self.vm_id) if self.vm_id else [])

    async def validate(self, world: World) -> None:
        await world.get(HOST, self.host_id)
        if self.vm_id:
            await world.get(VM, self.vm_id)
        if (await world.find(DISK, self.disk_id)).exists:
            message = f"there is a disk {self.disk_id} already; choose another id or remove that one"
            raise Refused("ENTITY_EXISTS", message, entity_type=DISK, entity_id=self.disk_id)

    async def execute(self, world: World) -> Plan:
        disk = await world.find(DISK, self.disk_id)
        world.change(
            disk,
            name=self.name,
            status="LOCKED",
            host_id=self.host_id,
            volume_id=self.disk_id,
            size_mb=self.size_mb,
            vm_id=self.vm_id or "",
        )
        return task(
            self.host_id,
            "createVolume",
            {"volume_id": self.disk_id, "size_mb": self.size_mb},
            step="CREATE_VOLUME",
            description=f"Creating volume {self.disk_id} of {self.size_mb} MB",
            entity=EntityRef(DISK, self.disk_id),
        )

    async def end_successfully(self, world: World) -> None:
        world.change(await world.find(DISK, self.disk_id), status="OK")
        if self.vm_id:
            self._attach(world, await world.find(VM, self.vm_id))

    def _attach(self, world: World, vm: Entity) -> None:
        disk_ids = vm.declared.get("disk_ids", [])
        if vm.exists and self.disk_id not in disk_ids:
            world.change(vm, disk_ids=[*disk_ids, self.disk_id])
