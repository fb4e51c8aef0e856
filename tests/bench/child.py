"""A program of this folder in a process of its own, so that its CPU is its own. Both sides talk in lines of JSON.

The bench hears `ready`, says `go` or gives an order, and hears what came of it. Times that they compare are
`time.monotonic`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LONGEST_LINE = 64 << 20
_STOP_SECONDS = 5.0


class ChildFailed(Exception):  # noqa: N818 - reads as what happened
    """A child ended, or fell silent, before it had said what it was asked for."""


class Child:
    """The bench's side. Entered, it runs; left, it is gone. Until then its CPU can be read, also when it is done."""

    def __init__(self, program: str, arguments: dict[str, Any], *, pipes: Sequence[int] = ()) -> None:
        self._program = program
        self._arguments = json.dumps(arguments)
        self._pipes = tuple(pipes)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name(f"{self._program}.py")), self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._pipes,
            limit=_LONGEST_LINE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def go(self) -> None:
        """Lets it begin."""
        self.order()

    def order(self, **words: Any) -> None:
        """Lets it begin with something; it may be given several orders, one after the other."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def hear(self, within: float) -> dict[str, Any]:
        """Its next words; ChildFailed if there are none in so many seconds."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), within)
        except TimeoutError:
            raise ChildFailed(f"the {self._program} has said nothing for {within:.0f} s") from None
        if not line:
            raise ChildFailed(f"the {self._program} has ended with {await self._process.wait()}")
        words: dict[str, Any] = json.loads(line)
        return words


# --- the child's side ------------------------------------------------------------------------------------------------


def say(**words: Any) -> None:
    """Says something to the bench."""
    print(json.dumps(words), flush=True)


async def until_go() -> None:
    """Says that all is prepared, and waits for the word."""
    await anext(orders())


async def orders() -> AsyncIterator[dict[str, Any]]:
    """Says that all is prepared; yields what it is told to do, until it is dismissed."""
    say(ready=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)


def run(main: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]) -> None:
    """Runs a child's program with the arguments it was given, on the loop that a busy client would use.

    Stays until it is dismissed: the CPU of a process that has ended is nobody's.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main(json.loads(sys.argv[1])))
    sys.stdin.read()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
