"""A verb's signature is the schema of its arguments.

    async def create_volume(host: Sim, work: Work, *, volume_id: ObjectId, size_mb: Megabytes) -> Json: ...

takes exactly `volume_id` and `size_mb`; a parameter with a default may be left out. What a caller sends is checked when
the task is accepted, so a verb never sees a malformed argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NewType, get_type_hints

from hostagent.task import Json

ObjectId = NewType("ObjectId", str)
"""Names an object of the host: a volume, a VM."""
Megabytes = NewType("Megabytes", int)
"""A size of at least 1 MB."""

_LONGEST_ID: Final = 256


def _object_id(value: Json) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable():
        return None
    return f"must be a text of 1-{_LONGEST_ID} printable characters"


def _megabytes(value: Json) -> str | None:
    return None if type(value) is int and value > 0 else "must be a whole number of at least 1"


def _of_type(kind: type, name: str) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        return None if type(value) is kind else f"must be {name}"

    return check


_CHECKS: Final[dict[Any, Callable[[Json], str | None]]] = {
    ObjectId: _object_id,
    Megabytes: _megabytes,
    str: _of_type(str, "a text"),
    int: _of_type(int, "a whole number"),
    bool: _of_type(bool, "true or false"),
    list[Json]: _of_type(list, "a list"),
    dict[str, Json]: _of_type(dict, "an object"),
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a verb."""

    name: str
    required: bool
    check: Callable[[Json], str | None]
    """Returns what is wrong with a value, None if nothing."""


@dataclass(frozen=True, slots=True)
class ArgumentSchema:
    """The arguments that a verb takes."""

    arguments: Mapping[str, Argument]

    @classmethod
    def of(cls, verb: Callable[..., object]) -> ArgumentSchema:
        """Reads the schema out of a function's keyword-only parameters. Raises TypeError for a type without a check."""
        hints = get_type_hints(verb)
        parameters = inspect.signature(verb).parameters.values()
        return cls(
            {each.name: _argument(each, hints[each.name]) for each in parameters if each.kind is each.KEYWORD_ONLY}
        )

    def violations(self, arguments: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Returns what is wrong with arguments, as pairs of field path and what would be right."""
        known = self.arguments
        if arguments.keys() == known.keys():  # the way it nearly always is
            return [
                (f"arguments.{name}", problem)
                for name, value in arguments.items()
                if (problem := known[name].check(value)) is not None
            ]
        return list(self._all_violations(arguments))

    def _all_violations(self, arguments: Mapping[str, Json]) -> list[tuple[str, str]]:
        found = [(f"arguments.{name}", self._unknown(name)) for name in arguments if name not in self.arguments]
        for name, argument in self.arguments.items():
            if name not in arguments:
                found += [(f"arguments.{name}", "is missing")] if argument.required else []
            elif (problem := argument.check(arguments[name])) is not None:
                found.append((f"arguments.{name}", problem))
        return found

    def _unknown(self, name: str) -> str:
        return f"is not an argument of this verb, which takes {', '.join(self.arguments) or 'none'}"


def _argument(parameter: inspect.Parameter, hint: Any) -> Argument:
    if hint not in _CHECKS:
        raise TypeError(f"argument {parameter.name}: no check for {hint}")
    return Argument(parameter.name, parameter.default is parameter.empty, _CHECKS[hint])
