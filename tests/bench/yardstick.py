"""What a bare gRPC call costs here and now: the same Python, the same grpc, none of our code.

The CPU that one and the same work takes varies by a factor of two with the machine and with what else runs on it. So
CPU per job is also stated in bare calls, which were measured just before and just after: those can be compared between
runs and machines.
"""

from __future__ import annotations

from typing import Final

from accounts import Accountant
from child import Child

CALLS_OF_THE_TARGET: Final = 4.6
"""1,600 µs a job where a bare call cost 345 µs, client and server (design, `facts.md` and `targets.md`)."""
CALLS_OF_TRACING: Final = 0.58
"""200 µs a job, on the same terms."""
_CALLS: Final = 3000
_IN_FLIGHT: Final = 64
_READY_SECONDS: Final = 60.0


async def bare_call() -> float:
    """Measures it: CPU seconds of client and server together."""
    async with Child("bare_server", {}) as server:
        address = (await server.hear(_READY_SECONDS))["address"]
        arguments = {"address": address, "calls": _CALLS, "in_flight": _IN_FLIGHT}
        async with Child("bare_client", arguments) as client:
            await client.hear(_READY_SECONDS)
            accountant = Accountant({"bare": [server.pid, client.pid]})
            before = accountant.read()
            client.go()
            await client.hear(_READY_SECONDS)
            return accountant.read().since(before).ours / _CALLS
