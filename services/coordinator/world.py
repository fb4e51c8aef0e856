"""What a command sees and may note while it plans or ends: entities as they are, with the flow's own notes on top.

A `World` is for one run of one command's code. Reading is the only I/O there is; everything that the code wants done
is noted and becomes true with the commit that the notes ride in. What was read is remembered with its version: the
commit is refused if it changed meanwhile, and the code runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import grpc

from chassis.errors import WaybillError, not_found, unavailable
from coordinator.plan import EntityRef, Former, Observation
from coordinator.rows import EntityChange, EventNote, LockKey, Notes, Severity
from coordinator.scheduler import is_fit, pick_host


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity as it was read; `version` 0 means that it does not exist."""

    ref: EntityRef
    name: str = ""
    status: str = "OK"
    declared: Mapping[str, Any] = field(default_factory=dict)
    observed: Observation = field(default_factory=Observation)
    version: int = 0

    @property
    def title(self) -> str:
        """Its name for people, or its id if it has none."""
        return self.name or self.ref.entity_id

    @property
    def exists(self) -> bool:
        """False if there is no such entity."""
        return self.version > 0


Reader = Callable[[Sequence[EntityRef]], Awaitable[Sequence[Entity]]]


class Refused(WaybillError):  # noqa: N818 - what a command says, not what went wrong
    """Raised by `validate`: the command must not run now, and why."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        """`metadata` are facts for programs: ids, states, numbers."""
        facts = {name: str(value) for name, value in metadata.items()}
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=facts)


MOST_AT_ONCE: Final = 5_000
"""Entities of one call to the store."""


class Reading:
    """The entities that a flow's commands have read for the commit that is gathering, with their changes on top.

    Once a commit is made or refused there is a new one, and everything is read anew. Code that is still running keeps
    the one that it began with: what it notes on top of what it read must not be mistaken for what others read later.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._asking: _Question | None = None  # what has been asked for in this turn of the loop
        self._known: dict[EntityRef, Entity] = {}
        self._versions: dict[EntityRef, int] = {}  # as stored, whatever was noted since

    async def read(self, refs: Sequence[EntityRef]) -> list[Entity]:
        """Returns the entities in the order asked; asks the store for those not known yet.

        What a flow's commands ask for in one turn of the loop goes in one call: they may be thousands.
        """
        missing = [ref for ref in refs if ref not in self._known]
        if missing and self._asking is not None:
            await self._asking.join(missing)
        elif missing:
            await self._ask(missing)
        return [self._known[ref] for ref in refs]

    async def _ask(self, missing: Sequence[EntityRef]) -> None:
        question = self._asking = _Question(dict.fromkeys(missing))
        try:
            await asyncio.sleep(0)  # the rest of this turn of the loop asks along
            self._asking = None
            refs = list(question.refs)
            for first in range(0, len(refs), MOST_AT_ONCE):
                for entity in await self._reader(refs[first : first + MOST_AT_ONCE]):
                    self._known.setdefault(entity.ref, entity)
                    self._versions.setdefault(entity.ref, entity.version)
        except BaseException as error:
            self._asking = None
            question.fail(error)
            raise
        question.answer()

    def put(self, entity: Entity) -> None:
        """Lets later readers of this turn see what was noted."""
        self._known[entity.ref] = entity

    def version_of(self, ref: EntityRef) -> int | None:
        """The stored version at which it was read; None if it was not."""
        return self._versions.get(ref)

    def name_of(self, ref: EntityRef) -> str:
        """The name of an entity that was read; empty if it was not."""
        known = self._known.get(ref)
        return known.name if known is not None else ""


class _Question:
    """One call's entities, and who waits for them beside the one who makes it."""

    def __init__(self, refs: dict[EntityRef, None]) -> None:
        self.refs = refs
        self._answers: list[asyncio.Future[None]] = []

    async def join(self, refs: Iterable[EntityRef]) -> None:
        """Asks along; raises what the call raises."""
        self.refs.update(dict.fromkeys(refs))
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        await answer

    def answer(self) -> None:
        """The entities are known."""
        for answer in self._answers:
            if not answer.done():
                answer.set_result(None)

    def fail(self, error: BaseException) -> None:
        """There was no answer. That the one who asked was cancelled is no reason for the others to end."""
        reason = error if isinstance(error, Exception) else unavailable("who asked the store along was cancelled")
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(reason)


class Places(Protocol):
    """Knows which VMs are where."""

    async def vms_on(self, host_id: str) -> Sequence[Entity]: ...
    async def tasks_on(self, host_id: str) -> Sequence[str]: ...
    async def loads(self) -> Mapping[str, int]: ...
    def given(self, host_id: str) -> None: ...


class World:
    """See the module. Without `places` no host has VMs."""

    def __init__(
        self,
        reading: Reading,
        hosts: Callable[[], Sequence[Entity]],
        *,
        guard_reads: bool,
        places: Places | None = None,
    ) -> None:
        self._reading = reading
        self._hosts = hosts
        self._places = places
        self._guard_reads = guard_reads
        self.notes = Notes()

    async def find(self, entity_type: str, entity_id: str) -> Entity:
        """Returns the entity; `exists` is False if there is none."""
        return (await self.find_all([EntityRef(entity_type, entity_id)]))[0]

    async def get(self, entity_type: str, entity_id: str) -> Entity:
        """Returns the entity. Raises ENTITY_NOT_FOUND."""
        entity = await self.find(entity_type, entity_id)
        if not entity.exists:
            message = f"there is no {entity_type} {entity_id}"
            raise not_found("ENTITY_NOT_FOUND", message, entity_type=entity_type, entity_id=entity_id)
        return entity

    async def find_all(self, refs: Sequence[EntityRef]) -> list[Entity]:
        """Returns entities in the order asked, in at most one call to the store."""
        entities = await self._reading.read(refs)
        if self._guard_reads:
            for entity in entities:
                self._guard(entity.ref)
        return entities

    def hosts_up(self) -> list[Entity]:
        """The hosts that take VMs, by id: seen up, nothing is done to them. Not guarded: a host may always go away."""
        return sorted(filter(is_fit, self._hosts()), key=lambda host: host.ref)

    async def vms_on(self, host_id: str) -> list[Entity]:
        """Returns the VMs that were last seen on a host and not down, by id. Not guarded: they come and go."""
        return list(await self._places.vms_on(host_id)) if self._places is not None else []

    async def tasks_on(self, host_id: str) -> list[str]:
        """Returns the tasks that run on a host, in words. Raises HOST_UNREACHABLE if that cannot be said."""
        return list(await self._places.tasks_on(host_id)) if self._places is not None else []

    async def pick_host(self, *, excluded: Collection[str] = (), preferred: str = "") -> str | None:
        """Returns the id of the host that a VM goes to: up, not excluded, the preferred one or the least loaded."""
        loads = await self._places.loads() if self._places is not None else {}
        host_id = pick_host(self._hosts(), loads, excluded=excluded, preferred=preferred)
        if host_id is not None and self._places is not None:
            self._places.given(host_id)
        return host_id

    def name_of(self, ref: EntityRef) -> str:
        """The name of an entity that was read; empty if it was not, or has none."""
        return self._reading.name_of(ref)

    def change(self, entity: Entity, *, name: str | None = None, status: str | None = None, **declared: Any) -> Entity:
        """Notes a change of an entity that was read (or, if it does not exist, its making); None stays."""
        merged = {**entity.declared, **declared} if declared else None
        self.notes.changes.append(EntityChange(entity.ref, name, status, merged, former=_former(entity)))
        changed = replace(
            entity,
            name=entity.name if name is None else name,
            status=entity.status if status is None else status,
            declared=entity.declared if merged is None else merged,
            version=max(1, entity.version),
        )
        self._guard(entity.ref)
        self._reading.put(changed)
        return changed

    def remove(self, entity: Entity) -> None:
        """Notes that an entity that was read is gone."""
        if entity.exists:
            self.notes.changes.append(EntityChange(entity.ref, remove=True, former=_former(entity)))
            self._guard(entity.ref)
            self._reading.put(Entity(entity.ref))

    def lock(self, keys: Iterable[LockKey]) -> None:
        """While planning: wants these locks, too, which follow from what was read."""
        self.notes.locks += [key for key in keys if key not in self.notes.locks]

    def tell(
        self, event_type: str, message: str, *, severity: Severity = Severity.NORMAL, entity: EntityRef | None = None
    ) -> None:
        """Notes a line for the audit log."""
        self.notes.events.append(EventNote(event_type, severity, message, entity))

    def _guard(self, ref: EntityRef) -> None:
        version = self._reading.version_of(ref)
        if version is not None:
            self.notes.read_versions.setdefault(ref, version)


def _former(entity: Entity) -> Former | None:
    return Former(entity.name, entity.status, dict(entity.declared)) if entity.exists else None
