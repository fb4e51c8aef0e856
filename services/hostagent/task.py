"""The life of a task on a host: what it is, the states it goes through, and which moves are legal.

Pure: no clock, no loop, no file. The runner feeds it what happened and acts; here is only decided what may follow what.

                 stop                     ┌───────────────── revert ─────────────────┐
      ┌──────────────────────┐            ▼                                          │
      │       ┌─ fail ───▶ CLEANING ── recovery actions ran, last in first out ──▶ FINISHED
      │       │              ▲  ▲                                                 ▲ ▲  ▲
    INIT ─▶ RUNNING ─────────│──│───────────────── work done ─────────────────────┘ │  │
      │       │ ▲            │  │                                                   │  │
      │       │ └─ resume ── UNKNOWN ────── found done, or with nothing to clean ───┘  │
      ▼       ▼ stop         ▲  │ stop                                                 │
      ABORTING ◀─────────────│──┘                                                      │
         │ └─── something to take back ──▶ CLEANING                                    │
         └───── nothing to take back, or the work was done before the stop reached it ─┘

* INIT waits for a worker; RUNNING has one; ABORTING was asked to stop; CLEANING takes back what was done.
* UNKNOWN is a task that was begun by a process that died: the next one asks the verb to resume, roll back or probe.
* FINISHED says nothing about how it went, only the result does: SUCCESS, CLEAN_SUCCESS (failed or stopped, all taken
  back) or CLEAN_FAILURE (failed or stopped, not all taken back: the object is in doubt).
* A stop that comes too late is no error, and the truth wins: work that was done stays SUCCESS.
* Progress never falls. Only a revert leaves FINISHED.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

Json = Any


class TaskSpec(NamedTuple):
    """A task or a short call as its coordinator asked for it."""

    task_id: str
    verb: str
    arguments: Mapping[str, Json]
    flow_command_id: str = ""
    epoch: int = 0
    incarnation: str = ""
    """The incarnation of the host's data that it was made for; empty for any."""
    priority: int = 0
    correlation_id: str = ""
    traceparent: str = ""
    expected_generation: int | None = None
    """The generation that its object must have; None for any."""
    job_id: str = ""
    command_id: str = ""
    span_id: str = ""

    def asks_the_same_as(self, other: TaskSpec) -> bool:
        """Says whether the other is a repeat of this: epoch, priority and trace may differ, the work may not."""
        return (
            self.verb == other.verb
            and self.arguments == other.arguments
            and self.expected_generation == other.expected_generation
        )


class TaskState(StrEnum):
    """Where a task is."""

    INIT = "INIT"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    ABORTING = "ABORTING"
    CLEANING = "CLEANING"
    UNKNOWN = "UNKNOWN"


class TaskResult(StrEnum):
    """How a finished task went."""

    SUCCESS = "SUCCESS"
    CLEAN_SUCCESS = "CLEAN_SUCCESS"
    CLEAN_FAILURE = "CLEAN_FAILURE"


class Ending(NamedTuple):
    """How a task ended."""

    result: TaskResult
    error: Exception | None = None
    """Why it did not go well; None if it did."""
    answer: Json = None
    """What it answered; None if nothing."""


class IllegalMove(Exception):  # noqa: N818
    """The task's state does not allow this."""

    code: Final = "TASK_STATE"


_LEGAL_RESULTS: Final = {
    TaskState.INIT: frozenset[TaskResult](),  # what never ran has no result; stopped in the queue it is ABORTING first
    TaskState.RUNNING: frozenset({TaskResult.SUCCESS, TaskResult.CLEAN_SUCCESS}),
    TaskState.ABORTING: frozenset({TaskResult.SUCCESS, TaskResult.CLEAN_SUCCESS}),
    TaskState.CLEANING: frozenset({TaskResult.CLEAN_SUCCESS, TaskResult.CLEAN_FAILURE}),
    TaskState.UNKNOWN: frozenset(TaskResult),
    TaskState.FINISHED: frozenset[TaskResult](),
}


class Task:
    """One task's state. Moves that are not in the diagram raise IllegalMove and change nothing."""

    __slots__ = ("_ending", "_progress", "_state")

    def __init__(self) -> None:
        self._state = TaskState.INIT
        self._progress = 0
        self._ending: Ending | None = None  # None until FINISHED, and again while a revert cleans

    @classmethod
    def waiting(cls, progress: int) -> Task:
        """Returns a task that no process has begun, or whose work simply begins again."""
        task = cls()
        task._progress = progress
        return task

    @classmethod
    def found(cls, progress: int) -> Task:
        """Returns a task that a former process had begun, of which nothing more is known yet."""
        task = cls()
        task._state = TaskState.UNKNOWN
        task._progress = progress
        return task

    @classmethod
    def over(cls, progress: int, ending: Ending) -> Task:
        """Returns a task that had ended in a former process."""
        task = cls()
        task._state = TaskState.FINISHED
        task._progress = progress
        task._ending = ending
        return task

    @property
    def state(self) -> TaskState:
        return self._state

    @property
    def progress(self) -> int:
        """0-100; never falls."""
        return self._progress

    @property
    def ending(self) -> Ending | None:
        """How it ended; None unless FINISHED."""
        return self._ending

    @property
    def is_over(self) -> bool:
        return self._state is TaskState.FINISHED

    def begin(self) -> None:
        """A worker begins it, or resumes it."""
        self._move("begin", TaskState.RUNNING, TaskState.INIT, TaskState.UNKNOWN)

    def advance(self, percent: int) -> bool:
        """Its work has come so far. Returns whether that is news; less than before is none."""
        reached = min(percent, 100)
        if self._state is TaskState.FINISHED or reached <= self._progress:
            return False
        self._progress = reached
        return True

    def stop(self) -> bool:
        """Somebody asks it to stop. Returns False if that changes nothing: it is over, or stopping, or failing."""
        if self._state in (TaskState.FINISHED, TaskState.ABORTING, TaskState.CLEANING):
            return False
        self._state = TaskState.ABORTING
        return True

    def clean(self) -> None:
        """Its recovery actions begin, because it failed or was stopped."""
        self._move("clean", TaskState.CLEANING, TaskState.RUNNING, TaskState.ABORTING, TaskState.UNKNOWN)

    def revert(self) -> bool:
        """Somebody asks to take it back. Returns False if that is going on already or there is nothing to take back."""
        if self._state is TaskState.CLEANING:
            return False
        if self._ending is not None and self._ending.result is TaskResult.CLEAN_SUCCESS:
            return False
        self._move("revert", TaskState.CLEANING, TaskState.FINISHED)
        self._ending = None
        return True

    def finish(self, ending: Ending) -> None:
        """It is over. Whoever calls this has written the ending down where it cannot be lost."""
        if ending.result not in _LEGAL_RESULTS[self._state]:
            raise IllegalMove(f"a task that is {self._state} cannot end {ending.result}")
        self._state = TaskState.FINISHED
        self._ending = ending
        if ending.result is TaskResult.SUCCESS:
            self._progress = 100

    def _move(self, move: str, to: TaskState, *sources: TaskState) -> None:
        if self._state not in sources:
            raise IllegalMove(f"cannot {move} a task that is {self._state}")
        self._state = to
