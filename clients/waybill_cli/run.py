"""`waybill run`: runs a command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

import typer

from waybill.v1.coordinator_pb2 import MultiplePolicy, RunCommandRequest
from waybill.v1.jobs_pb2 import DependencyPolicy, Job
from waybill_cli import completion
from waybill_cli.exits import Complaint, Exit
from waybill_cli.follow import exit_code_of, follow, shown_as, unseen
from waybill_cli.jaeger import Jaeger
from waybill_cli.jobs import JOB_COLUMNS, whole_job_id
from waybill_cli.options import CommandTypeArgument, CorrelationIdOption, FormatOption
from waybill_cli.output import Format, show_one, show_rows, tell
from waybill_cli.parameters import read_parameters
from waybill_cli.session import perform, session_of
from waybill_cli.tree import JobPicture
from waybill_client import DeadlineExceeded, Unavailable, WaybillClient, WaybillError, command_request, is_ended
from waybill_client.words import plain


class OnFailure(StrEnum):
    """What becomes of a job when one that it depends on does not end FINISHED."""

    SKIP = "skip"
    RUN = "run"

    @property
    def policy(self) -> DependencyPolicy.ValueType:
        """As the service calls it."""
        return DependencyPolicy.Value(f"DEPENDENCY_POLICY_{self.name}")


class Policy(StrEnum):
    """How several commands belong together."""

    INDEPENDENT = "independent"
    ALL_OR_NOTHING = "all-or-nothing"
    IN_SEQUENCE = "in-sequence"

    @property
    def policy(self) -> MultiplePolicy.ValueType:
        """As the service calls it."""
        return MultiplePolicy.Value(f"MULTIPLE_POLICY_{self.name}")


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
    on_failure: Annotated[
        OnFailure, typer.Option(help="What becomes of it if one of those does not end well.")
    ] = OnFailure.SKIP,
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
                depends_on=[await whole_job_id(client, each) for each in depends_on or []],
                dependency_policy=on_failure.policy,
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


def run_many(
    context: typer.Context,
    commands: Annotated[
        typer.FileText,
        typer.Argument(
            metavar="FILE",
            help='JSON: [{"command_type": "RemoveVm", "parameters": {…}, "request_id": "…"}, …]; - is stdin.',
        ),
    ],
    policy: Annotated[Policy, typer.Option(help="How they belong together.")] = Policy.INDEPENDENT,
    correlation_id: CorrelationIdOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Runs several commands in one call, and shows their jobs in order.

    Exit code 1 if one was refused, or its job ended otherwise than FINISHED.
    """

    async def work() -> Exit:
        requests = _requests(commands.read(), correlation_id or "")
        async with session_of(context).client() as client:
            results = await client.run_multiple_commands(requests, policy=policy.policy)
        jobs = [result for result in results if isinstance(result, Job)]
        show_rows(jobs, JOB_COLUMNS, output)
        for number, result in enumerate(results):
            if isinstance(result, WaybillError):
                tell(f"command {number} ({requests[number].command_type}): {result.reason}: {result.message}")
        codes = {exit_code_of(job) for job in jobs} | ({Exit.REFUSED} if len(jobs) < len(results) else set())
        return max(codes, default=Exit.OK)

    perform(work())


_OF_A_COMMAND = {"command_type", "parameters", "request_id", "correlation_id", "priority", "depends_on"}


def _requests(text: str, correlation_id: str) -> list[RunCommandRequest]:
    """The commands in a file; Complaint, saying which, if they cannot be read."""
    try:
        written = json.loads(text)
    except ValueError as error:
        raise Complaint(f"that is no JSON: {error}", "an array of objects is wanted") from error
    if not isinstance(written, list):
        raise Complaint("that is no JSON array", "an array of objects is wanted")
    requests = []
    for number, each in enumerate(written):
        if not isinstance(each, dict) or not isinstance(each.get("command_type"), str):
            raise Complaint(f"command {number} has no command_type", "each is an object with at least that")
        if unknown := sorted(each.keys() - _OF_A_COMMAND):
            raise Complaint(f"command {number} has {unknown[0]}", f"known are {', '.join(sorted(_OF_A_COMMAND))}")
        try:
            requests.append(command_request(**{"correlation_id": correlation_id, **each}))
        except (TypeError, ValueError, AttributeError) as error:
            raise Complaint(f"command {number} cannot be sent: {error}", "see `waybill commands`") from error
    return requests


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
