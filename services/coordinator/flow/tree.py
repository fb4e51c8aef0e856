"""FlowTree: the whole life of a flow, as a pure state machine.

`tree.handle(event, now) -> list[Effect]`. It does no I/O, reads no clock and knows no loop; what it is told and what it
wants is in `events.py`. Its data are rows (`rows.py`), its plans come from commands (`plan.py`).

    job        STARTED ─────▶ FINISHED | FAILED | ABORTED       (stored with its first commit, ended with its last)
               PENDING ─────▶ STARTED | SKIPPED | FAILED | ABORTED        (while it waits before it begins)
    command    `commandrunner.py`     planned, sealed, its work over, ended
    node       `planrunner.py`        begun, over; what a part's end means for the whole
    leaf       `leaves.py`            intent, end; waits in `waits.py`
    step       `steptree.py`          what is shown, and progress
    rows       `book.py`              how they change, and how that is taken back
    commit     `outbox.py`            pending, in flight, recorded or refused
    cancel     `cancellation.py`      the wish, and whether it is granted
    waiting    `waiting.py`           for other jobs and for locks, before anything begins
    undoing    `compensation.py`      what becomes of entities after a failure

Rules that everything else follows from:

1. *Record, then act.* What is decided gathers in the book; an outward act (a start, an answer) waits in the outbox for
   the commit that holds its intent. One commit is in flight at a time.
2. *A commit holds whole consequences.* What an event leads to (a result, the next stage's intents, the end methods'
   notes) is one commit. So in the store a leaf that is over has its successors' intents beside it.
3. *Loading is running.* Because of 2, a tree loaded from rows goes through the same code: what has a row has begun,
   what is over in its row is over, and so on up to where the flow stands. After every commit a loaded tree behaves as
   the one in memory.
4. *A refused commit is a small crash.* What it held is taken back, so that the rows are those of the store, and they
   are taken up as if they had been loaded; then what the flow was told since is lived again, knowing better.
5. *A command never ends early.* A node is over when its parts are, a command when its plan's root is; nothing else ends
   one.
6. *End statuses never change.*

What can go wrong, and what is done:

| when | answer |
| --- | --- |
| LOCKED | the command that wanted the lock is refused; while nothing has begun the whole flow is, unless that command |
| | is best effort, or queues. Taken back, and lived again without it |
| GROUP_REFUSED | it was to begin together with others or not at all: SKIPPED |
| CONFLICT | taken back, and lived again with fresh reads, at most 3 times; then the commands that planned on what |
| | keeps changing are refused. Where only end methods write it: for ever, with pauses that grow |
| STALE_EPOCH, LEASE_LOST, SEQUENCE_MISMATCH, JOB_ENDED | another coordinator owns the flow: Abandon |
| another refusal | the first commit: the submitter is told, nothing was stored. Later: the same again, with pauses |
| validate refuses, execute raises | root: stored as a FAILED job; child: its node fails |
| an end method raises | counted durably, then again after a pause, at last FAILED |
| a plan does not go well | `after_failure` may name another one instead of it, or one that cleans up; else it failed |
| a task is lost | its step is UNKNOWN, what is above fails |
| a task makes no progress | alarm, then it is stopped; it has failed only when its host says so |
| a crash, at any point | the rows say what was intended; taking them up asks for it again under the same ids |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from coordinator.flow import events as ev
from coordinator.flow import failures
from coordinator.flow.blame import entity_in, who_planned_on, who_wanted
from coordinator.flow.book import Book
from coordinator.flow.cancellation import Cancellation
from coordinator.flow.commandrunner import END_ATTEMPTS, MAX_COMMANDS, MAX_DEPTH, CommandRunner
from coordinator.flow.failures import INTERNAL
from coordinator.flow.mutations import Mutations
from coordinator.flow.nodes import Outcome
from coordinator.flow.outbox import Outbox
from coordinator.flow.planrunner import PlanRunner
from coordinator.flow.reuse import Reuse
from coordinator.flow.steptree import EXECUTION, VALIDATION, StepTree
from coordinator.flow.turn import Turn
from coordinator.flow.waiting import Waiting
from coordinator.plan import EntityRef
from coordinator.rows import (
    Cancel,
    Command,
    CommandStatus,
    Dependency,
    EventNote,
    Failure,
    FlowRows,
    Job,
    Severity,
    Snapshot,
    Status,
    Step,
    Subject,
)

__all__ = ["CONFLICTS", "END_ATTEMPTS", "INTERNAL", "MAX_COMMANDS", "MAX_DEPTH", "PLAN_SECONDS", "FlowTree"]

PLAN_SECONDS: Final = 0.05
"""Planning that takes longer: the job is stored and answered alone."""
CONFLICTS: Final = 3
"""A commit that met a changed entity is lived again at most this often before somebody is blamed."""

_NOT_OURS: Final = frozenset({"STALE_EPOCH", "LEASE_LOST", "SEQUENCE_MISMATCH", "JOB_ENDED"})


class FlowTree:
    """One flow.

    For readers: `job`, `root` (the root command's row), `steps` and `leaves` by id, `epoch`, `sequence`, `ended`.
    """

    def __init__(
        self,
        job: Job,
        root: Command,
        *,
        cancel: Cancel,
        subject_names: Mapping[EntityRef, str] | None = None,
        dependencies: Iterable[Dependency] = (),
        grouped: bool = False,
        queues: bool = True,
        reuse: Reuse | None = None,
        note: EventNote | None = None,
        plan_seconds: float = PLAN_SECONDS,
    ) -> None:
        """`dependencies`: jobs that must end before it begins. `grouped`: its first commit is one with other flows';
        so it is handed out when it is whole, however long that takes. `queues`: whether it may wait for locks.

        `reuse`: what the flow has done well whose job is restarted. `note`: what is stored with its beginning.
        `plan_seconds`: after which the submitter is answered without a plan.
        """
        self._found(Book(job, root), cancel, dict(subject_names or {}), sequence=0, epoch=1)
        self._wait_for(Waiting.of(dependencies))
        self._grouped, self._queues = grouped, queues
        self._reuse = self._commands.reuse = reuse
        self._note = note
        self._plan_seconds = plan_seconds

    @classmethod
    def load(cls, rows: FlowRows, *, cancel: Cancel, reuse: Reuse | None = None) -> FlowTree:
        """Makes the tree that wrote these rows; tell it `Recovered` to make it go on."""
        tree = cls.__new__(cls)
        names = {EntityRef(s.entity_type, s.entity_id): s.name for s in rows.job.subjects}
        tree._found(Book.of(rows), cancel, names, sequence=rows.sequence, epoch=rows.epoch)
        tree._commands.counts_every_end = True
        tree._reuse = tree._commands.reuse = reuse
        tree._seen_before = dict(rows.seen)
        tree._unbegun = tree.root.status is CommandStatus.NOT_STARTED
        if tree._unbegun:
            barred = bool(rows.waits_until) and not rows.locks_free
            tree._wait_for(Waiting.of(rows.dependencies, rows.waits_until, barred=barred))
            if tree._waiting is None and tree.job.status is Status.PENDING:
                tree._wait_for(Waiting())
        return tree

    def _wait_for(self, waiting: Waiting | None) -> None:
        """For what it waits, or waited, before it begins; None if it never did."""
        self._waiting = waiting

    def _found(
        self, book: Book, cancel: Cancel, subject_names: dict[EntityRef, str], *, sequence: int, epoch: int
    ) -> None:
        self.job = book.job
        self.root = book.root
        self.steps = book.steps
        self.leaves = book.leaves
        self.epoch = epoch
        self.ended = book.job.status.ended  # … and the commit that ended it is durable
        self._book = book
        self._cancel_kind = cancel
        self._subject_names = subject_names
        self._outbox = Outbox(book, sequence)
        self._turn = Turn()
        self._seen_before: dict[EntityRef, Any] = {}  # observations that came with the rows
        self._requests: set[str] = set()  # intents from the store that were taken
        self._conflicts = 0  # in a row
        self._refused = False  # the commit in flight was; it is taken back as soon as no code runs and no pause is on
        self._closed = self.ended  # or not ours: nothing is done any more
        self._wait_for(None)
        self._unbegun = True  # no plan of it is stored
        self._grouped = False
        self._queues = True
        self._reuse = None
        self._note = None
        self._plan_seconds = PLAN_SECONDS
        self._cast()

    def _cast(self) -> None:
        """Makes the parts that know only what follows from the rows."""
        book, outbox, turn = self._book, self._outbox, self._turn
        self._cancellation = Cancellation(book, self._cancel_kind)
        self._steps = StepTree(book, self._subject_names)
        self._plans = PlanRunner(book, outbox, self._steps, self._cancellation, turn)
        self._commands = CommandRunner(book, outbox, self._steps, self._cancellation, self._plans, turn)
        self._commands.reuse = self._reuse
        self._plans.commands = self._commands
        self._trying = False  # the root has been told to begin

    # --- for its owner -----------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Takes an event at `now` (Unix seconds) and says what is to be done, in order."""
        turn = self._turn
        turn.now = now
        turn.effects = effects = []
        if self._closed:
            self._answer_late(event)
        elif self._refused:
            self._hold(event)
        else:
            _TAKE[type(event)](self, event)
        turn.run()
        if self._waiting is not None and self._book.pending.ends_flow:
            self._book.pending.ends_wait = True
        if not self._closed:
            effects += self._outbox.hand_out(now, code_runs=bool(self._commands.thinking))
        return effects

    def let_go(self) -> None:
        """Parts what refers to each other, once nothing is to come any more; the rows stay readable.

        Otherwise the memory of a flow waits until Python searches for cycles, and everything stands still meanwhile:
        for 60 ms after a thousand flows.
        """
        self._commands.let_go()
        self._plans.let_go()

    @property
    def sequence(self) -> int:
        """Of the last commit that is durable."""
        return self._outbox.sequence

    def is_to_be_named(self, command_id: str) -> bool:
        """Tells whether a command shows as a job that has no names yet, but for ids."""
        job = self._job_of(command_id)
        return job is not None and (self._book.is_new(job) or not any(subject.name for subject in job.subjects))

    def name(
        self,
        description: str,
        subject_names: Mapping[EntityRef, str],
        command_id: str = "",
        categories: tuple[str, ...] = (),
    ) -> None:
        """Says what the job of a command (the root's, if none is named) is called and is about.

        This outlives the entities. A job that had to be stored before its names were known has them with the next
        commit; once it has them they stay. `categories` are for the job of a child.
        """
        command_id = command_id or self.root.command_id
        job = self._job_of(command_id)
        if job is None or job.status.ended or self._closed or not self.is_to_be_named(command_id):
            return
        subjects = tuple(Subject(e.entity_type, e.entity_id, name) for e, name in subject_names.items())
        description = self._commands.own_words(command_id) or description
        if not self._book.is_new(job):
            if (description, subjects) == (job.description, job.subjects):
                return
            self._book.rename(job)
        self._subject_names.update(subject_names)
        job.description, job.subjects, job.categories = description, subjects, categories or job.categories

    def _job_of(self, command_id: str) -> Job | None:
        """The job that shows a command; None if none does."""
        return self.job if command_id == self.root.command_id else self._commands.live(command_id).job

    def job_id_of(self, command: Command) -> str:
        """The job in which a command shows, or would."""
        if self.child_jobs:
            shown = {job.command_id: job.job_id for job in self.child_jobs.values()}
            above: Command | None = command
            while above is not None:
                if above.command_id in shown:
                    return shown[above.command_id]
                above = self._book.commands.get(above.parent_command_id)
        return self.job.job_id

    @property
    def child_jobs(self) -> Mapping[str, Job]:
        """The jobs of children that show as such, by id."""
        return self._book.child_jobs

    def waits_for(self) -> Iterable[EntityRef]:
        """The entities that open waits look at."""
        return self._plans.waits.entities()

    def command(self, command_id: str) -> Command:
        """The row of one of its commands."""
        return self._book.commands[command_id]

    def commands(self) -> Iterable[Command]:
        """The rows of its commands, each after the one that it is below."""
        return self._book.commands.values()

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """What entities were before its commands changed them, oldest change first."""
        return self._book.snapshots

    def planned_steps(self) -> list[Step]:
        """All steps, parents before children, by number."""
        return self._steps.in_order()

    @property
    def is_waiting(self) -> bool:
        """True while it waits before it begins."""
        return self._waiting is not None and not self._trying and not self._closed

    # --- the beginning -----------------------------------------------------------------------------------------------

    def _submitted(self, _: ev.Submitted) -> None:
        if self.job.deadline:
            self._turn.effects.append(ev.SetTimer("deadline", self.job.deadline))
        self._open()

    def _open(self) -> None:
        self._book.open()
        if self._note is not None:
            self._book.pending.events.append(self._note)
        if self._waiting is not None and not self._waiting.is_ready:
            self._wait(self._waiting)
            return
        self.job.status = Status.STARTED
        self._trying = True
        self._cancellation.begin()
        self._steps.add_own(VALIDATION, Status.STARTED)
        self._steps.add_own(EXECUTION)
        if not self._grouped:
            self._turn.effects.append(ev.SetTimer("slow plan", self._turn.now + self._plan_seconds))
        self._commands.begin(self._commands.root)

    def _recovered(self, _: ev.Recovered) -> None:
        if self.job.deadline:
            self._turn.effects.append(ev.SetTimer("deadline", self.job.deadline))
        self._take_up()
        if self._cancellation.wish is not None:
            self._plans.stop_all(self._cancellation.wish)
        for entity, observation in self._seen_before.items():
            self._seen(ev.EntitySeen(entity, observation))

    def _take_up(self) -> None:
        """Goes through the rows to where the flow stands."""
        self._plans.take_up()
        if self._waiting is not None and self._unbegun:
            self._wait_on(self._waiting)
            return
        self._turn.replay(self._commands.begin, self._commands.root)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self, waiting: Waiting) -> None:
        """A new flow is to wait before it begins."""
        self._cancellation.begin()
        self._steps.add_own(VALIDATION)
        self._steps.add_own(EXECUTION)
        self._book.pending.dependencies = tuple(waiting.dependencies.values())
        if waiting.dependencies:
            jobs = ", ".join(waiting.dependencies)
            self._book.pending.events.append(EventNote("JOB_WAITS", Severity.NORMAL, f"waits for job {jobs}"))
        self._outbox.urgent = True
        self._queue(waiting)
        self._turn.effects.append(ev.LookAfter())

    def _wait_on(self, waiting: Waiting) -> None:
        """A flow that is stored waits, as far as its rows say."""
        self._queue(waiting)
        if waiting.until:
            self._turn.effects.append(ev.SetTimer("locks", waiting.until))
        self._turn.effects.append(ev.LookAfter(at_once=not self._turn.silent))
        self._consider()

    def _queue(self, waiting: Waiting) -> None:
        """Takes its places in the queues for its locks, unless it has them."""
        if not waiting.barred or tuple(waiting.locks) in ((), waiting.queued):
            return
        self._book.pending.lock_waits = tuple(waiting.locks)
        self._book.pending.waits_until = waiting.until
        self._book.pending.events.append(EventNote("JOB_WAITS", Severity.NORMAL, f"queues: {waiting.barred_by}"))
        self._outbox.urgent = True
        self._turn.effects.append(ev.SetTimer("locks", waiting.until))

    def _woken(self, event: ev.Woken) -> None:
        if self._waiting is not None:
            self._waiting.learn(event.dependencies)
            if event.locks_free:
                self._waiting.hear_of_locks()
            self._consider()

    def _lock_wait_over(self) -> None:
        if self._waiting is not None:
            self._waiting.give_up()
            self._consider()

    def _consider(self) -> None:
        """Begins what waits if it may, ends it if it never will."""
        waiting = self._waiting
        if waiting is None or self._trying or self.job.status.ended or self.sequence == 0:
            return
        if (hindrance := waiting.hindrance()) is not None:
            self._trying = True
            self._book.pending.events.append(EventNote("JOB_SKIPPED", Severity.WARNING, hindrance.message))
            outcome = Outcome.SKIPPED if hindrance.reason == "SKIPPED" else Outcome.FAILED
            self._commands.refuse(self._commands.root, hindrance, outcome)
        elif waiting.is_ready:
            self._try(waiting)

    def _try(self, waiting: Waiting) -> None:
        self._trying = True
        waiting.try_now()
        self._book.pending.ends_wait = True
        if self.job.status is Status.PENDING:
            self._book.change_job().status = Status.STARTED
            self._cancellation.begin()
            self._steps.start(self._steps.own(VALIDATION))
        self._commands.begin(self._commands.root)

    def _is_to_queue(self, failure: Failure) -> bool:
        """Tells whether the flow queues for the lock for which its commit was refused."""
        if not self._unbegun or not self._queues:
            return False
        assert self._outbox.in_flight is not None
        keys = [key for notes in self._outbox.in_flight.mutations.notes.values() for key in notes.locks]
        wait = max((key.wait for key in keys if key.entity == entity_in(failure)), default=0.0)
        if not wait:
            return False
        self._waiting = self._waiting or Waiting()
        return self._waiting.bar(keys, wait, self._turn.now, failure.message)

    # --- what is heard -----------------------------------------------------------------------------------------------

    def _planned(self, event: ev.Planned) -> None:
        self._commands.planned(event)

    def _end_method_ran(self, event: ev.Ended) -> None:
        self._commands.end_method_ran(event)

    def _revised(self, event: ev.Revised) -> None:
        self._commands.revised(event)

    def _reported(self, event: ev.LeafReported) -> None:
        if self._plans.reported(event):
            self._outbox.told.append(event)

    def _stalled(self, event: ev.TaskStalled) -> None:
        if self._plans.stalled(event):
            self._outbox.told.append(event)

    def _seen(self, event: ev.EntitySeen) -> None:
        if self._plans.seen(event.entity, event.observation):
            self._outbox.told.append(event)

    def _timer_fired(self, event: ev.TimerFired) -> None:
        kind, _, name = event.key.partition(" ")
        match kind:
            case "slow":
                self._outbox.impatient = self.sequence == 0 and self._outbox.in_flight is None
            case "progress":
                self._outbox.progress_timer = False
                self._outbox.urgent = True
            case "retry":
                self._outbox.paused = False
            case "end":
                self._commands.end_again(name)
            case "deadline":
                self._deadline_passed(event)
            case "locks":
                self._lock_wait_over()
            case "leaf" if self._plans.deadline_passed(name):
                self._outbox.told.append(event)

    # --- cancel ------------------------------------------------------------------------------------------------------

    def _is_news(self, request_id: str) -> bool:
        """Tells whether an intent is to be dealt with; one from the store is marked as dealt with."""
        if request_id:
            if request_id in self._requests:
                return False  # the store said so twice
            self._requests.add(request_id)
            self._book.pending.handled_requests.append(request_id)
            self._outbox.urgent = True
        return True

    def _cancel_asked(self, event: ev.CancelAsked) -> None:
        if not self._is_news(event.request_id):
            return
        refusal = None
        if self._cancellation.wish is None:
            refusal = self._cancellation.refusal(self._commands.root)
            if refusal is None:
                by = f"{event.user}: {event.reason}" if event.reason else event.user
                self._grant(by, EventNote("JOB_CANCELED", Severity.WARNING, f"cancelled by {by}", user=event.user))
        self._outbox.acts.append(ev.AnswerCancel(event.token, refusal))
        self._outbox.told.append(event)

    def _priority_asked(self, event: ev.PriorityAsked) -> None:
        if not self._is_news(event.request_id):
            return
        refusal = None
        if self.job.status.ended:
            refusal = failures.job_ended(self.job.job_id, self.job.status)
        elif event.priority != self.job.priority:
            self._prioritise(event)
        self._outbox.acts.append(ev.AnswerCancel(event.token, refusal))
        self._outbox.told.append(event)

    def _prioritise(self, event: ev.PriorityAsked) -> None:
        message = f"priority {event.priority} instead of {self.job.priority}{_by(event)}"
        self._book.change_job().priority = event.priority
        self._book.pending.priority = True
        for child in self._book.child_jobs.values():
            if not child.status.ended:
                self._book.change_child_job(child)
                child.priority = event.priority
        self._book.pending.events.append(EventNote("JOB_PRIORITY_CHANGED", Severity.NORMAL, message, user=event.user))
        self._outbox.urgent = True
        if open_tasks := self._plans.open_tasks():
            self._outbox.acts.append(ev.Prioritise(open_tasks, event.priority))

    def _stop_asked(self, event: ev.StopAsked) -> None:
        if not self._is_news(event.request_id):
            return
        refusal = self._plans.refusal_to_stop(event.task_ids)
        if refusal is None and (stopped := self._plans.stop_tasks(event.task_ids)):
            message = f"{len(stopped)} tasks are to stop{_by(event)}: {', '.join(stopped[:10])}"
            self._book.pending.events.append(EventNote("TASKS_STOPPED", Severity.WARNING, message, user=event.user))
            self._outbox.urgent = True
        self._outbox.acts.append(ev.AnswerCancel(event.token, refusal))
        self._outbox.told.append(event)

    def _deadline_passed(self, event: ev.TimerFired) -> None:
        if self._cancellation.wish is None and self._cancellation.refusal(self._commands.root) is None:
            note = EventNote("JOB_DEADLINE_EXCEEDED", Severity.WARNING, "cancelled: the job's deadline passed")
            self._grant(failures.DEADLINE_WISH, note)
            self._outbox.told.append(event)

    def _grant(self, by: str, note: EventNote) -> None:
        wish = self._cancellation.grant(by)
        self._book.pending.events.append(note)
        self._outbox.urgent = True
        root = self._commands.root
        if root.root is None:
            self._commands.thinking.discard(root.row.command_id)
            self._commands.refuse(root, failures.stopped(wish.message), Outcome.ABORTED)
        else:
            self._plans.stop_all(wish)

    def _answer_late(self, event: ev.Event) -> None:
        """What is told of an ended flow, or of one that is not ours."""
        if not self.ended:
            return
        if isinstance(event, ev.CancelAsked | ev.PriorityAsked | ev.StopAsked):
            refusal = failures.job_ended(self.job.job_id, self.job.status)
            self._turn.effects.append(ev.AnswerCancel(event.token, refusal))
        elif isinstance(event, ev.Recovered):
            self._turn.effects.append(ev.Done())

    # --- commits: recorded -------------------------------------------------------------------------------------------

    def _recorded(self, event: ev.Recorded) -> None:
        parcel = self._outbox.recorded()
        self._conflicts = 0
        self._commands.verdicts.clear()
        self._date_job(parcel.mutations, event)
        if self._unbegun:
            self._note_beginning(parcel.mutations, event)
        if parcel.mutations.ends_flow:
            self.ended = self._closed = True
            self._turn.effects += self._outbox.acts  # who asked meanwhile is answered first
        self._turn.effects += parcel.acts
        for entity, observation in event.seen.items():
            self._seen(ev.EntitySeen(entity, observation))

    def _note_beginning(self, stored: Mutations, event: ev.Recorded) -> None:
        self._unbegun = self.root.command_id not in stored.sealed
        if self._waiting is not None:
            if stored.lock_waits:
                self._waiting.queued = stored.lock_waits
            self._waiting.learn(event.dependencies)
            self._consider()

    def _date_job(self, stored: Mutations, event: ev.Recorded) -> None:
        job = self.job
        for child in (*stored.new_child_jobs.values(), *stored.child_jobs.values()):
            child.revision, child.update_time = event.revision, event.time
        job.revision, job.update_time = event.revision, event.time
        if stored.new_job:
            job.create_time = event.time
        if not job.start_time and job.status is not Status.PENDING:
            job.start_time = event.time
        if stored.ends_flow:
            job.end_time = event.time

    # --- commits: refused --------------------------------------------------------------------------------------------

    def _record_refused(self, event: ev.RecordRefused) -> None:
        failure = event.failure
        if failure.reason in _NOT_OURS:
            self._closed = True
            self._turn.effects.append(ev.Abandon(failure))
        elif failure.reason == "CONFLICT":
            self._meet_conflict(failure)
        elif failure.reason == "LOCKED" and self._is_to_queue(failure):
            self._take_back_without([], failure)
        elif failure.reason == "GROUP_REFUSED":
            self._take_back_without([self.root.command_id], failures.group_refused(failure))
        elif failure.reason == "LOCKED" and (wanting := self._blamed(who_wanted, failure)):
            self._take_back_without(wanting, failure)
        elif self.sequence == 0:
            self._closed = True
            self._turn.effects += (ev.Refuse(failure), ev.Done())
        else:
            self._outbox.keep()
            self._pause(failure)

    def _meet_conflict(self, failure: Failure) -> None:
        self._conflicts += 1
        if self._conflicts <= CONFLICTS:
            self._take_back_without([], failure)
        elif planning := self._blamed(who_planned_on, failure):
            self._take_back_without(planning, failure)
        else:
            self._pause(failure)
            self._take_back_without([], failure)

    def _blamed(self, who: Callable[..., list[str]], failure: Failure) -> list[str]:
        assert self._outbox.in_flight is not None
        return who(failure, self._outbox.in_flight.mutations, self._commands, first=self._unbegun)

    def _pause(self, failure: Failure) -> None:
        self._turn.effects += (ev.Retry(failure), self._outbox.pause(self._turn.now))

    # --- commits: taken back -----------------------------------------------------------------------------------------

    def _take_back_without(self, command_ids: Iterable[str], failure: Failure) -> None:
        """Takes the refused commit back and lives on without these commands; at once, or when code has run to its end.

        Code that is running has read what is taken back, so its answer is waited for and not heard.
        """
        self._commands.verdicts.update((command_id, failure) for command_id in command_ids)
        self._refused = True
        self._live_again_if_quiet()

    def _hold(self, event: ev.Event) -> None:
        """What is told while a refused commit waits to be taken back."""
        match event:
            case ev.Planned() | ev.Ended() | ev.Revised():
                self._commands.thinking.discard(event.command_id)
            case ev.TimerFired(key="retry"):
                self._outbox.paused = False
            case ev.LeafReported(result="", lost=False):
                pass  # progress: there will be more
            case _:
                self._outbox.told.append(event)
        self._live_again_if_quiet()

    def _live_again_if_quiet(self) -> None:
        if not self._commands.thinking and not self._outbox.paused:
            self._refused = False
            self._live_again(self._outbox.take_back())

    def _live_again(self, told: list[ev.Event]) -> None:
        before, turn = self._commands, self._turn
        self._cast()
        self._commands.verdicts = before.verdicts
        self._commands.counts_every_end = before.counts_every_end
        self._requests -= {
            event.request_id for event in told if isinstance(event, ev.CancelAsked | ev.PriorityAsked | ev.StopAsked)
        }
        self._outbox.progress_timer = False
        if self.sequence == 0:
            self._open()
        else:
            turn.silent = True
            self._take_up()
            turn.silent = False
        for event in told:
            turn.run()
            _TAKE[type(event)](self, event)


def _by(event: ev.PriorityAsked | ev.StopAsked) -> str:
    return f" (by {event.user}: {event.reason})" if event.reason else f" (by {event.user})"


_TAKE: Final[dict[type[Any], Any]] = {
    ev.LeafReported: FlowTree._reported,
    ev.Recorded: FlowTree._recorded,
    ev.Planned: FlowTree._planned,
    ev.Ended: FlowTree._end_method_ran,
    ev.Revised: FlowTree._revised,
    ev.Submitted: FlowTree._submitted,
    ev.EntitySeen: FlowTree._seen,
    ev.TaskStalled: FlowTree._stalled,
    ev.TimerFired: FlowTree._timer_fired,
    ev.CancelAsked: FlowTree._cancel_asked,
    ev.PriorityAsked: FlowTree._priority_asked,
    ev.StopAsked: FlowTree._stop_asked,
    ev.Woken: FlowTree._woken,
    ev.RecordRefused: FlowTree._record_refused,
    ev.Recovered: FlowTree._recovered,
}
