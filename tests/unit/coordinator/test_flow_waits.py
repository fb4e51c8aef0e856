"""Waits: what an observation of an entity means, and which observations count."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.flow_scenario import VM, Scenario, Script, a_child, a_flow, a_running_flow

from coordinator.flow import events as ev
from coordinator.flow.planjson import plan_from_json, plan_to_json
from coordinator.flow.waits import GRACE_SECONDS
from coordinator.plan import EntityRef, Observation, call, concurrently, serially, state, task, wait_for
from coordinator.rows import LeafKind, Status

UP = wait_for(VM, until=state("UP"), fails_if=state("DOWN", "ERROR"), step="SEEN_UP", deadline=30)
RUN = serially([call("h1", "createVm", entity=VM), UP], step="START_VM")


def a_wait_after_a_call(number: int = 5, incarnation: str = "i1") -> Scenario:
    """A flow that waits for the VM; its call returned this number of this incarnation."""
    flow = a_running_flow(RUN)
    flow.host_says("createVm", observation_number=number, incarnation=incarnation)
    return flow


@pytest.mark.rule("semantics §2: `wait_for(entity, until, fails_if, deadline, after)`: an observation of the entity")
def test_a_wait_is_over_when_the_entity_is_seen() -> None:
    flow = a_wait_after_a_call()
    assert list(flow.tree.waits_for()) == [VM]
    flow.sees(VM, "UP", 6)
    assert flow.ended() is Status.FINISHED
    assert list(flow.tree.waits_for()) == []


@pytest.mark.rule("semantics §2: `wait_for(entity, until, fails_if, deadline, after)`: an observation of the entity")
def test_a_wait_is_stored_with_its_condition() -> None:
    flow = a_wait_after_a_call()
    [wait] = [leaf for leaf in flow.store.leaves.values() if leaf.kind is LeafKind.WAIT]
    assert wait.arguments == {
        "until": {"state": ["UP"]},
        "fails_if": {"state": ["DOWN", "ERROR"]},
        "after": {"incarnation": "i1", "number": 5},
    }
    assert wait.entity == VM


@pytest.mark.rule("semantics §2: the commit that stores a wait answers with the entity as it is, so nothing seen")
def test_what_was_seen_before_the_wait_was_stored_is_not_missed() -> None:
    flow = a_running_flow(RUN)
    flow.sees(VM, "UP", 6)  # nobody waits yet
    flow.host_says("createVm", observation_number=5, incarnation="i1")
    assert flow.ended() is Status.FINISHED


def test_what_was_seen_while_nobody_ran_the_flow_is_not_missed() -> None:
    flow = a_wait_after_a_call()
    flow.store.observed[VM] = Observation("UP", "h1", "", "i1", 9)
    flow.crash()
    flow.advance(0)
    assert flow.ended() is Status.FINISHED


@pytest.mark.rule("semantics §2: `wait_for`: observations older than `after` (the number that the preceding call")
def test_an_observation_up_to_the_number_that_the_call_returned_is_ignored() -> None:
    flow = a_wait_after_a_call(number=5)
    flow.sees(VM, "DOWN", 4)
    flow.sees(VM, "DOWN", 5)
    flow.sees(VM, "UP", 5)
    assert list(flow.tree.waits_for()) == [VM]
    flow.sees(VM, "DOWN", 6)
    assert flow.ended() is Status.FAILED


def test_the_number_counts_within_its_incarnation_only() -> None:
    flow = a_wait_after_a_call(number=500, incarnation="i1")
    flow.sees(VM, "UP", 1, incarnation="i2")
    assert flow.ended() is Status.FINISHED


def test_another_incarnation_never_proves_a_failure() -> None:
    flow = a_wait_after_a_call(number=5, incarnation="i1")
    flow.sees(VM, "DOWN", 900, incarnation="i0")
    assert list(flow.tree.waits_for()) == [VM]


def test_a_wait_without_a_call_before_it_looks_at_everything() -> None:
    flow = a_flow(UP)
    flow.store.observed[VM] = Observation("UP", "h1", "", "i1", 0)
    assert flow.submit().ended() is Status.FINISHED


def test_a_wait_follows_the_last_call_before_it_wherever_that_is() -> None:
    plan = serially([serially([call("h1", "createVm"), task("h1", "tune")]), concurrently([serially([UP])])])
    flow = a_running_flow(plan)
    flow.host_says("createVm", observation_number=5, incarnation="i1")
    flow.host_says("tune")
    flow.sees(VM, "DOWN", 5)
    assert list(flow.tree.waits_for()) == [VM]


def test_two_waits_in_a_row_follow_the_same_call() -> None:
    plan = serially([call("h1", "migrateVm"), wait_for(VM, until=state("MIGRATING")), UP])
    flow = a_running_flow(plan)
    flow.host_says("migrateVm", observation_number=5, incarnation="i1")
    flow.sees(VM, "MIGRATING", 6)
    flow.sees(VM, "DOWN", 3)
    assert list(flow.tree.waits_for()) == [VM]
    flow.sees(VM, "UP", 7)
    assert flow.ended() is Status.FINISHED


@pytest.mark.rule("semantics §2: `wait_for(entity, until, fails_if, deadline, after)`: an observation of the entity")
def test_a_wait_that_sees_what_it_was_told_to_take_as_failure_fails() -> None:
    flow = a_wait_after_a_call()
    flow.sees(VM, "ERROR", 6)
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["SEEN_UP"] == "FAILED"
    assert flow.job.error is not None
    assert flow.job.error.reason == "WAIT_FAILED"
    assert "ERROR" in flow.job.error.message


def test_a_wait_that_takes_too_long_fails() -> None:
    flow = a_wait_after_a_call()
    flow.advance(29)
    assert not flow.store.ended
    flow.advance(1)
    assert flow.ended() is Status.FAILED
    assert flow.job.error is not None
    assert flow.job.error.reason == "DEADLINE_EXCEEDED"


def test_the_deadline_of_a_wait_is_the_same_after_a_crash() -> None:
    flow = a_wait_after_a_call()
    flow.now += 29
    flow.crash()
    assert not flow.store.ended
    flow.advance(1)
    flow.advance(60)
    assert flow.ended() is Status.FAILED


def test_several_waits_for_one_entity_are_each_their_own() -> None:
    plan = concurrently([wait_for(VM, until=state("UP")), wait_for(VM, until=state("UP", "PAUSED"))])
    flow = a_running_flow(plan)
    flow.sees(VM, "PAUSED", 1)
    assert list(flow.tree.waits_for()) == [VM]
    flow.sees(VM, "UP", 2)
    assert flow.ended() is Status.FINISHED


def test_an_observation_that_comes_while_the_wait_is_being_stored_counts() -> None:
    flow = a_running_flow(RUN)
    flow.hold = {"commit"}
    flow.host_says("createVm", observation_number=5, incarnation="i1")
    flow.take(ev.EntitySeen(VM, Observation("UP", "h1", "", "i1", 6)))
    flow.hold.clear()
    flow.settle()
    assert flow.ended() is Status.FINISHED


def test_a_child_may_wait() -> None:
    flow = a_running_flow(concurrently([a_child("Run"), a_child("Run")]), {"Run": Script(RUN)})
    first, second = list(flow.begun)
    flow.report(first, observation_number=5, incarnation="i1")
    flow.report(second, observation_number=8, incarnation="i1")
    flow.sees(VM, "UP", 7)
    assert list(flow.tree.waits_for()) == [VM]
    flow.sees(VM, "UP", 9)
    assert flow.ended() is Status.FINISHED


# --- an entity beside the one that is waited for ---------------------------------------------------------------------

SOURCE = EntityRef("HOST", "h1")
MOVED = wait_for(
    VM,
    until=state("UP", host_id="h2"),
    deadline=600,
    beside=SOURCE,
    gives_up_if=state("MAINTENANCE"),
    step="MIGRATE_VM",
)


@pytest.mark.rule("semantics §7: MaintenanceNumberOfVds: then per host MAINTENANCE_HOST → MIGRATE_VM × n")
def test_a_wait_of_which_nothing_more_will_come_is_over_after_a_moment() -> None:
    flow = a_running_flow(MOVED)
    assert set(flow.tree.waits_for()) == {VM, SOURCE}
    flow.sees(SOURCE, "UP", 1)
    flow.advance(GRACE_SECONDS)
    assert flow.step("MIGRATE_VM").status is Status.STARTED
    flow.sees(SOURCE, "MAINTENANCE", 2)
    flow.advance(GRACE_SECONDS / 2)
    assert flow.step("MIGRATE_VM").status is Status.STARTED
    flow.sees(SOURCE, "MAINTENANCE", 3)  # said again: no further moment
    flow.advance(GRACE_SECONDS / 2)
    assert flow.ended() is Status.FAILED
    error = flow.step("MIGRATE_VM").error
    assert error is not None
    assert (error.reason, "HOST/h1 is MAINTENANCE" in error.message) == ("WAIT_FAILED", True)
    assert not list(flow.tree.waits_for())


def test_what_was_on_its_way_then_still_counts() -> None:
    flow = a_running_flow(MOVED)
    flow.sees(SOURCE, "MAINTENANCE", 2)
    flow.sees(VM, "UP", 9, "i2", host_id="h2")  # told by another host, a little later
    flow.advance(GRACE_SECONDS)
    assert flow.ended() is Status.FINISHED


@pytest.mark.parametrize("seen_before", [True, False])
def test_who_takes_the_flow_up_hears_of_it_too(seen_before: bool) -> None:
    flow = a_running_flow(MOVED)
    if seen_before:
        flow.sees(SOURCE, "MAINTENANCE", 2)
    else:  # while nobody ran the flow
        flow.store.observed[SOURCE] = Observation("MAINTENANCE", "h1", "", "i1", 2)
    flow.crash()
    flow.advance(GRACE_SECONDS)
    flow.advance(1)
    assert flow.ended() is Status.FAILED


def test_its_own_deadline_is_not_put_off() -> None:
    flow = a_running_flow(MOVED)
    flow.advance(595)
    flow.sees(SOURCE, "MAINTENANCE", 2)
    flow.advance(5)
    assert flow.ended() is Status.FAILED


def test_the_entity_beside_survives_the_store() -> None:
    assert plan_from_json(plan_to_json(MOVED)) == MOVED
    flow = a_running_flow(serially([MOVED, concurrently([task("h1", "copy"), a_child("Part")])]), {"Part": MOVED})
    flow.sees(VM, "UP", 9, "i2", host_id="h2")
    [wait] = [leaf for leaf in flow.store.leaves.values() if leaf.kind is LeafKind.WAIT and leaf.path == "0"]
    assert wait.arguments["beside"] == ["HOST", "h1"]
