"""What a flow has decided, on its way to the store, and what may happen once it is there.

    decided ──▶ pending ──Commit──▶ in flight ──Recorded──▶ its acts are let out
                   ▲                    │
                   ├────────────────────┤ refused for no reason of the flow's: absorbs what is pending, goes again later
                   └────────────────────┘ refused for what is in it: taken back, and what was told is lived again

*Record, then act.* An outward act (a start, a stop, an answer) waits here for the commit with the intent behind it. One
commit is in flight at a time; everything that is decided meanwhile rides in the next.

| what is pending | goes |
| --- | --- |
| something that an act or somebody outside waits for | at once, but not while a command's code is running: what |
| | comes of that belongs to the same consequences, and rides along |
| something nobody waits for, such as progress | when the last commit is a second old |
| the first commit, while planning takes long | after 50 ms, in spite of running code: the submitter waits |
| acts alone | at once |

`told` are the events that made the pending changes, so that they can be lived again if the commit is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.flow import events as ev
from coordinator.flow.book import Book
from coordinator.flow.mutations import Mutations

PROGRESS_SECONDS: Final = 1.0
"""Progress alone is stored at most this often."""
RETRY_SECONDS: Final = 30.0
"""Longest pause before what was refused goes again."""


@dataclass(slots=True)
class Parcel:
    """A commit with all that belongs to it."""

    mutations: Mutations
    acts: list[ev.Effect]
    told: list[ev.Event]


class Outbox:
    """See the module. `sequence` is that of the last commit that is durable."""

    def __init__(self, book: Book, sequence: int = 0) -> None:
        self.sequence = sequence
        self.acts: list[ev.Effect] = []
        self.told: list[ev.Event] = []
        self.urgent = False  # somebody waits for what is pending
        self.impatient = False  # … and has waited long enough for running code
        self.in_flight: Parcel | None = None
        self.paused = False  # something was refused; until the timer "retry" nothing is tried
        self.progress_timer = False  # the timer "progress" will fire
        self._book = book
        self._last_commit = 0.0  # when the last commit was handed out
        self._refusals = 0  # in a row

    def hand_out(self, now: float, *, code_runs: bool) -> list[ev.Effect]:
        """Returns what goes now: a commit, acts that need none, or a timer for what can wait."""
        if self.in_flight is not None or self.paused:
            return []
        if not self._book.pending:
            return self._let_out()
        if code_runs and not self.impatient:
            return []
        if not (self.urgent or self.impatient or self.acts):
            return self._later(now)
        return [self._commit(now)]

    def _commit(self, now: float) -> ev.Commit:
        parcel = self.in_flight = Parcel(self._book.pending, self.acts, self.told)
        if self.sequence == 0:
            parcel.acts.insert(0, ev.Answer())
        self._book.pending = Mutations()
        self._clear()
        self._last_commit = now
        return ev.Commit(parcel.mutations, self.sequence + 1)

    def _let_out(self) -> list[ev.Effect]:
        acts = self.acts
        self._clear()
        return acts

    def _later(self, now: float) -> list[ev.Effect]:
        if self.progress_timer:
            return []
        self.progress_timer = True
        return [ev.SetTimer("progress", max(now, self._last_commit + PROGRESS_SECONDS))]

    def _clear(self) -> None:
        self.acts, self.told = [], []
        self.urgent = self.impatient = False

    def recorded(self) -> Parcel:
        """The commit in flight is durable."""
        assert self.in_flight is not None
        parcel, self.in_flight = self.in_flight, None
        self.sequence += 1
        self._refusals = 0
        return parcel

    # --- refused -----------------------------------------------------------------------------------------------------

    def pause(self, now: float) -> ev.SetTimer:
        """Tries nothing until the timer "retry"; each pause in a row is longer."""
        self._refusals += 1
        self.paused = True
        return ev.SetTimer("retry", now + min(RETRY_SECONDS, 0.2 * 2**self._refusals))

    def keep(self) -> None:
        """The commit in flight was refused and goes again as it is, with what has gathered behind it."""
        assert self.in_flight is not None
        parcel, self.in_flight = self.in_flight, None
        parcel.mutations.absorb(self._book.pending)
        self._book.pending = parcel.mutations
        self.acts = parcel.acts + self.acts
        self.told = parcel.told + self.told
        self.urgent = True

    def take_back(self) -> list[ev.Event]:
        """Makes the rows what is stored, forgets all acts, and returns what was told since, in order."""
        assert self.in_flight is not None
        parcel, self.in_flight = self.in_flight, None
        told = parcel.told + self.told
        self._book.take_back((self._book.pending, parcel.mutations))
        self._book.pending = Mutations()
        self._clear()
        return told
