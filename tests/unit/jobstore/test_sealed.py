"""What a flow had sealed, and whether it was done."""

from __future__ import annotations

from typing import Any

from jobstore.queries.sealed import CommandFacts, LeafFacts, undone

TASK = {"kind": "task"}
CHILD = {"kind": "child", "command_type": "RemoveImage"}


def a_command(
    name: str = "root", parent: str = "", node: str = "", status: str = "ENDED_SUCCESSFULLY", plans: Any = (TASK,)
) -> CommandFacts:
    return CommandFacts(name, parent, node, "RemoveVm", status, list(plans))


def a_leaf(command: str = "root", node: str = "1:", outcome: str = "SUCCESS") -> LeafFacts:
    return LeafFacts(command, node, f"task {command} {node}", outcome)


def serially(*plans: Any, **options: Any) -> dict[str, Any]:
    return {"kind": "serially", "plans": list(plans), **options}


def test_a_flow_that_did_all_has_nothing_undone() -> None:
    plan = serially(TASK, {"kind": "concurrently", "plans": [TASK, CHILD]}, {"kind": "change"})
    commands = [a_command(plans=[plan]), a_command("child", "root", "1:1.1", plans=[{"kind": "nothing"}])]
    assert list(undone(commands, [a_leaf(node="1:0"), a_leaf(node="1:1.0")])) == []


def test_a_leaf_without_a_row_was_never_begun() -> None:
    assert list(undone([a_command(plans=[serially(TASK, TASK)])], [a_leaf(node="1:0")])) == [
        "command root never began its task at 1:1"
    ]


def test_a_leaf_must_have_succeeded() -> None:
    assert list(undone([a_command()], [a_leaf(outcome="under way")])) == ["task task root 1: is under way"]


def test_only_the_last_attempt_counts() -> None:
    plans = [CHILD, TASK]
    failed = a_command("child", "root", "1:", status="ENDED_WITH_FAILURE")
    assert list(undone([a_command(plans=plans), failed], [a_leaf(node="2:")])) == []


def test_a_child_must_have_ended_well_and_done_its_own() -> None:
    child = a_command("child", "root", "1:", status="ENDED_WITH_FAILURE")
    assert list(undone([a_command(plans=[CHILD]), child], [])) == [
        "command child (RemoveVm) is ENDED_WITH_FAILURE",
        "command child never began its task at 1:",
    ]


def test_what_is_below_best_effort_does_not_count() -> None:
    plan = serially(TASK, serially(TASK, CHILD, best_effort=True))
    failed = a_command("child", "root", "1:1.1", status="ENDED_WITH_FAILURE")
    assert (
        list(undone([a_command(plans=[plan]), failed], [a_leaf(node="1:0"), a_leaf(node="1:1.0", outcome="x")])) == []
    )
