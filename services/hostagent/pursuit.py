"""Takes a task from wherever it is to its end.

Which way it goes depends on its state only, so the tasks of a former process go the same way as those of this one:

| state | what is done |
| --- | --- |
| INIT | run the verb |
| UNKNOWN: begun by a process that died | as the verb declares: roll back; or probe, then run it, roll back or be done |
| ABORTING, CLEANING | run the recovery actions, last in first out; the first that fails ends it CLEAN_FAILURE |

The end is written down before it is told. If the ledger cannot be written then, the task is not over, and it is tried
again until it can: what happened cannot be made not to have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import grpc

from chassis import errors, logs
from chassis.clock import Clock
from chassis.errors import WaybillError
from hostagent.drivers.driver import Forgotten, Host, Probed, Recovery, Verb
from hostagent.ledger import Ledger, RecoveryAction
from hostagent.observations import Observations
from hostagent.record import Record
from hostagent.recorder import Recorder
from hostagent.task import Ending, Json, TaskResult, TaskState

T = TypeVar("T")

_RETRY_SECONDS: Final = 1.0

log = logs.get_logger(__name__)


class _Stopped(Exception):  # noqa: N818
    """The driver's part was cancelled because the task was stopped."""


class Pursuit:
    """What workers do with tasks."""

    def __init__(
        self,
        *,
        host: Host,
        ledger: Ledger,
        observations: Observations,
        clock: Clock,
        recorder: Recorder,
        publish: Callable[[Record], None],
        leave_place: Callable[[Record], None],
        forget: Callable[[Record], None],
    ) -> None:
        """`publish` tells watchers of a new state; `leave_place` lets another task work while this one only waits for
        the disk; `forget` drops a task that its host has lost."""
        self._host = host
        self._ledger = ledger
        self._observations = observations
        self._clock = clock
        self._recorder = recorder
        self._publish = publish
        self._leave_place = leave_place
        self._forget = forget

    async def to_its_end(self, record: Record) -> None:
        """Pursues a task; nobody else may."""
        with logs.bound(**record.names):  # the call that brought it, and names others too, is not what it is about
            try:
                ending = await self._ending(record)
            except Forgotten:
                await self._lose(record)
            else:
                await self._end(record, ending)

    async def _ending(self, record: Record) -> Ending:
        if record.task.state is TaskState.ABORTING:
            return await self._take_back(record, _aborted())
        if record.task.state is TaskState.CLEANING:  # it was over: somebody reverts it
            return await self._take_back(record, _reverted())
        if record.verb is None:
            return Ending(TaskResult.CLEAN_FAILURE, _verb_gone(record.spec.verb))
        if record.task.state is TaskState.UNKNOWN:
            return await self._find_out(record, record.verb)
        return await self._run(record, record.verb)

    async def _run(self, record: Record, verb: Verb) -> Ending:
        record.task.begin()
        self._publish(record)
        try:
            return Ending(TaskResult.SUCCESS, answer=await self._interruptibly(record, self._perform(record, verb)))
        except _Stopped:
            return await self._take_back(record, _aborted())
        except WaybillError as error:
            return await self._take_back(record, error)

    async def _perform(self, record: Record, verb: Verb) -> Json:
        if verb.recovery is not Recovery.RESUME and not record.row.started:
            await self._ledger.start(record.row)
        return await self._host.perform(verb, _Work(self, record), record.spec.arguments)

    async def _find_out(self, record: Record, verb: Verb) -> Ending:
        """Decides on a task that a former process had begun and whose verb does not simply run again."""
        if verb.recovery is Recovery.ROLL_BACK:
            return await self._take_back(record, _interrupted("it was rolled back"))
        probe = self._host.probe(verb, _Work(self, record), record.spec.arguments)
        try:
            finding = await self._interruptibly(record, probe)
        except _Stopped:
            return await self._take_back(record, _aborted())
        except WaybillError as error:
            return await self._take_back(record, error)
        if finding.probed is Probed.DONE:
            return Ending(TaskResult.SUCCESS, answer=finding.answer)
        if finding.probed is Probed.NOT_DONE:
            return await self._run(record, verb)
        return await self._take_back(record, _interrupted("nobody can tell what it did"))

    async def _interruptibly(self, record: Record, work: Awaitable[T]) -> T:
        """Does the driver's part. Raises _Stopped if a stop interrupts it, WaybillError if it fails."""
        worker = record.worker = asyncio.current_task()
        assert worker is not None
        try:
            return await work
        except asyncio.CancelledError:
            # A stop cancels only who is in here, so its cancellation arrives here and is used up. Any further one is
            # the agent's own end.
            if record.task.state is not TaskState.ABORTING or worker.uncancel() > 0:
                raise
            raise _Stopped from None
        except (WaybillError, Forgotten):
            raise
        except Exception as error:
            log.exception("verb raised")
            raise errors.internal(f"{record.spec.verb} raised {type(error).__name__}") from error
        finally:
            record.worker = None

    async def _take_back(self, record: Record, why: WaybillError) -> Ending:
        """Runs the recovery actions, last in first out."""
        actions = record.row.recovery_actions
        if actions and record.task.state is not TaskState.CLEANING:
            record.task.clean()
            self._publish(record)
        work = _Work(self, record)
        while actions:
            try:
                await self._host.recover(actions[-1].action, work, actions[-1].arguments)
            except Exception as failure:  # noqa: BLE001 - whatever it is, the object is in doubt
                # The rest stays undone: each action assumes that those registered after it have run.
                log.warning("recovery action failed", action=actions[-1].action, error=str(failure))
                return Ending(TaskResult.CLEAN_FAILURE, _not_taken_back(why, actions[-1], failure))
            await self._write(record, lambda: self._ledger.drop_recovery_action(record.row))
        return Ending(TaskResult.CLEAN_SUCCESS, why)

    async def _end(self, record: Record, ending: Ending) -> None:
        if record.row.is_call:
            await self._observations.durable(record.row.observation_number)
        progress = 100 if ending.result is TaskResult.SUCCESS else record.task.progress
        end_time = self._clock.now()
        span = self._recorder.span_of(record, ending, end_time)
        kept = await self._write(
            record,
            lambda: self._ledger.finish(record.row, ending, progress=progress, end_time=end_time, span=span),
        )
        record.task.finish(ending)
        record.over.set()
        self._publish(record)
        if kept is not None:
            self._recorder.deliver(record.row.number, kept)

    async def _lose(self, record: Record) -> None:
        await self._write(record, lambda: self._ledger.lose(record.row))
        self._forget(record)
        record.over.set()
        log.warning("task is lost")

    async def _write(self, record: Record, write: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await write()
            except WaybillError as error:
                log.error("cannot write down what became of a task", error=error.message)
                await self._clock.sleep(_RETRY_SECONDS)

    # What a verb may ask while it runs.

    async def advance(self, record: Record, percent: int) -> None:
        """Reports how far a task has come."""
        if percent > record.task.progress and not record.task.is_over:
            await self._ledger.advance(record.row, min(percent, 100))
            if record.task.advance(percent):
                self._publish(record)

    async def register_recovery(self, record: Record, recovery: RecoveryAction) -> None:
        """Registers a recovery action, unless a former process did."""
        if recovery not in record.row.recovery_actions:
            await self._ledger.add_recovery_action(record.row, recovery)

    def begin_effect(self, record: Record) -> None:
        """The effect comes: it is not interrupted, and only what is seen from now on can show it."""
        record.worker = None
        if not record.resumed:  # else a former process may have had the effect, after what was noted then
            record.row.observation_number = self._observations.newest
        self._leave_place(record)


class _Work:
    """A task as its verb sees it."""

    __slots__ = ("_pursuit", "_record")

    def __init__(self, pursuit: Pursuit, record: Record) -> None:
        self._pursuit = pursuit
        self._record = record

    @property
    def task_id(self) -> str:
        return self._record.spec.task_id

    @property
    def names(self) -> Mapping[str, str]:
        return self._record.names

    @property
    def expected_generation(self) -> int | None:
        return self._record.spec.expected_generation

    @property
    def progress(self) -> int:
        return self._record.task.progress

    async def advance(self, percent: int) -> None:
        await self._pursuit.advance(self._record, percent)

    async def recover_by(self, action: str, **arguments: Json) -> None:
        await self._pursuit.register_recovery(self._record, RecoveryAction(action, arguments))

    def begin_effect(self) -> None:
        self._pursuit.begin_effect(self._record)

    def silence(self) -> None:
        self._record.silent = True


def _aborted() -> WaybillError:
    return errors.aborted("ABORTED", "stopped on request")


def _reverted() -> WaybillError:
    return errors.aborted("ABORTED", "taken back on request")


def _interrupted(what: str) -> WaybillError:
    return errors.aborted("TASK_FAILED", f"the host's agent died while it worked on this; {what}")


def _verb_gone(name: str) -> WaybillError:
    return WaybillError(grpc.StatusCode.UNIMPLEMENTED, "VERB_UNKNOWN", f"the host's driver has no verb {name} any more")


def _not_taken_back(why: WaybillError, action: RecoveryAction, failure: Exception) -> WaybillError:
    """Adds to the error of a task that it was not rolled back, and why."""
    in_doubt = {
        **{name: str(value) for name, value in action.arguments.items()},
        "result": TaskResult.CLEAN_FAILURE.value,
        "recovery_action": action.action,
        "recovery_error": str(failure),
    }
    return WaybillError(
        why.code, why.reason, why.message, metadata={**why.metadata, **in_doubt}, violations=why.violations
    )
