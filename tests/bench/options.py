"""What the bench is asked for: `make bench ARGS="--jobs 2000 --only single"`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MEASURES: Final = {
    "single": "W1, one RPC a job",
    "untraced": "W1, one RPC a job, without tracing",
    "multiple": "W1, RunMultipleCommands of 50",
    "latency": "W1, one at a time",
    "raw": "Postgres alone, with W1's rows",
}

WIDE: Final = 5000


@dataclass(frozen=True)
class Options:
    """How much is measured, and what is told of it."""

    jobs: int
    in_flight: int
    only: tuple[str, ...]
    """Names of MEASURES; all of them unless asked otherwise, none if only the wide job is asked for."""
    wide: int
    """Disks of the VM that is removed; 0: none is."""
    profile: bool
    as_json: bool


def parse(arguments: Sequence[str]) -> Options:
    """Reads the command line; exits with a usage message if it makes no sense."""
    names = "; ".join(f"{name}: {meaning}" for name, meaning in MEASURES.items())
    parser = argparse.ArgumentParser(prog="make bench", description="Measures Waybill's standard work, W1.")
    parser.add_argument("--jobs", type=_positive, default=4000, help="jobs of each throughput measure (%(default)s)")
    parser.add_argument(
        "--in-flight", type=_positive, default=128, help="jobs that are under way at once (%(default)s)"
    )
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME", help=f"may be repeated. {names}")
    parser.add_argument(
        "--wide",
        type=_positive,
        nargs="?",
        const=WIDE,
        default=0,
        metavar="DISKS",
        help=f"the removal of a VM with so many disks ({WIDE}) instead, or besides what --only names",
    )
    parser.add_argument("--profile", action="store_true", help="sample our services during `single`; slows them down")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    given = parser.parse_args(arguments)
    only = given.only or ([] if given.wide else MEASURES)
    return Options(given.jobs, given.in_flight, tuple(only), given.wide, given.profile, given.json)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
