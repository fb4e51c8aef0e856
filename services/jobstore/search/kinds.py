"""The kinds of values that fields have: how one is written, and how it is compared, in SQL and in Python alike.

Both comparisons stand side by side here and nowhere else, so that a list and a watch of one filter agree; a test holds
them against each other on random rows. Where SQL has a meaning of its own, it is made to follow: text is compared byte
by byte, letters are folded in ASCII alone, and what is absent fulfils nothing (the opposite of that is true of it).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeAlias

from chassis.context import valid_correlation_id
from jobstore.messages import ENTITY_TYPE
from jobstore.search.grammar import Literal

MAX_NAME_LENGTH: Final = 256
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Bindings:
    """The values of one statement, in the order of their placeholders."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)

    def __call__(self, value: object) -> str:
        """Binds a value and returns its placeholder, `$3`."""
        self.values.append(value)
        return f"${len(self.values)}"


class Relation(Enum):
    """How a field's value must stand to the one that is given."""

    EQUALS = "="
    LIKE = "like"
    """The given one is a pattern."""
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    CONTAINS = ":"
    """The given one, a pattern, is found in it, in small or capital letters."""
    PRESENT = "*"
    """It is there."""


@dataclass(frozen=True)
class Pattern:
    """A text with gaps, which stand for anything."""

    parts: tuple[str, ...]
    """What stands between the gaps."""

    def __repr__(self) -> str:
        return repr(self.parts)

    def like(self) -> str:
        """The same for LIKE."""
        return "%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in self.parts)

    def matches(self, text: str) -> bool:
        """Tells whether a text fits. Each part is looked for once: no pattern is slow."""
        first, *middle, last = self.parts
        if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


Value: TypeAlias = "str | bool | int | datetime | timedelta | tuple[str, str] | tuple[str, Pattern] | Pattern"
Test: TypeAlias = Callable[[Any], bool]

EQUALITY: Final = ("=", "!=", ":")
ORDER: Final = ("=", "!=", "<", "<=", ">", ">=", ":")

_COMPARE: Final[dict[Relation, Callable[[Any, Any], bool]]] = {
    Relation.EQUALS: operator.eq,
    Relation.LESS: operator.lt,
    Relation.AT_MOST: operator.le,
    Relation.MORE: operator.gt,
    Relation.AT_LEAST: operator.ge,
}


class Kind:
    """A kind of values. `expected` says how one is written."""

    expected: str
    operators: tuple[str, ...] = EQUALITY

    def read(self, literal: Literal) -> Value:
        """Turns a value as written into one to compare with; raises ValueError saying what would be right."""
        raise NotImplementedError

    def relation(self, operator: str, value: Value) -> Relation:
        """How a value must stand to one that was read, for an operator."""
        if operator in ("=", "!=", ":"):
            return Relation.LIKE if isinstance(value, Pattern) else Relation.EQUALS
        return Relation(operator)

    def sql(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str:
        """The condition for a WHERE. It need not be true nor false where the column is NULL."""
        if relation is Relation.PRESENT:
            return self.presence(column)
        return f"{column} {relation.value} {bind(value)}"

    def opposite(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str | None:
        """The condition for its opposite; None: there is none that is better than `IS NOT TRUE`."""
        return None

    def presence(self, column: str) -> str:
        """The condition that there is a value."""
        return f"{column} IS NOT NULL"

    def test(self, relation: Relation, value: Value | None) -> Test:
        """The same as a predicate over a value, which is not None."""
        if relation is Relation.PRESENT:
            return self.is_present
        compare = _COMPARE[relation]
        return lambda found: compare(found, value)

    def is_present(self, found: Any) -> bool:
        """Tells whether a value counts as one."""
        return True


# --- texts ---------------------------------------------------------------------------------------------------------


class Text(Kind):
    """A name or the like. Empty: there is none."""

    expected = f"a text of at most {MAX_NAME_LENGTH} characters, * for anything"

    def read(self, literal: Literal) -> Value:
        if len(literal.text) > MAX_NAME_LENGTH:
            raise ValueError(self.expected)
        return Pattern(literal.parts) if literal.is_pattern else literal.text

    def sql(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str:
        if isinstance(value, Pattern):
            return f"{column} LIKE {bind(value.like())}"
        return super().sql(column, relation, value, bind)

    def presence(self, column: str) -> str:
        return f"{column} <> ''"

    def test(self, relation: Relation, value: Value | None) -> Test:
        return value.matches if isinstance(value, Pattern) else super().test(relation, value)

    def is_present(self, found: Any) -> bool:
        return bool(found)


class Uuid(Text):
    """An id of ours."""

    expected = "a UUID, * for any part of it"

    def read(self, literal: Literal) -> Value:
        text = literal.text
        if not (re.fullmatch(r"[0-9a-f*-]{0,99}", text, re.IGNORECASE) if literal.is_pattern else UUID.fullmatch(text)):
            raise ValueError(self.expected)
        return Pattern(tuple(part.lower() for part in literal.parts)) if literal.is_pattern else text.lower()


class CorrelationId(Text):
    """What ties an action together."""

    expected = "1-50 of [0-9A-Za-z_-], * for anything"

    def read(self, literal: Literal) -> Value:
        known = "".join(literal.parts)
        if not (literal.is_anything or valid_correlation_id(known)):
            raise ValueError(self.expected)
        return super().read(literal)


_SMALL: Final = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}


class Prose(Text):
    """What people read: `:` looks for a text in it, in small or capital letters (of ASCII)."""

    expected = "a text, * for anything"
    operators = (":", "=", "!=")

    def read(self, literal: Literal) -> Value:
        return Pattern(literal.parts) if literal.is_pattern else literal.text

    def relation(self, operator: str, value: Value) -> Relation:
        return Relation.CONTAINS if operator == ":" else super().relation(operator, value)

    def sql(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str:
        if relation is Relation.CONTAINS:
            # By the rules of "C" whatever the database's are: these are the only letters that it knows.
            return f"""lower({column} COLLATE "C") LIKE {bind(_anywhere(value).like())}"""
        return super().sql(column, relation, value, bind)

    def test(self, relation: Relation, value: Value | None) -> Test:
        if relation is Relation.CONTAINS:
            pattern = _anywhere(value)
            return lambda found: pattern.matches(found.translate(_SMALL))
        return super().test(relation, value)


def _anywhere(value: Value | None) -> Pattern:
    """A pattern for what contains a text, in small letters."""
    parts = value.parts if isinstance(value, Pattern) else (str(value),)
    return Pattern(("", *(part.translate(_SMALL) for part in parts), ""))


# --- choices -------------------------------------------------------------------------------------------------------


class Choice(Kind):
    """One of some names."""

    def __init__(self, names: Iterable[str | None]) -> None:
        self.names = [name for name in names if name is not None]
        self.expected = f"one of {', '.join(self.names)}"

    def read(self, literal: Literal) -> Value:
        if literal.text not in self.names:
            raise ValueError(self.expected)
        return literal.text


class Status(Choice):
    """How far a job is. Nearly every job is FINISHED, so the index leaves those out, and must be told that we do."""

    _UNFINISHED: Final = "<> 'FINISHED'"

    def sql(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str:
        condition = super().sql(column, relation, value, bind)
        if relation is Relation.PRESENT or value == "FINISHED":
            return condition
        return f"{condition} AND {column} {self._UNFINISHED}"

    def opposite(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str | None:
        if relation is Relation.PRESENT:
            return None
        return f"{column} {self._UNFINISHED if value == 'FINISHED' else f'<> {bind(value)}'}"


class Flag(Kind):
    """Yes or no."""

    expected = "true or false"

    def read(self, literal: Literal) -> Value:
        if literal.text not in ("true", "false"):
            raise ValueError(self.expected)
        return literal.text == "true"


# --- what has an order ---------------------------------------------------------------------------------------------


class Number(Kind):
    """A whole number, as Postgres' `integer`."""

    expected = f"a whole number, at most {(1 << 31) - 1:,}"
    operators = ORDER

    def read(self, literal: Literal) -> Value:
        if not re.fullmatch(r"-?[0-9]{1,10}", literal.text) or not -(1 << 31) < (number := int(literal.text)) < 1 << 31:
            raise ValueError(self.expected)
        return number


_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6}0*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Time(Kind):
    """A moment, as RFC 3339 has it."""

    expected = "a time like 2026-11-22T08:00:00Z or 2026-11-22T09:00:00.5+01:00"
    operators = ORDER

    def read(self, literal: Literal) -> Value:
        try:
            if not _TIME.fullmatch(literal.text):
                raise ValueError
            return datetime.fromisoformat(literal.text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(self.expected) from None


_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_MICROSECONDS: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LONGEST: Final = timedelta(days=36_500)


class Duration(Kind):
    """A length of time."""

    expected = "a duration like 20s, 1.5s, 300ms or 1h30m (ms, s, m, h, d)"
    operators = ORDER

    def read(self, literal: Literal) -> Value:
        pieces = _DURATION.findall(literal.text)
        if not pieces or "".join(number + unit for number, unit in pieces) != literal.text:
            raise ValueError(self.expected)
        microseconds = sum(Decimal(number) * _MICROSECONDS[unit] for number, unit in pieces)
        if microseconds != int(microseconds) or microseconds > _LONGEST // timedelta(microseconds=1):
            raise ValueError(self.expected)
        return timedelta(microseconds=int(microseconds))


# --- things --------------------------------------------------------------------------------------------------------


class EntityName(Kind):
    """An entity, by type and id: a pair, in two columns of these names: `{column}.entity_type` and `.entity_id`."""

    expected = (
        "TYPE/id, as in VM/vm-1, or VM/* for all of a type, with TYPE one of "
        f"{', '.join(name for name in ENTITY_TYPE if name is not None)}"
    )

    def read(self, literal: Literal) -> Value:
        entity_type, slash, first = literal.parts[0].partition("/")
        parts = (first, *literal.parts[1:])
        entity_id = "*".join(parts)
        if not (slash and entity_id and entity_type in ENTITY_TYPE and len(entity_id) <= MAX_NAME_LENGTH):
            raise ValueError(self.expected)
        return (entity_type, Pattern(parts)) if literal.is_pattern else (entity_type, entity_id)

    def relation(self, operator: str, value: Value) -> Relation:
        return Relation.LIKE if isinstance(value, tuple) and isinstance(value[1], Pattern) else Relation.EQUALS

    def sql(self, column: str, relation: Relation, value: Value | None, bind: Bindings) -> str:
        if relation is Relation.PRESENT:
            return self.presence(f"{column}.entity_type")
        assert isinstance(value, tuple)
        entity_type, entity_id = value
        is_type = f"{column}.entity_type = {bind(entity_type)}"
        if isinstance(entity_id, Pattern):
            return f"{is_type} AND {column}.entity_id LIKE {bind(entity_id.like())}"
        return f"{is_type} AND {column}.entity_id = {bind(entity_id)}"

    def test(self, relation: Relation, value: Value | None) -> Test:
        if relation is Relation.PRESENT:
            return self.is_present
        assert isinstance(value, tuple)
        entity_type, entity_id = value
        if isinstance(entity_id, Pattern):
            return lambda found: bool(found[0] == entity_type and entity_id.matches(found[1]))
        return lambda found: bool(found == value)


class Something(Kind):
    """What is there or not, and is asked for nothing else."""

    operators = (":",)

    def __init__(self, instead: str) -> None:
        """`instead` says which fields can be compared."""
        self.expected = f"* (it is there), no value; {instead}"

    def read(self, literal: Literal) -> Value:
        raise ValueError(self.expected)
