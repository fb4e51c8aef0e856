"""kill -9 of each process, at seeded random moments of RemoveVm and AddDisk: nothing is lost, nothing is done twice.

`WAYBILL_CRASHES` says how often each is killed (5 in `make test`, 50 in `make crash`), `WAYBILL_SEED` at which moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from tests.chaos.round import WORK_MS, Rounds, assert_nothing_lost_or_doubled

from waybill_cli.stack import Stack

CRASHES = int(os.environ.get("WAYBILL_CRASHES", "5"))
SEED = int(os.environ.get("WAYBILL_SEED", "1"))
LATEST = 0.8  # seconds into the round: the jobs of a round take about half of that


async def kill(stack: Stack, victim: str, rng: random.Random) -> None:
    """Kills one process of a kind as a crash would. Its supervisor (for Postgres: the jobstore) starts it anew."""
    if victim == "postgres":
        pid_file = stack.data_dir / "jobstore-1" / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        return
    kinds = {"coordinator": stack.coordinators, "jobstore": stack.jobstores, "hostagent": stack.hosts}
    await stack.kill(rng.choice(kinds[victim]))


@pytest.mark.rule("semantics §2: Success reported with less done than declared must be impossible")
@pytest.mark.rule("semantics §8: It must be empty after anything")
@pytest.mark.rule("semantics §2: Jobs are never deleted or hidden by a restart")
@pytest.mark.timeout(60 + 20 * CRASHES)
@pytest.mark.parametrize("victim", ["coordinator", "jobstore", "hostagent", "postgres"])
async def test_killed_at_any_moment_every_job_finishes_and_nothing_is_done_twice(victim: str, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {victim}")
    environment = {"HOSTAGENT_SIM_WORK_MS": str(WORK_MS)}
    async with Stack(tmp_path, hosts=2, environment=environment, longest_delay=0.2) as stack, stack.client() as client:
        rounds = Rounds(stack, client)
        await rounds.furnish_first()
        killed = 0
        for _ in range(CRASHES):
            moment = rng.uniform(0.0, LATEST)

            async def crash(moment: float = moment) -> None:
                nonlocal killed
                await asyncio.sleep(moment)  # the moment of the crash: time itself is what the test is about
                await kill(stack, victim, rng)
                killed += 1

            await rounds.play(crash)
        assert killed == CRASHES
        await assert_nothing_lost_or_doubled(stack, client, rounds)
