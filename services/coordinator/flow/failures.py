"""Why parts of a flow did not end well, in the words that people read and the reasons that programs decide on.

Codes are numbers of google.rpc.Code: the pure core does not import gRPC.
"""

from __future__ import annotations

from typing import Final

from coordinator.plan import Observation, WaitFor
from coordinator.rows import Command, Failure, Leaf, Step

CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
ABORTED: Final = 10
INTERNAL: Final = 13
DATA_LOSS: Final = 15

DEADLINE_WISH: Final = "system: DEADLINE_EXCEEDED"
"""Who wished that the job stops, when its deadline did."""


# --- stopping --------------------------------------------------------------------------------------------------------


def wish_of(by: str) -> Failure:
    """What a job says of itself that was stopped on request, or because its deadline passed."""
    if by == DEADLINE_WISH:
        return Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the job's deadline passed")
    return Failure(CANCELLED, "ABORTED", f"cancelled by {by}")


def stopped(why: str) -> Failure:
    """What a part says of itself that was stopped, or kept from beginning, on request."""
    return Failure(CANCELLED, "ABORTED", why)


def is_stop(failure: Failure | None) -> bool:
    """Tells whether it says that the part was stopped on request: such a part is ABORTED, not FAILED."""
    return failure is not None and failure.reason == "ABORTED" and failure.code == CANCELLED


def skipped_by_wish(wish: Failure) -> Failure:
    """Why a part never began: the job was to stop."""
    return Failure(ABORTED, "SKIPPED", f"never begun: {wish.message}")


def skipped_because_of(title: str, step: Step | None) -> Failure:
    """Why a part never began: another one did not end well."""
    metadata = {"step_id": step.step_id} if step is not None else {}
    return Failure(ABORTED, "SKIPPED", f"never begun, because of {title}", metadata)


# --- leaves ----------------------------------------------------------------------------------------------------------


def task_failed(leaf: Leaf) -> Failure:
    """A host says that it failed, and not why."""
    return Failure(INTERNAL, "TASK_FAILED", f"{leaf.verb} failed on {leaf.host_id}")


def not_rolled_back(error: Failure) -> Failure:
    """It was stopped, but what it had done is still there."""
    return Failure(INTERNAL, "TASK_FAILED", f"not rolled back: {error.message}", error.metadata)


def task_lost(leaf: Leaf) -> Failure:
    """Nobody can tell what became of it."""
    return Failure(DATA_LOSS, "TASK_LOST", f"{leaf.host_id} does not know {leaf.verb} any more")


def task_took_too_long(leaf: Leaf) -> Failure:
    """It was stopped because its deadline had passed."""
    return Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"{leaf.verb} on {leaf.host_id} took too long; stopped")


def task_stalled(leaf: Leaf, seconds: float) -> Failure:
    """It was stopped because it made no progress any more."""
    message = f"{leaf.verb} on {leaf.host_id} made no progress for {seconds:.0f} s; stopped"
    return Failure(DEADLINE_EXCEEDED, "TASK_STALLED", message, {"task_id": leaf.task_id})


def is_stall(failure: Failure | None) -> bool:
    """Tells whether it says that a task made no progress."""
    return failure is not None and failure.reason == "TASK_STALLED"


def is_of_another_memory(failure: Failure | None) -> bool:
    """Tells whether it says that the host's memory is not the one that a task was made for."""
    if failure is None:
        return False
    return failure.reason == "INCARNATION_CHANGED" or (
        failure.reason == "TASK_LOST" and "incarnation" in failure.metadata
    )


def task_fenced(leaf: Leaf) -> Failure:
    """It can do its work no more."""
    metadata = {"task_id": leaf.task_id}
    if leaf.error is not None and is_stall(leaf.error):
        return Failure(DEADLINE_EXCEEDED, "TASK_STALLED", f"{leaf.error.message}, and fenced", metadata)
    message = f"{leaf.host_id} lost its memory before {leaf.verb} was done; fenced"
    return Failure(DATA_LOSS, "TASK_FAILED", message, metadata)


def not_seen_in_time(leaf: Leaf) -> Failure:
    """A wait's deadline passed."""
    return Failure(DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"{leaf.entity} was not seen in time")


def nothing_to_come(plan: WaitFor, observation: Observation) -> Failure:
    """What is waited for cannot be any more."""
    message = f"{plan.entity} was not seen as it should be, and {plan.beside} is {observation.state}"
    return Failure(FAILED_PRECONDITION, "WAIT_FAILED", message)


def task_unknown(task_id: str) -> Failure:
    """The job has no such task."""
    return Failure(NOT_FOUND, "TASK_UNKNOWN", f"the job has no task {task_id}", {"task_id": task_id})


def not_stoppable(leaf: Leaf) -> Failure:
    """Only tasks are stopped: a call is awaited, a wait is no work."""
    message = f"{leaf.task_id} is a {leaf.kind.lower()}; only tasks are stopped. To stop the job, cancel it"
    return Failure(FAILED_PRECONDITION, "TASK_STATE", message, {"task_id": leaf.task_id})


# --- commands --------------------------------------------------------------------------------------------------------


def limit_exceeded(command_type: str, limits: str) -> Failure:
    """A child that there must not be."""
    return Failure(RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", f"a flow has {limits}; {command_type} would be one more")


def plan_invalid(command: Command, error: ValueError) -> Failure:
    """A plan that cannot be stored: a defect of the command."""
    message = f"{command.command_type} planned what cannot be: {error}"
    return Failure(INTERNAL, "COMMAND_RAISED", message, {"exception": type(error).__name__})


def never_came_back(command: Command) -> Failure:
    """An end method that was begun so often, and nobody lived to tell."""
    message = f"the end method of {command.command_type} was begun {command.end_attempts} times and never came back"
    return Failure(INTERNAL, "COMMAND_RAISED", message)


def attempts_exceeded(command: Command, most: int) -> Failure:
    """A command that never gives up."""
    return Failure(RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", f"{command.command_type} has at most {most} attempts")


# --- waiting ---------------------------------------------------------------------------------------------------------


def dependency_failed(job_id: str, status: str) -> Failure:
    """A job that this one depends on did not end well."""
    return Failure(
        ABORTED, "SKIPPED", f"never begun: job {job_id}, which it depends on, ended {status}", {"job_id": job_id}
    )


def dependency_gone(job_id: str) -> Failure:
    """Nobody can tell any more how a job went that this one depends on."""
    message = f"job {job_id}, which it depends on, was deleted before its end was seen"
    return Failure(NOT_FOUND, "JOB_NOT_FOUND", message, {"job_id": job_id})


def group_refused(failure: Failure) -> Failure:
    """Another job of the same group was refused, so none begins."""
    return Failure(ABORTED, "SKIPPED", f"never begun: {failure.message}", failure.metadata)


# --- cancels that are refused ----------------------------------------------------------------------------------------


def job_ended(job_id: str, status: str) -> Failure:
    """There is nothing to stop."""
    return Failure(FAILED_PRECONDITION, "JOB_ENDED", f"job {job_id} has ended {status}")


def not_cancelable(why: str) -> Failure:
    """A command of this type cannot be stopped, or not any more."""
    return Failure(FAILED_PRECONDITION, "NOT_CANCELABLE", why)


def past_no_return(command_type: str) -> Failure:
    """It can only go forward."""
    message = f"{command_type} has done what cannot be undone; it will complete"
    return Failure(FAILED_PRECONDITION, "PAST_NO_RETURN", message)
