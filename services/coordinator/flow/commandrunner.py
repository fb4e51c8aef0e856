"""Runs commands: plans them, seals their plans, and ends them when their work is over.

    NOT_STARTED ──RunPlan──▶ planned ──seal──▶ ACTIVE ──the plan is over──▶ SUCCEEDED | FAILED
         │                                     ▲    │                             ▲     │ RunEnd
         └─ refused: by validate, by execute,  │    ├─ RunAfterFailure: nothing ──┤     ▼
            by the store, by a cancel          └────┤  instead                    │   ENDED_SUCCESSFULLY |
                    ▼                               └─ cleanup ▶ EXECUTION_FAILED ┘   ENDED_WITH_FAILURE | UNKNOWN
            ENDED_WITH_FAILURE, without an end method: nothing of it had begun

A command's code (validate, execute, after_failure, the end methods) has no effect; what it notes comes true with the
commit that it rides in. While code runs no commit is handed out (`outbox.py`), so a plan and what it begins, a result
and the end that follows from it, are stored together.

After an attempt that did not go well `after_failure` may name a further one. It is sealed like the first, beside it;
the failed one stays visible. A clean-up lets the failure stand; no cancel stops it, nor what it begins. Where rows are
taken up, all attempts are gone through in order: so what an earlier one passed (a point of no return) is known again.

*An end method takes effect once*, because its notes and the end status are one commit. It is run more than once only if
it raises, if its commit is refused, or if the process dies. `end_attempts` keeps that from going on for ever. The first
run of a process that has begun the flow itself is free: it costs no commit of its own, and there was none before. Every
other run is counted, durably, before it is made; so it is also counted if nobody survives it.

A child that was inlined (`plan.Inlined`) is part of the plan of the command above. Its end method runs before that
one's, in the same run, with its own result; of one that never began none does.

Children are planned in the turn of their parent if they are concurrent, when their turn comes if they are serial. One
that the store would not have (`verdicts`) is refused without being planned again.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from coordinator.flow import childjobs, failures, leaves
from coordinator.flow import events as ev
from coordinator.flow.attempts import MOST_ATTEMPTS, FailedAttempt
from coordinator.flow.book import Book
from coordinator.flow.cancellation import Cancellation
from coordinator.flow.compensation import Compensation
from coordinator.flow.nodes import WORK, LiveCommand, Node, Outcome, build, derived_id, span_id_of
from coordinator.flow.outbox import Outbox
from coordinator.flow.planjson import attempt_from_json, attempt_to_json
from coordinator.flow.planrunner import PlanRunner, seen_from_above
from coordinator.flow.reuse import Reuse
from coordinator.flow.steptree import EXECUTION, FINALIZATION, VALIDATION, StepTree
from coordinator.flow.turn import Turn
from coordinator.plan import Change, Child, Inlined, Plan, Serially, Task
from coordinator.rows import (
    Command,
    CommandStatus,
    EntityChange,
    EventNote,
    Failure,
    Job,
    LeafKind,
    Notes,
    Severity,
    Status,
)

END_ATTEMPTS: Final = 5
"""Runs of an end method that raises."""
END_PAUSE_SECONDS: Final = 0.1
"""Before the second run; each further pause is twice as long."""
MAX_DEPTH: Final = 16
"""Commands below commands."""
MAX_COMMANDS: Final = 10_000
"""Commands of a flow."""

_ENDED: Final = {Outcome.OK: CommandStatus.ENDED_SUCCESSFULLY, Outcome.UNKNOWN: CommandStatus.UNKNOWN}


class CommandRunner:
    """See the module. `verdicts` are the failures of commands that the store has refused, by id."""

    def __init__(
        self, book: Book, outbox: Outbox, steps: StepTree, cancellation: Cancellation, plans: PlanRunner, turn: Turn
    ) -> None:
        self.root = LiveCommand(book.root, None, 0)
        self.thinking: set[str] = set()  # commands whose code is running
        self.verdicts: dict[str, Failure] = {}
        self.reuse: Reuse | None = None  # of the flow whose job is restarted; None if none is
        self.counts_every_end = False  # the flow was loaded: a run before this one may have killed its process
        self._live: dict[str, LiveCommand] = {book.root.command_id: self.root}
        self._book = book
        self._outbox = outbox
        self._steps = steps
        self._cancellation = cancellation
        self._plans = plans
        self._turn = turn
        self._compensation = Compensation(book)

    def live(self, command_id: str) -> LiveCommand:
        """One of the flow's commands that has been begun."""
        return self._live[command_id]

    def let_go(self) -> None:
        """Parts commands from the nodes of their plans, and these from each other."""
        for command in self._live.values():
            for node in chain.from_iterable(root.walk() for root in (command.root, command.failed) if root is not None):
                node.parent = None
            command.root = command.failed = None
            command.inlined.clear()

    def own_words(self, command_id: str) -> str:
        """What the plan above says of a child; empty if nothing, or of the root."""
        node = self._live[command_id].node
        return node.plan.description if node is not None else ""

    # --- planning ----------------------------------------------------------------------------------------------------

    def begin(self, command: LiveCommand) -> None:
        """Has a command planned, or takes it up where its rows say that it stands."""
        row = command.row
        if row.plans:
            self._take_up(command, 1)
        elif (verdict := self.verdicts.get(row.command_id)) is not None:
            outcome = Outcome.SKIPPED if verdict.reason == "SKIPPED" else Outcome.FAILED
            self._turn.decide(self.refuse, command, verdict, outcome)
        else:
            self._think(ev.RunPlan(row.command_id))

    def planned(self, event: ev.Planned) -> None:
        """validate and execute have run."""
        if event.command_id not in self.thinking:
            return  # a cancel was quicker
        self.thinking.discard(event.command_id)
        command = self._live[event.command_id]
        if event.plan is None:
            assert event.failure is not None
            self._take_notes(command, "refused", Notes(events=event.notes.events))
            self.refuse(command, event.failure, executing=event.executing)
        elif self._cancellation.wish is not None and not command.spared:
            self.refuse(command, failures.stopped(self._cancellation.wish.message), Outcome.ABORTED)
        else:
            self._take_plan(command, event.plan, event.notes)

    def _take_plan(self, command: LiveCommand, plan: Plan, notes: Notes) -> None:
        try:
            written = attempt_to_json(plan, cleanup=False)
        except ValueError as error:
            self.refuse(command, failures.plan_invalid(command.row, error), executing=True)
            return
        self._take_notes(command, "plan", notes)
        self._seal(command, plan, written)

    def _seal(self, command: LiveCommand, plan: Plan, written: object, *, cleans: bool = False) -> None:
        """Stores what is expected, in the commit that begins it."""
        row = command.row
        self._book.change_command(row)
        row.status = CommandStatus.EXECUTION_FAILED if cleans else CommandStatus.ACTIVE
        row.plans = [*row.plans, written]
        self._book.pending.sealed.add(row.command_id)
        self._outbox.urgent = True
        if command.shows_as_job:
            self._steps.end(self._steps.own(VALIDATION, command), Status.FINISHED)
            self._steps.start(self._steps.own(EXECUTION, command))
        if command.node is None:
            self._cancellation.seal()
        self._grow(command, plan, len(row.plans), cleans=cleans)
        if command.shows_as_job and command.has_work and self._steps.own(FINALIZATION, command) is None:
            self._steps.add_own(FINALIZATION, command=command)

    def _take_up(self, command: LiveCommand, attempt: int) -> None:
        """Goes through an attempt that is stored."""
        plan, cleans = attempt_from_json(command.row.plans[attempt - 1])
        self._grow(command, plan, attempt, cleans=cleans)

    def _grow(self, command: LiveCommand, plan: Plan, attempt: int, *, cleans: bool) -> None:
        """Makes the nodes of a sealed plan, with the steps that they name, and begins it."""
        if cleans:
            command.cleans = command.spared = True
            command.failed = command.root
        root = command.root = build(command, plan, attempt)
        for node in root.walk():
            command.names_no_return |= node.plan.no_return
            command.has_work |= isinstance(node.plan, WORK)
            if node.plan.step:
                self._steps.show(node)
            if isinstance(node.plan, Serially) and node.plan.inlined is not None:
                command.inlined.append(node)
            if self.reuse is not None and not self._turn.replaying:
                self._take_as_done(node, self.reuse)
        self._turn.then(self._plans.begin, root)

    def _take_as_done(self, node: Node, reuse: Reuse) -> None:
        """What a former flow did well is there, over, with the plan that is sealed."""
        if isinstance(node.plan, Task):
            task_id = node.id("leaf")
            if task_id not in self._book.leaves:
                leaf = reuse.leaf(node, task_id, self._steps.around(node).step_id)
                if leaf is not None:
                    self._book.add_leaf(leaf)
        elif isinstance(node.plan, Child):
            command_id = node.id("command")
            if command_id not in self._book.commands and reuse.is_done(node):
                row = _child_row(node, command_id, node.plan)
                row.status = CommandStatus.ENDED_SUCCESSFULLY
                self._book.add_command(row)

    def refuse(
        self, command: LiveCommand, failure: Failure, outcome: Outcome = Outcome.FAILED, *, executing: bool = False
    ) -> None:
        """Ends a command of which nothing has begun: no end method, nothing to undo."""
        row = command.row
        self._book.change_command(row)
        row.status, row.error = CommandStatus.ENDED_WITH_FAILURE, failure
        self._outbox.urgent = True
        if command.shows_as_job:
            self._refuse_steps(command, outcome, failure, executing=executing)
        if command.node is None:
            self._end_job(outcome, failure)
            return
        if command.job is not None:
            self._end_child_job(command.job, outcome, failure)
        self._turn.then(self._plans.over, command.node, outcome, failure)

    def _refuse_steps(self, command: LiveCommand, outcome: Outcome, failure: Failure, *, executing: bool) -> None:
        validation, execution = self._steps.own(VALIDATION, command), self._steps.own(EXECUTION, command)
        assert validation is not None
        if executing:
            self._steps.end(validation, Status.FINISHED)
            self._steps.end(execution, outcome.status, failure)
        else:
            self._steps.end(validation, outcome.status, failure)
            self._steps.end(execution, Status.SKIPPED, failures.skipped_because_of(VALIDATION, validation))

    # --- children ----------------------------------------------------------------------------------------------------

    def begin_child(self, node: Node, plan: Child) -> None:
        """A node that stands for a child begins: makes the child, or finds it in the rows."""
        command_id = node.id("command")
        row = self._book.commands.get(command_id)
        depth = node.command.depth + 1
        if row is None and (depth > MAX_DEPTH or len(self._book.commands) >= MAX_COMMANDS):
            limits = f"at most {MAX_COMMANDS} commands, {MAX_DEPTH} deep"
            self._plans.over(node, Outcome.FAILED, failures.limit_exceeded(plan.command_type, limits))
            return
        self._plans.start_work(node)
        begins = row is None
        if row is None:
            row = _child_row(node, command_id, plan)
            self._book.add_command(row)
        command = self._live[command_id] = LiveCommand(row, node, depth)
        if plan.as_job:
            self._show_as_job(command, plan, begins=begins)
        if row.status.ended:
            self._plans.over(node, leaves.outcome_of_command(row), row.error)
        else:
            self.begin(command)

    def _show_as_job(self, command: LiveCommand, plan: Child, *, begins: bool) -> None:
        """Gives a child its job, stored with it; one that a former flow has done well (`reuse.py`) has none."""
        job_id = derived_id(command.namespace, 0, "", "job")
        command.job = self._book.child_jobs.get(job_id)
        if begins:
            command.job = childjobs.begun(job_id, self._book.job, command, plan)
            self._book.add_child_job(command.job)
            self._steps.add_own(VALIDATION, Status.STARTED, command)
            self._steps.add_own(EXECUTION, command=command)
        if command.job is not None:
            command.execution = self._steps.own(EXECUTION, command)

    def _end_child_job(self, job: Job, outcome: Outcome, error: Failure | None) -> None:
        self._book.change_child_job(job)
        job.status, failure = self._cancellation.status_of(outcome, error)
        if job.status is Status.FINISHED:
            job.progress = 100
        else:
            job.error = failure

    # --- notes -------------------------------------------------------------------------------------------------------

    def note_change(self, command: LiveCommand, path: str, plan: Change) -> None:
        """A change between two stages."""
        change = EntityChange(plan.entity, plan.name, plan.status, plan.declared, plan.remove, plan.former)
        self._take_notes(command, f"change {len(command.row.plans)}:{path}", Notes(changes=[change]))

    def _take_notes(self, command: LiveCommand, occasion: str, notes: Notes) -> None:
        if not (notes.changes or notes.read_versions or notes.locks or notes.events):
            return
        self._book.pending.notes[command.row.command_id, occasion] = notes
        if occasion != "end":
            for change in notes.changes:
                self._compensation.remember(command.row, change)

    # --- the end -----------------------------------------------------------------------------------------------------

    def work_over(self, command: LiveCommand) -> None:
        """An attempt is over: another one follows, or it was the last."""
        row, root = command.row, command.root
        assert root is not None
        if root.attempt < len(row.plans):
            self._take_up(command, root.attempt + 1)
            return
        if command.cleans:
            self._cleaned_up(command, root)
            return
        command.outcome = _outcome_of_work(command, root)
        if command.outcome is not Outcome.OK and row.status is CommandStatus.ACTIVE:
            self._think(ev.RunAfterFailure(row.command_id, self._failed_attempt(command, root)))
        else:
            self._end_work(command, root.error)

    def _failed_attempt(self, command: LiveCommand, root: Node) -> FailedAttempt:
        begun = [node for node in root.walk() if node.outcome is not Outcome.SKIPPED]
        return FailedAttempt(
            error=root.error or failures.stopped("it did not go well"),
            plans=tuple(attempt_from_json(written)[0] for written in command.row.plans),
            begun=frozenset(node.path for node in begun),
            done=frozenset(node.path for node in begun if node.outcome is Outcome.OK),
            unknown=frozenset(node.path for node in begun if node.outcome is Outcome.UNKNOWN),
            dirty=frozenset(node.path for node in begun if node.leaf and node.leaf.result == "CLEAN_FAILURE"),
            past_no_return=command.past_no_return,
            canceled=self._cancellation.wish is not None and not command.spared,
        )

    def revised(self, event: ev.Revised) -> None:
        """after_failure has run: a further attempt, or the failure stands as it is."""
        if event.command_id not in self.thinking:
            return
        self.thinking.discard(event.command_id)
        command = self._live[event.command_id]
        assert command.root is not None
        error = command.root.error
        if event.failure is not None:
            self._alert(command, "AFTER_FAILURE_RAISED", event.failure.message)
        stopped = self._cancellation.wish is not None and not command.spared
        if event.plan is None or (stopped and not event.cleanup):
            self._end_work(command, error)
        elif len(command.row.plans) >= MOST_ATTEMPTS:
            self._end_work(command, failures.attempts_exceeded(command.row, MOST_ATTEMPTS))
        else:
            self._try_again(command, event.plan, event.notes, cleans=event.cleanup)

    def _try_again(self, command: LiveCommand, plan: Plan, notes: Notes, *, cleans: bool) -> None:
        row, root = command.row, command.root
        assert root is not None
        try:
            written = attempt_to_json(plan, cleanup=cleans)
        except ValueError as error:
            self._alert(command, "AFTER_FAILURE_RAISED", failures.plan_invalid(row, error).message)
            self._end_work(command, root.error)
            return
        self._take_notes(command, f"attempt {len(row.plans) + 1}", notes)
        if cleans:
            self._book.change_command(row)
            row.error = root.error
            if command.node is None:
                self._cancellation.close()
        self._seal(command, plan, written, cleans=cleans)

    def _cleaned_up(self, command: LiveCommand, root: Node) -> None:
        """The failure stands, whatever became of the clean-up; what that could not do is said aloud, once."""
        assert command.failed is not None
        command.outcome = _outcome_of_work(command, command.failed)
        if seen_from_above(root) is not Outcome.OK and command.row.status is CommandStatus.EXECUTION_FAILED:
            why = root.error.message if root.error is not None else "it did not go well"
            self._alert(command, "CLEANUP_FAILED", f"cleaning up: {why}")
        self._end_work(command, command.failed.error)

    def _alert(self, command: LiveCommand, event_type: str, what: str) -> None:
        row = command.row
        message = f"{row.command_type} ({row.command_id}): {what}"
        self._book.pending.events.append(EventNote(event_type, Severity.ALERT, message))

    def _end_work(self, command: LiveCommand, error: Failure | None) -> None:
        """ACTIVE | EXECUTION_FAILED ─▶ SUCCEEDED | FAILED; then its end method runs."""
        row, outcome = command.row, command.outcome
        status = CommandStatus.SUCCEEDED if outcome is Outcome.OK else CommandStatus.FAILED
        first = row.status is not status
        if first:
            self._book.change_command(row)
            row.status = status
            row.error = None if outcome is Outcome.OK else error
        if command.shows_as_job:
            self._steps.end(self._steps.own(EXECUTION, command), outcome.status, row.error)
            self._steps.start(self._steps.own(FINALIZATION, command))
        if command.node is None:
            self._cancellation.close()
        if not self.counts_every_end or self._turn.silent:
            self._run_end(command)
        elif row.end_attempts <= END_ATTEMPTS:  # the last that was counted may not have been made
            self._run_end_counted(command, row.end_attempts + 1, at_once=first)
        else:
            self._turn.decide(self._give_up, command, failures.never_came_back(row))

    def _run_end(self, command: LiveCommand) -> None:
        parts = _parts_of(command) if command.inlined else ()
        self._think(ev.RunEnd(command.row.command_id, command.outcome is Outcome.OK, parts))

    def end_again(self, command_id: str) -> None:
        """The pause before a counted run of an end method is over."""
        command = self._live.get(command_id)
        if command is not None and not command.row.status.ended and command_id not in self.thinking:
            self._run_end(command)

    def end_method_ran(self, event: ev.Ended) -> None:
        """The end method has run."""
        if event.command_id not in self.thinking:
            return
        self.thinking.discard(event.command_id)
        command = self._live[event.command_id]
        made = max(1, command.row.end_attempts)
        if event.failure is None:
            notes = event.notes
            if event.compensate:
                undone = self._undone(command)
                notes = Notes(notes.changes + undone.changes, notes.read_versions, [], notes.events + undone.events)
            self._take_notes(command, "end", notes)
            self._end(command)
        elif made < END_ATTEMPTS:
            self._run_end_counted(command, made + 1)
        else:
            self._give_up(command, event.failure)

    def _undone(self, command: LiveCommand) -> Notes:
        cleaned_up = command.cleans and command.root is not None and seen_from_above(command.root) is Outcome.OK
        return self._compensation.undo(command.row, rolled_back=cleaned_up)

    def _run_end_counted(self, command: LiveCommand, attempt: int, *, at_once: bool = False) -> None:
        """Counts a run of the end method; it is made after a pause, once the count is durable."""
        row = command.row
        self._book.change_command(row)
        row.end_attempts = attempt
        pause = 0.0 if at_once else END_PAUSE_SECONDS * 2 ** (attempt - 1)
        self._outbox.acts.append(ev.SetTimer(f"end {row.command_id}", self._turn.now + pause))

    def _give_up(self, command: LiveCommand, failure: Failure) -> None:
        row = command.row
        self._book.change_command(row)
        row.error, command.outcome = failure, Outcome.FAILED
        if command.shows_as_job:
            self._steps.end(self._steps.own(FINALIZATION, command), Status.FAILED, failure)
        self._alert(command, "END_METHOD_GAVE_UP", failure.message)
        self._end(command)

    def _end(self, command: LiveCommand) -> None:
        """SUCCEEDED | FAILED ─▶ an end status."""
        row, outcome = command.row, command.outcome
        self._book.change_command(row)
        row.status = _ENDED.get(outcome, CommandStatus.ENDED_WITH_FAILURE)
        if command.shows_as_job:
            self._steps.end(self._steps.own(FINALIZATION, command), Status.FINISHED)
        if command.node is None:
            self._end_job(outcome, row.error)
            return
        if command.job is not None:
            self._end_child_job(command.job, outcome, row.error)
        self._plans.over(command.node, outcome, row.error)

    def _end_job(self, outcome: Outcome, error: Failure | None) -> None:
        """The flow's last commit; what it began is cleared on its hosts afterwards."""
        job = self._book.change_job()
        job.status, failure = self._cancellation.status_of(outcome, error)
        if job.status is Status.FINISHED:
            job.progress = 100
        else:
            job.error = failure
        self._cancellation.close()
        self._book.pending.ends_flow = True
        sent = tuple(leaf for leaf in self._book.leaves.values() if leaf.kind is not LeafKind.WAIT)
        if sent:
            self._outbox.acts.append(ev.Clear(sent))
        self._outbox.acts.append(ev.Done())

    def _think(self, effect: ev.RunPlan | ev.RunEnd | ev.RunAfterFailure) -> None:
        self.thinking.add(effect.command_id)
        self._turn.effects.append(effect)


def _outcome_of_work(command: LiveCommand, root: Node) -> Outcome:
    """What the end of a plan means for its command. That of a job is shown by EXECUTION, which is never UNKNOWN."""
    outcome = seen_from_above(root)
    return Outcome.FAILED if outcome is Outcome.UNKNOWN and command.shows_as_job else outcome


def _parts_of(command: LiveCommand) -> tuple[tuple[Inlined, bool], ...]:
    """The inlined children that began, in order, and whether they went well."""
    return tuple(
        (node.plan.inlined, node.outcome is Outcome.OK)
        for node in command.inlined
        if isinstance(node.plan, Serially) and node.plan.inlined and node.outcome is not Outcome.SKIPPED
    )


def _child_row(node: Node, command_id: str, plan: Child) -> Command:
    parent, step = node.command.row, node.nearest_step()
    return Command(
        command_id=command_id,
        parent_command_id=parent.command_id,
        command_type=plan.command_type,
        parameters=plan.parameters,
        parameters_version=plan.parameters_version,
        step_id=step.step_id if step is not None else "",
        node=f"{node.attempt}:{node.path}",
        span_id=span_id_of(command_id) if parent.span_id else "",
        traceparent=parent.own_traceparent,
    )
