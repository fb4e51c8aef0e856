"""Runs sealed plans: begins nodes, hears how they are, and knows what their ends mean for what they are part of.

    begin ─┬─ nothing, change, an empty group ─────────────────────▶ over(OK), in the same turn
           ├─ task, call, wait ─▶ intent ─▶ what hosts say ────────▶ over
           ├─ child ───────────▶ `commandrunner.py` ───────────────▶ over
           ├─ concurrently ────▶ begin all ─▶ the last is over ────▶ over(the worst of them)
           └─ serially ────────▶ begin the first ─▶ … the next … ──▶ over
                                                 └─ not well: the rest is skipped

    over ─▶ the parent counts down ─▶ over …   and at the root of a plan: the work of its command is over

A node is over when its parts are, and nothing else ends one. What its end means above it: best effort is well whatever
happened; what was left out because of a cancel is ABORTED; where a step says UNKNOWN, what is above it has FAILED.

*Taking up rows is the same code.* `begin` finds the row of what has begun and goes on from there; what has a row and is
over is over at once, and so on up to where the flow stands. Nodes without rows of their own follow from those that have
them, because a commit holds whole consequences. Only a cancel could blur that, so a cancel keeps from beginning what
reaches out and nothing else: `nothing` and `change` still follow the stage that ended well before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from coordinator.flow import events as ev
from coordinator.flow import failures, fences, leaves, waits
from coordinator.flow.book import Book
from coordinator.flow.cancellation import Cancellation
from coordinator.flow.nodes import LiveCommand, Node, NodeState, Outcome
from coordinator.flow.outbox import Outbox
from coordinator.flow.steptree import StepTree
from coordinator.flow.turn import Turn
from coordinator.flow.waits import Waits
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
)
from coordinator.rows import Failure, Leaf, LeafKind, Status, Step


class Commands(Protocol):
    """What it needs of `CommandRunner`."""

    def begin_child(self, node: Node, plan: Child) -> None: ...
    def note_change(self, command: LiveCommand, path: str, plan: Change) -> None: ...
    def work_over(self, command: LiveCommand) -> None: ...


class PlanRunner:
    """See the module."""

    commands: Commands  # set once both runners are there

    def __init__(self, book: Book, outbox: Outbox, steps: StepTree, cancellation: Cancellation, turn: Turn) -> None:
        self.waits = Waits()
        self._book = book
        self._outbox = outbox
        self._steps = steps
        self._cancellation = cancellation
        self._turn = turn
        self._open: dict[str, Node] = {}  # begun leaves that are not over, by id
        self._fences: dict[str, Node] = {}  # calls that fence tasks and are not over, by id; the task's node
        self._given_up: dict[str, Failure] = {}  # waits of which nothing will come, and why, by id
        self._places: set[tuple[str, int, str]] = set()  # where something had begun when a cancelled flow is taken up

    def let_go(self) -> None:
        """Parts it from the runner of commands."""
        del self.commands

    def take_up(self) -> None:
        """Rows are about to be taken up."""
        if self._cancellation.wish is not None:
            self._places = self._book.begun_places()

    # --- begin -------------------------------------------------------------------------------------------------------

    def begin(self, node: Node) -> None:
        """WAITING ─▶ BEGUN, or to OVER at once; takes a begun node up where its rows say that it stands."""
        if self._cancellation.wish is not None and self._is_left_out(node):
            self._leave_out(node, self._cancellation.wish)
            return
        node.state = NodeState.BEGUN
        _BEGIN[type(node.plan)](self, node)

    def _begin_nothing(self, node: Node) -> None:
        self._start(node)
        self.over(node, Outcome.OK)

    def _begin_change(self, node: Node) -> None:
        assert isinstance(node.plan, Change)
        self._start(node)
        if not self._turn.replaying:  # else it rode in the commit that began what came after it
            self.commands.note_change(node.command, node.path, node.plan)
        self.over(node, Outcome.OK)

    def _begin_concurrently(self, node: Node) -> None:
        self._start(node)
        for part in node.parts:
            self.begin(part)
        if not node.parts:
            self.over(node, Outcome.OK)

    def _begin_serially(self, node: Node) -> None:
        self._start(node)
        if node.parts:
            self.begin(node.parts[0])
        else:
            self.over(node, Outcome.OK)

    def _begin_child(self, node: Node) -> None:
        assert isinstance(node.plan, Child)
        self.commands.begin_child(node, node.plan)

    def _begin_leaf(self, node: Node) -> None:
        task_id = node.id("leaf")
        leaf = self._book.leaves.get(task_id)
        fresh = leaf is None
        if leaf is None:
            step = self._steps.around(node)
            leaf = leaves.intent(node, task_id, step.step_id, self._turn.now)
            self._book.add_leaf(leaf)
            if leaf.kind is LeafKind.TASK:
                self._steps.lend_external_id(step, task_id)
        else:
            leaves.know_plan(leaf, node.plan)
        node.leaf = leaf
        self.start_work(node)
        fenced = not fresh and leaf.kind is LeafKind.TASK and self._take_up_fence(node)
        if not leaf.over:
            self._open[task_id] = node
            self._ask(node, leaf, fresh)
        elif not fenced:
            self.over(node, leaves.outcome_of(leaf), leaf.error)

    def _ask(self, node: Node, leaf: Leaf, fresh: bool) -> None:
        """Has its host begin: once the intent is stored, or at once if it is."""
        if leaf.kind is LeafKind.WAIT:
            self.waits.open(node, leaf)
            if fresh:
                self._book.pending.report_entities.update(dict.fromkeys(waits.entities_of(node)))
                self._outbox.urgent = True
        if not fresh and (self._turn.silent or failures.is_of_another_memory(leaf.error)):
            return
        asked = self._outbox.acts if fresh else self._turn.effects
        if leaf.deadline and leaf.kind is not LeafKind.CALL:
            asked.append(ev.SetTimer(f"leaf {leaf.task_id}", leaf.deadline))
        if leaf.kind is LeafKind.TASK:
            asked.append(ev.Start(leaf))
            if leaf.state == "ABORTING":
                asked.append(ev.Stop(leaf))
        elif leaf.kind is LeafKind.CALL:
            asked.append(ev.CallHost(leaf))

    def start_work(self, node: Node) -> None:
        """A leaf or child begins: if its flow's plan names no point of no return, the first is it."""
        self._start(node)
        command = node.command
        if command.node is None and not command.names_no_return:
            self._cancellation.pass_no_return()

    def _start(self, node: Node) -> None:
        self._steps.start(node.step)
        if node.plan.no_return:
            node.command.past_no_return = True
            self._cancellation.pass_no_return()

    # --- over --------------------------------------------------------------------------------------------------------

    def over(self, node: Node, outcome: Outcome, error: Failure | None = None) -> None:
        """BEGUN ─▶ OVER, with all that follows."""
        node.state, node.outcome, node.error = NodeState.OVER, outcome, error
        if outcome is Outcome.OK:
            self._steps.advance(node, 1.0)
        self._steps.end(node.step, outcome.status, error)
        if node.parent is None:
            self.commands.work_over(node.command)
        else:
            self._part_over(node.parent, node)

    def _part_over(self, whole: Node, part: Node) -> None:
        outcome = seen_from_above(part)
        if outcome > whole.worst:
            whole.worst, whole.culprit, whole.error = outcome, part, part.error
        whole.unfinished -= 1
        if whole.unfinished and isinstance(whole.plan, Serially):
            if outcome is Outcome.OK:
                self._turn.then(self.begin, whole.parts[part.index + 1])
                return
            self._skip_rest(whole, part, outcome)
        if not whole.unfinished:
            self.over(whole, whole.worst, whole.error)

    def _skip_rest(self, whole: Node, part: Node, outcome: Outcome) -> None:
        wish = self._cancellation.wish
        if outcome is Outcome.ABORTED and wish is not None:
            reason = failures.skipped_by_wish(wish)
        else:
            reason = failures.skipped_because_of(*_culprit(part))
        for later in whole.parts[part.index + 1 :]:
            self._skip(later, reason)
        whole.unfinished = 0

    def _skip(self, node: Node, reason: Failure) -> None:
        """WAITING ─▶ OVER(SKIPPED), it and all below."""
        for each in node.walk():
            each.state, each.outcome = NodeState.OVER, Outcome.SKIPPED
            self._steps.end(each.step, Status.SKIPPED, reason)

    def _is_left_out(self, node: Node) -> bool:
        """Tells whether a cancel keeps a node from beginning: it had not begun, and would reach out."""
        return not node.command.spared and node.place not in self._places and node.reaches_out()

    def _leave_out(self, node: Node, wish: Failure) -> None:
        self._skip(node, failures.skipped_by_wish(wish))
        self.over(node, Outcome.SKIPPED, failures.stopped(wish.message))

    # --- what is heard -----------------------------------------------------------------------------------------------

    def reported(self, report: ev.LeafReported) -> bool:
        """A host says how a task or call is. True if that decided something."""
        node = self._open.get(report.task_id)
        if node is None or node.leaf is None or node.leaf.kind is LeafKind.WAIT:
            return self._fence_over(report)
        leaf = node.leaf
        if report.lost and failures.is_of_another_memory(report.error) and self._may_be_found_out(node, leaf):
            self._book.change_leaf(leaf)
            leaf.error = report.error
            self._fence(node, leaf)
        elif report.lost:
            self._end_leaf(node, leaf, "UNKNOWN", "", report.error or failures.task_lost(leaf))
        elif report.result:
            self._book.change_leaf(leaf)
            leaf.answer = leaves.answer_in(leaf, report)
            leaf.incarnation = report.incarnation or leaf.incarnation
            self._end_leaf(node, leaf, "FINISHED", report.result, report.error)
        else:
            self._steps.advance(node, report.progress / 100)
            return False
        return True

    def stalled(self, event: ev.TaskStalled) -> bool:
        """A task makes no progress: it is stopped, durably and aloud. True if that is new.

        It is over only when its host says so, for what is silent may still be at work; or when it is fenced, which is
        tried if the stop has not helped for as long again.
        """
        node = self._open.get(event.task_id)
        if node is None or node.leaf is None or node.leaf.kind is not LeafKind.TASK:
            return False
        leaf = node.leaf
        self._outbox.acts.append(ev.Stop(leaf))
        if failures.is_stall(leaf.error):
            return self._may_be_found_out(node, leaf) and self._fence(node, leaf)
        self._book.change_leaf(leaf)
        leaf.state, leaf.error = "ABORTING", failures.task_stalled(leaf, event.seconds)
        self._book.pending.events.append(leaves.stalled(leaf, event.seconds))
        self._outbox.urgent = True
        return True

    def seen(self, entity: EntityRef, observation: Observation) -> bool:
        """An entity was observed. True if that decided something."""
        decided = False
        for node in self.waits.on(entity):
            if isinstance(node.plan, WaitFor) and entity == node.plan.beside:
                self._give_up_soon(node, node.plan, observation)
                continue
            found = waits.meaning(node, observation)
            if found is not None and node.leaf is not None:
                decided = True
                self._end_leaf(node, node.leaf, "FINISHED", *found)
        return decided

    def _give_up_soon(self, node: Node, plan: WaitFor, observation: Observation) -> None:
        """Nothing more will come of what is waited for, unless it is on its way. Taken up, it is seen again."""
        leaf = node.leaf
        if leaf is None or leaf.task_id in self._given_up or not plan.gives_up_if.holds(observation):
            return
        self._given_up[leaf.task_id] = failures.nothing_to_come(plan, observation)
        at = self._turn.now + waits.GRACE_SECONDS
        self._turn.effects.append(ev.SetTimer(f"leaf {leaf.task_id}", min(at, leaf.deadline or at)))

    def deadline_passed(self, task_id: str) -> bool:
        """A leaf's deadline passed: a wait fails; a task is stopped, and fails only when its host says so."""
        node = self._open.get(task_id)
        if node is None or node.leaf is None:
            return False
        if node.leaf.kind is LeafKind.WAIT:
            error = self._given_up.get(task_id) or failures.not_seen_in_time(node.leaf)
            self._end_leaf(node, node.leaf, "FINISHED", "CLEAN_SUCCESS", error)
        elif not failures.is_of_another_memory(node.leaf.error):  # else its host knows nothing of it
            self._outbox.acts.append(ev.Stop(node.leaf))
        return True

    def stop_all(self, wish: Failure) -> None:
        """Stops what runs: tasks by their hosts, waits at once; calls are awaited. What cleans up goes on."""
        for node in list(self._open.values()):
            if node.command.spared:
                continue
            leaf = node.leaf
            assert leaf is not None
            if leaf.kind is LeafKind.TASK:
                self._outbox.acts.append(ev.Stop(leaf))
            elif leaf.kind is LeafKind.WAIT:
                self._end_leaf(node, leaf, "FINISHED", "CLEAN_SUCCESS", failures.stopped(wish.message))

    def open_tasks(self) -> tuple[Leaf, ...]:
        """The tasks that are under way."""
        leaves = (node.leaf for node in self._open.values())
        return tuple(leaf for leaf in leaves if leaf is not None and leaf.kind is LeafKind.TASK)

    def refusal_to_stop(self, task_ids: Iterable[str]) -> Failure | None:
        """Why these cannot be stopped; None if they can, or are over."""
        for task_id in task_ids:
            leaf = self._book.leaves.get(task_id)
            if leaf is None:
                return failures.task_unknown(task_id)
            if leaf.kind is not LeafKind.TASK and not leaf.over:
                return failures.not_stoppable(leaf)
        return None

    def stop_tasks(self, task_ids: Iterable[str]) -> list[str]:
        """Has these tasks stopped, or all, durably; returns those that were not over, nor to be stopped already."""
        wanted = set(task_ids)
        stopped = []
        for task_id, node in self._open.items():
            leaf = node.leaf
            assert leaf is not None
            if leaf.kind is LeafKind.TASK and not leaf.state and (not wanted or task_id in wanted):
                self._book.change_leaf(leaf)
                leaf.state = "ABORTING"
                self._outbox.acts.append(ev.Stop(leaf))
                stopped.append(task_id)
        return stopped

    def _end_leaf(self, node: Node, leaf: Leaf, state: str, result: str, error: Failure | None) -> None:
        self._book.change_leaf(leaf)
        leaf.state, leaf.result = state, result
        wish = None if node.command.spared else self._cancellation.wish
        leaf.error = leaves.error_of(leaf, error, wish, self._turn.now)
        if (alarm := leaves.alarm(leaf)) is not None:
            self._book.pending.events.append(alarm)
            self._outbox.urgent = True
        if leaf.kind is LeafKind.WAIT:
            self.waits.close(node, leaf)
        del self._open[leaf.task_id]
        if not (self._fences and self._is_being_fenced(node)):
            self.over(node, leaves.outcome_of(leaf), leaf.error)

    # --- fences ------------------------------------------------------------------------------------------------------

    def _may_be_found_out(self, node: Node, leaf: Leaf) -> bool:
        """Tells whether a fence can tell, or may still tell, what a task has done."""
        if leaf.kind is not LeafKind.TASK or not fences.is_possible(leaf):
            return False
        return self._is_being_fenced(node) or node.id("fence") not in self._book.leaves

    def _is_being_fenced(self, node: Node) -> bool:
        return any(each is node for each in self._fences.values())

    def _fence(self, node: Node, leaf: Leaf) -> bool:
        """Has a task fenced, unless that is on its way. True if it was not."""
        self._outbox.urgent = True
        if self._is_being_fenced(node):
            return False
        fence = fences.intent(node, leaf)
        self._book.add_leaf(fence)
        self._fences[fence.task_id] = node
        self._outbox.acts.append(ev.CallHost(fence))
        return True

    def _take_up_fence(self, node: Node) -> bool:
        """Finds the fence of a task in the rows. True if it is not over: nor is the node, then."""
        fence = self._book.leaves.get(node.id("fence"))
        if fence is None or fence.over:
            return False
        self._fences[fence.task_id] = node
        if not self._turn.silent:
            self._turn.effects.append(ev.CallHost(fence))
        return True

    def _fence_over(self, report: ev.LeafReported) -> bool:
        """A host says how a fence is. True if that decided something."""
        node = self._fences.get(report.task_id)
        if node is None or node.leaf is None or not (report.result or report.lost):
            return False
        del self._fences[report.task_id]
        leaf, fence = node.leaf, self._book.leaves[report.task_id]
        self._book.change_leaf(fence)
        fence.state, fence.result = ("UNKNOWN", "") if report.lost else ("FINISHED", report.result)
        fence.error, fence.answer = report.error, leaves.answer_in(fence, report)
        if leaf.over:  # its host has said so meanwhile, and knows better
            self.over(node, leaves.outcome_of(leaf), leaf.error)
            return True
        result = fences.result_of(leaf, fence)
        self._book.pending.events.append(fences.told(leaf, fence, result))
        self._outbox.urgent = True
        if result == "SUCCESS":
            self._book.change_leaf(leaf)
            leaf.answer = fences.answer_of(fence)
            self._end_leaf(node, leaf, "FINISHED", result, None)
        elif result:
            self._end_leaf(node, leaf, "FINISHED", result, failures.task_fenced(leaf))
        elif failures.is_of_another_memory(leaf.error):
            self._end_leaf(node, leaf, "UNKNOWN", "", leaf.error)
        return True


_BEGIN: Final[dict[type[Plan], Any]] = {
    Task: PlanRunner._begin_leaf,
    Call: PlanRunner._begin_leaf,
    WaitFor: PlanRunner._begin_leaf,
    Child: PlanRunner._begin_child,
    Concurrently: PlanRunner._begin_concurrently,
    Serially: PlanRunner._begin_serially,
    Change: PlanRunner._begin_change,
    Nothing: PlanRunner._begin_nothing,
}


def seen_from_above(node: Node) -> Outcome:
    """What the end of a part means for what it is part of."""
    outcome = node.outcome
    if outcome is Outcome.OK or node.plan.best_effort:
        return Outcome.OK
    if outcome is Outcome.SKIPPED:
        return Outcome.ABORTED  # only a cancel leaves out a part whose whole goes on
    if outcome is Outcome.UNKNOWN and node.step is not None:
        return Outcome.FAILED
    return outcome


def _culprit(node: Node) -> tuple[str, Step | None]:
    """Whom to name for a part that did not end well: the innermost step that shows it, else what it is."""
    named = node.step
    while node.culprit is not None:
        node = node.culprit
        named = node.step or named
    return (named.step_type, named) if named is not None else (_title(node.plan), None)


def _title(plan: Plan) -> str:
    match plan:
        case Task() | Call():
            return f"{plan.verb} on {plan.host_id}"
        case Child():
            return plan.command_type
        case WaitFor():
            return f"the wait for {plan.entity}"
        case _:
            return "what went before"
