"""How fast Postgres alone takes the rows of W1: nothing else can be faster than that.

The rows are those of a real job, copied from the store with fresh ids: inserted as its first commit leaves them, then
changed to what they are in the end. Into a database of its own on the same server, made by the jobstore's migrations,
so with the same keys, checks and indexes; durable; in batches of 64 jobs, two transactions each, one `unnest` a table.
Each column travels as one text, which is the cheapest way for both sides, and all texts were made beforehand. No guard
is read, no revision drawn, nobody watches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import uuid4

import asyncpg
import uuid_utils

import w1
from accounts import POSTGRES, Accountant
from jobstore.postgres.migrate import migrate

BATCH: Final = 64
_WARM_UP: Final = 16
"""Batches that are not measured."""
_DATABASE: Final = "raw_limit"

_NAMES: Final = frozenset(
    {"job_id", "flow_command_id", "command_id", "parent_command_id", "step_id", "parent_step_id", "task_id"}
    | {"external_id", "correlation_id", "request_id"}
)
"""Columns whose values are another job's in each copy."""

Row: TypeAlias = Mapping[str, str | None]
"""The values by column, each as Postgres writes it."""

_BEGUN: Final[Mapping[str, Row]] = {
    "job": {"status": "STARTED", "end_time": None, "progress": "0"},
    "step": {"status": "STARTED", "end_time": None, "progress": "0"},
    "command": {"status": "ACTIVE", "end_time": None, "sequence": "1"},
    "host_task": {"state": None, "result": None, "end_time": None, "answer": None, "cleared": "false"},
}
"""What differs in the rows at the beginning, by table; the order is that of the foreign keys."""

_SESSION: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    **dict.fromkeys(("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin", "jit"), "off"),
}
"""Plans are made while the tables are empty; like this they go from the values to their rows by index, at any size."""

_SEPARATOR: Final = "\x1f"
_NULL: Final = "\x1e"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True)
class Limit:
    """What Postgres alone can do."""

    jobs_per_second: float
    cpu_per_job: float
    """Of Postgres, in seconds."""
    rows_per_job: int


# --- the rows of a real job ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table with the rows that one job left in it."""

    name: str
    types: Mapping[str, str]
    """By column, in order."""
    rows: Sequence[Row]

    @property
    def key(self) -> str:
        """Its primary key."""
        return "task_id" if self.name == "host_task" else f"{self.name}_id"

    @property
    def changing(self) -> list[str]:
        """The columns that a job's end changes."""
        return [*_BEGUN[self.name], *(["revision"] if "revision" in self.types else [])]

    def insert(self) -> str:
        """The statement that inserts rows."""
        values = ", ".join(f"u.{name}::{kind}" for name, kind in self.types.items())
        return (
            f"INSERT INTO {self.name} ({', '.join(self.types)}) SELECT {values} FROM {self._unnest(list(self.types))}"
        )

    def update(self) -> str:
        """The statement that brings them to their end."""
        changes = ", ".join(f"{name} = u.{name}::{self.types[name]}" for name in self.changing)
        rows = self._unnest([self.key, *self.changing])
        return f"UPDATE {self.name} SET {changes} FROM {rows} WHERE {self.name}.{self.key} = u.{self.key}"

    def begun(self, copies: Sequence[Row]) -> list[str]:
        """The columns to insert: the rows as they are at the beginning."""
        rows = [{**row, **(_BEGUN[self.name] if self.is_changed(row) else {})} for row in copies]
        return _columns(rows, list(self.types))

    def ended(self, copies: Sequence[Row]) -> list[str]:
        """The columns to update with."""
        return _columns([row for row in copies if self.is_changed(row)], [self.key, *self.changing])

    @staticmethod
    def is_changed(row: Row) -> bool:
        """A job's validation is over when its rows are first written."""
        return row.get("step_type") != "VALIDATION"

    @staticmethod
    def _unnest(names: Sequence[str]) -> str:
        arrays = ", ".join(f"string_to_array(${at}::text, E'\\x1f', E'\\x1e')" for at, _ in enumerate(names, 1))
        return f"unnest({arrays}) AS u ({', '.join(names)})"


def _columns(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    return [_SEPARATOR.join(_NULL if (value := row[name]) is None else value for row in rows) for name in names]


async def _table(store: Connection, name: str, job_id: str) -> Table:
    columns = await store.fetch(
        """
        SELECT attname, format_type(atttypid, atttypmod) AS kind FROM pg_attribute
        WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        """,
        name,
    )
    types = {column["attname"]: column["kind"] for column in columns}
    values = ", ".join(f"{column}::text" for column in types)
    rows = await store.fetch(f"SELECT {values} FROM {name} WHERE job_id = $1", job_id)
    return Table(name, types, [dict(row) for row in rows])


async def _tables_of_a_job(store: Connection) -> list[Table]:
    job_id = await store.fetchval(
        "SELECT job_id FROM job WHERE command_type = $1 AND status = 'FINISHED' ORDER BY job_id LIMIT 1",
        w1.COMMAND_TYPE,
    )
    return [await _table(store, name, job_id) for name in _BEGUN]


# --- copies of them --------------------------------------------------------------------------------------------------


class Copy:
    """Gives the rows of one job to another: each id becomes a fresh one, the same wherever it stands."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._fresh: dict[str, str] = {}

    def row(self, row: Row) -> Row:
        """The row with the other job's ids."""
        return {name: self._value(name, value) if name in _NAMES else value for name, value in row.items()}

    def _value(self, name: str, value: str | None) -> str | None:
        if not value:
            return value
        if name == "correlation_id":
            return f"raw-{self._number}"
        return self._fresh.setdefault(value, _id_like(value))


def _id_like(value: str) -> str:
    """A fresh id of the same version: those that sort by time land at the end of an index, the others anywhere."""
    return str(uuid_utils.uuid7()) if value[14:15] == "7" else str(uuid4())


@dataclass(frozen=True)
class Work:
    """Two transactions of a batch: for each table its columns."""

    begun: Sequence[Sequence[str]]
    ended: Sequence[Sequence[str]]


def _work(tables: Sequence[Table], batches: int) -> Iterator[Work]:
    for batch in range(batches):
        copies = [Copy(batch * BATCH + number) for number in range(BATCH)]
        rows = [[copy.row(row) for copy in copies for row in table.rows] for table in tables]
        yield Work(
            [table.begun(each) for table, each in zip(tables, rows, strict=True)],
            [table.ended(each) for table, each in zip(tables, rows, strict=True)],
        )


# --- the measure -----------------------------------------------------------------------------------------------------


async def raw_limit(url: str, accountant: Accountant, jobs: int) -> Limit:
    """Measures it on the server of the store at `url`, which has at least one finished W1 job."""
    store = await asyncpg.connect(url)
    try:
        tables = await _tables_of_a_job(store)
        await store.execute(f"CREATE DATABASE {_DATABASE}")
        own = await asyncpg.connect(url, database=_DATABASE, server_settings=dict(_SESSION))
        try:
            await migrate(own)
            return await _measure(own, tables, accountant, batches=math.ceil(jobs / BATCH))
        finally:
            await own.close()
    finally:
        await store.close()


async def _measure(own: Connection, tables: Sequence[Table], accountant: Accountant, batches: int) -> Limit:
    inserts = [await own.prepare(table.insert()) for table in tables]
    updates = [await own.prepare(table.update()) for table in tables]

    async def perform(work: Work) -> None:
        for statements, columns in ((inserts, work.begun), (updates, work.ended)):
            async with own.transaction():
                for statement, each in zip(statements, columns, strict=True):
                    await statement.fetch(*each)

    prepared = list(_work(tables, _WARM_UP + batches))
    for work in prepared[:_WARM_UP]:
        await perform(work)
    before, began = accountant.read(), time.monotonic()
    for work in prepared[_WARM_UP:]:
        await perform(work)
    seconds, used = time.monotonic() - began, accountant.read().since(before)
    jobs = BATCH * batches
    rows = sum(len(table.rows) for table in tables)
    return Limit(jobs / seconds, used.parties[POSTGRES] / jobs, rows)
