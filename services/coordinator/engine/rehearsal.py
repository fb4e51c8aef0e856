"""A flow planned as if it were submitted, up to the commit that it would make: for `validate_only`.

What is shown of it beside its steps is what would come of what it does to entities if it did not go well. That is
`flow/compensation.py`'s doing, foretold: of each entity that a command changes, now or in a later stage of its plan,
the command makes again what it was; or ILLEGAL, where its work is not known to be rolled back then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator import wire
from coordinator.flow import events as ev
from coordinator.flow.planjson import attempt_from_json
from coordinator.flow.tree import FlowTree
from coordinator.plan import Call, Change, Concurrently, EntityRef, Former, Plan, Serially, Task
from coordinator.rows import Command, CommandStatus, Status
from waybill.v1 import jobs_pb2

if TYPE_CHECKING:
    from coordinator.engine.actor import Actor


class Rehearsal:
    """See the module. `compensates` tells of a command type whether a failure has its changes undone."""

    def __init__(self, actor: Actor, compensates: Callable[[str], bool]) -> None:
        self._actor = actor
        self._compensates = compensates

    async def run(self) -> jobs_pb2.Job:
        """Returns the job as planned."""
        tree = self._actor.tree
        pending = deque(tree.handle(ev.Submitted(), 0.0))
        while pending:
            effect = pending.popleft()
            if isinstance(effect, ev.RunPlan):
                pending.extend(tree.handle(await self._actor.rehearse(effect.command_id), 0.0))
            elif isinstance(effect, ev.Commit):
                break  # all that can be said before anything has happened
        job = self._actor.job(steps=True)
        job.job_id = job.flow_command_id = ""
        if tree.job.status is not Status.FAILED:
            _unstart(job, _reused_steps(tree))
            job.compensations.extend(map(_message, undoings(tree, self._compensates)))
        return job


def _unstart(job: jobs_pb2.Job, reused: set[str]) -> None:
    job.status = jobs_pb2.EXECUTION_STATUS_PENDING
    job.progress = 0
    for step in job.steps:
        if step.status != jobs_pb2.EXECUTION_STATUS_FINISHED or step.step_id not in reused:
            step.status = jobs_pb2.EXECUTION_STATUS_PENDING
            step.progress = 0
        step.ClearField("job_id")
        step.ClearField("external_id")
        step.ClearField("external_system_type")


def _reused_steps(tree: FlowTree) -> set[str]:
    """The steps with something in them that a former flow has done well; nothing else can be over yet."""
    steps = {leaf.step_id for leaf in tree.leaves.values() if leaf.over}
    steps |= {row.step_id for row in tree.commands() if row.status is CommandStatus.ENDED_SUCCESSFULLY}
    for step in reversed(tree.planned_steps()):  # those below before those above
        if step.step_id in steps and step.parent_step_id:
            steps.add(step.parent_step_id)
    top = {step.step_id for step in tree.steps.values() if not step.parent_step_id}
    return steps - top


# --- what would be undone --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Undoing:
    """What would become of an entity if the command that changes it failed.

    `former`: what it was, None if it did not exist. `in_doubt`: work of the command, or of one below it, names it.
    """

    entity: EntityRef
    command_type: str
    former: Former | None
    in_doubt: bool


def undoings(tree: FlowTree, compensates: Callable[[str], bool]) -> list[Undoing]:
    """Returns them by command, newest change first, as they would be made; each entity once a command."""
    changed: dict[str, dict[EntityRef, Former | None]] = {}
    for snapshot in tree.snapshots:
        changed.setdefault(snapshot.command_id, {}).setdefault(snapshot.entity, snapshot.former)
    for row in tree.commands():
        for node in _nodes(row):
            if isinstance(node, Change):
                changed.setdefault(row.command_id, {}).setdefault(node.entity, node.former)
    return [
        Undoing(entity, row.command_type, former, entity in worked_on)
        for row in tree.commands()
        if row.command_id in changed and compensates(row.command_type)
        for worked_on in [_worked_on(row, tree)]
        for entity, former in reversed(changed[row.command_id].items())
    ]


def _worked_on(command: Command, tree: FlowTree) -> set[EntityRef]:
    """What tasks and calls of a command and of those below it name."""
    parents = {row.command_id: row.parent_command_id for row in tree.commands()}
    return {
        node.entity
        for row in tree.commands()
        if command.command_id in _and_above(row.command_id, parents)
        for node in _nodes(row)
        if isinstance(node, Task | Call) and node.entity is not None
    }


def _and_above(command_id: str, parents: dict[str, str]) -> Iterator[str]:
    while command_id:
        yield command_id
        command_id = parents[command_id]


def _nodes(row: Command) -> Iterator[Plan]:
    waiting = [attempt_from_json(written)[0] for written in row.plans]
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, Concurrently | Serially):
            waiting[:0] = node.plans


def _message(undoing: Undoing) -> jobs_pb2.Compensation:
    former, entity = undoing.former, undoing.entity
    return jobs_pb2.Compensation(
        entity=jobs_pb2.Subject(
            entity_type=wire.ENTITY[entity.entity_type],
            entity_id=entity.entity_id,
            name=former.name if former is not None else "",
        ),
        command_type=undoing.command_type,
        removed=former is None,
        status=former.status if former is not None else "",
        may_become_illegal=undoing.in_doubt,
    )
