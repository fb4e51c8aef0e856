"""One service as a child process, kept alive.

    start ──▶ STARTING ──`listening ADDR`──▶ RUNNING ──ends by itself──▶ AWAY
                 ▲                              │                         │
                 └────────── after a delay, on the same port ◀────────────┘
                                                │ stop: SIGTERM, then SIGKILL
                                                ▼
                                             STOPPED

Why a child cannot outlive its supervisor: it inherits the read end of a pipe whose only write end the supervisor holds,
and stops when that pipe closes, however the supervisor ended. Why it does not see Ctrl-C: it has a session of its own,
so that the supervisor decides the order in which things stop.

What a child logs goes straight into its file, past the supervisor, so that logging never waits for anybody. Only
stdout, where the one `listening` line comes, is a pipe, read to its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

_FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
"""Seconds between the end of a child that keeps ending and its next start."""
_STEADY_SECONDS = 10.0  # a child that lived this long is started again at once when it ends
_START_SECONDS = 60.0
_FIRST_TRIES = 3  # a child that never served is given up after so many starts: its settings or data are no good
_LOG_LIMIT = 10 * 1024 * 1024


class StartFailed(Exception):  # noqa: N818 - reads as what happened
    """A child ended, or said nothing, before it listened; the message ends with the last of its log."""


class Process:
    """A service that listens on `address` under `pid`, and is started again when it ends.

    `environment` is read at each start. `auto_restart` may be switched off to keep a killed one down until `start`;
    the delay before it is started again doubles up to `longest_delay` (seconds), until it has lived for ten seconds.
    """

    def __init__(
        self,
        name: str,
        module: str,
        listen: tuple[str, int],
        *,
        environment: Mapping[str, str],
        log: Path,
        supervisor_pipe: int,
        auto_restart: bool = True,
        longest_delay: float = LONGEST_DELAY,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = name
        self.module = module
        self.environment = dict(environment)
        self.auto_restart = auto_restart
        self._longest_delay = longest_delay
        self.starts = 0
        self.log = log
        self._listen = listen
        self._pipe = supervisor_pipe
        self._tell = tell
        self._has_served = False
        self._log_began = 0  # where in the log its last start is
        self._child: asyncio.subprocess.Process | None = None  # None before the first start
        self._keeper: asyncio.Task[None] | None = None  # None unless started and not stopped
        self._reader: asyncio.Task[None] | None = None  # reads what the child prints after its first line

    @property
    def address(self) -> str:
        """Where it listens; port 0 before its first start."""
        host, port = self._listen
        return f"{host}:{port}"

    @property
    def pid(self) -> int:
        """Its process id, which is another one after each start."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    @property
    def alive(self) -> bool:
        """False once the process has ended, until it is started again."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Starts it and returns when it listens; StartFailed if it does not come so far."""
        await self._let_go()
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def serving(self, timeout: float = _START_SECONDS) -> None:
        """Waits until its health says SERVING; TimeoutError if it never does, StartFailed if it stays down."""
        async with asyncio.timeout(timeout):
            while not await self._says_serving():
                if not self.alive and (self._keeper is None or self._keeper.done()):
                    raise StartFailed(f"{self.name} has ended\n{self.last_of_log()}")
                await asyncio.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens if it has ended."""
        with suppress(ProcessLookupError):  # it ended a moment ago, and the loop was not told yet
            if self.alive:
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """Ends it as a crash would, and returns when it is gone (the keeper then starts it again)."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Waits for its end; its exit code, negative for a signal."""
        assert self._child is not None, f"{self.name} was never started"
        return await self._child.wait()

    async def stop(self, grace: float = 10.0) -> None:
        """Asks it to end, and makes it end when the grace is over."""
        await self._let_go()
        if self._child is None:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.ended()
        except TimeoutError:
            await self.kill()
        await self._stop_reading()

    def last_of_log(self, lines: int = 15) -> str:
        """The last lines that it logged since its last start."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(max(self._log_began, self.log.stat().st_size - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    async def _keep(self) -> None:
        delay = _FIRST_DELAY
        while True:
            began = asyncio.get_running_loop().time()
            code = await self.ended()
            hopeful = self._has_served or self.starts < _FIRST_TRIES
            again = self.auto_restart and hopeful
            self._tell(f"{self.name} ended with {code}" + (", starting it again" if again else ""))
            if not again:
                return
            lived = asyncio.get_running_loop().time() - began
            delay = _FIRST_DELAY if lived > _STEADY_SECONDS else min(delay * 2, self._longest_delay)
            await asyncio.sleep(delay)
            with suppress(StartFailed):  # its log says why; the next try comes after a longer delay
                await self._spawn()

    async def _spawn(self) -> None:
        await self._stop_reading()
        out, into = os.pipe()
        try:
            with self._open_log() as log:
                self._log_began = log.tell()
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", self.module),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=into,
                    stderr=log,
                    env=self._whole_environment(),
                    pass_fds=(self._pipe,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(out)
            raise
        finally:
            os.close(into)
        self._child = child
        self.starts += 1
        printed = await _Printed.on(out)
        try:
            self._listen = _parse_address(await self._first_line(printed))
        except BaseException:
            await self.kill()
            printed.close()
            raise
        self._reader = asyncio.create_task(printed.to_the_end(self.log), name=f"stdout of {self.name}")

    async def _first_line(self, printed: _Printed) -> str:
        assert self._child is not None
        line = asyncio.ensure_future(printed.line())
        end = asyncio.ensure_future(self._child.wait())
        try:
            await asyncio.wait({line, end}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if line.done() and line.result().startswith("listening "):
                return line.result()
            await asyncio.wait({end}, timeout=1.0)  # stdout may close a moment before the process is gone
            became = f"ended with {end.result()}" if end.done() else "said nothing"
            raise StartFailed(f"{self.name} {became} before it listened\n{self.last_of_log()}".rstrip())
        finally:
            for waiting in (line, end):
                waiting.cancel()
            await asyncio.gather(line, end, return_exceptions=True)

    def _whole_environment(self) -> dict[str, str]:
        prefix = self.module.rpartition(".")[2].upper()
        listen = {f"{prefix}_LISTEN": self.address, "WAYBILL_SUPERVISOR_FD": str(self._pipe)}
        return {**os.environ, **self.environment, **listen}

    def _open_log(self) -> BinaryIO:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    async def _says_serving(self) -> bool:
        channel = grpc.aio.insecure_channel(self.address)
        try:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            answer = await check(HealthCheckRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        finally:
            await channel.close()
        serving = bool(answer.status == HealthCheckResponse.SERVING)
        self._has_served = self._has_served or serving
        return serving

    async def _let_go(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None


class _Printed:
    """What a child prints on stdout: one line that matters, and whatever may follow."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self._reader = reader
        self._transport = transport

    @classmethod
    async def on(cls, descriptor: int) -> Self:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        return cls(reader, transport)

    async def line(self) -> str:
        """The next line, empty at the end."""
        return (await self._reader.readline()).decode(errors="replace").rstrip("\n")

    async def to_the_end(self, log: Path) -> None:
        """Moves the rest into the log, so that the child never waits for a reader."""
        try:
            while line := await self._reader.readline():
                with log.open("ab") as file:
                    file.write(line)
        finally:
            self.close()

    def close(self) -> None:
        self._transport.close()


def _parse_address(line: str) -> tuple[str, int]:
    host, _, port = line.removeprefix("listening ").rpartition(":")
    return host, int(port)
