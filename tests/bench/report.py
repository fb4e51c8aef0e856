"""The figures as a table for people and as JSON for comparisons."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

import yardstick
from accounts import CLIENTS, POSTGRES, SERVICES
from figures import Latency, Throughput, p50, p99
from limit import Limit
from options import MEASURES
from sampling import Profile
from wide import Stretch, Wide


@dataclass
class Figures:
    """Everything that a run of the bench has found; what was not asked for is missing."""

    throughputs: dict[str, Throughput] = field(default_factory=dict)
    """`single`, `untraced`, `multiple`."""
    tracing: list[float] = field(default_factory=list)
    """What it costs, in CPU seconds a job, by pair of stacks; empty if that was not asked for."""
    latency: Latency | None = None
    limit: Limit | None = None
    profile: Profile | None = None
    wide: Wide | None = None


@dataclass(frozen=True)
class Section:
    """Rows under a title and columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


# --- the table -------------------------------------------------------------------------------------------------------


def sections(figures: Figures) -> list[Section]:
    """The table, in parts."""
    parts = [
        _throughputs(figures),
        _latency(figures),
        _cpu(figures),
        _database(figures),
        *(_profile(figures.profile) if figures.profile else ()),
        *(_wide(figures.wide) if figures.wide else ()),
    ]
    return [part for part in parts if part.rows]


def _throughputs(figures: Figures) -> Section:
    targets = {"single": "≥ 1,200", "untraced": "", "multiple": "≥ 2,000"}
    rows = [
        [
            f"{MEASURES[name]}, {run.in_flight} in flight",
            f"{run.jobs_per_second:,.0f}",
            f"{run.jobs_per_second / figures.limit.jobs_per_second:.1%}" if figures.limit else "",
            targets[name],
            f"{run.taken_by_others:.0%}",
        ]
        for name, run in figures.throughputs.items()
    ]
    if figures.limit:
        rows.append([MEASURES["raw"], f"{figures.limit.jobs_per_second:,.0f}", "100.0%", "", ""])
    return Section("Throughput", ["jobs/s", "of Postgres alone", "target", "machine used by others"], rows)


def _latency(figures: Figures) -> Section:
    if figures.latency is None:
        return Section("Latency", [], [])
    measured = {
        "submit → durable answer": (figures.latency.answers, "≤ 5 ms"),
        "submit → watcher saw FINISHED": (figures.latency.ends, "≤ 12 ms"),
    }
    rows = [
        [what, f"{p50(times) * 1e3:.1f} ms", f"{p99(times) * 1e3:.1f} ms", target]
        for what, (times, target) in measured.items()
    ]
    return Section(MEASURES["latency"], ["median", "p99", "target of the median"], rows)


def _cpu(figures: Figures) -> Section:
    runs = figures.throughputs
    raw = f"{figures.limit.cpu_per_job * 1e6:,.0f}" if figures.limit else ""
    rows = [
        [
            party,
            *(f"{run.cpu_per_job[party] * 1e6:,.0f}" for run in runs.values()),
            raw if party == POSTGRES else "",
            "",
        ]
        for party in (*SERVICES, POSTGRES, *CLIENTS)
    ]
    rows.append(["services and Postgres", *(f"{run.cpu_of_servers * 1e6:,.0f}" for run in runs.values()), "", ""])
    rows.append(["everything", *(f"{run.cpu_of_a_job * 1e6:,.0f}" for run in runs.values()), "", "≤ 1,600"])
    rows.append(["a bare gRPC call", *(f"{run.bare_call * 1e6:,.0f}" for run in runs.values()), "", ""])
    calls = [f"{run.bare_calls_per_job:.1f}" for run in runs.values()]
    rows.append(["everything, in bare calls", *calls, "", f"≤ {yardstick.CALLS_OF_THE_TARGET}"])
    if figures.tracing:
        cost, least, most = mean(figures.tracing), min(figures.tracing), max(figures.tracing)
        for what, value, target in (
            ("tracing", f"{cost * 1e6:,.0f}", "≤ 200"),
            ("tracing, of the pairs", f"{least * 1e6:,.0f} to {most * 1e6:,.0f}", ""),
            ("tracing, in bare calls", f"{cost / runs['single'].bare_call:.2f}", f"≤ {yardstick.CALLS_OF_TRACING}"),
        ):
            rows.append([what, *(value if name == "single" else "" for name in runs), "", target])
    return Section("CPU per job, µs", [*runs, "raw", "target"], rows if runs else [])


def _database(figures: Figures) -> Section:
    runs = figures.throughputs
    counted = {
        "statements per job": lambda run: f"{run.counts.statements / run.jobs:.2f}",
        "writing transactions per job": lambda run: f"{run.counts.transactions / run.jobs:.3f}",
        "commits per job": lambda run: f"{run.counts.commits / run.jobs:.2f}",
        "commits in a transaction": lambda run: f"{run.counts.commits_a_revision:.1f}",
        "log per job, KiB": lambda run: f"{run.counts.log_bytes / run.jobs / 1024:.1f}",
    }
    rows = [[what, *map(count, runs.values())] for what, count in counted.items()]
    return Section("Postgres", list(runs), rows if runs else [])


def _profile(profile: Profile) -> list[Section]:
    services = [
        Section(f"Self time of {service}", ["of its samples"], [[name, f"{share:.1%}"] for name, share in functions])
        for service, functions in profile.functions.items()
    ]
    statements = [[each.text[:90], f"{each.calls:,}", f"{each.seconds:.2f} s"] for each in profile.statements]
    return [*services, Section("Statements", ["calls", "time"], statements)]


def _wide(wide: Wide) -> list[Section]:
    target = {"read as a tree": "< 500 ms"}
    seconds = [
        [what, f"{time:,.1f} s" if time >= 1 else f"{time * 1e3:,.0f} ms", target.get(what, "")]
        for what, time in wide.seconds.items()
    ]
    memory = [
        [name, *(f"{each >> 20:,}" if each else "" for each in (found.before, found.peak, found.after))]
        for name, found in wide.memory.items()
    ]
    return [
        Section(f"RemoveVm of a VM with {wide.disks:,} disks", ["time", "target"], seconds),
        _steps(wide),
        Section("Memory, MiB", ["before", "at most", "after"], memory),
    ]


def _steps(wide: Wide) -> Section:
    """What a step costs in jobs of five and in the wide one; and what ends cost, from the first tenth to the last."""
    servers = (*SERVICES, POSTGRES)
    measured: dict[str, Callable[[Stretch], float]] = {
        **{f"{party}, µs of CPU": lambda run, party=party: run.cpu_per_step(party) * 1e6 for party in servers},
        "services and Postgres, µs of CPU": lambda run: run.cpu_per_step(*servers) * 1e6,
        "the same, in bare calls": lambda run: run.cpu_per_step(*servers) / wide.bare_call,
        "the watcher of the tree, µs of CPU": lambda run: run.cpu_per_step("watcher") * 1e6,
        "wall time, µs": lambda run: run.seconds / run.steps * 1e6,
        "stored → watcher saw it, ms": lambda run: run.lag * 1e3,
        "log, KiB": lambda run: run.counts.log_bytes / run.steps / 1024,
        "statements": lambda run: run.counts.statements / run.steps,
        "writing transactions": lambda run: run.counts.transactions / run.steps,
    }
    rows = []
    for what, measure in measured.items():
        wholes, tenths = [measure(run) for run in (wide.small, wide.whole)], [measure(run) for run in wide.tenths]
        ratio = f"{tenths[-1] / tenths[0]:.2f}" if tenths and tenths[0] else ""
        cells = [f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}" for figure in (*wholes, *tenths)]
        rows.append([what, *cells, ratio])
    numbers = [f"{number}" for number in range(1, len(wide.tenths) + 1)]
    return Section("A step; and the ends, one by one", ["in jobs of 5", "in this one", *numbers, "last ÷ first"], rows)


def show(parts: Sequence[Section], heading: str) -> None:
    """Prints the table: with rich on a terminal, else as plain lines."""
    if sys.stdout.isatty():
        _show_rich(parts, heading)
    else:
        print("\n\n".join([heading, *map(_plain, parts)]))


def _show_rich(parts: Sequence[Section], heading: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(heading, style="bold")
    for part in parts:
        table = Table(part.title, title_justify="left")
        for column in part.columns:
            table.add_column(column, justify="right")
        for row in part.rows:
            table.add_row(*row)
        console.print(table)


def _plain(part: Section) -> str:
    lines = [[part.title, *part.columns], *part.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in lines
    )


# --- where and when --------------------------------------------------------------------------------------------------


def circumstances() -> dict[str, Any]:
    """What figures depend on besides the code."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "load": psutil.getloadavg()[0],
    }


def heading(around: Mapping[str, Any]) -> str:
    """One line that says what the table is of."""
    return (
        f"Waybill {around['version']} · Python {around['python']} · {around['cores']} cores, load {around['load']:.1f}"
    )


def _version() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(figures: Figures, around: Mapping[str, Any]) -> str:
    """All figures, in seconds and per second."""
    return json.dumps(
        {
            **around,
            "throughput": {name: _throughput(run) for name, run in figures.throughputs.items()},
            "cost_of_tracing": figures.tracing,
            "latency": _latencies(figures.latency) if figures.latency else None,
            "raw": vars(figures.limit) if figures.limit else None,
            "profile": figures.profile.functions if figures.profile else None,
            "wide": _wide_job(figures.wide) if figures.wide else None,
        },
        indent=2,
    )


def _throughput(run: Throughput) -> dict[str, Any]:
    return {
        "jobs": run.jobs,
        "in_flight": run.in_flight,
        "seconds": run.seconds,
        "jobs_per_second": run.jobs_per_second,
        "cpu_per_job": {**run.cpu_per_job, "everything": run.cpu_of_a_job},
        "cpu_of_a_bare_call": run.bare_call,
        "bare_calls_per_job": run.bare_calls_per_job,
        "taken_by_others": run.taken_by_others,
        "statements_per_job": run.counts.statements / run.jobs,
        "transactions_per_job": run.counts.transactions / run.jobs,
        "commits_per_job": run.counts.commits / run.jobs,
        "commits_in_a_transaction": run.counts.commits_a_revision,
        "log_bytes_per_job": run.counts.log_bytes / run.jobs,
    }


def _latencies(latency: Latency) -> dict[str, Any]:
    return {
        name: {"median": p50(times), "p99": p99(times), "jobs": len(times)}
        for name, times in (("answer", latency.answers), ("finished", latency.ends))
    }


def _wide_job(wide: Wide) -> dict[str, Any]:
    return {
        "disks": wide.disks,
        "seconds": dict(wide.seconds),
        "in_jobs_of_five": _stretch(wide.small),
        "whole": _stretch(wide.whole),
        "tenths": [_stretch(run) for run in wide.tenths],
        "memory": {name: vars(found) for name, found in wide.memory.items()},
        "cpu_of_a_bare_call": wide.bare_call,
    }


def _stretch(run: Stretch) -> dict[str, Any]:
    return {
        "steps": run.steps,
        "seconds": run.seconds,
        "cpu_per_step": {party: run.cpu_per_step(party) for party in run.used.parties},
        "seen_after": run.lag,
        "log_bytes_per_step": run.counts.log_bytes / run.steps,
        "statements_per_step": run.counts.statements / run.steps,
        "transactions_per_step": run.counts.transactions / run.steps,
    }
