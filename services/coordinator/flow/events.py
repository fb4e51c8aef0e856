"""What a flow is told (events) and what it asks for (effects). Plain data, standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.flow.attempts import FailedAttempt
from coordinator.flow.mutations import Mutations
from coordinator.plan import EntityRef, Inlined, Observation, Plan
from coordinator.rows import Dependency, Failure, Leaf, Notes

Json = Any


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A new flow begins."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A flow was loaded from its rows and goes on."""


@dataclass(frozen=True, slots=True)
class Planned:
    """validate and execute have run: a plan with notes, or a failure (`executing` tells in which of the two)."""

    command_id: str
    plan: Plan | None = None
    notes: Notes = field(default_factory=Notes)
    failure: Failure | None = None
    executing: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end method has run: notes, or a failure if it raised; `compensate` asks for the default, undoing, as well."""

    command_id: str
    notes: Notes = field(default_factory=Notes)
    failure: Failure | None = None
    compensate: bool = False


@dataclass(frozen=True, slots=True)
class Revised:
    """after_failure has run: the plan of a further attempt with notes, or None; `failure` if it raised.

    `cleanup`: the attempt does not replace the failure, which stands.
    """

    command_id: str
    plan: Plan | None = None
    cleanup: bool = False
    notes: Notes = field(default_factory=Notes)
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """The commit in flight is durable. `seen`: the entities that it was asked to report, as they are.

    `dependencies`: how the jobs are that it began to wait for.
    """

    revision: int
    time: float
    seen: Mapping[EntityRef, Observation] = field(default_factory=dict)
    dependencies: Sequence[Dependency] = ()


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """The store refused the commit in flight; nothing of it was stored."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class LeafReported:
    """A host says how a task or call is. `result` is "" until it is over; `lost`: nobody can tell what became of it."""

    task_id: str
    result: str = ""
    progress: int = 0
    error: Failure | None = None
    answer: Json = None
    incarnation: str = ""
    observation_number: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class TaskStalled:
    """A host has answered for so long that it works on a task, and that it has come no further."""

    task_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EntitySeen:
    """A host's observation of an entity has been stored."""

    entity: EntityRef
    observation: Observation


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that the flow asked for."""

    key: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody wants the job stopped. `token` comes back with the answer; `request_id` if it came through the store."""

    token: int
    user: str
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Woken:
    """News for a flow that waits before it begins: how jobs are, and that locks may be free."""

    dependencies: Sequence[Dependency] = ()
    locks_free: bool = False


@dataclass(frozen=True, slots=True)
class PriorityAsked:
    """Somebody wants another priority; `token` and `request_id` as for CancelAsked."""

    token: int
    priority: int
    user: str
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants tasks stopped (none named: all); `token` and `request_id` as for CancelAsked."""

    token: int
    task_ids: tuple[str, ...]
    user: str
    reason: str = ""
    request_id: str = ""


Event = (
    Submitted
    | Recovered
    | Planned
    | Ended
    | Revised
    | Recorded
    | RecordRefused
    | LeafReported
    | TaskStalled
    | EntitySeen
    | TimerFired
    | CancelAsked
    | PriorityAsked
    | StopAsked
    | Woken
)


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Run validate and execute of a command; answer with Planned."""

    command_id: str


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Run the end method of a command, after those of its inlined children (`parts`); answer with Ended."""

    command_id: str
    succeeded: bool
    parts: tuple[tuple[Inlined, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class RunAfterFailure:
    """Run after_failure of a command whose attempt has failed; answer with Revised."""

    command_id: str
    failed: FailedAttempt


@dataclass(frozen=True, slots=True)
class Commit:
    """Make these mutations durable under this sequence; answer with Recorded or RecordRefused."""

    mutations: Mutations
    sequence: int


@dataclass(frozen=True, slots=True)
class Start:
    """Have the host start the task; sent again after a restart."""

    leaf: Leaf


@dataclass(frozen=True, slots=True)
class CallHost:
    """Have the host run the short verb; sent again after a restart."""

    leaf: Leaf


@dataclass(frozen=True, slots=True)
class Stop:
    """Have the host stop the task."""

    leaf: Leaf


@dataclass(frozen=True, slots=True)
class Prioritise:
    """Have hosts give these tasks another priority, as far as they still wait."""

    leaves: tuple[Leaf, ...]
    priority: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Have hosts forget these tasks and calls: the flow has ended."""

    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Say TimerFired(key) at this Unix time; a later one of the same key replaces it."""

    key: str
    at: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The job is durable: its submitter can be told."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing was stored: the submitter is told why."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class AnswerCancel:
    """Tell whoever asked for a cancel, a stop, a priority: taken (None) or why not."""

    token: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Abandon:
    """Another coordinator owns the flow now: stop, and do nothing else about it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class LookAfter:
    """It waits before it begins: beside being woken, look now and then whether it may; and at once if it may have
    missed something.
    """

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """The store refused a commit for no reason of the flow's: the same again, later, and somebody is told."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Done:
    """The flow has ended, durably."""


Effect = (
    RunPlan
    | RunEnd
    | RunAfterFailure
    | Commit
    | Start
    | CallHost
    | Stop
    | Prioritise
    | Clear
    | SetTimer
    | Answer
    | Refuse
    | AnswerCancel
    | Abandon
    | LookAfter
    | Retry
    | Done
)
