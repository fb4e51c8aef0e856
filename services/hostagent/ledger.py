"""What the agent must not forget: the tasks it accepted, how they went, and which ids never again.

    accepted ─▶ (started) ─▶ (recovery actions, progress, stop asked …) ─▶ done ─▶ cleared: only the id is left, 7 days

Every fact is on disk before anybody is told of it or acts on it: the id before the work begins, the recovery action
before what it would take back, the result before it is reported. So whatever a killed agent had said is still true of
the next one, and what it had begun is known to it.

*Live* tasks (accepted, not cleared) are few, the runner has them in memory, and rows are found by the number of their
arrival, so that tasks which come and go together lie together. Cleared ids are many and on disk alone; the step that
accepts looks them up. The same step refuses stale epochs, so that no two of a flow's owners can slip in side by side.
A flow's epoch is kept only from the second on: under the first nobody can be stale.

The *span* of a task (see recorder.py) is written together with its end and outlives it, until it is delivered.

`incarnation` is made with the file and names this memory; a host that lost it has another one.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from google.rpc import status_pb2

from chassis import errors
from chassis.clock import Clock, Ids, SystemClock
from chassis.errors import WaybillError
from hostagent.metrics import LedgerTallies
from hostagent.sqlite_writer import SqliteWriter, Step, T
from hostagent.task import Ending, Json, TaskResult, TaskSpec
from waybill_spans import Kept, Recorded, encoded

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS identity (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        incarnation TEXT NOT NULL,
        observation_ceiling INTEGER NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS task (
        number INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL UNIQUE,
        is_call INTEGER NOT NULL,
        verb TEXT NOT NULL,
        arguments TEXT NOT NULL,
        flow_command_id TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        incarnation TEXT NOT NULL,
        priority INTEGER NOT NULL,
        correlation_id TEXT NOT NULL,
        traceparent TEXT NOT NULL,
        expected_generation INTEGER,
        job_id TEXT NOT NULL,
        command_id TEXT NOT NULL,
        span_id TEXT NOT NULL,
        observation_number INTEGER NOT NULL,
        create_time REAL NOT NULL,
        started INTEGER NOT NULL DEFAULT 0,
        progress INTEGER NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
        stop_asked INTEGER NOT NULL DEFAULT 0,
        revert_asked INTEGER NOT NULL DEFAULT 0,
        result TEXT CHECK (result IN ('SUCCESS', 'CLEAN_SUCCESS', 'CLEAN_FAILURE')),
        error BLOB,
        answer TEXT,
        end_time REAL,
        CHECK ((result IS NULL) = (end_time IS NULL))
    )""",
    """CREATE TABLE IF NOT EXISTS recovery_action (
        number INTEGER NOT NULL REFERENCES task (number) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        action TEXT NOT NULL,
        arguments TEXT NOT NULL,
        PRIMARY KEY (number, position)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS span (
        number INTEGER PRIMARY KEY, content BLOB NOT NULL
    )""",
    # Rows in the order of their arrival, so that the oldest are found without an index on time.
    """CREATE TABLE IF NOT EXISTS cleared (
        arrival INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, time REAL NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS flow_epoch (
        arrival INTEGER PRIMARY KEY, flow_command_id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, time REAL NOT NULL
    )""",
)

_SPEC_COLUMNS: Final = ", ".join(TaskSpec._fields)
_ARGUMENTS: Final = TaskSpec._fields.index("arguments")

_INSERT_TASK: Final = f"""
    INSERT INTO task (number, is_call, create_time, observation_number, {_SPEC_COLUMNS})
    VALUES (?, ?, ?, ?{", ?" * len(TaskSpec._fields)})"""

_FINISH_TASK: Final = """
    UPDATE task SET result = ?, error = ?, answer = ?, progress = ?, observation_number = ?, end_time = ?,
        revert_asked = 0
    WHERE number = ?"""

_KEEP_SPAN: Final = "INSERT INTO span (number, content) VALUES (?, ?)"
_FORGET_SPAN: Final = "DELETE FROM span WHERE number = ?"

_CLEARED_AMONG: Final = "SELECT task_id FROM cleared WHERE task_id IN (SELECT value FROM json_each(?))"
_EPOCHS_OF: Final = (
    "SELECT flow_command_id, epoch FROM flow_epoch WHERE flow_command_id IN (SELECT value FROM json_each(?))"
)
_CLEAR_ID: Final = "INSERT OR IGNORE INTO cleared (task_id, time) VALUES (?, ?)"
_RAISE_EPOCH: Final = "INSERT OR REPLACE INTO flow_epoch (flow_command_id, epoch, time) VALUES (?, ?, ?)"

_SWEEP_AT_ONCE: Final = 500

_FIRST_EPOCH: Final = 1


class FlowOwner(NamedTuple):
    """Who speaks for a flow: the epoch in which it was claimed. No flow (empty): an operator, whom nothing fences."""

    flow_command_id: str
    epoch: int


class RecoveryAction(NamedTuple):
    """What takes back a part of a task's work."""

    action: str
    arguments: Mapping[str, Json]


@dataclass(slots=True)
class LedgerRow:
    """A task as the ledger has it."""

    number: int
    """Of its arrival; its key."""
    spec: TaskSpec
    is_call: bool
    create_time: float
    observation_number: int
    """The newest observation made before it was accepted or, once a call is over, before the call took effect."""
    started: bool = False
    """Some process began it. Not written for verbs that resume: they are run again either way."""
    progress: int = 0
    stop_asked: bool = False
    revert_asked: bool = False
    ending: Ending | None = None
    """None until it is over."""
    end_time: float | None = None
    """None until it is over."""
    recovery_actions: list[RecoveryAction] = field(default_factory=list)
    """What there is to take back, in the order in which it was done."""


@dataclass(slots=True)
class _SpanToKeep:
    span: Recorded
    content: bytes = b""
    """Its form in OTLP, when it is on its way to the file."""


class Ledger:
    """The agent's memory: `async with Ledger(path, ids) as ledger`. Every method returns once it is on disk.

    All raise WaybillError (UNAVAILABLE) if it cannot be written, a full disk for one; nothing is changed then.
    """

    def __init__(self, path: Path | str, ids: Ids, clock: Clock | None = None) -> None:
        """`clock` takes the time of the transactions."""
        self.metrics = LedgerTallies(clock or SystemClock())
        self._file = SqliteWriter(path, _SCHEMA, on_send=self._on_send, on_written=self.metrics.written)
        self._ids = ids
        self._next_number = 1
        self._spans: list[_SpanToKeep] = []  # of the next transaction
        self._delivered: list[int] = []  # numbers of spans that are to be forgotten
        self.incarnation = ""
        self.observation_ceiling = 0
        """No observation has a number above it yet."""

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        fresh = self._ids.new()
        self.incarnation, self.observation_ceiling, self._next_number = await self._write(
            lambda connection: _identify(connection, fresh)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget_delivered()
        await self._file.__aexit__(kind, error, trace)

    async def live(self) -> list[LedgerRow]:
        """Returns all tasks that are not cleared, in the order of their arrival."""
        return await self._write(_read_live)

    def row_for(self, spec: TaskSpec, *, is_call: bool, observation_number: int, create_time: float) -> LedgerRow:
        """Makes the row of a task that is about to be accepted."""
        number, self._next_number = self._next_number, self._next_number + 1
        return LedgerRow(number, spec, is_call, create_time, observation_number)

    async def accept(self, rows: Sequence[LedgerRow], now: float) -> list[WaybillError | None]:
        """Takes tasks in; says of each why it was refused, if it was: ALREADY_CLEARED, STALE_EPOCH."""
        return await self._write(lambda connection: _accept(connection, rows, now))

    async def fence(self, owners: Sequence[FlowOwner], now: float) -> list[WaybillError | None]:
        """Remembers the owners of flows; says STALE_EPOCH of each that a newer one is known for."""
        return await self._write(lambda connection: _fence(connection, owners, now))

    async def start(self, row: LedgerRow) -> None:
        """Writes down that a worker begins it."""
        await self._set(row, "started = 1")
        row.started = True

    async def advance(self, row: LedgerRow, progress: int) -> None:
        """Writes down how far it has come."""
        await self._set(row, "progress = ?", progress)
        row.progress = progress

    async def prioritise(self, row: LedgerRow, priority: int) -> None:
        """Writes down another priority."""
        await self._set(row, "priority = ?", priority)
        row.spec = row.spec._replace(priority=priority)

    async def ask_stop(self, row: LedgerRow) -> None:
        """Writes down that it is to stop."""
        await self._set(row, "stop_asked = 1")
        row.stop_asked = True

    async def ask_revert(self, row: LedgerRow) -> None:
        """Writes down that it is to be taken back."""
        await self._set(row, "revert_asked = 1")
        row.revert_asked = True

    async def add_recovery_action(self, row: LedgerRow, recovery: RecoveryAction) -> None:
        """Writes down what will take back the part of the work that comes next."""
        number, position = row.number, len(row.recovery_actions)
        row.recovery_actions.append(recovery)
        arguments = json.dumps(recovery.arguments)
        await self._write(
            lambda connection: connection.execute(
                "INSERT INTO recovery_action (number, position, action, arguments) VALUES (?, ?, ?, ?)",
                (number, position, recovery.action, arguments),
            )
        )

    async def drop_recovery_action(self, row: LedgerRow) -> None:
        """Writes down that the last of the recovery actions has run."""
        number, position = row.number, len(row.recovery_actions) - 1
        await self._write(
            lambda connection: connection.execute(
                "DELETE FROM recovery_action WHERE number = ? AND position = ?", (number, position)
            )
        )
        row.recovery_actions.pop()

    async def finish(
        self, row: LedgerRow, ending: Ending, *, progress: int, end_time: float, span: Recorded | None = None
    ) -> Kept | None:
        """Writes down how it ended, and the span that tells of it; returns that as it is kept."""
        values = (
            ending.result.value,
            _error_to_bytes(ending.error),
            None if ending.answer is None else json.dumps(ending.answer),
            progress,
            row.observation_number,
            end_time,
            row.number,
        )
        to_keep = None if span is None else _SpanToKeep(span)
        if to_keep is not None:
            self._spans.append(to_keep)

        def step(connection: sqlite3.Connection) -> None:
            connection.execute(_FINISH_TASK, values)
            if to_keep is not None and to_keep.content:
                connection.execute(_KEEP_SPAN, (values[-1], to_keep.content))

        await self._write(step)
        row.ending, row.end_time, row.progress, row.revert_asked = ending, end_time, progress, False
        return Kept(to_keep.content) if to_keep is not None and to_keep.content else None

    async def clear(self, rows: Sequence[LedgerRow], unknown_ids: Sequence[str], now: float) -> None:
        """Forgets tasks, and remembers their ids and those of unknown ones as never to be started."""
        numbers = [(row.number,) for row in rows]
        ids = [(task_id, now) for task_id in (*(row.spec.task_id for row in rows), *unknown_ids)]

        def step(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM task WHERE number = ?", numbers)
            connection.executemany(_CLEAR_ID, ids)

        await self._write(step)

    async def lose(self, row: LedgerRow) -> None:
        """Forgets a task without a trace, as a broken host would."""
        number = row.number
        await self._write(lambda connection: connection.execute("DELETE FROM task WHERE number = ?", (number,)))

    async def spans(self) -> list[tuple[int, bytes]]:
        """Returns the spans that are not forgotten, each with the number of its task, in the order of arrival."""
        return await self._write(lambda connection: connection.execute(_READ_SPANS).fetchall())

    def forget_spans(self, numbers: Iterable[int]) -> None:
        """Forgets the spans of tasks, with the next transaction. If that fails they are found again, nothing else."""
        if not self._delivered:
            asyncio.get_running_loop().call_soon(self._forget_delivered)  # spans are delivered many at once
        self._delivered.extend(numbers)

    def _forget_delivered(self) -> None:
        if self._delivered:
            numbers, self._delivered = [(number,) for number in self._delivered], []
            self._file.post(lambda connection: connection.executemany(_FORGET_SPAN, numbers))

    async def raise_observation_ceiling(self, ceiling: int) -> None:
        """Reserves the observation numbers up to this one."""
        await self._write(
            lambda connection: connection.execute("UPDATE identity SET observation_ceiling = ?", (ceiling,))
        )
        self.observation_ceiling = ceiling

    async def sweep(self, before: float) -> int:
        """Forgets some of the ids cleared, and of the epochs seen, before a time; returns how many."""
        return await self._write(lambda connection: _sweep(connection, before))

    def _on_send(self, writes: int) -> None:
        """Puts the spans of a transaction into their form, all in a row, which costs a fraction of one by one."""
        for each in self._spans:
            each.content = encoded(each.span)
        self._spans.clear()
        self.metrics.sent(writes)

    async def _set(self, row: LedgerRow, assignment: str, *values: object) -> None:
        statement = f"UPDATE task SET {assignment} WHERE number = ?"
        parameters = (*values, row.number)
        await self._write(lambda connection: connection.execute(statement, parameters))

    async def _write(self, step: Step[T]) -> T:
        try:
            return await self._file.write(step)
        except sqlite3.Error as error:
            self.metrics.failures.add()
            raise errors.unavailable(f"the host's ledger cannot be written: {error}", retry_after=1.0) from error


def _identify(connection: sqlite3.Connection, fresh: str) -> tuple[str, int, int]:
    connection.execute("INSERT OR IGNORE INTO identity VALUES (1, ?, 0)", (fresh,))
    incarnation, ceiling = connection.execute("SELECT incarnation, observation_ceiling FROM identity").fetchone()
    (newest,) = connection.execute(_NEWEST_NUMBER).fetchone()
    return incarnation, ceiling, newest + 1


def _accept(connection: sqlite3.Connection, rows: Sequence[LedgerRow], now: float) -> list[WaybillError | None]:
    ids = json.dumps([row.spec.task_id for row in rows])
    cleared = {task_id for (task_id,) in connection.execute(_CLEARED_AMONG, (ids,))}
    stale = _fence(connection, [FlowOwner(row.spec.flow_command_id, row.spec.epoch) for row in rows], now)
    refusals = [
        _already_cleared(row.spec.task_id) if row.spec.task_id in cleared else refusal
        for row, refusal in zip(rows, stale, strict=True)
    ]
    accepted = [_task_to_values(row) for row, refusal in zip(rows, refusals, strict=True) if refusal is None]
    connection.executemany(_INSERT_TASK, accepted)
    return refusals


def _already_cleared(task_id: str) -> WaybillError:
    return errors.failed_precondition("ALREADY_CLEARED", f"task {task_id} was cleared; its id is not used again")


def _fence(connection: sqlite3.Connection, owners: Sequence[FlowOwner], now: float) -> list[WaybillError | None]:
    """Lets the newest owner of each flow pass and keeps its epoch; refuses the older ones."""
    flows = json.dumps(list({owner.flow_command_id for owner in owners}))
    newest: dict[str, int] = dict(connection.execute(_EPOCHS_OF, (flows,)))
    refusals: list[WaybillError | None] = []
    for flow, epoch in owners:
        known = newest.get(flow, _FIRST_EPOCH)
        if flow and epoch > known:
            connection.execute(_RAISE_EPOCH, (flow, epoch, now))
            newest[flow] = epoch
        refusals.append(_stale_epoch(flow, newest[flow]) if flow in newest and epoch < newest[flow] else None)
    return refusals


def _stale_epoch(flow_command_id: str, newest: int) -> WaybillError:
    return errors.failed_precondition(
        "STALE_EPOCH", f"flow {flow_command_id} has an owner of epoch {newest}", epoch=str(newest)
    )


def _sweep(connection: sqlite3.Connection, before: float) -> int:
    cleared = connection.execute(
        """DELETE FROM cleared WHERE arrival IN (SELECT arrival FROM cleared ORDER BY arrival LIMIT ?) AND time < ?""",
        (_SWEEP_AT_ONCE, before),
    )
    epochs = connection.execute(
        """DELETE FROM flow_epoch WHERE arrival IN (SELECT arrival FROM flow_epoch ORDER BY arrival LIMIT ?)
           AND time < ? AND flow_command_id NOT IN (SELECT flow_command_id FROM task)""",
        (_SWEEP_AT_ONCE, before),
    )
    return cleared.rowcount + epochs.rowcount


def _task_to_values(row: LedgerRow) -> tuple[object, ...]:
    spec = row.spec
    return (
        row.number,
        row.is_call,
        row.create_time,
        row.observation_number,
        *spec[:_ARGUMENTS],
        json.dumps(spec.arguments),
        *spec[_ARGUMENTS + 1 :],
    )


_READ_TASKS: Final = f"""
    SELECT number, is_call, create_time, observation_number, started, progress, stop_asked, revert_asked,
        result, error, answer, end_time, {_SPEC_COLUMNS}
    FROM task ORDER BY number"""
_READ_SPANS: Final = "SELECT number, content FROM span ORDER BY number"
_NEWEST_NUMBER: Final = """
    SELECT coalesce(max(number), 0)
    FROM (SELECT max(number) AS number FROM task UNION ALL SELECT max(number) FROM span)"""
_READ_RECOVERY_ACTIONS: Final = "SELECT number, action, arguments FROM recovery_action ORDER BY number, position"


def _read_live(connection: sqlite3.Connection) -> list[LedgerRow]:
    by_name = connection.cursor()
    by_name.row_factory = sqlite3.Row
    rows = {found["number"]: _row_from(found) for found in by_name.execute(_READ_TASKS)}
    for number, action, arguments in connection.execute(_READ_RECOVERY_ACTIONS):
        rows[number].recovery_actions.append(RecoveryAction(action, json.loads(arguments)))
    return list(rows.values())


def _row_from(found: sqlite3.Row) -> LedgerRow:
    spec = TaskSpec(*(found[name] for name in TaskSpec._fields))
    return LedgerRow(
        number=found["number"],
        spec=spec._replace(arguments=json.loads(found["arguments"])),
        is_call=bool(found["is_call"]),
        create_time=found["create_time"],
        observation_number=found["observation_number"],
        started=bool(found["started"]),
        progress=found["progress"],
        stop_asked=bool(found["stop_asked"]),
        revert_asked=bool(found["revert_asked"]),
        ending=_ending_from(found),
        end_time=found["end_time"],
    )


def _ending_from(found: sqlite3.Row) -> Ending | None:
    if found["result"] is None:
        return None
    error = None if found["error"] is None else WaybillError.from_status(status_pb2.Status.FromString(found["error"]))
    answer = None if found["answer"] is None else json.loads(found["answer"])
    return Ending(TaskResult(found["result"]), error, answer)


def _error_to_bytes(error: Exception | None) -> bytes | None:
    if error is None:
        return None
    failure = error if isinstance(error, WaybillError) else errors.internal(str(error))
    return bytes(failure.to_status().SerializeToString())
