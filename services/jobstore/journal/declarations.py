"""Folds what a transaction declares of entities into one change an entity.

Several flows (or one, in several places) may change the same entity in one transaction; a statement changes a row only
once. So the changes are applied to each other first, in order: what a later one does not name stays as an earlier one
left it.

    nothing ──change──▶ created ──remove──▶ nothing          (no row is written)
    a row   ──change──▶ changed ──remove──▶ removed ──change──▶ changed, every field anew
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from jobstore.journal.rows import Key, key_of
from jobstore.journal.shapes import Row
from waybill.v1 import jobstore_pb2

_NEW_STATUS: Final = "OK"
_NOTHING: Final = "{}"


@dataclass(slots=True)
class _Declared:
    """What becomes of an entity. Empty: stays as it is, unless it is declared anew."""

    exists: bool
    name: str = ""
    status: str = ""
    declared: str = ""
    anew: bool = False


class Declarations:
    """The declared changes of one transaction, folded."""

    def __init__(self, stored: Collection[Key]) -> None:
        """`stored` are those entities, of all that will be changed, that have a row."""
        self._stored = stored
        self._declared: dict[Key, _Declared] = {}

    def change(self, change: jobstore_pb2.EntityChange) -> None:
        """Applies one change after those before it."""
        key = key_of(change.entity)
        entity = self._declared.setdefault(key, _Declared(key in self._stored))
        if change.remove:
            entity.exists = False
            return
        if not entity.exists:
            entity = self._declared[key] = _Declared(True, "", _NEW_STATUS, _NOTHING, anew=True)
        entity.name = change.name or entity.name
        entity.status = change.status or entity.status
        entity.declared = change.declared_json or entity.declared

    def replace(self, key: Key, name: str, status: str, declared: str) -> None:
        """Sets every declared field, whether there was a row or not."""
        self._declared[key] = _Declared(True, name, status or _NEW_STATUS, declared or _NOTHING, anew=True)

    @property
    def created(self) -> list[Row]:
        """Rows (`shapes.ENTITY`) for those that had none."""
        return [
            _row(key, entity) for key, entity in self._declared.items() if entity.exists and key not in self._stored
        ]

    @property
    def changed(self) -> list[Row]:
        """Rows (`shapes.ENTITY_CHANGE`) for those that had one and keep it."""
        living = [(key, entity) for key, entity in self._declared.items() if entity.exists]
        return [(*_row(key, entity), "t" if entity.anew else "f") for key, entity in living if key in self._stored]

    @property
    def removed(self) -> list[Row]:
        """Keys (`shapes.ENTITY_KEY`) of those that had a row and lose it."""
        return [key for key, entity in self._declared.items() if not entity.exists and key in self._stored]


def _row(key: Key, entity: _Declared) -> Row:
    return (*key, entity.name, entity.status, entity.declared)
