"""A live task in memory: what the ledger has of it, its state, and who is at it."""

from __future__ import annotations

import asyncio

from hostagent.drivers.driver import Recovery, Verb
from hostagent.ledger import LedgerRow
from hostagent.task import Task, TaskSpec, TaskState
from waybill_spans import Context, Event, parse_traceparent


class Record:
    """A live task, or a call."""

    __slots__ = (
        "above",
        "events",
        "has_place",
        "logged",
        "names",
        "over",
        "resumed",
        "row",
        "silent",
        "taken",
        "task",
        "verb",
        "worker",
    )

    def __init__(self, row: LedgerRow, task: Task, verb: Verb | None, *, resumed: bool = False) -> None:
        self.row = row
        self.task = task
        self.verb = verb
        """None if the driver has no such verb any more."""
        self.resumed = resumed
        """It was accepted by a former process."""
        self.taken = False
        """It does not wait any more."""
        self.has_place = False
        """It is one of those that may work at once."""
        self.worker: asyncio.Task[object] | None = None
        """Who is at its work and can be interrupted; None while nobody is."""
        self.silent = False
        """The host pretends to have lost the way to its watchers."""
        self.events: list[Event] = []
        """What its span will tell of it."""
        self.above = parse_traceparent(row.spec.traceparent)
        """The span of the command that ordered it; None if nobody traces that."""
        self.names = _names(row.spec, self.above)
        """What log lines call it."""
        self.logged: TaskState | None = None
        """The state of which the log has a line; None before its first."""
        self.over = asyncio.Event()
        """Set when it has ended, or is lost."""

    @property
    def spec(self) -> TaskSpec:
        return self.row.spec


def _names(spec: TaskSpec, above: Context | None) -> dict[str, str]:
    """All of them, also if empty: a worker may be hired by another, whose names are bound then."""
    return {
        "correlation_id": spec.correlation_id,
        "trace_id": above.trace_id if above is not None else "",
        "span_id": spec.span_id if above is not None else "",
        "job_id": spec.job_id,
        "command_id": spec.command_id,
        "task_id": spec.task_id,
        "verb": spec.verb,
    }


def record_accepted(row: LedgerRow, verb: Verb) -> Record:
    """Returns the record of a task that was just accepted."""
    return Record(row, Task(), verb)


def record_found(row: LedgerRow, verb: Verb | None) -> Record:
    """Returns the record of a task of a former process, in the state in which this one takes it up."""
    return Record(row, _task_found(row, verb), verb, resumed=True)


def _task_found(row: LedgerRow, verb: Verb | None) -> Task:
    if row.ending is not None:
        task = Task.over(row.progress, row.ending)
        if row.revert_asked:
            task.revert()
        return task
    simply_run = verb is not None and (verb.recovery is Recovery.RESUME or not row.started)
    task = Task.waiting(row.progress) if simply_run else Task.found(row.progress)
    if row.stop_asked:
        task.stop()
    return task
