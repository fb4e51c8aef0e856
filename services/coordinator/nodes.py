"""A sealed plan at run time: one node for each plan node, with what has become of it.

        WAITING ──begin──▶ BEGUN ──over──▶ OVER(outcome)
           └──────────────skip────────────▶ OVER(SKIPPED)

A node knows its place (parent, index, path) and counts its unfinished children, so an end costs its depth, not its
siblings. What it stands for in the store (leaf, child command, step) has an id derived from (command, attempt, path).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from uuid import UUID, uuid5

from coordinator.plan import Concurrently, Plan, Serially
from coordinator.rows import Command, Failure, Leaf, Status, Step


class NodeState(IntEnum):
    """How far a node is."""

    WAITING = 0
    BEGUN = 1
    OVER = 2


class Outcome(IntEnum):
    """How a node went, ordered by what it means for the node above: the worst of the children counts."""

    OK = 0
    SKIPPED = 1
    ABORTED = 2
    UNKNOWN = 3
    FAILED = 4

    @property
    def status(self) -> Status:
        """The status of a step that shows it."""
        return _STEP_STATUS[self]


_STEP_STATUS = {
    Outcome.OK: Status.FINISHED,
    Outcome.SKIPPED: Status.SKIPPED,
    Outcome.ABORTED: Status.ABORTED,
    Outcome.UNKNOWN: Status.UNKNOWN,
    Outcome.FAILED: Status.FAILED,
}


def derived_id(command_id: str, attempt: int, path: str, kind: str) -> str:
    """The id of what a node begins (kind "leaf" or "command") or of the step that shows it ("step")."""
    return str(uuid5(UUID(command_id), f"{kind}:{attempt}:{path}"))


class Node:
    """One node of a sealed plan."""

    __slots__ = (
        "attempt",
        "children",
        "command",
        "error",
        "index",
        "leaf",
        "outcome",
        "parent",
        "path",
        "plan",
        "progress",
        "state",
        "step",
        "total_weight",
        "unfinished",
        "worst",
    )

    def __init__(self, command: LiveCommand, plan: Plan, attempt: int, path: str, parent: Node | None, index: int):
        self.command = command
        self.plan = plan
        self.attempt = attempt
        self.path = path
        self.parent = parent
        self.index = index
        self.children: list[Node] = []
        self.state = NodeState.WAITING
        self.outcome = Outcome.OK  # means something once OVER
        self.worst = Outcome.OK  # of the children that are over
        self.error: Failure | None = None  # of the first part that failed
        self.unfinished = 0
        self.step: Step | None = None  # the step that it names
        self.leaf: Leaf | None = None  # once begun
        self.progress = 0.0
        self.total_weight = 0.0

    def id(self, kind: str) -> str:
        """See `derived_id`."""
        return derived_id(self.command.row.command_id, self.attempt, self.path, kind)

    @property
    def above(self) -> Node | None:
        """The node above, also across the border to the parent command's plan."""
        return self.parent if self.parent is not None else self.command.node

    def nearest_step(self) -> Step | None:
        """The step that shows it, or else the nearest above."""
        node: Node | None = self
        while node is not None:
            if node.step is not None:
                return node.step
            node = node.above
        return None

    def walk(self) -> Iterator[Node]:
        """Itself and all below, in the order of their paths."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


class LiveCommand:
    """A command of a live flow: its row, where it hangs in its parent's plan, and its own plan once sealed."""

    __slots__ = ("conflicts", "depth", "names_no_return", "node", "outcome", "root", "row")

    def __init__(self, row: Command, node: Node | None, depth: int):
        self.row = row
        self.node = node  # None on the flow's root
        self.depth = depth
        self.root: Node | None = None  # of the current attempt's plan; None until sealed
        self.outcome = Outcome.OK  # of its work, once over
        self.names_no_return = False  # its plan says itself where the point of no return is
        self.conflicts = 0  # how often its notes met a change of what it had read


def build(command: LiveCommand, plan: Plan, attempt: int) -> Node:
    """Makes the nodes of a plan, without recursion: plans may be long chains."""
    root = Node(command, plan, attempt, "", None, 0)
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node.plan, Concurrently | Serially):
            prefix = f"{node.path}." if node.path else ""
            for index, below in enumerate(node.plan.plans):
                child = Node(command, below, attempt, f"{prefix}{index}", node, index)
                node.children.append(child)
                node.total_weight += below.weight
            node.unfinished = len(node.children)
            stack.extend(node.children)
    return root
