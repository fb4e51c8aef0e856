"""Who is dead, by our own clock."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.recovery.leases import LeaseBook
from waybill.v1 import jobstore_pb2


def a_lease(coordinator_id: str, counter: int, *, released: bool = False) -> jobstore_pb2.Lease:
    return jobstore_pb2.Lease(coordinator_id=coordinator_id, counter=counter, released=released)


def dead(book: LeaseBook, now: float) -> list[str]:
    return [other.coordinator_id for other in book.dead(now)]


def a_book(*leases: jobstore_pb2.Lease, now: float = 0.0) -> LeaseBook:
    book = LeaseBook("me", 3.0)
    book.seen(leases, now)
    return book


def test_a_lease_that_stands_still_for_the_lease_time_is_dead() -> None:
    book = a_book(a_lease("other", 5))

    assert dead(book, 2.9) == []
    assert dead(book, 3.0) == ["other"]


def test_the_time_counts_from_when_we_saw_the_counter_first() -> None:
    book = a_book(a_lease("other", 5))
    book.seen([a_lease("other", 6)], 2.5)

    assert dead(book, 5.4) == []
    assert dead(book, 5.5) == ["other"]


def test_a_released_lease_is_dead_at_once() -> None:
    assert dead(a_book(a_lease("other", 5, released=True)), 0.0) == ["other"]


def test_a_lease_that_is_released_while_we_look_is_dead_at_once() -> None:
    book = a_book(a_lease("other", 5))
    book.seen([a_lease("other", 5, released=True)], 1.0)

    assert dead(book, 1.0) == ["other"]


def test_our_own_lease_is_never_dead() -> None:
    assert dead(a_book(a_lease("me", 5)), 100.0) == []


def test_a_lease_that_was_taken_over_is_not_taken_over_again_unless_it_moves() -> None:
    book = a_book(a_lease("other", 5))
    book.dead(3.0)[0].taken_over = True
    book.seen([a_lease("other", 5)], 4.0)
    assert dead(book, 10.0) == []

    book.seen([a_lease("other", 6)], 11.0)
    assert dead(book, 14.0) == ["other"]


def test_a_lease_that_is_not_there_any_more_is_nobodys_concern() -> None:
    book = a_book(a_lease("other", 5))
    book.seen([], 1.0)

    assert dead(book, 10.0) == []


def test_the_next_death_is_that_of_whoever_stands_still_longest() -> None:
    book = a_book(a_lease("first", 1))
    book.seen([a_lease("first", 1), a_lease("second", 1)], 1.0)

    assert book.next_death(1.5) == 1.5
    assert a_book().next_death(1.5) == math.inf


@given(st.lists(st.floats(0.0, 2.9), min_size=1, max_size=30))
def test_whoever_renews_within_the_lease_time_never_dies(pauses: list[float]) -> None:
    book, now = LeaseBook("me", 3.0), 0.0
    for counter, pause in enumerate(pauses):
        assert dead(book, now) == []
        book.seen([a_lease("other", counter)], now)
        now += pause
    assert dead(book, now) == []
