"""An attempt of a command that failed, as its `after_failure` sees it. Plain data, standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.plan import Call, Concurrently, Plan, Serially, Task
from coordinator.rows import Failure

MOST_ATTEMPTS = 16
"""Of one command: more is no plan but a mistake."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What is known of an attempt that is over and did not go well.

    error: why; its reason is ABORTED if it was stopped on request.
    plans: of all attempts so far; the last is the one that failed.
    begun, done: paths of the nodes of the last plan that began, and that went well ("" is its root).
    unknown, dirty: paths of those of which nobody can tell, and of those that failed and were not rolled back.
    past_no_return: a node marked `no_return` has begun, in this attempt or a former one.
    canceled: the job is to stop; nothing but a clean-up will be tried.
    """

    error: Failure
    plans: tuple[Plan, ...]
    begun: frozenset[str] = frozenset()
    done: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    dirty: frozenset[str] = frozenset()
    past_no_return: bool = False
    canceled: bool = False

    @property
    def number(self) -> int:
        """Which attempt it was; 1 is the first."""
        return len(self.plans)

    def has_begun(self, path: str) -> bool:
        """Tells whether a node of the last plan began."""
        return path in self.begun

    def went_well(self, path: str) -> bool:
        """Tells whether a node of the last plan is over and went well."""
        return path in self.done

    def may_have_left(self, path: str) -> bool:
        """Tells whether there may be something to take back: it went well, or was not rolled back, or nobody knows."""
        return path in self.done or path in self.dirty or path in self.unknown

    def hosts_tried(self) -> list[str]:
        """The hosts that tasks and calls of all attempts so far name, in the order in which they first do."""
        nodes = (node for plan in self.plans for node in _nodes(plan))
        return list(dict.fromkeys(node.host_id for node in nodes if isinstance(node, Task | Call)))


def _nodes(plan: Plan) -> Iterator[Plan]:
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, Concurrently | Serially):
            waiting.extend(reversed(node.plans))
