"""Where our services spend their time: py-spy looks at them from outside, many times a second.

It is no dependency of ours: `.venv/bin/pip install py-spy`. The stacks are kept beside the JSON, one file a service,
in the collapsed form that flame graph tools read. Time in C (gRPC, protobuf, asyncpg) counts for the Python that called
it.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from database import Statement
from stage import Stage

TOP: Final = 10
_SAMPLES_A_SECOND: Final = 250

HOW_TO_GET_IT: Final = (
    "--profile needs py-spy: .venv/bin/pip install py-spy (and, unless root, kernel.yama.ptrace_scope=0)"
)


@dataclass
class Profile:
    """The functions with the most self time, by service, with their share; the costliest statements."""

    functions: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)


def sampler() -> str | None:
    """Where py-spy is; None if it is not installed."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


@asynccontextmanager
async def sampled(stage: Stage, files: Path) -> AsyncIterator[Profile]:
    """Samples the services until it is left; the profile is filled in then. `files` is the beginning of their names."""
    program = sampler()
    assert program is not None, HOW_TO_GET_IT
    described = stage.stack.describe()
    pids = {service: described[f"{service}s"][0]["pid"] for service in ("coordinator", "jobstore")}
    pids["hostagent"] = described["hosts"][0]["pid"]
    outputs = {service: files.with_name(f"{files.name}-{service}.txt") for service in pids}
    profile = Profile()
    await stage.database.forget_statements()
    running = [await _record(program, pid, outputs[service]) for service, pid in pids.items()]
    try:
        yield profile
        profile.statements = await stage.database.costliest(TOP)
    finally:
        for each in running:
            each.send_signal(signal.SIGINT)
        await asyncio.gather(*(each.wait() for each in running))
    profile.functions = {service: top(output.read_text().splitlines()) for service, output in outputs.items()}


async def _record(program: str, pid: int, output: Path) -> asyncio.subprocess.Process:
    options: Mapping[str, str] = {
        "--pid": str(pid),
        "--rate": str(_SAMPLES_A_SECOND),
        "--format": "raw",
        "--output": str(output),
        "--duration": "unlimited",
    }
    return await asyncio.create_subprocess_exec(
        *(program, "record", "--function", "--nonblocking", *(word for pair in options.items() for word in pair)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


def top(lines: Sequence[str]) -> list[tuple[str, float]]:
    """The functions in which most samples ended, from `outer;inner count` lines."""
    ends: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        ends[stack.rpartition(";")[2]] += int(count)
    return [(name, count / ends.total()) for name, count in ends.most_common(TOP)]
