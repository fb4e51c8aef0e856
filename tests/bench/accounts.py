"""Who used the CPU: user and system seconds of every process that took part, by party.

Postgres is its postmaster with all children, also those that have ended. What the kernel does on its own account (the
disk's interrupts, its writing threads) is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

SERVICES: Final = ("coordinator", "jobstore", "hostagent")
POSTGRES: Final = "postgres"
CLIENTS: Final = ("submitter", "watcher")


@dataclass(frozen=True)
class Account:
    """CPU seconds by party, and of the whole machine."""

    parties: Mapping[str, float]
    machine: float

    def since(self, earlier: Account) -> Account:
        """What was used in between."""
        parties = {party: seconds - earlier.parties[party] for party, seconds in self.parties.items()}
        return Account(parties, self.machine - earlier.machine)

    @classmethod
    def total(cls, accounts: Sequence[Account]) -> Account:
        """What was used in all of them."""
        parties = {party: sum(each.parties[party] for each in accounts) for party in accounts[0].parties}
        return cls(parties, sum(each.machine for each in accounts))

    @property
    def ours(self) -> float:
        """What all parties used."""
        return sum(self.parties.values())


class Accountant:
    """Reads the accounts of some processes, by party."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._processes = {party: [psutil.Process(pid) for pid in each] for party, each in pids.items()}

    def read(self) -> Account:
        """What they have used until now."""
        return Account(
            {party: sum(map(_used_by, processes)) for party, processes in self._processes.items()}, _used_by_all()
        )


def _used_by(process: psutil.Process) -> float:
    own = process.cpu_times()
    return own.user + own.system + own.children_user + own.children_system + sum(map(_used, process.children()))


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # it has just ended, and is its parent's from now on
    return times.user + times.system


def _used_by_all() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
