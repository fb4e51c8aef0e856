"""Everything that a stack has written down: its tables, its logs, its hosts' ledgers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from tests.chaos.ids import Entry, Line
from tests.otlp_sink import span_of

from waybill_cli.stack import Stack

LEDGER = ("task", "span", "cleared", "flow_epoch")  # the tables of a host's ledger that are about work


@dataclass
class Written:
    """What was found."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def add(self, other: Written) -> None:
        """Adds what was found at another time; what is there still, as it is now."""
        for table, rows in other.tables.items():
            self.tables.setdefault(table, []).extend(rows)
        self.entries += other.entries


async def written(stack: Stack) -> Written:
    """Reads all tables, at one moment, and all ledgers."""
    return Written(
        await _tables(stack), [entry for host in stack.hosts for entry in _ledger(stack.data_dir, host.name)]
    )


async def _tables(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            return {name: [dict(row) for row in await connection.fetch(f'SELECT * FROM "{name}"')] for (name,) in names}
    finally:
        await connection.close()


def _ledger(data_dir: Path, host_id: str) -> list[Entry]:
    with closing(sqlite3.connect(f"file:{data_dir / host_id / 'ledger.db'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        tables = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in LEDGER}
    return [
        Entry(host_id, table, _facts_of_span(row["content"]) if table == "span" else dict(row))
        for table, rows in tables.items()
        for row in rows
    ]


def _facts_of_span(content: bytes) -> dict[str, Any]:
    span = span_of(content)
    facts = {name.replace(".", "_"): value for name, value in span.attributes.items()}
    return {"correlation_id": "", **facts, "span_id": span.span_id, "trace_id": span.trace_id}


def log_lines(stack: Stack) -> list[Line]:
    """Reads all logs."""
    return [
        Line(path.name, number, text)
        for path in sorted((stack.data_dir / "logs").iterdir())
        for number, text in enumerate(path.read_text().splitlines(), start=1)
    ]
