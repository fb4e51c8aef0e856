"""Agents for the tests: in this process, or as processes of their own that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.hostagent.host_client import HostClient, connected

from chassis.clock import SystemClock, Uuid7Ids
from chassis.server import Mount, Server
from chassis.tracing import open_tracing
from hostagent.drivers.driver import Surroundings, load_driver
from hostagent.ledger import Ledger
from hostagent.observations import Observations
from hostagent.recorder import Recorder
from hostagent.runner import TaskRunner
from hostagent.service import HostAgentService
from hostagent.settings import Settings
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc


@asynccontextmanager
async def agent_here(folder: Path, settings: Settings) -> AsyncIterator[HostClient]:
    """Serves an agent from this process and connects to it."""
    clock, ids, driver = SystemClock(), Uuid7Ids(), load_driver("sim")
    async with (
        Ledger(folder / "ledger.db", ids) as ledger,
        open_tracing("", "waybill-hostagent") as tracing,
        Observations(ledger, clock) as observations,
    ):
        observations.observe("HOST", "host-1", "UP")
        surroundings = Surroundings("host-1", folder, clock, settings, observations.observe, _not_here)
        async with (
            driver.open(surroundings) as host,
            TaskRunner(
                verbs=driver.verbs,
                host=host,
                ledger=ledger,
                observations=observations,
                clock=clock,
                recorder=Recorder(tracing, ledger, clock, "host-1"),
                queue=settings.queue,
            ) as runner,
        ):
            agent = hostagent_pb2.AgentIdentity(host_id="host-1", incarnation=ledger.incarnation, boot_id=ids.new())
            service = HostAgentService(agent=agent, driver=driver, host=host, runner=runner, observations=observations)
            mount = Mount("waybill.v1.HostAgent", service, hostagent_pb2_grpc.add_HostAgentServicer_to_server)
            async with Server("127.0.0.1:0", [mount], grace=1) as server:
                server.set_serving(True)
                async with connected(server.address) as client:
                    yield client
                await service.before_stop()


def _not_here() -> None:
    raise AssertionError("an agent in the test's own process must not die")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[HostClient]:
    """An agent in this process whose tasks take no time."""
    async with agent_here(tmp_path, Settings(sim_boot_ms=20)) as client:
        yield client


@dataclass
class AgentProcess:
    """An agent in a process of its own: `async with AgentProcess.with_settings(…) as process`."""

    folder: Path
    """Where its data are."""
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""

    @classmethod
    def with_settings(cls, **settings: str) -> AgentProcess:
        """Returns one that is not started, with these settings and nothing else."""
        return cls(Path(), {f"HOSTAGENT_{name.upper()}": value for name, value in settings.items()})

    async def __aenter__(self) -> AgentProcess:
        await self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def begin(self) -> None:
        """Starts it and waits for its address; at the same port as before, if there was one."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hostagent",
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("HOSTAGENT_")},
                "HOSTAGENT_LISTEN": self.address or "127.0.0.1:0",
                "HOSTAGENT_HOST_ID": "host-1",
                "HOSTAGENT_SIM_BOOT_MS": "20",
                **self.environment,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        assert line.startswith("listening "), (await self.process.stderr.read()).decode()  # type: ignore[union-attr]
        self.address = line.split()[1]

    async def ended(self) -> int:
        """Waits for its end and returns its exit code."""
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def kill(self) -> None:
        """Kills it, if it lives."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.ended()

    async def kill_and_begin(self) -> None:
        """Kills it and starts another one on the same data."""
        await self.kill()
        await self.begin()


AgentStarter = Callable[..., AgentProcess]


@pytest.fixture
async def start_agent(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Starts an agent process on the test's folder; keywords are its settings."""
    async with AsyncExitStack() as stack:

        async def start(**environment: str) -> AgentProcess:
            folder = tmp_path / "data"
            process = AgentProcess.with_settings(data_dir=str(folder), **environment)
            process.folder = folder
            return await stack.enter_async_context(process)

        yield start
