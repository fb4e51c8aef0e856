"""What is measured: the services of one host as they ship, on an embedded Postgres as it ships, in a folder of its own.

The server is started by the bench and not by the jobstore, for one thing: pg_stat_statements, which has to be loaded
with it. Everything else, fsync with it, is the jobstore's own choice.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import w1
from accounts import POSTGRES, Accountant
from chassis.clock import SystemClock
from database import SERVER_SETTINGS, Database, looked_at
from jobstore.postgres.postgres import EmbeddedPostgres
from waybill_cli.stack import Stack

FOLDER = Path(__file__).parents[2] / "build" / "bench"


@dataclass
class Stage:
    """A running stack, and what is needed to measure it."""

    stack: Stack
    postgres: EmbeddedPostgres
    database: Database
    collector: str
    """Where everybody's spans go; empty: nobody makes any."""
    submitted: dict[str, int] = field(default_factory=dict)
    """How many jobs were submitted, by run."""

    def accountant(self, **clients: int) -> Accountant:
        """Reads the CPU of the services, of Postgres and of these clients."""
        services = {
            "coordinator": self.stack.coordinators,
            "jobstore": self.stack.jobstores,
            "hostagent": self.stack.hosts,
        }
        pids = {party: [process.pid for process in processes] for party, processes in services.items()}
        return Accountant({**pids, POSTGRES: [self.postgres.pid], **{name: [pid] for name, pid in clients.items()}})

    def run(self, name: str, jobs: int) -> str:
        """Notes that a run of so many jobs begins; returns its name."""
        assert name not in self.submitted
        self.submitted[name] = jobs
        return name


@asynccontextmanager
async def staged(collector: str, *, hosts: int = 1) -> AsyncIterator[Stage]:
    """Starts everything, and leaves nothing behind. `collector` is where spans go; empty: there are none."""
    endpoints = {f"{service}_TRACES_ENDPOINT": collector for service in ("COORDINATOR", "JOBSTORE", "HOSTAGENT")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=FOLDER) as folder:
        async with (
            EmbeddedPostgres(Path(folder) / "postgres", SystemClock(), SERVER_SETTINGS) as postgres,
            Stack(
                Path(folder) / "stack",
                hosts=hosts,
                auto_restart=False,
                environment={"JOBSTORE_DATABASE_URL": postgres.url, **endpoints},
            ) as stack,
            looked_at(postgres.url) as database,
        ):
            stage = Stage(stack, postgres, database, collector)
            await _first_job(stage)
            yield stage


async def _first_job(stage: Stage) -> None:
    """Runs one job, so that everybody knows everybody."""
    (name,) = w1.names(stage.run("first", 1), 1)
    async with stage.stack.client(wait_for_ready=True) as client:
        job = await client.run_command(w1.COMMAND_TYPE, w1.parameters(name), correlation_id=name)
        await client.wait(job.job_id, timeout=60)
