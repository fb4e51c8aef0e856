"""Entities declared by hand, and read as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf import json_format

from chassis.errors import invalid_field, reject_control_in
from jobstore.checks import checked_entity_type
from jobstore.journal.declarations import Declarations
from jobstore.journal.guards import Guards, locked
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.journal.rows import Key, key_of
from jobstore.journal.statements import READ_ENTITIES
from jobstore.journal.transaction import arrays_of, as_asked, declare, read_entities, read_guards
from jobstore.messages import entity_message
from jobstore.snapshots import Pool, borrowed
from waybill.v1 import jobs_pb2, jobstore_pb2

MOST_PUT: Final = 1_000
MOST_READ: Final = 10_000
LONGEST_NAME: Final = 256


class Entities:
    """What commands act on."""

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def put(self, entities: Sequence[jobs_pb2.Entity]) -> list[jobs_pb2.Entity]:
        """Creates or replaces entities, all or none, and returns them as stored.

        Raises INVALID_ARGUMENT for a malformed one, LOCKED if a flow holds one of them.
        """
        _check(entities)
        declared = [_declared_json(index, entity) for index, entity in enumerate(entities)]
        return await self._journal.alone(lambda turn: _put(turn, entities, declared))

    async def read(self, refs: Sequence[jobstore_pb2.EntityRef]) -> list[jobs_pb2.Entity]:
        """Returns entities in the order asked; an absent one has version 0."""
        if len(refs) > MOST_READ:
            raise invalid_field("entities", f"at most {MOST_READ} at once")
        async with borrowed(self._pool) as connection:
            rows = await connection.fetch(READ_ENTITIES, *arrays_of(map(key_of, refs)))
        found = {(row["entity_type"], row["entity_id"]): entity_message(row) for row in rows}
        return list(as_asked(refs, found))


async def _put(turn: Turn, entities: Sequence[jobs_pb2.Entity], declared_json: Sequence[str]) -> list[jobs_pb2.Entity]:
    keys = [key_of(entity) for entity in entities]
    guards = await read_guards(turn.writer, locks=keys, entities=keys)
    _refuse_if_locked(guards, keys)
    declarations = Declarations(guards.versions.keys())
    for key, entity, declared in zip(keys, entities, declared_json, strict=True):
        declarations.replace(key, entity.name, entity.status, declared)
    await declare(turn, declarations)
    turn.changed = bool(entities)
    stored = await read_entities(turn.writer, keys)
    return [stored[key] for key in keys]


def _refuse_if_locked(guards: Guards, keys: Iterable[Key]) -> None:
    for key in keys:
        for holder in guards.holders.get(key, ()):
            if not holder.waits_since:
                raise locked(key, holder)


def _check(entities: Sequence[jobs_pb2.Entity]) -> None:
    if len(entities) > MOST_PUT:
        raise invalid_field("entities", f"at most {MOST_PUT} at once")
    seen: set[Key] = set()
    for index, entity in enumerate(entities):
        where = f"entities[{index}]"
        if not checked_entity_type(f"{where}.entity_type", entity.entity_type):
            raise invalid_field(f"{where}.entity_type", "must be given")
        entity_type, entity_id = key = key_of(entity)
        if not 1 <= len(entity_id) <= LONGEST_NAME:
            raise invalid_field(f"{where}.entity_id", f"must have 1-{LONGEST_NAME} characters")
        for field, text in (("name", entity.name), ("status", entity.status)):
            if len(text) > LONGEST_NAME:
                raise invalid_field(f"{where}.{field}", f"must have at most {LONGEST_NAME} characters")
        if key in seen:
            raise invalid_field(where, f"{entity_type} {entity_id} is there twice")
        seen.add(key)
        reject_control_in(entity, where)


def _declared_json(index: int, entity: jobs_pb2.Entity) -> str:
    try:
        return json.dumps(json_format.MessageToDict(entity.declared), ensure_ascii=False)
    except ValueError:
        raise invalid_field(f"entities[{index}].declared", "must have no numbers but finite ones") from None
