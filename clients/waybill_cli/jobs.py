"""`waybill jobs`: list, fields, get, watch, cancel, delete, priority, stop-tasks, force-end, restart, tasks."""

from __future__ import annotations

import sys
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import typer
from google.protobuf.message import Message
from rich.console import Group
from rich.text import Text

from waybill.v1.jobs_pb2 import HostTask, Job
from waybill.v1.jobstore_pb2 import FilteredKind, FilterField
from waybill_cli import completion
from waybill_cli.exits import Complaint, Exit
from waybill_cli.follow import exit_code_of, follow, shown_as, unseen
from waybill_cli.jaeger import Jaeger
from waybill_cli.options import (
    CorrelationIdOption,
    EntityOption,
    FilterOption,
    FormatOption,
    JobIdArgument,
    LimitOption,
)
from waybill_cli.output import (
    Column,
    Format,
    clock_word,
    duration_word,
    fact_table,
    open_page,
    show_one,
    show_rows,
    status_text,
    subject_word,
    tell,
)
from waybill_cli.session import Session, confirm, perform, session_of
from waybill_cli.tree import JobPicture, reason_line
from waybill_client import WaybillClient, is_ended, where
from waybill_client.words import cancel_word, plain, task_word

Item = TypeVar("Item", bound=Message)

app = typer.Typer(help="What runs and what ran.", no_args_is_help=True)

_ENOUGH = 5  # jobs like a part of an id, to say that there are several

JOB_COLUMNS: list[Column[Job]] = [
    Column("JOB", lambda job: job.job_id, whole=True),
    Column("STATUS", lambda job: status_text(job.status)),
    Column("DONE", lambda job: f"{job.progress}%"),
    Column("CREATED", lambda job: clock_word(job.create_time)),
    Column("TOOK", lambda job: duration_word(job.start_time, job.end_time)),
    Column("COMMAND", lambda job: job.command_type),
    Column("DESCRIPTION", lambda job: job.description),
    Column("CORRELATION ID", lambda job: job.correlation_id),
]

TASK_COLUMNS: list[Column[HostTask]] = [
    Column("TASK", lambda task: task.task_id, whole=True),
    Column("STATE", lambda task: task_word(task)),
    Column("VERB", lambda task: task.verb or "(wait)"),
    Column("HOST", lambda task: task.host_id),
    Column("ENTITY", lambda task: subject_word(task.entity)),
    Column("CREATED", lambda task: clock_word(task.create_time)),
    Column("TOOK", lambda task: duration_word(task.create_time, task.end_time)),
    Column("CLEARED", lambda task: "yes" if task.cleared else "no"),
    Column("ERROR", lambda task: reason_line(task.error) if task.HasField("error") else ""),
]


FIELD_COLUMNS: list[Column[FilterField]] = [
    Column("FIELD", lambda field: f"{field.name}, {field.alias}" if field.alias else field.name, whole=True),
    Column("OPERATORS", lambda field: " ".join(field.operators), whole=True),
    Column("WHAT IT IS", lambda field: field.description),
    Column("VALUE", lambda field: field.value_format),
]


class Filtered(StrEnum):
    """What filters can be about."""

    JOBS = "jobs"
    EVENTS = "events"
    ENTITIES = "entities"


class NoJobLike(Complaint):
    """No job's id begins or ends so."""


@app.command("list")
def list_jobs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="PENDING, STARTED, FINISHED, FAILED ...")] = None,
    command_type: Annotated[str | None, typer.Option("--type", help="Command type.")] = None,
    correlation_id: CorrelationIdOption = None,
    owner: Annotated[str | None, typer.Option(help="Who asked for it.")] = None,
    entity: EntityOption = None,
    filter: FilterOption = "",
    limit: LimitOption = 50,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Oldest first instead of newest.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Lists jobs, newest first."""
    terms = where(
        status=status.upper() if status else None,
        command_type=command_type,
        correlation_id=correlation_id,
        owner=owner,
        entity=entity,
    )
    wanted = " AND ".join(each for each in (terms, filter) if each)
    order_by = "create_time" if oldest_first else ""

    async def work() -> None:
        wide = _wide_columns(session_of(context).jaeger()) if output is Format.WIDE else []
        async with session_of(context).client() as client:
            jobs = client.list_jobs(wanted, order_by=order_by, page_size=min(limit, 1000))
            show_rows(await first(limit, jobs), [*JOB_COLUMNS, *wide], output)

    perform(work())


@app.command("fields")
def list_fields(
    context: typer.Context,
    of: Annotated[Filtered, typer.Option("--of", help="Of which filters.")] = Filtered.JOBS,
    output: FormatOption = Format.TABLE,
) -> None:
    """Lists the fields that filters may name, and how they are compared.

    status = (FAILED OR ABORTED) AND entity:"VM/vm-1"; type = "Remove*" AND has(error); create_time >
    2026-11-22T08:00:00Z AND duration > 90s; NOT owner = ann. Words by themselves are searched for in descriptions.
    """

    async def work() -> None:
        async with session_of(context).client() as client:
            fields = await client.list_filter_fields(FilteredKind.Value(f"FILTERED_KIND_{of.name}"))
        show_rows(fields, FIELD_COLUMNS, output)

    perform(work())


@app.command("get")
def get_job(
    context: typer.Context,
    job_id: JobIdArgument,
    web: Annotated[bool, typer.Option("--web", help="Print the link of its trace in Jaeger, and open it.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Shows a job with its steps. With -o wide also its trace, the link to it, and more.

    --web needs the base URL of Jaeger: WAYBILL_JAEGER_URL.
    """

    async def work() -> None:
        jaeger = session_of(context).jaeger()
        async with session_of(context).client() as client:
            job = await client.get_job(await whole_job_id(client, job_id))
        if web:
            open_page(trace_page(job, jaeger))
        else:
            show_one(job, output, job_details(job, _wide_facts(job, jaeger) if output is Format.WIDE else ()))

    perform(work())


@app.command("watch")
def watch_job(context: typer.Context, job_id: JobIdArgument, output: FormatOption = Format.TABLE) -> None:
    """Follows a job to its end. Ctrl-C leaves the job running."""

    async def work() -> Exit:
        session = session_of(context)
        async with session.client() as client:
            job = await client.get_job(await whole_job_id(client, job_id))
            return exit_code_of(await follow(client, job, shown_as(output), session))

    perform(work())


@app.command("cancel")
def cancel_job(
    context: typer.Context,
    job_id: Annotated[
        str,
        typer.Argument(metavar="[JOB_ID]", help="Whole, or its beginning or end.", autocompletion=completion.job_ids),
    ] = "",
    filter: Annotated[
        str, typer.Option("--filter", help="Instead of one: all that match and have not ended (waybill jobs fields).")
    ] = "",
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when what was asked to stop has ended.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether so many are meant.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Asks a job to stop, by its command type's kind of cancelling; or all that match a filter.

    With a filter the exit code is 4 if one of them refused.
    """

    async def work() -> Exit:
        session = session_of(context)
        if bool(job_id) == bool(filter):
            raise Complaint("which job?", "name one, or say --filter 'type = AddDisk AND owner = ann'")
        async with session.client() as client:
            if filter:
                return await _cancel_all(session, client, filter, reason, output, sure=yes, wait=wait)
            job = await client.cancel_job(await whole_job_id(client, job_id), reason)
            if wait:
                job = await follow(client, job, unseen(), session)
            elif not is_ended(job):
                tell(f"asked to stop; see how it ends with: {session.command_line('jobs', 'watch', job.job_id)}")
            show_one(job, output, JobPicture(job))
            return Exit.OK

    perform(work())


async def _cancel_all(
    session: Session, client: WaybillClient, filter: str, reason: str, output: Format, *, sure: bool, wait: bool
) -> Exit:
    matching = await client.unended_jobs(filter)
    if matching and not sure:
        if not sys.stdin.isatty():
            raise Complaint(f"{len(matching)} jobs match", "say --yes to cancel them")
        confirm(f"cancel {len(matching)} jobs?")
    jobs, refused = [], set()
    async for job, refusal in client.cancel_jobs(matching, reason):
        jobs.append(job)
        if refusal is not None:
            refused.add(job.job_id)
            tell(f"{job.job_id}: {refusal.message}")
    if wait:
        jobs = [job if job.job_id in refused else await follow(client, job, unseen(), session) for job in jobs]
    show_rows(jobs, JOB_COLUMNS, output)
    return Exit.REFUSED if refused else Exit.OK


@app.command("delete")
def delete_jobs(
    context: typer.Context,
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JOB_ID]...", help="Ended jobs.", autocompletion=completion.job_ids),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="All that ended so long ago: 90s, 30m, 12h, 7d.")
    ] = None,
) -> None:
    """Deletes ended jobs, with all that is known of them. Not with tasks that a host has not cleared yet."""

    async def work() -> None:
        if bool(job_ids) == (older_than is not None):
            raise Complaint("which jobs?", "name some, or say --older-than 7d")
        async with session_of(context).client() as client:
            if older_than is not None:
                await _delete_older(client, older_than)
            for job_id in job_ids or ():
                whole = await whole_job_id(client, job_id)
                await client.delete_job(whole)
                tell(f"deleted {whole}")

    perform(work())


async def _delete_older(client: WaybillClient, age: str) -> None:
    answer = await client.delete_jobs(datetime.now(UTC) - an_age(age))
    tell(f"deleted {answer.deleted} jobs")
    if answer.kept:
        tell(
            f"{answer.kept} older ones stay: a host has not cleared their tasks yet, or they are to be deleted by name"
        )


_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def an_age(text: str) -> timedelta:
    """`7d` as a time; Complaint if it is none."""
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and len(number) <= 9 and unit in _UNITS):
        raise Complaint(f"{text!r} is no age", "like 90s, 30m, 12h or 7d")
    return timedelta(seconds=int(number) * _UNITS[unit])


@app.command("priority")
def set_priority(
    context: typer.Context,
    job_id: JobIdArgument,
    priority: Annotated[int, typer.Argument(help="Higher goes first. After -- if negative.")],
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Changes the priority of a job: of what it begins from now on, and of its tasks that wait on their hosts."""

    async def work() -> None:
        async with session_of(context).client() as client:
            job = await client.set_priority(await whole_job_id(client, job_id), priority, reason)
            show_one(job, output, JobPicture(job))

    perform(work())


@app.command("stop-tasks")
def stop_tasks(
    context: typer.Context,
    job_id: JobIdArgument,
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="[TASK_ID]...", help="None: all that run.")] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Stops tasks of a job on their hosts. What that means for the job is up to its plan; to stop it, cancel it."""

    async def work() -> None:
        session = session_of(context)
        async with session.client() as client:
            job = await client.stop_tasks(await whole_job_id(client, job_id), task_ids or [], reason)
            tell(f"asked to stop; see how they end with: {session.command_line('jobs', 'tasks', job.job_id)}")
            show_one(job, output, JobPicture(job))

    perform(work())


@app.command("force-end")
def force_end_job(
    context: typer.Context,
    job_id: JobIdArgument,
    reason: Annotated[str, typer.Option(help="For the audit log; required.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Ends a job that is stuck, whatever it is doing: the last resort. Its tasks are stopped, its locks are free."""

    async def work() -> None:
        if not yes:
            confirm(f"end job {job_id} by force? What it was doing stays half done")
        async with session_of(context).client() as client:
            job = await client.force_end_job(await whole_job_id(client, job_id), reason)
            show_one(job, output, JobPicture(job))

    perform(work())


@app.command("restart")
def restart_job(
    context: typer.Context,
    job_id: JobIdArgument,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "",
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Only show what would be reused (FINISHED), run again, undone.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the new job has ended.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Runs a job that did not end well again from where it failed, as a new job.

    Exit code 0 if the new job runs or has FINISHED, 1 if it ended otherwise.
    """

    async def work() -> Exit:
        session = session_of(context)
        async with session.client() as client:
            whole = await whole_job_id(client, job_id)
            job = await client.restart_job(whole, reason, validate_only=validate_only)
            if wait and not validate_only:
                job = await follow(client, job, unseen(), session)
            elif not is_ended(job) and not validate_only:
                tell(f"follow it with: {session.command_line('jobs', 'watch', job.job_id)}")
            show_one(job, output, JobPicture(job))
            return exit_code_of(job)

    perform(work())


@app.command("tasks")
def list_tasks(
    context: typer.Context, job_id: JobIdArgument, limit: LimitOption = 200, output: FormatOption = Format.TABLE
) -> None:
    """Lists what a job has begun on hosts: tasks, calls and waits."""

    async def work() -> None:
        async with session_of(context).client() as client:
            tasks = client.list_host_tasks(job_id=await whole_job_id(client, job_id))
            show_rows(await first(limit, tasks), TASK_COLUMNS, output)

    perform(work())


async def whole_job_id(client: WaybillClient, text: str) -> str:
    """The id of the one job whose id begins or ends with the text; an id that is whole is not looked up."""
    if _is_whole(text):
        return text
    jobs = await first(_ENOUGH, client.list_jobs(_like(text), page_size=_ENOUGH)) if _may_be_part(text) else []
    if not jobs:
        raise NoJobLike(f"no job like {text!r}", "`waybill jobs list` shows the jobs", exit_code=Exit.REFUSED)
    if len(jobs) > 1:
        raise Complaint(
            f"{'many' if len(jobs) == _ENOUGH else len(jobs)} jobs are like {text!r}",
            f"for instance {', '.join(job.job_id for job in jobs[:3])}",
        )
    return jobs[0].job_id


def _like(part: str) -> str:
    return f'(job_id = "{part}*" OR job_id = "*{part}") AND has(visible)'


def _may_be_part(text: str) -> bool:
    return 0 < len(text) < 36 and not set(text.lower()) - set("0123456789abcdef-")


async def first(count: int, items: AsyncIterator[Item]) -> list[Item]:
    """The first so many items, without fetching pages beyond them."""
    taken: list[Item] = []
    async for item in items:
        taken.append(item)
        if len(taken) == count:
            break
    return taken


def trace_page(job: Job, jaeger: Jaeger | None) -> str:
    """The link of the job's trace; Complaint if there is none, with what to set."""
    if jaeger is None:
        raise Complaint("where is Jaeger?", "set WAYBILL_JAEGER_URL to its base URL, like http://127.0.0.1:16686")
    if not job.trace_id:
        raise Complaint(
            f"job {job.job_id} was not traced",
            "jobs are when COORDINATOR_TRACES_ENDPOINT is set: host:port of an OTLP collector, like 127.0.0.1:4317",
            exit_code=Exit.REFUSED,
        )
    return jaeger.link(job.trace_id, job.span_id)


def job_details(job: Job, more: Iterable[tuple[str, str]] = ()) -> Group:
    """All of a job: its facts, then its tree."""
    return Group(fact_table((*_facts(job), *more)), Text(), JobPicture(job))


def _facts(job: Job) -> list[tuple[str, str]]:
    parameters: dict[str, Any] = plain(job.parameters)
    return [
        ("job", job.job_id),
        ("correlation id", job.correlation_id),
        ("owner", job.owner),
        ("parameters", ", ".join(f"{name}={value}" for name, value in parameters.items() if value not in (None, ""))),
        ("subjects", ", ".join(subject_word(subject) for subject in job.subjects)),
        ("created", clock_word(job.create_time)),
        ("ended", clock_word(job.end_time)),
        ("deadline", clock_word(job.deadline)),
        ("on cancel", "" if is_ended(job) else cancel_word(job.cancelable)),
        ("restarts", job.restarted_from),
        ("part of job", job.parent_job_id),
        ("revision", str(job.revision)),
    ]


def _wide_facts(job: Job, jaeger: Jaeger | None) -> list[tuple[str, str]]:
    return [
        ("flow", job.flow_command_id),
        ("request id", job.request_id),
        ("priority", str(job.priority)),
        ("categories", ", ".join(job.categories)),
        ("started", clock_word(job.start_time)),
        ("updated", clock_word(job.update_time)),
        ("trace", job.trace_id),
        ("span", job.span_id),
        ("link", _link(job, jaeger)),
    ]


def _wide_columns(jaeger: Jaeger | None) -> list[Column[Job]]:
    return [
        Column("OWNER", lambda job: job.owner),
        Column("PRIORITY", lambda job: str(job.priority)),
        Column("SUBJECTS", lambda job: ", ".join(subject_word(subject) for subject in job.subjects)),
        Column("REVISION", lambda job: str(job.revision)),
        Column("TRACE", lambda job: job.trace_id),
        Column("LINK", lambda job: _link(job, jaeger)),
    ]


def _link(job: Job, jaeger: Jaeger | None) -> str:
    return jaeger.link(job.trace_id, job.span_id) if jaeger and job.trace_id else ""


def _is_whole(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
