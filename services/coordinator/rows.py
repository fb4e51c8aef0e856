"""The rows of a flow as the tree holds them, and what commands note.

Plain data, standard library only. Names are those of the protos and of the tables; times that the store sets are Unix
seconds, 0.0 before they are known.

Most of a row never changes once it is stored. The few fields that do are its *image*: what a change on the wire can
carry, and what is put back when a commit is refused (`flow/book.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from coordinator.plan import EntityRef, Former, Observation

Json = Any
Image = tuple[Any, ...]


class Status(StrEnum):
    """Execution status of a job or step."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    ABORTED = "ABORTED"
    UNKNOWN = "UNKNOWN"
    SKIPPED = "SKIPPED"

    ended: bool
    """True in the statuses that never change again."""

    def __init__(self, value: str) -> None:
        self.ended = value not in ("PENDING", "STARTED")


class CommandStatus(StrEnum):
    """Status of a command: "work over" and "end method ran" are different facts."""

    NOT_STARTED = "NOT_STARTED"
    ACTIVE = "ACTIVE"
    EXECUTION_FAILED = "EXECUTION_FAILED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    ENDED_SUCCESSFULLY = "ENDED_SUCCESSFULLY"
    ENDED_WITH_FAILURE = "ENDED_WITH_FAILURE"
    UNKNOWN = "UNKNOWN"

    ended: bool
    """True once nothing more will happen to the command."""

    def __init__(self, value: str) -> None:
        self.ended = value in ("ENDED_SUCCESSFULLY", "ENDED_WITH_FAILURE", "UNKNOWN")


class LeafKind(StrEnum):
    """Kind of a begun leaf."""

    TASK = "TASK"
    CALL = "CALL"
    WAIT = "WAIT"


class Cancel(StrEnum):
    """What cancelling a command of a type does (`semantics` §8)."""

    NONE = "NONE"
    BEFORE_START = "BEFORE_START"
    REVERT = "REVERT"
    FINISH_FORWARD = "FINISH_FORWARD"


class DependencyPolicy(StrEnum):
    """What becomes of a job when one that it depends on does not end well."""

    SKIP = "SKIP"
    RUN = "RUN"


class LockScope(StrEnum):
    """How long a lock is held."""

    EXECUTION = "EXECUTION"
    COMMAND = "COMMAND"


class Severity(StrEnum):
    """How bad an event is."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    ERROR = "ERROR"
    ALERT = "ALERT"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not end well: a gRPC status code's number, a reason for programs, words for people."""

    code: int
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job is about, with its name as it was."""

    entity_type: str
    entity_id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A job that must end before another one begins. `gone`: there is no such job any more."""

    job_id: str
    policy: DependencyPolicy = DependencyPolicy.SKIP
    status: Status = Status.PENDING
    gone: bool = False

    @property
    def ended(self) -> bool:
        """True if there is nothing more to be waited for."""
        return self.gone or self.status.ended


@dataclass(slots=True)
class Job:
    """A row of the job table."""

    job_id: str
    command_type: str
    description: str
    owner: str
    correlation_id: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    status: Status = Status.PENDING
    subjects: tuple[Subject, ...] = ()
    progress: int = 0
    visible: bool = True
    auto_cleared: bool = True
    cancelable: Cancel = Cancel.NONE
    priority: int = 0
    restarted_from: str = ""
    error: Failure | None = None
    request_id: str = ""
    request_hash: bytes = b""
    deadline: float = 0.0
    categories: tuple[str, ...] = ()
    cancel_requested_by: str = ""
    trace_id: str = ""
    span_id: str = ""
    external_job_id: str = ""
    parent_job_id: str = ""  # of a child that shows as a job
    command_id: str = ""  # that child
    create_time: float = 0.0
    start_time: float = 0.0
    end_time: float = 0.0
    update_time: float = 0.0
    revision: int = 0

    def image(self) -> Image:
        """What of it changes."""
        names = (self.description, self.subjects, self.categories)
        return (self.status, self.progress, self.cancelable, self.error, self.cancel_requested_by, self.priority, names)

    def restore(self, image: Image) -> None:
        """Makes it what it was."""
        self.status, self.progress, self.cancelable, self.error, self.cancel_requested_by, self.priority, names = image
        self.description, self.subjects, self.categories = names


@dataclass(slots=True)
class Step:
    """A row of the step table."""

    step_id: str
    parent_step_id: str
    command_id: str
    step_type: str
    number: int
    description: str = ""
    status: Status = Status.PENDING
    progress: int = 0
    external_id: str = ""
    subjects: tuple[Subject, ...] = ()
    error: Failure | None = None
    weight: float = 1.0
    span_id: str = ""
    job_id: str = ""  # of the child's job that it is a step of; empty: of the flow's

    def image(self) -> Image:
        """What of it changes."""
        return (self.status, self.progress, self.external_id, self.error)

    def restore(self, image: Image) -> None:
        """Makes it what it was."""
        self.status, self.progress, self.external_id, self.error = image


@dataclass(slots=True)
class Command:
    """A row of the command table. `plans` holds the sealed plan of each attempt, as JSON; `node` is "attempt:path".

    `span_id` is reserved for the command's own span, which is below the one that `traceparent` (W3C) names.
    """

    command_id: str
    parent_command_id: str
    command_type: str
    parameters: Mapping[str, Json]
    parameters_version: int
    step_id: str = ""
    status: CommandStatus = CommandStatus.NOT_STARTED
    plans: list[Json] = field(default_factory=list)
    end_attempts: int = 0
    error: Failure | None = None
    node: str = ""
    span_id: str = ""
    traceparent: str = ""

    @property
    def own_traceparent(self) -> str:
        """The trace context of its own span, for what it begins; empty if nobody traces it."""
        return f"{self.traceparent[:36]}{self.span_id}{self.traceparent[52:]}" if self.traceparent else ""

    def image(self) -> Image:
        """What of it changes. `plans` is replaced when it grows, never changed."""
        return (self.status, self.plans, self.end_attempts, self.error)

    def restore(self, image: Image) -> None:
        """Makes it what it was."""
        self.status, self.plans, self.end_attempts, self.error = image


@dataclass(slots=True)
class Leaf:
    """A row of the host_task table: a begun task, call or wait.

    `state` is "" while under way (ABORTING once somebody wants it stopped), then FINISHED or UNKNOWN; on waits
    `arguments` is the condition. `error` of a task that is not over says why its host's word is not waited for alone.
    `expected_generation` and `stall_seconds` are in no row: the plan has them.
    """

    task_id: str
    kind: LeafKind
    command_id: str
    step_id: str
    host_id: str = ""
    verb: str = ""
    arguments: Mapping[str, Json] = field(default_factory=dict)
    attempt: int = 1
    path: str = ""
    entity: EntityRef | None = None
    state: str = ""
    result: str = ""
    answer: Json = None
    error: Failure | None = None
    incarnation: str = ""
    deadline: float = 0.0
    expected_generation: int | None = None
    stall_seconds: float | None = None
    span_id: str = ""

    @property
    def over(self) -> bool:
        """True once its end is known (or known to be unknowable)."""
        return self.state not in ("", "ABORTING")

    def image(self) -> Image:
        """What of it changes."""
        return (self.state, self.result, self.answer, self.error, self.incarnation)

    def restore(self, image: Image) -> None:
        """Makes it what it was."""
        self.state, self.result, self.answer, self.error, self.incarnation = image


@dataclass(slots=True)
class Snapshot:
    """A row of the entity_snapshot table; `former` is None if the entity did not exist."""

    command_id: str
    number: int
    entity: EntityRef
    former: Former | None


@dataclass(frozen=True, slots=True)
class EntityChange:
    """A change of an entity's declared fields; what is None stays. `former` is what the flow read, None if nothing."""

    entity: EntityRef
    name: str | None = None
    status: str | None = None
    declared: Mapping[str, Json] | None = None
    remove: bool = False
    former: Former | None = None


@dataclass(frozen=True, slots=True)
class LockKey:
    """A lock to take. `by_name`: what it names is no entity (yet).

    `wait`: for how many seconds a flow that has not begun queues for it, first come, first served; 0: it is refused at
    once. Scope COMMAND: held until the flow is over. EXECUTION: only until the plan is committed.
    """

    entity: EntityRef
    exclusive: bool = True
    reason: str = ""
    by_name: bool = False
    wait: float = 0.0
    scope: LockScope = LockScope.COMMAND


@dataclass(frozen=True, slots=True)
class EventNote:
    """A line for the audit log."""

    event_type: str
    severity: Severity
    message: str
    entity: EntityRef | None = None
    user: str = ""


@dataclass(slots=True)
class Notes:
    """What a command's code noted in one run: it becomes true with the commit that it rides in.

    `read_versions` are guards: the commit is refused with CONFLICT unless each entity still has its version.
    """

    changes: list[EntityChange] = field(default_factory=list)
    read_versions: dict[EntityRef, int] = field(default_factory=dict)
    locks: list[LockKey] = field(default_factory=list)
    events: list[EventNote] = field(default_factory=list)


@dataclass(slots=True)
class FlowRows:
    """All rows of a flow, as they are loaded to take it up again."""

    job: Job
    commands: list[Command]
    steps: list[Step] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    seen: dict[EntityRef, Observation] = field(default_factory=dict)
    child_jobs: list[Job] = field(default_factory=list)
    epoch: int = 1
    sequence: int = 0
    dependencies: list[Dependency] = field(default_factory=list)
    waits_until: float = 0.0  # while it queues for locks
    locks_free: bool = False
