"""The line to one host: where it is, and who answers there.

Every reply is signed with a host id and an incarnation. An answer that bears another host's id is no answer (an address
that was given to somebody else), and before anything is asked of a host at a new address it is made to introduce
itself, so that no work lands on a stranger. The incarnation is passed on whenever it is another one than before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import grpc

from chassis import logs
from chassis.background import Background
from chassis.channels import open_channel
from chassis.clock import Clock
from chassis.interceptor import CORRELATION_KEY
from coordinator.hosts.taskbook import TaskReport
from coordinator.retries import verdict
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc

log = logs.get_logger(__name__)

ASK_SECONDS: Final = 10.0
"""How long an answer is waited for before it counts as unknown."""
UNKNOWN_HOST_SECONDS: Final = 10.0
"""How long a host that the store does not name is waited for."""
_NOBODYS_TASK: Final = "00000000-0000-0000-0000-000000000000"
"""Asking how it is is the cheapest question that every agent signs its answer to."""


class HostAway(Exception):  # noqa: N818
    """Nobody answered, or not the host that is meant. What was sent may have been done or not: send it again."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What everything that works on a host is given."""

    clock: Clock
    rng: random.Random
    background: Background
    report: Callable[[TaskReport], None]
    cleared: Callable[[Iterable[str]], None]
    coordinator_id: str
    poll_seconds: float
    stalled: Callable[[str, float], None]
    outlived: Callable[[str, str, str], None]
    stall_seconds: float


class Signed(Protocol):
    """A reply of an agent."""

    @property
    def agent(self) -> hostagent_pb2.AgentIdentity:
        """Who answered."""
        ...


Q = TypeVar("Q")
A = TypeVar("A", bound=Signed)


class HostLink:
    """A channel to a host, and the check that it is this host."""

    def __init__(self, host_id: str, clock: Clock, met: Callable[[str], None]) -> None:
        """`met` is called with the incarnation at the first answer and whenever it is another one."""
        self.host_id = host_id
        self.address = ""
        """Empty: the store does not name the host (any more)."""
        self._clock = clock
        self._met = met
        self._unknown_since = clock.monotonic()  # counts while there is no address
        self._incarnation = ""
        self._channel: grpc.aio.Channel | None = None  # None: no address was ever known
        self._stub: hostagent_pb2_grpc.HostAgentStub | None = None
        self._introduced = False  # the host has answered from where it is now
        self._introducing = asyncio.Lock()
        self._away = False
        self.streams = 0
        """How many streams are open on which the host has spoken."""

    @property
    def state(self) -> str:
        """`up`, `away`, or `unknown` while it has not answered since it was last looked for anew."""
        return "away" if self._away else "up" if self._introduced else "unknown"

    def move(self, address: str) -> grpc.aio.Channel | None:
        """The host is at another address from now on. Returns the former channel, to be closed. Raises ValueError."""
        channel = open_channel(address)
        former, self._channel, self.address = self._channel, channel, address
        self._stub = hostagent_pb2_grpc.HostAgentStub(self._channel)
        self._introduced = False
        return former

    def lose_address(self) -> None:
        """The store does not name the host any more; it is still reached where it was last."""
        self.address = ""
        self._unknown_since = self._clock.monotonic()

    def is_unknown(self) -> bool:
        """Tells whether the store has not named the host for so long that it is not just late."""
        return not self.address and self._clock.monotonic() - self._unknown_since >= UNKNOWN_HOST_SECONDS

    async def close(self) -> None:
        """Ends what is under way and hangs up."""
        if self._channel is not None:
            await self._channel.close()

    @property
    def stub(self) -> hostagent_pb2_grpc.HostAgentStub:
        """The host's calls. Raises HostAway while no address is known."""
        if self._stub is None:
            raise HostAway(f"no address is known of host {self.host_id}")
        return self._stub

    async def ask(self, rpc: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q, *, correlation_id: str = "") -> A:
        """Returns the host's answer. Raises HostAway, and WaybillError if the host decided not to."""
        if not self._introduced:
            await self._introduce()
        return await self._ask(rpc, request, correlation_id)

    async def listen(self, rpc: grpc.aio.UnaryStreamMultiCallable[Q, A], request: Q) -> AsyncGenerator[A, None]:
        """Yields what the host streams; ends with HostAway, never by itself."""
        call, speaks = rpc(request), 0
        try:
            async for message in call:
                if not speaks:
                    speaks = 1
                    self.streams += speaks
                if message.agent.host_id:
                    self.meet(message.agent)
                yield message
            raise self._away_because("the host ended the stream")
        except grpc.aio.AioRpcError as error:
            raise self._away_because(f"{error.code().name} {error.details()}") from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise HostAway(f"host {self.host_id} has moved") from None
        finally:
            self.streams -= speaks
            call.cancel()

    def meet(self, agent: hostagent_pb2.AgentIdentity) -> None:
        """Somebody signed an answer. Raises HostAway if it is not this host."""
        if agent.host_id != self.host_id:
            self._introduced = False
            raise self._away_because(f"host {agent.host_id!r} answers at {self.address}")
        self._introduced = True
        if self._away:
            self._away = False
            log.info("host is back", host_id=self.host_id, address=self.address)
        if agent.incarnation != self._incarnation:
            self._incarnation = agent.incarnation
            self._met(agent.incarnation)

    async def _introduce(self) -> None:
        async with self._introducing:
            if not self._introduced:
                request = hostagent_pb2.GetAllTasksStatusesRequest(task_ids=[_NOBODYS_TASK])
                await self._ask(self.stub.GetAllTasksStatuses, request, "")

    async def _check_who_refused(self) -> None:
        """A refusal is not signed: what a stranger refuses says nothing of this host."""
        if self._introduced:
            self._introduced = False
            await self._introduce()

    async def _ask(self, rpc: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q, correlation_id: str) -> A:
        metadata = ((CORRELATION_KEY, correlation_id),) if correlation_id else ()
        try:
            answer = await rpc(request, timeout=ASK_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if refusal := verdict(error):
                await self._check_who_refused()
                raise refusal from error
            raise self._away_because(f"{error.code().name} {error.details()}") from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise HostAway(f"host {self.host_id} has moved") from None
        self.meet(answer.agent)
        return answer

    def _away_because(self, why: str) -> HostAway:
        if not self._away:
            self._away = True
            log.warning("host is away", host_id=self.host_id, address=self.address, why=why)
        return HostAway(why)


def _is_cancelled() -> bool:
    """Tells our own cancellation from that of a call whose channel was closed under it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
