"""Reads a filter once and uses it twice: as SQL for lists, as a predicate over messages for watches.

    filter      = [ comparison { "AND" comparison } ]
    comparison  = name ( "=" | "!=" ) value
    value       = word | "quoted" | 'quoted'          (backslash escapes inside quotes)

This is the part of AIP-160 that this release answers; the rest of the grammar adds nodes to the tree and changes
nothing else, because a node must only ever be able to do two things:

`sql(bind)`     the condition for a WHERE, every value bound, never part of the text.
`truth(job)`    True or False.

Both are three-valued when asked to leave out what changes: a comparison of a changing field is then NULL, or None, for
"cannot tell", and what is made of AND, OR and NOT follows Kleene, as SQL does by itself. So false then means that the
job cannot match *whatever becomes of it*: rule 3 of the watch.

An unknown field is refused by name, with the list of those that there are (`fields.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Final, Protocol

from chassis.errors import WaybillError, invalid_field
from jobstore.fields import ENTITIES, EVENTS, JOBS, Bindings, Field, Value
from waybill.v1 import jobs_pb2

MAX_LENGTH: Final = 4_000


class Verdict(Enum):
    """What a watch does with a job that has changed."""

    MATCHES = auto()
    """It is sent."""
    LEFT = auto()
    """It may have matched before: its removal is sent."""
    NEVER = auto()
    """It never matched and never will: nothing is sent."""


# --- the tree ------------------------------------------------------------------------------------------------------


class Node(Protocol):
    """A part of a filter."""

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        """Returns the condition; NULL only if it cannot be told without what was to be left out."""
        ...

    def truth(self, job: jobs_pb2.Job, *, leave_out_changing: bool = False) -> bool | None:
        """Tells whether it holds; None: cannot be told without what was to be left out."""
        ...

    def demanded(self, name: str) -> Value | None:
        """Returns the one value of this field that things must have to match; None: there is no such."""
        ...

    def comparisons(self) -> Iterable[Comparison]:
        """Returns the leaves."""
        ...


@dataclass(frozen=True)
class Comparison:
    """`field = value`, or `field != value`."""

    field: Field
    value: Value
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.field.name} {'!=' if self.negated else '='} {self.value!r}"

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        if leave_out_changing and self.field.changing:
            return "NULL"
        if self.negated and self.field.differs:
            return self.field.differs(bind, self.value)
        condition = self.field.equals(bind, self.value)
        return f"({condition}) IS NOT TRUE" if self.negated else condition

    def truth(self, job: jobs_pb2.Job, *, leave_out_changing: bool = False) -> bool | None:
        if leave_out_changing and self.field.changing:
            return None
        assert self.field.holds is not None
        return self.field.holds(job, self.value) is not self.negated

    def demanded(self, name: str) -> Value | None:
        return self.value if self.field.name == name and not self.negated else None

    def comparisons(self) -> Iterable[Comparison]:
        yield self


@dataclass(frozen=True)
class Conjunction:
    """All of its parts; without any, everything."""

    parts: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return f"({' AND '.join(map(str, self.parts))})"

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        return " AND ".join(part.sql(bind, leave_out_changing=leave_out_changing) for part in self.parts) or "true"

    def truth(self, job: jobs_pb2.Job, *, leave_out_changing: bool = False) -> bool | None:
        known: bool | None = True
        for part in self.parts:
            truth = part.truth(job, leave_out_changing=leave_out_changing)
            if truth is False:
                return False
            if truth is None:
                known = None
        return known

    def demanded(self, name: str) -> Value | None:
        values = (part.demanded(name) for part in self.parts)
        return next((value for value in values if value is not None), None)

    def comparisons(self) -> Iterable[Comparison]:
        for part in self.parts:
            yield from part.comparisons()


@dataclass(frozen=True)
class Filter:
    """A filter as read. Those that say the same have the same text, so what one watcher is sent serves the next."""

    tree: Node

    def __str__(self) -> str:
        return str(self.tree)

    def sql(self, bind: Bindings) -> str:
        """Returns the condition for a WHERE, its values bound."""
        return self.tree.sql(bind)

    def possible_sql(self, bind: Bindings) -> str:
        """Returns the condition that a job could match, whatever becomes of it: all but those that are NEVER."""
        return f"({self.tree.sql(bind, leave_out_changing=True)}) IS NOT FALSE"

    def verdict(self, job: jobs_pb2.Job) -> Verdict:
        """Decides what a watch does with a job that has changed."""
        if self.tree.truth(job):
            return Verdict.MATCHES
        if self.tree.truth(job, leave_out_changing=True) is False:
            return Verdict.NEVER
        return Verdict.LEFT

    @cached_property
    def changing(self) -> bool:
        """Whether a job can begin or cease to match."""
        return any(each.field.changing for each in self.tree.comparisons())

    def mentions(self, name: str) -> bool:
        """Tells whether a field is named anywhere in it."""
        return any(each.field.name == name for each in self.tree.comparisons())

    def demanded(self, name: str) -> Value | None:
        """Returns the one value of this field that things must have to match; None: there is no such."""
        return self.tree.demanded(name)


# --- the grammar ---------------------------------------------------------------------------------------------------


def job_filter(text: str) -> Filter:
    """Reads a filter of jobs. Invisible jobs are left out unless it says something about `visible`.

    Raises WaybillError FILTER_INVALID, like the two below.
    """
    given = _Parser(text, JOBS).filter()
    if given.mentions("visible"):
        return given
    return Filter(Conjunction((given.tree, Comparison(JOBS["visible"], True))))


def event_filter(text: str) -> Filter:
    """Reads a filter of events."""
    return _Parser(text, EVENTS).filter()


def entity_filter(text: str) -> Filter:
    """Reads a filter of entities."""
    return _Parser(text, ENTITIES).filter()


_SPACE: Final = re.compile(r"\s*")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OPERATOR: Final = re.compile(r"!=|<=|>=|=|<|>|:")
_QUOTED: Final = re.compile(r""" "((?:[^"\\]|\\.)*)" | '((?:[^'\\]|\\.)*)' """, re.VERBOSE | re.DOTALL)
_WORD: Final = re.compile(r"[^\s\"'()<>=!]+")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_RESERVED: Final = ("AND", "OR", "NOT")
_LATER: Final = re.compile(r"(OR|NOT)\b|[()\-]")


class _Parser:
    """Reads a text from left to right; one method a rule of the grammar."""

    def __init__(self, text: str, published: Mapping[str, Field]) -> None:
        self._text = text
        self._published = published
        self._at = 0

    def filter(self) -> Filter:
        if len(self._text) > MAX_LENGTH:
            raise _invalid(f"must be at most {MAX_LENGTH} characters")
        if "\0" in self._text:
            raise _invalid("must not contain NUL")
        parts: list[Node] = []
        if not self._ends():
            parts.append(self._comparison())
            while not self._ends():
                self._and()
                parts.append(self._comparison())
        return Filter(Conjunction(tuple(parts)))

    def _comparison(self) -> Comparison:
        known = self._field()
        negated = self._operator() == "!="
        return Comparison(known, self._value(known), negated)

    def _field(self) -> Field:
        if self._peek(_LATER):
            raise self._expected("the name of a field; OR, NOT and parentheses come in a later release")
        name = self._take(_NAME)
        if name is None:
            raise self._expected("the name of a field")
        if name not in self._published:
            raise _invalid(f"there is no field {name}; there are {', '.join(self._published)}")
        return self._published[name]

    def _operator(self) -> str:
        start = self._at
        operator = self._take(_OPERATOR)
        if operator not in ("=", "!="):
            self._at = start
            raise self._expected("= or !=; other comparisons come in a later release")
        return operator

    def _value(self, known: Field) -> Value:
        text = self._quoted_or_word()
        try:
            return known.read(text)
        except ValueError as error:
            raise _invalid(f"{known.name} {error}") from None

    def _quoted_or_word(self) -> str:
        if quoted := self._match(_QUOTED):
            self._at = quoted.end()
            return _ESCAPE.sub(r"\1", quoted[1] if quoted[1] is not None else quoted[2])
        start = self._at
        word = self._take(_WORD)
        if word is None or word in _RESERVED:
            self._at = start
            raise self._expected("a value, in quotes if it has more than letters, digits and .-_/")
        return word

    def _and(self) -> None:
        start = self._at
        if self._take(_NAME) != "AND":
            self._at = start
            raise self._expected("AND; OR, NOT and parentheses come in a later release")

    def _ends(self) -> bool:
        self._skip_space()
        return self._at == len(self._text)

    def _peek(self, pattern: re.Pattern[str]) -> bool:
        return self._match(pattern) is not None

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = self._match(pattern)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip_space()
        return pattern.match(self._text, self._at)

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()

    def _expected(self, what: str) -> WaybillError:
        self._skip_space()
        where = f"at character {self._at + 1}" if self._at < len(self._text) else "at the end"
        return _invalid(f"{where}: expected {what}")


def _invalid(description: str) -> WaybillError:
    return invalid_field("filter", description, reason="FILTER_INVALID")
