"""grpc.health.v1, with watches that end when the server does.

The stock servicer keeps every `Watch` open for ever, which holds a stopping server for its whole grace, and our own
channels watch the health of every server they use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Answers for every service of a process alike: they have the same dependencies, and share their fate."""

    def __init__(self, services: Iterable[str]) -> None:
        self._known = frozenset(services) | {""}
        self._serving = False
        self._closing = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Tells everybody, watchers too. After `close` it is NOT_SERVING for good."""
        self._serving = serving and not self._closing
        self._ring()

    def close(self) -> None:
        """Says NOT_SERVING, and ends the watches with that."""
        self._closing = True
        self.set_serving(False)

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._known:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.SERVING if self._serving else _Status.NOT_SERVING)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._known:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("no such service")
        return self._response(request.service)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response.status != told:
                told = response.status
                yield response
            if self._closing:
                return
            if changed is self._changed:
                await changed.wait()
