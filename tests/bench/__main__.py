"""`make bench`: measures the standard work W1 on this machine, prints a table and keeps it in build/bench/*.json.

Method. Everything runs here, in processes of its own: the services as they ship, Postgres as it ships (durable, fsync
on), a client that submits and a client that watches. W1 is a command of a plug-in (`tests/plugin`) with one task that
takes no time, so all that is measured is ours. A throughput run keeps `--in-flight` jobs under way, from submission
until the watcher has seen them FINISHED, after a run that warms up. With and without tracing are two stacks that run
in turns, short laps of each, and are begun anew several times, for the machine is never the same for long, and equal
stacks are not alike: what tracing costs is the mean of what the pairs say, each by the median of its laps' differences.
Then, on the same server, the rows that such a job leaves are written by nothing but Postgres: what no system that
stores them can exceed.

How to read it. Machines are noisy and others use them, so absolute times mean nothing: compare ratios of one run. The
ratio to Postgres alone says how far we are from the limit. CPU per job is what throughput comes from: on a machine of
our own, cores divided by CPU per job is about the jobs per second. The same work takes twice the CPU on a bad day, so
it is also stated in bare gRPC calls, measured just before and after: the one figure to compare between runs and
machines. "Machine used by others" is the share that went to processes that are not ours; where it is large, trust
nothing else.

A run is valid only if the watcher saw every job FINISHED, each is stored so, each had its effect on the host once and
the store is consistent; else there are no figures and the exit code is 1. No time is ever asserted.

    make bench ARGS="--jobs 2000 --only single --only raw"
    make bench ARGS=--wide             # a job of 5,000 steps, instead (wide.py)
    make bench ARGS="--profile"        # the top ten of each service; needs py-spy
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import report
import runs
import sampling
import wide
from chassis import logs
from child import Child, ChildFailed
from figures import Throughput, cost_of_tracing, whole
from limit import raw_limit
from options import Options, parse
from stage import FOLDER, Stage, staged
from validity import Invalid, check
from waybill_cli.process import StartFailed

_MULTIPLE = 50
_CALLS_IN_FLIGHT = 4
_READY_SECONDS = 60.0
_WARM_UP_JOBS = 1000
_WARM_UP_LATENCY = 30
_LATENCY_JOBS = 300
_PAIRS = 4


async def measure(options: Options, files: Path) -> report.Figures:
    """Measures what was asked for. Raises Invalid or ChildFailed if it does not count."""
    figures = report.Figures()
    async with Child("collector", {}) as collector:
        address = (await collector.hear(_READY_SECONDS))["address"]
        if options.wide:
            async with staged(address, hosts=wide.HOSTS) as stage:
                figures.wide = await wide.measure(stage, options.wide)
        if options.only:
            async with staged(address) as stage:
                await _measure_w1(stage, options, files, figures)
    return figures


async def _measure_w1(stage: Stage, options: Options, files: Path, figures: report.Figures) -> None:
    if "latency" in options.only:
        await runs.latency(stage, "latency-warm-up", jobs=_WARM_UP_LATENCY)
        figures.latency = await runs.latency(stage, "latency", jobs=_LATENCY_JOBS)
    if {"single", "multiple"} & set(options.only):
        await runs.warm_up(stage, jobs=min(_WARM_UP_JOBS, options.jobs), in_flight=options.in_flight)
    if {"single", "untraced"} & set(options.only):
        async with _perhaps_sampled(stage, options, files) as figures.profile:
            pairs = await _single(stage, options)
        for name in sorted(pairs[0]):
            figures.throughputs[name] = whole([lap for laps in pairs for lap in laps[name]])
        figures.tracing = [cost_of_tracing(laps) for laps in pairs if len(laps) > 1]
    if "multiple" in options.only:
        figures.throughputs["multiple"] = await runs.throughput(
            stage,
            "multiple",
            jobs=options.jobs,
            in_flight=max(options.in_flight, _CALLS_IN_FLIGHT * _MULTIPLE),
            together=_MULTIPLE,
        )
    await check(stage)
    if "raw" in options.only:
        figures.limit = await raw_limit(stage.postgres.url, stage.accountant(), jobs=2 * options.jobs)


async def _single(stage: Stage, options: Options) -> list[dict[str, list[Throughput]]]:
    """Runs W1, one RPC a job, with tracing or without, or with both on several pairs of stacks, `stage` among them.

    For stacks that are equal in everything differ by half of what tracing costs, each as long as it lives.
    """
    wanted = [name for name in ("single", "untraced") if name in options.only]
    if wanted == ["single"]:
        return [{"single": [await runs.throughput(stage, "single", jobs=options.jobs, in_flight=options.in_flight)]}]
    pairs = []
    for pair in range(_PAIRS):
        async with AsyncExitStack() as stack:
            stages: dict[str, Stage] = {}
            # Each comes first as often as second, for the second to start finds a warmer machine.
            for name in wanted[:: 1 if pair % 2 else -1]:
                if name == "single" and pair == 0:
                    stages[name] = stage  # warm already
                    continue
                collector = stage.collector if name == "single" else ""
                stages[name] = await stack.enter_async_context(staged(collector))
                await runs.warm_up(stages[name], jobs=min(_WARM_UP_JOBS, options.jobs), in_flight=options.in_flight)
            pairs.append(await runs.in_turns(stages, jobs=options.jobs, in_flight=options.in_flight))
            for name in wanted:
                await check(stages[name])
    return pairs


@asynccontextmanager
async def _perhaps_sampled(stage: Stage, options: Options, files: Path) -> AsyncIterator[sampling.Profile | None]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(sampling.sampled(stage, files)) if options.profile else None


def main() -> int:
    """Measures, prints and keeps; returns the exit code."""
    options = parse(sys.argv[1:])
    if options.profile and sampling.sampler() is None:
        print(sampling.HOW_TO_GET_IT, file=sys.stderr)
        return 2
    logs.configure("bench", level="WARNING")
    around = report.circumstances()
    files = FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    try:
        figures = asyncio.run(measure(options, files))
    except (Invalid, ChildFailed, StartFailed) as failure:
        print(f"this run does not count:\n{failure}", file=sys.stderr)
        return 1
    text = report.as_json(figures, around)
    kept = files.with_suffix(".json")
    kept.write_text(text + "\n")
    if options.as_json:
        print(text)
    else:
        report.show(report.sections(figures), report.heading(around))
        print(f"\nkept in {kept.relative_to(FOLDER.parents[1])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
