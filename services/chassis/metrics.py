"""Metrics: what a process says of itself to Prometheus, over HTTP.

    the work ──writes──▶ tallies ◀──reads── GET /metrics, in the same loop: text, or OpenMetrics with exemplars

The endpoint is served by the loop that does the work. So figures are read without a lock and belong together; and when
the loop is stuck the scrape fails, which is the first thing that should be seen of it.

Where no address is set there is no endpoint, no observer of calls, and nobody feels for the loop's lag; what is counted
in the midst of the work is counted all the same, for that is cheaper than to ask whether it should be.

No global registry: a process (and a test) has its own, with what was added to it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from importlib.metadata import version
from typing import Final

from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chassis import logs
from chassis.clock import Clock
from chassis.interceptor import Call, Ended, Observer
from chassis.server import CannotListen
from chassis.tallies import SHORT_SECONDS, Counter, Distribution, Gauges, Histogram, Labels, Tallies
from chassis.tracing import end_of, parent_of_work

REQUEST_SECONDS: Final = 5.0
"""How long a scrape may take, from its connection to its last byte."""
LAG_SECONDS: Final = 0.5
"""How often the loop is felt for its lag."""
UNKNOWN_METHOD: Final = "unknown"

_LONGEST_REQUEST: Final = 16 << 10
_PLAIN: Final = "text/plain; charset=utf-8"

log = logs.get_logger(__name__)


class Metrics:
    """The figures of a process."""

    def __init__(self, registry: CollectorRegistry | None, clock: Clock) -> None:
        """Without a registry nobody will ask."""
        self.registry = registry
        self.address = ""
        """Where they are served, with the port that was taken for port 0; empty: they are not."""
        calls = CallTallies(clock)
        self.observers: Sequence[Observer] = () if registry is None else (calls.observe,)
        """For `serve`: count the calls and take their time."""
        self.add(calls)

    @property
    def enabled(self) -> bool:
        """Tells whether anybody can ask."""
        return self.registry is not None

    def add(self, *collectors: Collector) -> None:
        """Exports these, too."""
        if self.registry is not None:
            for collector in collectors:
                self.registry.register(collector)


@asynccontextmanager
async def open_metrics(listen: str, clock: Clock) -> AsyncIterator[Metrics]:
    """Yields a process's metrics and serves them for as long.

    `listen`: `host:port`, of which port 0 is a free one, which is logged, and no host this machine alone; empty: they
    are not served. Raises CannotListen.
    """
    if not listen:
        yield Metrics(None, clock)
        return
    registry = CollectorRegistry()
    metrics = Metrics(registry, clock)
    process = ProcessTallies()
    metrics.add(process)
    for standard in (ProcessCollector, PlatformCollector, GCCollector):
        standard(registry=registry)
    async with _Endpoint(listen, registry) as metrics.address:
        lag = asyncio.create_task(_feel_lag(clock, process.lag.of()), name="loop lag")
        try:
            yield metrics
        finally:
            lag.cancel()
            await asyncio.wait((lag,))


# --- every process ---------------------------------------------------------------------------------------------------


class ProcessTallies(Tallies):
    """What is to be known of any process, besides what prometheus_client knows of it."""

    def __init__(self) -> None:
        released: dict[Labels, float] = {(version("waybill"),): 1.0}
        self.release = Gauges("waybill_build_info", "The release.", "version", read=lambda: released)
        self.lag = Histogram(
            "waybill_loop_lag_seconds", "How late the event loop is for what was due.", buckets=SHORT_SECONDS
        )


async def _feel_lag(clock: Clock, lag: Distribution) -> None:
    while True:
        due = clock.monotonic() + LAG_SECONDS
        await clock.sleep(LAG_SECONDS)
        lag.observe(max(0.0, clock.monotonic() - due))


class _Method:
    """A method that was called."""

    __slots__ = ("name", "open", "seconds")

    def __init__(self, name: str, seconds: Distribution | None) -> None:
        self.name = name
        self.open = 0
        self.seconds = seconds
        """None: a stream, which lasts for as long as its reader likes."""


class CallTallies(Tallies):
    """The calls that a process answers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._methods: dict[str, _Method] = {}
        self._unknown = _Method(UNKNOWN_METHOD, None)
        self.calls = Counter("waybill_rpc_calls", "Calls that are over.", "method", "code")
        self.seconds = Histogram(
            "waybill_rpc_duration_seconds", "How long unary calls took.", "method", buckets=SHORT_SECONDS
        )
        self.open = Gauges("waybill_rpc_open_calls", "Calls and streams under way.", "method", read=self._open)

    def observe(self, call: Call) -> Ended:
        """Counts a call; an `Observer`."""
        method = self._methods.get(call.method) or self._meet(call.method)
        method.open += 1
        began = self._clock.monotonic()

        def ended(error: BaseException | None) -> None:
            method.open -= 1
            self.calls.add(method.name, "OK" if error is None else end_of(error, call.rpc)[0].name)
            if method.seconds is not None:
                method.seconds.observe(self._clock.monotonic() - began, _trace_id())

        return ended

    def _meet(self, path: str) -> _Method:
        """Names a method that is called for the first time. Anybody can make up names: those share one."""
        name = path.removeprefix("/")
        try:
            found = descriptor_pool.Default().FindMethodByName(name.replace("/", "."))
        except (KeyError, TypeError):
            return self._unknown
        streams = found.client_streaming or found.server_streaming
        method = self._methods[path] = _Method(name, None if streams else self.seconds.of(name))
        return method

    def _open(self) -> dict[Labels, float]:
        return {(method.name,): method.open for method in self._methods.values()}


def _trace_id() -> str:
    """Returns the trace of the current call, if somebody records it."""
    context = parent_of_work()
    return context.trace_id if context is not None and context.sampled else ""


# --- the endpoint ----------------------------------------------------------------------------------------------------


class _Endpoint:
    """Answers GET /metrics: `async with _Endpoint("127.0.0.1:9464", registry)`."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        self._listen = listen
        self._registry = registry
        self._answering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        host, port = _address(self._listen)
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=_LONGEST_REQUEST)
        except OSError:
            raise CannotListen(
                f"cannot serve metrics on {self._listen}: in use by another process, or not of this machine"
            ) from None
        _, port, *_ = self._server.sockets[0].getsockname()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        log.info("metrics are served", url=f"http://{address}/metrics")
        return address

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request and hangs up. Whoever dawdles, breaks off or speaks no HTTP is not worth a line."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(self._answer_to(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer_to(self, request: bytes) -> bytes:
        try:
            return self._response(request)
        except Exception:  # whose figure it was, the log knows
            log.exception("metrics cannot be collected")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"the log has the cause\n")

    def _response(self, request: bytes) -> bytes:
        line, _, rest = request.partition(b"\r\n")
        method, _, target = line.decode("latin-1").partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            return _response(HTTPStatus.NOT_FOUND, _PLAIN, b"there is /metrics\n")
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN, b"GET it\n")
        try:
            accept = parse_headers(io.BytesIO(rest)).get_all("Accept", [])
        except HTTPException:
            return _response(HTTPStatus.BAD_REQUEST, _PLAIN, b"these are no headers\n")
        encode, content_type = choose_encoder(",".join(accept))
        return _response(HTTPStatus.OK, content_type, encode(self._registry), with_body=method == "GET")


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal():
        raise CannotListen(f"cannot serve metrics on {listen}: not host:port")
    return host.strip("[]") if host not in ("", "localhost") else "127.0.0.1", int(port)


def _response(status: HTTPStatus, content_type: str, body: bytes, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
