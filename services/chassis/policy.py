"""Who may do what: roles with grants, users with roles, read once from a file when the process starts. Pure, but for
`load`.

    [users]
    ann = ["operator"]
    "*" = ["guest"]                        # everybody, also those who are named here

    [[roles.operator]]
    do = ["run", "see", "cancel"]
    commands = ["AddDisk", "category:vm"]  # command types, categories, `external` (jobs of other systems), or "*"
    jobs = "any"                           # or "own", which is what it is unless said otherwise
    entities = ["VM/dev-*"]                # only jobs about something, all of which is like one of these

    [[roles.guest]]
    do = ["see"]
    commands = ["*"]

| to | is to |
| --- | --- |
| `run` | run a command of this type, report an external job and all that becomes of it |
| `see` | read and watch a job, its steps, commands, tasks, locks and events |
| `cancel` | stop a job or its tasks, change its priority, run it again (that needs `run`, too) |
| `force` | end a stuck job by force |
| `clear` | delete ended jobs |
| `declare` | declare entities; `commands` and `jobs` do not matter |

What nobody grants is refused. To whoever may not see a job it is as if it were not there, in the same words; the same
goes for a command type that somebody may not run. Without a file everything is granted to everybody.

TOML is read because it is strict by itself: a key that is there twice is a mistake in it, where others take the last
one. A file that cannot be read, or has mistakes, grants nothing and starts nothing: all mistakes are told at once, each
with its place.

A job's owner, type, categories and subjects never change, so neither does what a user may do about it: what a stream
shows somebody need not be looked at again.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import grpc

from chassis.errors import WaybillError
from chassis.settings import BAD_SETTINGS

RUN, SEE, CANCEL, FORCE, CLEAR, DECLARE = "run", "see", "cancel", "force", "clear", "declare"
ACTIONS: Final = (RUN, SEE, CANCEL, FORCE, CLEAR, DECLARE)
EVERYBODY: Final = "*"
EXTERNAL: Final = "external"
"""Stands for the type of all external jobs: what they call themselves is their reporter's own word."""

_CATEGORY: Final = "category:"
_PATTERN: Final = re.compile(r"(\*|[A-Z_]+/[^*]*\*?)")
_KEYS: Final = ("do", "commands", "jobs", "entities")
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Thing:
    """A job, or what would become one, as far as a policy looks at it."""

    command_type: str
    """`external` for an external job."""
    categories: Collection[str] = ()
    owner: str = ""
    entities: Collection[str] = ()
    """What it is about, each as `VM/vm-1`."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Some actions on some jobs."""

    actions: frozenset[str]
    command_types: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    every_type: bool = False
    any_owner: bool = False
    entities: tuple[str, ...] = ()
    """Patterns: `VM/vm-1`, `VM/dev-*`, `*`. None: whatever it is about, also nothing."""

    @property
    def is_boundless(self) -> bool:
        """Whether it is about every job."""
        return self.every_type and self.any_owner and not self.entities

    def covers(self, user: str, thing: Thing) -> bool:
        """Tells whether it is about this job, for this user."""
        return (
            (self.any_owner or thing.owner == user)
            and self.covers_type(thing.command_type, thing.categories)
            and self.covers_entities(thing.entities)
        )

    def covers_type(self, command_type: str, categories: Iterable[str]) -> bool:
        """Tells whether it is about jobs of this type."""
        return (
            self.every_type or command_type in self.command_types or any(each in self.categories for each in categories)
        )

    def covers_entities(self, entities: Collection[str]) -> bool:
        """Tells whether it is about jobs that are about these, and nothing else."""
        if not self.entities:
            return True
        return bool(entities) and all(any(_is_like(each, pattern) for pattern in self.entities) for each in entities)


def _is_like(entity: str, pattern: str) -> bool:
    return entity.startswith(pattern[:-1]) if pattern.endswith("*") else entity == pattern


@dataclass(frozen=True)
class Scope:
    """What one user may do one thing to."""

    user: str
    grants: tuple[Grant, ...]

    @property
    def is_boundless(self) -> bool:
        """Whether it is everything."""
        return any(grant.is_boundless for grant in self.grants)

    def holds(self, thing: Thing) -> bool:
        """Tells whether a job is in it."""
        return any(grant.covers(self.user, thing) for grant in self.grants)

    def holds_type(self, command_type: str, categories: Collection[str]) -> bool:
        """Tells whether some job of this type may be in it."""
        return any(grant.covers_type(command_type, categories) for grant in self.grants)

    def holds_entity(self, entity: str) -> bool:
        """Tells whether an entity is in it, whatever the jobs about it."""
        return any(grant.covers_entities((entity,)) for grant in self.grants)


@dataclass(frozen=True)
class Policy:
    """Who may do what; by itself, nobody anything."""

    roles: Mapping[str, Sequence[Grant]] = field(default_factory=dict)
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_open: bool = False
    """Whether there is no policy: everything is granted to everybody."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scope", lru_cache(maxsize=1024)(self._find))

    def scope(self, user: str, action: str) -> Scope:
        """Returns what a user may do this to."""
        found: Scope = self._scope(user, action)  # type: ignore[attr-defined]
        return found

    def _find(self, user: str, action: str) -> Scope:
        if self.is_open:
            return Scope(user, (_EVERYTHING,))
        roles = dict.fromkeys((*self.users.get(user, ()), *self.users.get(EVERYBODY, ())))
        grants = (grant for role in roles for grant in self.roles[role])
        return Scope(user, tuple(grant for grant in grants if action in grant.actions))


_EVERYTHING: Final = Grant(frozenset(ACTIONS), every_type=True, any_owner=True)
OPEN: Final = Policy(is_open=True)


def denied(message: str) -> WaybillError:
    """Says that the caller may not do this to what he may see."""
    return WaybillError(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", message)


# --- the file --------------------------------------------------------------------------------------------------------


class BadPolicy(Exception):  # noqa: N818
    """The file is no good; one complaint for each mistake, with its place."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


def load(file: str) -> Policy:
    """Reads the policy, or prints everything that is wrong with it to stderr and exits with 2. No name: no policy."""
    if not file:
        return OPEN
    try:
        return read(_content(file))
    except BadPolicy as bad:
        print(f"cannot start with the policy file {file}:", *bad.complaints, sep="\n  ", file=sys.stderr, flush=True)
        raise SystemExit(BAD_SETTINGS) from None


def _content(file: str) -> str:
    try:
        content = Path(file).read_bytes()
        if len(content) > _LARGEST:
            raise BadPolicy([f"has {len(content)} bytes; at most {_LARGEST} are read"])
        return content.decode()
    except OSError as error:
        raise BadPolicy([f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise BadPolicy(["is not UTF-8"]) from None


def read(text: str) -> Policy:
    """Reads a policy. Raises BadPolicy."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadPolicy([f"is not TOML: {error}"]) from None
    complaints: list[str] = []
    complaints += _unknown("", content, ("roles", "users"))
    roles = _roles(_table(content, "roles", complaints), complaints)
    users = _users(_table(content, "users", complaints), roles, complaints)
    if complaints:
        raise BadPolicy(complaints)
    return Policy(roles, users)


def _table(content: Mapping[str, Any], name: str, complaints: list[str]) -> Mapping[str, Any]:
    table = content.get(name)
    if not isinstance(table, dict) or not table:
        complaints.append(f"{name}: is required, and is a table")
        return {}
    return table


def _roles(table: Mapping[str, Any], complaints: list[str]) -> dict[str, tuple[Grant, ...]]:
    roles: dict[str, tuple[Grant, ...]] = {}
    for role, grants in table.items():
        where = f"roles.{role}"
        if not isinstance(grants, list) or not grants or not all(isinstance(grant, dict) for grant in grants):
            complaints.append(f"{where}: must be a list of grants, each begun by [[{where}]]")
            grants = []
        roles[role] = tuple(_grant(f"{where}[{number}]", each, complaints) for number, each in enumerate(grants))
    return roles


def _grant(where: str, content: Mapping[str, Any], complaints: list[str]) -> Grant:
    complaints += _unknown(f"{where}.", content, _KEYS)
    actions = _texts(f"{where}.do", content.get("do"), complaints)
    for action in actions:
        if action not in (*ACTIONS, "*"):
            complaints.append(f"{where}.do: there is no action {action!r}; {_hint(action, (*ACTIONS, '*'))}")
    if "*" in actions:
        actions = ACTIONS
    commands: Sequence[str] = ()
    if "commands" in content or tuple(actions) != (DECLARE,):
        commands = _texts(f"{where}.commands", content.get("commands"), complaints)
    jobs = content.get("jobs", "own")
    if jobs not in ("own", "any"):
        complaints.append(f'{where}.jobs: must be "own" or "any"')
    entities: Sequence[str] = ()
    if "entities" in content:
        entities = _texts(f"{where}.entities", content["entities"], complaints)
    for pattern in entities:
        if not _PATTERN.fullmatch(pattern):
            complaints.append(f"{where}.entities: {pattern!r} is none of TYPE/id, TYPE/beginning* and *")
    return Grant(
        actions=frozenset(actions),
        command_types=frozenset(each for each in commands if not each.startswith(_CATEGORY)),
        categories=frozenset(each.removeprefix(_CATEGORY) for each in commands if each.startswith(_CATEGORY)),
        every_type="*" in commands,
        any_owner=jobs == "any",
        entities=tuple(entities),
    )


def _users(table: Mapping[str, Any], roles: Mapping[str, object], complaints: list[str]) -> dict[str, tuple[str, ...]]:
    users: dict[str, tuple[str, ...]] = {}
    for user, named in table.items():
        where = f"users.{user}"
        users[user] = tuple(_texts(where, named, complaints))
        missing = (role for role in users[user] if role not in roles)
        complaints.extend(f"{where}: there is no role {role!r}; {_hint(role, list(roles))}" for role in missing)
    return users


def _texts(where: str, value: object, complaints: list[str]) -> Sequence[str]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        complaints.append(f"{where}: must be a list of texts, and not empty")
        return ()
    return value


def _unknown(where: str, content: Mapping[str, object], known: Sequence[str]) -> Iterator[str]:
    for name in content:
        if name not in known:
            yield f"{where}{name}: means nothing here; {_hint(name, known)}"


def _hint(name: str, known: Sequence[str]) -> str:
    if nearest := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {nearest[0]!r}?"
    return f"there are {', '.join(known)}" if known else "there are none"
