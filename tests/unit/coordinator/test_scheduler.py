"""Which host takes a VM."""

from __future__ import annotations

import pytest

from coordinator.plan import EntityRef, Observation
from coordinator.scheduler import pick_host
from coordinator.world import Entity


def a_host(host_id: str, state: str = "UP", status: str = "OK") -> Entity:
    return Entity(EntityRef("HOST", host_id), status=status, observed=Observation(state, host_id), version=1)


HOSTS = [a_host("h-1"), a_host("h-2"), a_host("h-3")]


def test_the_least_loaded_host_is_picked() -> None:
    assert pick_host(HOSTS, {"h-1": 2, "h-2": 1, "h-3": 3}) == "h-2"


def test_a_host_without_vms_is_the_least_loaded() -> None:
    assert pick_host(HOSTS, {"h-1": 1, "h-2": 1}) == "h-3"


def test_of_several_the_first_by_its_id_is_picked() -> None:
    assert pick_host(reversed(HOSTS), {}) == "h-1"


def test_the_preferred_host_is_picked_however_loaded() -> None:
    assert pick_host(HOSTS, {"h-3": 9}, preferred="h-3") == "h-3"


@pytest.mark.parametrize("excluded", [["h-1"], ["h-1", "h-9"]])
def test_an_excluded_host_is_not_picked(excluded: list[str]) -> None:
    assert pick_host(HOSTS, {}, excluded=excluded, preferred="h-1") == "h-2"


@pytest.mark.parametrize(
    "unfit",
    [a_host("h-0", "NON_OPERATIONAL"), a_host("h-0", "UNREACHABLE"), a_host("h-0", status="PREPARING_FOR_MAINTENANCE")],
)
def test_a_host_that_is_not_up_or_is_being_worked_on_is_not_picked(unfit: Entity) -> None:
    assert pick_host([unfit, *HOSTS], {}, preferred="h-0") == "h-1"
    assert pick_host([unfit], {}) is None
