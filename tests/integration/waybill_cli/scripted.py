"""Scripted services for the program: it brings its own loop, so they have a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import grpc
from tests.integration.waybill_client.far_end import ScriptedCoordinator, ScriptedJobStore
from typer.testing import CliRunner, Result

from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc
from waybill_cli.__main__ import app


class FarEnd:
    """A coordinator and a jobstore at one address."""

    def __init__(self) -> None:
        self.coordinator = ScriptedCoordinator()
        self.jobstore = ScriptedJobStore()
        self.address = ""
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        server = grpc.aio.server()
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self.coordinator, server)
        jobstore_pb2_grpc.add_JobStoreServicer_to_server(self.jobstore, server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._listening.set()
        await self._ending.wait()
        await server.stop(0)


class ScriptedJaeger:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[str], tuple[int, bytes]] = lambda path: (404, b'{"data":null}')
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def waybill(*words: str) -> Result:
    """Runs the program."""
    return CliRunner().invoke(app, list(words))


def _handler(jaeger: ScriptedJaeger) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            jaeger.asked.append(self.path)
            code, body = jaeger.answer(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Not to the tests' output."""

    return Handler
