"""The tasks on one host that somebody here waits for, and what the host's words say about them. Pure.

                 ┌──────────────────── refused ───────────────────┐
    care ─▶ SENT ┴─ accepted, or any status heard ─▶ ACCEPTED ─┬───┴─▶ over: reported once, then out of the book
                                                               │
                          a status resets the doubt            ├─ FINISHED
                                                               ├─ denied twice by the same incarnation: lost
                                                               └─ the host's incarnation is another one: lost

A host *denies* a task when it answers a question about its tasks without naming it. That counts only if its acceptance
was known before the question was asked: questions are numbered, and an acceptance remembers the number of the last one.
One denial is a doubt and is asked about by name at once; the second is the answer. A silent host neither denies nor
confirms. Tasks that nobody here waits for are not ours to speak of.

*Liveness is by progress, not by age*: between two rounds of the net that a host has answered, a task has come further
or it has not. What it spends without coming further adds up; time in which the host does not answer, and time in its
queue, does not count. So a task that makes progress costs nothing, and one that ends within a round is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import struct_pb2
from google.rpc import status_pb2

from chassis.errors import failed_precondition
from coordinator.hosts.refusals import loses_the_truth
from waybill.v1 import hostagent_pb2, jobs_pb2

_STATES: Final = {number: name.removeprefix("TASK_STATE_") for name, number in jobs_pb2.TaskState.items()}
_RESULTS: Final = {number: name.removeprefix("TASK_RESULT_") for name, number in jobs_pb2.TaskResult.items()}
_RESULTS[jobs_pb2.TASK_RESULT_UNSPECIFIED] = ""

_WAITS: Final = (jobs_pb2.TASK_STATE_UNSPECIFIED, jobs_pb2.TASK_STATE_INIT)
_AT_WORK: Final = (jobs_pb2.TASK_STATE_INIT, jobs_pb2.TASK_STATE_RUNNING)
_NOT_AT_WORK: Final = (jobs_pb2.TASK_STATE_UNSPECIFIED, jobs_pb2.TASK_STATE_INIT)
_DENIALS_TO_BELIEVE: Final = 2


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a host says about a task or call of ours.

    Over if `result` is set or it is `lost`; nothing follows then. `refused`: the host would not take it, nothing was
    done. `lost`: nobody can tell what became of it.
    """

    host_id: str
    task_id: str
    state: str
    """INIT, RUNNING, FINISHED, ABORTING, CLEANING, UNKNOWN."""
    result: str = ""
    """SUCCESS, CLEAN_SUCCESS, CLEAN_FAILURE; empty: not over, or lost."""
    progress: int = 0
    error: status_pb2.Status | None = None
    answer: Any = None
    """As plain Python."""
    incarnation: str = ""
    """The host's, as it was last seen."""
    observation_number: int = 0
    """Of calls: only later observations can show their effect."""
    refused: bool = False
    lost: bool = False


@dataclass(slots=True)
class Entry:
    """A task in our care."""

    spec: hostagent_pb2.TaskSpec
    deadline: float | None
    stall_seconds: float | None = None  # how long it may come no further; None: as all
    withdrawn: bool = False  # must not be sent any more
    accepted: bool = False
    reprioritised: bool = False  # its host is still to be told of its priority
    incarnation: str = ""  # that accepted it; empty before
    known_since: int = 0  # number of the last question that was asked before its acceptance was known
    denials: int = 0
    state: int = jobs_pb2.TASK_STATE_UNSPECIFIED  # as last heard; UNSPECIFIED: nothing was heard
    progress: int = 0


class TaskBook:
    """The tasks of one host that are in our care."""

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id
        self.incarnation = ""
        """The host's, as last seen; empty before."""
        self._entries: dict[str, Entry] = {}
        self._unheard: set[str] = set()  # accepted, and not a word about them since
        self._questions = 0
        self._still: dict[str, tuple[int, int, float]] = {}  # running ones: state, progress, seconds without any

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def unaccepted(self) -> int:
        """How many of them the host is not known to have."""
        return sum(not entry.accepted for entry in self._entries.values())

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._entries

    def get(self, task_id: str) -> Entry | None:
        """Returns the entry of a task that is in our care."""
        return self._entries.get(task_id)

    # ---------------------------------------------------------------- starting

    def care(self, spec: hostagent_pb2.TaskSpec, deadline: float | None, stall_seconds: float | None = None) -> Entry:
        """Takes a task into care; one that is there already stays as it is."""
        entry = self._entries.get(spec.task_id)
        if entry is None:
            entry = self._entries[spec.task_id] = Entry(spec, deadline, stall_seconds)
        return entry

    def forget(self, task_id: str) -> None:
        """Nobody waits for the task any more."""
        if entry := self._entries.pop(task_id, None):
            entry.withdrawn = True
            self._unheard.discard(task_id)

    def accepted(self, task_id: str) -> None:
        """The host has the task."""
        entry = self._entries.get(task_id)
        if entry is not None and not entry.accepted:
            self._accept(entry)
            self._unheard.add(task_id)

    def refused(self, task_id: str, error: status_pb2.Status) -> TaskReport | None:
        """The host would not take the task, for good."""
        entry = self._entries.get(task_id)
        if entry is None or entry.accepted:
            return None
        self.forget(task_id)
        return self.refusal_of(task_id, error)

    def refusal_of(self, task_id: str, error: status_pb2.Status) -> TaskReport:
        """Returns what a refusal means: nothing was done, or (another incarnation) that nobody can tell."""
        if loses_the_truth(error):
            return self._lost(task_id, error)
        return TaskReport(
            self.host_id, task_id, "FINISHED", "CLEAN_SUCCESS", 0, error, None, self.incarnation, 0, refused=True
        )

    def _accept(self, entry: Entry) -> None:
        entry.accepted = True
        entry.incarnation = self.incarnation
        entry.known_since = self._questions

    # ---------------------------------------------------------------- priority

    def prioritise(self, task_id: str, priority: int) -> Entry | None:
        """Gives a task another priority; returns it if its host has it, and may have it waiting for a worker."""
        entry = self._entries.get(task_id)
        if entry is None or entry.spec.priority == priority:
            return None
        entry.spec.priority = priority
        if not entry.accepted or entry.reprioritised or entry.state not in _WAITS:
            return None  # it is still to be sent, or waits to be, or works
        entry.reprioritised = True
        return entry

    # ---------------------------------------------------------------- hearing

    def heard(self, status: hostagent_pb2.TaskStatus) -> TaskReport | None:
        """Takes a status; returns a report if it says something that matters and was not said before."""
        task_id = status.task_id
        entry = self._entries.get(task_id)
        if entry is None:
            return None
        state = status.state
        if state == jobs_pb2.TASK_STATE_FINISHED:
            self.forget(task_id)
            return self._finished(status)
        if state == jobs_pb2.TASK_STATE_UNKNOWN:
            self.forget(task_id)
            return self._lost(task_id, status.error if status.HasField("error") else _lost_error("the host lost it"))
        return self._under_way(entry, status)

    def _under_way(self, entry: Entry, status: hostagent_pb2.TaskStatus) -> TaskReport | None:
        if not entry.accepted:
            self._accept(entry)
        self._unheard.discard(status.task_id)
        entry.denials = 0
        is_ending = status.state not in _AT_WORK and status.state != entry.state
        has_moved = status.progress != entry.progress
        entry.state, entry.progress = status.state, status.progress
        if not is_ending and not has_moved:
            return None
        return TaskReport(
            self.host_id,
            status.task_id,
            _STATES[status.state],
            progress=status.progress,
            incarnation=self.incarnation,
        )

    def _finished(self, status: hostagent_pb2.TaskStatus) -> TaskReport:
        return TaskReport(
            self.host_id,
            status.task_id,
            "FINISHED",
            _RESULTS[status.result],
            status.progress,
            status.error if status.HasField("error") else None,
            plain(status.answer) if status.HasField("answer") else None,
            self.incarnation,
        )

    # ---------------------------------------------------------------- standing still

    def still(self, seconds: float, limit: float) -> list[tuple[str, float]]:
        """The host has said how its tasks are, `seconds` after it last did (0: we do not know how they were).

        Returns those that have come no further for their limit, and for how many seconds; their time begins anew.
        """
        before, self._still = self._still, {}
        stalled = []
        for task_id, entry in self._entries.items():
            if not entry.accepted or entry.state in _NOT_AT_WORK:
                continue
            state, progress, still = before.get(task_id, (-1, -1, 0.0))
            still = still + seconds if (state, progress) == (entry.state, entry.progress) else 0.0
            if still >= (limit if entry.stall_seconds is None else entry.stall_seconds):
                stalled.append((task_id, still))
                still = 0.0
            self._still[task_id] = (entry.state, entry.progress, still)
        return stalled

    # ---------------------------------------------------------------- losing

    def met(self, incarnation: str) -> list[TaskReport]:
        """The host said who it is. Returns what is lost because its data are not those that accepted it."""
        if incarnation == self.incarnation:
            return []
        self.incarnation = incarnation
        strangers = [
            task_id
            for task_id, entry in self._entries.items()
            if entry.incarnation and entry.incarnation != incarnation
        ]
        return [self._lose(task_id, "the host's data were replaced", incarnation=incarnation) for task_id in strangers]

    def question(self) -> int:
        """A question about the host's tasks is about to be asked; returns its number, for `denied`."""
        self._questions += 1
        return self._questions

    def accepted_ids(self) -> list[str]:
        """Returns the tasks that the host must know."""
        return [task_id for task_id, entry in self._entries.items() if entry.accepted]

    def unheard_ids(self) -> set[str]:
        """Returns the tasks that were accepted without a word about them since."""
        return set(self._unheard)

    def denied(
        self, question: int, named: Set[str], about: Iterable[str] | None = None
    ) -> tuple[list[TaskReport], list[str]]:
        """The answer to a question (about all tasks, or these) named only some. Returns what is lost, what in doubt."""
        lost: list[TaskReport] = []
        doubts: list[str] = []
        for task_id in tuple(self._entries) if about is None else about:
            entry = self._entries.get(task_id)
            if entry is None or task_id in named or not entry.accepted or entry.known_since >= question:
                continue
            entry.denials += 1
            if entry.denials >= _DENIALS_TO_BELIEVE:
                lost.append(self._lose(task_id, "the host does not know it any more"))
            else:
                doubts.append(task_id)
        return lost, doubts

    def lose(self, task_id: str, why: str) -> TaskReport | None:
        """Gives a task up as lost, for a reason found elsewhere."""
        return self._lose(task_id, why) if task_id in self._entries else None

    def lost(self, task_id: str, why: str, **metadata: str) -> TaskReport:
        """Returns the report of a task or call that is given up as lost."""
        return self._lost(task_id, _lost_error(f"{task_id} on host {self.host_id} is lost: {why}", **metadata))

    def _lose(self, task_id: str, why: str, **metadata: str) -> TaskReport:
        self.forget(task_id)
        return self.lost(task_id, why, **metadata)

    def _lost(self, task_id: str, error: status_pb2.Status) -> TaskReport:
        return TaskReport(self.host_id, task_id, "UNKNOWN", error=error, incarnation=self.incarnation, lost=True)


def _lost_error(message: str, **metadata: str) -> status_pb2.Status:
    return failed_precondition("TASK_LOST", message, **metadata).to_status()


def plain(value: struct_pb2.Value) -> Any:
    """Returns a JSON value as plain Python; whole numbers as int."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: plain(part) for key, part in value.struct_value.fields.items()}
    if kind == "list_value":
        return [plain(part) for part in value.list_value.values]
    if kind is None or kind == "null_value":
        return None
    found = getattr(value, kind)
    return int(found) if kind == "number_value" and found.is_integer() else found
