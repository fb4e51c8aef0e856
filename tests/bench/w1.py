"""W1, the standard work: a command with one task on a host that takes no time, named by its correlation id.

The object that the task works on has the same name, so one name finds a job, its rows, its log lines and its effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

COMMAND_TYPE: Final = "BenchWork"
VERB: Final = "simWork"
HOST_ID: Final = "host-1"


def names(run: str, jobs: int) -> Iterator[str]:
    """The correlation ids of a run's jobs."""
    return (f"{run}-{number}" for number in range(jobs))


def is_of(run: str, correlation_id: str) -> bool:
    """Whether a job is of this run."""
    return correlation_id.rpartition("-")[0] == run


def parameters(name: str) -> dict[str, str]:
    """What a job is asked to do."""
    return {"host_id": HOST_ID, "object_id": name}
