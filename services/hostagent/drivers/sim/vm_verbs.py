"""The sim's verbs on VMs, and what VMs then go through by themselves.

    createVm ─▶ POWERING_UP ──boot time──▶ UP ── shutdownVm ─▶ POWERING_DOWN ──boot time──▶ DOWN
                     │                     │
                     │                     └─ migrateVm ─▶ MIGRATING ──boot time──▶ gone from here, UP there
                     │                                                         └──▶ UP again: it was not taken
                     └─ never_up: stays, or with an error: DOWN
    destroyVm, at any time: DOWN, and gone

A call answers when the first state of its effect is on disk; what comes after is observed. A new process goes on where
the VMs are. The arrival of a migrated VM is its destination's to report; how it gets there: `handover.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from chassis import errors
from hostagent.drivers.arguments import Megabytes, ObjectId
from hostagent.drivers.sim.handover import Handover, check_address
from hostagent.drivers.sim.host import Attempt, Sim, driver
from hostagent.drivers.sim.model import Vm, VmState
from hostagent.drivers.sim.program import Outcome
from hostagent.task import Json

_PASSING: Final = frozenset({VmState.POWERING_UP, VmState.POWERING_DOWN, VmState.MIGRATING})


@driver.call("createVm")
async def create_vm(sim: Sim, attempt: Attempt, *, vm_id: ObjectId, memory_mb: Megabytes) -> Json:
    """Starts a VM on this host; it is POWERING_UP, then UP."""
    await attempt.toil()
    vm = sim.model.find_vm(vm_id)
    if vm is not None and vm.state is not VmState.DOWN:
        raise errors.failed_precondition("VM_IS_RUNNING", f"VM {vm_id} is {vm.state} on this host", vm_id=vm_id)
    never_up = attempt.rule.outcome is Outcome.NEVER_UP
    error = attempt.rule.failure("VM_FAILED", "").message if never_up and attempt.rule.error else ""
    sim.model.put_vm(vm_id, Vm(VmState.POWERING_UP, memory_mb, attempt.task_id, error, gets_up=not never_up))
    await attempt.take_effect()
    sim.observe_vm(vm_id, VmState.POWERING_UP)
    _begin_passing(sim, vm_id)
    return None


@driver.call("shutdownVm")
async def shutdown_vm(sim: Sim, attempt: Attempt, *, vm_id: ObjectId) -> Json:
    """Shuts a VM down; it is POWERING_DOWN, then DOWN. One that is DOWN already stays so."""
    await attempt.toil()
    vm = sim.model.vm(vm_id)
    if vm.state in (VmState.DOWN, VmState.POWERING_DOWN):
        return None
    sim.model.put_vm(vm_id, replace(vm, state=VmState.POWERING_DOWN, life=attempt.task_id, error=""))
    await attempt.take_effect()
    sim.observe_vm(vm_id, VmState.POWERING_DOWN)
    _begin_passing(sim, vm_id)
    return None


@driver.call("destroyVm")
async def destroy_vm(sim: Sim, attempt: Attempt, *, vm_id: ObjectId) -> Json:
    """Ends a VM at once, in whatever state it is; one that is missing counts as ended, and the answer says so."""
    await attempt.toil()
    if sim.model.find_vm(vm_id) is None:
        return {"missing": True}
    sim.model.remove_vm(vm_id)
    await attempt.take_effect()
    sim.observe_vm(vm_id, VmState.DOWN)
    return None


@driver.call("migrateVm")
async def migrate_vm(
    sim: Sim, attempt: Attempt, *, vm_id: ObjectId, destination: str, destination_address: str = ""
) -> Json:
    """Moves a running VM to another host; it is MIGRATING, then gone from here, or UP again if it was not taken.

    Without the address of the destination's agent nobody takes it; it is gone all the same.
    """
    check_address(destination_address)
    await attempt.toil()
    vm = sim.model.vm(vm_id)
    if vm.state is not VmState.UP:
        raise errors.failed_precondition("OBJECT_STATE", f"VM {vm_id} is {vm.state}, not UP", vm_id=vm_id)
    stuck = attempt.rule.outcome is Outcome.NEVER_UP
    error = attempt.rule.failure("VM_FAILED", "it is programmed not to get away").message if stuck else ""
    names = {name: attempt.names.get(name, "") for name in ("correlation_id", "job_id", "command_id")}
    sim.model.put_vm(
        vm_id,
        replace(
            vm,
            state=VmState.MIGRATING,
            life=attempt.task_id,
            gets_up=not stuck,
            error=error,
            destination=destination_address,
            names=names,
        ),
    )
    await attempt.take_effect()
    sim.observe_vm(vm_id, VmState.MIGRATING)
    _begin_passing(sim, vm_id)
    return None


@driver.call("receiveVm")
async def receive_vm(sim: Sim, attempt: Attempt, *, vm_id: ObjectId, memory_mb: Megabytes) -> Json:
    """Takes a VM that comes from another host; it is UP at once. Asked for by that host's agent."""
    await attempt.toil()
    vm = sim.model.find_vm(vm_id)
    if vm is not None and vm.state is not VmState.DOWN:
        raise errors.failed_precondition("VM_IS_RUNNING", f"VM {vm_id} is {vm.state} on this host", vm_id=vm_id)
    if sim.model.host_state()[0] != "UP":
        raise errors.failed_precondition("HOST_STATE", f"host {sim.host_id} is {sim.model.host_state()[0]}")
    sim.model.put_vm(vm_id, Vm(VmState.UP, memory_mb, attempt.task_id))
    await attempt.take_effect()
    sim.observe_vm(vm_id, VmState.UP)
    return None


def take_up_vms(sim: Sim) -> None:
    """Has the VMs that a former process left on the host seen again, and go on."""
    for vm_id in sim.model.vm_ids():
        vm = sim.model.vm(vm_id)
        if vm.state is not VmState.DOWN:
            sim.observe_vm(vm_id, vm.state)
        _begin_passing(sim, vm_id)


def _begin_passing(sim: Sim, vm_id: str) -> None:
    vm = sim.model.find_vm(vm_id)
    if vm is not None and vm.state in _PASSING:
        sim.crew.hire(_pass(sim, vm_id, vm))


async def _pass(sim: Sim, vm_id: str, former: Vm) -> None:
    """Takes a VM out of a passing state, when its time has come, if it is still in that."""
    await sim.clock.sleep(sim.boot_seconds)
    if sim.model.find_vm(vm_id) != former:
        return
    match former.state:
        case VmState.POWERING_UP if former.gets_up:
            await _see(sim, vm_id, replace(former, state=VmState.UP))
        case VmState.POWERING_UP if former.error:
            await _see(sim, vm_id, replace(former, state=VmState.DOWN))
        case VmState.POWERING_DOWN:
            await _see(sim, vm_id, replace(former, state=VmState.DOWN))
        case VmState.MIGRATING if not former.gets_up:
            await _stay(sim, vm_id, former, former.error)
        case VmState.MIGRATING:
            await _leave(sim, vm_id, former)


async def _leave(sim: Sim, vm_id: str, vm: Vm) -> None:
    """Gives a VM away; it stays if the destination does not take it."""
    handover = Handover(sim.clock, vm.life, vm.names)
    if vm.destination and (refusal := await handover.ask(vm.destination, vm_id, vm.memory_mb)):
        await _stay(sim, vm_id, vm, refusal)
        return
    if sim.model.find_vm(vm_id) == vm:
        sim.model.remove_vm(vm_id)
        await sim.save()
        if vm.destination:
            sim.observe_vm(vm_id, VmState.DOWN)
    if vm.destination:
        await handover.clear(vm.destination)


async def _stay(sim: Sim, vm_id: str, vm: Vm, error: str) -> None:
    if sim.model.find_vm(vm_id) == vm:
        await _see(sim, vm_id, replace(vm, state=VmState.UP, gets_up=True, error=error, destination="", names={}))


async def _see(sim: Sim, vm_id: str, vm: Vm) -> None:
    sim.model.put_vm(vm_id, vm)
    await sim.save()
    sim.observe_vm(vm_id, vm.state, vm.error)
