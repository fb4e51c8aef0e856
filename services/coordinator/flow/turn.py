"""The event that is being handled: when that is, what is asked for, and what is still to be looked at."""

from __future__ import annotations

from collections import deque
from typing import Any

from coordinator.flow import events as ev


class Turn:
    """See the module.

    The agenda keeps long chains from being deep recursions: whoever leads to something after itself puts it there.
    `replaying` while rows are taken up: what happens has happened before, and nothing new may be decided until the flow
    stands where its rows say. `silent` while they are taken up again in the same process: what has begun was asked for
    already.
    """

    __slots__ = ("_agenda", "_decisions", "effects", "now", "replaying", "silent")

    def __init__(self) -> None:
        self.now = 0.0
        self.effects: list[ev.Effect] = []
        self.replaying = False
        self.silent = False
        self._agenda: deque[tuple[Any, ...]] = deque()
        self._decisions: list[tuple[Any, ...]] = []  # that wait until rows have been taken up

    def then(self, *step: Any) -> None:
        """Puts a call (function, arguments…) on the agenda."""
        self._agenda.append(step)

    def decide(self, *step: Any) -> None:
        """The same for what is new also where rows are taken up: then it waits until they have been."""
        if self.replaying:
            self._decisions.append(step)
        else:
            self._agenda.append(step)

    def replay(self, *step: Any) -> None:
        """Makes a call that takes rows up, and works off what that leads to; then come the decisions."""
        self.replaying = True
        self._agenda.append(step)
        self.run()
        self.replaying = False
        self._agenda.extend(self._decisions)
        self._decisions.clear()

    def run(self) -> None:
        """Works the agenda off, and what comes onto it meanwhile."""
        agenda = self._agenda
        while agenda:
            function, *arguments = agenda.popleft()
            function(*arguments)
