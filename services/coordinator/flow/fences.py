"""Fences: how it is found out what a task did that nobody can ask about, and made sure that it does no more. Pure.

A task that names the generation of its volume raises it by one, in one stroke, when its work is done. So the volume
itself tells whether the work was done; and a volume whose generation somebody else has raised cannot be written to by
the task any more. Both in one call of the host: look, and raise if the work is not done. Between a look and a raise of
its own there would be time for the task to end in.

    TASK ─┬─ made for another memory of the host ────────▶ CALL fenceVolume ─┬─ DONE ─────▶ SUCCESS
          └─ no progress, stopped, and still no progress ─▶                  ├─ FENCED ───▶ failed: CLEAN_SUCCESS if the
                                                                             │              volume is LEGAL, else dirty
                                                                             └─ neither ──▶ lost, or the host's word is
                                                                                            waited for as before

The call is a row like every other (its id is derived from the node's), stored before it is sent, and awaited before the
node is over, whatever the host says of the task meanwhile. A task has at most one fence. In doubt nothing was done:
success takes the host's word, the generation, and that the volume is LEGAL.
"""

from __future__ import annotations

from typing import Any, Final

from coordinator.flow.nodes import Node, span_id_of
from coordinator.rows import EventNote, Leaf, LeafKind, Severity

FENCE: Final = "fenceVolume"
"""The verb of the host's driver."""
RAISE: Final = 100
"""By how much a fence raises a generation: no work that somebody does afterwards looks like that of the fenced task."""

_OBJECT: Final = "volume_id"


def is_possible(leaf: Leaf) -> bool:
    """Tells whether a task's volume can tell of it, and keep it from writing."""
    return leaf.expected_generation is not None and bool(leaf.arguments.get(_OBJECT))


def intent(node: Node, leaf: Leaf) -> Leaf:
    """The row of the call that fences a task."""
    assert leaf.expected_generation is not None
    fence_id = node.id("fence")
    return Leaf(
        task_id=fence_id,
        kind=LeafKind.CALL,
        command_id=leaf.command_id,
        step_id=leaf.step_id,
        host_id=leaf.host_id,
        verb=FENCE,
        arguments={
            _OBJECT: leaf.arguments[_OBJECT],
            "generation": leaf.expected_generation,
            "fenced_generation": leaf.expected_generation + RAISE,
            "writer": leaf.task_id,
        },
        attempt=leaf.attempt,
        path=f"{leaf.path}.fence" if leaf.path else "fence",
        span_id=span_id_of(fence_id) if leaf.span_id else "",
    )


def result_of(leaf: Leaf, fence: Leaf) -> str:
    """What a fence that is over says of its task: SUCCESS, CLEAN_SUCCESS, CLEAN_FAILURE; empty: nothing."""
    assert leaf.expected_generation is not None
    said = _said(fence)
    is_legal = said.get("legality") == "LEGAL"
    if said.get("outcome") == "DONE" and is_legal and said.get("generation") == leaf.expected_generation + 1:
        return "SUCCESS"
    if said.get("outcome") == "FENCED" and said.get("generation") == leaf.expected_generation + RAISE:
        return "CLEAN_SUCCESS" if is_legal else "CLEAN_FAILURE"
    return ""


def answer_of(fence: Leaf) -> Any:
    """What a task answers that was found to be done."""
    return {"generation": _said(fence).get("generation")}


def told(leaf: Leaf, fence: Leaf, result: str) -> EventNote:
    """What is said aloud about a fence that is over."""
    volume = f"volume {leaf.arguments[_OBJECT]}"
    if result == "SUCCESS":
        kind, severity, what = "TASK_FOUND_DONE", Severity.WARNING, f"its host cannot tell, {volume} shows its work"
    elif result:
        kind, severity, what = "FENCED", Severity.WARNING, f"it writes to {volume} no more"
    else:
        why = fence.error.message if fence.error is not None else "the volume does not tell what it did"
        kind, severity, what = "FENCE_FAILED", Severity.ALERT, f"{volume} was not fenced: {why}"
    of = f" of {leaf.entity}" if leaf.entity is not None else ""
    message = f"{leaf.verb}{of} on {leaf.host_id} (task {leaf.task_id}): {what} (call {fence.task_id})"
    return EventNote(kind, severity, message, leaf.entity)


def _said(fence: Leaf) -> dict[str, Any]:
    said = fence.answer.get("answer") if fence.result == "SUCCESS" and isinstance(fence.answer, dict) else None
    return said if isinstance(said, dict) else {}
