"""`waybill trace`: everything that bears a correlation id, in the order of time."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from google.protobuf.message import Message
from rich.console import Group
from rich.text import Text

from waybill.v1.jobs_pb2 import Command, Event, HostTask, Job, JobView, Lock, Step
from waybill_cli import completion
from waybill_cli.exits import Complaint, Exit
from waybill_cli.jaeger import Jaeger, NoSpans, Span
from waybill_cli.jobs import NoJobLike, whole_job_id
from waybill_cli.options import FormatOption
from waybill_cli.output import Format, fact_table, out, printable, show, show_data, tell, warn
from waybill_cli.session import perform, session_of
from waybill_cli.things import (
    KINDS,
    Thing,
    began_at,
    in_order,
    of_command,
    of_event,
    of_job,
    of_lock,
    of_span,
    of_step,
    of_task,
    thing_record,
)
from waybill_cli.timeline import Timeline, show_lines
from waybill_client import NotFound, WaybillClient, where

Item = TypeVar("Item", bound=Message)
Owner = TypeVar("Owner")

_CORRELATION_ID = re.compile(r"[0-9A-Za-z_-]{1,50}", re.ASCII)
_PAGE = 1000
_AT_ONCE = 8  # questions under way: an action may have thousands of jobs
_STEP_EVENTS = ("STEP_STARTED", "STEP_ENDED")


class Found(NamedTuple):
    """What bears a correlation id, in the jobstore."""

    correlation_id: str
    jobs: list[Job]
    steps: list[Step]
    commands: list[Command]
    tasks: list[HostTask]
    locks: list[Lock]
    events: list[Event]

    def things(self) -> Iterator[Thing]:
        """All of it."""
        hosts = {task.task_id: task.host_id for task in self.tasks}
        yield from map(of_job, self.jobs)
        yield from map(of_command, self.commands)
        yield from (of_step(step, hosts) for step in self.steps)
        yield from map(of_lock, self.locks)
        yield from map(of_task, self.tasks)
        yield from map(of_event, self.events)


def trace(
    context: typer.Context,
    id: Annotated[
        str,
        typer.Argument(
            metavar="CORRELATION_ID|JOB_ID",
            help="The action; of a job, the beginning or end of its id will do.",
            autocompletion=completion.job_ids,
        ),
    ],
    output: FormatOption = Format.TABLE,
) -> None:
    """Shows everything that bears a correlation id, in the order of time.

    Jobs, steps, commands, locks, tasks, calls, waits, events; and,
    with WAYBILL_JAEGER_URL or --jaeger, the spans of their traces.

    The events of steps are left out, since the steps are there.
    -o wide adds ids; -o json and -o yaml have all of it.
    """
    if not _CORRELATION_ID.fullmatch(id):
        raise typer.BadParameter(
            f"{printable(id)!r} is neither a correlation id (1-50 of letters, digits, _ and -) nor the id of a job"
        )

    async def work() -> None:
        session = session_of(context)
        jaeger = session.jaeger()
        async with session.client() as client:
            found = await find(client, id)
        spans, problems = await spans_of(found.jobs, jaeger)
        things = in_order([*found.things(), *map(of_span, spans)])
        if output.is_data:
            show_data(_as_data(found, things, problems, jaeger), output)
        else:
            _show(found, things, jaeger, wide=output is Format.WIDE)
        for problem in problems:
            warn(problem)

    perform(work())


async def find(client: WaybillClient, id: str) -> Found:
    """What bears the id; if nothing does, what bears the correlation id of the job that it names."""
    found = await bearing(client, id)
    if found.jobs or found.tasks or found.events:
        return found
    job = await _job_like(client, id)
    tell(f"job {job.job_id} bears the correlation id {job.correlation_id}; here is all that bears it\n")
    return await bearing(client, job.correlation_id)


async def bearing(client: WaybillClient, correlation_id: str) -> Found:
    """Asks for everything with this correlation id."""
    visible, invisible = (where(correlation_id=correlation_id, visible=each) for each in (True, False))
    jobs, hidden, tasks, events = await asyncio.gather(
        _all(client.list_jobs(visible, order_by="create_time", page_size=_PAGE)),
        _all(client.list_jobs(invisible, order_by="create_time", page_size=_PAGE)),
        _all(client.list_host_tasks(correlation_id=correlation_id, page_size=_PAGE)),
        _all(client.list_events(where(correlation_id=correlation_id), page_size=_PAGE)),
    )
    jobs = list({job.job_id: job for job in (*jobs, *hidden)}.values())
    flows = [job.flow_command_id for job in jobs if job.flow_command_id]
    steps = await _of_each(jobs, lambda job: client.list_steps(job.job_id, page_size=_PAGE))
    commands = await _of_each(flows, lambda flow: client.list_commands(flow, page_size=_PAGE))
    ids = {job.job_id for job in jobs}
    locks = [lock for lock in await _all(client.list_locks(page_size=_PAGE)) if lock.job_id in ids] if ids else []
    return Found(correlation_id, jobs, steps, commands, tasks, locks, events)


async def spans_of(jobs: Iterable[Job], jaeger: Jaeger | None) -> tuple[list[Span], list[str]]:
    """The spans of the jobs' traces; and, in words, why there are not more."""
    traces = _traces(jobs)
    if jaeger is None:
        return [], ["the spans are not here: set WAYBILL_JAEGER_URL, like http://127.0.0.1:16686"] if traces else []
    spans: list[Span] = []
    problems: list[str] = []
    for trace_id in traces:
        try:
            spans += await jaeger.spans(trace_id)
        except NoSpans as problem:
            problems.append(f"the spans are not here: {problem}")
            if problem.final:
                break
    return spans, problems


async def _job_like(client: WaybillClient, id: str) -> Job:
    try:
        return await client.get_job(await whole_job_id(client, id), JobView.JOB_VIEW_BASIC)
    except (NotFound, NoJobLike):
        raise Complaint(
            f"nothing bears the correlation id {id!r}, and no job is like it",
            "`waybill jobs list` shows the jobs",
            exit_code=Exit.REFUSED,
        ) from None


async def _all(items: AsyncIterator[Item]) -> list[Item]:
    return [each async for each in items]


async def _of_each(owners: Iterable[Owner], items: Callable[[Owner], AsyncIterator[Item]]) -> list[Item]:
    """What belongs to each of them, in their order."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def of(owner: Owner) -> list[Item]:
        async with turn:
            return await _all(items(owner))

    return [item for found in await asyncio.gather(*map(of, owners)) for item in found]


def _traces(jobs: Iterable[Job]) -> list[str]:
    return list(dict.fromkeys(job.trace_id for job in jobs if job.trace_id))


def _show(found: Found, things: list[Thing], jaeger: Jaeger | None, *, wide: bool) -> None:
    now = datetime.now(UTC)
    told = [each for each in things if each.record.get("event_type") not in _STEP_EVENTS]
    if not out.is_terminal:
        show_lines(told, now)
        return
    show(Group(fact_table(_facts(found, told, jaeger)), Text()))
    out.print(Timeline(told, now, ids=wide), soft_wrap=True)


def _facts(found: Found, things: Iterable[Thing], jaeger: Jaeger | None) -> Iterator[tuple[str, str]]:
    yield "correlation id", found.correlation_id
    began = began_at(things)
    if began:
        yield "began", began.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    counts = Counter(thing.kind for thing in things)
    yield "found", ", ".join(f"{counts[kind]} {kind}{'s' * (counts[kind] > 1)}" for kind in KINDS if counts[kind])
    for trace_id in _traces(found.jobs):
        yield "trace", jaeger.link(trace_id) if jaeger else trace_id


def _as_data(found: Found, things: Iterable[Thing], problems: list[str], jaeger: Jaeger | None) -> dict[str, Any]:
    began = began_at(things)
    return {
        "correlation_id": found.correlation_id,
        "job_ids": [job.job_id for job in found.jobs],
        "traces": [
            {"trace_id": trace_id, "link": jaeger.link(trace_id) if jaeger else None}
            for trace_id in _traces(found.jobs)
        ],
        "problems": problems,
        "timeline": [thing_record(thing, began) for thing in things],
    }
