"""Undoing: what becomes of the entities that a command had changed when it ends FAILED or ABORTED.

Each change stores what the entity was, in the same commit; of several by one command the first counts. Undoing is the
default end method after a failure, so it rides in the commit that ends the command and can be neither lost nor done
twice. Newest change first:

| the entity | becomes |
| --- | --- |
| was named by begun work that is not known to be rolled back | ILLEGAL, with an event |
| did not exist before | removed |
| else | what it was |

After a clean-up that went well all that the command had begun is known to be rolled back. Else work counts if the
command or one below it began it: who answers for the entity is who changed it.

What an end method notes is never undone.
"""

from __future__ import annotations

from coordinator.flow.book import Book
from coordinator.plan import EntityRef
from coordinator.rows import Command, EntityChange, EventNote, LeafKind, Notes, Severity, Snapshot


class Compensation:
    """See the module."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._of: dict[str, dict[EntityRef, Snapshot]] = {}  # by command, oldest first
        for snapshot in book.snapshots:
            self._of.setdefault(snapshot.command_id, {})[snapshot.entity] = snapshot

    def remember(self, command: Command, change: EntityChange) -> None:
        """Keeps what an entity was before a command's first change of it."""
        known = self._of.setdefault(command.command_id, {})
        if change.entity not in known:
            number = self._book.snapshots[-1].number + 1 if self._book.snapshots else 1
            snapshot = known[change.entity] = Snapshot(command.command_id, number, change.entity, change.former)
            self._book.add_snapshot(snapshot)

    def undo(self, command: Command, *, rolled_back: bool = False) -> Notes:
        """Notes that the entities that a command changed are what they were; `rolled_back` if a clean-up went well."""
        notes = Notes()
        known = self._of.get(command.command_id)
        if not known:
            return notes
        doubtful = set() if rolled_back else self._in_doubt(command.command_id)
        for snapshot in reversed(known.values()):
            if snapshot.entity in doubtful:
                notes.changes.append(_illegal(snapshot))
                message = f"{snapshot.entity} is ILLEGAL: {command.command_type} failed and was not rolled back"
                notes.events.append(EventNote("ENTITY_ILLEGAL", Severity.ERROR, message, snapshot.entity))
            else:
                notes.changes.append(_former_self(snapshot))
        return notes

    def _in_doubt(self, command_id: str) -> set[EntityRef]:
        return {
            leaf.entity
            for leaf in self._book.leaves_below(command_id)
            if leaf.entity is not None and leaf.kind is not LeafKind.WAIT and leaf.result != "CLEAN_SUCCESS"
        }


def _former_self(snapshot: Snapshot) -> EntityChange:
    former = snapshot.former
    if former is None:
        return EntityChange(snapshot.entity, remove=True)
    return EntityChange(snapshot.entity, former.name, former.status, former.declared)


def _illegal(snapshot: Snapshot) -> EntityChange:
    """Named and declared as before, if it was there: the command may have removed it."""
    former = snapshot.former
    if former is None:
        return EntityChange(snapshot.entity, status="ILLEGAL")
    return EntityChange(snapshot.entity, former.name, "ILLEGAL", former.declared)
