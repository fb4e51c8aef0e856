"""`waybill demo`: the whole of Waybill in a minute, on a fresh machine, checked against what it should have done.

    1  everything is started, with a data folder of its own; the data centre of demo.yaml is loaded
    2  VM `web`: four AddDisk, RunVm, StopVm, RemoveVm; all of it FINISHED, nothing left on the hosts
    3  VM `mail`: the same, but one host is told to fail one deletion: exactly that step and the job FAILED, that disk
       ILLEGAL with an event, the other three disks and the VM gone
    4  the audit: consistent, no lock, nothing that a host still remembers; everything is stopped

What is expected is written next to what is done (`expect`), is listed at the end, and decides the exit code.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from shlex import join
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape

from waybill.v1.hostagent_pb2 import HostObject
from waybill.v1.jobs_pb2 import Entity, EntityType, Job, Step
from waybill_cli.datafile import read_entities
from waybill_cli.exits import Exit
from waybill_cli.follow import Show, shown_as, shown_to_the_end
from waybill_cli.operations import EVENTS_OF_A_JOB
from waybill_cli.output import Format, out, show, show_rows
from waybill_cli.process import StartFailed
from waybill_cli.session import complain, perform
from waybill_cli.stack import Stack
from waybill_cli.tree import JobPicture
from waybill_client import HostClient, NotFound, WaybillClient, WaybillError, command_request, status_word, where
from waybill_client.words import plain

DATA_CENTRE = Path(__file__).with_name("demo.yaml")
FAILING_DISK = "mail-spool"

_VM, _DISK, _HOST = EntityType.ENTITY_TYPE_VM, EntityType.ENTITY_TYPE_DISK, EntityType.ENTITY_TYPE_HOST
_CLEARED_SECONDS = 15.0


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder for all data, kept afterwards; else a temporary one.")
    ] = None,
    work_ms: Annotated[int, typer.Option(help="How long a task works on a host, in milliseconds.")] = 1500,
) -> None:
    """Shows all of it: starts everything, removes two VMs with four disks each, checks the outcome, stops everything.

    Exit code 0 if everything went as it should, also what should fail; else 1.
    """

    async def work() -> Exit:
        folder = data or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="waybill-demo-")))
        try:
            return await _show_all(folder.absolute(), work_ms)
        except StartFailed as failed:
            complain(str(failed))
            return Exit.UNREACHABLE

    with ExitStack() as cleanup:
        perform(work())


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
        scene = Demo(client, agents, read_entities(DATA_CENTRE), Findings(), work_ms)
        await scene.load_data_centre({host.name: host.address for host in stack.hosts})
        await scene.remove_a_vm_with_four_disks()
        await scene.remove_a_vm_with_one_deletion_failing()
        await scene.audit()
    return scene.findings.conclude()


class Findings:
    """What was expected, and whether it was so."""

    def __init__(self) -> None:
        self._found: list[tuple[bool, str, str]] = []

    def expect(self, what: str, seen: Any, wanted: Any) -> None:
        """Notes whether what was seen is what was wanted."""
        as_it_should = seen == wanted
        self._found.append((as_it_should, what, "" if as_it_should else f": wanted {wanted!r}, saw {seen!r}"))

    def conclude(self) -> Exit:
        """Lists everything; the program's exit code."""
        _title("What was expected")
        for as_it_should, what, difference in self._found:
            sign = "[green]✓[/green]" if as_it_should else "[bold red]✗[/bold red]"
            out.print(f"  {sign} {what}{escape(difference)}", soft_wrap=True)
        wrong = sum(not as_it_should for as_it_should, _, _ in self._found)
        out.print()
        out.print(f"{wrong} of {len(self._found)} are not so" if wrong else "[bold green]All of it is so.[/bold green]")
        return Exit.JOB_FAILED if wrong else Exit.OK


class Demo:
    """The scenes, on a running stack."""

    def __init__(
        self,
        client: WaybillClient,
        agents: dict[str, HostClient],
        data_centre: list[Entity],
        findings: Findings,
        work_ms: int,
    ) -> None:
        self.findings = findings
        self._client = client
        self._agents = agents
        self._data_centre = data_centre
        self._work_ms = work_ms

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
        self._expect_status(removed, "FINISHED")
        self._expect_steps(removed, dict.fromkeys(disks, "FINISHED"))
        await self._expect_gone("VM web", _VM, "vm-web")
        for disk in disks:
            await self._expect_gone(f"disk {disk}", _DISK, disk)
            await self._expect_volume(disk, "GONE", {"createVolume": 1, "deleteImage": 1})
        await self._expect_one_correlation_id(removed, correlation_id)
        await self._show_events(removed)

    async def remove_a_vm_with_one_deletion_failing(self) -> None:
        """VM `mail`: one host will not delete one volume."""
        _title(f"3  VM mail: the same, but the deletion of {FAILING_DISK} fails on its host")
        correlation_id = f"demo-mail-{uuid4().hex[:8]}"
        disks = await self._live_and_die("vm-mail", correlation_id)
        await self._program_deletions(disks, failing=FAILING_DISK)
        removed = await self._run("RemoveVm", {"vm_id": "vm-mail"}, correlation_id)
        self._expect_status(removed, "FAILED")
        self._expect_steps(removed, {disk: "FAILED" if disk == FAILING_DISK else "FINISHED" for disk in disks})
        await self._expect_gone("VM mail", _VM, "vm-mail")
        for disk in disks:
            if disk != FAILING_DISK:
                await self._expect_gone(f"disk {disk}", _DISK, disk)
                await self._expect_volume(disk, "GONE", {"createVolume": 1, "deleteImage": 1})
        await self._expect_volume(FAILING_DISK, "LEGAL", {"createVolume": 1})
        await self._expect_illegal(FAILING_DISK, removed)
        await self._expect_one_correlation_id(removed, correlation_id)
        await self._show_events(removed)

    async def audit(self) -> None:
        """What must be so after anything."""
        _title("4  The audit")
        violations = await self._client.check_consistency()
        out.print(f"  CheckConsistency: {violations or 'no violation'}")
        self.findings.expect("the store is consistent", [each.message for each in violations], [])
        locks = [f"{each.entity_id} by {each.job_id}" async for each in self._client.list_locks()]
        self.findings.expect("no lock is held", locks, [])
        for host_id, agent in self._agents.items():
            self.findings.expect(f"{host_id} was told to forget every task", await _remembered(agent), [])

    async def _live_and_die(self, vm_id: str, correlation_id: str) -> list[str]:
        """Gives a VM its disks, runs it and stops it; the ids of its disks."""
        disks = [
            entity
            for entity in self._data_centre
            if entity.entity_type == _DISK and plain(entity.declared)["vm_id"] == vm_id
        ]
        added = await self._run_together("AddDisk", [_disk_parameters(disk) for disk in disks], correlation_id)
        ran = await self._run("RunVm", {"vm_id": vm_id}, correlation_id)
        stopped = await self._run("StopVm", {"vm_id": vm_id}, correlation_id)
        for job in (*added, ran, stopped):
            self._expect_status(job, "FINISHED")
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
            assignments = [f"{name}={value}" for name, value in each.items()]
            out.print(f"[bold]waybill run {escape(join([command_type, *assignments]))}[/bold]", soft_wrap=True)
        requests = [command_request(command_type, each, correlation_id=correlation_id) for each in parameters]
        answers = await self._client.run_multiple_commands(requests)
        with shown_as(Format.TABLE, several=len(answers) > 1) as show_change:
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

    async def _expect_one_correlation_id(self, job: Job, correlation_id: str) -> None:
        """Every row of a job must bear its correlation id."""
        rows: list[Any] = [job, *job.steps]
        rows += [event async for event in self._client.list_events(where(job_id=job.job_id))]
        rows += [command async for command in self._client.list_commands(job.flow_command_id)]
        rows += [task async for task in self._client.list_host_tasks(job_id=job.job_id)]
        what = f"{job.description}: job, steps, events, commands and tasks, {len(rows)} rows, bear {correlation_id}"
        self.findings.expect(what, {row.correlation_id for row in rows}, {correlation_id})

    def _expect_status(self, job: Job, wanted: str) -> None:
        self.findings.expect(f"{job.description}: {wanted}", status_word(job.status), wanted)

    def _expect_steps(self, job: Job, wanted: dict[str, str]) -> None:
        seen = {step.subjects[0].entity_id: status_word(step.status) for step in deletions(job)}
        what = f"its deletions: {list(wanted.values()).count('FINISHED')} FINISHED of {len(wanted)}"
        self.findings.expect(f"{job.description}, {what}", seen, wanted)

    async def _expect_gone(self, name: str, entity_type: EntityType.ValueType, entity_id: str) -> None:
        try:
            seen = (await self._client.get_entity(entity_type, entity_id)).status
        except NotFound:
            seen = "gone"
        self.findings.expect(f"{name} is gone", seen, "gone")

    async def _expect_volume(self, volume_id: str, state: str, effects: dict[str, int]) -> None:
        things = [thing for agent in self._agents.values() for thing in (await agent.get_host()).objects]
        seen = [(thing.state, effects_on(thing)) for thing in things if thing.object_id == volume_id]
        counted = ", ".join(f"{verb} {count}×" for verb, count in effects.items())
        self.findings.expect(f"volume {volume_id} is {state}; real effects: {counted}", seen, [(state, effects)])

    async def _expect_illegal(self, disk_id: str, job: Job) -> None:
        disk = await self._client.get_entity(_DISK, disk_id)
        self.findings.expect(f"disk {disk_id} is ILLEGAL", disk.status, "ILLEGAL")
        told = [
            event.entity.entity_id
            async for event in self._client.list_events(where(job_id=job.job_id))
            if event.event_type == "DISK_ILLEGAL"
        ]
        self.findings.expect("one event tells of it", told, [disk_id])


def deletions(job: Job) -> list[Step]:
    """The steps that delete an image."""
    return [step for step in job.steps if step.step_type == "DELETE_IMAGE"]


def effects_on(thing: HostObject) -> dict[str, int]:
    """How often each verb really changed the object."""
    return {counter.verb: counter.effects for counter in thing.counters if counter.effects}


async def _remembered(agent: HostClient) -> list[str]:
    """The tasks that a host still knows, once it has had the time to be told to forget them."""
    deadline = asyncio.get_running_loop().time() + _CLEARED_SECONDS
    while True:
        known = [task.spec.task_id for task in await agent.list_tasks() if task.spec.flow_command_id]
        if not known or asyncio.get_running_loop().time() > deadline:
            return known
        await asyncio.sleep(0.2)


def _disk_parameters(disk: Entity) -> dict[str, Any]:
    return {"disk_id": disk.entity_id, "name": disk.name, **plain(disk.declared)}


def _title(text: str) -> None:
    out.print()
    out.rule(f"[bold]{text}[/bold]", align="left")
