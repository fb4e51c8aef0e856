"""Whether what a command's code hands over can be stored: looked at while it is still known whose it is.

A plan or a note that cannot be stored would be found out when the commit is written down or when the store reads it.
By then it would be the flow's defect: loaded anew, planned anew, for ever, its locks held. Found here it is the failure
of the command whose code made it, and the flow goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from coordinator import wire
from coordinator.flow.planjson import plan_to_json
from coordinator.plan import (
    Call,
    Change,
    Child,
    Concurrently,
    EntityRef,
    Nothing,
    Plan,
    Serially,
    Task,
    WaitFor,
)
from coordinator.rows import EntityChange, EventNote, LockKey, Notes

_LONGEST_DEADLINE: Final = 100 * 365 * 86_400.0  # a time that has a place in the calendar
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it


def check_plan(plan: object) -> None:
    """Raises TypeError or ValueError, saying what is wrong, if this is no plan or cannot be stored."""
    for node in _nodes(plan):
        _check_node(node)
    _check_json("the plan", plan_to_json(plan))  # type: ignore[arg-type]


def check_notes(notes: Notes) -> None:
    """Raises TypeError or ValueError, saying what is wrong, if what a command noted cannot be stored."""
    for change in notes.changes:
        _check_change(change)
    for event in notes.events:
        _check_event(event)
    for lock in notes.locks:
        if not isinstance(lock, LockKey):
            raise TypeError(f"locks must return keys, not {_shown(lock)}")
        _check_entities([lock.entity])
        _check_number("wait of a lock", lock.wait, _LONGEST_DEADLINE)


def _nodes(plan: object) -> Iterator[Plan]:
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Plan):
            raise TypeError(f"execute must return a plan, not {_shown(node)}")
        yield node
        if isinstance(node, Concurrently | Serially):
            waiting += node.plans


def _check_json(what: str, content: object) -> None:
    """Raises TypeError or ValueError if something has no place in the store's JSON: NaN, NUL, half a character."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False)
    text.encode()
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError(f"{what} has a NUL character")


def _check_node(node: Plan) -> None:
    _check_texts("a plan's step and description", node.step, node.description)
    _check_number("weight", node.weight, math.inf)
    _check_entities(node.subjects)
    match node:
        case Task() | Call():
            _check_texts("host_id and verb", node.host_id, node.verb)
            if not node.host_id:
                raise ValueError(f"{node.verb} needs a host: its id is empty")
            _check_entities([node.entity] if node.entity is not None else [])
            _check_deadline(node.deadline)
        case WaitFor():
            _check_entities([node.entity, *([node.beside] if node.beside is not None else [])])
            _check_deadline(node.deadline)
        case Change():
            _check_change(EntityChange(node.entity, node.name, node.status, node.declared))
        case Child():
            _check_texts("command_type", node.command_type)
            if not isinstance(node.as_job, bool):
                raise TypeError(f"as_job must be true or false, not {_shown(node.as_job)}")
        case Nothing() | Concurrently() | Serially():
            pass


def _check_change(change: EntityChange) -> None:
    _check_entities([change.entity])
    _check_texts("name and status of an entity", change.name or "", change.status or "")
    if change.declared is not None:
        _check_json(f"what is declared of {change.entity}", dict(change.declared))


def _check_event(event: EventNote) -> None:
    _check_texts("type and message of an event", event.event_type, event.message, event.user)
    _check_entities([event.entity] if event.entity is not None else [])


def _check_entities(entities: Iterable[object]) -> None:
    for entity in entities:
        if not isinstance(entity, EntityRef) or entity.entity_type not in wire.ENTITY:
            raise TypeError(f"{_shown(entity)} names no entity")
        _check_texts("the id of an entity", entity.entity_id)


def _check_texts(what: str, *texts: object) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be text, not {_shown(text)}")
        if "\0" in text:
            raise ValueError(f"{what} must not have NUL characters")
        text.encode()


def _check_deadline(deadline: Any) -> None:
    if deadline is not None:
        _check_number("deadline", deadline, _LONGEST_DEADLINE)


def _check_number(what: str, number: object, most: float) -> None:
    if not isinstance(number, int | float) or not 0 <= number <= most or number == math.inf:
        raise ValueError(f"{what} must be a number of at least 0, not {_shown(number)}")


def _shown(thing: object) -> str:
    return repr(thing)[:100]
