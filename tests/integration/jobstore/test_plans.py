"""The plans of the writer's statements: made on empty tables, kept for ever, so they must be right at any size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg

from jobstore.journal import deletion, externaljobs, externalturn, leases, statements
from jobstore.journal.writer import SESSION

SQL = {
    name: text
    for module in (statements, leases, externaljobs, externalturn, deletion)
    for name, text in vars(module).items()
    if isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text)
}
# One row for each coordinator or host.
SMALL = {"coordinator_lease", "host_claim", "span_debt"}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def scanned(connection: asyncpg.Connection, name: str, sql: str) -> set[str]:
    """The tables that a statement reads whole."""
    await connection.execute(f"PREPARE {name} AS {sql}")
    parameters = await connection.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1", name.lower()
    )
    nulls = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {name}{nulls}"))[0]["Plan"]
    return {node["Relation Name"] for node in nodes(plan) if "Relation Name" in node and reads_whole(node)}


def reads_whole(node: dict[str, Any]) -> bool:
    return node["Node Type"] in ("Seq Scan", "Bitmap Heap Scan") or (
        "Index" in node["Node Type"] and "Index Cond" not in node
    )


async def test_no_statement_of_the_writer_reads_a_table_whole(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings=dict(SESSION))
    found = {name: await scanned(connection, name, sql) - SMALL for name, sql in SQL.items()}
    await connection.close()
    assert len(found) > 30
    assert {name: tables for name, tables in found.items() if tables} == {}


async def test_without_its_settings_they_would(database_url: str, connection: asyncpg.Connection) -> None:
    """Vacuity: the trap is there."""
    assert await scanned(connection, "CHANGE_STEPS", statements.CHANGE_STEPS) == {"step"}
