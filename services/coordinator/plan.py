"""The plan algebra: what a command wants done, said as a small tree before any of it is done.

    nothing()                                  over at once
    task(host, verb, arguments)                asynchronous work on a host
    call(host, verb, arguments)                a short verb that answers at once; a repeat is harmless
    child(command)                             another command
    wait_for(entity, until=…, fails_if=…)      an observation of an entity
    change(entity, …)                          a change of an entity that was read, committed between two stages
    concurrently(plans)                        all at once; over when all are; failed if any failed
    serially(plans)                            one after the other; after a failure the rest is skipped

Any node may name the step that shows it (`step`), its share of the progress (`weight`), what it works on
(`subjects`), that it may fail without failing what is above it (`best_effort`), or that nothing can be undone once it
has begun (`no_return`).

A plan that did not go well may be followed by another one, a further *attempt* of its command, which the command's
`after_failure` returns: `instead(plan)` replaces the failure, `cleanup(plan)` puts right what was left, and lets it
stand.

A plan is immutable, compares by value and survives JSON unchanged (`flow/planjson.py`): it is stored ("sealed") in the
commit that begins it, so what was expected can never be forgotten. A node's *path* (child indexes joined by dots, ""
for the root) is its name; ids of what it begins are derived from (command, attempt, path), so a repeat meets itself.

Nodes hold plain JSON values (dicts, lists, texts, numbers, true, false, null): what else is put into them does not
come back from the store as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = [
    "Attempt",
    "Call",
    "Change",
    "Child",
    "Cleanup",
    "Concurrently",
    "Condition",
    "EntityRef",
    "Former",
    "Inlined",
    "Instead",
    "Known",
    "Nothing",
    "Observation",
    "Plan",
    "Serially",
    "Task",
    "WaitFor",
    "call",
    "change",
    "child",
    "cleanup",
    "concurrently",
    "instead",
    "nothing",
    "serially",
    "state",
    "task",
    "wait_for",
]

Json = Any


@dataclass(frozen=True, slots=True, order=True)
class EntityRef:
    """An entity by its key: a type such as "VM" and an id unique within it."""

    entity_type: str
    entity_id: str

    def __str__(self) -> str:
        return f"{self.entity_type}/{self.entity_id}"


@dataclass(frozen=True, slots=True)
class Former:
    """What an entity was before it was changed."""

    name: str
    status: str
    declared: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a host reported of an entity: its state, and the number that orders it within the host's incarnation."""

    state: str = ""
    host_id: str = ""
    error: str = ""
    incarnation: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """Observed fields and the values that each may have; all must match. An empty condition never holds."""

    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def holds(self, observation: Observation) -> bool:
        """Says whether the observation satisfies it."""
        return bool(self.fields) and all(getattr(observation, name) in values for name, values in self.fields)


def state(*states: str, host_id: str = "") -> Condition:
    """Holds when the entity is seen in one of the states; if a host is named, by that one."""
    on_host = (("host_id", (host_id,)),) if host_id else ()
    return Condition((("state", tuple(states)), *on_host))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    step: str = ""
    description: str = ""
    weight: float = 1.0
    subjects: tuple[EntityRef, ...] = ()
    best_effort: bool = False
    no_return: bool = False


@dataclass(frozen=True, slots=True)
class Nothing(_Node):
    """No work."""


@dataclass(frozen=True, slots=True)
class Task(_Node):
    """Asynchronous work on a host. `deadline` in seconds after it begins, None for none.

    `expected_generation`: that of the volume which the argument `volume_id` names, when the work begins; one more when
    it is done. `stall_seconds`: how long it may make no progress before it is stopped, None for what is usual.
    """

    host_id: str
    verb: str
    arguments: Mapping[str, Json] = field(default_factory=dict)
    entity: EntityRef | None = None
    deadline: float | None = None
    expected_generation: int | None = None
    stall_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Call(_Node):
    """A short verb on a host. `deadline` in seconds after it begins, None for none."""

    host_id: str
    verb: str
    arguments: Mapping[str, Json] = field(default_factory=dict)
    entity: EntityRef | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Child(_Node):
    """Another command, by type and parameters. `as_job`: it shows as a job of its own, part of the one above."""

    command_type: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    parameters_version: int = 1
    as_job: bool = False


@dataclass(frozen=True, slots=True)
class WaitFor(_Node):
    """An observation of an entity. Observations up to the number that the preceding call returned are ignored.

    `beside`: another entity, on which that hangs. Once it is seen as `gives_up_if` says, nothing more will come of it:
    what is on its way may still arrive for a moment, then the wait has failed.
    """

    entity: EntityRef
    until: Condition
    fails_if: Condition = Condition()
    deadline: float | None = None
    beside: EntityRef | None = None
    gives_up_if: Condition = Condition()


@dataclass(frozen=True, slots=True)
class Change(_Node):
    """A change of an entity; what is None stays, `declared` are all of its declared fields, `remove` deletes it.

    `former` is what the entity was when the plan was made, None if it did not exist: what a command that fails makes of
    it again.
    """

    entity: EntityRef
    name: str | None = None
    status: str | None = None
    declared: Mapping[str, Json] | None = None
    remove: bool = False
    former: Former | None = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Concurrently(_Node):
    """All at once."""

    plans: tuple[Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class Inlined:
    """A child command whose plan stands in that of the command above: it has no row, only its end method is run."""

    command_type: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    parameters_version: int = 1


@dataclass(frozen=True, slots=True)
class Serially(_Node):
    """One after the other. `inlined`: this is the plan of a child; None if it is not."""

    plans: tuple[Plan, ...] = ()
    inlined: Inlined | None = None


Plan = Nothing | Task | Call | Child | WaitFor | Change | Concurrently | Serially


@dataclass(frozen=True, slots=True)
class Instead:
    """A further attempt whose result replaces the failure."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Cleanup:
    """A further attempt that puts right what the failed one has left; the failure stands."""

    plan: Plan


Attempt = Instead | Cleanup


class Runnable(Protocol):
    """What can be a child: a command with its type and parameters."""

    @property
    def command_type(self) -> str: ...
    @property
    def parameters_version(self) -> int: ...
    def parameters(self) -> dict[str, Json]: ...


class Known(Protocol):
    """An entity as it was read."""

    @property
    def ref(self) -> EntityRef: ...
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def declared(self) -> Mapping[str, Json]: ...
    @property
    def exists(self) -> bool: ...


def nothing(**options: Any) -> Nothing:
    """Plans no work."""
    return Nothing(**options)


def task(host_id: str, verb: str, arguments: Mapping[str, Json] | None = None, **options: Any) -> Task:
    """Plans asynchronous work on a host; see `Task` for the options."""
    return Task(host_id=host_id, verb=verb, arguments=dict(arguments or {}), **options)


def call(host_id: str, verb: str, arguments: Mapping[str, Json] | None = None, **options: Any) -> Call:
    """Plans a short verb on a host; see `Call` for the options."""
    return Call(host_id=host_id, verb=verb, arguments=dict(arguments or {}), **options)


def child(command: Runnable, **options: Any) -> Child:
    """Plans another command: shown as a step if one is named, as a job of its own with `as_job`, else not at all."""
    return Child(
        command_type=command.command_type,
        parameters=command.parameters(),
        parameters_version=command.parameters_version,
        **options,
    )


def wait_for(
    entity: EntityRef,
    *,
    until: Condition,
    fails_if: Condition | None = None,
    deadline: float | None = None,
    **options: Any,
) -> WaitFor:
    """Plans to wait until an observation of the entity satisfies one of the two conditions; `deadline` in seconds.

    See `WaitFor` for `beside` and `gives_up_if`.
    """
    return WaitFor(entity=entity, until=until, fails_if=fails_if or Condition(), deadline=deadline, **options)


def change(
    entity: Known,
    *,
    name: str | None = None,
    status: str | None = None,
    declared: Mapping[str, Json] | None = None,
    remove: bool = False,
    **options: Any,
) -> Change:
    """Plans a change of an entity that was read (or, if it does not exist, its making).

    What is None stays, and so do the declared fields that are not named. Undone if the command fails.
    """
    return Change(
        entity=entity.ref,
        name=name,
        status=status,
        declared=None if declared is None else {**entity.declared, **declared},
        remove=remove,
        former=Former(entity.name, entity.status, dict(entity.declared)) if entity.exists else None,
        **options,
    )


def instead(plan: Plan) -> Instead:
    """After a failure: tries this; its result replaces the failure."""
    return Instead(plan)


def cleanup(plan: Plan) -> Cleanup:
    """After a failure: does this; the failure stands. Done also if the job was cancelled."""
    return Cleanup(plan)


def concurrently(plans: Iterable[Plan], **options: Any) -> Concurrently:
    """Plans all at once."""
    return Concurrently(plans=tuple(plans), **options)


def serially(plans: Iterable[Plan], **options: Any) -> Serially:
    """Plans one after the other."""
    return Serially(plans=tuple(plans), **options)
