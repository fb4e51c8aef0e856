"""What a command's code hands over: found out while it is known whose it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from coordinator.engine.storable import check_notes, check_plan
from coordinator.plan import EntityRef, call, child, concurrently, nothing, serially, state, task, wait_for
from coordinator.rows import EntityChange, EventNote, LockKey, Notes, Severity

VM = EntityRef("VM", "vm-1")
WORK = task("h1", "work", {"size_mb": 5, "names": ["a", None, 1.5, True]}, step="WORK", entity=VM, deadline=5.0)


def test_a_plan_that_can_be_stored_is() -> None:
    wait = wait_for(VM, until=state("UP"), deadline=300)
    check_plan(serially([WORK, concurrently([call("h1", "createVm"), wait]), nothing(weight=0)]))


def test_text_in_all_tongues_is_text() -> None:
    check_plan(task("h☃", "work", {"name": "ünï 𝒳 \\u0000 \\\\"}, description="Größe"))


@pytest.mark.parametrize(
    "plan",
    [
        None,
        "work",
        [WORK],
        serially([WORK, None]),  # type: ignore[list-item]
        task(5, "work"),  # type: ignore[arg-type]
        task("", "work"),
        call(None, "work"),  # type: ignore[arg-type]
        task("h1", None),  # type: ignore[arg-type]
        task("h1", "work", step=5),
        task("h1", "work", description="\0"),
        task("h1", "work", weight=-1),
        task("h1", "work", weight=float("inf")),
        task("h1", "work", deadline="soon"),
        task("h1", "work", deadline=float("nan")),
        task("h1", "work", deadline=1e15),
        task("h1", "work", entity="VM/vm-1"),
        task("h1", "work", subjects=(EntityRef("COFFEE", "1"),)),
        task("h1", "work", {"at": datetime(2026, 1, 1, tzinfo=UTC)}),
        task("h1", "work", {"ids": {"a", "b"}}),
        task("h1", "work", {"size": float("nan")}),
        task("h1", "work", {"name": "a\0b"}),
        task("h1", "work", {"name": "half of it: \ud83d"}),
        wait_for(EntityRef("VM", 5), until=state("UP")),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_what_cannot_be_stored_is_no_plan(plan: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_plan(plan)


def test_a_plan_that_nests_without_end_is_none() -> None:
    plan = nothing()
    for _ in range(10_000):
        plan = serially([plan])  # type: ignore[assignment]
    with pytest.raises(ValueError, match="deeper"):
        check_plan(plan)


def test_notes_that_can_be_stored_are() -> None:
    changes = [EntityChange(VM, "web", "LOCKED", {"disk_ids": ["d1"]}), EntityChange(VM, remove=True)]
    check_notes(Notes(changes, locks=[LockKey(VM)], events=[EventNote("VM_GONE", Severity.NORMAL, "gone", VM)]))


@pytest.mark.parametrize(
    "notes",
    [
        Notes(changes=[EntityChange(VM, status=5)]),  # type: ignore[arg-type]
        Notes(changes=[EntityChange(VM, name="\0")]),
        Notes(changes=[EntityChange(VM, declared={"at": datetime(2026, 1, 1, tzinfo=UTC)})]),
        Notes(changes=[EntityChange(EntityRef("COFFEE", "1"), status="OK")]),
        Notes(events=[EventNote("VM_GONE", Severity.NORMAL, None)]),  # type: ignore[arg-type]
        Notes(locks=["vm-1"]),  # type: ignore[list-item]
    ],
    ids=repr,
)
def test_what_cannot_be_stored_is_no_note(notes: Notes) -> None:
    with pytest.raises((TypeError, ValueError)):
        check_notes(notes)


def test_a_child_is_checked_like_any_node() -> None:
    class Runnable:
        command_type = "Work"
        parameters_version = 1

        def parameters(self) -> dict[str, Any]:
            return {"at": datetime(2026, 1, 1, tzinfo=UTC)}

    with pytest.raises(TypeError, match="datetime"):
        check_plan(child(Runnable()))
