"""`waybill commands`: what can be run, and with what."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from waybill.v1.coordinator_pb2 import CommandType
from waybill_cli.exits import Complaint, Exit
from waybill_cli.options import CommandTypeArgument, FormatOption
from waybill_cli.output import Column, Format, printable, show_one, show_rows
from waybill_cli.parameters import type_words
from waybill_cli.session import perform, session_of
from waybill_client.words import cancel_word, plain

app = typer.Typer(help="What can be run.", no_args_is_help=True)

COLUMNS: list[Column[CommandType]] = [
    Column("TYPE", lambda each: Text(each.name, style="bold")),
    Column("VERSION", lambda each: str(each.version)),
    Column("ON CANCEL", lambda each: cancel_word(each.cancel)),
    Column("CATEGORIES", lambda each: ", ".join(each.categories)),
    Column("DESCRIPTION", lambda each: each.description),
]


@app.command("list")
def list_commands(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """Lists the command types."""

    async def work() -> None:
        async with session_of(context).client() as client:
            show_rows(await client.list_command_types(), COLUMNS, output)

    perform(work())


@app.command("describe")
def describe_command(
    context: typer.Context, command_type: CommandTypeArgument, output: FormatOption = Format.TABLE
) -> None:
    """Shows a command type and its parameters."""

    async def work() -> None:
        async with session_of(context).client() as client:
            types = {each.name: each for each in await client.list_command_types()}
        if command_type not in types:
            near = difflib.get_close_matches(command_type, types, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(types)}"
            raise Complaint(f"no command type {command_type!r}", remedy, exit_code=Exit.REFUSED)
        show_one(types[command_type], output, _details(types[command_type]))

    perform(work())


def _details(each: CommandType) -> Group:
    schema: dict[str, Any] = plain(each.parameters_schema)
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    required = schema.get("required", [])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PARAMETER", "TAKES", "DEFAULT", "MEANING"):
        table.add_column(heading, overflow="fold")
    for name, each_property in sorted(properties.items(), key=lambda item: item[0] not in required):
        default = "(required)" if name in required else _default(each_property)
        table.add_row(name, type_words(each_property, schema), default, each_property.get("description", ""))
    example = " ".join(f"{name}=…" for name in required)
    return Group(
        Text.assemble((each.name, "bold"), f"  {printable(each.description)}"),
        Text(f"parameters version {each.version} · cancelling: {cancel_word(each.cancel)}", style="dim"),
        Text(),
        table if properties else Text("It takes no parameters."),
        Text(),
        Text(f"waybill run {each.name} {example} --watch"),
    )


def _default(property_schema: Mapping[str, Any]) -> str:
    default = property_schema.get("default")
    return "" if default in (None, "", [], {}) else str(default)
