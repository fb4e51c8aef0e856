"""One flow at work: a mailbox in front of a FlowTree, and the hands that do what the tree asks for.

    post(event) ─▶ mailbox ─▶ tree.handle(event) ─▶ effects ─▶ perform: journal, hosts, timers, the commands' code
         ▲                                                         │
         └────────── what came of it, as events ◀──────────────────┘

The tree is never entered twice at once: an event that arrives while one is being handled waits in the mailbox, so no
lock is needed. What takes time (the commands' code, commits) runs in tasks that the engine owns and comes back as an
event. An error in here is a defect: the actor is dropped and the flow is loaded anew from its rows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc

from chassis import logs
from chassis.errors import WaybillError, unavailable
from chassis.tracing import under_call
from coordinator import wire
from coordinator.commands.base import Command, CommandType
from coordinator.doorbell import Room
from coordinator.engine.chronicle import Chronicle
from coordinator.engine.groups import Group
from coordinator.engine.inlining import inlined
from coordinator.engine.storable import check_notes, check_plan
from coordinator.flow import events as ev
from coordinator.flow.attempts import FailedAttempt
from coordinator.flow.tree import INTERNAL, FlowTree
from coordinator.plan import Cleanup, EntityRef, Inlined, Plan
from coordinator.retries import Backoff
from coordinator.rows import Command as CommandRow
from coordinator.rows import Failure, Leaf
from coordinator.world import Reading, World
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2

if TYPE_CHECKING:
    from coordinator.engine.engine import Engine

log = logs.get_logger(__name__)

CODE_AT_ONCE: Final = 64
"""Commands of a flow whose code runs at a time, and in a turn of the loop: a flow may have thousands."""


class Actor:
    """One flow. `dropped` once it must do nothing any more."""

    def __init__(self, engine: Engine, tree: FlowTree) -> None:
        self.tree = tree
        self.dropped = False
        self.answer: asyncio.Future[jobs_pb2.Job] | None = None  # None unless a submitter waits
        self.group: Group | None = None  # with whom its first commit is made; None: alone
        self.commit_in_flight: asyncio.Future[jobstore_pb2.FlowCommitResult] | None = None
        self._engine = engine
        self._mailbox: deque[ev.Event] = deque()
        self._handling = False
        self._reading = Reading(engine.read_entities)
        self._live: dict[str, Command] = {}
        self._room = Room(CODE_AT_ONCE)
        self._cancels: dict[int, asyncio.Future[jobs_pb2.Job]] = {}  # and other wishes
        self._wishes = 0
        self._timers: dict[str, float] = {}  # the latest moment of each key: an older one fires for nothing
        self._waits: frozenset[EntityRef] = frozenset()
        self.chronicle = Chronicle(engine.tracing, engine.deliveries, engine.metrics, tree)

    @property
    def flow_command_id(self) -> str:
        """The flow's name."""
        return self.tree.root.command_id

    # --- in ----------------------------------------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Takes an event and handles it, and all that it leads to at once."""
        self._mailbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._mailbox and not self.dropped:
                for effect in self.tree.handle(self._mailbox.popleft(), self._engine.clock.now()):
                    self._perform(effect)
            self._note_waits()
        except Exception as error:  # noqa: BLE001 - a defect of ours must not stop the other flows
            self._engine.crashed(self, error)
        finally:
            self._handling = False

    def cancel(self, user: str, reason: str) -> asyncio.Future[jobs_pb2.Job]:
        """Asks the flow to stop; the future has the job as it is once the wish is taken, or the refusal."""
        return self._ask(lambda token: ev.CancelAsked(token, user, reason))

    def set_priority(self, priority: int, user: str, reason: str) -> asyncio.Future[jobs_pb2.Job]:
        """Asks for another priority; as `cancel`."""
        return self._ask(lambda token: ev.PriorityAsked(token, priority, user, reason))

    def stop_tasks(self, task_ids: Sequence[str], user: str, reason: str) -> asyncio.Future[jobs_pb2.Job]:
        """Asks that tasks be stopped, all if none is named; as `cancel`."""
        return self._ask(lambda token: ev.StopAsked(token, tuple(task_ids), user, reason))

    def _ask(self, wish: Callable[[int], ev.Event]) -> asyncio.Future[jobs_pb2.Job]:
        answer: asyncio.Future[jobs_pb2.Job] = asyncio.get_running_loop().create_future()
        self._wishes += 1
        self._cancels[self._wishes] = answer
        self.post(wish(self._wishes))
        return answer

    @property
    def is_waiting(self) -> bool:
        """True while the flow waits before it begins."""
        return self.tree.is_waiting

    def job(self, *, steps: bool = False) -> jobs_pb2.Job:
        """The job as it is."""
        return wire.job_message(self.tree.job, self.flow_command_id, self.tree.planned_steps() if steps else ())

    def drop(self, why: WaybillError) -> None:
        """Does nothing any more; whoever waits is told why, in words that are for callers."""
        self.dropped = True
        for waiting in (self.answer, *self._cancels.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(_for_callers(why))
        self._cancels.clear()
        if self.group is not None:
            self.group.leave(why)

    def _note_waits(self) -> None:
        waits = frozenset(self.tree.waits_for())
        if waits != self._waits:
            self._engine.waits_changed(self, self._waits, waits)
            self._waits = waits

    # --- out ---------------------------------------------------------------------------------------------------------

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Commit():
                self._write_down(effect)
            case ev.Start():
                leaf = effect.leaf
                self._engine.hosts.start(leaf.host_id, self._spec(leaf), leaf.deadline or None, leaf.stall_seconds)
                self._engine.expect(leaf.task_id, self)
            case ev.CallHost():
                self._engine.hosts.call(effect.leaf.host_id, self._spec(effect.leaf), effect.leaf.deadline or None)
                self._engine.expect(effect.leaf.task_id, self)
            case ev.RunPlan():
                self._engine.background.start(self._plan(effect.command_id), "plan")
            case ev.RunEnd():
                self._end(effect)
            case ev.RunAfterFailure():
                self._revise(effect)
            case ev.Answer():
                self._answer(self.job())
            case ev.SetTimer():
                self._set_timer(effect)
            case ev.Prioritise():
                self._engine.hosts.prioritise([leaf.task_id for leaf in effect.leaves], effect.priority)
            case ev.Clear():
                self._clear(effect.leaves)
            case ev.Stop():
                job = self.tree.job
                leaf = effect.leaf
                self._engine.hosts.stop(
                    leaf.host_id, leaf.task_id, self.flow_command_id, self.tree.epoch, job.correlation_id
                )
            case ev.AnswerCancel():
                self._answer_cancel(effect)
            case ev.Refuse():
                self._refuse(effect.failure)
            case ev.LookAfter():
                self._engine.waiters.add(self, at_once=effect.at_once)
            case ev.Retry():
                log.error("the store refuses a commit", job_id=self.tree.job.job_id, reason=effect.failure.message)
            case ev.Abandon():
                self._engine.abandoned(self, wire.error_from(effect.failure))
            case ev.Done():
                self._engine.done(self)

    def _answer(self, job: jobs_pb2.Job) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(job)

    def _refuse(self, failure: Failure) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(wire.error_from(failure))

    def _answer_cancel(self, effect: ev.AnswerCancel) -> None:
        answer = self._cancels.pop(effect.token, None)
        if answer is None or answer.done():
            return
        if effect.failure is None:
            answer.set_result(self.job())
        else:
            answer.set_exception(wire.error_from(effect.failure))

    def _set_timer(self, effect: ev.SetTimer) -> None:
        key, at = effect.key, effect.at
        self._timers[key] = at

        def fire() -> None:
            if not self.dropped and self._timers.get(key) == at:
                del self._timers[key]
                self.post(ev.TimerFired(key))

        self._engine.timers.at(at, fire)

    def _clear(self, leaves: tuple[Leaf, ...]) -> None:
        by_host: dict[str, list[str]] = {}
        for leaf in leaves:
            by_host.setdefault(leaf.host_id, []).append(leaf.task_id)
        for host_id, task_ids in by_host.items():
            self._engine.hosts.clear(host_id, task_ids)

    def _spec(self, leaf: Leaf) -> hostagent_pb2.TaskSpec:
        job = self.tree.job
        spec = hostagent_pb2.TaskSpec(
            task_id=leaf.task_id,
            verb=leaf.verb,
            arguments=wire.struct(leaf.arguments),
            flow_command_id=self.flow_command_id,
            epoch=self.tree.epoch,
            incarnation=leaf.incarnation,
            priority=job.priority,
            correlation_id=job.correlation_id,
            traceparent=self.tree.command(leaf.command_id).own_traceparent,
            job_id=job.job_id,
            command_id=leaf.command_id,
            span_id=leaf.span_id,
        )
        if leaf.expected_generation is not None:
            spec.expected_generation = leaf.expected_generation
        return spec

    # --- commits -----------------------------------------------------------------------------------------------------

    def _write_down(self, effect: ev.Commit) -> None:
        for leaf in effect.mutations.new_leaves.values():
            leaf.incarnation = leaf.incarnation or self._engine.hosts.incarnation_of(leaf.host_id)
        message = wire.commit_message(self.tree, effect.mutations, effect.sequence, self._engine.ids.new)
        self._reading = Reading(self._engine.read_entities)
        self.chronicle.written(effect.mutations)
        together = self.group is not None and effect.sequence == 1
        commit = self.group.offer(message) if self.group and together else self._engine.journal.commit(message)
        self.commit_in_flight = commit
        commit.add_done_callback(self._committed)

    def _committed(self, commit: asyncio.Future[jobstore_pb2.FlowCommitResult]) -> None:
        try:
            result = commit.result()
        except WaybillError as error:  # the lease is lost, or we are going down: the flow is not ours any more
            self._engine.abandoned(self, error)
            return
        try:
            self._heard(result)
        except Exception as error:  # noqa: BLE001 - as in `post`: a flow that nobody drives on would look alive
            self._engine.crashed(self, error)

    def _heard(self, result: jobstore_pb2.FlowCommitResult) -> None:
        """What became of a commit."""
        if result.HasField("existing_job"):
            self._answer(result.existing_job)
            self._engine.done(self)
        elif result.HasField("error"):
            self._reading = Reading(self._engine.read_entities)
            self.chronicle.refused()
            self.post(ev.RecordRefused(wire.failure_from(result.error)))
        else:
            seen = {
                EntityRef(wire.ENTITY_NAMES[entity.entity_type], entity.entity_id): wire.observation_from(
                    entity.observed
                )
                for entity in result.entities
            }
            time = wire.seconds_of(result.time)
            self._tell(result.revision, time)
            self.post(ev.Recorded(result.revision, time, seen, wire.dependencies_from(result.dependencies)))

    def _tell(self, revision: int, time: float) -> None:
        try:
            self._engine.announce_later(self, self.chronicle.recorded(revision, time))
        except Exception:  # a defect of the record must not stop the work, which is stored already
            log.exception("a commit is not told of", job_id=self.tree.job.job_id, revision=revision)

    # --- the commands' code ------------------------------------------------------------------------------------------

    def _type(self, row: CommandRow) -> CommandType:
        found = self._engine.registry.get(row.command_type)
        if found is None:
            message = f"command type {row.command_type} is not registered here any more; its row is kept"
            raise WaybillError(grpc.StatusCode.FAILED_PRECONDITION, "COMMAND_TYPE_GONE", message)
        return found

    def _command(self, row: CommandRow) -> Command:
        """The live command of a row; made of its stored parameters once."""
        command = self._live.get(row.command_id)
        if command is None:
            command = self._type(row).read(row.parameters_version, row.parameters)
            self._live[row.command_id] = command
        return command

    def keep(self, command_id: str, command: Command) -> None:
        """Spares reading the parameters again that were just checked."""
        self._live[command_id] = command

    def _world(self, *, guard_reads: bool) -> World:
        return World(self._reading, self._engine.known_hosts, guard_reads=guard_reads, places=self._engine.directory)

    async def _plan(self, command_id: str) -> None:
        row = self.tree.command(command_id)
        async with self._room:
            with self._named(row), self.chronicle.under(row):
                planned = await self._store_willing(lambda: self._plan_once(row))
        if planned is not None:
            self.post(planned)

    async def _plan_once(self, row: CommandRow) -> ev.Planned:
        world, executing = self._world(guard_reads=True), False
        try:
            command = self._command(row)
            try:
                await command.validate(world)
                executing = True
                plan = await command.execute(world)
            finally:
                self._name_job(row, command, world)
            world.notes.locks = [*command.locks(), *world.notes.locks]
            plan = await self._inlined(row, plan, world)
            check_plan(plan)
            check_notes(world.notes)
        except WaybillError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                raise
            return ev.Planned(row.command_id, failure=wire.failure_of(error), executing=executing)
        except BaseException as error:  # a command's own defect is that command's failure, whatever it raises
            if _ends_us(error):
                raise
            log.exception("a command raised", command_type=row.command_type)
            return ev.Planned(row.command_id, failure=_raised(row, error), executing=executing)
        return ev.Planned(row.command_id, plan, world.notes)

    async def rehearse(self, command_id: str) -> ev.Planned:
        """Plans a command without telling the tree: for `validate_only`."""
        with under_call():  # it is no command, and has no span
            return await self._plan_once(self.tree.command(command_id))

    def _name_job(self, row: CommandRow, command: Command, world: World) -> None:
        """Description and subject names are what they are when the job is made; they outlive the entities."""
        if self.tree.is_to_be_named(row.command_id):
            names = {ref: world.name_of(ref) for ref in command.subjects()}
            words = command.type_.describe(command, world.name_of)
            self.tree.name(words, names, row.command_id, command.type_.categories)

    def _end(self, effect: ev.RunEnd) -> None:
        row = self.tree.command(effect.command_id)
        kind = self._engine.registry.get(row.command_type)
        if kind is not None and effect.succeeded and kind.ends_plainly and not effect.parts:
            self.post(ev.Ended(row.command_id))
        elif not effect.succeeded and (kind is None or kind.compensates) and not effect.parts:
            self.post(ev.Ended(row.command_id, compensate=True))
        else:
            self._engine.background.start(self._run_end(row, effect), "end")

    async def _run_end(self, row: CommandRow, effect: ev.RunEnd) -> None:
        async with self._room:
            with self._named(row), self.chronicle.under(row):
                ended = await self._store_willing(lambda: self._end_once(row, effect))
        if ended is not None:
            self.post(ended)

    async def _end_once(self, row: CommandRow, effect: ev.RunEnd) -> ev.Ended:
        world = self._world(guard_reads=False)
        try:
            for part, succeeded in effect.parts:
                await _end(self._part(part), world, succeeded=succeeded)
            command = self._command(row)
            await _end(command, world, succeeded=effect.succeeded)
            check_notes(world.notes)
        except WaybillError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                raise
            return ev.Ended(row.command_id, failure=wire.failure_of(error))
        except BaseException as error:
            if _ends_us(error):
                raise
            log.exception("an end method raised", command_type=row.command_type, attempt=row.end_attempts + 1)
            return ev.Ended(row.command_id, failure=_raised(row, error))
        compensate = not effect.succeeded and command.type_.compensates
        return ev.Ended(row.command_id, world.notes, compensate=compensate)

    def _part(self, part: Inlined) -> Command:
        return self._engine.registry.find(part.command_type).read(part.parameters_version, part.parameters)

    def _revise(self, effect: ev.RunAfterFailure) -> None:
        row = self.tree.command(effect.command_id)
        kind = self._engine.registry.get(row.command_type)
        if kind is None or kind.takes_failures:
            self.post(ev.Revised(row.command_id))
        else:
            self._engine.background.start(self._run_after_failure(row, effect.failed), "after failure")

    async def _run_after_failure(self, row: CommandRow, failed: FailedAttempt) -> None:
        async with self._room:
            with self._named(row), self.chronicle.under(row):
                revised = await self._store_willing(lambda: self._revise_once(row, failed))
        if revised is not None:
            self.post(revised)

    async def _revise_once(self, row: CommandRow, failed: FailedAttempt) -> ev.Revised:
        world = self._world(guard_reads=False)
        try:
            attempt = await self._command(row).after_failure(world, failed)
            if attempt is None:
                return ev.Revised(row.command_id)
            plan = await self._inlined(row, attempt.plan, world)
            check_plan(plan)
            check_notes(world.notes)
        except WaybillError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                raise
            return ev.Revised(row.command_id, failure=wire.failure_of(error))
        except BaseException as error:
            if _ends_us(error):
                raise
            log.exception("after_failure raised", command_type=row.command_type)
            return ev.Revised(row.command_id, failure=_raised(row, error))
        return ev.Revised(row.command_id, plan, isinstance(attempt, Cleanup), world.notes)

    async def _inlined(self, row: CommandRow, plan: Plan, world: World) -> Plan:
        """The plan of a flow that is coordinated by entity, with its children's in it; another as it is."""
        if row is not self.tree.root or not self._type(row).by_entity:
            return plan
        return await inlined(plan, world, self._part)

    async def _store_willing(self, run: Any) -> Any:
        """Runs a command's code again while the store cannot be read; a flow that nobody knows of is refused instead.

        Returns None when the actor was dropped or the flow refused meanwhile.
        """
        pauses = Backoff(self._engine.rng)
        while not self.dropped:
            try:
                return await run()
            except WaybillError as error:
                if self.tree.sequence == 0 and self.answer is not None:
                    self._engine.abandoned(self, error)
                    return None
                log.warning("the store cannot be read", reason=error.message)
            await self._engine.clock.sleep(pauses.next())
        return None

    def _named(self, row: CommandRow) -> logs.bound:
        """While a command's code runs, its ids are on what it logs."""
        job = self.tree.job
        return logs.bound(correlation_id=job.correlation_id, job_id=job.job_id, command_id=row.command_id)


async def _end(command: Command, world: World, *, succeeded: bool) -> None:
    await (command.end_successfully(world) if succeeded else command.end_with_failure(world))


def _for_callers(why: WaybillError) -> WaybillError:
    """That the flow (or all of them) is another coordinator's is between us; to callers it is a reason to ask again."""
    if why.reason in ("LEASE_LOST", "STALE_EPOCH", "SEQUENCE_MISMATCH"):
        return unavailable("this coordinator has lost the flow; ask again, another one goes on", reason="SHUTTING_DOWN")
    return why


def _ends_us(error: BaseException) -> bool:
    """Tells our own cancellation from one that a command's code came by otherwise."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _raised(row: CommandRow, error: BaseException) -> Failure:
    message = wire.legible(f"{row.command_type} raised {type(error).__name__}: {error}")
    return Failure(INTERNAL, "COMMAND_RAISED", message, {"exception": type(error).__name__})
