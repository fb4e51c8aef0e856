"""A flow under test: a FlowTree between a store, hosts and commands that do as they are told.

    flow = a_flow(task("h1", "copy"))       a flow whose root command plans this
    flow.submit()                           runs until only hosts can go on
    flow.host_says("copy", "SUCCESS")       a host reports, and everything that follows happens
    assert flow.job.status is FINISHED      what is *stored* is what is looked at

Everything is deterministic and nothing runs by itself. `hold` keeps commits, plans or ends waiting until `record`,
`plan` or `end` lets one through, so that a test can do something in between.

After every commit two things are checked, whatever the test is about: the stored rows are the rows of the tree, and a
tree loaded from them asks the world for exactly what the one in memory does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid5

from tests.unit.coordinator.flow_store import Entity, Store, Written, written

from coordinator.flow import events as ev
from coordinator.flow.attempts import FailedAttempt
from coordinator.flow.failures import is_of_another_memory
from coordinator.flow.reuse import Reuse
from coordinator.flow.tree import END_ATTEMPTS, FlowTree
from coordinator.plan import Attempt, Child, Cleanup, EntityRef, Observation, Plan, nothing
from coordinator.rows import (
    Cancel,
    Command,
    Dependency,
    DependencyPolicy,
    EntityChange,
    Failure,
    Job,
    Leaf,
    LeafKind,
    LockKey,
    Notes,
    Status,
    Step,
)

NAMES: Final = UUID("00000000-0000-5000-8000-000000000000")
ROOT_ID: Final = str(uuid5(NAMES, "root"))
JOB_ID: Final = str(uuid5(NAMES, "job"))
START: Final = 1_000_000.0

VM: Final = EntityRef("VM", "vm-1")
DISK: Final = EntityRef("DISK", "disk-1")
DISK_2: Final = EntityRef("DISK", "disk-2")

REFUSED: Final = Failure(9, "NOT_NOW", "the time is not right")
RAISED: Final = Failure(13, "COMMAND_RAISED", "it raised ZeroDivisionError")
BROKEN: Final = Failure(13, "TASK_FAILED", "the disk is broken")
HOST_STOPPED: Final = Failure(
    10, "ABORTED", "stopped on request"
)  # what a host says of a task that it was told to stop
UNWILLING: Final = Failure(13, "INTERNAL", "the store is not itself")


@dataclass
class Script:
    """What a command's code does. Entity changes are statuses; what was read is guarded."""

    plan: Plan = field(default_factory=nothing)
    refused: Failure | None = None  # by validate
    raised: Failure | None = None  # by execute
    locks: Sequence[EntityRef] = ()
    lock_wait: float = 0.0
    reads: Sequence[EntityRef] = ()
    changes: Mapping[EntityRef, str] = field(default_factory=dict)
    ends: Mapping[EntityRef, str] | None = None  # changed by either end method; None: the default ones
    end_raises: int = 0  # how many runs of the end method do
    # What after_failure returns, or raises, attempt by attempt; or how it decides.
    after: Sequence[Attempt | Failure | None] | Callable[[FailedAttempt], Attempt | None] = ()


def a_child(command_type: str, **options: Any) -> Child:
    """Plans a child of a type."""
    return Child(command_type=command_type, **options)


class Scenario:
    """See the module."""

    def __init__(
        self,
        root: Script,
        children: Mapping[str, Script],
        *,
        cancel: Cancel = Cancel.REVERT,
        deadline: float = 0.0,
        entities: Iterable[EntityRef] = (),
        thorough: bool = True,
        depends_on: Mapping[str, Status] | None = None,
        policy: DependencyPolicy = DependencyPolicy.SKIP,
        reuse: Reuse | None = None,
        **how: Any,
    ) -> None:
        self.scripts = {"Root": root, **children}
        self.cancel_kind = cancel
        self.deadline = deadline
        self.thorough = thorough
        self.store = Store({ref: Entity(name=ref.entity_id) for ref in entities})
        self.now = START
        self.epoch = 1
        self.hold: set[str] = set()  # of "commit", "plan", "revise", "end"
        self.runs: Counter[tuple[str, str]] = Counter()  # of code: ("plan", "revise" or "end", command id)
        self.failed: list[FailedAttempt] = []  # what after_failure was told, in order
        self.parts: dict[str, dict[str, bool]] = {}  # inlined children that were to be ended, by the command above
        self.history: list[ev.Effect] = []
        self.answers = 0
        self.refused: Failure | None = None
        self.cancel_answers: dict[int, Failure | None] = {}
        self.answers_to_wishes: dict[int, Failure | None] = {}  # cancels and others
        self._other_wishes: set[int] = set()
        self.stopped: list[str] = []
        self.prioritised: dict[str, int] = {}  # tasks whose hosts were told of another priority
        self.cleared: list[str] = []
        self.retries: list[Failure] = []
        self.abandoned = False
        self.done = 0
        self.crashes = 0
        self.compared = 0  # how often a loaded tree was compared with this one
        self._reset()
        self.store.jobs = dict(depends_on or {})
        self.reuse = reuse
        dependencies = [Dependency(job_id, policy) for job_id in depends_on or ()]
        self.tree = FlowTree(
            self._new_job(), self._new_root(), cancel=cancel, dependencies=dependencies, reuse=reuse, **how
        )

    def _reset(self) -> None:
        """What only a living process knows."""
        self.plans: dict[str, None] = {}  # commands whose validate and execute are to run, in order
        self.revisions: dict[str, FailedAttempt] = {}  # commands whose after_failure is to run, and what it is told
        self.ends: dict[str, bool] = {}  # commands whose end method is to run, and which of the two
        self.commit: Written | None = None  # handed out, not yet recorded
        self.begun: dict[str, Leaf] = {}  # tasks and calls that a host was told of, not yet over
        self.timers: dict[str, float] = {}
        self._asked: set[str] = set()  # every task and call that it had a host begin
        self._quiet_since_commit = False  # nothing was told since the commit in flight was handed out

    def _new_job(self) -> Job:
        return Job(JOB_ID, "Root", "Doing the work", "somebody", "corr-1", deadline=self.deadline)

    def _new_root(self) -> Command:
        return Command(ROOT_ID, "", "Root", {}, 1)

    # --- what happens to it ------------------------------------------------------------------------------------------

    def submit(self) -> Scenario:
        """Submits it and goes on until only the world outside can."""
        self.take(ev.Submitted())
        return self

    def host_says(self, verb: str, result: str = "SUCCESS", **fields: Any) -> None:
        """The host of the one begun leaf of this verb reports it (over)."""
        self.report(self.leaf(verb).task_id, result, **fields)

    def report(self, task_id: str, result: str = "SUCCESS", **fields: Any) -> None:
        """A host reports a task or call."""
        if result or fields.get("lost"):
            self.begun.pop(task_id, None)
        self.take(ev.LeafReported(task_id, result, **fields))

    def loses(self, verb: str) -> None:
        """Nobody can tell any more what became of the one begun leaf of this verb."""
        self.report(self.leaf(verb).task_id, "", lost=True)

    def sees(self, ref: EntityRef, state: str, number: int, incarnation: str = "i1", host_id: str = "h1") -> None:
        """A host's observation is stored, and the flow is told of it if it waits."""
        self.store.observed[ref] = Observation(state, host_id, "", incarnation, number)
        if ref in set(self.tree.waits_for()):
            self.take(ev.EntitySeen(ref, self.store.observed[ref]))

    def cancel(self, token: int = 1, user: str = "ada", request_id: str = "") -> None:
        """Somebody asks it to stop."""
        self.take(ev.CancelAsked(token, user, "", request_id))

    def wish(self, wish: ev.PriorityAsked | ev.StopAsked) -> Failure | None:
        """Somebody wishes something; returns why it is not granted."""
        self.take_wish(wish)
        return self.answers_to_wishes[wish.token]

    def take_wish(self, wish: ev.PriorityAsked | ev.StopAsked) -> None:
        """The same, where the answer may be held."""
        self._other_wishes.add(wish.token)
        self.take(wish)

    def job_ends(self, job_id: str, status: Status | None = Status.FINISHED) -> None:
        """Another job ends (None: is deleted), and the flow is told if it waits."""
        self.store.jobs[job_id] = status
        if job_id in self.store.dependencies:
            self.take(ev.Woken(self.store.depended()))

    def lock_is_freed(self, ref: EntityRef) -> None:
        """Another flow frees a lock, and this one is told if it queues."""
        self.store.foreign_locks.pop(ref, None)
        if ref in self.store.places:
            self.take(ev.Woken(locks_free=True))

    def advance(self, seconds: float) -> None:
        """Time goes by; timers fire in their order."""
        until = self.now + seconds
        while due := [(at, key) for key, at in self.timers.items() if at <= until]:
            self.fire(min(due)[1])
        self.now = until

    def fire(self, key: str) -> None:
        """One timer fires."""
        self.now = max(self.now, self.timers.pop(key))
        self.take(ev.TimerFired(key))

    def crash(self, *, commit_is_lost: bool = True) -> None:
        """The process dies, with or without its commit in flight; another one takes the flow up from its rows."""
        if self.commit is not None and not commit_is_lost and self.store.refusal(self.commit) is None:
            self.store.apply(self.commit)
        self.crashes += 1
        self._reset()
        self.store.epoch += 1
        self.epoch = self.store.epoch
        self.tree = FlowTree.load(self.store.rows(), cancel=self.cancel_kind, reuse=self.reuse)
        self.take(ev.Recovered())

    # --- the world's side --------------------------------------------------------------------------------------------

    def take(self, event: ev.Event) -> None:
        """Tells the tree something, and does what it asks for until nothing is left that is not held."""
        self._tell(event)
        self.settle()

    def settle(self) -> None:
        """Runs code and records commits as long as there are any that are not held."""
        while True:
            if self.plans and "plan" not in self.hold:
                self.plan(next(iter(self.plans)))
            elif self.revisions and "revise" not in self.hold:
                self.revise(next(iter(self.revisions)))
            elif self.ends and "end" not in self.hold:
                self.end(next(iter(self.ends)))
            elif self.commit is not None and "commit" not in self.hold:
                self.record()
            else:
                return

    def _tell(self, event: ev.Event) -> None:
        if not isinstance(event, ev.Recorded | ev.RecordRefused):
            self._quiet_since_commit = False
        for effect in self.tree.handle(event, self.now):
            self.history.append(effect)
            self._perform(effect)

    def plan(self, command_id: str) -> None:
        """Runs validate and execute of a command."""
        del self.plans[command_id]
        self.runs["plan", command_id] += 1
        script = self.scripts[self.tree.command(command_id).command_type]
        if script.refused is not None or script.raised is not None:
            failure = script.refused or script.raised
            self._tell(ev.Planned(command_id, failure=failure, executing=script.refused is None))
            return
        changes = [
            EntityChange(ref, status=status, former=self.store.former(ref)) for ref, status in script.changes.items()
        ]
        read = {ref: self.store.entity(ref).version for ref in (*script.reads, *script.changes)}
        locks = [LockKey(ref, wait=script.lock_wait) for ref in script.locks]
        self._tell(ev.Planned(command_id, script.plan, Notes(changes=changes, read_versions=read, locks=locks)))

    def revise(self, command_id: str) -> None:
        """Runs after_failure of a command."""
        failed = self.revisions.pop(command_id)
        self.failed.append(failed)
        self.runs["revise", command_id] += 1
        after = self.scripts[self.tree.command(command_id).command_type].after
        said: Attempt | Failure | None = None
        if callable(after):
            said = after(failed)
        elif failed.number <= len(after):
            said = after[failed.number - 1]
        if isinstance(said, Failure):
            self._tell(ev.Revised(command_id, failure=said))
        elif said is None:
            self._tell(ev.Revised(command_id))
        else:
            self._tell(ev.Revised(command_id, said.plan, isinstance(said, Cleanup)))

    def end(self, command_id: str) -> None:
        """Runs the end method of a command."""
        succeeded = self.ends.pop(command_id)
        self.runs["end", command_id] += 1
        script = self.scripts[self.tree.command(command_id).command_type]
        if self.runs["end", command_id] <= script.end_raises:
            self._tell(ev.Ended(command_id, failure=RAISED))
        elif script.ends is None:
            self._tell(ev.Ended(command_id, compensate=not succeeded))
        else:
            changes = [EntityChange(ref, status=status) for ref, status in script.ends.items()]
            read = {ref: self.store.entity(ref).version for ref in script.ends}
            self._tell(ev.Ended(command_id, Notes(changes=changes, read_versions=read)))

    def record(self) -> None:
        """The store judges the commit in flight."""
        assert self.commit is not None
        commit, self.commit = self.commit, None
        failure = self.store.refusal(commit)
        if failure is not None:
            self._tell(ev.RecordRefused(failure))
            return
        quiet = self._quiet_since_commit
        seen = self.store.apply(commit)
        assert self.store.violations() == []
        told = self.store.depended() if commit.dependencies else []
        self._tell(ev.Recorded(len(self.store.commits), self.store.time, seen, told))
        if commit.lock_waits and self.store.rows().locks_free:  # freed while it was on its way: the store says so
            self._tell(ev.Woken(locks_free=True))
        if quiet and self.thorough and not self.store.ended:
            self._compare_with_a_loaded_tree()

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.RunPlan(command_id):
                assert command_id not in self.plans, "it is being planned"
                self.plans[command_id] = None
            case ev.RunAfterFailure(command_id, failed):
                assert command_id not in self.revisions, "it is being asked"
                self.revisions[command_id] = failed
            case ev.RunEnd(command_id, succeeded, parts):
                assert command_id not in self.ends, "it is being ended"
                self.ends[command_id] = succeeded
                self.parts[command_id] = {part.command_type: went for part, went in parts}
            case ev.Commit():
                self._take_commit(effect)
            case ev.Start(leaf) | ev.CallHost(leaf):
                self._begin(leaf, LeafKind.TASK if isinstance(effect, ev.Start) else LeafKind.CALL)
            case ev.Stop(leaf):
                assert leaf.task_id in self.store.leaves, "stopped before it was stored"
                assert leaf.kind is LeafKind.TASK
                self.stopped.append(leaf.task_id)
            case ev.Prioritise(leaves, priority):
                words = f"priority {priority} instead of "  # another one may have overtaken it in the same commit
                assert any(words in event.message for event in self.store.events), "told before it is durable"
                self.prioritised |= {leaf.task_id: priority for leaf in leaves}
            case ev.SetTimer(key, at):
                self.timers[key] = at
            case ev.Answer():
                assert self.store.job is not None, "answered before it was durable"
                self.answers += 1
            case ev.AnswerCancel(token, failure):
                self._answer_cancel(token, failure)
            case ev.Clear(leaves):
                assert self.store.ended
                self.cleared += [leaf.task_id for leaf in leaves]
            case ev.Refuse(failure):
                assert self.store.job is None
                self.refused = failure
            case ev.Retry(failure):
                self.retries.append(failure)
            case ev.Abandon():
                self.abandoned = True
            case ev.Done():
                assert self.store.ended or self.refused is not None
                self.done += 1

    def _take_commit(self, effect: ev.Commit) -> None:
        assert self.commit is None, "one commit is in flight at a time"
        assert effect.sequence == self.tree.sequence + 1
        self.commit = written(effect.mutations, self.tree.job, effect.sequence, self.tree.epoch, self.tree.child_jobs)
        self._quiet_since_commit = True
        if self.thorough:
            self._compare_rows(self.commit)

    def _begin(self, leaf: Leaf, kind: LeafKind) -> None:
        stored = self.store.leaves.get(leaf.task_id)
        assert stored is not None, f"{leaf.verb} begins before it is stored"
        assert not self.store.ended, f"{leaf.verb} begins after the flow has ended"
        assert not stored.over, f"{leaf.verb} begins though it is over"
        assert leaf.kind is kind
        assert leaf.task_id not in self._asked, f"{leaf.verb} was begun by this process before"
        self._asked.add(leaf.task_id)
        self.begun[leaf.task_id] = leaf

    def _answer_cancel(self, token: int, failure: Failure | None) -> None:
        assert token == 0 or token not in self.answers_to_wishes, "answered twice"
        self.answers_to_wishes[token] = failure
        if token in self._other_wishes:
            return
        if failure is None:
            assert self.store.job is not None
            assert self.store.job.cancel_requested_by, "the cancel is answered before the wish is durable"
        self.cancel_answers[token] = failure

    # --- the two things that hold after every commit -----------------------------------------------------------------

    def _compare_rows(self, commit: Written) -> None:
        """The rows with this commit applied are the rows of the tree: nothing was changed without being noted."""
        after = self.store.copy()
        after.apply(commit)
        tree = self.tree
        assert after.steps == tree.steps
        assert after.leaves == tree.leaves
        assert after.commands == {row.command_id: row for row in after.commands.values() for row in [_row(tree, row)]}
        assert after.job is not None
        assert {key: _told(job) for key, job in after.child_jobs.items()} == {
            key: _told(job) for key, job in tree.child_jobs.items()
        }
        for name in ("status", "progress", "cancelable", "error", "cancel_requested_by", "description", "priority"):
            assert getattr(after.job, name) == getattr(tree.job, name), name

    def _compare_with_a_loaded_tree(self) -> None:
        if self.commit is not None or self.plans or self.revisions or self.ends:
            return  # it went on at once
        if any(row.end_attempts > END_ATTEMPTS for row in self.store.commands.values()):
            return  # who finds the last run of an end method begun gives it up; who began it waits for it
        self.compared += 1
        asked, loaded = self.asks(), self.twin().asks()
        assert loaded == asked, f"a loaded tree asks for {loaded - asked}, the one in memory for {asked - loaded}"

    def twin(self) -> Scenario:
        """A flow taken up from what is stored now, in a world of its own."""
        twin = Scenario.__new__(Scenario)
        twin.__dict__.update(self.__dict__)
        twin.store = self.store.copy()
        twin.history, twin.thorough, twin.hold = [], False, {"plan", "revise", "end"}
        twin.stopped, twin.cleared, twin.retries, twin.prioritised = [], [], [], {}
        twin.cancel_answers, twin.answers_to_wishes, twin.runs = {}, {}, Counter(self.runs)
        twin.parts, twin.failed = {}, []
        twin._reset()
        twin.tree = FlowTree.load(twin.store.rows(), cancel=self.cancel_kind, reuse=self.reuse)
        twin.take(ev.Recovered())
        return twin

    def asks(self) -> set[tuple[str, str]]:
        """All that the tree has asked for and not got yet."""
        begun = {key: leaf for key, leaf in self.begun.items() if not self._is_over(key)}  # over by a fence, it may be
        asked = {("task" if leaf.kind is LeafKind.TASK else "call", key) for key, leaf in begun.items()}
        asked |= {("plan", command_id) for command_id in self.plans}
        asked |= {("revise", command_id) for command_id in self.revisions}
        # An end that was tried before is counted first: it may wait for its timer in one tree and run in the other.
        asked |= {("end", command_id) for command_id in self.ends}
        for key, at in self.timers.items():
            kind, _, name = key.partition(" ")
            if kind == "end" and not self.store.commands[name].status.ended:
                asked.add(("end", name))
            elif kind == "leaf" and name in begun and at <= self.now:
                asked.add(("stop", name))  # it will be, at once
            elif (kind == "leaf" and not self._is_over(name, or_replaced=True)) or (
                kind == "deadline" and at > self.now
            ):
                asked.add(("timer", key))
        asked |= {("wait", str(ref)) for ref in self.tree.waits_for()}
        asked |= {("stop", task_id) for task_id in self.stopped if not self._is_over(task_id, or_replaced=True)}
        asked |= {("clear", task_id) for task_id in self.cleared}
        return asked

    def _is_over(self, task_id: str, *, or_replaced: bool = False) -> bool:
        """`or_replaced`: or its host has another memory, so that there is nothing to be asked of it."""
        leaf = self.tree.leaves.get(task_id)
        return leaf is not None and (leaf.over or (or_replaced and is_of_another_memory(leaf.error)))

    # --- what is stored ----------------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The job as stored."""
        assert self.store.job is not None
        return self.store.job

    @property
    def commits(self) -> int:
        """How many commits were applied."""
        return len(self.store.commits)

    def leaf(self, verb: str) -> Leaf:
        """The one begun leaf of a verb that is not over."""
        [found] = [leaf for leaf in self.begun.values() if leaf.verb == verb]
        return found

    def verbs(self) -> list[str]:
        """The verbs of what hosts were told to do and have not reported over, sorted."""
        return sorted(leaf.verb for leaf in self.begun.values())

    def steps(self, step_type: str) -> list[Step]:
        """The stored steps of a type, by number."""
        return sorted((s for s in self.store.steps.values() if s.step_type == step_type), key=lambda s: s.number)

    def step(self, step_type: str) -> Step:
        """The one stored step of a type."""
        [found] = self.steps(step_type)
        return found

    def statuses(self) -> dict[str, str]:
        """Status by step type; of several steps of a type, joined in order."""
        types = dict.fromkeys(step.step_type for step in self.tree.planned_steps())
        return {kind: " ".join(step.status.value for step in self.steps(kind)) for kind in types}

    def child_job(self, command_type: str) -> Job:
        """The one stored job of a child of a type."""
        [found] = [job for job in self.store.child_jobs.values() if job.command_type == command_type]
        return found

    def tree_of(self, job: Job) -> dict[str, str]:
        """Status by step type of the steps of a child's job, in order."""
        steps = [step for step in self.store.steps.values() if step.job_id == job.job_id]
        return {step.step_type: step.status.value for step in steps}

    def child(self, command_type: str) -> Command:
        """The one stored command of a type."""
        [found] = [row for row in self.store.commands.values() if row.command_type == command_type]
        return found

    def event_types(self) -> list[str]:
        """Types of the stored events, in order."""
        return [event.event_type for event in self.store.events]

    def ended(self) -> Status:
        """The status in which the job has ended, durably and once."""
        assert self.store.ended
        assert self.done == 1
        assert self.tree.ended
        return self.job.status


def _told(job: Job) -> tuple[object, ...]:
    return (job.status, job.progress, job.error, job.description, job.subjects, job.parent_job_id)


def _row(tree: FlowTree, stored: Command) -> Command:
    return tree.command(stored.command_id)


def a_flow(plan: Plan | Script, children: Mapping[str, Plan | Script] | None = None, **options: Any) -> Scenario:
    """A flow whose root command plans this, with child commands by type."""
    scripts = {name: each if isinstance(each, Script) else Script(each) for name, each in (children or {}).items()}
    return Scenario(plan if isinstance(plan, Script) else Script(plan), scripts, **options)


def a_running_flow(
    plan: Plan | Script, children: Mapping[str, Plan | Script] | None = None, **options: Any
) -> Scenario:
    """The same, submitted."""
    return a_flow(plan, children, **options).submit()
