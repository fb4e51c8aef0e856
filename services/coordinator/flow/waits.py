"""Waits: which observations of an entity count, and what they mean.

Hosts number what they observe within their incarnation. A call answers with a number: only what is observed after it
can show the call's effect. So a wait looks only at what came after the last call before it, in its plan or one above.

| observation | wait's `after` | counts |
| --- | --- | --- |
| of the same incarnation, a higher number | the call's | whole |
| of the same incarnation, its number or a lower one | the call's | not at all: it is from before |
| of another incarnation | the call's | for `until` alone: numbers do not compare, so it may be from before the call; |
| | | it can show that what was waited for is there, never that it failed |
| any | none: no call went before | whole |

An entity beside the one that is waited for (`WaitFor.beside`) can only say that nothing more will come. It is told
by another host, maybe, and sooner: so the wait has failed GRACE_SECONDS later, unless what was on its way has come.

The commit that stores a wait answers with its entity as it is, and a flow is loaded with the entities that it waits
for, so nothing that was seen before is missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from coordinator.flow.failures import FAILED_PRECONDITION
from coordinator.flow.nodes import Node
from coordinator.flow.planjson import plan_to_json
from coordinator.plan import Call, EntityRef, Observation, Serially, WaitFor
from coordinator.rows import Failure, Leaf

GRACE_SECONDS: Final = 10.0
"""How long a wait lasts once it was seen that nothing more will come of it."""


class Waits:
    """The open waits of a flow, by what they look at."""

    def __init__(self) -> None:
        self._nodes: dict[EntityRef, dict[str, Node]] = {}

    def entities(self) -> Iterable[EntityRef]:
        """What open waits look at."""
        return self._nodes.keys()

    def on(self, entity: EntityRef) -> list[Node]:
        """The open waits that look at an entity."""
        return list(self._nodes.get(entity, {}).values())

    def open(self, node: Node, leaf: Leaf) -> None:
        """A wait has begun."""
        for entity in entities_of(node):
            self._nodes.setdefault(entity, {})[leaf.task_id] = node

    def close(self, node: Node, leaf: Leaf) -> None:
        """A wait is over."""
        for entity in entities_of(node):
            nodes = self._nodes[entity]
            del nodes[leaf.task_id]
            if not nodes:
                del self._nodes[entity]


def entities_of(node: Node) -> list[EntityRef]:
    """What a wait looks at."""
    assert isinstance(node.plan, WaitFor)
    return [node.plan.entity] if node.plan.beside is None else [node.plan.entity, node.plan.beside]


def meaning(node: Node, observation: Observation) -> tuple[str, Failure | None] | None:
    """Holds an observation against a wait: its result and error if that ends it, else None."""
    plan, leaf = node.plan, node.leaf
    assert isinstance(plan, WaitFor)
    assert leaf is not None
    after = leaf.arguments.get("after")
    comparable = not after or observation.incarnation == after["incarnation"]
    if after and comparable and observation.number <= after["number"]:
        return None
    if plan.until.holds(observation):
        return "SUCCESS", None
    if comparable and plan.fails_if.holds(observation):
        why = f": {observation.error}" if observation.error else ""
        message = f"{plan.entity} was seen {observation.state} on {observation.host_id}{why}"
        return "CLEAN_SUCCESS", Failure(FAILED_PRECONDITION, "WAIT_FAILED", message)
    return None


def condition_of(node: Node, plan: WaitFor) -> dict[str, Any]:
    """What is stored of a wait: both conditions, and what it must not look at."""
    written = plan_to_json(plan)
    condition = {
        "until": written.get("until", {}),
        "fails_if": written.get("fails_if", {}),
        "after": _answer_before(node),
    }
    if plan.beside is not None:
        condition |= {"beside": written["beside"], "gives_up_if": written.get("gives_up_if", {})}
    return condition


def _answer_before(node: Node) -> dict[str, Any]:
    """Incarnation and number that the last call before a node returned; empty if there was none."""
    at: Node | None = node
    while at is not None:
        if at.parent is not None and isinstance(at.parent.plan, Serially):
            for earlier in reversed(at.parent.parts[: at.index]):
                if (call := _last_call(earlier)) is not None:
                    return call
        at = at.above
    return {}


def _last_call(node: Node) -> dict[str, Any] | None:
    """What the last call in a stage that is over returned. Of several at once none is the last."""
    if isinstance(node.plan, Serially):
        return next((call for part in reversed(node.parts) if (call := _last_call(part)) is not None), None)
    leaf = node.leaf
    if leaf is None or not isinstance(node.plan, Call) or not isinstance(leaf.answer, dict):
        return None
    if not leaf.answer["incarnation"]:
        return None  # it never reached its host
    return {"incarnation": leaf.answer["incarnation"], "number": leaf.answer["observation_number"]}
