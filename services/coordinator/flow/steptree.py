"""The steps of a flow: what people see of it, and how far it is.

    VALIDATION        these three for the flow, and for each child that shows as a job of its own
    EXECUTION      ◀─ the steps that nodes of the plan name, children's under that of the node that stands for them
    FINALIZATION      only when the plan has work

Steps of a plan are there from the moment it is sealed, PENDING; `number` orders them among their siblings. A step's id
is derived from the place of its node, so a loaded tree finds the step that it would otherwise make.

Progress rises from leaves to the root by weight: a node's progress is the weighted mean of its parts', and what a part
gains, all above it gain, so a report costs its depth. Only what ended well counts whole; of several
attempts of a command the one that came furthest counts. Shown are whole percents, at most 99 before the end; they never
fall, also when a new process knows less than the old one had heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from coordinator.flow.book import Book
from coordinator.flow.nodes import LiveCommand, Node, derived_id, namespace_of, span_id_of
from coordinator.plan import Call, Child, EntityRef, Plan, Task
from coordinator.rows import Failure, Job, Status, Step, Subject

VALIDATION: Final = "VALIDATION"
EXECUTION: Final = "EXECUTION"
FINALIZATION: Final = "FINALIZATION"


class StepTree:
    """See the module."""

    def __init__(self, book: Book, subject_names: Mapping[EntityRef, str]) -> None:
        self._book = book
        self._names = subject_names
        self._namespace = namespace_of(book.root.command_id)
        self._numbers: dict[str, int] = {}  # the next below a step, or on top of a job, by its id
        self._own: dict[tuple[str, str], Step] = {}  # VALIDATION, EXECUTION, FINALIZATION, by the job that they are of
        for step in book.steps.values():
            above = step.parent_step_id or step.job_id
            self._numbers[above] = max(self._numbers.get(above, 0), step.number + 1)
            if not step.parent_step_id:
                self._own[step.job_id, step.step_type] = step

    # --- which there are ---------------------------------------------------------------------------------------------

    def own(self, step_type: str, command: LiveCommand | None = None) -> Step | None:
        """One of the three that every job has, the flow's or that of a child; None if it has not."""
        job_id = command.job.job_id if command is not None and command.job is not None else ""
        return self._own.get((job_id, step_type))

    def add_own(self, step_type: str, status: Status = Status.PENDING, command: LiveCommand | None = None) -> None:
        """Adds one of the three."""
        namespace, command_id, job_id = self._namespace, self._book.root.command_id, ""
        if command is not None and command.job is not None:
            namespace, command_id, job_id = command.namespace, command.row.command_id, command.job.job_id
        step_id, number = derived_id(namespace, 0, step_type, "step"), self._numbers.get(job_id, 0)
        step = Step(step_id, "", command_id, step_type, number, status=status, job_id=job_id)
        self._numbers[job_id] = number + 1
        self._own[job_id, step_type] = step
        self._book.add_step(step)

    def show(self, node: Node) -> None:
        """Gives a node the step that it names: the one that is stored, or a new one."""
        step_id = node.id("step")
        step = self._book.steps.get(step_id)
        if step is None:
            step = self._planned_step(node, step_id)
            self._book.add_step(step)
        node.step = step

    def _planned_step(self, node: Node, step_id: str) -> Step:
        plan, parent = node.plan, self._step_above(node)
        number = self._numbers.get(parent.step_id, 0)
        self._numbers[parent.step_id] = number + 1
        return Step(
            step_id=step_id,
            parent_step_id=parent.step_id,
            command_id=node.command.row.command_id,
            step_type=plan.step,
            number=number,
            description=plan.description,
            subjects=tuple(
                Subject(ref.entity_type, ref.entity_id, self._names.get(ref, "")) for ref in _subjects_of(plan)
            ),
            weight=plan.weight,
            span_id=_span_of(node),
            job_id=parent.job_id,
        )

    def _step_above(self, node: Node) -> Step:
        if node.parent is None and node.command.execution is not None:
            return node.command.execution
        above = node.above
        return self.around(above) if above is not None else self._execution

    def around(self, node: Node) -> Step:
        """The step that shows a node, or else the nearest above."""
        return node.nearest_step() or self._execution

    @property
    def _execution(self) -> Step:
        return self._own["", EXECUTION]

    def in_order(self) -> list[Step]:
        """All steps of the flow's job, parents before children, by number."""
        below: dict[str, list[Step]] = {}
        for step in self._book.steps.values():
            if step.job_id:
                continue
            below.setdefault(step.parent_step_id, []).append(step)
        ordered: list[Step] = []
        stack = sorted(below.get("", []), key=lambda step: -step.number)
        while stack:
            step = stack.pop()
            ordered.append(step)
            stack.extend(sorted(below.get(step.step_id, []), key=lambda child: -child.number))
        return ordered

    # --- how they are ------------------------------------------------------------------------------------------------

    def start(self, step: Step | None) -> None:
        """PENDING ─▶ STARTED; nothing if it was begun before."""
        if step is not None and step.status is Status.PENDING:
            self._book.change_step(step)
            step.status = Status.STARTED

    def end(self, step: Step | None, status: Status, error: Failure | None = None) -> None:
        """PENDING or STARTED ─▶ an end status, which never changes again."""
        if step is None or step.status.ended:
            return
        self._book.change_step(step)
        step.status = status
        if status is Status.FINISHED:
            step.progress = 100
        else:
            step.error = error

    def lend_external_id(self, step: Step, external_id: str) -> None:
        """A task under it makes no step of its own; the first one's id is shown."""
        if not step.external_id:
            self._book.change_step(step)
            step.external_id = external_id

    def advance(self, node: Node, fraction: float) -> None:
        """Raises a node's progress, and that of all above it by what it counts there."""
        gain = fraction - node.progress
        if gain <= 0:
            return
        node.progress = fraction
        while True:
            self._show_progress(node.step, node.progress)
            if node.parent is None:
                gain = _gain_of_command(node)
                if gain <= 0:
                    return
                if node.command.job is not None:
                    self._advance_child_job(node.command.job, node)
            above = node.above
            if above is None:
                break
            gain *= node.share
            above.progress = min(1.0, above.progress + gain)
            node = above
        self._show_progress(self._execution, node.progress)
        percent = _percent(node.progress)
        if percent > self._book.job.progress:
            self._book.change_job().progress = percent

    def _advance_child_job(self, job: Job, root: Node) -> None:
        self._show_progress(root.command.execution, root.progress)
        percent = _percent(root.progress)
        if percent > job.progress and not job.status.ended:
            self._book.change_child_job(job)
            job.progress = percent

    def _show_progress(self, step: Step | None, fraction: float) -> None:
        if step is None or step.status.ended:
            return
        percent = _percent(fraction)
        if percent > step.progress:
            self._book.change_step(step)
            step.progress = percent


def _gain_of_command(root: Node) -> float:
    """What a command's progress gains from that of an attempt: the attempt that came furthest counts, no clean-up."""
    command = root.command
    if command.cleans:
        return 0.0
    gain = root.progress - command.progress
    command.progress = max(command.progress, root.progress)
    return gain


def _span_of(node: Node) -> str:
    """The span of what a step stands for: a command's or a task's. A group has none."""
    if not node.command.row.span_id:
        return ""
    if isinstance(node.plan, Child):
        return span_id_of(node.id("command"))
    return span_id_of(node.id("leaf")) if isinstance(node.plan, Task | Call) else ""


def _percent(fraction: float) -> int:
    """Whole percents of what is not over; 100 is said by the end alone."""
    return min(99, int(fraction * 100 + 1e-6))


def _subjects_of(plan: Plan) -> Iterable[EntityRef]:
    if plan.subjects:
        return plan.subjects
    entity = getattr(plan, "entity", None)
    return () if entity is None else (entity,)
