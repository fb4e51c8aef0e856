"""When a process is to end, and what a second wish for it does.

    SIGTERM, SIGINT, supervisor's pipe closed ──first──▶ told to whoever is in charge of ending (serve, or the start-up)
                                              ──second─▶ exit at once

The pipe is for processes under a supervisor that may be killed: its end of `WAYBILL_SUPERVISOR_FD` closes with it,
however it dies, so nothing outlives it unseen.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Final

SUPERVISOR_FD: Final = "WAYBILL_SUPERVISOR_FD"


class Lifetime:
    """The wish that this process ends, as one event."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.reason = ""
        """Why it is to end; empty until it is."""
        self.failed = False
        """True if it ends because it cannot go on, not because it was asked to."""
        self._on_over: Callable[[], object] | None = None

    def when_over(self, act: Callable[[], object] | None) -> None:
        """Has this called when the wish comes; it replaces what was to be called before."""
        self._on_over = act

    def end(self, reason: str) -> None:
        """Asks for the end. The second wish does not wait for the first to be granted."""
        if self.over.is_set():
            os._exit(1)
        self.reason = reason
        self.over.set()
        if self._on_over is not None:
            self._on_over()

    def fail(self, reason: str) -> None:
        """Ends because there is no going on. Saying so again, or while it ends already, is no second wish."""
        if not self.over.is_set():
            self.failed = True
            self.end(reason)

    def heed_signals(self) -> None:
        """Takes SIGTERM and SIGINT for the wish."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end, number.name)

    def heed_supervisor(self) -> None:
        """Takes the end of the supervisor's pipe for the wish, where there is one."""
        if descriptor := os.environ.get(SUPERVISOR_FD):
            _call_at_end_of_pipe(int(descriptor), self._supervisor_gone)

    def _supervisor_gone(self) -> None:
        if not self.over.is_set():  # a supervisor that dies while we end is no second wish either
            self.end("supervisor gone")


def _call_at_end_of_pipe(descriptor: int, act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if os.read(descriptor, 64):
            return  # a supervisor that writes is alive
        loop.remove_reader(descriptor)
        act()

    os.set_inheritable(descriptor, False)  # children of ours have their own ways to end
    loop.add_reader(descriptor, readable)
