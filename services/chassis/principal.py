"""Who calls, as far as it can be believed: the one place that says so.

Until callers prove who they are, there is only what they say of themselves, in `x-waybill-user`. That is believed where
nobody but this machine's own users can say it, which is enough to develop with; from elsewhere it is refused, rather
than taken for less than it says: whoever sends it counts on it. Who says nothing is `anonymous`, wherever he is.

Real authentication is another `PrincipalOf`: it is given what the caller says and the call (its peer, its metadata, the
names in its certificate) and returns who that is, or raises UNAUTHENTICATED.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc

from chassis import logs
from chassis.context import ANONYMOUS
from chassis.errors import WaybillError
from chassis.policy import Policy

Rpc = grpc.aio.ServicerContext[Any, Any]
PrincipalOf = Callable[[str, Rpc], str]
"""Who calls: what he says of himself (empty: nothing), and the call. Raises WaybillError UNAUTHENTICATED."""

log = logs.get_logger(__name__)


def principal_on(listen: str) -> PrincipalOf:
    """Returns who the callers of a server are that listens there."""
    return as_said if is_loopback(listen) else as_said_on_this_machine


def as_said(said: str, rpc: Rpc) -> str:
    """Believes everybody: for servers that only this machine can reach."""
    return said or ANONYMOUS


def as_said_on_this_machine(said: str, rpc: Rpc) -> str:
    """Believes callers on this machine; others may only say nothing."""
    if said and not is_near(rpc.peer()):
        raise WaybillError(
            grpc.StatusCode.UNAUTHENTICATED,
            "USER_NOT_TRUSTED",
            "x-waybill-user is believed on the loopback only; leave it out: the call is then anonymous",
        )
    return said or ANONYMOUS


def is_near(peer: str) -> bool:
    """Tells whether a peer, as gRPC names it, is on this machine: `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711`."""
    kind, _, address = unquote(peer).partition(":")
    return kind == "unix" or (kind in ("ipv4", "ipv6") and is_loopback(address))


def is_loopback(address: str) -> bool:
    """Tells whether `host:port` is an address that only this machine has; a name but `localhost` is not."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def warn_if_open(policy: Policy, listen: str, setting: str) -> None:
    """Says so if anybody may do anything from anywhere. It may be meant so: a network can be its own policy."""
    if policy.is_open and not is_loopback(listen):
        log.warning("everybody who can reach this address may do everything", listen=listen, remedy=f"set {setting}")
