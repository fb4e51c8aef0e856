"""How a simulated host gives a VM away: it asks the destination's agent to take it, until that has decided.

The call has an id that follows from the migration's, so a host that dies in the middle asks for the same once more, and
the VM is never taken twice. Whoever is not reached has not decided: the VM stays MIGRATING.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import NAMESPACE_OID, uuid5

import grpc

from chassis import logs
from chassis.channels import open_channel, target_of
from chassis.clock import Clock
from chassis.errors import WaybillError, invalid_argument
from chassis.interceptor import CORRELATION_KEY
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc

ASK_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.2
_NOBODY_DECIDED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

log = logs.get_logger(__name__)


def check_address(address: str) -> None:
    """Raises ARGUMENTS_INVALID if there can be no agent at an address; an empty one is none."""
    try:
        target_of(address or "localhost:1")
    except ValueError as error:
        raise invalid_argument(
            "ARGUMENTS_INVALID", f"destination_address: {error}", ("arguments.destination_address", str(error))
        ) from error


class Handover:
    """One VM on its way to another host."""

    def __init__(self, clock: Clock, migration_id: str, names: Mapping[str, str]) -> None:
        """`migration_id`: the call that began it; `names`: of what it is part of (correlation id, job, command)."""
        self._clock = clock
        self._task_id = str(uuid5(NAMESPACE_OID, f"receiveVm {migration_id}"))
        self._names = names

    async def ask(self, address: str, vm_id: str, memory_mb: int) -> str:
        """Returns "" once the destination has the VM, or why it does not take it."""
        spec = hostagent_pb2.TaskSpec(
            task_id=self._task_id,
            verb="receiveVm",
            correlation_id=self._names.get("correlation_id", ""),
            job_id=self._names.get("job_id", ""),
            command_id=self._names.get("command_id", ""),
        )
        spec.arguments.update({"vm_id": vm_id, "memory_mb": memory_mb})
        async with open_channel(address) as channel:
            stub = hostagent_pb2_grpc.HostAgentStub(channel)
            while True:
                try:
                    answer = await stub.Call(
                        hostagent_pb2.CallRequest(call=spec), timeout=ASK_SECONDS, metadata=self._metadata()
                    )
                except grpc.aio.AioRpcError as error:
                    refusal = WaybillError.from_rpc_error(error)
                    if refusal.reason == "ALREADY_CLEARED":
                        return ""  # it took the VM, and we died before we could write that down
                    if refusal.code not in _NOBODY_DECIDED:
                        return refusal.message
                else:
                    return WaybillError.from_status(answer.error).message if answer.HasField("error") else ""
                await self._clock.sleep(PAUSE_SECONDS)

    async def clear(self, address: str) -> None:
        """Has the destination forget the call, if it can be reached."""
        async with open_channel(address) as channel:
            stub = hostagent_pb2_grpc.HostAgentStub(channel)
            try:
                await stub.ClearTasks(
                    hostagent_pb2.ClearTasksRequest(task_ids=[self._task_id]),
                    timeout=ASK_SECONDS,
                    metadata=self._metadata(),
                )
            except grpc.aio.AioRpcError as error:
                log.warning("the destination still remembers a VM's coming", reason=error.details())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        correlation_id = self._names.get("correlation_id", "")
        return ((CORRELATION_KEY, correlation_id),) if correlation_id else ()
