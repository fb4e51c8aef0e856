"""Which target an address is."""

from __future__ import annotations

import pytest

from waybill_client.channels import target


def test_one_address_stays_as_it_is() -> None:
    assert target("coordinator.example:50051") == "coordinator.example:50051"


def test_several_become_one_target() -> None:
    assert target("10.0.0.1:1, 10.0.0.2:2") == "ipv4:10.0.0.1:1,10.0.0.2:2"
    assert target("[::1]:1,[::2]:2") == "ipv6:[::1]:1,[::2]:2"


@pytest.mark.parametrize("addresses", ["a:1,b:2", "10.0.0.1:1,[::1]:1", "10.0.0.1,10.0.0.2", "localhost:1,127.0.0.1:2"])
def test_several_must_be_ip_addresses_of_one_version(addresses: str) -> None:
    with pytest.raises(ValueError, match="one IP version"):
        target(addresses)


def test_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="no address"):
        target(" , ")
