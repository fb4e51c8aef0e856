"""One child process under supervision, with the smallest service there is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from waybill_cli.process import Process, StartFailed

SERVICE = """
import asyncio, os, sys
from chassis.server import serve

if os.environ.get("DIES"):
    sys.exit("cannot live like this")
if os.environ.get("DIES_LATER"):
    print("listening 127.0.0.1:1", flush=True)
    sys.exit("cannot go on like this")
print("a word on stderr", file=sys.stderr, flush=True)
asyncio.run(serve(os.environ["SMALLEST_LISTEN"], []))
"""


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    (tmp_path / "smallest.py").write_text(SERVICE)
    read_end, write_end = os.pipe()
    process = Process(
        "smallest-1",
        "smallest",
        ("127.0.0.1", 0),
        environment={"PYTHONPATH": str(tmp_path)},
        log=tmp_path / "logs" / "smallest-1.log",
        supervisor_pipe=read_end,
    )
    yield process
    await process.stop()
    os.close(read_end)
    os.close(write_end)


async def test_a_started_process_listens_and_serves(process: Process) -> None:
    await process.start()
    await process.serving()
    assert not process.address.endswith(":0")
    assert process.alive
    assert "a word on stderr" in process.last_of_log()


async def test_a_killed_process_comes_back_on_the_same_port(process: Process) -> None:
    await process.start()
    before = process.address, process.pid
    await process.kill()
    await process.serving()
    assert process.address == before[0]
    assert process.pid != before[1]
    assert process.starts == 2


async def test_a_killed_process_stays_down_if_told_so(process: Process) -> None:
    process.auto_restart = False
    await process.start()
    await process.kill()
    with pytest.raises(StartFailed):
        await process.serving()
    await process.start()
    await process.serving()


async def test_a_stopped_process_ends_by_itself(process: Process) -> None:
    await process.start()
    await process.stop()
    assert await process.ended() == 0
    assert process.starts == 1


async def test_a_frozen_process_can_be_stopped(process: Process) -> None:
    await process.start()
    process.send(signal.SIGSTOP)
    await process.stop()
    assert not process.alive


async def test_a_process_that_cannot_start_says_why(process: Process) -> None:
    process.environment["DIES"] = "1"
    with pytest.raises(StartFailed, match=r"(?s)ended with 1 before it listened.*cannot live like this"):
        await process.start()


async def test_a_process_that_never_serves_is_given_up_with_its_last_words(process: Process) -> None:
    process.environment["DIES_LATER"] = "1"
    await process.start()
    with pytest.raises(StartFailed, match=r"(?s)smallest-1 has ended.*cannot go on like this"):
        await process.serving()
    assert process.starts == 3


async def test_a_child_ends_with_its_supervisor(process: Process, tmp_path: Path) -> None:
    supervisor = textwrap.dedent("""
        import asyncio, json, os, sys
        from pathlib import Path
        from waybill_cli.process import Process

        async def main(folder):
            read_end, write_end = os.pipe()
            process = Process("smallest-1", "smallest", ("127.0.0.1", 0), environment={"PYTHONPATH": folder},
                              log=Path(folder) / "log", supervisor_pipe=read_end)
            await process.start()
            print(json.dumps(process.pid), flush=True)
            await asyncio.Event().wait()

        asyncio.run(main(sys.argv[1]))
    """)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", supervisor, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = json.loads(await parent.stdout.readline())
    child_gone = asyncio.Event()
    child_handle = os.pidfd_open(child)
    asyncio.get_running_loop().add_reader(child_handle, child_gone.set)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        await child_gone.wait()
    asyncio.get_running_loop().remove_reader(child_handle)
    os.close(child_handle)
