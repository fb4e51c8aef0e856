"""Work that is under way while something is killed, and what must be true of it afterwards.

One round removes the VM that the round before furnished and furnishes the next one: RemoveVm of a VM with disks on both
hosts, and an AddDisk for each disk of the next VM, all at once. Somewhere in the middle a process dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from waybill.v1.jobs_pb2 import Entity, EntityType, ExecutionStatus, Job
from waybill_cli.stack import Stack
from waybill_client import Unavailable, WaybillClient
from waybill_client.hosts import HostClient

DISKS = 2
WORK_MS = 120
ENDS_WITHIN = 30.0  # far more than it takes: a round that needs it has hung

T = TypeVar("T")


async def until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Asks until somebody answers, as a careful client does: nothing may be lost by asking again."""
    async with asyncio.timeout(ENDS_WITHIN):
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(0.05)  # the pause of a client whose server is down, not a wait for a result


class Rounds:
    """Furnishes and removes VMs on a stack, and keeps the books of what was asked for."""

    def __init__(self, stack: Stack, client: WaybillClient) -> None:
        self._stack = stack
        self._client = client
        self._number = 0
        self.jobs: list[Job] = []
        self.removed: list[str] = []  # disks
        self.present: list[str] = []  # disks

    async def furnish_first(self) -> None:
        """Makes the first VM, undisturbed."""
        await self._declare_vm(1)
        await self._end_all(await asyncio.gather(*self._add_disks(1)))
        self._number = 1

    async def play(self, disturb: Callable[[], Awaitable[None]]) -> None:
        """Plays a round while `disturb` runs; returns when all its jobs have ended."""
        old, new = self._number, self._number + 1
        await self._declare_vm(new)
        disturbing = asyncio.ensure_future(disturb())
        asked = [self._run("RemoveVm", {"vm_id": f"vm-{old}"}, f"remove-{old}"), *self._add_disks(new)]
        jobs = await asyncio.gather(*asked)
        await disturbing
        await self._stack.serving()
        await self._end_all(jobs)
        self.removed += self.disks_of(old)
        self.present = self.disks_of(new)
        self._number = new

    @staticmethod
    def disks_of(vm: int) -> list[str]:
        """Ids of the disks of a VM."""
        return [f"disk-{vm}-{index}" for index in range(DISKS)]

    async def _declare_vm(self, number: int) -> None:
        vm = Entity(entity_type=EntityType.ENTITY_TYPE_VM, entity_id=f"vm-{number}", name=f"VM {number}")
        vm.declared.update({"disk_ids": [], "memory_mb": 64})
        await until_answered(lambda: self._client.put_entities([vm]))

    def _add_disks(self, vm: int) -> list[Awaitable[Job]]:
        return [self._add_disk(vm, index, disk_id) for index, disk_id in enumerate(self.disks_of(vm))]

    def _add_disk(self, vm: int, index: int, disk_id: str) -> Awaitable[Job]:
        host_id = f"host-{index % len(self._stack.hosts) + 1}"
        parameters = {"disk_id": disk_id, "size_mb": 10, "host_id": host_id, "vm_id": f"vm-{vm}"}
        return self._run("AddDisk", parameters, f"add-{disk_id}")

    async def _run(self, command_type: str, parameters: dict[str, object], request_id: str) -> Job:
        job = await until_answered(
            lambda: self._client.run_command(
                command_type, parameters, request_id=request_id, correlation_id=f"chaos-{request_id}"
            )
        )
        self.jobs.append(job)
        return job

    async def _end_all(self, jobs: Iterable[Job]) -> None:
        async with asyncio.timeout(ENDS_WITHIN):
            await asyncio.gather(*(self._end(job.job_id) for job in jobs))

    async def _end(self, job_id: str) -> None:
        job = await until_answered(lambda: self._client.wait(job_id))
        assert job.status == ExecutionStatus.EXECUTION_STATUS_FINISHED, f"{job.description}: {job}"


async def assert_nothing_lost_or_doubled(stack: Stack, client: WaybillClient, rounds: Rounds) -> None:
    """What must be true of jobs, hosts and store when all is over.

    The last to die may have died when the last jobs had ended: what is asked here is asked until it is back.
    """
    await until_answered(lambda: _assert_one_job_each(client, rounds))
    effects = await _effects(stack)
    for disk_id in rounds.removed:
        assert effects[disk_id] == {"createVolume": 1, "deleteImage": 1}, f"{disk_id}: {effects.get(disk_id)}"
    for disk_id in rounds.present:
        assert effects[disk_id] == {"createVolume": 1}, f"{disk_id}: {effects.get(disk_id)}"
    await until_answered(lambda: _assert_sound(client, rounds))
    await _assert_tasks_cleared(stack)


async def _assert_one_job_each(client: WaybillClient, rounds: Rounds) -> None:
    stored = {job.request_id: job.job_id async for job in client.list_jobs(page_size=1000)}
    assert stored == {job.request_id: job.job_id for job in rounds.jobs}


async def _assert_sound(client: WaybillClient, rounds: Rounds) -> None:
    assert await client.check_consistency() == []
    assert [lock async for lock in client.list_locks()] == []
    disks = {disk.entity_id: disk.status async for disk in client.list_entities(EntityType.ENTITY_TYPE_DISK)}
    assert disks == dict.fromkeys(rounds.present, "OK")


async def _effects(stack: Stack) -> dict[str, dict[str, int]]:
    """Real effects by volume and verb, over all hosts."""
    found: dict[str, dict[str, int]] = {}
    for host in stack.hosts:
        async with HostClient(host.address, wait_for_ready=True) as agent:
            for thing in (await agent.get_host()).objects:
                counted = {counter.verb: counter.effects for counter in thing.counters if counter.effects}
                if thing.kind == "volume" and counted:
                    assert thing.object_id not in found, f"{thing.object_id} was made on two hosts"
                    found[thing.object_id] = counted
    return found


async def _assert_tasks_cleared(stack: Stack) -> None:
    """Ten seconds after the end of a flow no host has a task of it."""
    left: list[str] = []
    for _ in range(100):
        left = [task async for task in _tasks_left(stack)]
        if not left:
            return
        await asyncio.sleep(0.1)  # nobody announces that a host has forgotten; the limit is the promise
    raise AssertionError(f"tasks were not cleared: {left}")


async def _tasks_left(stack: Stack):  # type: ignore[no-untyped-def]
    for host in stack.hosts:
        async with HostClient(host.address, wait_for_ready=True) as agent:
            for info in await agent.list_tasks():
                if info.spec.flow_command_id:
                    yield f"{host.name}: {info.spec.verb} {info.spec.task_id}"
