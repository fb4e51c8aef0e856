"""What the demo expects of its jobs: asked of the services and of the hosts themselves, listed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.markup import escape

from waybill.v1.hostagent_pb2 import HostObject
from waybill.v1.jobs_pb2 import EntityType, Event, Job
from waybill_cli.output import out, printable
from waybill_client import HostClient, NotFound, WaybillClient, status_word, where
from waybill_client.words import entity_word

_CLEARED_SECONDS = 15.0


class Finding(NamedTuple):
    """Something that was expected, and whether it was so."""

    what: str
    seen: Any
    wanted: Any

    @property
    def is_so(self) -> bool:
        return bool(self.seen == self.wanted)


class Expectations:
    """Looks at what there is and compares it to what there should be."""

    def __init__(self, client: WaybillClient, agents: Mapping[str, HostClient]) -> None:
        self._client = client
        self._agents = agents
        self._findings: list[Finding] = []

    def status(self, job: Job, wanted: str) -> None:
        """The job has ended so."""
        self._note(f"{job.description}: {wanted}", status_word(job.status), wanted)

    def deletions(self, job: Job, wanted: Mapping[str, str]) -> None:
        """The job has one DELETE_IMAGE for each of these disks, and each has ended so."""
        steps = [step for step in job.steps if step.step_type == "DELETE_IMAGE"]
        seen = [(step.subjects[0].entity_id, status_word(step.status)) for step in steps]
        finished = list(wanted.values()).count("FINISHED")
        what = f"{job.description}: {finished} of {len(wanted)} deletions FINISHED"
        self._note(what, sorted(seen), sorted(wanted.items()))

    async def gone(self, entity_type: EntityType.ValueType, entity_id: str) -> None:
        """The entity is not declared any more."""
        try:
            seen = (await self._client.get_entity(entity_type, entity_id)).status
        except NotFound:
            seen = "gone"
        self._note(f"{entity_word(entity_type)} {entity_id} is gone", seen, "gone")

    async def volume(self, volume_id: str, state: str, effects: dict[str, int]) -> None:
        """One host has, or had, the volume; each verb has changed it so often."""
        things = [thing for agent in self._agents.values() for thing in (await agent.get_host()).objects]
        seen = [(thing.state, _effects_on(thing)) for thing in things if thing.object_id == volume_id]
        counted = ", ".join(f"{verb} {count}×" for verb, count in effects.items())
        self._note(f"volume {volume_id} is {state}; real effects: {counted}", seen, [(state, effects)])

    async def whereabouts(self, volume_id: str, wanted: Mapping[str, str]) -> None:
        """The hosts have, or had, the volume, each in this state."""
        seen = {
            host_id: thing.state
            for host_id, agent in self._agents.items()
            for thing in (await agent.get_host()).objects
            if (thing.kind, thing.object_id) == ("volume", volume_id)
        }
        where = ", ".join(f"{state} on {host_id}" for host_id, state in wanted.items())
        self._note(f"volume {volume_id} is {where}", seen, wanted)

    async def observed(self, entity_type: EntityType.ValueType, entity_id: str, state: str, host_id: str = "") -> None:
        """Hosts have reported it to be so; `host_id`: there, if it matters."""
        seen = (await self._client.get_entity(entity_type, entity_id)).observed
        where = f" on {host_id}" if host_id else ""
        wanted = (state, host_id or seen.host_id)
        self._note(f"{entity_word(entity_type)} {entity_id} is {state}{where}", (seen.state, seen.host_id), wanted)

    async def illegal(self, disk_id: str, job: Job) -> None:
        """The disk is ILLEGAL, and one event of the job tells of it."""
        disk = await self._client.get_entity(EntityType.ENTITY_TYPE_DISK, disk_id)
        self._note(f"DISK {disk_id} is ILLEGAL", disk.status, "ILLEGAL")
        told = [event.entity.entity_id for event in await self._events(job) if event.event_type == "DISK_ILLEGAL"]
        self._note(f"one event tells that {disk_id} is ILLEGAL", told, [disk_id])

    async def correlation_id(self, job: Job, wanted: str) -> None:
        """Every row of the job bears it."""
        rows: list[Any] = [job, *job.steps, *await self._events(job)]
        rows += [command async for command in self._client.list_commands(job.flow_command_id)]
        rows += [task async for task in self._client.list_host_tasks(job_id=job.job_id)]
        what = f"{job.description}: job, steps, events, commands and tasks, {len(rows)} rows, bear {wanted}"
        self._note(what, {row.correlation_id for row in rows}, {wanted})

    async def consistency(self) -> None:
        """Nothing is as it must never be, and nobody holds a lock."""
        violations = [f"{each.rule}: {each.message}" for each in await self._client.check_consistency()]
        out.print(f"  CheckConsistency: {printable(', '.join(violations)) or 'no violation'}", markup=False)
        self._note("the store is consistent", violations, [])
        self._note("no lock is held", [each.entity_id async for each in self._client.list_locks()], [])

    async def cleared_hosts(self) -> None:
        """Every host has been told to forget every task."""
        for host_id, agent in self._agents.items():
            self._note(f"{host_id} was told to forget every task", await _remembered(agent), [])

    def conclude(self) -> bool:
        """Lists everything; True if all of it is so."""
        for finding in self._findings:
            sign = "[green]✓[/green]" if finding.is_so else "[bold red]✗[/bold red]"
            difference = "" if finding.is_so else f": wanted {finding.wanted!r}, saw {finding.seen!r}"
            out.print(f"  {sign} {escape(printable(finding.what + difference))}", soft_wrap=True)
        wrong = sum(not finding.is_so for finding in self._findings)
        verdict = f"[bold red]{wrong} of {len(self._findings)} are not so.[/bold red]"
        out.print(f"\n{verdict if wrong else '[bold green]All of it is so.[/bold green]'}")
        return not wrong

    def _note(self, what: str, seen: Any, wanted: Any) -> None:
        self._findings.append(Finding(what, seen, wanted))

    async def _events(self, job: Job) -> list[Event]:
        return [event async for event in self._client.list_events(where(job_id=job.job_id))]


def _effects_on(thing: HostObject) -> dict[str, int]:
    return {counter.verb: counter.effects for counter in thing.counters if counter.effects}


async def _remembered(agent: HostClient) -> list[str]:
    """The tasks that a host still knows, once there was time to tell it to forget them."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CLEARED_SECONDS
    while True:
        known = [task.spec.task_id for task in await agent.list_tasks() if task.spec.flow_command_id]
        if not known or loop.time() > deadline:
            return known
        await asyncio.sleep(0.2)
