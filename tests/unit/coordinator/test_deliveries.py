"""What is owed to the collector: of our own flows, and of those that dead coordinators left."""

from __future__ import annotations

from coordinator.deliveries import Deliveries


def test_nothing_at_first() -> None:
    assert Deliveries(enabled=True).mark == 0


def test_without_a_collector_there_is_no_mark() -> None:
    deliveries = Deliveries(enabled=False)
    deliveries.passed(7)
    assert deliveries.mark == -1


def test_what_ended_is_owed_until_it_is_delivered() -> None:
    deliveries = Deliveries(enabled=True)
    delivered = deliveries.expect(7)
    deliveries.passed(7)
    assert deliveries.mark == 6
    delivered()
    assert deliveries.mark == 7


def test_the_oldest_debt_counts() -> None:
    deliveries = Deliveries(enabled=True)
    first, second, also_second = deliveries.expect(7), deliveries.expect(9), deliveries.expect(9)
    deliveries.passed(9)
    second()
    assert deliveries.mark == 6
    first()
    assert deliveries.mark == 8
    also_second()
    assert deliveries.mark == 9


def test_what_a_dead_coordinator_owed_is_settled_until_the_store_knows_of_it() -> None:
    deliveries = Deliveries(enabled=True)
    assert deliveries.settled == ()
    deliveries.settle("dead")
    deliveries.settle("and another")
    told = deliveries.settled
    assert told == ("dead", "and another")
    deliveries.settle("a third")
    deliveries.known(told)
    assert deliveries.settled == ("a third",)


def test_what_a_dead_coordinator_owed_does_not_move_our_own_mark() -> None:
    deliveries = Deliveries(enabled=True)
    deliveries.settle("dead")
    assert deliveries.mark == 0
