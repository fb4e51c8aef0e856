"""What may become of an external job: the rules, without a database.

Another system does the work and reports it, in whatever order its threads come by, twice when an answer was lost, and
not at all when it died. So every report is judged by the job as it is, under the writers' mutex, one after the other:

    AddExternalJob ─▶ STARTED ──EndExternalJob succeeded, no step open────────────────▶ FINISHED
                        │ │ └──EndExternalJob failed; a step failed────────────────────▶ FAILED
                        │ └────EndExternalJob forced, succeeded, steps open────────────▶ ABORTED
                        └──────not heard of for its heartbeat_seconds──────────────────▶ UNKNOWN

    AddExternalStep ─▶ STARTED ─▶ FINISHED, FAILED (and so the job)
                          └─────▶ closed with its job: FAILED above the one that failed; UNKNOWN with a silent job;
                                  else ABORTED, or SKIPPED if it never began

Success is only ever reported whole: a job does not end FINISHED over an open step, nor a step over one below it. What
has ended stays as it is. A report that says what is so already is a repetition, and changes nothing; one that says
otherwise is refused with what is so.

A command may be attached: it has a flow and a job of its own, like any other, and a step here shows it. Each commit of
that flow is followed by this step in the same transaction, so the two never disagree. The step ends with the command;
one that does not end FINISHED is a step that failed. An external job that ends before (by force, silently, because of
another step) closes the step and leaves the command alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid5

import grpc

from chassis.errors import WaybillError, failed_precondition, resource_exhausted

OPEN: Final = frozenset({"PENDING", "STARTED"})
MOST_STEPS: Final = 10_000
DEEPEST: Final = 16


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as far as the rules look at it."""

    job_id: str
    external: bool
    status: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step of it."""

    step_id: str
    parent_step_id: str
    """Empty: a top one."""
    status: str
    command_id: str = ""
    """The command that it shows; empty: it is reported."""


@dataclass(frozen=True, slots=True)
class End:
    """An end status, and why it is no good one."""

    status: str
    error: WaybillError | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report changes."""

    job: End | None = None
    """None: the job goes on."""
    steps: Mapping[str, End] = field(default_factory=dict)
    """Which steps end, by id."""


# --- what may be reported --------------------------------------------------------------------------------------------


def check_external(job: Job) -> None:
    """Refuses a job that a coordinator runs. Raises NOT_EXTERNAL."""
    if not job.external:
        raise failed_precondition("NOT_EXTERNAL", f"job {job.job_id} is not external: it is not for others to report")


def check_alive(job: Job) -> None:
    """Refuses a job that is not there to be reported about any more. Raises NOT_EXTERNAL, JOB_ENDED."""
    check_external(job)
    if job.status not in OPEN:
        raise ended(job)


def check_new_step(job: Job, above: Sequence[Step], steps: int) -> None:
    """Checks that a job that has so many steps takes another one below these, the nearest first.

    Raises NOT_EXTERNAL, JOB_ENDED, STEP_ENDED, LIMIT_EXCEEDED.
    """
    check_alive(job)
    for parent in above[:1]:
        if parent.status not in OPEN:
            raise step_ended(parent)
        if parent.command_id:
            raise _of_command(parent)
    if len(above) >= DEEPEST:
        raise resource_exhausted(f"steps nest at most {DEEPEST} deep")
    if steps >= MOST_STEPS:
        raise resource_exhausted(f"an external job has at most {MOST_STEPS} steps")


def end_step(
    job: Job, step: Step, open_steps: Sequence[Step], *, succeeded: bool, reason: str = "", below: str = ""
) -> Outcome:
    """Ends a step. `open_steps`: those of the job, if it failed; `below`: an open one below it, if it succeeded.

    Raises NOT_EXTERNAL, STEP_ENDED, STEP_OF_COMMAND, STEPS_OPEN.
    """
    check_external(job)
    if step.status not in OPEN:
        if step.status != ("FINISHED" if succeeded else "FAILED"):
            raise step_ended(step)
        return Outcome()
    if step.command_id:
        raise _of_command(step)
    if not succeeded:
        return step_failed(step, open_steps, _reported(reason))
    if below:
        raise _steps_open(f"step {step.step_id}", below)
    return Outcome(steps={step.step_id: End("FINISHED")})


def step_failed(step: Step, open_steps: Iterable[Step], why: WaybillError, status: str = "FAILED") -> Outcome:
    """Ends a step badly, and with it those above it and the job; the other open steps are closed."""
    steps = {each.step_id: each for each in open_steps}
    part_failed = WaybillError(grpc.StatusCode.UNKNOWN, "CHILD_FAILED", f"step {step.step_id}: {why.message}")
    ends = {step.step_id: End(status, why)}
    above = steps.get(step.parent_step_id)
    while above is not None and above.step_id not in ends:
        ends[above.step_id] = End("FAILED", part_failed)
        above = steps.get(above.parent_step_id)
    closed = _closed((each for each in steps.values() if each.step_id not in ends), f"step {step.step_id} failed")
    return Outcome(End("FAILED", part_failed), {**ends, **closed})


def command_ended(step: Step, open_steps: Sequence[Step], status: str, why: WaybillError | None) -> Outcome:
    """Ends a step with the job of the command that it shows. Was it closed with the external job, it stays so."""
    if step.status not in OPEN:
        return Outcome()
    if status == "FINISHED":
        return Outcome(steps={step.step_id: End("FINISHED")})
    unexplained = WaybillError(grpc.StatusCode.UNKNOWN, "CHILD_FAILED", f"command {step.command_id} ended {status}")
    return step_failed(step, open_steps, why or unexplained, status)


def step_of(job_id: str) -> str:
    """Returns the step that shows a command's job in an external one: its id follows from that job's."""
    return str(uuid5(UUID(job_id), "step of an external job"))


def end_job(
    job: Job, open_steps: Sequence[Step], *, succeeded: bool, force: bool, reason: str = "", user: str = ""
) -> Outcome:
    """Ends a job. Raises NOT_EXTERNAL, JOB_ENDED, STEPS_OPEN."""
    check_external(job)
    if job.status not in OPEN:
        if job.status not in _same(succeeded=succeeded, force=force):
            raise ended(job)
        return Outcome()
    if not succeeded:
        failure = _reported(reason)
        return Outcome(End("FAILED", failure), _closed(open_steps, f"the job failed: {failure.message}"))
    if not open_steps:
        return Outcome(End("FINISHED"))
    if not force:
        raise _steps_open(f"job {job.job_id}", open_steps[0].step_id)
    why = f"ended by force by {user}, with steps open"
    return Outcome(End("ABORTED", _aborted(why)), _closed(open_steps, why))


def fall_silent(open_steps: Iterable[Step], seconds: int) -> Outcome:
    """Ends an open job that was not heard of: what became of it nobody here can tell."""
    why = WaybillError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "HEARTBEAT_MISSED", f"the reporting system was silent for {seconds} s"
    )
    return Outcome(End("UNKNOWN", why), {step.step_id: End("UNKNOWN", why) for step in open_steps})


def check_clear(job: Job) -> None:
    """Checks that a job may be removed. Raises NOT_EXTERNAL, JOB_NOT_ENDED."""
    check_external(job)
    if job.status in OPEN:
        raise failed_precondition("JOB_NOT_ENDED", f"job {job.job_id} is {job.status}; end it first, or by force")


def progress(steps: int, finished: int) -> int:
    """Returns how far an open job is, in percent: each step counts the same; all that is known may not be all."""
    return min(99, 100 * finished // steps) if steps else 0


# --- words -----------------------------------------------------------------------------------------------------------


def ended(job: Job) -> WaybillError:
    """Says that nothing about a job changes any more."""
    return failed_precondition(
        "JOB_ENDED", f"job {job.job_id} has ended {job.status}", job_id=job.job_id, status=job.status
    )


def step_ended(step: Step) -> WaybillError:
    """Says that nothing about a step changes any more."""
    return failed_precondition(
        "STEP_ENDED", f"step {step.step_id} has ended {step.status}", step_id=step.step_id, status=step.status
    )


def _same(*, succeeded: bool, force: bool) -> tuple[str, ...]:
    """The end statuses that the same report may have led to before."""
    if not succeeded:
        return ("FAILED",)
    return ("FINISHED", "ABORTED") if force else ("FINISHED",)


def _closed(steps: Iterable[Step], why: str) -> dict[str, End]:
    return {step.step_id: _closed_step(step, why) for step in steps}


def _closed_step(step: Step, why: str) -> End:
    if step.status == "PENDING":
        return End("SKIPPED", WaybillError(grpc.StatusCode.ABORTED, "SKIPPED", f"never begun: {why}"))
    return End("ABORTED", _aborted(why))


def _aborted(why: str) -> WaybillError:
    return WaybillError(grpc.StatusCode.CANCELLED, "ABORTED", why)


def _reported(reason: str) -> WaybillError:
    return WaybillError(grpc.StatusCode.UNKNOWN, "EXTERNAL_FAILED", reason or "failed; no reason was given")


def _steps_open(what: str, step_id: str) -> WaybillError:
    return failed_precondition("STEPS_OPEN", f"{what} has open steps, {step_id} for one", step_id=step_id)


def _of_command(step: Step) -> WaybillError:
    message = f"step {step.step_id} shows command {step.command_id}, and is that command's alone"
    return failed_precondition("STEP_OF_COMMAND", message, step_id=step.step_id, command_id=step.command_id)
