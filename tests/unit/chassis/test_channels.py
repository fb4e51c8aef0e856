"""From addresses to gRPC targets."""

import pytest

from chassis import http2
from chassis.channels import target_of


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        ("127.0.0.1:50051", "ipv4:127.0.0.1:50051"),
        ("127.0.0.1:1, 127.0.0.1:2,", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:50051", "ipv6:[::1]:50051"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("coordinator.waybill.svc:50051", "dns:///coordinator.waybill.svc:50051"),
        ("unix:/run/waybill/jobstore.sock", "unix:/run/waybill/jobstore.sock"),
    ],
)
def test_addresses_become_a_target(addresses: str, target: str) -> None:
    assert target_of(addresses) == target


@pytest.mark.parametrize("addresses", ["", " , ", "nowhere", "127.0.0.1", "a:1,b:2", "127.0.0.1:1,[::1]:2", "a:http"])
def test_addresses_that_gRPC_cannot_resolve_together_are_refused(addresses: str) -> None:
    with pytest.raises(ValueError, match=r"address|host:port"):
        target_of(addresses)


def test_clients_ping_less_often_than_servers_allow() -> None:
    client, server = dict(http2.CLIENT_KEEPALIVE), dict(http2.SERVER_KEEPALIVE)
    assert client["grpc.keepalive_time_ms"] >= 2 * server["grpc.http2.min_ping_interval_without_data_ms"]
    assert server["grpc.keepalive_permit_without_calls"] == client["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.parametrize("end", [http2.CLIENT_KEEPALIVE, http2.SERVER_KEEPALIVE])
def test_both_names_of_the_ping_timeout_agree(end: http2.Options) -> None:
    assert dict(end)["grpc.http2.ping_timeout_ms"] == dict(end)["grpc.keepalive_timeout_ms"]
