"""AddVds: adds a host and installs it."""

from typing import Annotated

from pydantic import StringConstraints

from coordinator.commands.base import HOST, Command, EntityId, Name, command, exclusive
from coordinator.commands.install_vds import InstallVds
from coordinator.plan import EntityRef, Plan, call, child, serially
from coordinator.rows import Cancel, LockKey
from coordinator.world import Refused, World

Address = Annotated[str, StringConstraints(min_length=3, max_length=256, pattern=r"^[^\s,]+:\d{1,5}$")]
"""Where an agent listens: `host:port`."""


@command("AddVds", cancel=Cancel.BEFORE_START, description="Adding host ${host_id}", categories=["host"])
class AddVds(Command):
    """Adds a host, tests its power management and installs it; ends when the install does.

    A host that cannot be installed stays as INSTALL_FAILED; one that fails earlier was never there.
    """

    host_id: EntityId
    name: Name = ""
    address: Address

    def locks(self) -> list[LockKey]:
        return exclusive(HOST, self.host_id)

    async def validate(self, world: World) -> None:
        if (await world.find(HOST, self.host_id)).exists:
            message = f"there is a host {self.host_id} already; choose another id or install that one again"
            raise Refused("ENTITY_EXISTS", message, entity_type=HOST, entity_id=self.host_id)

    async def execute(self, world: World) -> Plan:
        host = await world.find(HOST, self.host_id)
        world.change(host, name=self.name or self.host_id, status="INSTALLING", address=self.address)
        subjects = (EntityRef(HOST, self.host_id),)
        return serially(
            [
                call(
                    self.host_id,
                    "fenceStatus",
                    step="TEST_POWER_MANAGEMENT",
                    description=f"Testing the power management of host {self.host_id}",
                    subjects=subjects,
                ),
                child(
                    InstallVds(host_id=self.host_id, shown_by_parent=True),
                    step="INSTALLING_HOST",
                    description=f"Installing host {self.host_id}",
                    subjects=subjects,
                    weight=5,
                ),
            ]
        )

    async def end_with_failure(self, world: World) -> None:
        host = await world.find(HOST, self.host_id)
        if host.exists and host.status != "INSTALL_FAILED":
            world.remove(host)
