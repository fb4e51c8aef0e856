"""The sim's verbs on the host itself, and those for tests and measurements."""

from __future__ import annotations

from hostagent.drivers.arguments import ObjectId
from hostagent.drivers.driver import Recovery
from hostagent.drivers.sim.host import Attempt, Sim, driver
from hostagent.drivers.sim.program import SIM_PROGRAM, parse_rules
from hostagent.task import Json


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
