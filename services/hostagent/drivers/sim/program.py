"""How the sim misbehaves on demand: rules that pick tasks and calls, and say how they go.

    simProgram {rules: [{verb, match: {argument: value}, work_ms, outcome, error, count}]}

replaces the whole program. The first rule that fits decides; one without `verb` or `match` fits any. `count` is how
often a rule applies (always, if absent) and is lowered on disk *before* the outcome, so that a rule which kills the
agent once does not kill the next agent too. `simProgram` itself fits no rule.

| outcome | what happens |
| --- | --- |
| success | as usual, in `work_ms` |
| fail, fail_dirty | the work fails with `error` and is rolled back; the roll-back fails too |
| hang | the work never ends by itself |
| deaf | the work takes `work_ms` in which it makes no progress and cannot be stopped, and goes on then |
| refuse | not even accepted, with `error` |
| crash_before, crash | the agent dies at once: before the effect; after it, before the ledger says done |
| lose | the agent forgets the task |
| silent | works, but nothing more is pushed to watchers |
| never_up | the VM never gets up: stays POWERING_UP or, with `error`, goes DOWN with that |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final

import grpc

from chassis import errors
from chassis.errors import WaybillError
from hostagent.drivers.sim.documents import Documents
from hostagent.task import Json

SIM_PROGRAM: Final = "simProgram"
_RULE: Final = "rule"
_KNOWN_FIELDS: Final = frozenset({"verb", "match", "work_ms", "outcome", "error", "count"})
_KNOWN_ERROR_FIELDS: Final = frozenset({"code", "reason", "message"})


class Outcome(StrEnum):
    """How the work goes."""

    SUCCESS = "success"
    FAIL = "fail"
    FAIL_DIRTY = "fail_dirty"
    HANG = "hang"
    DEAF = "deaf"
    REFUSE = "refuse"
    CRASH_BEFORE = "crash_before"
    CRASH = "crash"
    LOSE = "lose"
    SILENT = "silent"
    NEVER_UP = "never_up"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tasks and calls it picks, and how they go."""

    verb: str = ""
    match: Mapping[str, Json] = field(default_factory=dict)
    work_ms: float | None = None
    """How long the work takes; None for as long as usual."""
    outcome: Outcome = Outcome.SUCCESS
    error: Mapping[str, str] | None = None
    """`code`, `reason` and `message`, each may be absent; None for the outcome's own."""
    count: int | None = None
    """How often it still applies; None for ever."""

    def fits(self, verb: str, arguments: Mapping[str, Json]) -> bool:
        """Says whether it picks such a task."""
        if verb == SIM_PROGRAM or self.count == 0 or self.verb not in ("", verb):
            return False
        return all(name in arguments and arguments[name] == value for name, value in self.match.items())

    def failure(self, reason: str, message: str) -> WaybillError:
        """Returns the error with which it has the work fail; reason and message unless the rule has its own."""
        error = self.error or {}
        code = grpc.StatusCode[error.get("code", "FAILED_PRECONDITION")]
        return WaybillError(code, error.get("reason", reason), error.get("message", message))


AS_USUAL: Final = Rule()


class Program:
    """The rules in force."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._rules = [_rule_from(body) for _, body in sorted(documents.kind(_RULE).items())]

    def replace(self, rules: Iterable[Rule]) -> None:
        """Puts other rules in force; the caller saves the documents."""
        for document_id in list(self._documents.kind(_RULE)):
            self._documents.remove(_RULE, document_id)
        self._rules = list(rules)
        for position in range(len(self._rules)):
            self._put(position)

    async def refuse(self, verb: str, arguments: Mapping[str, Json]) -> None:
        """Raises WaybillError if the next task of this kind is to be refused."""
        rule = await self._draw(verb, arguments, refusing=True)
        if rule is not None:
            raise rule.failure("REFUSED", f"{verb} is programmed to be refused")

    async def draw(self, verb: str, arguments: Mapping[str, Json]) -> Rule:
        """Returns the rule for a task that begins, and lowers its count on disk."""
        return await self._draw(verb, arguments, refusing=False) or AS_USUAL

    async def _draw(self, verb: str, arguments: Mapping[str, Json], *, refusing: bool) -> Rule | None:
        for position, rule in enumerate(self._rules):
            if rule.fits(verb, arguments):
                if (rule.outcome is Outcome.REFUSE) is not refusing:
                    return None
                await self._lower(position, rule)
                return rule
        return None

    async def _lower(self, position: int, rule: Rule) -> None:
        if rule.count is not None:
            self._rules[position] = Rule(**{**_fields(rule), "count": rule.count - 1})
            self._put(position)
            await self._documents.save()

    def _put(self, position: int) -> None:
        self._documents.put(_RULE, f"{position:06}", asdict(self._rules[position]))


def _fields(rule: Rule) -> dict[str, Json]:
    return asdict(rule)


def _rule_from(body: Mapping[str, Json]) -> Rule:
    return Rule(**{**body, "outcome": Outcome(body["outcome"])})


def parse_rules(raw: Json) -> list[Rule]:
    """Reads the argument of simProgram. Raises ARGUMENTS_INVALID, naming every bad field."""
    violations = [
        found for position, rule in enumerate(raw) for found in _violations(f"arguments.rules[{position}]", rule)
    ]
    if violations:
        raise errors.invalid_argument(
            "ARGUMENTS_INVALID", f"{SIM_PROGRAM}: {violations[0][0]} {violations[0][1]}", *violations
        )
    return [_rule_from({"outcome": "success", **rule, "error": _error(rule.get("error"))}) for rule in raw]


def _error(raw: Json) -> Json:
    return {"message": raw} if isinstance(raw, str) else raw


def _violations(path: str, rule: Json) -> Iterator[tuple[str, str]]:
    if not isinstance(rule, dict):
        yield path, "must be an object"
        return
    for name in rule.keys() - _KNOWN_FIELDS:
        yield f"{path}.{name}", f"is no field of a rule: {', '.join(sorted(_KNOWN_FIELDS))}"
    if not isinstance(rule.get("verb", ""), str):
        yield f"{path}.verb", "must be a text"
    if not isinstance(rule.get("match", {}), dict):
        yield f"{path}.match", "must be an object: argument, value"
    if not _is_none_or_at_least_0(rule.get("work_ms"), int, float):
        yield f"{path}.work_ms", "must be a number of at least 0"
    if rule.get("outcome", "success") not in list(Outcome):
        yield f"{path}.outcome", f"must be one of {', '.join(Outcome)}"
    if not _is_none_or_at_least_0(rule.get("count"), int):
        yield f"{path}.count", "must be a whole number of at least 0"
    yield from _error_violations(f"{path}.error", rule.get("error"))


def _is_none_or_at_least_0(value: Json, *kinds: type) -> bool:
    return value is None or (type(value) in kinds and value >= 0)


def _error_violations(path: str, error: Json) -> Iterator[tuple[str, str]]:
    if error is None or isinstance(error, str):
        return
    if not isinstance(error, dict) or error.keys() - _KNOWN_ERROR_FIELDS:
        yield path, f"must be a text, or an object with {', '.join(sorted(_KNOWN_ERROR_FIELDS))}"
    elif not all(isinstance(value, str) for value in error.values()):
        yield path, "must have texts only"
    elif error.get("code", "ABORTED") not in grpc.StatusCode.__members__:
        yield f"{path}.code", f"must be one of {', '.join(grpc.StatusCode.__members__)}"
