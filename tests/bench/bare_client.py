"""A gRPC client that makes many calls at once, and nothing else: half of the yardstick."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

import child

_REQUEST = bytes(100)
_SECONDS = 60.0


async def main(arguments: dict[str, Any]) -> None:
    async with grpc.aio.insecure_channel(arguments["address"]) as channel:
        echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.Bare/Echo")
        await echo(_REQUEST, timeout=_SECONDS)
        numbers = iter(range(arguments["calls"]))

        async def work() -> None:
            for _ in numbers:
                await echo(_REQUEST, timeout=_SECONDS)

        await child.until_go()
        await asyncio.gather(*(work() for _ in range(arguments["in_flight"])))
    child.say(done=True)


if __name__ == "__main__":
    child.run(main)
