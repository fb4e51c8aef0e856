"""A small data centre on the real stack, and what a test wants to know of it.

Real processes, real Postgres. Between coordinator and hosts sits a wiretap each, so that a test can tell what was asked
of a host, and how often; what a host really did it asks the host itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tests.e2e.wiretap import Wiretap

from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc
from waybill.v1.hostagent_pb2 import CallRequest, ClearTasksRequest, HostObject, StartTasksRequest, TaskInfo, TaskSpec
from waybill.v1.jobs_pb2 import Entity, EntityType, Event, ExecutionStatus, HostTask, Job, Step
from waybill_cli.stack import Stack
from waybill_client import Complete, HostClient, NotFound, WaybillClient, WaybillError, where
from waybill_client.words import status_word

HOST, VM, DISK = EntityType.ENTITY_TYPE_HOST, EntityType.ENTITY_TYPE_VM, EntityType.ENTITY_TYPE_DISK
FINISHED, FAILED = ExecutionStatus.EXECUTION_STATUS_FINISHED, ExecutionStatus.EXECUTION_STATUS_FAILED
ABORTED, SKIPPED = ExecutionStatus.EXECUTION_STATUS_ABORTED, ExecutionStatus.EXECUTION_STATUS_SKIPPED
STARTED, UNKNOWN = ExecutionStatus.EXECUTION_STATUS_STARTED, ExecutionStatus.EXECUTION_STATUS_UNKNOWN

ENDS_WITHIN = 60.0  # far more than anything here takes: what needs it has hung
CLEARED_WITHIN = 10.0  # the design's promise


@dataclass
class DataCentre:
    """The stack, a client of it, and its hosts: by id, as clients and as wiretaps."""

    stack: Stack
    client: WaybillClient
    hosts: dict[str, HostClient]
    taps: dict[str, Wiretap]

    # --- what is done to it ------------------------------------------------------------------------------------------

    async def declare_vm(self, vm_id: str, **declared: Any) -> None:
        """Declares a VM that is down."""
        vm = Entity(entity_type=VM, entity_id=vm_id, name=f"{vm_id}'s name")
        vm.declared.update({"disk_ids": [], "memory_mb": 64, **declared})
        await self.client.put_entities([vm])

    async def declare_disk(self, disk_id: str, host_id: str) -> None:
        """Declares a disk, whether its host has the volume or not."""
        disk = Entity(entity_type=DISK, entity_id=disk_id)
        disk.declared.update({"host_id": host_id, "volume_id": disk_id, "size_mb": 10})
        await self.client.put_entities([disk])

    async def furnish(self, vm_id: str, disks: int = 4) -> list[str]:
        """Declares a VM and gives it disks by AddDisk, on the hosts in turn; returns their ids."""
        await self.declare_vm(vm_id)
        disk_ids = [f"{vm_id}-disk-{number}" for number in range(disks)]
        jobs = await asyncio.gather(*(self.add_disk(disk_id, vm_id) for disk_id in disk_ids))
        assert_all_finished(jobs)
        return disk_ids

    async def add_disk(self, disk_id: str, vm_id: str) -> Job:
        """Runs AddDisk to its end: the host follows from the number at the end of the id."""
        host_id = list(self.hosts)[int(disk_id.rpartition("-")[2]) % len(self.hosts)]
        parameters = {"disk_id": disk_id, "size_mb": 10, "host_id": host_id, "vm_id": vm_id}
        return await self.run("AddDisk", parameters)

    async def run(self, command_type: str, parameters: dict[str, Any], **options: Any) -> Job:
        """Runs a command and returns its job, with steps, when it has ended."""
        job = await self.client.run_command(command_type, parameters, **options)
        return await self.ended(job)

    async def ended(self, job: Job) -> Job:
        """Waits for the end of a job and returns it with its steps."""
        return await self.client.wait(job.job_id, timeout=ENDS_WITHIN, poll_seconds=1)

    async def program(self, host_id: str, *rules: dict[str, Any]) -> None:
        """Tells a host how its verbs behave from now on."""
        await self.hosts[host_id].program(rules)

    async def behave(self) -> None:
        """Has all hosts behave again."""
        for host in self.hosts.values():
            await host.program([])

    # --- what became of it -------------------------------------------------------------------------------------------

    async def objects(self) -> dict[str, list[HostObject]]:
        """All objects of all hosts by their ids; one host's each, unless something went wrong."""
        found: dict[str, list[HostObject]] = {}
        for host in self.hosts.values():
            for thing in (await host.get_host()).objects:
                found.setdefault(thing.object_id, []).append(thing)
        return found

    async def effects(self, object_id: str) -> dict[str, int]:
        """How often each verb really changed an object, over all hosts."""
        counted: dict[str, int] = {}
        for thing in (await self.objects()).get(object_id, []):
            for counter in thing.counters:
                counted[counter.verb] = counted.get(counter.verb, 0) + counter.effects
        return {verb: effects for verb, effects in counted.items() if effects}

    async def counters(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Everything that hosts have ever begun: attempts and effects by host, object and verb, but for programming."""
        return {
            (host_id, thing.object_id, counter.verb): (counter.attempts, counter.effects)
            for host_id, host in self.hosts.items()
            for thing in (await host.get_host()).objects
            for counter in thing.counters
            if counter.verb != "simProgram"
        }

    async def volume_state(self, volume_id: str) -> str:
        """LEGAL, ILLEGAL, or GONE if no host has the volume."""
        states = {thing.state for thing in (await self.objects()).get(volume_id, []) if thing.kind == "volume"}
        return (states - {"GONE"} or {"GONE"}).pop()

    async def entity(self, entity_type: EntityType.ValueType, entity_id: str) -> Entity | None:
        """An entity; None if it is gone."""
        try:
            return await self.client.get_entity(entity_type, entity_id)
        except NotFound:
            return None

    async def events(self, job: Job, *event_types: str) -> list[Event]:
        """The audit log of a job, of these types only if some are named."""
        events = [event async for event in self.client.list_events(where(job_id=job.job_id))]
        return [event for event in events if not event_types or event.event_type in event_types]

    async def host_tasks(self, job: Job) -> list[HostTask]:
        """The begun leaves of a job's plans."""
        return [task async for task in self.client.list_host_tasks(job_id=job.job_id)]

    async def tasks_on_hosts(self, job: Job | None = None) -> list[TaskInfo]:
        """What hosts know of the tasks and calls of a flow, or of all flows."""
        infos = [info for host in self.hosts.values() for info in await host.list_tasks()]
        flows = [info for info in infos if info.spec.flow_command_id]
        return [info for info in flows if job is None or info.spec.flow_command_id == job.flow_command_id]

    async def head(self) -> int:
        """The store's revision."""
        async for change in self.client.watch_jobs(where(correlation_id="nobody-s")):
            if isinstance(change, Complete):
                return change.revision
        raise AssertionError("the watch ended")

    async def stored(self) -> tuple[int, list[tuple[str, int]]]:
        """All that a refused request must leave as it is: the store's revision, and every job at its own."""
        jobs = [job async for job in self.client.list_jobs("visible = true", page_size=1000)]
        jobs += [job async for job in self.client.list_jobs("visible = false", page_size=1000)]
        return await self.head(), [(job.job_id, job.revision) for job in jobs]

    # --- what was asked of the hosts ---------------------------------------------------------------------------------

    def specs_sent(self, job: Job) -> list[TaskSpec]:
        """Every task and call of a flow that was sent to a host, as often as it was."""
        specs = [spec for tap in self.taps.values() for each in tap.requests(StartTasksRequest) for spec in each.tasks]
        specs += [each.call for tap in self.taps.values() for each in tap.requests(CallRequest)]
        return [spec for spec in specs if spec.flow_command_id == job.flow_command_id]

    def clears_sent(self) -> list[str]:
        """Ids of tasks that hosts were told to forget, as often as they were."""
        requests = [each for tap in self.taps.values() for each in tap.requests(ClearTasksRequest)]
        return [task_id for each in requests for task_id in each.task_ids]

    # --- waiting for what nobody announces ---------------------------------------------------------------------------

    async def until(self, holds: Callable[[], Awaitable[bool]], within: float = ENDS_WITHIN) -> None:
        """Looks again and again until something holds that no stream tells of."""
        async with asyncio.timeout(within):
            while not await holds():  # noqa: ASYNC110 - nobody here could set an event
                await asyncio.sleep(0.05)

    async def until_running(self, job: Job, tasks: int = 1) -> list[TaskInfo]:
        """Waits until hosts have so many tasks of a flow; returns them."""
        found: list[TaskInfo] = []

        async def are_there() -> bool:
            found[:] = await self.tasks_on_hosts(job)
            return len(found) >= tasks

        await self.until(are_there)
        return found

    async def until_rest(self) -> None:
        """Waits until hosts have forgotten every flow, and the store knows that they have."""

        async def is_at_rest() -> bool:
            if await self.tasks_on_hosts():
                return False
            left = [task for host_id in self.hosts async for task in self.client.list_host_tasks(host_id=host_id)]
            return all(task.cleared for task in left)

        await self.until(is_at_rest, CLEARED_WITHIN)


@asynccontextmanager
async def data_centre(
    folder: Path, *, hosts: int = 2, tapped: bool = True, **options: Any
) -> AsyncIterator[DataCentre]:
    """Starts a stack (with the options of Stack) whose hosts, if `tapped`, have the addresses of their wiretaps.

    What is killed in it, however often, is back at once; and a command's answer has its plan, however slow the machine.
    """
    environment = {"COORDINATOR_PLAN_SECONDS": "10", **options.get("environment", {})}
    options = {"longest_delay": 0.2, **options, "environment": environment}
    async with AsyncExitStack() as parts:
        stack = await parts.enter_async_context(Stack(folder, hosts=hosts, **options))
        taps = {host.name: await parts.enter_async_context(Wiretap(host.address)) for host in stack.hosts if tapped}
        agents = {
            host.name: await parts.enter_async_context(HostClient(host.address, wait_for_ready=True))
            for host in stack.hosts
        }
        client = await parts.enter_async_context(stack.client(wait_for_ready=True))
        if tapped:
            await client.put_entities(_declared(host_id, tap.address) for host_id, tap in taps.items())
        centre = DataCentre(stack, client, agents, taps)
        await centre.until(lambda: _all_up(client, hosts))
        yield centre


def _declared(host_id: str, address: str) -> Entity:
    host = Entity(entity_type=HOST, entity_id=host_id, name=host_id)
    host.declared["address"] = address
    return host


async def _all_up(client: WaybillClient, hosts: int) -> bool:
    return len([host async for host in client.list_entities(HOST, "state = UP")]) == hosts


def steps_of(job: Job, step_type: str) -> list[Step]:
    """The steps of a type, in display order."""
    return [step for step in job.steps if step.step_type == step_type]


def outline(job: Job) -> list[tuple[str, str]]:
    """Type and status of every step, in display order."""
    return [(step.step_type, status_word(step.status)) for step in job.steps]


def reason_of(thing: Job | Step | HostTask) -> str:
    """The reason in an error; empty if there is none."""
    return WaybillError.from_status(thing.error).reason if thing.HasField("error") else ""


def assert_all_finished(jobs: Iterable[Job]) -> None:
    """Every job ended well, with everything about it."""
    for job in jobs:
        assert job.status == FINISHED, job
        assert job.progress == 100


async def assert_all_over(centre: DataCentre, jobs: Sequence[Job], *, killed: bool = False) -> None:
    """What must be true of jobs that have ended, however they did: no lock, no task, each task cleared once.

    Or more often if a coordinator was `killed`: between a clear and its record, and its heir sends it again.
    """
    await centre.until_rest()
    assert [lock async for lock in centre.client.list_locks()] == []
    assert await centre.client.check_consistency() == []
    cleared = centre.clears_sent()
    for job in jobs:
        sent = {spec.task_id for spec in centre.specs_sent(job)}
        times = {task_id: cleared.count(task_id) for task_id in sent}
        assert all(times.values()) if killed else set(times.values()) <= {1}, times
        assert not [step for step in job.steps if not step.HasField("end_time")]


def violations(jobstore: str) -> list[jobstore_pb2.Violation]:
    """What CheckConsistency finds, asked without a loop: a module's stack has one, which stands still between tests."""
    with grpc.insecure_channel(jobstore) as channel:
        stub = jobstore_pb2_grpc.JobStoreStub(channel)
        asked = jobstore_pb2.CheckConsistencyRequest()
        return list(stub.CheckConsistency(asked, timeout=ENDS_WITHIN, wait_for_ready=True).violations)
