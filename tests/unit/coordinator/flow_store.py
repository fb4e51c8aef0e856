"""The far end of a flow in tests: rows as the jobstore would keep them, and its guards.

Commits are written down when they are handed out (as on the wire) and judged and applied when they are recorded. What
the schema would refuse (a second row of one id, a change without its row, an end that changes, a complete job that is
not FINISHED) is an assertion here: the tree must never try.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from coordinator.flow.fences import FENCE
from coordinator.flow.mutations import Mutations
from coordinator.plan import EntityRef, Former, Observation
from coordinator.rows import (
    Command,
    Dependency,
    EntityChange,
    EventNote,
    Failure,
    FlowRows,
    Job,
    Leaf,
    LeafKind,
    LockKey,
    Snapshot,
    Status,
    Step,
)

FAILED_PRECONDITION, ABORTED = 9, 10


@dataclass
class Entity:
    """An entity as stored."""

    name: str = ""
    status: str = "OK"
    declared: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass
class Written:
    """A commit as it went over the wire: what the tree does to its rows afterwards does not change it."""

    sequence: int
    epoch: int
    new_job: Job | None
    job: Job | None
    new_steps: list[Step]
    steps: list[Step]
    new_commands: list[Command]
    commands: list[Command]
    sealed: set[str]
    new_leaves: list[Leaf]
    leaves: list[Leaf]
    notes: dict[tuple[str, str], tuple[list[EntityChange], dict[EntityRef, int], list[LockKey]]]
    events: list[EventNote]
    snapshots: list[Snapshot]
    report_entities: list[EntityRef]
    handled_requests: list[str]
    ends_flow: bool
    dependencies: tuple[Dependency, ...]
    lock_waits: tuple[LockKey, ...]
    waits_until: float
    ends_wait: bool
    new_child_jobs: list[Job]
    child_jobs: list[Job]
    named: set[str]


def written(
    mutations: Mutations, job: Job, sequence: int, epoch: int, child_jobs: Mapping[str, Job] | None = None
) -> Written:
    """Writes a commit down."""
    events = [event for notes in mutations.notes.values() for event in notes.events]
    return Written(
        sequence=sequence,
        epoch=epoch,
        new_job=copy_of(job) if mutations.new_job else None,
        job=copy_of(job) if mutations.job and not mutations.new_job else None,
        new_steps=[copy_of(row) for row in mutations.new_steps.values()],
        steps=[copy_of(row) for row in mutations.steps.values()],
        new_commands=[copy_of(row) for row in mutations.new_commands.values()],
        commands=[copy_of(row) for row in mutations.commands.values()],
        sealed=set(mutations.sealed),
        new_leaves=[copy_of(row) for row in mutations.new_leaves.values()],
        leaves=[copy_of(row) for row in mutations.leaves.values()],
        notes={
            key: (list(notes.changes), dict(notes.read_versions), list(notes.locks))
            for key, notes in mutations.notes.items()
        },
        events=events + mutations.events,
        snapshots=list(mutations.snapshots),
        report_entities=list(mutations.report_entities),
        handled_requests=list(mutations.handled_requests),
        ends_flow=mutations.ends_flow,
        dependencies=mutations.dependencies,
        lock_waits=mutations.lock_waits,
        waits_until=mutations.waits_until,
        ends_wait=mutations.ends_wait,
        new_child_jobs=[copy_of(row) for row in mutations.new_child_jobs.values()],
        child_jobs=[copy_of((child_jobs or {})[key]) for key in mutations.child_jobs],
        named=set(mutations.named),
    )


class Store:
    """What is durable of one flow, and what other flows hold."""

    def __init__(self, entities: Mapping[EntityRef, Entity] | None = None) -> None:
        self.job: Job | None = None
        self.child_jobs: dict[str, Job] = {}
        self.commands: dict[str, Command] = {}
        self.steps: dict[str, Step] = {}
        self.leaves: dict[str, Leaf] = {}
        self.snapshots: list[Snapshot] = []
        self.entities = dict(entities or {})
        self.observed: dict[EntityRef, Observation] = {}
        self.locks: dict[EntityRef, bool] = {}  # held by this flow; True: exclusive
        self.foreign_locks: dict[EntityRef, str] = {}  # held by others: job id
        self.jobs: dict[str, Status | None] = {}  # others, by id; None: deleted
        self.dependencies: dict[str, Dependency] = {}
        self.places: dict[EntityRef, LockKey] = {}  # in the queues for locks
        self.waits_until = 0.0
        self.epoch = 1
        self.sequence = 0
        self.ended = False
        self.events: list[EventNote] = []
        self.handled: Counter[str] = Counter()
        self.occasions: Counter[tuple[str, str]] = Counter()  # whose notes were stored, and of what occasion
        self.commits: list[Written] = []
        self.refusals: list[Failure] = []  # answered to the next commits, in order
        self.time = 1000.0

    def copy(self) -> Store:
        """The same, for another future."""
        other = Store()
        other.job = copy_of(self.job) if self.job is not None else None
        other.child_jobs = {key: copy_of(row) for key, row in self.child_jobs.items()}
        other.commands = {key: copy_of(row) for key, row in self.commands.items()}
        other.steps = {key: copy_of(row) for key, row in self.steps.items()}
        other.leaves = {key: copy_of(row) for key, row in self.leaves.items()}
        other.snapshots = list(self.snapshots)
        other.entities = {key: copy_of(row) for key, row in self.entities.items()}
        other.observed = dict(self.observed)
        other.locks, other.foreign_locks = dict(self.locks), dict(self.foreign_locks)
        other.jobs, other.dependencies, other.places = dict(self.jobs), dict(self.dependencies), dict(self.places)
        other.waits_until = self.waits_until
        other.epoch, other.sequence, other.ended = self.epoch, self.sequence, self.ended
        other.events, other.handled = list(self.events), Counter(self.handled)
        other.occasions, other.commits = Counter(self.occasions), list(self.commits)
        other.time = self.time
        return other

    # --- reading -----------------------------------------------------------------------------------------------------

    def entity(self, ref: EntityRef) -> Entity:
        """As stored; version 0 if there is none."""
        return self.entities.get(ref, Entity(version=0))

    def former(self, ref: EntityRef) -> Former | None:
        """What a command that reads it now would remember of it."""
        entity = self.entity(ref)
        return Former(entity.name, entity.status, dict(entity.declared)) if entity.version else None

    def rows(self) -> FlowRows:
        """Everything, as it is loaded to take the flow up again."""
        assert self.job is not None
        waited = {
            leaf.entity
            for leaf in self.leaves.values()
            if leaf.kind is LeafKind.WAIT and not leaf.over and leaf.entity is not None
        }
        waits = [leaf for leaf in self.leaves.values() if leaf.kind is LeafKind.WAIT and not leaf.over]
        beside = {EntityRef(*leaf.arguments["beside"]) for leaf in waits if "beside" in leaf.arguments}
        other = self.copy()
        assert other.job is not None
        for leaf in other.leaves.values():
            if not leaf.over:
                leaf.expected_generation = leaf.stall_seconds = None  # the plan has it, no row does
        return FlowRows(
            job=other.job,
            commands=_parents_first(other.commands.values()),
            child_jobs=list(other.child_jobs.values()),
            steps=list(other.steps.values()),
            leaves=list(other.leaves.values()),
            snapshots=other.snapshots,
            seen={ref: self.observed[ref] for ref in waited | beside if ref in self.observed},
            epoch=self.epoch,
            sequence=self.sequence,
            dependencies=self.depended(),
            waits_until=self.waits_until,
            locks_free=bool(self.places) and not any(ref in self.foreign_locks for ref in self.places),
        )

    def depended(self) -> list[Dependency]:
        """What it depends on, as it is."""
        found = []
        for each in self.dependencies.values():
            status = self.jobs.get(each.job_id)
            found.append(Dependency(each.job_id, each.policy, status or Status.PENDING, gone=status is None))
        return found

    # --- writing -----------------------------------------------------------------------------------------------------

    def refusal(self, commit: Written) -> Failure | None:
        """Judges a commit by its guards, in the journal's order."""
        if self.refusals:
            return self.refusals.pop(0)
        if commit.epoch != self.epoch:
            return Failure(FAILED_PRECONDITION, "STALE_EPOCH", "another coordinator owns the flow")
        if commit.sequence != self.sequence + 1:
            return Failure(FAILED_PRECONDITION, "SEQUENCE_MISMATCH", f"{self.sequence} is stored")
        if self.ended:
            return Failure(FAILED_PRECONDITION, "JOB_ENDED", "the flow has ended")
        for _, _, locks in commit.notes.values():
            for key in locks:
                if key.entity in self.foreign_locks:
                    return locked(key.entity, self.foreign_locks[key.entity])
        for _, read_versions, _ in commit.notes.values():
            for ref, version in read_versions.items():
                if self.entity(ref).version != version:
                    return conflict(ref)
        return None

    def apply(self, commit: Written) -> dict[EntityRef, Observation]:
        """Makes a commit durable; returns the entities that it asked to be told of."""
        self.time += 1
        self.sequence = commit.sequence
        if self.job is not None and self.job.cancel_requested_by:
            begun_by = [leaf.command_id for leaf in commit.new_leaves if leaf.verb != FENCE]
            begun_by += [command.parent_command_id for command in commit.new_commands]
            assert all(self._cleans(each, commit) for each in begun_by), "something begins though the job is to stop"
        self._apply_job(commit)
        self._insert(commit)
        self._change(commit)
        for key, (changes, _, locks) in commit.notes.items():
            self.occasions[key] += 1
            for change in changes:
                self._declare(change)
            for lock in locks:
                self.locks[lock.entity] = self.locks.get(lock.entity, False) or lock.exclusive
        self.snapshots += commit.snapshots
        numbers = [snapshot.number for snapshot in self.snapshots]
        assert len(set(numbers)) == len(numbers), "two snapshots of one number"
        self._apply_waits(commit)
        self.events += commit.events
        self.handled.update(commit.handled_requests)
        self.commits.append(commit)
        if commit.ends_flow:
            self.ended = True
            self.locks.clear()
            self.snapshots.clear()
        return {ref: self.observed[ref] for ref in commit.report_entities if ref in self.observed}

    def _cleans(self, command_id: str, commit: Written) -> bool:
        """Whether a command, or one above it, cleans up after a failure."""
        rows = self.commands | {row.command_id: row for row in (*commit.commands, *commit.new_commands)}
        while command_id:
            row = rows[command_id]
            if row.plans and row.plans[-1].get("cleanup"):
                return True
            command_id = row.parent_command_id
        return False

    def _apply_waits(self, commit: Written) -> None:
        assert not commit.dependencies or commit.new_job is not None, "only a new flow begins to wait for jobs"
        self.dependencies |= {each.job_id: each for each in commit.dependencies}
        self.places |= {key.entity: key for key in commit.lock_waits}
        self.waits_until = commit.waits_until or self.waits_until
        if commit.ends_wait:
            self.dependencies, self.places, self.waits_until = {}, {}, 0.0
        if commit.new_leaves or commit.new_commands[1:] or commit.ends_flow:
            assert not self.dependencies, "it still waits"
            assert not self.places, "it still queues"
        if self.places or self.dependencies:
            assert not self.locks, "who waits holds nothing"

    def _apply_job(self, commit: Written) -> None:
        if commit.new_job is not None:
            assert self.job is None
            self.job = commit.new_job
        elif commit.job is not None:
            assert self.job is not None
            assert not self.job.status.ended, "the job had ended"
            _keep(self.job, commit.job, ("status", "cancelable", "priority"))
            if self.job.job_id in commit.named:
                _keep(self.job, commit.job, ("description", "subjects"))
            _keep_given(self.job, commit.job, ("error", "cancel_requested_by"))
            self.job.progress = max(self.job.progress, commit.job.progress)
        assert self.job is not None
        assert self.job.progress < 100 or self.job.status is Status.FINISHED, "complete, but not FINISHED"
        assert commit.ends_flow == self.job.status.ended
        self._apply_child_jobs(commit)

    def _apply_child_jobs(self, commit: Written) -> None:
        for job in commit.new_child_jobs:
            assert job.job_id not in self.child_jobs, f"a second job {job.job_id}"
            self.child_jobs[job.job_id] = job
        for job in commit.child_jobs:
            stored = self.child_jobs[job.job_id]
            assert not stored.status.ended, "the child's job had ended"
            stored.status, stored.progress = job.status, max(stored.progress, job.progress)
            stored.priority = job.priority
            _keep_given(stored, job, ("error",))
            if job.job_id in commit.named:
                _keep(stored, job, ("description", "subjects"))

    def _insert(self, commit: Written) -> None:
        for step in commit.new_steps:
            assert step.step_id not in self.steps, f"a second step {step.step_id}"
            assert not step.parent_step_id or step.parent_step_id in self.steps, "parents come first"
            assert not step.parent_step_id or self.steps[step.parent_step_id].job_id == step.job_id, "one tree a job"
            assert not step.job_id or step.job_id in self.child_jobs, "a step of no job"
            self.steps[step.step_id] = step
        for command in commit.new_commands:
            assert command.command_id not in self.commands, f"a second command {command.command_id}"
            assert not command.parent_command_id or command.parent_command_id in self.commands, "parents come first"
            self.commands[command.command_id] = command
        for leaf in commit.new_leaves:
            assert leaf.task_id not in self.leaves, f"a second leaf {leaf.task_id}"
            assert leaf.command_id in self.commands
            assert leaf.step_id in self.steps
            assert (leaf.host_id == "") == (leaf.kind is LeafKind.WAIT)
            self.leaves[leaf.task_id] = leaf

    def _change(self, commit: Written) -> None:
        for step in commit.steps:
            stored = self.steps[step.step_id]
            assert not stored.status.ended or step.status is stored.status, f"{stored.step_type} had ended"
            stored.status = step.status
            _keep_given(stored, step, ("external_id", "error"))
            stored.progress = max(stored.progress, step.progress)
        for command in commit.commands:
            known = self.commands[command.command_id]
            assert not known.status.ended, f"{known.command_type} had ended"
            known.status = command.status
            if command.command_id in commit.sealed:
                known.plans = command.plans
            _keep_given(known, command, ("end_attempts", "error"))
        for leaf in commit.leaves:
            begun = self.leaves[leaf.task_id]
            assert not begun.over, f"{begun.verb} was over"
            _keep(begun, leaf, ("state", "result"))
            _keep_given(begun, leaf, ("answer", "error", "incarnation"))
            begun.error = None if begun.result == "SUCCESS" else begun.error

    def _declare(self, change: EntityChange) -> None:
        if change.remove:
            self.entities.pop(change.entity, None)
            return
        entity = self.entities.setdefault(change.entity, Entity(version=0))
        entity.version += 1
        entity.name = entity.name if change.name is None else change.name
        entity.status = entity.status if change.status is None else change.status
        entity.declared = entity.declared if change.declared is None else dict(change.declared)

    # --- judging the whole -------------------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """What must never be, as CheckConsistency would find it."""
        assert self.job is not None
        found: list[str] = []
        if self.job.status.ended:
            found += [f"live command {c.command_type}" for c in self.commands.values() if not c.status.ended]
            found += [f"open step {s.step_type}" for s in self.steps.values() if not s.status.ended]
            found += [f"running leaf {leaf.verb}" for leaf in self.leaves.values() if not leaf.over]
            found += [f"lock {ref}" for ref in self.locks]
            found += [f"open job {job.command_type}" for job in self.child_jobs.values() if not job.status.ended]
            found += [f"snapshot of {row.entity}" for row in self.snapshots]
            if self.job.status is not Status.FINISHED and self.job.error is None:
                found.append("no error")
        if self.job.status is Status.FINISHED:
            tops = [s for s in self.steps.values() if not s.parent_step_id and not s.job_id]
            found += [f"{s.step_type} is {s.status}" for s in tops if s.status is not Status.FINISHED]
        for job in self.child_jobs.values():
            shown, steps = self.commands[job.command_id], [s for s in self.steps.values() if s.job_id == job.job_id]
            if job.status.ended != shown.status.ended:
                found.append(f"job of {job.command_type} is {job.status}, its command {shown.status}")
            if job.status.ended:
                found += [f"open step {s.step_type} of {job.command_type}" for s in steps if not s.status.ended]
            if job.progress == 100 and job.status is not Status.FINISHED:
                found.append(f"job of {job.command_type} is complete, but {job.status}")
        for key, times in self.occasions.items():
            if times > 1:
                found.append(f"notes stored {times} times: {key}")
        return found


Row = TypeVar("Row")


def copy_of(row: Row) -> Row:
    """A row that is equal and another one. Much faster than `dataclasses.replace`, and there are many."""
    return type(row)(*_values(type(row))(row))


@cache
def _values(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(each.name for each in fields(kind)))


def _parents_first(commands: Iterable[Command]) -> list[Command]:
    return list(commands)  # they were inserted so


def _keep(row: Any, change: Any, names: Iterable[str]) -> None:
    for name in names:
        setattr(row, name, getattr(change, name))


def _keep_given(row: Any, change: Any, names: Iterable[str]) -> None:
    """What is empty in a change stays: that is the wire's rule."""
    for name in names:
        if value := getattr(change, name):
            setattr(row, name, value)


def locked(ref: EntityRef, job_id: str) -> Failure:
    """What the store says of a lock that another flow holds."""
    metadata = {"entity_type": ref.entity_type, "entity_id": ref.entity_id, "job_id": job_id, "holder_reason": "work"}
    return Failure(FAILED_PRECONDITION, "LOCKED", f"{ref} is locked by job {job_id}", metadata)


def conflict(ref: EntityRef) -> Failure:
    """What the store says of an entity that changed after it was read."""
    metadata = {"entity_type": ref.entity_type, "entity_id": ref.entity_id}
    return Failure(ABORTED, "CONFLICT", f"{ref} has changed", metadata)
