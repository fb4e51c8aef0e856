"""A job that is restarted: what its former flow did well is not done again."""

from __future__ import annotations

import json

import pytest
from tests.unit.coordinator.flow_scenario import (
    BROKEN,
    DISK,
    DISK_2,
    REFUSED,
    VM,
    Scenario,
    Script,
    a_child,
    a_flow,
    a_running_flow,
)

from coordinator.engine.rehearsal import undoings
from coordinator.flow.reuse import Reuse
from coordinator.plan import Change, EntityRef, Former, Plan, call, concurrently, nothing, serially, task
from coordinator.rows import Status

COPY, MOVE, MERGE = (task("h1", verb, {"size": 1}, step=f"{verb.upper()}_IMAGE") for verb in ("copy", "move", "merge"))


def a_former_flow(plan: Plan | Script, children: dict[str, Plan | Script] | None = None, *, fails: str) -> Reuse:
    """What is stored of a flow whose tasks all ended well but for one."""
    flow = a_running_flow(plan, children)
    while verbs := flow.verbs():
        failed = verbs[0] == fails
        flow.host_says(verbs[0], "CLEAN_SUCCESS" if failed else "SUCCESS", error=BROKEN if failed else None)
    assert flow.ended() is Status.FAILED
    rows = flow.store.rows()
    for command in rows.commands:
        command.plans = json.loads(json.dumps(command.plans))  # as the store gives them back
    return Reuse(rows)


def goes_on(flow: Scenario) -> list[str]:
    """What hosts are asked for until the flow has ended well, in order."""
    asked = []
    while verbs := flow.verbs():
        asked.append(verbs[0])
        flow.host_says(verbs[0])
        flow.advance(1)
    assert flow.ended() is Status.FINISHED
    return asked


@pytest.mark.rule("semantics §8: Restart a failed job from the failed step: a new job")
def test_it_goes_on_from_the_stage_that_failed() -> None:
    plan = serially([COPY, MOVE, MERGE])
    flow = a_running_flow(plan, reuse=a_former_flow(plan, fails="move"))
    assert flow.verbs() == ["move"]
    assert flow.statuses()["COPY_IMAGE"] == "FINISHED"
    assert goes_on(flow) == ["move", "merge"]
    assert flow.store.violations() == []


def test_of_parallel_tasks_only_those_that_failed_run_again() -> None:
    plan = concurrently([COPY, MOVE, MERGE])
    assert goes_on(a_running_flow(plan, reuse=a_former_flow(plan, fails="merge"))) == ["merge"]


def test_what_is_planned_otherwise_now_is_done() -> None:
    former = a_former_flow(serially([COPY, MOVE]), fails="move")
    other = task("h2", "copy", {"size": 1}, step="COPY_IMAGE")
    assert goes_on(a_running_flow(serially([other, MOVE]), reuse=former)) == ["copy", "move"]


def test_calls_are_made_again_for_they_say_how_things_are() -> None:
    plan = serially([call("h1", "create"), COPY, MOVE])
    assert goes_on(a_running_flow(plan, reuse=a_former_flow(plan, fails="move"))) == ["create", "move"]


def test_children_that_ended_well_are_not_planned_again_and_of_others_what_was_done_is_reused() -> None:
    plan = concurrently([a_child("Good"), a_child("Bad")])
    children: dict[str, Plan | Script] = {"Good": COPY, "Bad": serially([MOVE, MERGE])}
    former = a_former_flow(plan, children, fails="merge")
    flow = a_running_flow(plan, children, reuse=former)
    assert flow.runs["plan", flow.child("Good").command_id] == 0
    assert goes_on(flow) == ["merge"]


def test_a_command_that_was_refused_does_all() -> None:
    plan = serially([COPY, a_child("Refused")])
    former = a_former_flow(plan, {"Refused": Script(MOVE, refused=REFUSED)}, fails="")
    assert goes_on(a_running_flow(plan, {"Refused": MOVE}, reuse=former)) == ["move"]


@pytest.mark.parametrize("commit_is_lost", [True, False])
def test_a_crash_while_it_begins_reuses_the_same(commit_is_lost: bool) -> None:
    plan = serially([COPY, MOVE])
    flow = a_running_flow(plan, reuse=a_former_flow(plan, fails="move"), depends_on={"job-a": Status.STARTED})
    flow.hold = {"commit"}
    flow.job_ends("job-a")
    flow.hold = set()
    flow.crash(commit_is_lost=commit_is_lost)
    assert goes_on(flow) == ["move"]


def test_what_would_be_undone_is_known_before_anything_is_done() -> None:
    on_disk = task("h1", "copy", {"size": 1}, step="COPY_IMAGE", entity=DISK)
    later = Change(entity=DISK_2, status="LOCKED", former=Former("disk-2", "OK", {}))
    new = Change(entity=EntityRef("DISK", "new"), status="OK", former=None)
    script = Script(serially([on_disk, MOVE, concurrently([later, new]), a_child("Part")]), changes={DISK: "LOCKED"})
    children: dict[str, Plan | Script] = {"Part": Script(nothing(), changes={VM: "OK"})}
    former = a_former_flow(script, children, fails="move")
    flow = a_flow(script, children, reuse=former, entities=[DISK, DISK_2])
    flow.hold = {"commit"}
    flow.submit()  # as far as a rehearsal goes
    foretold = [
        (each.entity, each.former and each.former.status, each.in_doubt) for each in undoings(flow.tree, lambda _: True)
    ]
    assert foretold == [(new.entity, None, False), (DISK_2, "OK", False), (DISK, "OK", True)]
    assert undoings(flow.tree, lambda command_type: command_type == "Part") == []  # its turn comes later


def test_entity_changes_are_made_again() -> None:
    script = Script(serially([COPY, MOVE]), changes={DISK: "LOCKED"})
    flow = a_running_flow(script, reuse=a_former_flow(script, fails="move"), entities=[DISK])
    assert flow.store.entity(DISK).status == "LOCKED"
