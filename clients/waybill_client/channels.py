"""How the client reaches the services.

The behaviour lives in the service config, so it is the same for every call: UNAVAILABLE, and nothing else, is sent
again (each call is made so that a repeat is harmless), several addresses are used in turn, and a service that came back
is found within a second. Keepalive notices a peer that is paused, not dead: TCP alone would wait for minutes.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import grpc

_MIB = 1024 * 1024

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Servers answer up to 4 MiB by default; a job of thousands of steps may be more, and reading it is our choice.
    ("grpc.max_receive_message_length", 64 * _MIB),
]


def open_channel(addresses: str) -> grpc.aio.Channel:
    """Opens a channel to one address, or to several with commas between them, used in turn.

    `127.0.0.1:50051`, `coordinator.example:50051`, `10.0.0.1:50051,10.0.0.2:50051`, `unix:/run/waybill.sock`. Several
    must be IP addresses, since a channel resolves one name only. Connecting happens with the first call.
    """
    return grpc.aio.insecure_channel(target(addresses), options=OPTIONS)


def target(addresses: str) -> str:
    """The gRPC target of one or several addresses; ValueError if several are not all of one IP version."""
    each = [address.strip() for address in addresses.split(",") if address.strip()]
    if not each:
        raise ValueError("no address given")
    if len(each) == 1:
        return each[0]
    versions = {_ip_version(address) for address in each}
    if len(versions) > 1 or None in versions:
        raise ValueError(f"several addresses must all be of one IP version, with ports: {addresses!r}")
    return f"ipv{versions.pop()}:{','.join(each)}"


def check(name: str, addresses: str) -> None:
    """Raises ValueError, which names the argument, for what `open_channel` would not take."""
    try:
        target(addresses)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from None


def _ip_version(address: str) -> int | None:
    host, _, port = address.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")).version if port.isdigit() else None
    except ValueError:
        return None
