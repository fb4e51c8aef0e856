"""What a flow did, told as it becomes durable: spans for the trace, a line for the log.

    written(mutations) ─▶ noted as it was written down ─▶ recorded(time) ─▶ told, with the store's times
                                                       └▶ refused() ─▶ never happened

Nothing is told that is not stored, and all that is told follows from what is stored: ids, times, errors. So a span that
is recorded again, because nobody knows whether the collector has it, is the very same span, and a flow that lived
through a crash is one connected trace: it goes on in another process under the ids that its rows reserve.

    caller's span ─▶ RemoveVm ─▶ RemoveAllVmImages ─▶ RemoveImage ─▶ task deleteImage (the host agent's)
                     with its phases as events

| when | what is told |
| --- | --- |
| a command has ended | its span, from the commit that has it to the commit that ended it |
| one runs for ANNOUNCE_SECONDS | a short span `… started` under its id, so that a trace shows what is under way |
| a task will never be told of by its host | its span, as an error |
| a flow is taken up after a crash | the spans of what had ended, and who is under way, once more |
| it had ended, and its coordinator died before it could deliver | the same, by whoever claims the dead one's flows |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha1
from types import MappingProxyType
from typing import Final, NamedTuple

from chassis import logs
from chassis.tracing import Tracing, under
from coordinator import wire
from coordinator.deliveries import Deliveries
from coordinator.flow import failures
from coordinator.flow.mutations import Mutations
from coordinator.flow.tree import FlowTree
from coordinator.metrics import FlowTallies
from coordinator.rows import Command, CommandStatus, Job, Leaf, LeafKind, Status, Subject
from waybill.v1 import jobstore_pb2
from waybill_spans import Context, FinishedSpan, Value, otlp, parse_traceparent

log = logs.get_logger(__name__)

ANNOUNCE_SECONDS: Final = 0.8
"""What runs for longer is announced in the trace: it is to be seen within two seconds of its start."""

_NO_PHASES: Final[Mapping[str, float]] = MappingProxyType({})
_NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})

_NOT_BEGUN: Final = frozenset({Status.PENDING, Status.SKIPPED, Status.ABORTED})
"""Steps that the store gives no start time for being so: what is told again later goes by that."""


@dataclass(slots=True)
class _Written:
    """What a commit that is on its way will have made true."""

    begins: bool
    """The job."""
    ended: Status | None
    """The job's status, if it ends."""
    begun: list[Command]
    over: list[Command]
    phases: list[str]
    """Of the job, that began."""
    ordered: list[Leaf]
    done: list[Leaf]


class Chronicle:
    """Of one flow."""

    def __init__(self, tracing: Tracing, deliveries: Deliveries, metrics: FlowTallies, tree: FlowTree) -> None:
        self._tracing = tracing
        self._deliveries = deliveries
        self._metrics = metrics
        self._tree = tree
        root = tree.root
        self._above = above = parse_traceparent(root.traceparent)
        recorded = tracing.enabled and above is not None and above.sampled
        # The root command's place in its trace; None if nobody records it.
        self._place = above.at(root.span_id) if above is not None and recorded else None
        self._ids = _ids_of(tree.job)
        self._begun: dict[str, float] = {}  # when each command that has not ended was stored, by its id
        self._phases: dict[str, float] = {}  # when each began
        self._written: _Written | None = None

    # --- what happens ------------------------------------------------------------------------------------------------

    def written(self, mutations: Mutations) -> None:
        """A commit is on its way; rows go on changing, so what is in it is noted now."""
        job = self._tree.job
        rows = (*mutations.new_commands.values(), *mutations.commands.values())
        leaves = (*mutations.new_leaves.values(), *mutations.leaves.values())
        steps = (*mutations.new_steps.values(), *mutations.steps.values())
        self._written = _Written(
            begins=mutations.new_job,
            ended=job.status if mutations.ends_flow else None,
            begun=list(mutations.new_commands.values()),
            over=[row for row in rows if row.status.ended],
            phases=[
                step.step_type
                for step in steps
                if not step.parent_step_id and not step.job_id and step.status not in _NOT_BEGUN
            ],
            ordered=list(mutations.new_leaves.values()),
            done=[leaf for leaf in leaves if leaf.over],
        )

    def recorded(self, revision: int, time: float) -> list[str]:
        """The commit is durable, at that time (Unix seconds): tells what it made true. Returns commands that began."""
        written, self._written = self._written, None
        if written is None:
            return []
        for command in written.begun:
            self._begun[command.command_id] = time
        for phase in written.phases:
            self._phases.setdefault(phase, time)
        self._log(written)
        over = written.over
        if written.ended is not None:  # nothing of it goes on
            ended = {command.command_id for command in over}
            over = over + [self._tree.command(each) for each in self._begun if each not in ended]
        self._count(written, over, time)
        for leaf in written.done:
            self._tell_of_lost(leaf, time)
        times = [(command, self._begun.get(command.command_id, time), time) for command in over]
        self._tell(times, revision if written.ended is not None else None)
        for command in over:
            self._begun.pop(command.command_id, None)
        return [command.command_id for command in written.begun if command.command_id in self._begun]

    def refused(self) -> None:
        """The commit never was."""
        self._written = None

    def under(self, command: Command) -> AbstractContextManager[None]:
        """While a command's code runs, its span is the current one for what that traces by itself."""
        if self._above is None:
            return nullcontext()
        return under(self._above.at(command.span_id), self._tree.job.correlation_id)

    def announce(self, command_id: str) -> None:
        """Says in the trace that a command is under way, unless it has ended."""
        start = self._begun.get(command_id)
        if start is None or self._place is None:
            return
        command = self._tree.command(command_id)
        span_id = sha1(f"{command.span_id} started".encode(), usedforsecurity=False).hexdigest()[:16]
        self._tracing.record(
            FinishedSpan(
                name=f"{command.command_type} started",
                context=self._place.at(span_id),
                parent_span_id=command.span_id,
                start=start,
                end=start,
                attributes=self._span_of(self._place, command, start, start).attributes,
            )
        )

    # --- taken up from rows ------------------------------------------------------------------------------------------

    def resume(self, rows: jobstore_pb2.FlowRows) -> list[str]:
        """Goes on with a flow that another process told of so far; tells again what it may not have delivered.

        Returns the commands that are under way.
        """
        has_ended, over = rows.job.HasField("end_time"), list[tuple[Command, float, float]]()
        for step in rows.steps:
            if not step.parent_step_id and not step.job_id and step.HasField("start_time"):
                self._phases[step.step_type] = wire.seconds_of(step.start_time)
        for row in rows.commands:
            command, start = self._tree.command(row.command_id), wire.seconds_of(row.create_time)
            if row.HasField("end_time") or has_ended:
                end = wire.seconds_of(row.end_time if row.HasField("end_time") else rows.job.end_time)
                over.append((command, start, end))
            else:
                self._begun[row.command_id] = start
        self._tell(over)
        return list(self._begun)

    # --- spans -------------------------------------------------------------------------------------------------------

    def _tell(self, over: Sequence[tuple[Command, float, float]], ended: int | None = None) -> None:
        """Records the spans of commands, each with its start and end; `ended`: they end their flow at that revision.

        Those are owed until the last of them is delivered.
        """
        if self._place is not None:
            for number, each in enumerate(over, 1):
                last = ended if number == len(over) else None
                delivered = None if last is None else self._deliveries.expect(last)
                self._tracing.record(self._span_of(self._place, *each), delivered)
        if ended is not None:
            self._deliveries.passed(ended)

    def _span_of(self, root: Context, command: Command, start: float, end: float) -> _CommandSpan:
        job, step = self._tree.job, self._tree.steps.get(command.step_id)
        return _CommandSpan(
            root,
            command,
            job.correlation_id,
            self._tree.job_id_of(command),
            (step if step is not None else job).subjects,
            start,
            end,
            _NO_PHASES if command.parent_command_id else {**self._phases},
        )

    def _tell_of_lost(self, leaf: Leaf, end: float) -> None:
        """A host tells of its tasks itself, unless it will never be heard of again."""
        if self._place is None or leaf.kind is not LeafKind.TASK or leaf.state != "UNKNOWN":
            return
        command, start = self._tree.command(leaf.command_id), self._begun.get(leaf.command_id, end)
        attributes = self._span_of(self._place, command, start, end).attributes
        self._tracing.record(
            FinishedSpan(
                name=f"task {leaf.verb}",
                context=self._place.at(leaf.span_id),
                parent_span_id=command.span_id,
                start=start,
                end=end,
                attributes={**attributes, "host.id": leaf.host_id, "task.id": leaf.task_id},
                error=leaf.error.reason if leaf.error is not None else "TASK_LOST",
            )
        )

    # --- metrics ------------------------------------------------------------------------------------------------------

    def _count(self, written: _Written, over: Sequence[Command], time: float) -> None:
        job, root = self._tree.job, self._tree.root
        trace_id = job.trace_id if root.traceparent.endswith("-01") else ""
        for command in written.begun:
            self._metrics.begun.add(command.command_type)
        for command in over:
            seconds = time - self._begun.get(command.command_id, time)
            self._metrics.command_ended(command.command_type, command.status.value, seconds, trace_id)
        if written.ended is not None:
            self._metrics.job_ended(job.command_type, self._phases, time, trace_id)

    # --- the log -----------------------------------------------------------------------------------------------------

    def _log(self, written: _Written) -> None:
        job, ids = self._tree.job, self._ids
        if written.begins:
            log.info("job started", **ids, command_type=job.command_type, user=job.owner)
        for leaf in written.ordered:
            log.info("task ordered", **ids | _ids_of_task(leaf))
        for leaf in written.done:
            log.info("task over", **ids | _ids_of_task(leaf), result=leaf.result or leaf.state)
        if written.ended is not None:
            reason = job.error.reason if job.error is not None else ""
            log.info("job ended", **ids, status=written.ended.value, reason=reason)


def _ids_of(job: Job) -> dict[str, str]:
    ids = {"correlation_id": job.correlation_id, "job_id": job.job_id}
    return {**ids, "trace_id": job.trace_id, "span_id": job.span_id} if job.trace_id else ids


def _ids_of_task(leaf: Leaf) -> dict[str, str]:
    ids = {"command_id": leaf.command_id, "task_id": leaf.task_id, "kind": leaf.kind.value}
    if leaf.host_id:
        ids |= {"host_id": leaf.host_id, "verb": leaf.verb}
    return {**ids, "span_id": leaf.span_id} if leaf.span_id else ids


def _error_of(command: Command) -> str:
    """An error on a span is a real one: who was asked to stop and did has none."""
    if command.status is not CommandStatus.ENDED_WITH_FAILURE or command.error is None:
        return ""
    if failures.is_stop(command.error) or command.error.reason == "SKIPPED":
        return ""
    return f"{command.error.reason}: {command.error.message}"


class _CommandSpan(NamedTuple):
    """What the span of a command is made of, once it leaves: a row that does not change any more, the store's times."""

    root: Context
    """The root command's place."""
    command: Command
    correlation_id: str
    job_id: str
    subjects: Sequence[Subject]
    start: float
    end: float
    phases: Mapping[str, float]
    """Of the job, when each began; the root command's alone has them."""

    @property
    def attributes(self) -> dict[str, Value]:
        """By what it is found."""
        attributes: dict[str, Value] = {
            "correlation_id": self.correlation_id,
            "job.id": self.job_id,
            "command.id": self.command.command_id,
        }
        if self.command.step_id:
            attributes["step.id"] = self.command.step_id
        for subject in self.subjects[:1]:
            attributes["entity.type"] = subject.entity_type
            attributes["entity.id"] = subject.entity_id
        return attributes

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        command, attributes = self.command, self.attributes
        attributes["command.status"] = command.status.value
        return otlp.span(
            name=command.command_type,
            trace_id=self.root.trace_id,
            span_id=command.span_id,
            parent_span_id=command.traceparent[36:52],
            kind=otlp.INTERNAL,
            start=self.start,
            end=self.end,
            attributes=attributes,
            events=[(phase, time, _NOTHING) for phase, time in self.phases.items()],
            error=_error_of(command),
        )
