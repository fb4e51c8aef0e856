"""`waybill external`: what another system does, reported by hand or from its scripts.

job=$(waybill external add "Nightly backup" --heartbeat 300 -o json | jq -r .job_id)
step=$(waybill external step "$job" "Copying" -o json | jq -r .step_id)
waybill external end-step "$step" && waybill external end "$job"
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from waybill.v1.jobs_pb2 import Step, Subject
from waybill_cli.jobs import job_details, whole_job_id
from waybill_cli.options import CorrelationIdOption, FormatOption, JobIdArgument
from waybill_cli.output import Format, clock_word, fact_table, show_one, tell
from waybill_cli.session import perform, session_of
from waybill_cli.tree import JobPicture, reason_line
from waybill_client.words import entity_type, status_word

app = typer.Typer(help="Jobs of other systems, reported here.", no_args_is_help=True)

DescriptionArgument: TypeAlias = Annotated[str, typer.Argument(help="What it does, in words.")]
RequestIdOption: TypeAlias = Annotated[
    str | None, typer.Option("--request-id", help="Sent twice under the same one, it is reported once.")
]
FailedOption: TypeAlias = Annotated[
    str | None, typer.Option("--failed", metavar="REASON", help="It failed, and why; without this it succeeded.")
]


@app.command("add")
def add_job(
    context: typer.Context,
    description: DescriptionArgument,
    command_type: Annotated[str, typer.Option("--type", help="What kind of work it is, in your words.")] = "",
    entities: Annotated[
        list[str] | None, typer.Option("--entity", metavar="TYPE/ID", help="What it is about; may be given again.")
    ] = None,
    heartbeat: Annotated[int, typer.Option(help="Seconds of silence after which it ends UNKNOWN; 0: never.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep it until it is cleared by hand.")] = False,
    request_id: RequestIdOption = None,
    correlation_id: CorrelationIdOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Reports a job that another system has begun."""
    subjects = [_subject(each) for each in entities or ()]

    async def work() -> None:
        session = session_of(context)
        async with session.client() as client:
            job = await client.add_external_job(
                description,
                command_type=command_type,
                subjects=subjects,
                request_id=request_id,
                correlation_id=correlation_id or "",
                auto_cleared=not keep,
                heartbeat_seconds=heartbeat,
            )
        show_one(job, output, job_details(job))
        tell(f"end it with: {session.command_line('external', 'end', job.job_id)}")

    perform(work())


@app.command("step")
def add_step(
    context: typer.Context,
    job_id: JobIdArgument,
    description: DescriptionArgument,
    step_type: Annotated[str, typer.Option("--type", help="Its type; EXECUTION if there is none.")] = "",
    below: Annotated[str, typer.Option("--below", metavar="STEP_ID", help="The step above it.")] = "",
    external_id: Annotated[str, typer.Option("--external-id", help="What your system calls it.")] = "",
    request_id: RequestIdOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Adds a step to an external job."""

    async def work() -> None:
        async with session_of(context).client() as client:
            step = await client.add_external_step(
                await whole_job_id(client, job_id),
                description,
                step_type=step_type,
                parent_step_id=below,
                external_id=external_id,
                request_id=request_id,
            )
        show_one(step, output, fact_table(_facts(step)))

    perform(work())


@app.command("end-step")
def end_step(
    context: typer.Context,
    step_id: Annotated[str, typer.Argument(metavar="STEP_ID", help="The step.")],
    failed: FailedOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Ends a step of an external job. One that failed fails the job."""

    async def work() -> None:
        async with session_of(context).client() as client:
            step = await client.end_external_step(step_id, succeeded=failed is None, reason=failed or "")
        show_one(step, output, fact_table(_facts(step)))

    perform(work())


@app.command("end")
def end_job(
    context: typer.Context,
    job_id: JobIdArgument,
    failed: FailedOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Abort its open steps, and let it be removed in its time.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Ends an external job."""

    async def work() -> None:
        async with session_of(context).client() as client:
            whole = await whole_job_id(client, job_id)
            await client.end_external_job(whole, succeeded=failed is None, force=force, reason=failed or "")
            job = await client.get_job(whole)
        show_one(job, output, JobPicture(job))

    perform(work())


@app.command("clear")
def clear_job(context: typer.Context, job_id: JobIdArgument, output: FormatOption = Format.TABLE) -> None:
    """Removes an external job that has ended."""

    async def work() -> None:
        async with session_of(context).client() as client:
            job = await client.clear_external_job(await whole_job_id(client, job_id))
        show_one(job, output, job_details(job))
        tell("it is gone")

    perform(work())


@app.command("heartbeat")
def heartbeat(context: typer.Context, job_id: JobIdArgument, output: FormatOption = Format.TABLE) -> None:
    """Says that an external job is still alive."""

    async def work() -> None:
        async with session_of(context).client() as client:
            job = await client.heartbeat_external_job(await whole_job_id(client, job_id))
        show_one(job, output, JobPicture(job))

    perform(work())


def _subject(text: str) -> Subject:
    word, slash, entity_id = text.partition("/")
    if not slash or not entity_id:
        raise typer.BadParameter(f"{text!r} is not TYPE/ID, like VM/vm-1", param_hint="--entity")
    try:
        return Subject(entity_type=entity_type(word), entity_id=entity_id)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--entity") from None


def _facts(step: Step) -> list[tuple[str, str]]:
    return [
        ("step", step.step_id),
        ("job", step.job_id),
        ("below", step.parent_step_id),
        ("type", step.step_type),
        ("description", step.description),
        ("status", status_word(step.status)),
        ("external id", step.external_id),
        ("started", clock_word(step.start_time)),
        ("ended", clock_word(step.end_time)),
        ("error", reason_line(step.error) if step.HasField("error") else ""),
    ]
