"""The event that is being handled: when that is, what is asked for, and what is still to be looked at."""

from __future__ import annotations

from collections import deque
from typing import Any

from coordinator import events as ev


class Turn:
    """See the module.

    `agenda` is what keeps long chains from being deep recursions: whoever leads to something after itself puts it
    there. `replaying` while rows are taken up: what has a row has begun before. `silent` while they are taken up again
    in the same process: what has begun was asked for already.
    """

    __slots__ = ("_agenda", "effects", "now", "replaying", "silent")

    def __init__(self) -> None:
        self.now = 0.0
        self.effects: list[ev.Effect] = []
        self.replaying = False
        self.silent = False
        self._agenda: deque[tuple[Any, ...]] = deque()

    def then(self, *step: Any) -> None:
        """Puts a call (function, arguments…) on the agenda."""
        self._agenda.append(step)

    def run(self) -> None:
        """Works the agenda off, and what comes onto it meanwhile."""
        agenda = self._agenda
        while agenda:
            function, *arguments = agenda.popleft()
            function(*arguments)
