"""Runs tasks: ten at once, the most urgent first, each to an end that is written down before it is told.

    start ─▶ intake ─▶ ledger: accepted ─▶ waiting, by priority ─▶ one of the places ──┐
    call ──▶ intake ─▶ ledger: accepted ─▶ at once ────────────────────────────────────┤
                                                                                       ▼ pursuit
        told to watchers and callers ◀─ ledger: over ◀─ recovery actions, if it failed ◀─ the verb

| what comes between | what becomes of it |
| --- | --- |
| the same start or call again | it meets the task that there is, or its end |
| … with another priority | a task that waits goes on waiting with that one |
| the caller leaves | what was begun is seen through |
| stop of a waiting task | it leaves the queue and is ended, however busy the places are |
| stop of a running task | written down, then its verb is cancelled where it waits |
| stop of a task whose verb is just done | nothing: the truth is that it is done |
| revert of a finished task | written down, then its recovery actions run |
| clear of a task that is not over | refused; of an unknown one: its id will not be started any more |
| the process dies | live tasks are read from the ledger and pursued again before the host serves |

A task has exactly one pursuer from the moment in which it is taken. It keeps its place while it works, and leaves it to
the next when it only waits for the disk: so a burst of short tasks shares a few fsyncs, and long ones stay few at once.
What was accepted is never forgotten before it is cleared, and nothing is told as over that the ledger does not have.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from chassis import errors, logs
from chassis.clock import Clock
from chassis.errors import WaybillError
from hostagent.crew import Crew
from hostagent.drivers.driver import Host, Verb
from hostagent.feed import Feed, Watcher
from hostagent.intake import Intake
from hostagent.ledger import FlowOwner, Ledger, LedgerRow
from hostagent.metrics import TaskTallies
from hostagent.observations import Observations
from hostagent.pursuit import Pursuit
from hostagent.record import Record, record_accepted, record_found
from hostagent.recorder import Recorder
from hostagent.task import IllegalMove, TaskSpec, TaskState

TaskWatcher = Watcher[str, Record]

_SWEEP_SECONDS: Final = 3600.0
_DAY: Final = 86_400.0

_WORDS: Final = {
    TaskState.RUNNING: "task started",
    TaskState.ABORTING: "task is being stopped",
    TaskState.CLEANING: "task is being taken back",
}

log = logs.get_logger(__name__)


class TaskRunner:
    """All tasks of a host: `async with TaskRunner(…) as runner`."""

    def __init__(
        self,
        *,
        verbs: Mapping[str, Verb],
        host: Host,
        ledger: Ledger,
        observations: Observations,
        clock: Clock,
        recorder: Recorder,
        workers: int = 10,
        queue: int = 500,
        cleared_days: float = 7.0,
    ) -> None:
        """`workers`: how many tasks work at once; `queue`: how many may wait, and how many calls may run."""
        self._verbs = verbs
        self._host = host
        self._ledger = ledger
        self._clock = clock
        self._recorder = recorder
        self._workers = workers
        self._queue = queue
        self._cleared_seconds = cleared_days * _DAY
        self._records: dict[str, Record] = {}
        self._queued: list[
            tuple[int, int, Record]
        ] = []  # a heap: the most urgent first, former places still among them
        self._arrivals = itertools.count()
        self._calls = 0
        self._feed: Feed[str, Record] = Feed()
        self._crew = Crew()
        self._intake = Intake(
            verbs=verbs,
            host=host,
            ledger=ledger,
            observations=observations,
            clock=clock,
            known=self._known,
            room=self._room,
            accepted=self._accepted,
            repeated=self._repeated,
        )
        self._pursuit = Pursuit(
            host=host,
            ledger=ledger,
            observations=observations,
            clock=clock,
            recorder=recorder,
            publish=self._publish,
            leave_place=self._leave_place,
            forget=self._forget,
        )
        self.waiting = 0
        """How many tasks wait for a place."""
        self.running = 0
        """How many tasks have one."""
        self.metrics = TaskTallies(
            records=self._records.values,
            running=lambda: self.running,
            waiting=lambda: self.waiting,
            calls=lambda: self._calls,
            places=workers,
            queue=queue,
            feed=self._feed,
        )

    async def __aenter__(self) -> Self:
        await self._recorder.take_up()
        await self._crew.__aenter__()
        for row in await self._ledger.live():
            self._take_up(row)
        self._host.forget_all_but(self._records)
        self._fill_places()
        self._crew.hire(self._feed.tell_the_rest(self._clock))
        self._crew.hire(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._crew.__aexit__(kind, error, trace)

    async def start(self, specs: Sequence[TaskSpec]) -> list[WaybillError | None]:
        """Accepts tasks; says of each why it was refused, if it was. Raises WaybillError if nothing can be written."""
        answers = await self._crew.see_through(self._intake.take(specs, is_call=False))
        return [self._refused(answer) if isinstance(answer, WaybillError) else None for answer in answers]

    async def call(self, spec: TaskSpec) -> Record:
        """Runs a short verb and returns its record once it is over. Raises WaybillError if it was not taken in."""
        (answer,) = await self._crew.see_through(self._intake.take((spec,), is_call=True))
        if isinstance(answer, WaybillError):
            raise self._refused(answer)
        record = self.record(spec.task_id)
        await record.over.wait()
        return record if record.task.is_over else self.record(spec.task_id)  # which raises: its host lost it

    async def stop(self, task_id: str, owner: FlowOwner) -> Record:
        """Asks a task to stop. Raises TASK_UNKNOWN, STALE_EPOCH."""
        record = self.record(task_id)
        await self._crew.see_through(self._stop(record, owner))
        return record

    async def revert(self, task_id: str, owner: FlowOwner) -> Record:
        """Takes back what a finished task did. Raises TASK_UNKNOWN, TASK_STATE, STALE_EPOCH."""
        record = self.record(task_id)
        await self._crew.see_through(self._revert(record, owner))
        return record

    async def clear(self, task_ids: Sequence[str]) -> list[WaybillError | None]:
        """Forgets tasks that are over; says of each why not, if not. An unknown id will not be started any more."""
        return await self._crew.see_through(self._clear(task_ids))

    def record(self, task_id: str) -> Record:
        """Returns a live task, or a call. Raises TASK_UNKNOWN."""
        record = self._records.get(task_id)
        if record is None:
            raise errors.not_found("TASK_UNKNOWN", f"this host knows no task {task_id}")
        return record

    def records(self) -> list[Record]:
        """Returns all live tasks and calls, in the order of their arrival."""
        return list(self._records.values())

    def find(self, task_ids: Iterable[str]) -> list[Record]:
        """Returns those of the named tasks and calls that are live."""
        return [record for task_id in task_ids if (record := self._records.get(task_id)) is not None]

    @contextmanager
    def watch(self) -> Iterator[TaskWatcher]:
        """Watches the tasks (not the calls) from now on."""
        with self._feed.watch() as watcher:
            yield watcher

    def close(self) -> None:
        """Ends the watches."""
        self._feed.close()

    # Taking in.

    def _take_up(self, row: LedgerRow) -> None:
        """Makes a task of a former process one of this."""
        record = self._records[row.spec.task_id] = record_found(row, self._verbs.get(row.spec.verb))
        if record.task.is_over:
            record.over.set()
            return
        self._enqueue(record)
        if record.task.state in (TaskState.ABORTING, TaskState.CLEANING):
            self._interrupt(record)

    def _known(self, task_id: str) -> LedgerRow | None:
        record = self._records.get(task_id)
        return None if record is None else record.row

    def _room(self, is_call: bool) -> int:
        return self._queue - (self._calls if is_call else self.waiting)

    def _accepted(self, row: LedgerRow) -> None:
        record = self._records[row.spec.task_id] = record_accepted(row, self._verbs[row.spec.verb])
        if row.is_call:
            record.taken = True
            self._calls += 1
            self._crew.hire(self._run_call(record))
        else:
            self._enqueue(record)
            self._fill_places()
        self._publish(record)

    def _refused(self, refusal: WaybillError) -> WaybillError:
        self.metrics.refusals.add(refusal.reason)
        return refusal

    def _enqueue(self, record: Record) -> None:
        self.waiting += 1
        heapq.heappush(self._queued, (-record.spec.priority, next(self._arrivals), record))

    async def _repeated(self, spec: TaskSpec) -> None:
        """Lets a task that waits go on waiting with the priority that its start was repeated with."""
        record = self._records.get(spec.task_id)
        if record is None or record.taken or record.spec.priority == spec.priority:
            return
        await self._ledger.prioritise(record.row, spec.priority)
        if not record.taken:  # its former place counts no more
            heapq.heappush(self._queued, (-record.spec.priority, next(self._arrivals), record))

    def _publish(self, record: Record) -> None:
        self._log(record)
        self._recorder.note(record)
        if record.task.is_over:
            self.metrics.ended(record)
        if not record.row.is_call and not record.silent:
            self._feed.tell(record.spec.task_id, record, at_leisure=not record.task.is_over)

    def _log(self, record: Record) -> None:
        """Writes a line for a new state; none for progress, and none for a start that comes with the acceptance."""
        state, ending = record.task.state, record.task.ending
        if state is record.logged:
            return
        record.logged = state
        if ending is not None:
            why = {} if ending.error is None else {"error": str(ending.error)}
            log.info("task ended", result=ending.result, **why, **record.names)
        elif state is TaskState.INIT:
            log.info("task accepted", waits=not record.taken, **record.names)
            record.logged = TaskState.RUNNING if record.taken else state
        else:
            log.info(_WORDS[state], **record.names)

    def _forget(self, record: Record) -> None:
        self._records.pop(record.spec.task_id, None)

    # Working.

    def _fill_places(self) -> None:
        while self.running < self._workers and self._queued:
            urgency, _, record = heapq.heappop(self._queued)
            if not record.taken and urgency == -record.spec.priority:  # else it was stopped, or has another place
                self._take(record)
                record.has_place = True
                self.running += 1
                self._crew.hire(self._run(record))

    def _take(self, record: Record) -> None:
        record.taken = True
        self.waiting -= 1

    async def _run(self, record: Record) -> None:
        await self._pursuit.to_its_end(record)
        self._leave_place(record)

    def _leave_place(self, record: Record) -> None:
        if record.has_place:
            record.has_place = False
            self.running -= 1
            self._fill_places()

    async def _run_call(self, record: Record) -> None:
        await self._pursuit.to_its_end(record)
        self._calls -= 1

    async def _stop(self, record: Record, owner: FlowOwner) -> None:
        await self._fence(owner)
        if not record.task.stop():
            return
        self._publish(record)
        try:
            await self._ledger.ask_stop(record.row)
        finally:
            self._interrupt(record)

    def _interrupt(self, record: Record) -> None:
        """Has a task that is to stop come to its end, without waiting for a place if it has none."""
        if record.worker is not None:
            record.worker.cancel()
        elif not record.taken:
            self._take(record)
            self._crew.hire(self._pursuit.to_its_end(record))

    async def _revert(self, record: Record, owner: FlowOwner) -> None:
        await self._fence(owner)
        try:
            if not record.task.revert():
                return
        except IllegalMove as error:
            raise errors.failed_precondition(error.code, str(error), state=record.task.state.value) from error
        record.over.clear()
        self._publish(record)
        try:
            await self._ledger.ask_revert(record.row)
        finally:
            self._crew.hire(self._pursuit.to_its_end(record))

    async def _fence(self, owner: FlowOwner) -> None:
        (stale,) = await self._ledger.fence((owner,), self._clock.now())
        if stale is not None:
            raise stale

    # Forgetting.

    async def _clear(self, task_ids: Sequence[str]) -> list[WaybillError | None]:
        answers = [self._why_not_clear(task_id) for task_id in task_ids]
        clearable = [task_id for task_id, refusal in zip(task_ids, answers, strict=True) if refusal is None]
        known = self.find(clearable)
        unknown = [task_id for task_id in clearable if task_id not in self._records]
        for record in known:
            self._forget(record)  # first, so that nobody begins anything with it meanwhile
        try:
            await self._ledger.clear([record.row for record in known], unknown, self._clock.now())
        except WaybillError:
            self._records.update((record.spec.task_id, record) for record in known)
            raise
        self._host.forget([record.spec.task_id for record in known])
        for record in known:
            log.info("task cleared", **record.names)
        return answers

    def _why_not_clear(self, task_id: str) -> WaybillError | None:
        record = self._records.get(task_id)
        state = record.task.state if record is not None else TaskState.INIT
        if state is TaskState.FINISHED or (record is None and not self._intake.is_coming(task_id)):
            return None
        return errors.failed_precondition("TASK_STATE", f"task {task_id} is {state}, not over", state=state.value)

    async def _sweep(self) -> None:
        """Forgets cleared ids when their days are over."""
        while True:
            try:
                while await self._ledger.sweep(self._clock.now() - self._cleared_seconds):
                    pass
            except WaybillError as error:
                log.warning("cannot sweep the ledger", error=error.message)
            await self._clock.sleep(_SWEEP_SECONDS)
