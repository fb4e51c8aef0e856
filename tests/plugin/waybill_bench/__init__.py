"""Commands for the bench and for tests, in a package of their own: what a user's plug-in looks like."""

from typing import Annotated, Any

from pydantic import Field

from coordinator.commands.base import Command, EntityId, command, exclusive, named, shared
from coordinator.plan import EntityRef, Plan, child, concurrently, nothing, serially, task
from coordinator.rows import Cancel, LockKey, LockScope
from coordinator.world import World


@command("BenchWork", cancel=Cancel.REVERT, description="Working on ${object_id}", categories=["bench"])
class BenchWork(Command):
    """The standard work W1: one task on a host, no entity read."""

    host_id: EntityId
    object_id: EntityId

    async def execute(self, world: World) -> Plan:
        return task(self.host_id, "simWork", {"object_id": self.object_id})


@command("BenchLock", cancel=Cancel.REVERT, description="Working under locks", categories=["bench"])
class BenchLock(Command):
    """One task on a host (none without `object_id`), under locks on VMs or on names, for which it may queue."""

    host_id: EntityId = "host-1"
    object_id: str = ""
    vm_ids: tuple[EntityId, ...] = ()
    names: tuple[EntityId, ...] = ()
    share: bool = False
    wait: Annotated[float, Field(ge=0)] = 0.0
    passing: bool = False

    def locks(self) -> list[LockKey]:
        scope = LockScope.EXECUTION if self.passing else LockScope.COMMAND
        lock = shared if self.share else exclusive
        keys = [key for vm_id in self.vm_ids for key in lock("VM", vm_id, wait=self.wait, scope=scope)]
        return keys + [key for name in self.names for key in named("VM", name, wait=self.wait, scope=scope)]

    async def execute(self, world: World) -> Plan:
        return task(self.host_id, "simWork", {"object_id": self.object_id}) if self.object_id else nothing()


@command("BenchTouch", cancel=Cancel.REVERT, description="Working on disk ${disk_id}", categories=["bench"])
class BenchTouch(Command):
    """One task on a host that works on a disk, under no lock: others may work on it at the same time."""

    host_id: EntityId
    disk_id: EntityId

    async def execute(self, world: World) -> Plan:
        disk = EntityRef("DISK", self.disk_id)
        return task(self.host_id, "simWork", {"object_id": f"touched-{self.disk_id}"}, entity=disk)


@command("BenchTree", cancel=Cancel.REVERT, description="Working on ${width} × ${depth} parts", categories=["bench"])
class BenchTree(Command):
    """A tree of commands: `width` children at once, `depth` tasks in a row in each."""

    host_ids: Annotated[list[EntityId], Field(min_length=1)]
    object_id: EntityId
    width: Annotated[int, Field(ge=0, le=1000)] = 0
    depth: Annotated[int, Field(ge=1, le=100)] = 1
    as_jobs: bool = False
    """The children show as jobs of their own, not as steps."""

    async def execute(self, world: World) -> Plan:
        if self.width:
            shown: dict[str, Any] = {"as_job": True} if self.as_jobs else {"step": "WORK"}
            return concurrently(child(self._part(index), **shown) for index in range(self.width))
        return serially(
            task(self.host_ids[0], "simWork", {"object_id": f"{self.object_id}/{stage}"}, step="WORK")
            for stage in range(self.depth)
        )

    def _part(self, index: int) -> "BenchTree":
        host_id = self.host_ids[index % len(self.host_ids)]
        return BenchTree(host_ids=[host_id], object_id=f"{self.object_id}/{index}", depth=self.depth)
