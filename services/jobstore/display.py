"""The order in which a tree is shown: parents before their children, siblings by number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def in_display_order(
    items: Iterable[T], name: Callable[[T], str], parent: Callable[[T], str], number: Callable[[T], Any]
) -> list[T]:
    """Returns the items of one or more trees in display order. One whose parent is not among them counts as a root.

    Walks without recursion: trees may be deep.
    """
    items = list(items)
    names = {name(item) for item in items}
    children: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        children[parent(item) if parent(item) in names else ""].append(item)
    shown: list[T] = []
    to_show = _last_first(children[""], number)
    while to_show:
        item = to_show.pop()
        shown.append(item)
        to_show += _last_first(children[name(item)], number)
    return shown


def _last_first(siblings: Sequence[T], number: Callable[[T], Any]) -> list[T]:
    return sorted(siblings, key=number, reverse=True)


def plan_order(node: str) -> tuple[int, ...]:
    """Where a child command stands among its siblings: attempt, then path in the plan (`"2:0.1"` is (2, 0, 1))."""
    attempt, _, path = node.partition(":")
    return tuple(int(part) for part in (attempt, *path.split(".")) if part)
