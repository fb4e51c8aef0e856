"""Everything of Waybill on one machine: jobstores, coordinators and hosts as children of one supervisor.

    async with Stack(Path("/tmp/waybill"), hosts=2) as stack:
        async with stack.client() as client:
            ...
        await stack.kill(stack.coordinators[0])   # it comes back by itself, on the same port
        await stack.serving()

Started from the bottom up: the first jobstore (which brings the embedded Postgres), then hosts and the other jobstores
(which are given the first one's database), then coordinators. Stopped from the top down. Everything listens on loopback
only, and nothing outlives the supervisor (`process.py`). A Jaeger, where one is wanted, is there before them and after
them, so that it gets every span.

In the data folder: a folder for each jobstore and host, `logs/`, and `ports.json`, which remembers where everybody
listened: HOST entities carry the address of their agent, so an agent should be found again where it was.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from waybill.v1.jobs_pb2 import Entity, EntityType
from waybill_cli.jaegerd import BINARY, CONFIGURATION, free_port
from waybill_cli.process import LONGEST_DELAY, Process, StartFailed
from waybill_client import FailedPrecondition, NotFound, WaybillClient

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where the first coordinator, the first jobstore and the hosts (counted upwards) listen; the others anywhere.

    Of Jaeger: where people look at traces, and where services send them.
    """

    coordinator: int = 50051
    jobstore: int = 50052
    hosts: int = 50061
    jaeger: int = 16686
    traces: int = 4317


class Stack:
    """The services as children: `jobstores`, `coordinators`, `hosts`; with `jaeger`, they send their traces there.

    `ports` None means any free port, or the one of the last time. `environment` goes to every child, for settings and
    for plug-ins; a child's own may be changed before it is started again. Without `auto_restart` what ends stays down;
    with it, it comes back after a delay that doubles up to `longest_delay` (seconds).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        hosts: int = 2,
        coordinators: int = 1,
        jobstores: int = 1,
        jaeger: bool = False,
        ports: Ports | None = None,
        environment: Mapping[str, str] | None = None,
        auto_restart: bool = True,
        longest_delay: float = LONGEST_DELAY,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.data_dir = data_dir
        self.jobstores: list[Process] = []
        self.coordinators: list[Process] = []
        self.hosts: list[Process] = []
        self.jaeger: Process | None = None  # None unless it is wanted, and before the start
        self.jaeger_url = ""
        """Where people and programs look at traces; empty without Jaeger."""
        self.traces_endpoint = ""
        """Where services and clients send them, `host:port` of OTLP/gRPC; empty without Jaeger."""
        self._with_jaeger = jaeger
        self._counts = (jobstores, coordinators, hosts)
        self._ports = ports
        self._environment = dict(environment or {})
        self._auto_restart = auto_restart
        self._longest_delay = longest_delay
        self._tell = tell
        self._held = ExitStack()
        self._pipe = -1  # the read end that children inherit; -1 before the start

    @property
    def processes(self) -> list[Process]:
        """All of them, in the order in which they are started."""
        jaeger = [self.jaeger] if self.jaeger else []
        return [*jaeger, *self.jobstores, *self.hosts, *self.coordinators]

    @property
    def database_url(self) -> str:
        """Of the database that all jobstores share; empty if they were given one by their environment alone."""
        external = self._setting("JOBSTORE_DATABASE_URL")
        if external and external != "embedded":
            return external
        return (self.data_dir / "jobstore-1" / "database_url").read_text().strip()

    def client(self, **options: Any) -> WaybillClient:
        """A client of this stack, with the options of WaybillClient."""
        return WaybillClient(_addresses(self.coordinators), _addresses(self.jobstores), **options)

    async def __aenter__(self) -> Self:
        try:
            self._hold_folder()
            self._open_pipe()
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def serving(self, timeout: float = 60.0) -> None:
        """Waits until everybody is SERVING."""
        await _all(process.serving(timeout) for process in self.processes)

    async def kill(self, process: Process) -> None:
        """Ends a child as a crash would; with `auto_restart` it comes back."""
        await process.kill()

    async def stop(self) -> None:
        """Stops everybody, coordinators first, the first jobstore last, and Jaeger after that."""
        for together in (self.coordinators, self.hosts, self.jobstores[1:], self.jobstores[:1]):
            await asyncio.gather(*(process.stop() for process in together))
        if self.jaeger is not None:
            await self.jaeger.stop()
        self._held.close()

    def describe(self) -> dict[str, Any]:
        """Addresses and pids, as `waybill up --json` prints them."""
        described: dict[str, Any] = {
            "coordinators": [{"address": each.address, "pid": each.pid} for each in self.coordinators],
            "jobstores": [{"address": each.address, "pid": each.pid} for each in self.jobstores],
            "hosts": [{"host_id": each.name, "address": each.address, "pid": each.pid} for each in self.hosts],
            "database_url": self.database_url,
            "data": str(self.data_dir),
        }
        if self.jaeger is not None:
            described["jaeger"] = {
                "url": self.jaeger_url,
                "traces_endpoint": self.traces_endpoint,
                "pid": self.jaeger.pid,
            }
        return described

    async def _start(self) -> None:
        if self._with_jaeger:
            await self._start_jaeger()
        jobstores, coordinators, hosts = self._counts
        self.hosts = [self._host(number) for number in range(1, hosts + 1)]
        self.jobstores = [self._jobstore(1)]
        await _all(process.start() for process in (*self.jobstores, *self.hosts))
        if jobstores > 1:
            await self.jobstores[0].serving()
            self.jobstores += [self._jobstore(number) for number in range(2, jobstores + 1)]
            await _all(process.start() for process in self.jobstores[1:])
        self.coordinators = [self._coordinator(number) for number in range(1, coordinators + 1)]
        await _all([*(process.start() for process in self.coordinators), self._declare_hosts()])
        await self.serving()
        self._remember_ports()

    async def _start_jaeger(self) -> None:
        """Starts it and waits until it takes spans."""
        if not os.access(BINARY, os.X_OK):
            raise StartFailed(f"there is no Jaeger at {BINARY}; `make jaeger` gets one")
        query = self._port_for_good("jaeger-query", self._ports.jaeger if self._ports else None)
        traces = self._port_for_good("jaeger-traces", self._ports.traces if self._ports else None)
        self.jaeger_url = f"http://{LOOPBACK}:{query}"
        self.traces_endpoint = f"{LOOPBACK}:{traces}"
        environment = {
            "JAEGER_QUERY_PORT": str(query),
            "JAEGER_QUERY_GRPC_PORT": "0",  # any: nobody here asks by gRPC
            "JAEGER_OTLP_PORT": str(traces),
            "JAEGER_DATA_DIR": str(self.data_dir / "jaeger"),
            "JAEGER_UI_CONFIG": str(CONFIGURATION / "ui.json"),
        }
        self.jaeger = self._process("waybill_cli.jaegerd", "jaeger", None, environment)
        await self.jaeger.start()
        await self.jaeger.serving()

    def _jobstore(self, number: int) -> Process:
        environment = {"JOBSTORE_DATA_DIR": str(self.data_dir / f"jobstore-{number}")}
        if number > 1:
            environment["JOBSTORE_DATABASE_URL"] = self.database_url
        port = self._ports.jobstore if self._ports and number == 1 else None
        return self._process("jobstore", f"jobstore-{number}", port, environment)

    def _coordinator(self, number: int) -> Process:
        environment = {"COORDINATOR_JOBSTORE": _addresses(self.jobstores)}
        port = self._ports.coordinator if self._ports and number == 1 else None
        return self._process("coordinator", f"coordinator-{number}", port, environment)

    def _host(self, number: int) -> Process:
        name = f"host-{number}"
        environment = {"HOSTAGENT_HOST_ID": name, "HOSTAGENT_DATA_DIR": str(self.data_dir / name)}
        port = self._ports.hosts + number - 1 if self._ports else None
        return self._process("hostagent", name, port, environment)

    def _process(self, module: str, name: str, port: int | None, environment: dict[str, str]) -> Process:
        return Process(
            name,
            module,
            (LOOPBACK, self._port(name, port)),
            environment={**self._environment, **self._tracing(module), **environment},
            log=self.data_dir / "logs" / f"{name}.log",
            supervisor_pipe=self._pipe,
            auto_restart=self._auto_restart,
            longest_delay=self._longest_delay,
            tell=self._tell,
        )

    def _tracing(self, module: str) -> dict[str, str]:
        return {f"{module.upper()}_TRACES_ENDPOINT": self.traces_endpoint} if self.jaeger else {}

    async def _declare_hosts(self) -> None:
        """Makes the hosts known under their addresses; what else is declared of a known one stays as it is."""
        await self.jobstores[0].serving()
        async with self.client(wait_for_ready=True) as client:
            declared = [await self._declaration(client, host) for host in self.hosts]
            changed = [entity for entity in declared if entity is not None]
            try:
                if changed:
                    await client.put_entities(changed)
            except FailedPrecondition as refused:
                self._tell(f"hosts keep the addresses that they had: {refused.message}")

    async def _declaration(self, client: WaybillClient, host: Process) -> Entity | None:
        try:
            entity = await client.get_entity(EntityType.ENTITY_TYPE_HOST, host.name)
        except NotFound:
            entity = Entity(entity_type=EntityType.ENTITY_TYPE_HOST, entity_id=host.name, name=host.name)
        if "address" in entity.declared and entity.declared["address"] == host.address:
            return None
        entity.declared["address"] = host.address
        return entity

    def _hold_folder(self) -> None:
        """Keeps a second supervisor off the data folder, until this one stops or dies."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = self._held.enter_context((self.data_dir / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartFailed(f"another supervisor uses {self.data_dir}") from None
        except OSError as error:
            raise StartFailed(f"cannot keep data in {self.data_dir}: {error.strerror}") from None

    def _open_pipe(self) -> None:
        self._pipe, write_end = os.pipe()
        self._held.callback(os.close, self._pipe)
        self._held.callback(os.close, write_end)

    def _setting(self, name: str) -> str:
        return self._environment.get(name, os.environ.get(name, ""))

    def _port(self, name: str, fixed: int | None) -> int:
        if fixed is not None:
            if not _is_free(fixed):
                raise StartFailed(f"port {fixed} for {name} is taken; `--ports auto` takes free ones")
            return fixed
        remembered = self._remembered_ports().get(name, 0)
        return remembered if _is_free(remembered) else 0

    def _port_for_good(self, name: str, fixed: int | None) -> int:
        """For one who is told a port by others' settings, and so cannot take any when it starts."""
        return self._port(name, fixed) or free_port(LOOPBACK)

    def _remembered_ports(self) -> dict[str, int]:
        try:
            ports: dict[str, int] = json.loads((self.data_dir / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return ports

    def _remember_ports(self) -> None:
        ports = {process.name: _port_of(process.address) for process in self.processes}
        if self.jaeger is not None:
            ports |= {"jaeger-query": _port_of(self.jaeger_url), "jaeger-traces": _port_of(self.traces_endpoint)}
        (self.data_dir / "ports.json").write_text(json.dumps({**self._remembered_ports(), **ports}, indent=2))


def _addresses(processes: Iterable[Process]) -> str:
    return ",".join(process.address for process in processes)


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Does everything at once; the first failure cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
