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

from jobstore.rows import Key, Row, key_of
from waybill.v1 import jobstore_pb2

_NEW_STATUS: Final = "OK"


@dataclass(slots=True)
class _Declared:
    """What becomes of an entity. None: stays as it is."""

    exists: bool
    name: str | None = None
    status: str | None = None
    declared: str | None = None

    def create(self) -> None:
        self.exists, self.name, self.status, self.declared = True, "", _NEW_STATUS, "{}"


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
            entity.create()
        entity.name = change.name or entity.name
        entity.status = change.status or entity.status
        entity.declared = change.declared_json or entity.declared

    def replace(self, key: Key, name: str, status: str, declared: str) -> None:
        """Sets every declared field, whether there was a row or not."""
        self._declared[key] = _Declared(True, name, status, declared)

    @property
    def created(self) -> list[Row]:
        """Rows for those that had none."""
        return [row for row, was, is_ in self._rows() if is_ and not was]

    @property
    def changed(self) -> list[Row]:
        """Rows for those that had one and keep it."""
        return [row for row, was, is_ in self._rows() if is_ and was]

    @property
    def removed(self) -> list[Row]:
        """Keys of those that had a row and lose it."""
        return [row[:2] for row, was, is_ in self._rows() if was and not is_]

    def _rows(self) -> list[tuple[Row, bool, bool]]:
        return [
            ((*key, entity.name, entity.status, entity.declared), key in self._stored, entity.exists)
            for key, entity in self._declared.items()
        ]
