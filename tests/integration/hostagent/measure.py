"""Measures what a task costs the agent: `python tests/integration/hostagent/measure.py [TASKS]`.

Starts an agent of its own, sends it simWork tasks as a coordinator does (starts and clears in batches of 64, one at a
time; a stream of states) and prints tasks per second and the CPU of the agent's process per task.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.protobuf.struct_pb2 import Struct, Value

from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc, jobs_pb2

BATCH = 64
IN_FLIGHT = 128


def cpu_seconds(pid: int) -> float:
    """Returns the time that a process's threads have been on a core, to the nanosecond (not by ticks, as in stat)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def specs(number: int, run: str) -> Iterator[hostagent_pb2.TaskSpec]:
    """Makes tasks as a coordinator does."""
    for index in range(number):
        yield hostagent_pb2.TaskSpec(
            task_id=f"{run}-7000-8000-{index:012x}",
            verb="simWork",
            arguments=Struct(fields={"object_id": Value(string_value=f"object-{index % 100}")}),
            flow_command_id=f"{run}-7000-8001-{index:012x}",
            epoch=1,
            correlation_id=f"bench-{index}",
            job_id=f"{run}-7000-8002-{index:012x}",
            command_id=f"{run}-7000-8003-{index:012x}",
        )


class Coordinator:
    """Keeps so many tasks in flight, and starts and clears in batches, one at a time."""

    def __init__(self, agent: hostagent_pb2_grpc.HostAgentStub, tasks: list[hostagent_pb2.TaskSpec]) -> None:
        self.agent = agent
        self.waiting = tasks
        self.total = len(tasks)
        self.over: set[str] = set()
        self.clearable: list[str] = []
        self.in_flight = 0
        self.wake = asyncio.Event()
        self.starts = self.messages = self.statuses = self.clears = 0

    async def run(self) -> None:
        watching = asyncio.create_task(self.watch())
        await asyncio.gather(self.start(), self.clear())
        watching.cancel()

    async def watch(self) -> None:
        async for message in self.agent.WatchTasks(hostagent_pb2.WatchTasksRequest(watcher="measure")):
            self.messages += 1
            for status in message.statuses:
                self.statuses += 1
                if status.state == jobs_pb2.TASK_STATE_FINISHED and status.task_id not in self.over:
                    assert status.result == jobs_pb2.TASK_RESULT_SUCCESS
                    self.over.add(status.task_id)
                    self.clearable.append(status.task_id)
                    self.in_flight -= 1
            self.wake.set()

    async def start(self) -> None:
        while self.waiting:
            batch = self.waiting[:BATCH]
            if self.in_flight + len(batch) > IN_FLIGHT:
                await self.woken()
                continue
            del self.waiting[:BATCH]
            self.in_flight += len(batch)
            answer = await self.agent.StartTasks(hostagent_pb2.StartTasksRequest(tasks=batch))
            assert not any(result.HasField("error") for result in answer.results)
            self.starts += 1

    async def clear(self) -> None:
        cleared = 0
        while cleared < self.total:
            batch = self.clearable[:BATCH]
            if len(batch) < min(BATCH, self.total - cleared):
                await self.woken()
                continue
            del self.clearable[:BATCH]
            await self.agent.ClearTasks(hostagent_pb2.ClearTasksRequest(task_ids=batch))
            self.clears += 1
            cleared += len(batch)

    async def woken(self) -> None:
        self.wake.clear()
        await self.wake.wait()


async def measure(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        agent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hostagent",
            env={
                "HOSTAGENT_LISTEN": "127.0.0.1:0",
                "HOSTAGENT_DATA_DIR": folder,
                **os.environ,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert agent.stdout is not None
        address = (await agent.stdout.readline()).decode().split()[1]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: hostagent_pb2_grpc.HostAgentStub = hostagent_pb2_grpc.HostAgentStub(channel)
            await Coordinator(stub, list(specs(200, "00000000-0000"))).run()  # warm
            if "--pid" in sys.argv:
                print("agent", agent.pid, flush=True)
                await asyncio.sleep(2)
            cpu, start = cpu_seconds(agent.pid), time.perf_counter()
            coordinator = Coordinator(stub, list(specs(number, "00000001-0000")))
            await coordinator.run()
            cpu, seconds = cpu_seconds(agent.pid) - cpu, time.perf_counter() - start
        agent.terminate()
        await agent.wait()
    print(
        f"{number} tasks: {number / seconds:.0f}/s, agent {cpu / number * 1e6:.0f} us CPU a task; "
        f"{coordinator.starts} starts, {coordinator.messages} messages with {coordinator.statuses} states, "
        f"{coordinator.clears} clears"
    )


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
