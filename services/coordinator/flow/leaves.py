"""Begun leaves: the row that is the intent, and what its end means.

A leaf's row is stored before anything is asked of a host and holds all that asking takes, so the same can be asked
again by whoever takes the flow up. `state` is "" while it is under way; what hosts say in between is never stored.

    "" ──▶ FINISHED with a result ──▶ SUCCESS          OK
     │                           ├─▶ CLEAN_SUCCESS     FAILED, or ABORTED if it was stopped on request
     │                           └─▶ CLEAN_FAILURE     FAILED, with an alarm: what it had done is still there
     └───▶ UNKNOWN ─────────────────────────────────▶  UNKNOWN, with an alarm: nobody can tell

The error that is stored decides between FAILED and ABORTED (`failures.is_stop`), so a row means the same whoever reads
it. Answers of calls keep the number after which their effect can be observed (`waits.py`).
"""

from __future__ import annotations

from typing import Any

from coordinator.flow import events as ev
from coordinator.flow import failures
from coordinator.flow.nodes import Node, Outcome, span_id_of
from coordinator.flow.waits import condition_of
from coordinator.plan import Call, Plan, Task, WaitFor
from coordinator.rows import Command, CommandStatus, EventNote, Failure, Leaf, LeafKind, Severity


def intent(node: Node, task_id: str, step_id: str, now: float) -> Leaf:
    """The row of a leaf that begins now."""
    plan, command = node.plan, node.command.row
    assert isinstance(plan, Task | Call | WaitFor)
    leaf = Leaf(
        task_id=task_id,
        kind=_KINDS[type(plan)],
        command_id=command.command_id,
        step_id=step_id,
        attempt=node.attempt,
        path=node.path,
        entity=plan.entity,
        deadline=now + plan.deadline if plan.deadline is not None else 0.0,
    )
    if isinstance(plan, WaitFor):
        leaf.arguments = condition_of(node, plan)
    else:
        leaf.span_id = span_id_of(task_id) if command.span_id else ""
        leaf.host_id, leaf.verb, leaf.arguments = plan.host_id, plan.verb, plan.arguments
        know_plan(leaf, plan)
    return leaf


def know_plan(leaf: Leaf, plan: Plan) -> None:
    """Takes from the plan, which is stored, what the row of a leaf does not say: both together are what is asked."""
    if isinstance(plan, Task):
        leaf.expected_generation, leaf.stall_seconds = plan.expected_generation, plan.stall_seconds


_KINDS: dict[type[Any], LeafKind] = {Task: LeafKind.TASK, Call: LeafKind.CALL, WaitFor: LeafKind.WAIT}


def answer_in(leaf: Leaf, report: ev.LeafReported) -> Any:
    """What is kept of an answer."""
    if leaf.kind is LeafKind.CALL:
        return {
            "answer": report.answer,
            "observation_number": report.observation_number,
            "incarnation": report.incarnation,
        }
    return report.answer


def error_of(leaf: Leaf, error: Failure | None, wish: Failure | None, now: float) -> Failure | None:
    """Why it did not end well, in our terms: a stop is somebody's wish, or a deadline of ours, or the host's doing."""
    if leaf.result == "SUCCESS":
        return None
    if error is None:
        return failures.task_failed(leaf)
    if error.reason != "ABORTED" or leaf.state != "FINISHED":
        return error
    if leaf.result != "CLEAN_SUCCESS":
        return failures.not_rolled_back(error)
    if wish is not None:
        return failures.stopped(wish.message)
    if failures.is_stall(leaf.error):
        return leaf.error
    if leaf.deadline and now >= leaf.deadline:
        return failures.task_took_too_long(leaf)
    return failures.stopped(error.message)


def outcome_of(leaf: Leaf) -> Outcome:
    """What the stored end of a leaf means."""
    if leaf.state == "UNKNOWN":
        return Outcome.UNKNOWN
    if leaf.result == "SUCCESS":
        return Outcome.OK
    return Outcome.ABORTED if leaf.result == "CLEAN_SUCCESS" and failures.is_stop(leaf.error) else Outcome.FAILED


def outcome_of_command(row: Command) -> Outcome:
    """What the stored end of a command means."""
    if row.status is CommandStatus.ENDED_SUCCESSFULLY:
        return Outcome.OK
    if row.status is CommandStatus.UNKNOWN:
        return Outcome.UNKNOWN
    return Outcome.ABORTED if failures.is_stop(row.error) else Outcome.FAILED


def stalled(leaf: Leaf, seconds: float) -> EventNote:
    """What is said aloud about a task that makes no progress."""
    of = f" of {leaf.entity}" if leaf.entity is not None else ""
    message = (
        f"{leaf.verb}{of} on {leaf.host_id} (task {leaf.task_id}): no progress for {seconds:.0f} s; it is to be stopped"
    )
    return EventNote("TASK_STALLED", Severity.ALERT, message, leaf.entity)


def alarm(leaf: Leaf) -> EventNote | None:
    """What must be said aloud about an end; None if nothing must."""
    if leaf.state == "UNKNOWN":
        kind, what = "TASK_LOST", "nobody can tell what became of it"
    elif leaf.result == "CLEAN_FAILURE":
        kind, what = "TASK_NOT_ROLLED_BACK", "it was not rolled back"
    else:
        return None
    of = f" of {leaf.entity}" if leaf.entity is not None else ""
    message = f"{leaf.verb}{of} on {leaf.host_id} (task {leaf.task_id}): {what}"
    return EventNote(kind, Severity.ALERT, message, leaf.entity)
