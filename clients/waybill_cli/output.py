"""How results are shown: tables for people, JSON and YAML for programs.

On a terminal a table fits the window and has colours; in a pipe it has neither, one row is one line. Results go to
stdout; everything said *about* them (errors, hints, progress of `up`) goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

import typer
import yaml
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from waybill.v1.jobs_pb2 import ExecutionStatus, Subject
from waybill_cli.records import record
from waybill_client.words import entity_word, moment, status_word

Row = TypeVar("Row")


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_data(self) -> bool:
        """True for programs, False for people."""
        return self in (Format.JSON, Format.YAML)


class Column(NamedTuple, Generic[Row]):
    """A heading, and what goes under it; `whole` if it must stay in one piece to be copied."""

    heading: str
    cell: Callable[[Row], str | Text]
    whole: bool = False


_NO_WINDOW = 1000

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

_STYLES = {
    ExecutionStatus.EXECUTION_STATUS_PENDING: "dim",
    ExecutionStatus.EXECUTION_STATUS_STARTED: "cyan",
    ExecutionStatus.EXECUTION_STATUS_FINISHED: "green",
    ExecutionStatus.EXECUTION_STATUS_FAILED: "bold red",
    ExecutionStatus.EXECUTION_STATUS_ABORTED: "yellow",
    ExecutionStatus.EXECUTION_STATUS_UNKNOWN: "bold magenta",
    ExecutionStatus.EXECUTION_STATUS_SKIPPED: "dim",
}


def show_rows(
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    format: Format,
    as_data: Callable[[Any], dict[str, Any]] = record,
) -> None:
    """A list, of messages unless `as_data` says what else, in the format asked for."""
    if format.is_data:
        show_data([as_data(row) for row in rows], format)
        return
    cells = [[_text(column.cell(row)) for column in columns] for row in rows]
    if out.is_terminal and format is Format.WIDE:
        _wide().print(_window_table(columns, cells))  # lines longer than the window, but legible
    elif out.is_terminal:
        out.print(_window_table(columns, cells))
    else:
        _print_lines([column.heading for column in columns], cells)


def show_one(message: Message, format: Format, table: RenderableType) -> None:
    """One message: its record, or the given picture of it."""
    if format.is_data:
        show_data(record(message), format)
    else:
        show(table)


def show_data(data: Any, format: Format) -> None:
    """Plain data as JSON or YAML."""
    if format is Format.JSON:
        text = json.dumps(data, indent=2, ensure_ascii=False)
    else:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=math.inf).rstrip()
    out.print(text, markup=False, soft_wrap=True)


def show_line(data: Any) -> None:
    """Plain data as one line of JSON, for streams."""
    out.print(json.dumps(data, ensure_ascii=False), markup=False, soft_wrap=True)


def show(picture: RenderableType) -> None:
    """Anything that rich can draw; in a pipe as wide as it needs to be."""
    if out.is_terminal:
        out.print(picture)
    else:
        _wide().print(picture)


def open_page(url: str) -> None:
    """Prints a link and, where somebody sits at a screen, opens it."""
    out.print(url, markup=False, soft_wrap=True)
    if out.is_terminal and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        typer.launch(url)


def tell(message: str) -> None:
    """Something about the work, not its result."""
    err.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """The same, in yellow."""
    err.print(f"[yellow]{escape(message)}[/yellow]", soft_wrap=True)


def status_text(status: ExecutionStatus.ValueType) -> Text:
    """A status word in its colour."""
    return Text(status_word(status), style=_STYLES.get(status, ""))


def status_style(status: ExecutionStatus.ValueType) -> str:
    """The colour of a status."""
    return _STYLES.get(status, "")


def fact_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Names and values, a fact a line; those that are empty are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a link must stay whole
    for name, value in facts:
        if value:
            table.add_row(Text(name, style="dim"), Text(printable(value)))
    return table


def subject_word(subject: Subject) -> str:
    """`VM/vm-1`, or nothing for an absent one."""
    return f"{entity_word(subject.entity_type)}/{subject.entity_id}" if subject.entity_id else ""


def clock_word(timestamp: Timestamp) -> str:
    """`12:30:05` today, with the date on other days, in local time."""
    time = moment(timestamp)
    if time is None:
        return ""
    local, today = time.astimezone(), datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S")


def duration_word(start: Timestamp, end: Timestamp) -> str:
    """`2.3s`, `4m05s`, `3h20m`: from start to end, or until now; nothing for what has not begun."""
    began, ended = moment(start), moment(end)
    if began is None:
        return ""
    seconds = max(0.0, ((ended or datetime.now(UTC)) - began).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def printable(text: str) -> str:
    """The text with control characters made visible, so that nobody's data can drive a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _wide() -> Console:
    return Console(file=out.file, width=_NO_WINDOW, highlight=False)


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))


def _window_table(columns: Iterable[Column[Any]], rows: Iterable[Iterable[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.heading, overflow="fold", no_wrap=column.whole)
    for row in rows:
        table.add_row(*row)
    return table


def _print_lines(headings: list[str], rows: list[list[Text]]) -> None:
    lines = [headings, *([cell.plain for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        out.print(text.rstrip(), markup=False, soft_wrap=True)
