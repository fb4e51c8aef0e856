"""`waybill hosts`, `events`, `locks`, `check`: a look at the whole."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, NamedTuple

import typer
from rich.text import Text

from waybill.v1.hostagent_pb2 import GetHostResponse, HostObject
from waybill.v1.jobs_pb2 import Entity, EntityType, Event, Lock, Severity
from waybill.v1.jobstore_pb2 import Violation
from waybill_cli.exits import Exit
from waybill_cli.jobs import first, whole_job_id
from waybill_cli.options import CorrelationIdOption, EntityOption, FilterOption, FormatOption, LimitOption
from waybill_cli.output import Column, Format, clock_word, show_rows, subject_word, tell
from waybill_cli.records import record
from waybill_cli.session import perform, session_of
from waybill_client import HostClient, WaybillError, where
from waybill_client.words import entity_word, plain, severity_word

_SEVERITY_STYLES = {
    Severity.SEVERITY_WARNING: "yellow",
    Severity.SEVERITY_ERROR: "red",
    Severity.SEVERITY_ALERT: "bold red",
}


class Host(NamedTuple):
    """What is declared of a host, and what its agent answered: None if it did not."""

    entity: Entity
    answer: GetHostResponse | None

    @property
    def address(self) -> str:
        return str(plain(self.entity.declared).get("address", ""))


class Held(NamedTuple):
    """An object on a host."""

    host_id: str
    thing: HostObject


EVENTS_OF_A_JOB: list[Column[Event]] = [
    Column("TIME", lambda event: clock_word(event.time)),
    Column("SEVERITY", lambda event: severity_text(event.severity)),
    Column("EVENT", lambda event: event.event_type),
    Column("ENTITY", lambda event: subject_word(event.entity)),
    Column("MESSAGE", lambda event: event.message),
    Column("USER", lambda event: event.user),
]

EVENT_COLUMNS: list[Column[Event]] = [
    *EVENTS_OF_A_JOB,
    Column("JOB", lambda event: event.job_id, whole=True),
    Column("CORRELATION ID", lambda event: event.correlation_id),
]

LOCK_COLUMNS: list[Column[Lock]] = [
    Column("ENTITY", lambda lock: f"{entity_word(lock.entity_type)}/{lock.entity_id}"),
    Column("KIND", lambda lock: _kind(lock)),
    Column("SINCE", lambda lock: clock_word(lock.create_time)),
    Column("JOB", lambda lock: lock.job_id, whole=True),
    Column("REASON", lambda lock: lock.reason),
]

HOST_COLUMNS: list[Column[Host]] = [
    Column("HOST", lambda host: host.entity.entity_id),
    Column("STATUS", lambda host: host.entity.status),
    Column("STATE", lambda host: host.entity.observed.state),
    Column("ADDRESS", lambda host: host.address),
    Column("AGENT", lambda host: host.answer.driver if host.answer else Text("away", style="red")),
    Column("RUNNING", lambda host: str(host.answer.running_tasks) if host.answer else ""),
    Column("WAITING", lambda host: str(host.answer.queued_tasks) if host.answer else ""),
    Column("OBJECTS", lambda host: str(len(_present(host))) if host.answer else ""),
]

OBJECT_COLUMNS: list[Column[Held]] = [
    Column("HOST", lambda held: held.host_id),
    Column("KIND", lambda held: held.thing.kind),
    Column("OBJECT", lambda held: held.thing.object_id),
    Column("STATE", lambda held: held.thing.state),
    Column("GENERATION", lambda held: str(held.thing.generation)),
    Column(
        "EFFECTS (ATTEMPTS)",
        lambda held: ", ".join(f"{each.verb} {each.effects} ({each.attempts})" for each in held.thing.counters),
    ),
]

VIOLATION_COLUMNS: list[Column[Violation]] = [
    Column("RULE", lambda violation: Text(violation.rule, style="red")),
    Column("JOB", lambda violation: violation.job_id, whole=True),
    Column("MESSAGE", lambda violation: violation.message),
]


def hosts(
    context: typer.Context,
    objects: Annotated[bool, typer.Option("--objects", help="Show the volumes and VMs that they have.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Shows the hosts, and asks their agents how they are."""

    async def work() -> None:
        async with session_of(context).client() as client:
            entities = [each async for each in client.list_entities(EntityType.ENTITY_TYPE_HOST)]
        asked = await asyncio.gather(*(ask_host(entity) for entity in entities))
        if objects:
            held = [Held(host.entity.entity_id, thing) for host in asked for thing in _present(host)]
            show_rows(held, OBJECT_COLUMNS, output, _object_record)
        else:
            show_rows(asked, HOST_COLUMNS, output, _host_record)

    perform(work())


def events(
    context: typer.Context,
    job_id: Annotated[str | None, typer.Option("--job", metavar="JOB_ID", help="Of a job, its steps too.")] = None,
    correlation_id: CorrelationIdOption = None,
    entity: EntityOption = None,
    severity: Annotated[str | None, typer.Option(help="NORMAL, WARNING, ERROR or ALERT.")] = None,
    filter: FilterOption = "",
    limit: LimitOption = 200,
    output: FormatOption = Format.TABLE,
) -> None:
    """Shows the audit log, oldest first."""

    async def work() -> None:
        async with session_of(context).client() as client:
            terms = where(
                job_id=await whole_job_id(client, job_id) if job_id else None,
                correlation_id=correlation_id,
                entity=entity,
                severity=severity.upper() if severity else None,
            )
            wanted = " AND ".join(each for each in (terms, filter) if each)
            columns = EVENTS_OF_A_JOB if job_id else EVENT_COLUMNS
            show_rows(await first(limit, client.list_events(wanted)), columns, output)

    perform(work())


def locks(context: typer.Context, limit: LimitOption = 200, output: FormatOption = Format.TABLE) -> None:
    """Shows the locks that jobs hold now, and who queues for them."""

    async def work() -> None:
        async with session_of(context).client() as client:
            show_rows(await first(limit, client.list_locks()), LOCK_COLUMNS, output)

    perform(work())


def check(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """Checks what must always hold. Exit code 1 if something does not."""

    async def work() -> Exit:
        async with session_of(context).client() as client:
            violations = await client.check_consistency()
        if violations or output.is_data:
            show_rows(violations, VIOLATION_COLUMNS, output)
        else:
            tell("consistent: no violation found")
        return Exit.JOB_FAILED if violations else Exit.OK

    perform(work())


async def ask_host(entity: Entity) -> Host:
    """Asks a host's agent how it is, for two seconds at most."""
    host = Host(entity, None)
    if not host.address:
        return host
    try:
        async with HostClient(host.address, timeout=2.0) as agent:
            return Host(entity, await agent.get_host())
    except WaybillError:
        return host


def _kind(lock: Lock) -> str:
    kind = "exclusive" if lock.exclusive else "shared"
    return f"{kind}, queues until {clock_word(lock.waits_until)}" if lock.waiting else kind


def severity_text(severity: Severity.ValueType) -> Text:
    """A severity word in its colour."""
    return Text(severity_word(severity), style=_SEVERITY_STYLES.get(severity, ""))


def _present(host: Host) -> list[HostObject]:
    return [each for each in host.answer.objects if each.state != "GONE"] if host.answer else []


def _host_record(host: Host) -> dict[str, Any]:
    agent = record(host.answer) if host.answer else None
    return {**record(host.entity), "agent": agent}


def _object_record(held: Held) -> dict[str, Any]:
    return {"host_id": held.host_id, **record(held.thing)}
