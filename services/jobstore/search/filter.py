"""Reads a filter once and uses it twice: as SQL for lists, as a predicate over messages for watches.

    text ──grammar.py──▶ what is said ──fields.py, kinds.py──▶ typed tree ─┬─ sql(bind)    the condition for a WHERE,
                                                                           │               every value bound
                                                                           └─ truth(seen)  True or False

The tree has no NOT: it was carried down to the leaves, where `NOT x < 1` is the opposite of `x < 1`, true also of what
has no x. So everything is true or false of a thing, in SQL as in Python, and a condition that SQL cannot tell (NULL)
only ever stands where it counts as false.

Both are three-valued when asked to leave out what changes: a comparison of a changing field is then NULL, or None, for
"cannot tell", and what is made of AND and OR follows Kleene, as SQL does by itself. So false then means that the job
cannot match *whatever becomes of it*: rule 3 of the watch.

What does not fit is refused with the place, what was expected there and, where a field was, which ones there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Final, Protocol

from jobstore.search import grammar
from jobstore.search.fields import ENTITIES, EVENTS, JOBS, Changes, Field, Published, Seen
from jobstore.search.grammar import Literal, Presence, Restriction, Said, Word, refused
from jobstore.search.kinds import Bindings, Relation, Test, Value

MOST_AMONG: Final = 20
"""Comparisons of fields that have many values: each one is a table to join."""


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
        """Returns the condition; where nothing is left out, NULL counts as false, else it says "cannot tell"."""
        ...

    def truth(self, seen: Seen, *, leave_out_changing: bool = False) -> bool | None:
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
    """A field's value stands to another as said, or the opposite."""

    field: Field
    relation: Relation
    value: Value | None
    """None: it need only be PRESENT."""
    negated: bool = False

    def __str__(self) -> str:
        return f"{'NOT ' if self.negated else ''}{self.field.name} {self.relation.value} {self.value!r}"

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        if leave_out_changing:
            return "NULL" if self.field.changes else f"({self.sql(bind)}) IS TRUE"
        field, kind = self.field, self.field.kind
        if self.negated and not field.among:
            opposite = kind.opposite(field.column, self.relation, self.value, bind)
            if opposite is not None:
                return opposite
        condition = self._among(bind) if field.among else kind.sql(field.column, self.relation, self.value, bind)
        return f"({condition}) IS NOT TRUE" if self.negated else condition

    def _among(self, bind: Bindings) -> str:
        places = [
            place.sql.replace("{}", self.field.kind.sql(place.column, self.relation, self.value, bind))
            for place in self.field.among
        ]
        return f"({' OR '.join(places)})" if len(places) > 1 else places[0]

    def truth(self, seen: Seen, *, leave_out_changing: bool = False) -> bool | None:
        if leave_out_changing and self.field.changes:
            return None
        assert self.field.get is not None
        found = self.field.get(seen)
        if self.field.among:
            return any(map(self._test, found)) is not self.negated
        return (found is not None and self._test(found)) is not self.negated

    @cached_property
    def _test(self) -> Test:
        return self.field.kind.test(self.relation, self.value)

    def demanded(self, name: str) -> Value | None:
        is_it = self.field.name == name and self.relation is Relation.EQUALS and not self.negated
        return self.value if is_it else None

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

    def truth(self, seen: Seen, *, leave_out_changing: bool = False) -> bool | None:
        known: bool | None = True
        for part in self.parts:
            truth = part.truth(seen, leave_out_changing=leave_out_changing)
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
class Disjunction:
    """At least one of its parts."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return f"({' OR '.join(map(str, self.parts))})"

    def sql(self, bind: Bindings, *, leave_out_changing: bool = False) -> str:
        parts = (part.sql(bind, leave_out_changing=leave_out_changing) for part in self.parts)
        return f"({' OR '.join(parts)})"  # AND binds tighter in SQL

    def truth(self, seen: Seen, *, leave_out_changing: bool = False) -> bool | None:
        known: bool | None = False
        for part in self.parts:
            truth = part.truth(seen, leave_out_changing=leave_out_changing)
            if truth is True:
                return True
            if truth is None:
                known = None
        return known

    def demanded(self, name: str) -> Value | None:
        return None

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
        """Returns the condition for a WHERE, its values bound; it can be followed by AND."""
        return self.tree.sql(bind)

    def possible_sql(self, bind: Bindings) -> str:
        """Returns the condition that a job could match, whatever becomes of it: all but those that are NEVER."""
        return f"({self.tree.sql(bind, leave_out_changing=True)}) IS NOT FALSE"

    def verdict(self, seen: Seen) -> Verdict:
        """Decides what a watch does with a job that has changed."""
        if self.tree.truth(seen):
            return Verdict.MATCHES
        if self.tree.truth(seen, leave_out_changing=True) is False:
            return Verdict.NEVER
        return Verdict.LEFT

    @cached_property
    def changes(self) -> Changes:
        """When a job may begin or cease to match."""
        return max((each.field.changes for each in self.tree.comparisons()), default=Changes.NEVER)

    def mentions(self, name: str) -> bool:
        """Tells whether a field is named anywhere in it."""
        return any(each.field.name == name for each in self.tree.comparisons())

    def demanded(self, name: str) -> Value | None:
        """Returns the one value of this field that things must have to match; None: there is no such."""
        return self.tree.demanded(name)


# --- from what is said ---------------------------------------------------------------------------------------------


def job_filter(text: str) -> Filter:
    """Reads a filter of jobs. Invisible jobs are left out unless it says something about `visible`.

    Raises WaybillError FILTER_INVALID, like the two below.
    """
    given = _read(text, JOBS)
    if given.mentions("visible"):
        return given
    visible = Comparison(JOBS["visible"], Relation.EQUALS, True)
    rest = given.tree.parts if isinstance(given.tree, Conjunction) else (given.tree,)
    return Filter(Conjunction((*rest, visible)) if rest else visible)


def event_filter(text: str) -> Filter:
    """Reads a filter of events."""
    return _read(text, EVENTS)


def entity_filter(text: str) -> Filter:
    """Reads a filter of entities."""
    return _read(text, ENTITIES)


def _read(text: str, published: Published) -> Filter:
    read = Filter(_typed(grammar.parse(text), published, negated=False))
    if sum(bool(each.field.among) for each in read.tree.comparisons()) > MOST_AMONG:
        raise refused(None, f"has more than {MOST_AMONG} terms over fields that have many values each")
    return read


def _typed(said: Said, published: Published, *, negated: bool) -> Node:
    match said:
        case grammar.Not(term):
            return _typed(term, published, negated=not negated)
        case grammar.And(parts) | grammar.Or(parts):
            typed = tuple(_typed(part, published, negated=negated) for part in parts)
            return Conjunction(typed) if isinstance(said, grammar.And) is not negated else Disjunction(typed)
        case Word(literal):
            return Comparison(published.text, Relation.CONTAINS, _word(literal, published), negated)
        case Presence(name, at):
            return Comparison(_field(name, at, published), Relation.PRESENT, None, negated)
        case Restriction():
            return _comparison(said, published, negated)


def _comparison(said: Restriction, published: Published, negated: bool) -> Comparison:
    field = _field(said.name, said.at, published)
    if said.operator not in field.kind.operators:
        raise refused(
            said.operator_at, f"{field.name} cannot be compared by {said.operator}; {_operators(field)} can be"
        )
    if said.operator == ":" and said.argument.is_anything:
        return Comparison(field, Relation.PRESENT, None, negated)
    try:
        value = field.kind.read(said.argument)
    except ValueError as error:
        raise refused(said.argument.at, f"expected for {field.name} {error}") from None
    return Comparison(field, field.kind.relation(said.operator, value), value, negated is not (said.operator == "!="))


def _operators(field: Field) -> str:
    return " ".join(field.kind.operators)


def _field(name: str, at: int, published: Published) -> Field:
    if name not in published:
        raise refused(at, f"there is no field {name}; there are {published}")
    return published[name]


def _word(literal: Literal, published: Published) -> Value:
    """A word that is searched for. The name of a field is more likely to want an operator."""
    if not literal.quoted and literal.text in published:
        operators = _operators(published[literal.text])
        raise refused(literal.at, f"expected {operators} after {literal.text}; in quotes it is a word to search for")
    return published.text.kind.read(literal)
