"""Whom to refuse because the store has refused a commit.

LOCKED and CONFLICT are about what a command's code noted: a lock that it wants, an entity that it read. The commands
found here are refused, and the flow lives on without them (`tree.py`). While nothing of a flow is stored nothing has
begun, so there the whole flow is refused rather than a part of it: unless that part may fail.
"""

from __future__ import annotations

from coordinator.flow.commandrunner import CommandRunner
from coordinator.flow.mutations import Mutations
from coordinator.plan import EntityRef
from coordinator.rows import Failure


def who_wanted(failure: Failure, refused: Mutations, commands: CommandRunner, *, first: bool) -> list[str]:
    """Ids of the commands to refuse because of a lock: those that wanted it; none if nobody here did."""
    entity = entity_in(failure)
    wanting = [key[0] for key, notes in refused.notes.items() if any(lock.entity == entity for lock in notes.locks)]
    return _or_the_root(wanting, commands) if first and wanting else wanting


def who_planned_on(failure: Failure, refused: Mutations, commands: CommandRunner, *, first: bool) -> list[str]:
    """Ids of the commands to refuse because what they planned on keeps changing; none if only end methods read it."""
    entity = entity_in(failure)
    planning = [key[0] for key, notes in refused.notes.items() if key[1] == "plan" and entity in notes.read_versions]
    return _or_the_root(planning, commands) if first else planning


def _or_the_root(command_ids: list[str], commands: CommandRunner) -> list[str]:
    spared = command_ids and all(_may_fail(command_id, commands) for command_id in command_ids)
    return command_ids if spared else [commands.root.row.command_id]


def _may_fail(command_id: str, commands: CommandRunner) -> bool:
    """Tells whether a command may fail without failing the job."""
    node = commands.live(command_id).node
    while node is not None:
        if node.plan.best_effort:
            return True
        node = node.above
    return False


def entity_in(failure: Failure) -> EntityRef:
    """The entity that a refusal by the store is about."""
    return EntityRef(failure.metadata.get("entity_type", ""), failure.metadata.get("entity_id", ""))
