"""Channels to our services: alive or known dead within seconds, and back as fast.

A paused or half-open peer does not show on TCP, so every channel pings: after 2 s of silence, dead without an answer
in 1 s. Only UNAVAILABLE is retried by itself, because only it says that nothing was answered; everything else is the
caller's to decide. Addresses of several servers are used in turn, and a server that says NOT_SERVING is left out
(client-side health checking), so a draining one gets no new calls.

A channel belongs to one event loop and lives as long as the process.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Final

import grpc

from chassis import http2

MIB: Final = 1 << 20


def _service_config(policy: str, *, health: bool) -> str:
    config = {
        "loadBalancingConfig": [{policy: {}}],
        **({"healthCheckConfig": {"serviceName": ""}} if health else {}),
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    return json.dumps(config)


def open_channel(
    addresses: str, *, max_message_mib: int = 4, sticky: bool = False, health: bool = True
) -> grpc.aio.Channel:
    """Opens a channel to one server or, separated by commas, to several that are equal.

    `host:port`, where a name may stand for many servers; several must be IP addresses. They are used in turn, or with
    `sticky` the first that answers until it is gone: for callers whose batches should stay together. `health`: False
    for servers that are not ours and may have none to ask. Raises ValueError.
    """
    policy = "pick_first" if sticky else "round_robin"
    return grpc.aio.insecure_channel(target_of(addresses), options=_options(max_message_mib, policy, health=health))


def target_of(addresses: str) -> str:
    """Returns the gRPC target for addresses: `dns:///…` for a name, `ipv4:…` or `ipv6:…` for IP addresses."""
    parts = [_with_localhost_as_ip(part.strip()) for part in addresses.split(",") if part.strip()]
    if not parts:
        raise ValueError("no address given")
    families = {_family(part) for part in parts}
    if families == {"name"} and len(parts) == 1:
        return parts[0] if parts[0].startswith("unix:") else f"dns:///{parts[0]}"
    if len(families) > 1 or "name" in families:
        raise ValueError(f"{addresses}: several addresses must all be IP addresses of one family")
    return f"{families.pop()}:{','.join(parts)}"


def _with_localhost_as_ip(address: str) -> str:
    host, colon, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if colon and host == "localhost" else address


def _family(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        return "name"
    if not colon or not port.isdecimal():
        raise ValueError(f"{address}: not host:port")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "name"


def _options(max_message_mib: int, policy: str, *, health: bool) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", _service_config(policy, health=health)),
        ("grpc.enable_retries", 1),
        *http2.CLIENT_KEEPALIVE,
        # The default backoff grows to two minutes; a restarted neighbour is back in one second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # in truth the least time that a connection attempt is given
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Own connections: another channel's backoff and burden are not ours.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", max_message_mib * MIB),
        ("grpc.max_send_message_length", max_message_mib * MIB),
    ]
