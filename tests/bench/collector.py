"""A collector that takes spans and throws them away."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

import child

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


async def _discard(_request: bytes, _: Any) -> bytes:
    return b""  # an empty ExportTraceServiceResponse


async def main(arguments: dict[str, Any]) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    export = grpc.method_handlers_generic_handler(_SERVICE, {"Export": grpc.unary_unary_rpc_method_handler(_discard)})
    server.add_generic_rpc_handlers([export])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    child.say(address=f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)  # until it is dismissed
    await server.stop(0)


if __name__ == "__main__":
    child.run(main)
