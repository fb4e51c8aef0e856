"""The sim's verbs on the host itself, and those for tests and measurements."""

from __future__ import annotations

from typing import Final

from chassis import errors
from hostagent.drivers.arguments import ObjectId
from hostagent.drivers.driver import Recovery
from hostagent.drivers.sim.host import Attempt, Sim, driver
from hostagent.drivers.sim.model import VmState
from hostagent.drivers.sim.program import SIM_PROGRAM, parse_rules
from hostagent.task import Json

_LEAVING_SECONDS: Final = 3.0


@driver.task("installHost", recovery=Recovery.RESUME)
async def install_host(sim: Sim, attempt: Attempt) -> Json:
    """Installs what a host needs to run VMs."""
    await attempt.toil()
    return await attempt.take_effect()


@driver.task("simWork", recovery=Recovery.RESUME)
async def sim_work(sim: Sim, attempt: Attempt, *, object_id: ObjectId) -> Json:
    """Does nothing but count one effect on an object."""
    await attempt.toil()
    return await attempt.take_effect()


@driver.call("connectStorage")
async def connect_storage(sim: Sim, attempt: Attempt, *, storage_domain_id: ObjectId) -> Json:
    """Connects the host to a storage domain."""
    await attempt.toil()
    return await attempt.take_effect()


@driver.call("disconnectStorage")
async def disconnect_storage(sim: Sim, attempt: Attempt, *, storage_domain_id: ObjectId) -> Json:
    """Disconnects the host from a storage domain."""
    await attempt.toil()
    return await attempt.take_effect()


@driver.call("enterMaintenance")
async def enter_maintenance(sim: Sim, attempt: Attempt) -> Json:
    """Takes the host out of service; refused while it has VMs that are not down, or is not operational."""
    await attempt.toil()
    state, _ = sim.model.host_state()
    if state == "MAINTENANCE":
        sim.observe_host()
        return None
    if state != "UP":
        raise errors.failed_precondition("HOST_STATE", f"host {sim.host_id} is {state}, not UP")
    await _let_leave(sim)
    if here := _vms_in(sim, VmState.POWERING_UP, VmState.UP, VmState.POWERING_DOWN, VmState.MIGRATING):
        raise errors.failed_precondition("HOST_HAS_VMS", f"host {sim.host_id} has VMs: {', '.join(here)}")
    return await _become(sim, attempt, "MAINTENANCE")


async def _let_leave(sim: Sim) -> None:
    """Waits a moment for VMs that their destinations may have already."""
    give_up = sim.clock.monotonic() + _LEAVING_SECONDS
    while _vms_in(sim, VmState.MIGRATING) and sim.clock.monotonic() < give_up:
        await sim.clock.sleep(_LEAVING_SECONDS / 100)


def _vms_in(sim: Sim, *states: VmState) -> list[str]:
    return [vm_id for vm_id in sim.model.vm_ids() if sim.model.vm(vm_id).state in states]


@driver.call("activateHost")
async def activate_host(sim: Sim, attempt: Attempt) -> Json:
    """Puts the host into service."""
    await attempt.toil()
    if sim.model.host_state()[0] == "UP":
        sim.observe_host()
        return None
    return await _become(sim, attempt, "UP")


@driver.call("simHostState")
async def sim_host_state(sim: Sim, attempt: Attempt, *, state: str, error: str = "") -> Json:
    """Has the host be seen in a state, for a reason: for tests and demos."""
    return await _become(sim, attempt, state, error)


async def _become(sim: Sim, attempt: Attempt, state: str, error: str = "") -> Json:
    sim.model.put_host_state(state, error)
    await attempt.take_effect()
    sim.observe_host()
    return None


@driver.call("fenceStatus")
async def fence_status(sim: Sim, attempt: Attempt) -> Json:
    """Asks the power management of the host for its state."""
    await attempt.toil()
    return {"power": "on"}


@driver.call(SIM_PROGRAM)
async def sim_program(sim: Sim, attempt: Attempt, *, rules: list[Json]) -> Json:
    """Replaces the rules that say how tasks and calls go."""
    sim.program.replace(parse_rules(rules))
    return await attempt.take_effect()
