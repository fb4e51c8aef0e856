"""`waybill run`: runs a command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import typer

from waybill.v1.jobs_pb2 import Job
from waybill_cli import completion
from waybill_cli.exits import Exit
from waybill_cli.follow import exit_code_of, follow, shown_as, unseen
from waybill_cli.jaeger import Jaeger
from waybill_cli.options import CommandTypeArgument, CorrelationIdOption, FormatOption
from waybill_cli.output import Format, show_one, tell
from waybill_cli.parameters import read_parameters
from waybill_cli.session import perform, session_of
from waybill_cli.tree import JobPicture
from waybill_client import DeadlineExceeded, Unavailable, WaybillClient, is_ended
from waybill_client.words import plain


def run(
    context: typer.Context,
    command_type: CommandTypeArgument,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Its parameters; `waybill commands describe TYPE` shows them.",
            autocompletion=completion.parameters,
        ),
    ] = None,
    params: Annotated[str, typer.Option(metavar="JSON|@FILE", help="Parameters as a JSON object.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the job as it runs, until it has ended.")] = False,
    correlation_id: CorrelationIdOption = None,
    request_id: Annotated[
        str | None, typer.Option(help="The same id and body make one job, however often they are sent.")
    ] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Only show what would be done.")] = False,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    depends_on: Annotated[list[str] | None, typer.Option(metavar="JOB_ID", help="Jobs to end well first.")] = None,
    deadline: Annotated[float | None, typer.Option(metavar="SECONDS", help="Cancel it when it runs longer.")] = None,
    external_job: Annotated[
        str, typer.Option(metavar="JOB_ID", help="An open external job, of which a step is to show it.")
    ] = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Runs a command and shows its job. Ctrl-C leaves the job running.

    Exit code 0 if the job runs or has FINISHED, 1 if it ended otherwise.
    """

    async def work() -> Exit:
        session = session_of(context)
        jaeger = session.jaeger()
        async with session.client() as client:
            parameters = await _parameters(client, command_type, assignments or [], params)
            job = await _submit(
                client,
                command_type,
                parameters,
                request_id=request_id or ("" if validate_only else str(uuid4())),
                correlation_id=correlation_id or "",
                validate_only=validate_only,
                priority=priority,
                depends_on=depends_on or [],
                deadline=datetime.now(UTC) + timedelta(seconds=deadline) if deadline else None,
                external_job_id=external_job,
            )
            if watch and not validate_only:
                job = await follow(client, job, shown_as(output), session)
                _tell_link(job, jaeger)
                return exit_code_of(job)
            if wait and not validate_only:
                job = await follow(client, job, unseen(), session)
            elif not is_ended(job) and not validate_only:
                tell(f"follow it with: {session.command_line('jobs', 'watch', job.job_id)}")
            show_one(job, output, JobPicture(job))
            if wait:
                _tell_link(job, jaeger)
            return exit_code_of(job)

    perform(work())


def _tell_link(job: Job, jaeger: Jaeger | None) -> None:
    if jaeger and job.trace_id:
        tell(f"trace: {jaeger.link(job.trace_id, job.span_id)}")


async def _parameters(client: WaybillClient, command_type: str, assignments: list[str], params: str) -> dict[str, Any]:
    """The parameters, typed by the schema of the command type; an unknown type is the service's to refuse."""
    if not assignments:
        return read_parameters({}, [], params)
    schemas = {each.name: each.parameters_schema for each in await client.list_command_types()}
    schema = plain(schemas[command_type]) if command_type in schemas else {"additionalProperties": True}
    return read_parameters(schema, assignments, params)


async def _submit(client: WaybillClient, command_type: str, parameters: dict[str, Any], **options: Any) -> Job:
    try:
        return await client.run_command(command_type, parameters, **options)
    except (Unavailable, DeadlineExceeded):
        if options["request_id"]:
            tell(f"it may have been accepted or not: repeating it with --request-id {options['request_id']} is safe")
        raise
