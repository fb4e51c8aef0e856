"""A gRPC server with one method that answers what it was asked, and nothing else: half of the yardstick."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

import child


async def _echo(request: bytes, _: Any) -> bytes:
    return request


async def main(arguments: dict[str, Any]) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    echo = grpc.method_handlers_generic_handler("bench.Bare", {"Echo": grpc.unary_unary_rpc_method_handler(_echo)})
    server.add_generic_rpc_handlers([echo])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    child.say(address=f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)  # until it is dismissed
    await server.stop(0)


if __name__ == "__main__":
    child.run(main)
