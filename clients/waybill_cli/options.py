"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from waybill_cli import completion
from waybill_cli.output import Format

FormatOption: TypeAlias = Annotated[Format, typer.Option("--output", "-o", help="How to show the result.")]
JobIdArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="JOB_ID", help="The job; the beginning or end of its id will do.", autocompletion=completion.job_ids
    ),
]
CommandTypeArgument: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="TYPE", help="Name of a command type.", autocompletion=completion.command_types),
]
LimitOption: TypeAlias = Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")]
FilterOption: TypeAlias = Annotated[
    str, typer.Option("--filter", help="Like: status = FAILED AND owner = ann; `waybill jobs fields` shows all fields.")
]
CorrelationIdOption: TypeAlias = Annotated[
    str | None, typer.Option("--correlation-id", help="Of this action: 1-50 of letters, digits, _ and -.")
]
EntityOption: TypeAlias = Annotated[str | None, typer.Option("--entity", metavar="TYPE/ID", help="Like VM/vm-1.")]
