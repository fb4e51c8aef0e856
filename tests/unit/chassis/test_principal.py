"""Who calls, as far as it can be believed."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest

from chassis.errors import WaybillError
from chassis.principal import is_loopback, is_near, principal_on


class Rpc:
    """A call from somewhere."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


def who(listen: str, peer: str, said: str) -> str:
    return principal_on(listen)(said, cast(Any, Rpc(peer)))


NEAR = ["ipv4:127.0.0.1:4711", "ipv4:127.8.8.8:1", "ipv6:%5B::1%5D:4711", "unix:/run/x", "unix:"]
FAR = ["ipv4:10.0.0.7:4711", "ipv6:%5B2001:db8::1%5D:4711", "ipv4:128.0.0.1:1", "", "dns:localhost:1"]


@pytest.mark.parametrize("peer", NEAR)
def test_a_caller_on_this_machine_is_believed(peer: str) -> None:
    assert is_near(peer)
    assert who("0.0.0.0:50051", peer, "ann") == "ann"


@pytest.mark.parametrize("peer", FAR)
def test_a_caller_elsewhere_is_not_believed_and_told_so(peer: str) -> None:
    assert not is_near(peer)
    with pytest.raises(WaybillError) as refused:
        who("0.0.0.0:50051", peer, "ann")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "USER_NOT_TRUSTED")


@pytest.mark.parametrize("peer", [*NEAR, *FAR])
def test_whoever_says_nothing_is_anonymous(peer: str) -> None:
    assert who("0.0.0.0:50051", peer, "") == who("127.0.0.1:0", peer, "") == "anonymous"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:50051", "[::1]:1"])
def test_a_server_that_only_this_machine_reaches_believes_everybody(listen: str) -> None:
    assert is_loopback(listen)
    assert who(listen, "whatever", "ann") == "ann"


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "", "127.0.0.1.e.org:1"])
def test_other_addresses_are_reached_from_elsewhere(listen: str) -> None:
    assert not is_loopback(listen)
