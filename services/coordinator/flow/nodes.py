"""A sealed plan at run time: one node for each plan node, with what has become of it.

        WAITING ──begin──▶ BEGUN ──over──▶ OVER(outcome)
           └──────────────skip────────────▶ OVER(SKIPPED)

A node knows its place (parent, index, path) and counts its unfinished parts, so an end costs its depth, not its
siblings. What it stands for in the store (leaf, child command, step) has an id derived from (command, attempt, path).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from hashlib import sha1
from typing import Final

from coordinator.plan import Call, Change, Child, Concurrently, Plan, Serially, Task, WaitFor
from coordinator.rows import Command, Failure, Job, Leaf, Status, Step

OUTWARD: Final = (Task, Call, WaitFor, Child)
"""What leaves a row when it begins; everything else is over in the turn in which it begins, or is made of these."""
WORK: Final = (*OUTWARD, Change)
"""What does something."""


class NodeState(IntEnum):
    """How far a node is."""

    WAITING = 0
    BEGUN = 1
    OVER = 2


class Outcome(IntEnum):
    """How a node went, ordered by what it means for the node above: the worst of the parts counts."""

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


def namespace_of(command_id: str) -> bytes:
    """A command's id as the namespace of the ids that are derived from it."""
    return bytes.fromhex(command_id.replace("-", ""))


def derived_id(namespace: bytes, attempt: int, path: str, kind: str) -> str:
    """The id of what a node begins (kind "leaf" or "command") or of the step that shows it ("step").

    That of `uuid.uuid5`, made by hand: every flow needs some.
    """
    text = sha1(namespace + f"{kind}:{attempt}:{path}".encode(), usedforsecurity=False).hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


def span_id_of(id_: str) -> str:
    """The span reserved for a command or task, 16 hex digits: the random half of its id, the same in every process."""
    return id_[19:23] + id_[24:]


_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class Node:
    """One node of a sealed plan."""

    __slots__ = (
        "attempt",
        "command",
        "culprit",
        "error",
        "index",
        "leaf",
        "outcome",
        "parent",
        "parts",
        "path",
        "plan",
        "progress",
        "share",
        "state",
        "step",
        "unfinished",
        "worst",
    )

    def __init__(self, command: LiveCommand, plan: Plan, attempt: int, path: str, parent: Node | None, index: int):
        self.command = command
        self.plan = plan
        self.attempt = attempt
        self.path = path
        self.parent = parent  # None on the root of a plan
        self.index = index
        self.parts: list[Node] = []
        self.share = 1.0  # of its parent's progress
        self.state = NodeState.WAITING
        self.outcome = Outcome.OK  # means something once OVER
        self.worst = Outcome.OK  # of the parts that are over
        self.culprit: Node | None = None  # the first part that went as badly as that
        self.error: Failure | None = None  # that part's, or its own
        self.unfinished = 0
        self.step: Step | None = None  # the step that it names
        self.leaf: Leaf | None = None  # once begun
        self.progress = 0.0

    def id(self, kind: str) -> str:
        """See `derived_id`."""
        return derived_id(self.command.namespace, self.attempt, self.path, kind)

    @property
    def place(self) -> tuple[str, int, str]:
        """By which rows name it."""
        return (self.command.row.command_id, self.attempt, self.path)

    @property
    def above(self) -> Node | None:
        """The node above, also across the border to the parent command's plan."""
        return self.parent if self.parent is not None else self.command.node

    def nearest_step(self) -> Step | None:
        """The step that shows it, or else the nearest above; None if there is none below the flow's EXECUTION.

        The border of a job is not crossed: above all nodes of a child that shows as one is its own EXECUTION.
        """
        node: Node | None = self
        while node is not None:
            if node.step is not None:
                return node.step
            if node.parent is None and node.command.execution is not None:
                return node.command.execution
            node = node.above
        return None

    def walk(self) -> Iterator[Node]:
        """Itself and all below, in the order of their paths."""
        if not self.parts:
            yield self
            return
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.parts))

    def reaches_out(self) -> bool:
        """Tells whether anything in it leaves a row when it begins."""
        return any(isinstance(node.plan, OUTWARD) for node in self.walk())


class LiveCommand:
    """A command of a live flow: its row, where it hangs in its parent's plan, and its own plan once sealed."""

    __slots__ = (
        "cleans",
        "depth",
        "execution",
        "failed",
        "has_work",
        "inlined",
        "job",
        "names_no_return",
        "namespace",
        "node",
        "outcome",
        "past_no_return",
        "progress",
        "root",
        "row",
        "spared",
    )

    def __init__(self, row: Command, node: Node | None, depth: int):
        self.row = row
        self.namespace = namespace_of(row.command_id)
        self.node = node  # None on the flow's root
        self.depth = depth
        self.job: Job | None = None  # of a child that shows as one
        self.execution: Step | None = None  # that job's
        self.root: Node | None = None  # of the current attempt's plan; None until sealed
        self.outcome = Outcome.OK  # of its work, once over
        self.cleans = False  # the current attempt is a clean-up
        self.failed: Node | None = None  # the root of the attempt that is cleaned up after: its failure stands
        self.spared: bool = (
            node is not None and node.command.spared
        )  # it, or what it is part of, is: no cancel stops it
        self.progress = 0.0  # of the attempt that came furthest
        self.past_no_return = False  # something of it has begun that cannot be undone
        self.names_no_return = False  # its plan says itself where the point of no return is
        self.has_work = False  # its plan does something
        self.inlined: list[Node] = []  # of all attempts, what stands for children without rows

    @property
    def shows_as_job(self) -> bool:
        """True of the flow's root, and of a child that asked for it."""
        return self.node is None or self.job is not None


def build(command: LiveCommand, plan: Plan, attempt: int) -> Node:
    """Makes the nodes of a plan, without recursion: plans may be long chains."""
    root = Node(command, plan, attempt, "", None, 0)
    stack = [root] if isinstance(plan, Concurrently | Serially) else []
    while stack:
        node = stack.pop()
        assert isinstance(node.plan, Concurrently | Serially)
        plans = node.plan.plans
        prefix = f"{node.path}." if node.path else ""
        total = sum(part.weight for part in plans)
        for index, below in enumerate(plans):
            part = Node(command, below, attempt, f"{prefix}{index}", node, index)
            part.share = below.weight / total if total > 0 else 1 / len(plans)
            node.parts.append(part)
            if isinstance(below, Concurrently | Serially):
                stack.append(part)
        node.unfinished = len(plans)
    return root
