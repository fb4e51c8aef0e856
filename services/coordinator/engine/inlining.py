"""Coordination by entity: children without rows, their plans standing in the plan above them.

    RemoveDisk ─▶ child(RemoveImage) ─▶ serially([task(deleteImage, entity=disk)], inlined=RemoveImage)

For commands that have not moved to coordination by flow: the end comes when the flow's tasks on the entity are over,
which is when the plan that they are all in is; then the children's end methods run, then the root's. The child itself
does not know: the same class works under both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from coordinator.commands.base import Command
from coordinator.plan import Child, Concurrently, Inlined, Plan, Serially
from coordinator.world import Refused, World

DEEPEST: Final = 16
"""Children within children."""


async def inlined(plan: Plan, world: World, read: Callable[[Inlined], Command], depth: int = 0) -> Plan:
    """Validates and plans all children of a plan, and returns it with their plans in their places.

    `read` makes a command of what names it. Raises what the children's code does, and LIMIT_EXCEEDED.
    """
    if isinstance(plan, Concurrently | Serially):
        return replace(plan, plans=tuple([await inlined(part, world, read, depth) for part in plan.plans]))
    if not isinstance(plan, Child):
        return plan
    if plan.as_job:
        raise Refused("PLAN_INVALID", f"{plan.command_type} has no row in a flow by entity, so it shows as no job")
    if depth >= DEEPEST:
        raise Refused("LIMIT_EXCEEDED", f"{plan.command_type} would be more than {DEEPEST} commands deep")
    part = Inlined(plan.command_type, plan.parameters, plan.parameters_version)
    command = read(part)
    await command.validate(world)
    own = await inlined(await command.execute(world), world, read, depth + 1)
    world.lock(command.locks())
    return Serially(
        plans=(own,),
        inlined=part,
        step=plan.step,
        description=plan.description,
        weight=plan.weight,
        subjects=plan.subjects,
        best_effort=plan.best_effort,
        no_return=plan.no_return,
    )
