"""How commands end: end methods that raise, compensation, changes between stages."""

from __future__ import annotations

import gc

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    DISK,
    DISK_2,
    HOST_STOPPED,
    RAISED,
    VM,
    Scenario,
    Script,
    a_child,
    a_running_flow,
)

from coordinator.flow.tree import END_ATTEMPTS
from coordinator.plan import Change, Former, Plan, call, concurrently, serially, task
from coordinator.rows import CommandStatus, Status

WORK = task("h1", "work", entity=DISK)
TO_H2 = Change(entity=DISK, declared={"host_id": "h2"}, former=Former("disk-1", "OK", {}))


def status_of(flow: Scenario, entity: object = DISK) -> str:
    """The status of an entity as stored; empty if there is none."""
    found = flow.store.entity(entity)  # type: ignore[arg-type]
    return found.status if found.version else ""


# --- end methods -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: The end method runs, always, exactly once in effect: they go with the commit that")
def test_the_notes_of_an_end_ride_in_the_commit_that_ends_the_work() -> None:
    flow = a_running_flow(Script(WORK, ends={DISK: "OK"}), entities=[DISK])
    flow.host_says("work")
    assert [leaf.result for leaf in flow.store.commits[-1].leaves] == ["SUCCESS"]
    assert (flow.tree.root.command_id, "end") in flow.store.commits[-1].notes


@pytest.mark.rule("semantics §2: A FINALIZATION step is shown when the plan had work")
def test_finalization_is_shown_when_the_plan_had_work() -> None:
    assert "FINALIZATION" in a_running_flow(serially([concurrently([WORK])])).statuses()


@pytest.mark.rule("semantics §2: A FINALIZATION step is shown when the plan had work")
@pytest.mark.parametrize("plan", [serially([]), concurrently([concurrently([]), serially([])])])
def test_finalization_is_not_shown_when_the_plan_had_none(plan: Plan) -> None:
    flow = a_running_flow(plan)
    assert flow.ended() is Status.FINISHED
    assert "FINALIZATION" not in flow.statuses()


@pytest.mark.rule("semantics §2: If it raises: attempts are counted durably before the second, growing delay")
def test_an_end_method_that_raises_runs_again_after_a_pause_that_grows() -> None:
    flow = a_running_flow(Script(WORK, end_raises=3))
    flow.host_says("work")
    pauses = []
    while not flow.store.ended:
        [(key, at)] = [(key, at) for key, at in flow.timers.items() if key.startswith("end")]
        pauses.append(at - flow.now)
        flow.fire(key)
    assert flow.ended() is Status.FINISHED
    assert len(pauses) == 3
    assert pauses == sorted(set(pauses))


@pytest.mark.rule("semantics §2: If it raises: attempts are counted durably before the second")
@pytest.mark.rule('semantics §1: "Work over" and "end method ran" are different facts; keep both')
def test_attempts_are_counted_durably_before_they_are_made() -> None:
    flow = a_running_flow(Script(WORK, end_raises=3))
    flow.host_says("work")
    assert (flow.child("Root").end_attempts, flow.child("Root").status) == (2, CommandStatus.SUCCEEDED)
    flow.fire(f"end {flow.tree.root.command_id}")
    assert flow.child("Root").end_attempts == 3


@pytest.mark.rule("semantics §2: If it raises: up to a limit, then FAILED with the error")
def test_after_so_many_attempts_it_is_given_up_visibly() -> None:
    flow = a_running_flow(Script(WORK, end_raises=99))
    flow.host_says("work")
    while not flow.store.ended:
        flow.fire(f"end {flow.tree.root.command_id}")
    assert flow.runs["end", flow.tree.root.command_id] == END_ATTEMPTS
    assert flow.ended() is Status.FAILED
    assert flow.job.error == RAISED
    assert flow.statuses() == {"VALIDATION": "FINISHED", "EXECUTION": "FINISHED", "FINALIZATION": "FAILED"}
    assert flow.event_types() == ["END_METHOD_GAVE_UP"]


def test_a_child_whose_end_is_given_up_fails_its_parent() -> None:
    flow = a_running_flow(a_child("One", step="ONE"), {"One": Script(WORK, end_raises=99)})
    flow.host_says("work")
    while not flow.store.ended:
        flow.fire(f"end {flow.child('One').command_id}")
    assert flow.ended() is Status.FAILED
    assert flow.statuses()["ONE"] == "FAILED"


def test_an_end_method_that_kills_its_process_each_time_is_given_up() -> None:
    flow = a_running_flow(WORK)
    flow.hold = {"end"}
    work = flow.leaf("work").task_id
    flow.report(work)
    for _ in range(20):
        flow.crash()
        if flow.store.ended:
            break
        if work in flow.begun:
            flow.report(work)
        flow.advance(60)
    assert flow.ended() is Status.FAILED
    assert flow.event_types() == ["END_METHOD_GAVE_UP"]


@pytest.mark.rule("semantics §2: The end method runs, always, exactly once in effect")
def test_one_crash_amid_an_end_method_is_no_reason_to_give_up() -> None:
    flow = a_running_flow(Script(WORK, end_raises=1, ends={DISK: "OK"}), entities=[DISK])
    flow.hold = {"end"}
    flow.host_says("work")
    flow.crash()
    flow.hold.clear()
    flow.host_says("work")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED
    assert flow.store.occasions[flow.tree.root.command_id, "end"] == 1


def test_other_parts_go_on_while_an_end_method_waits_for_its_next_attempt() -> None:
    plan = concurrently([a_child("One"), serially([task("h2", "a"), task("h2", "b")])])
    flow = a_running_flow(plan, {"One": Script(WORK, end_raises=2)})
    flow.host_says("work")
    flow.host_says("a")
    assert flow.verbs() == ["b"]
    flow.host_says("b")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED


def test_what_follows_an_end_that_is_given_up_by_who_finds_it_is_done() -> None:
    plan = serially([a_child("One", best_effort=True), TO_H2, task("h1", "more")])
    flow = a_running_flow(plan, {"One": Script(WORK, end_raises=99)}, entities=[DISK])
    flow.host_says("work")
    flow.hold = {"end"}
    while not any(leaf.verb == "more" for leaf in flow.store.leaves.values()):
        flow.crash()
        flow.advance(60)
    assert flow.store.entity(DISK).declared == {"host_id": "h2"}


# --- compensation ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §6: A command that ends FAILED or ABORTED undoes them in the commit that ends it")
def test_a_command_that_fails_undoes_its_changes_in_the_commit_that_ends_it() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}), entities=[DISK])
    assert status_of(flow) == "LOCKED"
    flow.host_says("work", "CLEAN_SUCCESS")
    assert (flow.ended(), status_of(flow), flow.commits) == (Status.FAILED, "OK", 2)


def test_a_command_that_ends_well_undoes_nothing() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}), entities=[DISK])
    flow.host_says("work")
    assert (flow.ended(), status_of(flow)) == (Status.FINISHED, "LOCKED")


@pytest.mark.rule("semantics §6: A command that ends FAILED or ABORTED undoes them newest first")
def test_changes_are_undone_newest_first() -> None:
    flow = a_running_flow(Script(task("h1", "work"), changes={DISK: "LOCKED", VM: "LOCKED"}), entities=[DISK, VM])
    flow.host_says("work", "CLEAN_SUCCESS")
    changes, _, _ = flow.store.commits[-1].notes[flow.tree.root.command_id, "end"]
    assert [change.entity for change in changes] == [VM, DISK]


def test_an_entity_that_was_created_is_removed_again() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}))
    assert status_of(flow) == "LOCKED"
    flow.host_says("work", "CLEAN_SUCCESS")
    assert status_of(flow) == ""


@pytest.mark.rule("semantics §6: An entity named by a node that had begun and is not known to be rolled back becomes")
@pytest.mark.parametrize("created", [True, False])
def test_an_entity_whose_work_was_not_rolled_back_is_illegal(created: bool) -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}), entities=[] if created else [DISK])
    flow.host_says("work", "CLEAN_FAILURE")
    assert status_of(flow) == "ILLEGAL"
    assert sorted(flow.event_types()) == ["ENTITY_ILLEGAL", "TASK_NOT_ROLLED_BACK"]


@pytest.mark.rule("semantics §6: An entity named by a node that had begun and is not known to be rolled back becomes")
def test_an_entity_whose_task_was_lost_is_illegal() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}), entities=[DISK])
    flow.loses("work")
    assert status_of(flow) == "ILLEGAL"


def test_an_entity_on_which_an_earlier_stage_has_worked_is_illegal() -> None:
    plan = serially([WORK, task("h1", "more")])
    flow = a_running_flow(Script(plan, changes={DISK: "LOCKED"}), entities=[DISK])
    flow.host_says("work")
    flow.host_says("more", "CLEAN_SUCCESS")
    assert status_of(flow) == "ILLEGAL"


def test_what_a_child_did_leaves_the_entity_of_its_parent_in_doubt() -> None:
    plan = Script(a_child("One"), changes={DISK: "LOCKED"})
    flow = a_running_flow(plan, {"One": WORK}, entities=[DISK])
    flow.host_says("work", "CLEAN_FAILURE")
    assert status_of(flow) == "ILLEGAL"


def test_what_a_child_did_is_known_after_a_crash() -> None:
    plan = Script(concurrently([a_child("One"), task("h1", "slow")]), changes={DISK: "LOCKED"})
    flow = a_running_flow(plan, {"One": WORK}, entities=[DISK])
    flow.host_says("work", "CLEAN_FAILURE")
    flow.crash()
    flow.host_says("slow")
    flow.advance(60)
    assert status_of(flow) == "ILLEGAL"


def test_an_entity_that_no_work_named_is_what_it_was() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED", DISK_2: "LOCKED"}), entities=[DISK, DISK_2])
    flow.host_says("work", "CLEAN_FAILURE")
    assert (status_of(flow), status_of(flow, DISK_2)) == ("ILLEGAL", "OK")


@pytest.mark.rule("semantics §6: An entity named by a node that had begun and is not known to be rolled back becomes")
def test_an_entity_whose_work_never_began_is_what_it_was() -> None:
    plan = serially([task("h1", "first"), WORK])
    flow = a_running_flow(Script(plan, changes={DISK: "LOCKED"}), entities=[DISK])
    flow.host_says("first", "CLEAN_FAILURE")
    assert status_of(flow) == "OK"


def test_an_illegal_entity_that_the_flow_had_removed_is_there_again() -> None:
    gone = Change(entity=DISK, remove=True, former=Former("disk one", "OK", {"host_id": "h1"}))
    flow = a_running_flow(serially([gone, WORK]), entities=[DISK])
    assert status_of(flow) == ""
    flow.host_says("work", "CLEAN_FAILURE")
    entity = flow.store.entity(DISK)
    assert (entity.status, entity.name, entity.declared) == ("ILLEGAL", "disk one", {"host_id": "h1"})


@pytest.mark.rule("semantics §6: a command may decide otherwise")
def test_a_command_with_an_end_method_of_its_own_decides_itself() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}, ends={DISK: "ILLEGAL"}), entities=[DISK])
    flow.host_says("work", "CLEAN_SUCCESS")
    assert status_of(flow) == "ILLEGAL"


def test_undoing_survives_a_crash() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}))
    flow.crash()
    flow.host_says("work", "CLEAN_SUCCESS")
    flow.advance(60)
    assert (flow.ended(), status_of(flow)) == (Status.FAILED, "")


def test_a_child_that_fails_undoes_its_own_changes_alone() -> None:
    flow = a_running_flow(
        Script(concurrently([a_child("One"), task("h1", "slow")]), changes={VM: "LOCKED"}),
        {"One": Script(WORK, changes={DISK: "LOCKED"})},
        entities=[VM, DISK],
    )
    flow.host_says("work", "CLEAN_SUCCESS")
    flow.advance(1)
    assert (status_of(flow), status_of(flow, VM)) == ("OK", "LOCKED")
    flow.host_says("slow")
    assert status_of(flow, VM) == "OK"


@pytest.mark.rule("semantics §6: A command that ends FAILED or ABORTED undoes them")
def test_a_cancelled_command_undoes_its_changes() -> None:
    flow = a_running_flow(Script(WORK, changes={DISK: "LOCKED"}), entities=[DISK])
    flow.cancel()
    flow.host_says("work", "CLEAN_SUCCESS", error=HOST_STOPPED)
    assert (flow.ended(), status_of(flow)) == (Status.ABORTED, "OK")


# --- changes between stages ------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: `change(entity …)`: committed")
def test_a_change_is_committed_with_what_it_follows_and_what_follows_it() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), TO_H2, task("h1", "drop")]), entities=[DISK])
    flow.host_says("copy")
    commit = flow.store.commits[-1]
    assert [leaf.verb for leaf in (*commit.leaves, *commit.new_leaves)] == ["copy", "drop"]
    assert flow.store.entity(DISK).declared == {"host_id": "h2"}


@pytest.mark.rule("semantics §2: a restart goes on there and repeats nothing before it")
def test_a_change_is_made_once_whatever_crashes() -> None:
    flow = a_running_flow(serially([task("h1", "copy"), TO_H2, task("h1", "drop")]), entities=[DISK])
    flow.hold = {"commit"}
    flow.host_says("copy")
    flow.crash()  # before the commit with the change
    flow.hold.clear()
    flow.host_says("copy")
    flow.crash()  # after it
    flow.host_says("drop")
    flow.advance(60)
    assert flow.ended() is Status.FINISHED
    assert flow.store.entity(DISK).version == 2


def test_a_change_is_undone_when_a_later_stage_fails() -> None:
    flow = a_running_flow(serially([TO_H2, call("h1", "attach")]), entities=[DISK])
    flow.host_says("attach", "CLEAN_SUCCESS", error=BROKEN)
    assert flow.ended() is Status.FAILED
    assert flow.store.entity(DISK).declared == {}


def test_of_several_changes_of_an_entity_the_oldest_former_self_counts() -> None:
    flow = a_running_flow(
        Script(
            serially([Change(entity=DISK, status="OK", former=Former("disk-1", "LOCKED", {})), call("h1", "attach")]),
            changes={DISK: "LOCKED"},
        ),
        entities=[DISK],
    )
    flow.host_says("attach", "CLEAN_SUCCESS")
    changes, _, _ = flow.store.commits[-1].notes[flow.tree.root.command_id, "end"]
    assert [(change.entity, change.status) for change in changes] == [(DISK, "OK")]


def test_a_change_may_remove() -> None:
    flow = a_running_flow(
        serially([Change(entity=DISK, remove=True, former=Former("disk-1", "OK", {})), call("h1", "attach")]),
        entities=[DISK],
    )
    assert status_of(flow) == ""
    flow.host_says("attach", "CLEAN_SUCCESS")
    assert status_of(flow) == "OK"


def test_the_memory_of_an_ended_flow_is_free_without_a_search_for_cycles() -> None:
    gc.disable()
    try:
        gc.collect(1)
        flow = a_running_flow(
            Script(serially([concurrently([WORK, a_child("C")]), TO_H2])), {"C": task("h1", "more")}, entities=[DISK]
        )
        flow.host_says("work")
        flow.host_says("more")
        assert flow.ended() is Status.FINISHED
        tree = flow.tree
        del flow
        gc.collect(0)  # the scenario has cycles of its own
        tree.let_go()
        gc.set_debug(gc.DEBUG_SAVEALL)
        del tree
        gc.collect(1)
        assert [found for found in gc.garbage if type(found).__module__.startswith("coordinator.")] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
