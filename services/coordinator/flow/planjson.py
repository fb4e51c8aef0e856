"""Plans as they are stored: JSON, one object a node, `kind` saying which; fields at their default are left out.

    {"kind": "serially", "plans": [{"kind": "task", "host_id": "h1", "verb": "copyImage"}, {"kind": "nothing"}]}

What is written is read back as it was, also by a later release: kinds and fields may be added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from coordinator.plan import (
    Call,
    Change,
    Child,
    Concurrently,
    Condition,
    EntityRef,
    Former,
    Inlined,
    Nothing,
    Plan,
    Serially,
    Task,
    WaitFor,
)

Json = Any

MAX_NESTING: Final = 64
"""Nodes within nodes. A chain may be as long as it likes; what nests deeper than this is no plan but a mistake."""

_KINDS: Final[dict[type[Any], str]] = {
    Nothing: "nothing",
    Task: "task",
    Call: "call",
    Child: "child",
    WaitFor: "wait",
    Change: "change",
    Concurrently: "concurrently",
    Serially: "serially",
}
_CLASSES: Final = {kind: cls for cls, kind in _KINDS.items()}
_FIELDS: Final = {
    cls: tuple((f.name, {} if f.default_factory is dict else f.default) for f in fields(cls) if f.name != "plans")
    for cls in _KINDS
}


def plan_to_json(plan: Plan) -> dict[str, Json]:
    """Writes a plan as JSON; fields at their default are left out.

    Raises:
        ValueError: it nests deeper than `MAX_NESTING`.
    """
    return _to_json(plan, MAX_NESTING)


def attempt_to_json(plan: Plan, *, cleanup: bool) -> dict[str, Json]:
    """Writes the plan of an attempt, and whether it is there to clean up after the one before.

    Raises:
        ValueError: it nests deeper than `MAX_NESTING`.
    """
    written = plan_to_json(plan)
    return {**written, "cleanup": True} if cleanup else written


def attempt_from_json(data: Mapping[str, Json]) -> tuple[Plan, bool]:
    """Reads the plan of an attempt back, and whether it cleans up.

    Raises:
        ValueError: no plan node of that kind, or with such a field.
    """
    if "cleanup" not in data:
        return plan_from_json(data), False
    return plan_from_json({name: value for name, value in data.items() if name != "cleanup"}), True


def _to_json(plan: Plan, levels: int) -> dict[str, Json]:
    cls = type(plan)
    result: dict[str, Json] = {"kind": _KINDS[cls]}
    for name, default in _FIELDS[cls]:
        value = getattr(plan, name)
        if value is not default and value != default:
            result[name] = _WRITERS[name](value) if name in _WRITERS else value
    if isinstance(plan, Concurrently | Serially) and plan.plans:
        if not levels:
            raise ValueError(f"a plan is nested deeper than {MAX_NESTING}")
        result["plans"] = [_to_json(below, levels - 1) for below in plan.plans]
    return result


def _ref_to_json(ref: EntityRef) -> Json:
    return [ref.entity_type, ref.entity_id]


def _condition_to_json(condition: Condition) -> Json:
    return {name: list(values) for name, values in condition.fields}


_WRITERS: Final[dict[str, Any]] = {
    "entity": _ref_to_json,
    "subjects": lambda refs: [_ref_to_json(ref) for ref in refs],
    "until": _condition_to_json,
    "fails_if": _condition_to_json,
    "beside": _ref_to_json,
    "gives_up_if": _condition_to_json,
    "inlined": lambda child: {
        "command_type": child.command_type,
        "parameters": child.parameters,
        "parameters_version": child.parameters_version,
    },
    "former": lambda former: former and {"name": former.name, "status": former.status, "declared": former.declared},
}


def plan_from_json(data: Mapping[str, Json]) -> Plan:
    """Reads a plan back.

    Raises:
        ValueError: no plan node of that kind, or with such a field.
    """
    cls = _CLASSES.get(data.get("kind", ""))
    if cls is None:
        raise ValueError(f"no plan node of kind {data.get('kind')!r}")
    options = {name: _READERS[name](value) if name in _READERS else value for name, value in data.items()}
    del options["kind"]
    try:
        result: Plan = cls(**options)
    except TypeError as error:
        raise ValueError(f"no plan node {data['kind']} with fields {sorted(options)}") from error
    return result


def _condition_from_json(value: Mapping[str, Sequence[str]]) -> Condition:
    return Condition(tuple((name, tuple(values)) for name, values in value.items()))


_READERS: Final[dict[str, Any]] = {
    "entity": lambda value: EntityRef(*value),
    "subjects": lambda value: tuple(EntityRef(*item) for item in value),
    "until": _condition_from_json,
    "fails_if": _condition_from_json,
    "beside": lambda value: value and EntityRef(*value),
    "gives_up_if": _condition_from_json,
    "inlined": lambda value: value and Inlined(**value),
    "former": lambda value: value and Former(**value),
    "plans": lambda value: tuple(plan_from_json(item) for item in value),
}
