"""What one host has said it sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.monitor.sightings import Sightings
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2

HOST, VM = jobs_pb2.ENTITY_TYPE_HOST, jobs_pb2.ENTITY_TYPE_VM


def said(
    *seen: tuple[str, str, int], incarnation: str = "i1", done: bool = False, newest: int = 0
) -> hostagent_pb2.WatchEventsResponse:
    """A message in which the host names entities (itself is "h1"), their states and the numbers."""
    return hostagent_pb2.WatchEventsResponse(
        observations=[
            hostagent_pb2.Observation(
                entity_type=HOST if name == "h1" else VM, entity_id=name, state=state, number=number
            )
            for name, state, number in seen
        ],
        snapshot_done=done,
        agent=hostagent_pb2.AgentIdentity(host_id="h1", incarnation=incarnation, boot_id="b"),
        newest_number=newest,
    )


def told(rows: list[jobstore_pb2.ObservedRow]) -> list[tuple[str, str, int]]:
    return [(row.entity.entity_id, row.observed.state, row.observed.number) for row in rows]


def a_vm(vm_id: str) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(entity_type=VM, entity_id=vm_id)


def test_what_a_host_sees_is_passed_on_with_its_number_and_origin() -> None:
    row = Sightings("h1").heard(said(("v1", "UP", 3)))[0]

    assert row.entity == jobstore_pb2.EntityRef(entity_type=VM, entity_id="v1")
    assert row.observed == jobs_pb2.Observed(state="UP", host_id="h1", incarnation="i1", number=3)


def test_what_was_passed_on_before_is_not_news() -> None:
    sightings = Sightings("h1")
    sightings.heard(said(("h1", "UP", 1), ("v1", "UP", 3)))

    assert told(sightings.heard(said(("h1", "UP", 1), ("v1", "POWERING_UP", 2), ("v1", "DOWN", 4)))) == [
        ("v1", "DOWN", 4)
    ]


def test_another_incarnation_counts_from_the_beginning() -> None:
    sightings = Sightings("h1")
    sightings.heard(said(("v1", "UP", 30)))

    assert told(sightings.heard(said(("v1", "DOWN", 2), incarnation="i2"))) == [("v1", "DOWN", 2)]


def test_a_vm_that_the_snapshot_does_not_show_is_down_under_the_newest_number() -> None:
    sightings = Sightings("h1")
    sightings.begin()
    sightings.heard(said(("h1", "UP", 1), ("v1", "UP", 2), done=True, newest=9))

    assert told(sightings.absent([a_vm("v1"), a_vm("v2")])) == [("v2", "DOWN", 9)]


def test_a_vm_that_came_after_the_snapshot_is_not_taken_for_absent() -> None:
    sightings = Sightings("h1")
    sightings.begin()
    sightings.heard(said(done=True, newest=9))
    sightings.heard(said(("v1", "POWERING_UP", 10)))

    assert sightings.absent([a_vm("v1")]) == []


def test_a_new_stream_asks_anew_what_is_shown() -> None:
    sightings = Sightings("h1")
    sightings.heard(said(("v1", "UP", 2), done=True))
    sightings.begin()
    sightings.heard(said(done=True, newest=3))

    assert told(sightings.absent([a_vm("v1")])) == [("v1", "DOWN", 3)]


def test_a_silent_host_is_unreachable_once_and_its_vms_stay_as_they_were() -> None:
    sightings = Sightings("h1")
    sightings.heard(said(("h1", "UP", 1), ("v1", "UP", 2)))

    first, second = sightings.unreachable(), sightings.unreachable()

    assert first is not None
    assert told([first]) == [("h1", "UNREACHABLE", 1)]
    assert second is None


def test_a_host_that_speaks_again_takes_the_word_back_under_the_same_number() -> None:
    sightings = Sightings("h1")
    sightings.heard(said(("h1", "UP", 1), ("v1", "UP", 2)))
    sightings.unreachable()

    assert told(sightings.heard(said(("h1", "UP", 1), ("v1", "UP", 2), done=True))) == [("h1", "UP", 1)]


def test_a_host_that_never_spoke_is_not_unreachable() -> None:
    assert Sightings("h1").unreachable() is None


@given(st.lists(st.tuples(st.sampled_from(["v1", "v2"]), st.integers(1, 20))))
def test_numbers_that_are_passed_on_only_rise(seen: list[tuple[str, int]]) -> None:
    sightings = Sightings("h1")
    passed: dict[str, list[int]] = {}
    for vm_id, number in seen:
        for name, _, told_number in told(sightings.heard(said((vm_id, "UP", number)))):
            passed.setdefault(name, []).append(told_number)

    for vm_id, numbers in passed.items():
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == max(number for name, number in seen if name == vm_id)
