"""FlowTree: the whole life of a flow, as a pure state machine.

`tree.handle(event, now) -> list[Effect]`. It does no I/O, reads no clock and knows no loop; what it is told and what it
wants is in `events.py`. Its data are rows (`rows.py`); its plans come from commands (`plan.py`).

    job        PENDING ──▶ STARTED ──▶ FINISHED | FAILED | ABORTED
    command    NOT_STARTED ──seal──▶ ACTIVE ──plan over──▶ SUCCEEDED | FAILED
                                                              └──end method──▶ ENDED_SUCCESSFULLY | ENDED_WITH_FAILURE
    node       WAITING ──▶ BEGUN ──▶ OVER             (`nodes.py`)
    commit     pending ──Commit──▶ in flight ──Recorded──▶ acts are let out

Rules that everything else follows from:

1. *Record, then act.* A change gathers in `_pending`; an outward act (a start, an answer) gathers in `_acts` and is let
   out when the commit that holds its intent is Recorded. One commit is in flight at a time.
2. *A commit holds whole consequences.* What an event leads to (a result, the next stage's intents, the end methods'
   notes) goes into one commit; none is handed out while a command is being planned or ended. So in the store a leaf
   that is over has its successors' intents beside it.
3. *Loading is replaying.* Because of 2, a tree loaded from rows runs the same code: `_begin` finds the row of what has
   begun and goes on from there. After every commit a loaded tree behaves as the one in memory.
4. *A command never ends early.* A node is over when its children are, a command when its plan's root is; nothing else
   ends one.
5. *End statuses never change.*

What can go wrong, and what is done:

    the store refuses with LOCKED      the command that wanted the lock is refused; nothing of its plan was begun
    … with CONFLICT                    the notes of this commit are made again from fresh reads, at most 3 times
    … with STALE_EPOCH, LEASE_LOST     another coordinator owns the flow: Abandon
    … otherwise                        the first commit: the submitter is told. Later: again, with growing delay
    validate refuses                   root: stored as a FAILED job; child: its node fails
    execute raises                     as above, and the step EXECUTION says so
    the end method raises              the attempt is counted durably, then again with growing delay, then FAILED
    a task is lost                     its step is UNKNOWN, what is above fails
    crash, at any point                the rows say what was intended; replay sends it again under the same ids
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coordinator import events as ev
from coordinator.nodes import LiveCommand, Node, NodeState, Outcome, build, derived_id
from coordinator.plan import (
    Call,
    Change,
    Child,
    Concurrently,
    EntityRef,
    Nothing,
    Observation,
    Plan,
    Serially,
    Task,
    WaitFor,
    plan_from_json,
    plan_to_json,
)
from coordinator.rows import (
    Cancel,
    Command,
    CommandStatus,
    EntityChange,
    EventNote,
    Failure,
    FlowRows,
    Former,
    Job,
    Leaf,
    LeafKind,
    Mutations,
    Notes,
    Severity,
    Snapshot,
    Status,
    Step,
    Subject,
)

VALIDATION, EXECUTION, FINALIZATION = "VALIDATION", "EXECUTION", "FINALIZATION"

SLOW_PLAN_SECONDS = 0.05  # planning that takes longer: the job is committed and answered alone
PROGRESS_SECONDS = 1.0  # progress alone is stored at most this often
CONFLICTS = 3  # planning or ending anew after a changed entity: at most this often
END_ATTEMPTS = 5  # runs of an end method that raises
RETRY_SECONDS = 30.0  # longest pause between commits that the store refuses for no reason of ours
MAX_DEPTH = 16  # commands below commands
MAX_COMMANDS = 10_000  # commands of a flow

# google.rpc.Code numbers: the pure core does not import gRPC.
CANCELLED, DEADLINE_EXCEEDED, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, DATA_LOSS = (
    1,
    4,
    9,
    8,
    10,
    13,
    15,
)


class FlowTree:
    """One flow. For readers: `job`, `root` (the root command's row), `steps`, `epoch`, `sequence`, `ended`."""

    def __init__(
        self, job: Job, root: Command, *, cancel: Cancel, subject_names: Mapping[EntityRef, str] | None = None
    ):
        self.job = job
        self.root = root
        self.cancel_kind = cancel
        self.steps: dict[str, Step] = {}
        self.leaves: dict[str, Leaf] = {}
        self.snapshots: list[Snapshot] = []
        self.epoch = 1
        self.sequence = 0  # of the last commit that is durable
        self.ended = False  # the commit that ends it is durable

        self._subject_names = dict(subject_names or {})
        self._rows: dict[str, Command] = {root.command_id: root}
        self._commands: dict[str, LiveCommand] = {root.command_id: LiveCommand(root, None, 0)}
        self._by_leaf: dict[str, Node] = {}
        self._waits: dict[EntityRef, dict[str, Node]] = {}
        self._seen: dict[EntityRef, Observation] = {}  # observations that came with the rows
        self._own_step_ids: dict[str, str] = {}  # of VALIDATION, EXECUTION, FINALIZATION
        self._numbers: dict[str, int] = {}  # parent step id -> next number
        self._thinking: set[str] = set()  # commands whose code is running
        self._cancelling: Failure | None = None  # why, once the wish was taken
        self._no_return = False  # something that cannot be undone has begun
        self._replaying = False

        self._agenda: deque[Callable[[], None]] = deque()
        self._effects: list[ev.Effect] = []
        self._pending = Mutations()
        self._acts: list[ev.Effect] = []
        self._in_flight: Mutations | None = None
        self._in_flight_acts: list[ev.Effect] = []
        self._flush = False  # what is pending must be stored now
        self._alone = False  # planning takes long: the job is stored without its plan
        self._last_commit = 0.0  # when the last commit was handed out
        self._progress_timer = False
        self._refusals = 0  # in a row, for no reason of ours
        self._paused = False  # until the timer "retry"
        self._now = 0.0

    @classmethod
    def load(cls, rows: FlowRows, *, cancel: Cancel) -> FlowTree:
        """Makes the tree that wrote these rows; tell it `Recovered` to make it go on."""
        root = next(command for command in rows.commands if not command.parent_command_id)
        names = {EntityRef(s.entity_type, s.entity_id): s.name for s in rows.job.subjects}
        tree = cls(rows.job, root, cancel=cancel, subject_names=names)
        tree._rows = {command.command_id: command for command in rows.commands}
        tree.steps = {step.step_id: step for step in rows.steps}
        tree.leaves = {leaf.task_id: leaf for leaf in rows.leaves}
        tree.snapshots = list(rows.snapshots)
        tree.epoch = rows.epoch
        tree.sequence = rows.sequence
        tree._seen = dict(rows.seen)
        tree._count_steps()
        return tree

    # --- events ------------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Takes an event at `now` (Unix seconds) and says what is to be done, in order."""
        self._now = now
        self._effects = []
        match event:
            case ev.LeafReported():
                self._leaf_reported(event)
            case ev.Recorded():
                self._recorded(event)
            case ev.Planned():
                self._planned(event)
            case ev.Ended():
                self._end_method_ran(event)
            case ev.Submitted():
                self._submitted()
            case ev.EntitySeen():
                self._entity_seen(event.entity, event.observation)
            case ev.TimerFired():
                self._timer_fired(event.key)
            case ev.CancelAsked():
                self._cancel_asked(event)
            case ev.RecordRefused():
                self._record_refused(event.failure)
            case ev.Recovered():
                self._recovered()
        self._run_agenda()
        self._hand_out_commit()
        return self._effects

    def name(self, description: str, subject_names: Mapping[EntityRef, str]) -> None:
        """Says what the job is called and is about, before its first commit; this outlives the entities."""
        self.job.description = description
        self._subject_names.update(subject_names)
        self.job.subjects = tuple(Subject(e.entity_type, e.entity_id, name) for e, name in subject_names.items())

    def waits_for(self) -> Iterable[EntityRef]:
        """The entities that open waits look at."""
        return self._waits.keys()

    def command(self, command_id: str) -> Command:
        """The row of one of its commands."""
        return self._rows[command_id]

    def planned_steps(self) -> list[Step]:
        """All steps, parents before children, by number."""
        below: dict[str, list[Step]] = {}
        for step in self.steps.values():
            below.setdefault(step.parent_step_id, []).append(step)
        ordered: list[Step] = []
        stack = sorted(below.get("", []), key=lambda step: -step.number)
        while stack:
            step = stack.pop()
            ordered.append(step)
            stack.extend(sorted(below.get(step.step_id, []), key=lambda child: -child.number))
        return ordered

    def _run_agenda(self) -> None:
        while self._agenda:
            self._agenda.popleft()()

    # --- the beginning -----------------------------------------------------------------------------------------------

    def _submitted(self) -> None:
        self.job.status = Status.STARTED
        self.job.cancelable = self.cancel_kind
        self._pending.new_job = True
        self._pending.new_commands[self.root.command_id] = self.root
        self._add_step("", VALIDATION, status=Status.STARTED)
        self._add_step("", EXECUTION)
        self._effects.append(ev.SetTimer("slow plan", self._now + SLOW_PLAN_SECONDS))
        if self.job.deadline:
            self._effects.append(ev.SetTimer("deadline", self.job.deadline))
        self._think(ev.RunPlan(self.root.command_id))

    def _recovered(self) -> None:
        if self.job.cancel_requested_by:
            self._cancelling = _aborted(self.job.cancel_requested_by)
        if self.job.deadline:
            self._effects.append(ev.SetTimer("deadline", self.job.deadline))
        self._replaying = True
        self._resume(self._commands[self.root.command_id])
        self._run_agenda()
        self._replaying = False
        if self._cancelling is not None:
            self._stop_what_runs()
        for entity, observation in self._seen.items():
            self._entity_seen(entity, observation)
        self._seen = {}

    def _resume(self, command: LiveCommand) -> None:
        if not command.row.plans:
            self._think(ev.RunPlan(command.row.command_id))
            return
        plan = plan_from_json(command.row.plans[-1])
        self._grow(command, plan, len(command.row.plans))

    def _think(self, effect: ev.RunPlan | ev.RunEnd) -> None:
        self._thinking.add(effect.command_id)
        self._effects.append(effect)

    # --- planning ----------------------------------------------------------------------------------------------------

    def _planned(self, event: ev.Planned) -> None:
        if event.command_id not in self._thinking:
            return  # it was taken back meanwhile
        self._thinking.discard(event.command_id)
        command = self._commands[event.command_id]
        if event.plan is None:
            assert event.failure is not None
            self._take_notes(command, "refused", Notes(events=event.notes.events))
            self._refuse(command, event.failure, executing=event.executing)
        elif self._cancelling is not None:
            self._refuse(command, _stopped(self._cancelling), Outcome.ABORTED)
        else:
            self._take_notes(command, "plan", event.notes)
            self._seal(command, event.plan)

    def _seal(self, command: LiveCommand, plan: Plan) -> None:
        row = command.row
        row.status = CommandStatus.ACTIVE
        row.plans = [*row.plans, plan_to_json(plan)]
        self._pending.command(row)
        if command.node is None:
            self._set_step(self._own_step(VALIDATION), Status.FINISHED)
            self._set_step(self._own_step(EXECUTION), Status.STARTED)
            if self.cancel_kind is Cancel.BEFORE_START:
                self._set_cancelable(Cancel.NONE)
        self._grow(command, plan, len(row.plans))
        if command.node is None and not isinstance(plan, Nothing) and not self._has_step(FINALIZATION):
            self._add_step("", FINALIZATION)
        self._flush = True

    def _grow(self, command: LiveCommand, plan: Plan, attempt: int) -> None:
        """Makes the nodes of a sealed plan, with the steps that they name, and begins it."""
        command.root = build(command, plan, attempt)
        for node in command.root.walk():
            command.names_no_return |= node.plan.no_return
            if node.plan.step:
                self._show(node)
        root = command.root
        self._agenda.append(lambda: self._begin(root))

    def _show(self, node: Node) -> None:
        step_id = node.id("step")
        known = self.steps.get(step_id)
        node.step = known or self._add_step(
            self._parent_step_of(node),
            node.plan.step,
            step_id=step_id,
            command_id=node.command.row.command_id,
            description=node.plan.description,
            subjects=node.plan.subjects or _entities_of(node.plan),
            weight=node.plan.weight,
        )

    def _parent_step_of(self, node: Node) -> str:
        above = node.above
        step = above.nearest_step() if above is not None else None
        return step.step_id if step is not None else self._own_step(EXECUTION).step_id

    def _refuse(
        self, command: LiveCommand, failure: Failure, outcome: Outcome = Outcome.FAILED, *, executing: bool = False
    ) -> None:
        """Ends a command of which nothing has begun: no end method, nothing to undo."""
        row = command.row
        row.status = CommandStatus.ENDED_WITH_FAILURE
        row.error = failure
        self._pending.command(row)
        if command.node is not None:
            node = command.node
            self._agenda.append(lambda: self._over(node, outcome, failure))
            return
        validation, execution = self._own_step(VALIDATION), self._own_step(EXECUTION)
        if executing:
            self._set_step(validation, Status.FINISHED)
            self._set_step(execution, outcome.status, failure)
        else:
            self._set_step(validation, outcome.status, failure)
            self._set_step(execution, Status.SKIPPED, _skipped(validation))
        self._end_root(outcome, failure)

    def _take_notes(self, command: LiveCommand, occasion: str, notes: Notes) -> None:
        if not (notes.changes or notes.read_versions or notes.locks or notes.events):
            return
        key = (command.row.command_id, occasion)
        self._pending.notes[key] = notes
        if occasion == "end":
            return  # what an end method changes is never undone
        taken = [snapshot for change in notes.changes if (snapshot := self._snapshot(command, change)) is not None]
        self.snapshots += taken
        self._pending.snapshots[key] = taken

    def _snapshot(self, command: LiveCommand, change: EntityChange) -> Snapshot | None:
        if any(s.entity == change.entity and s.command_id == command.row.command_id for s in self.snapshots):
            return None  # the oldest is what it was before
        number = self.snapshots[-1].number + 1 if self.snapshots else 1
        return Snapshot(command.row.command_id, number, change.entity, change.former)

    # --- nodes: begin, over, skip ------------------------------------------------------------------------------------

    def _begin(self, node: Node) -> None:
        if self._cancelling is not None and not self._replaying:
            self._over_skipped(node)
            return
        node.state = NodeState.BEGUN
        match node.plan:
            case Task() | Call() | WaitFor():
                self._begin_leaf(node)
            case Child():
                self._begin_child(node)
            case Nothing():
                self._started(node)
                self._over(node, Outcome.OK)
            case Change():
                self._started(node)
                self._make_change(node, node.plan)
                self._over(node, Outcome.OK)
            case Concurrently() if node.children:
                self._started(node)
                self._agenda.extend([_bind(self._begin, child) for child in node.children])
            case Serially() if node.children:
                self._started(node)
                first = node.children[0]
                self._agenda.append(lambda: self._begin(first))
            case _:
                self._started(node)
                self._over(node, Outcome.OK)

    def _started(self, node: Node) -> None:
        if node.step is not None:
            self._set_step(node.step, Status.STARTED)
        if node.plan.no_return:
            self._pass_no_return()

    def _pass_no_return(self) -> None:
        self._no_return = True
        if self.cancel_kind is Cancel.FINISH_FORWARD:
            self._set_cancelable(Cancel.NONE)

    def _begins_work(self, node: Node) -> None:
        """A leaf or child begins for the first time: the plan's first is the point of no return if none is named."""
        self._started(node)
        if not self._no_return and node.command.node is None and not node.command.names_no_return:
            self._pass_no_return()

    def _begin_leaf(self, node: Node) -> None:
        task_id = node.id("leaf")
        leaf = self.leaves.get(task_id)
        fresh = leaf is None
        if leaf is None:
            if self._cancelling is not None:
                self._over_skipped(node)
                return
            leaf = self._new_leaf(node, task_id)
            self.leaves[task_id] = leaf
            self._pending.new_leaves[task_id] = leaf
        node.leaf = leaf
        self._by_leaf[task_id] = node
        self._begins_work(node)
        self._lend_external_id(node, leaf)
        if leaf.over:
            self._over(node, _leaf_outcome(leaf), leaf.error)
            return
        self._act_on_leaf(node, leaf, fresh)

    def _act_on_leaf(self, node: Node, leaf: Leaf, fresh: bool) -> None:
        let_out = self._acts if fresh else self._effects
        if leaf.deadline:
            let_out.append(ev.SetTimer(f"leaf {leaf.task_id}", leaf.deadline))
        match leaf.kind:
            case LeafKind.TASK:
                let_out.append(ev.Start(leaf))
            case LeafKind.CALL:
                let_out.append(ev.CallHost(leaf))
            case LeafKind.WAIT:
                assert leaf.entity is not None
                self._waits.setdefault(leaf.entity, {})[leaf.task_id] = node
                if fresh:
                    self._pending.report_entities[leaf.entity] = None
                    self._flush = True

    def _new_leaf(self, node: Node, task_id: str) -> Leaf:
        plan = node.plan
        assert isinstance(plan, Task | Call | WaitFor)
        step = node.nearest_step()
        leaf = Leaf(
            task_id=task_id,
            kind=_LEAF_KINDS[type(plan)],
            command_id=node.command.row.command_id,
            step_id=step.step_id if step is not None else self._own_step(EXECUTION).step_id,
            attempt=node.attempt,
            path=node.path,
            entity=plan.entity,
            deadline=self._now + plan.deadline if plan.deadline is not None else 0.0,
        )
        if isinstance(plan, WaitFor):
            leaf.arguments = {**_wait_conditions(plan), "after": _after(node)}
        else:
            leaf.host_id, leaf.verb, leaf.arguments = plan.host_id, plan.verb, plan.arguments
            if isinstance(plan, Task):
                leaf.expected_generation = plan.expected_generation
        return leaf

    def _lend_external_id(self, node: Node, leaf: Leaf) -> None:
        if leaf.kind is not LeafKind.TASK:
            return
        step = node.nearest_step() or self._own_step(EXECUTION)
        if not step.external_id:
            step.external_id = leaf.task_id
            self._pending.step(step)

    def _begin_child(self, node: Node) -> None:
        plan = node.plan
        assert isinstance(plan, Child)
        command_id = node.id("command")
        row = self._rows.get(command_id)
        if row is None and self._cancelling is not None:
            self._over_skipped(node)
            return
        depth = node.command.depth + 1
        if row is None and (depth > MAX_DEPTH or len(self._rows) >= MAX_COMMANDS):
            failure = Failure(
                RESOURCE_EXHAUSTED,
                "LIMIT_EXCEEDED",
                f"a flow has at most {MAX_COMMANDS} commands, {MAX_DEPTH} deep; {plan.command_type} would be one more",
            )
            self._over(node, Outcome.FAILED, failure)
            return
        self._begins_work(node)
        fresh = row is None
        if row is None:
            row = self._new_child(node, command_id, plan)
        command = LiveCommand(row, node, depth)
        self._commands[command_id] = command
        if row.status.ended:
            self._over(node, _command_outcome(row), row.error)
        elif fresh:
            self._think(ev.RunPlan(command_id))
        else:
            self._resume(command)

    def _new_child(self, node: Node, command_id: str, plan: Child) -> Command:
        step = node.nearest_step()
        row = Command(
            command_id=command_id,
            parent_command_id=node.command.row.command_id,
            command_type=plan.command_type,
            parameters=plan.parameters,
            parameters_version=plan.parameters_version,
            step_id=step.step_id if step is not None else "",
            node=f"{node.attempt}:{node.path}",
        )
        self._rows[command_id] = row
        self._pending.new_commands[command_id] = row
        return row

    def _make_change(self, node: Node, plan: Change) -> None:
        if self._replaying:
            return  # it rode in the commit that began what came after it
        change = EntityChange(plan.entity, plan.name, plan.status, plan.declared, plan.remove)
        self._pending.notes[node.command.row.command_id, f"change {node.attempt}:{node.path}"] = Notes(changes=[change])

    def _over(self, node: Node, outcome: Outcome, error: Failure | None = None) -> None:
        node.state = NodeState.OVER
        node.outcome = outcome
        node.error = error
        if node.leaf is not None and node.leaf.kind is LeafKind.WAIT:
            self._end_wait(node.leaf)
        self._advance(node, 1.0)
        if node.step is not None:
            self._set_step(node.step, outcome.status, error if outcome is not Outcome.OK else None)
        parent = node.parent
        if parent is None:
            command = node.command
            self._agenda.append(lambda: self._work_over(command))
        else:
            self._agenda.append(lambda: self._child_over(parent, node))

    def _child_over(self, parent: Node, child: Node) -> None:
        outcome = Outcome.OK if child.plan.best_effort else child.outcome
        if outcome is Outcome.UNKNOWN and child.step is not None:
            outcome = Outcome.FAILED  # the step says that the part's truth was lost; what is above has failed
        if outcome is Outcome.SKIPPED:
            outcome = Outcome.ABORTED  # only a cancel keeps a part from beginning while the whole goes on
        if outcome > parent.worst:
            parent.worst = outcome
            parent.error = child.error
        parent.unfinished -= 1
        if parent.unfinished and isinstance(parent.plan, Serially):
            if outcome is Outcome.OK:
                following = parent.children[child.index + 1]
                self._agenda.append(lambda: self._begin(following))
                return
            for later in parent.children[child.index + 1 :]:
                self._skip(later, child.nearest_step())
            parent.unfinished = 0
        if not parent.unfinished:
            self._over(parent, parent.worst, parent.error)

    def _skip(self, node: Node, culprit: Step | None) -> None:
        """A part that will never begin, because of another one."""
        reason = _skipped(culprit)
        for below in node.walk():
            below.state = NodeState.OVER
            below.outcome = Outcome.SKIPPED
            if below.step is not None:
                self._set_step(below.step, Status.SKIPPED, reason)

    def _over_skipped(self, node: Node) -> None:
        """A part that will never begin, because of a cancel."""
        self._skip(node, None)
        self._over(node, Outcome.SKIPPED, self._stop_reason())

    def _stop_reason(self) -> Failure | None:
        return _stopped(self._cancelling) if self._cancelling is not None else None

    # --- leaves: what hosts say --------------------------------------------------------------------------------------

    def _leaf_reported(self, event: ev.LeafReported) -> None:
        node = self._by_leaf.get(event.task_id)
        if node is None or node.leaf is None or node.leaf.over or node.leaf.kind is LeafKind.WAIT:
            return
        if event.lost:
            failure = event.error or Failure(DATA_LOSS, "TASK_LOST", f"{node.leaf.host_id} does not know it any more")
            self._end_leaf(node, "UNKNOWN", "", failure)
        elif event.result:
            node.leaf.answer = _answer(node.leaf, event)
            node.leaf.incarnation = event.incarnation
            self._end_leaf(node, "FINISHED", event.result, event.error)
        else:
            self._advance(node, event.progress / 100)

    def _end_leaf(self, node: Node, state: str, result: str, error: Failure | None) -> None:
        leaf = node.leaf
        assert leaf is not None
        leaf.state, leaf.result = state, result
        leaf.error = error if result != "SUCCESS" else None
        if result not in ("", "SUCCESS") and leaf.error is None:
            leaf.error = Failure(INTERNAL, "TASK_FAILED", f"{leaf.verb} failed on {leaf.host_id}")
        self._pending.leaf(leaf)
        outcome = _leaf_outcome(leaf)
        if outcome is Outcome.ABORTED:
            leaf.error = self._why_stopped(leaf)
            outcome = _leaf_outcome(leaf)
        if outcome is Outcome.UNKNOWN or result == "CLEAN_FAILURE":
            self._alarm(leaf)
        self._over(node, outcome, leaf.error)

    def _why_stopped(self, leaf: Leaf) -> Failure | None:
        if self._cancelling is not None:
            return _stopped(self._cancelling)
        if leaf.deadline and self._now >= leaf.deadline:
            return Failure(
                DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"{leaf.verb} on {leaf.host_id} took too long; stopped"
            )
        return leaf.error

    def _alarm(self, leaf: Leaf) -> None:
        what = "nobody can tell what became of it" if leaf.state == "UNKNOWN" else "it was not rolled back"
        name = f" of {leaf.entity}" if leaf.entity is not None else ""
        self._pending.events.append(
            EventNote(
                "TASK_LOST" if leaf.state == "UNKNOWN" else "TASK_NOT_ROLLED_BACK",
                Severity.ALERT,
                f"{leaf.verb or 'wait'}{name} on {leaf.host_id or 'no host'} (task {leaf.task_id}): {what}",
                leaf.entity,
            )
        )

    def _entity_seen(self, entity: EntityRef, observation: Observation) -> None:
        for node in list(self._waits.get(entity, {}).values()):
            self._look(node, observation)

    def _look(self, node: Node, observation: Observation) -> None:
        """Holds an observation against a wait.

        Numbers compare within an incarnation only. One of another incarnation may be from before the call that the wait
        follows: it can prove that what was waited for is there, never that it failed.
        """
        leaf, plan = node.leaf, node.plan
        assert leaf is not None
        assert isinstance(plan, WaitFor)
        after = leaf.arguments.get("after") or {}
        same = observation.incarnation == after.get("incarnation", observation.incarnation)
        if same and observation.number <= after.get("number", -1):
            return
        if plan.until.holds(observation):
            self._end_leaf(node, "FINISHED", "SUCCESS", None)
        elif same and plan.fails_if.holds(observation):
            why = f": {observation.error}" if observation.error else ""
            message = f"{plan.entity} was seen {observation.state} on {observation.host_id}{why}"
            self._end_leaf(node, "FINISHED", "CLEAN_SUCCESS", Failure(FAILED_PRECONDITION, "WAIT_FAILED", message))

    def _end_wait(self, leaf: Leaf) -> None:
        assert leaf.entity is not None
        waits = self._waits.get(leaf.entity, {})
        waits.pop(leaf.task_id, None)
        if not waits:
            self._waits.pop(leaf.entity, None)

    # --- commands end ------------------------------------------------------------------------------------------------

    def _work_over(self, command: LiveCommand) -> None:
        assert command.root is not None
        outcome = command.root.outcome if not command.root.plan.best_effort else Outcome.OK
        if outcome is Outcome.SKIPPED:
            outcome = Outcome.ABORTED
        if outcome is Outcome.UNKNOWN and (command.node is None or command.root.step is not None):
            outcome = Outcome.FAILED
        command.outcome = outcome
        row = command.row
        status = CommandStatus.SUCCEEDED if outcome is Outcome.OK else CommandStatus.FAILED
        if row.status is not status:
            row.status = status
            row.error = command.root.error if outcome is not Outcome.OK else None
            self._pending.command(row)
        if command.node is None:
            self._set_step(self._own_step(EXECUTION), command.outcome.status, row.error)
            if self._has_step(FINALIZATION):
                self._set_step(self._own_step(FINALIZATION), Status.STARTED)
        self._think(ev.RunEnd(row.command_id, command.outcome is Outcome.OK))

    def _end_method_ran(self, event: ev.Ended) -> None:
        if event.command_id not in self._thinking:
            return
        self._thinking.discard(event.command_id)
        command = self._commands[event.command_id]
        if event.failure is not None:
            self._end_method_raised(command, event.failure)
            return
        self._take_notes(command, "end", self._undo(command) if event.compensate else event.notes)
        if not command.row.status.ended:
            ended_well = command.outcome is Outcome.OK
            self._end_command(
                command, CommandStatus.ENDED_SUCCESSFULLY if ended_well else CommandStatus.ENDED_WITH_FAILURE
            )

    def _end_method_raised(self, command: LiveCommand, failure: Failure) -> None:
        row = command.row
        row.end_attempts += 1
        self._pending.command(row)
        if row.end_attempts < END_ATTEMPTS:
            delay = 0.1 * 2**row.end_attempts
            self._acts.append(ev.SetTimer(f"end {row.command_id}", self._now + delay))
            return
        row.error = failure
        command.outcome = Outcome.FAILED
        if command.node is None and self._has_step(FINALIZATION):
            self._set_step(self._own_step(FINALIZATION), Status.FAILED, failure)
        self._pending.events.append(
            EventNote("END_METHOD_GAVE_UP", Severity.ALERT, f"{row.command_type} ({row.command_id}): {failure.message}")
        )
        self._end_command(command, CommandStatus.ENDED_WITH_FAILURE)

    def _end_command(self, command: LiveCommand, status: CommandStatus) -> None:
        row = command.row
        row.status = status
        self._pending.command(row)
        if command.node is not None:
            node, outcome = command.node, command.outcome
            self._agenda.append(lambda: self._over(node, outcome, row.error))
            return
        if self._has_step(FINALIZATION):
            self._set_step(self._own_step(FINALIZATION), Status.FINISHED)
        self._end_root(command.outcome, row.error)

    def _end_root(self, outcome: Outcome, error: Failure | None) -> None:
        if outcome is not Outcome.ABORTED or self._cancelling is None:
            self._end_job(outcome.status, error)
        elif self._cancelling.reason == "DEADLINE_EXCEEDED":
            self._end_job(Status.FAILED, self._cancelling)  # the system stopped it, not somebody
        else:
            self._end_job(Status.ABORTED, self._cancelling)

    def _undo(self, command: LiveCommand) -> Notes:
        """The default end of a command that failed: its entities become what they were, newest change first.

        One that a begun task or call names, and that is not known to be rolled back, becomes ILLEGAL instead.
        """
        doubtful = self._in_doubt(command)
        notes = Notes()
        for snapshot in reversed(self.snapshots):
            if snapshot.command_id != command.row.command_id:
                continue
            former = snapshot.former
            if snapshot.entity in doubtful:
                notes.changes.append(EntityChange(snapshot.entity, status="ILLEGAL"))
                message = f"{snapshot.entity} is ILLEGAL: {command.row.command_type} failed and was not rolled back"
                notes.events.append(EventNote("ENTITY_ILLEGAL", Severity.ERROR, message, snapshot.entity))
            elif former is None:
                notes.changes.append(EntityChange(snapshot.entity, remove=True))
            else:
                notes.changes.append(EntityChange(snapshot.entity, former.name, former.status, former.declared))
        return notes

    def _in_doubt(self, command: LiveCommand) -> set[EntityRef]:
        return {
            leaf.entity
            for leaf in self.leaves.values()
            if leaf.command_id == command.row.command_id
            and leaf.entity is not None
            and leaf.kind is not LeafKind.WAIT
            and leaf.result != "CLEAN_SUCCESS"
        }

    def _end_job(self, status: Status, error: Failure | None) -> None:
        self.job.status = status
        if status is Status.FINISHED:
            self.job.progress = 100
        else:
            self.job.error = error
        self.job.cancelable = Cancel.NONE
        self._pending.job = True
        self._pending.ends_flow = True
        self._flush = True
        sent = tuple(leaf for leaf in self.leaves.values() if leaf.kind is not LeafKind.WAIT)
        if sent:
            self._acts.append(ev.Clear(sent))
        self._acts.append(ev.Done())

    # --- cancel ------------------------------------------------------------------------------------------------------

    def _cancel_asked(self, event: ev.CancelAsked) -> None:
        if event.request_id:
            self._pending.handled_requests.append(event.request_id)
            self._flush = True
        if self._cancelling is None:
            refusal = self._cancel_refused()
            if refusal is not None:
                self._acts.append(ev.AnswerCancel(event.token, refusal))
                return
            by = f"{event.user}: {event.reason}" if event.reason else event.user
            self._take_wish(
                by, _aborted(by), EventNote("JOB_CANCELED", Severity.WARNING, f"cancelled by {by}", user=event.user)
            )
        self._acts.append(ev.AnswerCancel(event.token, None))
        self._flush = True

    def _cancel_refused(self) -> Failure | None:
        root = self._commands[self.root.command_id]
        if self.job.status.ended:
            return Failure(FAILED_PRECONDITION, "JOB_ENDED", f"job {self.job.job_id} has ended {self.job.status}")
        if self.cancel_kind is Cancel.NONE:
            return Failure(FAILED_PRECONDITION, "NOT_CANCELABLE", f"{self.job.command_type} cannot be cancelled")
        if root.root is None:
            return None
        if root.row.status in (CommandStatus.SUCCEEDED, CommandStatus.FAILED):
            return Failure(FAILED_PRECONDITION, "NOT_CANCELABLE", "the work is over, the job is being finalized")
        if self.cancel_kind is Cancel.BEFORE_START:
            return Failure(
                FAILED_PRECONDITION, "NOT_CANCELABLE", f"{self.job.command_type} has started; it will complete"
            )
        if self.cancel_kind is Cancel.FINISH_FORWARD and self._no_return:
            message = f"{self.job.command_type} has done what cannot be undone; it will complete"
            return Failure(FAILED_PRECONDITION, "PAST_NO_RETURN", message)
        return None

    def _take_wish(self, by: str, why: Failure, event: EventNote) -> None:
        self._cancelling = why
        self.job.cancel_requested_by = by
        self._pending.job = True
        self._pending.events.append(event)
        self._set_cancelable(Cancel.NONE)
        self._flush = True
        root = self._commands[self.root.command_id]
        if root.root is None:
            self._thinking.discard(self.root.command_id)
            self._refuse(root, _stopped(why), Outcome.ABORTED)
        else:
            self._stop_what_runs()

    def _stop_what_runs(self) -> None:
        for node in list(self._by_leaf.values()):
            leaf = node.leaf
            if leaf is None or leaf.over:
                continue
            if leaf.kind is LeafKind.TASK:
                self._acts.append(ev.Stop(leaf))
                self._flush = True
            elif leaf.kind is LeafKind.WAIT:
                self._end_leaf(node, "FINISHED", "CLEAN_SUCCESS", self._stop_reason())

    # --- timers ------------------------------------------------------------------------------------------------------

    def _timer_fired(self, key: str) -> None:
        kind, _, name = key.partition(" ")
        if key == "slow plan":
            self._alone = self.sequence == 0 and self.root.command_id in self._thinking
        elif kind == "progress":
            self._progress_timer = False
            self._flush = self._flush or bool(self._pending)
        elif kind == "retry":
            self._paused = False
            self._flush = True
        elif kind == "deadline":
            self._deadline_passed()
        elif kind == "end":
            self._end_again(name)
        elif kind == "leaf":
            self._leaf_deadline_passed(name)

    def _end_again(self, command_id: str) -> None:
        command = self._commands[command_id]
        if not command.row.status.ended and command_id not in self._thinking:
            self._think(ev.RunEnd(command_id, command.outcome is Outcome.OK))

    def _deadline_passed(self) -> None:
        if self._cancelling is not None or self._cancel_refused() is not None:
            return
        failure = Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the job's deadline passed")
        note = EventNote("JOB_DEADLINE_EXCEEDED", Severity.WARNING, "cancelled: the job's deadline passed")
        self._take_wish(DEADLINE_WISH, failure, note)

    def _leaf_deadline_passed(self, task_id: str) -> None:
        node = self._by_leaf.get(task_id)
        if node is None or node.leaf is None or node.leaf.over:
            return
        leaf = node.leaf
        if leaf.kind is LeafKind.WAIT:
            message = f"{leaf.entity} was not seen in time"
            self._end_leaf(node, "FINISHED", "CLEAN_SUCCESS", Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message))
        elif leaf.kind is LeafKind.TASK:
            # Failed only when the host confirms: until then nobody knows.
            self._acts.append(ev.Stop(leaf))
            self._flush = True

    # --- progress and steps ------------------------------------------------------------------------------------------

    def _advance(self, node: Node, fraction: float) -> None:
        """Raises a node's progress and what that means above it."""
        gain = fraction - node.progress
        if gain <= 0:
            return
        node.progress = fraction
        self._show_progress(node)
        while (above := node.above) is not None:
            share = node.plan.weight / above.total_weight if above.total_weight else 1.0
            gain *= share
            above.progress = min(1.0, above.progress + gain)
            self._show_progress(above)
            node = above
        percent = min(99, int(node.progress * 100 + 1e-6))
        execution = self._own_step(EXECUTION)
        if percent > execution.progress:
            execution.progress = percent
            self._pending.step(execution)
        if percent > self.job.progress:
            self.job.progress = percent
            self._pending.job = True

    def _show_progress(self, node: Node) -> None:
        step = node.step
        if step is None or step.status.ended:
            return
        percent = min(99, int(node.progress * 100 + 1e-6))
        if percent > step.progress:
            step.progress = percent
            self._pending.step(step)

    def _set_step(self, step: Step, status: Status, error: Failure | None = None) -> None:
        if step.status is status or step.status.ended:
            return
        step.status = status
        step.error = error
        if status is Status.FINISHED:
            step.progress = 100
        self._pending.step(step)

    def _set_cancelable(self, kind: Cancel) -> None:
        if self.job.cancelable is not kind:
            self.job.cancelable = kind
            self._pending.job = True

    def _add_step(
        self,
        parent_step_id: str,
        step_type: str,
        *,
        step_id: str = "",
        command_id: str = "",
        status: Status = Status.PENDING,
        description: str = "",
        subjects: Iterable[EntityRef] = (),
        weight: float = 1.0,
    ) -> Step:
        number = self._numbers.get(parent_step_id, 0)
        self._numbers[parent_step_id] = number + 1
        step = Step(
            step_id=step_id or self._own_step_id(step_type),
            parent_step_id=parent_step_id,
            command_id=command_id or self.root.command_id,
            step_type=step_type,
            number=number,
            description=description,
            status=status,
            subjects=tuple(Subject(e.entity_type, e.entity_id, self._subject_names.get(e, "")) for e in subjects),
            weight=weight,
        )
        self.steps[step.step_id] = step
        self._pending.new_steps[step.step_id] = step
        return step

    def _own_step_id(self, step_type: str) -> str:
        step_id = self._own_step_ids.get(step_type)
        if step_id is None:
            step_id = self._own_step_ids[step_type] = derived_id(self.root.command_id, 0, step_type, "step")
        return step_id

    def _own_step(self, step_type: str) -> Step:
        return self.steps[self._own_step_id(step_type)]

    def _has_step(self, step_type: str) -> bool:
        return self._own_step_id(step_type) in self.steps

    def _count_steps(self) -> None:
        self._numbers = {}
        for step in self.steps.values():
            self._numbers[step.parent_step_id] = max(self._numbers.get(step.parent_step_id, 0), step.number + 1)

    # --- commits -----------------------------------------------------------------------------------------------------

    def _hand_out_commit(self) -> None:
        if self.ended:
            self._let_out_acts()
            return
        if self._in_flight is not None or self._paused or (self._thinking and not self._alone):
            return
        if not (self._flush or self._acts or self._alone):
            self._store_progress_later()
            return
        if not self._pending:
            self._let_out_acts()
            return
        self._in_flight, self._pending = self._pending, Mutations()
        self._in_flight_acts, self._acts = self._acts, []
        if self.sequence == 0:
            self._in_flight_acts.insert(0, ev.Answer())
        self._flush = self._alone = False
        self._last_commit = self._now
        self._effects.append(ev.Commit(self._in_flight, self.sequence + 1))

    def _store_progress_later(self) -> None:
        """Changes that nobody outside waits for: now if the last commit is long ago, else when it will be."""
        if not self._pending or self._progress_timer:
            return
        self._progress_timer = True
        self._effects.append(ev.SetTimer("progress", max(self._now, self._last_commit + PROGRESS_SECONDS)))

    def _let_out_acts(self) -> None:
        self._effects += self._acts
        self._acts = []
        self._flush = False

    def _recorded(self, event: ev.Recorded) -> None:
        assert self._in_flight is not None
        stored, self._in_flight = self._in_flight, None
        self._refusals = 0
        self.sequence += 1
        self._time_job(stored, event)
        if stored.ends_flow:
            self.ended = True
        self._effects += self._in_flight_acts
        self._in_flight_acts = []
        for entity, observation in event.seen.items():
            self._entity_seen(entity, observation)

    def _time_job(self, stored: Mutations, event: ev.Recorded) -> None:
        job = self.job
        job.revision, job.update_time = event.revision, event.time
        if stored.new_job:
            job.create_time = event.time
        if not job.start_time and job.status is not Status.PENDING:
            job.start_time = event.time
        if stored.ends_flow:
            job.end_time = event.time

    def _record_refused(self, failure: Failure) -> None:
        assert self._in_flight is not None
        refused, self._in_flight = self._in_flight, None
        refused.absorb(self._pending)
        self._pending = refused
        unanswered: list[ev.Effect] = [act for act in self._in_flight_acts if not isinstance(act, ev.Answer)]
        self._acts = unanswered + self._acts
        self._in_flight_acts = []
        self._flush = True
        match failure.reason:
            case "STALE_EPOCH" | "LEASE_LOST" | "SEQUENCE_MISMATCH":
                self._drop(ev.Abandon(failure))
            case "LOCKED":
                self._refuse_whom(failure)
            case "CONFLICT":
                self._note_again(failure)
            case _ if self.sequence == 0:
                self._drop(ev.Refuse(failure), ev.Done())
            case _:
                self._commit_again_later(failure)

    def _drop(self, *last: ev.Effect) -> None:
        """Does nothing any more: what was not recorded must not be acted upon."""
        self.ended = True
        self._acts = []
        self._effects += last

    def _commit_again_later(self, failure: Failure) -> None:
        self._refusals += 1
        self._paused = True
        self._effects.append(ev.Retry(failure))
        self._effects.append(ev.SetTimer("retry", self._now + min(RETRY_SECONDS, 0.2 * 2**self._refusals)))

    def _refuse_whom(self, failure: Failure) -> None:
        """A lock was not to be had: whoever wanted it is refused, or the whole flow if it had not begun."""
        wanted = (failure.metadata.get("entity_type", ""), failure.metadata.get("entity_id", ""))
        for (command_id, occasion), notes in self._pending.notes.items():
            if occasion == "plan" and any((k.entity.entity_type, k.entity.entity_id) == wanted for k in notes.locks):
                command = self._commands[self.root.command_id if self._validation_unstored() else command_id]
                self._take_back(command)
                self._refuse(command, failure)
                return
        self._commit_again_later(failure)

    def _validation_unstored(self) -> bool:
        """True while the end of VALIDATION is not durable: then nothing of the flow has begun."""
        step_id = self._own_step_id(VALIDATION)
        step = self._pending.new_steps.get(step_id) or self._pending.steps.get(step_id)
        return step is not None and step.status.ended

    def _note_again(self, failure: Failure) -> None:
        """An entity changed between reading and writing: the notes are made again from fresh reads."""
        again = self._conflicting_plans() or self._conflicting_ends()
        if not again:
            self._commit_again_later(failure)
        for command, planning in again:
            command.conflicts += 1
            if planning:
                self._take_back(command)
                if command.conflicts < CONFLICTS:
                    self._think(ev.RunPlan(command.row.command_id))
                else:
                    self._refuse(command, failure)
            else:
                self._pending.notes.pop((command.row.command_id, "end"), None)
                self._think(ev.RunEnd(command.row.command_id, command.outcome is Outcome.OK))

    def _conflicting_plans(self) -> list[tuple[LiveCommand, bool]]:
        root = self._commands[self.root.command_id]
        if self._validation_unstored():
            return [(root, True)]
        return [
            (self._commands[command_id], True)
            for (command_id, occasion), notes in self._pending.notes.items()
            if occasion == "plan" and notes.read_versions
        ]

    def _conflicting_ends(self) -> list[tuple[LiveCommand, bool]]:
        return [
            (self._commands[command_id], False)
            for (command_id, occasion), notes in self._pending.notes.items()
            if occasion == "end" and notes.read_versions
        ]

    def _take_back(self, command: LiveCommand) -> None:
        """Undoes the planning of a command that is not stored: as if its validate had not run."""
        nodes = list(command.root.walk()) if command.root is not None else []
        for node in nodes:
            self._take_back_node(node)
        row = command.row
        for key in [key for key in self._pending.notes if key[0] == row.command_id]:
            del self._pending.notes[key]
            self._pending.snapshots.pop(key, None)
        self.snapshots = [s for s in self.snapshots if s.command_id != row.command_id]
        self._acts = [
            act for act in self._acts if getattr(getattr(act, "leaf", None), "command_id", "") != row.command_id
        ]
        self._thinking.discard(row.command_id)
        row.plans, row.status, row.error = [], CommandStatus.NOT_STARTED, None
        command.root = None
        if command.node is None:
            self._take_back_root()
        self._count_steps()

    def _take_back_node(self, node: Node) -> None:
        if node.step is not None:
            self.steps.pop(node.step.step_id, None)
            self._pending.new_steps.pop(node.step.step_id, None)
        if node.leaf is not None:
            if node.leaf.kind is LeafKind.WAIT:
                self._end_wait(node.leaf)
            for leaves in (self.leaves, self._by_leaf, self._pending.new_leaves):
                leaves.pop(node.leaf.task_id, None)
        if isinstance(node.plan, Child):
            child = self._commands.pop(node.id("command"), None)
            if child is not None:
                self._take_back(child)
                self._rows.pop(child.row.command_id, None)
                self._pending.new_commands.pop(child.row.command_id, None)

    def _take_back_root(self) -> None:
        validation, execution = self._own_step(VALIDATION), self._own_step(EXECUTION)
        validation.status, validation.progress, validation.error = Status.STARTED, 0, None
        execution.status, execution.progress, execution.error, execution.external_id = Status.PENDING, 0, None, ""
        self.steps.pop(self._own_step_id(FINALIZATION), None)
        self._pending.new_steps.pop(self._own_step_id(FINALIZATION), None)
        self._pending.report_entities.clear()
        self._pending.ends_flow = False
        self._acts = [act for act in self._acts if isinstance(act, ev.AnswerCancel)]
        self._no_return = False
        self.job.status, self.job.error, self.job.progress = Status.STARTED, None, 0
        self.job.cancelable = self.cancel_kind


DEADLINE_WISH = "system: DEADLINE_EXCEEDED"

_LEAF_KINDS: dict[type[Any], LeafKind] = {Task: LeafKind.TASK, Call: LeafKind.CALL, WaitFor: LeafKind.WAIT}


def _bind(function: Callable[[Node], None], node: Node) -> Callable[[], None]:
    return lambda: function(node)


def _aborted(by: str) -> Failure:
    if by == DEADLINE_WISH:
        return Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the job's deadline passed")
    return Failure(CANCELLED, "ABORTED", f"cancelled by {by}")


def _stopped(why: Failure) -> Failure:
    """What a part says of itself that a cancel (or the job's deadline) stopped or kept from beginning."""
    return Failure(CANCELLED, "ABORTED", why.message)


def _skipped(culprit: Step | None) -> Failure:
    if culprit is None:
        return Failure(ABORTED, "SKIPPED", "never begun: the job was cancelled")
    return Failure(ABORTED, "SKIPPED", f"never begun, because of {culprit.step_type}", {"step_id": culprit.step_id})


def _leaf_outcome(leaf: Leaf) -> Outcome:
    if leaf.state == "UNKNOWN":
        return Outcome.UNKNOWN
    if leaf.result == "SUCCESS":
        return Outcome.OK
    stopped = leaf.error is not None and leaf.error.reason == "ABORTED"
    return Outcome.ABORTED if stopped and leaf.result == "CLEAN_SUCCESS" else Outcome.FAILED


def _command_outcome(row: Command) -> Outcome:
    if row.status is CommandStatus.ENDED_SUCCESSFULLY:
        return Outcome.OK
    reason = row.error.reason if row.error is not None else ""
    return {"ABORTED": Outcome.ABORTED, "TASK_LOST": Outcome.UNKNOWN}.get(reason, Outcome.FAILED)


def _answer(leaf: Leaf, event: ev.LeafReported) -> Any:
    """What is kept of an answer; a call's also says after which observation its effect can be seen."""
    if leaf.kind is LeafKind.CALL:
        return {
            "answer": event.answer,
            "observation_number": event.observation_number,
            "incarnation": event.incarnation,
        }
    return event.answer


def _after(node: Node) -> dict[str, Any]:
    """What a wait must not look at: everything up to the number that the preceding call returned."""
    if node.parent is None or not isinstance(node.parent.plan, Serially) or node.index == 0:
        return {}
    before = node.parent.children[node.index - 1].leaf
    if before is None or before.kind is not LeafKind.CALL or not isinstance(before.answer, dict):
        return {}
    return {"incarnation": before.answer["incarnation"], "number": before.answer["observation_number"]}


def _wait_conditions(plan: WaitFor) -> dict[str, Any]:
    written = plan_to_json(plan)
    return {"until": written.get("until", {}), "fails_if": written.get("fails_if", {})}


def _entities_of(plan: Plan) -> tuple[EntityRef, ...]:
    entity = getattr(plan, "entity", None)
    return (entity,) if entity is not None else ()


def former_of(name: str, status: str, declared: Mapping[str, Any]) -> Former:
    """What an entity was, for its snapshot."""
    return Former(name, status, dict(declared))
