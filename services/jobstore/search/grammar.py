"""The grammar of filters, AIP-160: from a text to what it says, whatever the fields mean.

    filter      = [ expression ]
    expression  = sequence { "AND" sequence }
    sequence    = factor { factor }                     side by side: both must hold
    factor      = term { "OR" term }                    OR binds tighter than AND
    term        = [ "NOT" | "-" ] simple
    simple      = "(" expression ")" | restriction | "has(" name ")" | word
    restriction = name operator argument
    operator    = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    argument    = word | "(" the same, of arguments ")"
    word        = what has no space and none of "'()<>=! | "quoted" | 'quoted'

`status = (FAILED OR ABORTED)` asks the field for one or the other. A `*` in a word stands for anything; in quotes a
backslash takes away the meaning of what follows, so `\\*` is a star. A word by itself is searched for in the text that
things have; it has no `:` nor `,` unless quoted.

Two habits from elsewhere would mean something else here, silently, so they are refused: `and`, `or`, `not` in small
letters would be words to search for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc

from chassis.errors import WaybillError

MAX_LENGTH: Final = 4_000
MAX_DEPTH: Final = 16
"""Of parentheses in each other."""
MAX_TERMS: Final = 100
"""Restrictions and words."""

# --- what is said --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Literal:
    """A value as written."""

    parts: tuple[str, ...]
    """What stands between its wildcards; one part: it has none."""
    at: int
    """Where in the filter."""
    quoted: bool = False

    @property
    def text(self) -> str:
        """All of it, wildcards as stars."""
        return "*".join(self.parts)

    @property
    def is_pattern(self) -> bool:
        """Whether it has a wildcard."""
        return len(self.parts) > 1

    @property
    def is_anything(self) -> bool:
        """Whether it is nothing but wildcards."""
        return self.is_pattern and not any(self.parts)


@dataclass(frozen=True)
class Restriction:
    """`name operator argument`."""

    name: str
    at: int
    operator: str
    operator_at: int
    argument: Literal


@dataclass(frozen=True)
class Presence:
    """`has(name)`."""

    name: str
    at: int


@dataclass(frozen=True)
class Word:
    """A word to be searched for."""

    literal: Literal


@dataclass(frozen=True)
class Not:
    """The opposite."""

    term: Said


@dataclass(frozen=True)
class And:
    """All of them; without any, everything."""

    parts: tuple[Said, ...]


@dataclass(frozen=True)
class Or:
    """At least one of them."""

    parts: tuple[Said, ...]


Said: TypeAlias = "Restriction | Presence | Word | Not | And | Or"


# --- how it is read ------------------------------------------------------------------------------------------------


def parse(text: str) -> Said:
    """Reads a filter; raises WaybillError FILTER_INVALID, which says where, and what was expected there."""
    return _Parser(text).filter()


def refused(at: int | None, what: str) -> WaybillError:
    """Says what is wrong with a filter, and where: at an index of its text, or (None) at its end."""
    where = "at the end" if at is None else f"at character {at + 1}"
    return _invalid(f"{where}: {what}", {} if at is None else {"position": str(at + 1)})


def _invalid(description: str, metadata: dict[str, str]) -> WaybillError:
    """The metadata is for pages that point at the place."""
    return WaybillError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "FILTER_INVALID",
        f"filter: {description}",
        metadata=metadata,
        violations=[("filter", description)],
    )


_SPACE: Final = re.compile(r"\s*")
_WORD: Final = re.compile(r"""[^\s"'()<>=!:,]+""")
_ARGUMENT: Final = re.compile(r"""[^\s"'()<>=!]+""")
_QUOTED: Final = re.compile(r""" "((?:[^"\\]|\\.)*)" | '((?:[^'\\]|\\.)*)' """, re.VERBOSE | re.DOTALL)
_IN_QUOTES: Final = re.compile(r"\\(?P<escaped>.) | (?P<wildcard>\*) | (?P<plain>[^\\*]+)", re.VERBOSE | re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_OPERATOR: Final = re.compile(r"!=|<=|>=|=|<|>|:")
_KEYWORD: Final = re.compile(r"(AND|OR|NOT)(?![^\s()\"'])")
_OPERATORS: Final = "=, !=, <, <=, >, >= or :"

_Simple: TypeAlias = Callable[[], Said]


class _Parser:
    """Reads a text from left to right; one method a rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._terms = 0

    def filter(self) -> Said:
        if len(self._text) > MAX_LENGTH:
            raise _invalid(f"must be at most {MAX_LENGTH} characters", {})
        if (nul := self._text.find("\0")) >= 0:
            raise refused(nul, "must not contain NUL")
        if self._ends():
            return And(())
        said = self._expression(self._simple)
        if not self._ends():
            raise self._expected("AND, OR or another term")
        return said

    # --- expressions: of terms, or of the arguments of one field

    def _expression(self, simple: _Simple) -> Said:
        parts = list(self._sequence(simple))
        while self._keyword("AND"):
            parts += self._sequence(simple)
        return _one_or(And, parts)

    def _sequence(self, simple: _Simple) -> Iterator[Said]:
        yield self._factor(simple)
        while not self._ends() and not self._sees(")") and not self._match(_KEYWORD, but="NOT"):
            yield self._factor(simple)

    def _factor(self, simple: _Simple) -> Said:
        parts = [self._term(simple)]
        while self._keyword("OR"):
            parts.append(self._term(simple))
        return _one_or(Or, parts)

    def _term(self, simple: _Simple) -> Said:
        if self._keyword("NOT") or (simple == self._simple and self._take("-")):
            return Not(self._nested(simple))
        return self._nested(simple)

    def _nested(self, simple: _Simple) -> Said:
        if not self._take("("):
            return simple()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(f"parentheses are nested deeper than {MAX_DEPTH}")
        said = self._expression(simple)
        if not self._take(")"):
            raise self._expected("AND, OR or )")
        self._depth -= 1
        return said

    # --- terms

    def _simple(self) -> Said:
        self._count()
        if quoted := self._quoted():
            if self._match(_OPERATOR):
                raise self._refused("the name of a field stands before an operator, without quotes")
            return Word(quoted)
        at = self._at
        word = self._word(_WORD)
        if self._text.startswith("(", self._at):
            return self._function(word, at)
        operator_at = self._at
        if operator := self._match(_OPERATOR):
            operator_at, self._at = operator.start(), operator.end()
            return self._restriction(self._name(word, at), at, operator[0], operator_at)
        return Word(_unquoted(_no_keyword(word, at), at))

    def _restriction(self, name: str, at: int, operator: str, operator_at: int) -> Said:
        def one_of_several() -> Said:
            self._count()
            argument = self._literal()
            if not argument.quoted:
                _no_keyword(argument.text, argument.at)
            return Restriction(name, at, operator, operator_at, argument)

        if self._sees("("):
            return self._nested(one_of_several)
        return Restriction(name, at, operator, operator_at, self._literal())

    def _function(self, name: str, at: int) -> Said:
        if name != "has":
            raise refused(at, f"there is no function {name}; there is has(field)")
        self._take("(")
        self._skip_space()
        at = self._at
        name = self._name(self._word(_WORD), at)
        if not self._take(")"):
            raise self._expected(")")
        return Presence(name, at)

    def _name(self, word: str, at: int) -> str:
        if not _NAME.fullmatch(word):
            raise refused(at, f"expected the name of a field, not {word}; a word to search for stands in quotes")
        return word

    def _literal(self) -> Literal:
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        at = self._at
        return _unquoted(self._word(_ARGUMENT, "a value, in quotes if it has more than letters, digits and .-_/:"), at)

    def _quoted(self) -> Literal | None:
        found = self._match(_QUOTED)
        if found is None:
            return None
        self._at = found.end()
        content = found[1] if found[1] is not None else found[2]
        parts = [""]
        for piece in _IN_QUOTES.finditer(content):
            if piece["wildcard"]:
                parts.append("")
            else:
                parts[-1] += piece["escaped"] or piece["plain"]
        return Literal(tuple(parts), found.start(), quoted=True)

    def _word(self, pattern: re.Pattern[str], what: str = "the name of a field, or a word to search for") -> str:
        found = self._match(pattern)
        if found is None or self._match(_KEYWORD):
            raise self._expected(what)
        self._at = found.end()
        return found[0]

    # --- the text

    def _count(self) -> None:
        self._skip_space()
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._refused(f"has more than {MAX_TERMS} terms")

    def _keyword(self, word: str) -> bool:
        found = self._match(_KEYWORD)
        if found is None or found[1] != word:
            return False
        self._at = found.end()
        return True

    def _take(self, character: str) -> bool:
        if not self._sees(character):
            return False
        self._at += 1
        return True

    def _sees(self, character: str) -> bool:
        self._skip_space()
        return self._text.startswith(character, self._at)

    def _match(self, pattern: re.Pattern[str], but: str = "") -> re.Match[str] | None:
        self._skip_space()
        found = pattern.match(self._text, self._at)
        return None if found is None or found[0] == but else found

    def _ends(self) -> bool:
        self._skip_space()
        return self._at == len(self._text)

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()

    def _expected(self, what: str) -> WaybillError:
        return self._refused(f"expected {what}")

    def _refused(self, what: str) -> WaybillError:
        return refused(None if self._ends() else self._at, what)


def _unquoted(word: str, at: int) -> Literal:
    return Literal(tuple(word.split("*")), at)


def _no_keyword(word: str, at: int) -> str:
    if word.upper() in ("AND", "OR", "NOT"):
        raise refused(at, f"{word.upper()} is written in capitals; in quotes it is a word like any other")
    return word


def _one_or(kind: type[And] | type[Or], parts: list[Said]) -> Said:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))
