"""`waybill demo`: the whole of Waybill in two minutes, on a fresh machine, checked against what it should have done.

    1  everything is started, with a data folder of its own; the data centre of demo.yaml is loaded
    2  VM `web`: four AddDisk, RunVm, StopVm, RemoveVm; all of it FINISHED, nothing left on the hosts
    3  VM `mail`: the same, but one host is told to fail one deletion: exactly that step and the job FAILED, that disk
       ILLEGAL with an event, the other three disks and the VM gone
    4  VMs `shop` and `build` run on one host: shop's disk is moved to the other one, stage by stage, while shop writes
       to it; then their host goes to maintenance, which migrates both, and comes back
    5  the audit: consistent, no lock, nothing that a host still remembers; everything is stopped

What is expected is written next to what is done (`self.expect`), is listed at the end, and decides the exit code.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from shlex import join
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape

from waybill.v1.jobs_pb2 import Entity, EntityType, Job
from waybill_cli.datafile import read_entities
from waybill_cli.exits import Complaint, Exit
from waybill_cli.expectations import Expectations
from waybill_cli.follow import Show, shown_as, shown_to_the_end
from waybill_cli.operations import EVENTS_OF_A_JOB
from waybill_cli.output import Format, out, show, show_rows
from waybill_cli.process import StartFailed
from waybill_cli.session import perform
from waybill_cli.stack import Stack
from waybill_cli.tree import JobPicture
from waybill_client import HostClient, WaybillClient, WaybillError, command_request, where
from waybill_client.words import plain

DATA_CENTRE = Path(__file__).with_name("demo.yaml")
FAILING_DISK = "mail-spool"

_VM, _DISK, _HOST = EntityType.ENTITY_TYPE_VM, EntityType.ENTITY_TYPE_DISK, EntityType.ENTITY_TYPE_HOST
_JOB_SECONDS = 60.0  # longer than any of these takes on a slow machine


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder for all data, kept afterwards; else a temporary one.")
    ] = None,
    work_ms: Annotated[int, typer.Option(help="How long a task works on a host, in milliseconds.")] = 1500,
) -> None:
    """Shows all of it: starts everything, removes VMs with their disks, empties a host live, checks, stops everything.

    Exit code 0 if everything went as it should, also what should fail; else 1.
    """
    with _folder(data) as folder:
        perform(_show(folder.absolute(), work_ms))


async def _show(folder: Path, work_ms: int) -> Exit:
    try:
        return await _show_all(folder, work_ms)
    except StartFailed as failed:
        raise Complaint(str(failed), exit_code=Exit.UNREACHABLE) from None
    except TimeoutError:
        raise Complaint(f"no end in {_JOB_SECONDS:.0f} seconds", exit_code=Exit.JOB_FAILED) from None


def _folder(data: Path | None) -> AbstractContextManager[Path]:
    if data is None:
        return _temporary_folder()
    if data.is_dir() and any(data.iterdir()):
        raise typer.BadParameter(f"{data} is not empty", param_hint="--data")
    return nullcontext(data)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="waybill-demo-") as folder:
        yield Path(folder)


async def _show_all(folder: Path, work_ms: int) -> Exit:
    _title("1  A coordinator, a jobstore with its Postgres, two hosts")
    environment = {"HOSTAGENT_SIM_WORK_MS": str(work_ms), "HOSTAGENT_SIM_BOOT_MS": str(work_ms)}
    async with Stack(folder, hosts=2, environment=environment) as stack, AsyncExitStack() as opened:
        client = await opened.enter_async_context(stack.client(user="demo"))
        agents = {
            host.name: await opened.enter_async_context(HostClient(host.address, wait_for_ready=True))
            for host in stack.hosts
        }
        for process in stack.processes:
            out.print(f"  {process.name:<14} {process.address:<16} pid {process.pid}")
        scenes = Demo(client, agents, work_ms)
        await scenes.load_data_centre({host.name: host.address for host in stack.hosts})
        await scenes.remove_a_vm_with_four_disks()
        await scenes.remove_a_vm_with_one_deletion_failing()
        await scenes.empty_a_host()
        await scenes.audit()
    _title("What was expected")
    return Exit.OK if scenes.expect.conclude() else Exit.JOB_FAILED


class Demo:
    """The scenes, on a running stack."""

    def __init__(self, client: WaybillClient, agents: Mapping[str, HostClient], work_ms: int) -> None:
        self.expect = Expectations(client, agents)
        self._client = client
        self._agents = agents
        self._work_ms = work_ms
        self._data_centre = read_entities(DATA_CENTRE)

    async def load_data_centre(self, addresses: dict[str, str]) -> None:
        """Declares hosts and VMs as the file says, hosts under the addresses of their agents."""
        declared = [entity for entity in self._data_centre if entity.entity_type != _DISK]
        for entity in declared:
            if entity.entity_type == _HOST:
                entity.declared["address"] = addresses[entity.entity_id]
        await self._client.put_entities(declared)
        out.print(f"  loaded {DATA_CENTRE.name}: {', '.join(entity.name for entity in declared)}")

    async def remove_a_vm_with_four_disks(self) -> None:
        """VM `web`: everything goes well."""
        _title("2  VM web: four disks on two hosts, a life, and its end")
        correlation_id = f"demo-web-{uuid4().hex[:8]}"
        disks = await self._live_and_die("vm-web", correlation_id)
        await self._program_deletions(disks)
        removed = await self._run("RemoveVm", {"vm_id": "vm-web"}, correlation_id)
        self.expect.status(removed, "FINISHED")
        self.expect.deletions(removed, dict.fromkeys(disks, "FINISHED"))
        await self._expect_removed("vm-web", disks)
        await self.expect.correlation_id(removed, correlation_id)
        await self._show_events(removed)

    async def remove_a_vm_with_one_deletion_failing(self) -> None:
        """VM `mail`: one host will not delete one volume."""
        _title(f"3  VM mail: the same, but the deletion of {FAILING_DISK} fails on its host")
        correlation_id = f"demo-mail-{uuid4().hex[:8]}"
        disks = await self._live_and_die("vm-mail", correlation_id)
        await self._program_deletions(disks, failing=FAILING_DISK)
        removed = await self._run("RemoveVm", {"vm_id": "vm-mail"}, correlation_id)
        self.expect.status(removed, "FAILED")
        self.expect.deletions(removed, {**dict.fromkeys(disks, "FINISHED"), FAILING_DISK: "FAILED"})
        await self._expect_removed("vm-mail", [disk for disk in disks if disk != FAILING_DISK])
        await self.expect.volume(FAILING_DISK, "LEGAL", {"createVolume": 1})
        await self.expect.illegal(FAILING_DISK, removed)
        await self.expect.correlation_id(removed, correlation_id)
        await self._show_events(removed)

    async def empty_a_host(self) -> None:
        """VMs `shop` and `build`: a disk and then a whole host is taken from under them while they run."""
        _title("4  VMs shop and build: their host goes to maintenance, and they notice nothing")
        correlation_id = f"demo-shop-{uuid4().hex[:8]}"
        (disk,) = await self._add_disks("vm-shop", correlation_id)
        placed = [{"vm_id": vm_id, "host_id": "host-1"} for vm_id in ("vm-shop", "vm-build")]
        for ran in await self._run_together("RunVm", placed, correlation_id):
            self.expect.status(ran, "FINISHED")
        destination = {"disk_id": disk, "destination_host_id": "host-2"}
        moved = await self._run("LiveMigrateDisk", destination, correlation_id)
        self.expect.status(moved, "FINISHED")
        await self.expect.whereabouts(disk, {"host-1": "GONE", "host-2": "LEGAL"})
        emptied = await self._run("MaintenanceNumberOfVds", {"host_ids": ["host-1"]}, correlation_id)
        self.expect.status(emptied, "FINISHED")
        for vm_id in ("vm-shop", "vm-build"):
            await self.expect.observed(_VM, vm_id, "UP", "host-2")
        await self.expect.observed(_HOST, "host-1", "MAINTENANCE")
        back = await self._run("ActivateVds", {"host_id": "host-1"}, correlation_id)
        self.expect.status(back, "FINISHED")
        await self.expect.observed(_HOST, "host-1", "UP")
        await self.expect.correlation_id(emptied, correlation_id)
        await self._show_events(emptied)

    async def audit(self) -> None:
        """What must be so after anything."""
        _title("5  The audit")
        await self.expect.consistency()
        await self.expect.cleared_hosts()

    async def _expect_removed(self, vm_id: str, disks: list[str]) -> None:
        """The VM and these disks are not declared any more, and their volumes were deleted once."""
        await self.expect.gone(_VM, vm_id)
        for disk in disks:
            await self.expect.gone(_DISK, disk)
            await self.expect.volume(disk, "GONE", {"createVolume": 1, "deleteImage": 1})

    async def _live_and_die(self, vm_id: str, correlation_id: str) -> list[str]:
        """Gives a VM its disks, runs it and stops it; the ids of its disks."""
        disks = await self._add_disks(vm_id, correlation_id)
        ran = await self._run("RunVm", {"vm_id": vm_id}, correlation_id)
        stopped = await self._run("StopVm", {"vm_id": vm_id}, correlation_id)
        for job in (ran, stopped):
            self.expect.status(job, "FINISHED")
        return disks

    async def _add_disks(self, vm_id: str, correlation_id: str) -> list[str]:
        """Gives a VM its disks; their ids."""
        disks = [
            entity
            for entity in self._data_centre
            if entity.entity_type == _DISK and plain(entity.declared)["vm_id"] == vm_id
        ]
        added = await self._run_together("AddDisk", [_disk_parameters(disk) for disk in disks], correlation_id)
        for job in added:
            self.expect.status(job, "FINISHED")
        return [disk.entity_id for disk in disks]

    async def _run(self, command_type: str, parameters: dict[str, Any], correlation_id: str) -> Job:
        (job,) = await self._run_together(command_type, [parameters], correlation_id)
        return job

    async def _run_together(
        self, command_type: str, parameters: list[dict[str, Any]], correlation_id: str
    ) -> list[Job]:
        """Runs commands at once and shows them to their ends."""
        out.print(f"\n[dim]correlation id {correlation_id}[/dim]")
        for each in parameters:
            assignments = [f"{name}={_written(value)}" for name, value in each.items()]
            out.print(f"[bold]waybill run {escape(join([command_type, *assignments]))}[/bold]", soft_wrap=True)
        requests = [command_request(command_type, each, correlation_id=correlation_id) for each in parameters]
        answers = await self._client.run_multiple_commands(requests)
        with shown_as(Format.TABLE, several=len(answers) > 1) as show_change:
            async with asyncio.timeout(_JOB_SECONDS):
                ended = await asyncio.gather(*(self._to_the_end(answer, show_change) for answer in answers))
        if not out.is_terminal:  # a terminal has been left with the trees
            show(JobPicture(*ended))
        return ended

    async def _to_the_end(self, answer: Job | WaybillError, show_change: Show) -> Job:
        if isinstance(answer, WaybillError):
            raise answer
        return await shown_to_the_end(self._client, answer, show_change)

    async def _program_deletions(self, disks: list[str], failing: str = "") -> None:
        """Tells the hosts how their deletions go: each takes longer than the one before, one may fail half-way."""
        rules: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for number, disk_id in enumerate(disks):
            rule: dict[str, Any] = {
                "verb": "deleteImage",
                "match": {"volume_id": disk_id},
                "work_ms": self._work_ms * (1 + number / 2),
            }
            if disk_id == failing:
                rule |= {"outcome": "fail", "error": "the volume is in use by a backup"}
                out.print(f"\n  {self._host_of(disk_id)} is told to fail the deletion of {disk_id}")
            rules[self._host_of(disk_id)].append(rule)
        for host_id, of_host in rules.items():
            await self._agents[host_id].program(of_host)

    def _host_of(self, disk_id: str) -> str:
        return next(str(plain(each.declared)["host_id"]) for each in self._data_centre if each.entity_id == disk_id)

    async def _show_events(self, job: Job) -> None:
        out.print()
        out.print(f"[bold]waybill events --job {job.job_id}[/bold]")
        events = [event async for event in self._client.list_events(where(job_id=job.job_id))]
        show_rows(events, EVENTS_OF_A_JOB, Format.TABLE)


def _disk_parameters(disk: Entity) -> dict[str, Any]:
    return {"disk_id": disk.entity_id, "name": disk.name, **plain(disk.declared)}


def _written(value: Any) -> str:
    """As `waybill run` reads it."""
    return ",".join(value) if isinstance(value, list) else str(value)


def _title(text: str) -> None:
    out.print()
    out.rule(f"[bold]{text}[/bold]", align="left")
