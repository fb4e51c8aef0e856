"""`waybill entities`: hosts, VMs, disks and whatever else commands act on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from waybill.v1.jobs_pb2 import Entity, EntityType
from waybill_cli.datafile import read_entities
from waybill_cli.exits import Complaint
from waybill_cli.jobs import first
from waybill_cli.options import FilterOption, FormatOption, LimitOption
from waybill_cli.output import Column, Format, show_rows, tell
from waybill_cli.session import perform, session_of
from waybill_client.words import entity_type, entity_word, plain

app = typer.Typer(help="What commands act on.", no_args_is_help=True)

COLUMNS: list[Column[Entity]] = [
    Column("ENTITY", lambda each: f"{entity_word(each.entity_type)}/{each.entity_id}"),
    Column("NAME", lambda each: each.name),
    Column("STATUS", lambda each: Text(each.status, style="" if each.status == "OK" else "yellow")),
    Column("STATE", lambda each: each.observed.state),
    Column("HOST", lambda each: each.observed.host_id),
    Column("DECLARED", lambda each: ", ".join(f"{name}={value}" for name, value in plain(each.declared).items())),
]


@app.command("load")
def load_entities(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A YAML or JSON list, as `entities list -o yaml` writes it.")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Declares the entities of a file: creates them, or replaces what is declared of them. All, or none."""

    async def work() -> None:
        entities = read_entities(file)
        async with session_of(context).client() as client:
            stored = await client.put_entities(entities)
        tell(f"declared {len(stored)} entities")
        show_rows(stored, COLUMNS, output)

    perform(work())


@app.command("list")
def list_entities(
    context: typer.Context,
    type_word: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="HOST, VM, DISK ...")] = None,
    filter: FilterOption = "",
    limit: LimitOption = 200,
    output: FormatOption = Format.TABLE,
) -> None:
    """Lists entities, of one type or of all."""

    async def work() -> None:
        async with session_of(context).client() as client:
            entities = client.list_entities(_type(type_word), filter)
            show_rows(await first(limit, entities), COLUMNS, output)

    perform(work())


def _type(word: str | None) -> EntityType.ValueType:
    try:
        return entity_type(word) if word else EntityType.ENTITY_TYPE_UNSPECIFIED
    except ValueError as error:
        raise Complaint(str(error)) from None
