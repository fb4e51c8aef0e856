"""What the collector has of flows that ended, and what is owed to it: also beyond our death.

    a flow ends ─▶ owed ─▶ its spans are delivered ─▶ mark: what we owe, if we die, is what ended after that
    a dead coordinator's debts are ours ─▶ its spans are delivered ─▶ settled: nobody owes them any more

Both go to the store with each renewal of the lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial


@dataclass(slots=True)
class Deliveries:
    """Of one coordinator. `enabled`: there is a collector."""

    enabled: bool
    _latest: int = 0
    _owed: dict[int, int] = field(default_factory=dict)  # flows by the revision of their end
    _settled: dict[str, None] = field(default_factory=dict)  # in order

    # --- our own flows -----------------------------------------------------------------------------------------------

    def expect(self, revision: int) -> Callable[[], None]:
        """A flow's end is stored at that revision; its spans follow. Returns what to call when they are delivered."""
        self._owed[revision] = self._owed.get(revision, 0) + 1
        return partial(self._delivered, revision)

    def passed(self, revision: int) -> None:
        """A flow's end is stored at that revision; what is not expected of it by now is not owed."""
        self._latest = max(self._latest, revision)

    def _delivered(self, revision: int) -> None:
        self._owed[revision] -= 1
        if not self._owed[revision]:
            del self._owed[revision]

    @property
    def mark(self) -> int:
        """Everything up to this revision is delivered; 0: no flow has ended yet; -1 if nothing ever is delivered."""
        if not self.enabled:
            return -1
        return min(self._owed) - 1 if self._owed else self._latest

    # --- those of the dead -------------------------------------------------------------------------------------------

    def settle(self, coordinator_id: str) -> None:
        """All that this dead coordinator owed is delivered."""
        self._settled[coordinator_id] = None

    @property
    def settled(self) -> tuple[str, ...]:
        """Dead coordinators that owe nothing any more, which the store may not know yet."""
        return tuple(self._settled)

    def known(self, coordinator_ids: Sequence[str]) -> None:
        """The store knows of these."""
        for each in coordinator_ids:
            self._settled.pop(each, None)
