"""The engine: all flows that this coordinator owns, and the world around them.

    submissions ─┐                    ┌─▶ Journal (what is decided)
    cancels ─────┤                    ├─▶ Hosts   (what is to be done)
    task reports ┼─▶ Actor per flow ──┤
    observations ┤   (`actor.py`)     └─▶ Timers
    claimed rows ┘

It finds the flow that a word from outside is for, and nothing else: what it means is the tree's to decide
(`flow/tree.py`). Its maps (flow, job, task, awaited entity → actor) hold live flows alone; everything durable is in the
jobstore, so losing all of this loses nothing.

| when | answer |
| --- | --- |
| a report for a task of no flow here | ignored: the flow has ended, or another coordinator owns it |
| an actor has a defect | it is dropped, said loudly, and its flow is loaded anew from its rows, with growing pauses |
| STALE_EPOCH | its actor stops, nothing else is done about the flow |
| thousands are submitted at once | a batch is planned and stored, the rest wait: no turn of the loop outlasts a lease |
| the lease is lost, or the process goes down | all actors stop; whoever waits for an answer gets UNAVAILABLE |
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chassis import logs
from chassis.background import Background
from chassis.clock import Clock, Ids
from chassis.errors import WaybillError, failed_precondition, internal, unavailable
from chassis.tracing import Tracing, no_tracing, parent_of_work
from coordinator import wire
from coordinator.commands.base import Command, Registry
from coordinator.deliveries import Deliveries
from coordinator.engine.actor import Actor
from coordinator.engine.chronicle import ANNOUNCE_SECONDS, Chronicle
from coordinator.engine.directory import Directory
from coordinator.engine.forcedend import forced_end, has_ended, job_ended, tasks_by_host
from coordinator.engine.groups import Group
from coordinator.engine.rehearsal import Rehearsal
from coordinator.engine.timers import Timers
from coordinator.engine.waiters import Waiters
from coordinator.flow import events as ev
from coordinator.flow.nodes import span_id_of
from coordinator.flow.reuse import Reuse
from coordinator.flow.tree import PLAN_SECONDS, FlowTree
from coordinator.hosts.hosts import Hosts
from coordinator.hosts.taskbook import TaskReport
from coordinator.journal.journal import Journal
from coordinator.metrics import FlowTallies
from coordinator.plan import EntityRef
from coordinator.retries import Backoff
from coordinator.rows import Cancel, Dependency, EventNote, Job, Severity, Subject
from coordinator.rows import Command as CommandRow
from coordinator.world import Entity
from waybill.v1 import jobs_pb2, jobstore_pb2
from waybill_spans import format_traceparent

log = logs.get_logger(__name__)

STRAGGLER_SECONDS: Final = 5.0
"""After the forced end of a flow its tasks are cleared once more."""
MOST_EARLY: Final = 1000
"""Flows that intents are kept for that came too early."""
MOST_UNANSWERED: Final = 256
"""Submissions that are being planned and stored at a time: a full batch of the journal's."""


class Engine:
    """See the module. Its parts are for its actors."""

    def __init__(
        self,
        journal: Journal,
        hosts: Hosts,
        registry: Registry,
        background: Background,
        clock: Clock,
        ids: Ids,
        rng: random.Random,
        *,
        tracing: Tracing | None = None,
        directory: Directory | None = None,
        most_unanswered: int = MOST_UNANSWERED,
        plan_seconds: float = PLAN_SECONDS,
    ) -> None:
        """`most_unanswered`: requests at once. `plan_seconds`: after which one is answered without a plan."""
        self.journal = journal
        self.hosts = hosts
        self.registry = registry
        self.background = background
        self.clock = clock
        self.ids = ids
        self.rng = rng
        self.directory = directory
        self.timers = Timers(clock)
        self.tracing = tracing if tracing is not None else no_tracing()
        self.deliveries = Deliveries(self.tracing.enabled)
        self._unannounced: deque[tuple[float, str, str]] = deque()  # when, which flow's, which command
        self._flows: dict[str, Actor] = {}
        self._by_job: dict[str, Actor] = {}
        self._by_task: dict[str, Actor] = {}
        self._waiting: dict[EntityRef, set[Actor]] = {}
        self._known_hosts: dict[str, Entity] = {}
        self._early: dict[str, list[jobstore_pb2.FlowRequest]] = {}  # intents for flows that are not here (yet)
        self._endings: dict[str, asyncio.Task[WaybillError | None]] = {}  # by force, by flow
        self.waiters = Waiters(journal, background, clock, self.requests_left)
        self._crashes: dict[str, Backoff] = {}  # of flows whose actor had a defect
        self._room = asyncio.Semaphore(most_unanswered)
        self._plan_seconds = plan_seconds
        self.metrics = FlowTallies(
            flows=lambda: self.flows, tasks=lambda: len(self._by_task), awaited=lambda: len(self._waiting)
        )
        self._closed: WaybillError | None = unavailable("this coordinator is starting")  # None while flows are taken

    def start(self) -> None:
        """Begins to listen; the background must have been entered."""
        self.background.start(self.timers.run(), "timers")
        if self.tracing.enabled:
            self.background.start(self._announce(), "announcements")
        self.journal.on_entities(self.entities_changed)
        self.journal.on_requests(self.requests_left)
        self.journal.on_wakes(self.waiters.wake)

    def open(self) -> None:
        """Takes flows from now on: the lease is ours."""
        self._closed = None

    def stop(self, why: WaybillError) -> None:
        """Takes nothing any more and drops all flows: they go on where they are claimed."""
        self._closed = why
        for actor in list(self._flows.values()):
            self.abandoned(actor, why)

    @property
    def flows(self) -> int:
        """How many flows are at work."""
        return len(self._flows)

    def is_running(self, flow_command_id: str) -> bool:
        """Tells whether the flow is at work here."""
        return flow_command_id in self._flows

    # --- submissions -------------------------------------------------------------------------------------------------

    async def submit(
        self,
        job: Job,
        command: Command,
        dependencies: Sequence[Dependency] = (),
        former: jobstore_pb2.FlowRows | None = None,
        note: str = "",
    ) -> jobs_pb2.Job:
        """Starts a flow, once its dependencies have ended, and returns its job once that is durable.

        `former`: the rows of the flow whose job is restarted; `note` says so in the audit log.

        Raises:
            WaybillError: REQUEST_ID_REUSED, JOB_NOT_FOUND (a dependency), or UNAVAILABLE with nothing stored that would
                not be found again by the same request id.
        """
        async with self._room:
            if dependencies:
                await self._name(job, command)
            options: dict[str, Any] = {}
            if former is not None:
                event = EventNote("JOB_RESTARTED", Severity.NORMAL, note, user=job.owner)
                options = {"reuse": Reuse(wire.rows_from(former)), "note": event}
            actor = self._new_actor(job, command, dependencies=dependencies, **options)
            return await self._begin(actor)

    async def submit_together(
        self, members: Sequence[tuple[Job, Command, Sequence[Dependency]]], *, all_or_nothing: bool
    ) -> list[jobs_pb2.Job]:
        """Starts flows that are stored together or not at all (`groups.py`); returns their jobs, in order.

        Raises:
            WaybillError: as `submit`; nothing is stored then.
        """
        async with self._room:
            for job, command, dependencies in members:
                if dependencies:
                    await self._name(job, command)
            actors = [
                self._new_actor(job, command, dependencies=dependencies, grouped=True, queues=not all_or_nothing)
                for job, command, dependencies in members
            ]
            group = Group(self.journal, [actor.flow_command_id for actor in actors], all_or_nothing)
            for actor in actors:
                actor.group = group
            answers = await asyncio.gather(*(self._begin(actor) for actor in actors), return_exceptions=True)
        jobs: list[jobs_pb2.Job] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            jobs.append(answer)
        return jobs

    async def _begin(self, actor: Actor) -> jobs_pb2.Job:
        actor.answer = self._answer_future()
        self._add(actor)
        actor.post(ev.Submitted())
        return await actor.answer

    async def _name(self, job: Job, command: Command) -> None:
        """Names a job that is stored before its code runs; what cannot be read now is named by its id."""
        try:
            found = {entity.ref: entity.name for entity in await self.read_entities(command.subjects())}
        except WaybillError as error:
            log.warning("a job is named by ids", job_id=job.job_id, reason=error.reason)
            return
        job.description = command.type_.describe(command, lambda ref: found.get(ref, ""))
        job.subjects = tuple(Subject(ref.entity_type, ref.entity_id, name) for ref, name in found.items())

    async def plan_only(self, job: Job, command: Command, former: jobstore_pb2.FlowRows | None = None) -> jobs_pb2.Job:
        """Returns the job as it would be planned, storing nothing: PENDING with its steps, or FAILED and why.

        Of a job that is restarted, steps that would be reused are FINISHED. With it comes what would be undone if it
        did not go well.
        """
        actor = self._new_actor(job, command, reuse=Reuse(wire.rows_from(former)) if former is not None else None)
        return await Rehearsal(actor, self._compensates).run()

    def _compensates(self, command_type: str) -> bool:
        kind = self.registry.get(command_type)
        return kind is None or kind.compensates

    def _new_actor(self, job: Job, command: Command, **options: Any) -> Actor:
        if self._closed is not None:
            raise unavailable(self._closed.message, reason=self._closed.reason)
        root = CommandRow(
            command_id=self.ids.new(),
            parent_command_id="",
            command_type=command.command_type,
            parameters=job.parameters,
            parameters_version=command.parameters_version,
        )
        if (caller := parent_of_work()) is not None:
            root.span_id = job.span_id = span_id_of(root.command_id)
            root.traceparent, job.trace_id = format_traceparent(caller), caller.trace_id
        if options.get("dependencies"):
            options["subject_names"] = {EntityRef(each.entity_type, each.entity_id): each.name for each in job.subjects}
        tree = FlowTree(job, root, cancel=command.type_.cancel, plan_seconds=self._plan_seconds, **options)
        actor = Actor(self, tree)
        actor.keep(root.command_id, command)
        return actor

    def _answer_future(self) -> asyncio.Future[jobs_pb2.Job]:
        return asyncio.get_running_loop().create_future()

    def _add(self, actor: Actor) -> None:
        self._flows[actor.flow_command_id] = actor
        self._by_job[actor.tree.job.job_id] = actor

    # --- cancels -----------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str, user: str, reason: str) -> jobs_pb2.Job | None:
        """Asks a job's flow to stop; returns the job as it is once the wish is taken, None if no flow here has it."""
        actor = self._by_job.get(job_id)
        return await actor.cancel(user, reason) if actor is not None else None

    async def set_priority(self, job_id: str, priority: int, user: str, reason: str) -> jobs_pb2.Job | None:
        """Asks for another priority of a job; as `cancel`."""
        actor = self._by_job.get(job_id)
        return await actor.set_priority(priority, user, reason) if actor is not None else None

    async def stop_tasks(self, job_id: str, task_ids: Sequence[str], user: str, reason: str) -> jobs_pb2.Job | None:
        """Asks that tasks of a job be stopped, all if none is named; as `cancel`."""
        actor = self._by_job.get(job_id)
        return await actor.stop_tasks(task_ids, user, reason) if actor is not None else None

    async def force_end(self, job_id: str, user: str, reason: str) -> bool:
        """Ends a job's flow by force, if it is at work here; False if it is not."""
        actor = self._by_job.get(job_id)
        if actor is None:
            return False
        if (error := await asyncio.shield(self._forced_end(actor.flow_command_id, user, reason))) is not None:
            raise error
        return True

    def _forced_end(self, flow_command_id: str, user: str, reason: str) -> asyncio.Task[WaybillError | None]:
        """Ends a flow by force, in the background: who asks twice is answered by the same end."""
        ending = self._endings.get(flow_command_id)
        if ending is None:
            work = self._end_by_force(flow_command_id, user, reason)
            ending = self._endings[flow_command_id] = self.background.start(work, "forced end")
            ending.add_done_callback(lambda _: self._endings.pop(flow_command_id, None))
        return ending

    async def _end_by_force(self, flow_command_id: str, user: str, reason: str) -> WaybillError | None:
        """Returns why it was not done; then the flow goes on."""
        if actor := self._flows.get(flow_command_id):
            self.abandoned(actor, failed_precondition("JOB_ENDED", f"job {actor.tree.job.job_id} is ended by force"))
            if actor.commit_in_flight is not None:
                await asyncio.wait([actor.commit_in_flight])
        try:
            for rows in await self.journal.load_flows([flow_command_id]):
                await self._write_forced_end(rows, user, reason)
        except WaybillError as error:
            if error.reason != "JOB_ENDED":
                self._load_later(flow_command_id, error)
            return error
        return None

    async def _write_forced_end(self, rows: jobstore_pb2.FlowRows, user: str, reason: str) -> None:
        if has_ended(rows):
            raise wire.error_from(job_ended(rows))
        result = await self.journal.commit(forced_end(rows, user, reason, self.ids.new()))
        if result.HasField("error"):
            raise WaybillError.from_status(result.error)
        log.warning("a job was ended by force", job_id=rows.job.job_id, user=user)
        self._crashes.pop(rows.flow_command_id, None)
        tasks = tasks_by_host(rows)
        self._clear(tasks)
        # Once more: a start that was on its way when the flow ended may come after the first.
        self.timers.at(self.clock.now() + STRAGGLER_SECONDS, lambda: self._clear(tasks))
        delivered = self.deliveries.expect(result.revision)
        self.deliveries.passed(result.revision)
        try:
            self.ended_untold(await self.journal.load_flows([rows.flow_command_id]))
        except WaybillError as error:  # it is ended all the same
            log.warning("a forced end is not told of", job_id=rows.job.job_id, reason=error.reason)
        self.tracing.when_delivered(delivered)

    def _clear(self, tasks_by_host: Mapping[str, Sequence[str]]) -> None:
        for host_id, task_ids in tasks_by_host.items():
            self.hosts.clear(host_id, task_ids)

    def requests_left(self, requests: Sequence[jobstore_pb2.FlowRequest]) -> None:
        """Takes intents that others left in the store for flows of ours."""
        for request in requests:
            if request.kind == "FORCE_END":
                self._forced_end(request.flow_command_id, request.user, request.reason)
                continue
            actor = self._flows.get(request.flow_command_id)
            if actor is None:
                self._keep_for_later(request)
                continue
            try:
                wish = _wish_in(request)
            except (KeyError, ValueError, TypeError) as error:
                log.warning("an intent that nobody understands", kind=request.kind, error=str(error))
                continue
            if wish is not None:
                actor.post(wish)
            else:
                log.warning("an intent that this release does not know", kind=request.kind)

    def _keep_for_later(self, request: jobstore_pb2.FlowRequest) -> None:
        """It came while its flow was on its way here from its rows, it may be: the rows may not know of it."""
        self._early.setdefault(request.flow_command_id, []).append(request)
        while len(self._early) > MOST_EARLY:
            del self._early[next(iter(self._early))]

    # --- what is heard -----------------------------------------------------------------------------------------------

    def task_reported(self, report: TaskReport) -> None:
        """Takes what a host says about a task or call."""
        actor = self._by_task.get(report.task_id)
        if actor is None:
            return
        over = bool(report.result) or report.refused or report.lost
        if over:
            del self._by_task[report.task_id]
        error = wire.failure_from(report.error) if report.error is not None else None
        actor.post(
            ev.LeafReported(
                task_id=report.task_id,
                result=report.result or ("CLEAN_SUCCESS" if report.refused else ""),
                progress=report.progress,
                error=error,
                answer=report.answer,
                incarnation=report.incarnation,
                observation_number=report.observation_number,
                lost=report.lost,
            )
        )

    def task_stalled(self, task_id: str, seconds: float) -> None:
        """Takes that a task has made no progress for so long."""
        if actor := self._by_task.get(task_id):
            actor.post(ev.TaskStalled(task_id, seconds))

    def entities_changed(self, entities: Sequence[jobs_pb2.Entity]) -> None:
        """Takes what the store says about entities."""
        for message in entities:
            if message.entity_type == jobs_pb2.ENTITY_TYPE_HOST:
                self.hosts.learn(message)
                self._remember_host(wire.entity_from(message))
            ref = EntityRef(wire.ENTITY_NAMES[message.entity_type], message.entity_id)
            for actor in tuple(self._waiting.get(ref, ())):
                actor.post(ev.EntitySeen(ref, wire.observation_from(message.observed)))

    def _remember_host(self, host: Entity) -> None:
        if host.exists:
            self._known_hosts[host.ref.entity_id] = host
        else:
            self._known_hosts.pop(host.ref.entity_id, None)

    def flows_claimed(self, flows: Sequence[jobstore_pb2.FlowRows]) -> None:
        """Takes up flows that were claimed."""
        for message in flows:
            flow = message.flow_command_id
            if flow in self._flows or flow in self._endings or self._closed is not None:
                continue
            if any(request.kind == "FORCE_END" for request in message.requests):
                self.requests_left(message.requests)
                continue
            if message.job.restarted_from:
                self.background.start(self._take_up_restarted(message), "take up a restarted job")
                continue
            try:
                self._take_up(message)
            except Exception as error:  # one flow that cannot be read must not keep the others from going on
                log.exception("a flow cannot be taken up", flow_command_id=message.flow_command_id)
                self._load_later(message.flow_command_id, error)

    async def _take_up_restarted(self, message: jobstore_pb2.FlowRows) -> None:
        """The same for a job that was restarted: what the former one did is needed, as long as it is there."""
        flow = message.flow_command_id
        try:
            former = await self.journal.load_flow_of(message.job.restarted_from)
            if flow not in self._flows and flow not in self._endings and self._closed is None:
                self._take_up(message, Reuse(wire.rows_from(former)) if former is not None else None)
        except Exception as error:  # as above
            log.exception("a flow cannot be taken up", flow_command_id=flow)
            self._load_later(flow, error)

    def _take_up(self, message: jobstore_pb2.FlowRows, reuse: Reuse | None = None) -> None:
        rows = wire.rows_from(message)
        kind = self.registry.get(rows.job.command_type)
        cancel = kind.cancel if kind is not None else Cancel.NONE
        actor = Actor(self, FlowTree.load(rows, cancel=cancel, reuse=reuse))
        self._add(actor)
        self.announce_later(actor, actor.chronicle.resume(message))
        actor.post(ev.Recovered())
        self.metrics.taken_up.add()
        self.requests_left([*message.requests, *self._early.pop(message.flow_command_id, ())])

    def ended_untold(self, flows: Sequence[jobstore_pb2.FlowRows]) -> None:
        """Delivers the spans of flows that had ended, which nobody may have done who ended them."""
        for message in flows:
            try:
                tree = FlowTree.load(wire.rows_from(message), cancel=Cancel.NONE)
                Chronicle(self.tracing, self.deliveries, self.metrics, tree).resume(message)
            except Exception:  # what cannot be gone on with may not be told of either
                log.exception("a flow is not told of", job_id=message.job.job_id)

    def debt_told(self, dead_coordinator_id: str) -> None:
        """All that it owed has been told: once that is delivered, nobody owes it any more."""
        self.tracing.when_delivered(lambda: self.deliveries.settle(dead_coordinator_id))

    # --- for actors --------------------------------------------------------------------------------------------------

    def known_hosts(self) -> Sequence[Entity]:
        """The hosts as they were last heard of."""
        return tuple(self._known_hosts.values())

    async def read_entities(self, refs: Sequence[EntityRef]) -> list[Entity]:
        """Reads entities from the store, in the order asked."""
        messages = await self.journal.read_entities([wire.ref_message(ref) for ref in refs])
        return [wire.entity_from(message) for message in messages]

    def expect(self, task_id: str, actor: Actor) -> None:
        """Reports of this task are for that flow."""
        self._by_task[task_id] = actor

    def announce_later(self, actor: Actor, command_ids: Sequence[str]) -> None:
        """These commands of a flow began: what runs for long is announced in the trace."""
        if command_ids and self.tracing.enabled:
            due = self.clock.monotonic() + ANNOUNCE_SECONDS
            # By its id: to hold what has ended would keep the garbage collector busy.
            for command_id in command_ids:
                self._unannounced.append((due, actor.flow_command_id, command_id))

    async def _announce(self) -> None:
        while True:
            await self.clock.sleep(ANNOUNCE_SECONDS / 4)
            now = self.clock.monotonic()
            while self._unannounced and self._unannounced[0][0] <= now:
                _, flow_command_id, command_id = self._unannounced.popleft()
                if actor := self._flows.get(flow_command_id):
                    actor.chronicle.announce(command_id)

    def waits_changed(self, actor: Actor, before: frozenset[EntityRef], now: frozenset[EntityRef]) -> None:
        """The flow waits for other entities than before."""
        for ref in before - now:
            waiting = self._waiting.get(ref, set())
            waiting.discard(actor)
            if not waiting:
                self._waiting.pop(ref, None)
        for ref in now - before:
            self._waiting.setdefault(ref, set()).add(actor)

    def done(self, actor: Actor) -> None:
        """The flow has ended, durably."""
        self._forget(actor)
        actor.tree.let_go()
        self._crashes.pop(actor.flow_command_id, None)

    def abandoned(self, actor: Actor, why: WaybillError) -> None:
        """The flow is not ours any more, or never became one."""
        actor.drop(why)
        self._forget(actor)

    def crashed(self, actor: Actor, error: Exception) -> None:
        """An actor has a defect: its flow is loaded anew, after a pause that grows."""
        job = actor.tree.job
        self.metrics.crashes.add()
        log.error("a flow's actor crashed", exc_info=error, job_id=job.job_id, correlation_id=job.correlation_id)
        self.abandoned(actor, internal(f"a defect stopped job {job.job_id}; it is taken up again from what is stored"))
        self._load_later(actor.flow_command_id, error)  # also if no commit was answered: one may be stored

    def _load_later(self, flow_command_id: str, error: Exception) -> None:
        pause = self._crashes.setdefault(flow_command_id, Backoff(self.rng, first=1.0, longest=60.0)).next()
        log.error("a flow is loaded anew", flow_command_id=flow_command_id, seconds=pause, reason=str(error))
        self.timers.at(self.clock.now() + pause, lambda: self._begin_load(flow_command_id))

    def _begin_load(self, flow_command_id: str) -> None:
        self.background.start(self._load(flow_command_id), "load")

    async def _load(self, flow_command_id: str) -> None:
        if self._closed is None:
            self.flows_claimed(await self.journal.load_flows([flow_command_id]))

    def _forget(self, actor: Actor) -> None:
        if self._flows.get(actor.flow_command_id) is actor:
            del self._flows[actor.flow_command_id]
            self._by_job.pop(actor.tree.job.job_id, None)
        begun = [leaf.task_id for leaf in actor.tree.leaves.values() if self._by_task.pop(leaf.task_id, None)]
        if begun:
            self.hosts.forget(begun)
        self.waits_changed(actor, frozenset(self._waits_of(actor)), frozenset())
        actor.dropped = True

    def _waits_of(self, actor: Actor) -> list[EntityRef]:
        return [ref for ref, actors in self._waiting.items() if actor in actors] if self._waiting else []


def _wish_in(request: jobstore_pb2.FlowRequest) -> ev.Event | None:
    """What somebody wants of a flow; None if it is of a kind that this release does not know."""
    arguments = json.loads(request.arguments_json or "{}")
    by = (request.user, request.reason, request.request_id)
    match request.kind:
        case "CANCEL":
            return ev.CancelAsked(0, *by)
        case "SET_PRIORITY":
            return ev.PriorityAsked(0, int(arguments["priority"]), *by)
        case "STOP_TASKS":
            return ev.StopAsked(0, tuple(map(str, arguments["task_ids"])), *by)
        case _:
            return None


def going_down() -> WaybillError:
    """What callers are told by a coordinator that stops."""
    return unavailable("this coordinator is going down; another one will answer", reason="SHUTTING_DOWN")
