"""A gRPC process from its start to its end.

    bind ─▶ "listening …" on stdout ─▶ NOT_SERVING until ready() ─▶ SERVING ─▶ asked to end
                                                                                    │
    exit ◀─ calls end, at most `grace` seconds ◀─ before_stop(): watchers told ◀─ NOT_SERVING

Every server has health, reflection and channelz, and the one interceptor. A port is never shared: two servers on one
would each get half of the calls, so the second fails to start (exit code 3).
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from chassis import http2, logs
from chassis.health import SERVICE_NAME as HEALTH
from chassis.health import Health
from chassis.interceptor import Interceptor, Observer
from chassis.lifetime import Lifetime
from chassis.principal import principal_on

FAILED: Final = 1
"""The exit code of a process that ended because it could not go on."""
CANNOT_LISTEN: Final = 3
"""The exit code of a process whose address was taken or not its own."""

CHANNELZ: Final = "grpc.channelz.v1.Channelz"
REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
MIB: Final = 1 << 20

_lifetime: ContextVar[Lifetime] = ContextVar("waybill_lifetime")

log = logs.get_logger(__name__)


@dataclass(frozen=True)
class Mount:
    """A service and how it is added to a server."""

    name: str
    """`waybill.v1.JobStore`"""
    servicer: object
    add: Callable[[Any, grpc.aio.Server], None]
    """The generated `add_…Servicer_to_server`."""
    max_message_mib: int = 4
    """The largest request; larger ones are RESOURCE_EXHAUSTED."""


class CannotListen(Exception):  # noqa: N818
    """The address is taken, not of this machine, or malformed."""


class Server:
    """A running gRPC server: `async with Server("127.0.0.1:0", mounts) as server`. NOT_SERVING until told otherwise."""

    def __init__(
        self,
        listen: str,
        mounts: Sequence[Mount],
        *,
        observers: Sequence[Observer] = (),
        options: Sequence[tuple[str, Any]] = (),
        grace: float = 5.0,
    ) -> None:
        self._listen = listen
        self._mounts = tuple(mounts)
        self._observers = tuple(observers)
        self._options = tuple(options)
        self._grace = grace
        self.address = ""
        """Where it listens, with the port that was taken for port 0; empty until started."""

    async def __aenter__(self) -> Self:
        self._health = Health(mount.name for mount in self._mounts)
        self._grpc = grpc.aio.server(
            interceptors=(self._interceptor(),), options=(*_options(self._mounts), *self._options)
        )
        for mount in self._mounts:
            mount.add(mount.servicer, self._grpc)
        self._add_standard_services()
        self.address = _bind(self._grpc, self._listen)
        await self._grpc.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(self._grace)

    def set_serving(self, serving: bool) -> None:
        """Sets what health says of every service."""
        self._health.set_serving(serving)

    async def died(self) -> BaseException | None:
        """Waits until it has stopped; returns why, if it did by itself.

        As gRPC's does from 1.84 on at a request whose path is not UTF-8, which any peer can send: it raises where
        nobody can catch it, and takes no more calls. (One reason why pyproject.toml holds gRPC back.)
        """
        try:
            await self._grpc.wait_for_termination()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the end
            return error
        return None

    async def stop(self, grace: float) -> None:
        """Says NOT_SERVING, takes no more calls, and ends when those that run are over or the grace (seconds) is."""
        self._health.close()
        await self._grpc.stop(grace)

    def _interceptor(self) -> Interceptor:
        limits = {mount.name: mount.max_message_mib * MIB for mount in self._mounts}
        return Interceptor(observers=self._observers, limits=limits, principal_of=principal_on(self._listen))

    def _add_standard_services(self) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        channelz.add_channelz_servicer(self._grpc)
        names = [mount.name for mount in self._mounts]
        _add_reflection(self._grpc, [*names, HEALTH, CHANNELZ, reflection.SERVICE_NAME])


def _options(mounts: Sequence[Mount]) -> list[tuple[str, Any]]:
    largest = max((mount.max_message_mib for mount in mounts), default=4) * MIB
    return [
        ("grpc.so_reuseport", 0),
        *http2.SERVER_KEEPALIVE,
        # Room above our own limit, whose refusal has a reason; the transport's has none.
        ("grpc.max_receive_message_length", 2 * largest),
        ("grpc.max_send_message_length", max(largest, 64 * MIB)),
    ]


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Adds reflection as v1alpha, which grpcio knows, and as v1, which newer clients ask first: the same messages."""
    info = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(version, {"ServerReflectionInfo": info})
            for version in (reflection.SERVICE_NAME, REFLECTION_V1)
        ]
    )


def _bind(server: grpc.aio.Server, listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise CannotListen(f"cannot listen on {listen}: not host:port")
    if host == "localhost":  # a name for two addresses, and gRPC is content when one of them is free
        host = "127.0.0.1"
    try:
        return f"{host}:{server.add_insecure_port(f'{host}:{port}')}"
    except RuntimeError:
        raise CannotListen(f"cannot listen on {listen}: in use by another process, or not of this machine") from None


async def serve(
    listen: str,
    mounts: Sequence[Mount],
    *,
    ready: Callable[[], Awaitable[None]] | None = None,
    before_stop: Callable[[], Awaitable[None]] | None = None,
    grace: float = 5.0,
    observers: Sequence[Observer] = (),
) -> None:
    """Serves until the process is asked to end, then drains.

    `ready` returns when the dependencies are up; health is NOT_SERVING until then. `before_stop` tells open streams to
    end, so that they do not hold the server for its whole grace. Raises CannotListen.
    """
    lifetime = _lifetime_of_process()
    lifetime.when_over(None)  # from here on the end is ours to bring about
    async with Server(listen, mounts, observers=observers, grace=grace) as server:
        print(f"listening {server.address}", flush=True)
        death = asyncio.create_task(_end_with(server, lifetime), name="death of the server")
        if await _until_ready(ready, lifetime):
            server.set_serving(True)
            log.info("serving", address=server.address)
            await lifetime.over.wait()
        log.info("stopping", reason=lifetime.reason)
        server.set_serving(False)
        if before_stop is not None:
            await _within(grace, before_stop())
    await death  # it ends with the server; to cancel it would cancel gRPC's own way down


async def _end_with(server: Server, lifetime: Lifetime) -> None:
    """Ends the process if its server dies: without one it would live on, and nobody would know why it is deaf."""
    if error := await server.died():
        log.critical("the server died", error=repr(error))
        lifetime.fail("the server died")


async def _within(seconds: float, telling: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(telling, seconds)
    except TimeoutError:
        log.warning("open streams could not be told of the end in time", seconds=seconds)


async def _until_ready(ready: Callable[[], Awaitable[None]] | None, lifetime: Lifetime) -> bool:
    """Waits for the dependencies; returns False if the end was asked for before they were up."""
    if ready is not None and not lifetime.over.is_set():
        await _unless_over(lifetime, asyncio.ensure_future(ready()))
    return not lifetime.over.is_set()


async def _unless_over(lifetime: Lifetime, task: asyncio.Future[None]) -> None:
    """Waits for a task, which is cancelled when the process is asked to end, and that is no error then."""
    lifetime.when_over(task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not lifetime.over.is_set():
            raise
    finally:
        lifetime.when_over(None)


def _lifetime_of_process() -> Lifetime:
    """The one that `run` made; a caller without `run` (a test, a notebook) gets one of its own."""
    lifetime = _lifetime.get(None)
    if lifetime is None:
        lifetime = Lifetime()
        lifetime.heed_signals()
        lifetime.heed_supervisor()
    return lifetime


def end_process(reason: str) -> None:
    """Ends this process as a signal would, with exit code 1: what it stands on is gone. A supervisor starts it anew."""
    _lifetime_of_process().fail(reason)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a process's main coroutine on uvloop, where there is one.

    Exits with 0 after an end that was asked for, 1 after `end_process`, 3 if the address is taken.

    Asked to end before `serve` runs, it cancels `main`, whose `async with` then closes what is open.
    """
    _search_garbage_seldom()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            if not runner.run(_ends_well(main)):
                raise SystemExit(FAILED)
    except CannotListen as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(CANNOT_LISTEN) from None


async def _ends_well(main: Coroutine[Any, Any, None]) -> bool:
    lifetime = Lifetime()
    lifetime.heed_signals()
    lifetime.heed_supervisor()
    _lifetime.set(lifetime)
    await _unless_over(lifetime, asyncio.ensure_future(main))
    return not lifetime.failed


def _search_garbage_seldom() -> None:
    """Has Python search for cycles of garbage after 50,000 new objects, not 700, and never among the imported ones.

    What a service works on is hundreds of objects a request, which live for some milliseconds and are in no cycle: with
    the defaults a busy service spends a tenth of its time searching them.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
