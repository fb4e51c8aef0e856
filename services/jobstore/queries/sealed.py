"""Whether a flow did all that it had sealed. Pure.

A command's plans are stored, one per attempt; the last one is what counts, the ones before it were given up for it. So
of a flow that ended well

* every command that counts ended successfully: the root, and each child that the last plan of one that counts names;
* every leaf of such a plan has its row (it was begun) and the row says SUCCESS,

unless it is below a node that is *best effort*: that may fail, or never be begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_LEAVES: Final = ("task", "call", "wait")


@dataclass(frozen=True)
class CommandFacts:
    """What is looked at of a command."""

    command_id: str
    parent_command_id: str
    node: str
    """Where in its parent's plan it stands: `attempt:path`."""
    command_type: str
    status: str
    plans: list[Mapping[str, Any]]


@dataclass(frozen=True)
class LeafFacts:
    """What is looked at of a begun task, call or wait."""

    command_id: str
    node: str
    task_id: str
    outcome: str
    """Its result; how far it is, if it has none."""


def undone(commands: Iterable[CommandFacts], leaves: Iterable[LeafFacts]) -> Iterator[str]:
    """Yields, in words, what a flow had sealed and did not do."""
    places = {(command.parent_command_id, command.node): command for command in commands}
    begun = {(leaf.command_id, leaf.node): leaf for leaf in leaves}
    counting = [command for command in places.values() if not command.parent_command_id]
    while counting:
        command = counting.pop()
        if command.status != "ENDED_SUCCESSFULLY":
            yield f"command {command.command_id} ({command.command_type}) is {command.status}"
        for path, plan in _declared(command):
            node = f"{len(command.plans)}:{path}"
            kind = plan.get("kind")
            if kind == "child":
                child = places.get((command.command_id, node))
                if child is None:
                    yield f"command {command.command_id} never began its child {plan.get('command_type')} at {node}"
                else:
                    counting.append(child)
            elif kind in _LEAVES:
                leaf = begun.get((command.command_id, node))
                if leaf is None:
                    yield f"command {command.command_id} never began its {kind} at {node}"
                elif leaf.outcome != "SUCCESS":
                    yield f"{kind} {leaf.task_id} is {leaf.outcome}"


def _declared(command: CommandFacts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes of a command's last plan that must have been done, with their paths."""
    to_walk = [("", command.plans[-1])] if command.plans else []
    while to_walk:
        path, plan = to_walk.pop()
        if plan.get("best_effort"):
            continue
        yield path, plan
        prefix = f"{path}." if path else ""
        to_walk += [(f"{prefix}{index}", part) for index, part in enumerate(plan.get("plans", ()))]
