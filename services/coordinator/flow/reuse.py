"""What of a former flow is not done again when its job is restarted. Pure.

A restarted job is a new flow of the same command: it is validated, planned and sealed like any other. What the former
flow had done well is then taken as done, in the commit that seals the plan, where both plans say the same at the same
place:

| in the former flow | in the new one |
| --- | --- |
| a task that ended with SUCCESS | its row is there from the beginning, over; no host is asked |
| a child that ended successfully | so is its row; it is not planned again |
| any other child | planned again; what it had done well is reused by the same rule |
| calls, waits, changes | done again: they are harmless, and say how things are now |
| whatever belongs to a command with a further attempt | done again: that attempt may have undone it |

Rows that are over are gone past as after a crash, so nothing else needs to know of this.
"""

from __future__ import annotations

from typing import Any

from coordinator.flow.leaves import intent
from coordinator.flow.nodes import LiveCommand, Node
from coordinator.flow.planjson import plan_to_json
from coordinator.plan import Child, Task
from coordinator.rows import Command, CommandStatus, FlowRows, Json, Leaf, LeafKind

_TASKS_END = "SUCCESS"


class Reuse:
    """See the module."""

    def __init__(self, former: FlowRows) -> None:
        self._commands = {row.command_id: row for row in former.commands}
        self._children = {(row.parent_command_id, row.node): row for row in former.commands}
        self._done = {
            (leaf.command_id, leaf.path): leaf
            for leaf in former.leaves
            if leaf.kind is LeafKind.TASK and leaf.result == _TASKS_END and leaf.attempt == 1
        }
        self._nodes: dict[str, dict[str, Json]] = {}  # of a former command's plan, by path
        self._former: dict[str, Command] = {}  # by the id of the command that it is done again by
        for row in former.commands:
            if not row.parent_command_id:
                self._root = row

    def former(self, command: LiveCommand) -> Command | None:
        """The command of the former flow that this one does again; None if there was none, or not once."""
        if command.node is None:
            found: Command | None = self._root
        else:
            above = self.former(command.node.command)
            node = command.row.node
            found = self._children.get((above.command_id, node)) if above is not None else None
        return found if found is not None and len(found.plans) <= 1 else None

    def leaf(self, node: Node, task_id: str, step_id: str) -> Leaf | None:
        """The row of a task that is done; None if it is to be done."""
        assert isinstance(node.plan, Task)
        done = self._same(node)
        former = self._done.get((done.command_id, node.path)) if done is not None else None
        if former is None:
            return None
        leaf = intent(node, task_id, step_id, 0.0)
        leaf.state, leaf.result, leaf.answer, leaf.incarnation = (
            "FINISHED",
            _TASKS_END,
            former.answer,
            former.incarnation,
        )
        leaf.deadline = 0.0
        return leaf

    def is_done(self, node: Node) -> bool:
        """Tells whether the child at a node had ended well."""
        assert isinstance(node.plan, Child)
        above = self._same(node)
        child = self._children.get((above.command_id, f"1:{node.path}")) if above is not None else None
        return child is not None and child.status is CommandStatus.ENDED_SUCCESSFULLY

    def _same(self, node: Node) -> Command | None:
        """The former command of a node's command, if its plan says the same at that place."""
        if node.attempt != 1:
            return None
        former = self.former(node.command)
        if former is None or not former.plans:
            return None
        if former.command_id not in self._nodes:
            self._nodes[former.command_id] = _by_path(former.plans[0])
        return former if self._nodes[former.command_id].get(node.path) == plan_to_json(node.plan) else None


def _by_path(plan: Any) -> dict[str, Json]:
    """The nodes of a stored plan by their paths."""
    nodes, waiting = {}, [("", plan)]
    while waiting:
        path, node = waiting.pop()
        nodes[path] = node
        prefix = f"{path}." if path else ""
        waiting += [(f"{prefix}{index}", part) for index, part in enumerate(node.get("plans", ()))]
    return nodes
