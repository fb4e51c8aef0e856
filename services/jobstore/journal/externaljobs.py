"""External jobs as they are stored: each report read, judged (`external.py`) and written in one turn of the journal.

    report ─▶ take turn ─▶ read what it is about ─▶ judge ─▶ write ─▶ COMMIT ─▶ answered

No coordinator owns an external job, so nothing of it is guarded by a lease or an epoch: the writers' mutex is enough.
Whoever comes second sees what the first has made of the job, whichever jobstores they asked. Every report may be
repeated, so a turn of which nobody knows whether it was committed is simply taken again: ids are chosen before, and
what is so already is no change.

What a small report costs does not depend on how large the job is: counts are kept beside it (`external_job`), and its
steps are read only by what closes them.

That a job is alive is no matter of the journal, like the renewal of a lease: it has no revision, and goes by
connections of its own (`heartbeats.py` has who listens). A report that changes something says so, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import asyncpg

from chassis.clock import Ids
from chassis.errors import WaybillError, already_exists, invalid_field, reject_control_in
from jobstore.journal import statements
from jobstore.journal.deletion import delete_whole
from jobstore.journal.external import (
    Job,
    Outcome,
    Step,
    check_alive,
    check_clear,
    check_new_step,
    end_job,
    end_step,
    fall_silent,
)
from jobstore.journal.externalturn import Report, job_of, no_job, no_step
from jobstore.journal.guards import known_job
from jobstore.journal.journal import Journal
from jobstore.journal.parts import Turn
from jobstore.journal.rows import Key, key_of, subjects_json
from jobstore.journal.transaction import read_entities, read_guards
from jobstore.messages import job_message
from jobstore.snapshots import Pool, borrowed
from waybill.v1 import jobs_pb2, jobstore_pb2

BEAT_SECONDS: Final = 5.0
"""How long writing down that a job is alive may take."""

T = TypeVar("T")

_OPEN_BELOW: Final = """
    SELECT step_id FROM step
    WHERE parent_step_id = $1 AND parent_step_id <> '' AND command_id = '' AND end_time IS NULL LIMIT 1
"""
_LAST_BELOW: Final = """
    SELECT number FROM step WHERE parent_step_id = $1 AND parent_step_id <> '' AND command_id = ''
    ORDER BY number DESC LIMIT 1
"""

_INSERT_JOB: Final = """
    INSERT INTO job (revision, create_time, update_time, start_time, external, status, job_id, command_type,
                     description, owner, correlation_id, trace_id, span_id, subjects, auto_cleared, request_id,
                     request_hash)
    VALUES ($1, $2, $2, $2, true, 'STARTED', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""
_INSERT_EXTERNAL: Final = "INSERT INTO external_job (job_id, heartbeat_seconds) VALUES ($1, $2)"
_LET_CLEAR: Final = """
    UPDATE job SET auto_cleared = true, revision = $2, update_time = $3 WHERE job_id = $1 AND NOT auto_cleared
"""
# A report that came between the last look and this one has raised the count: then it was not silent.
_SILENCE: Final = """
    UPDATE external_job SET heartbeat_seconds = NULL
    WHERE job_id = $1 AND beats = $2 AND heartbeat_seconds IS NOT NULL
"""

_BEAT: Final = """
    UPDATE external_job SET beats = beats + 1 WHERE job_id = $1 AND heartbeat_seconds IS NOT NULL
"""


@asynccontextmanager
async def beating_pool(url: str) -> AsyncIterator[Pool]:
    """Yields the connections by which jobs are kept alive."""
    async with asyncpg.create_pool(
        url,
        min_size=0,
        max_size=2,
        timeout=BEAT_SECONDS,
        command_timeout=BEAT_SECONDS,
        server_settings={"application_name": "waybill heartbeats", "statement_timeout": f"{BEAT_SECONDS:.0f}s"},
    ) as pool:
        yield pool


class ExternalJobs:
    """Takes reports about external jobs, from whichever coordinator brings them."""

    def __init__(self, beating: Pool, journal: Journal, ids: Ids) -> None:
        """`beating` has connections that may write, apart from the journal's."""
        self._beating = beating
        self._journal = journal
        self._ids = ids
        self.on_listening: Callable[[], None] = _nobody_listens
        """Called when there is another job that may fall silent."""

    async def report(self, request: jobstore_pb2.ReportExternalRequest) -> jobstore_pb2.ReportExternalResponse:
        """Takes a report; returns the job or step that it is about, as it is then.

        Raises WaybillError as the Coordinator's calls say.
        """
        reject_control_in(request)
        match request.WhichOneof("report"):
            case "new_job":
                return jobstore_pb2.ReportExternalResponse(job=await self._begin_job(request.new_job))
            case "new_step":
                new_step = request.new_step
                step = await self._in_turn(lambda report: _begin_step(report, new_step))
                return jobstore_pb2.ReportExternalResponse(step=step)
            case "step_end":
                step_end = request.step_end
                step = await self._in_turn(lambda report: _end_step(report, step_end))
                return jobstore_pb2.ReportExternalResponse(step=step)
            case "job_end":
                return jobstore_pb2.ReportExternalResponse(job=await self._end_job(request.job_end, request.user))
            case "clear_job_id":
                return jobstore_pb2.ReportExternalResponse(job=await self._clear(request.clear_job_id))
            case "alive_job_id":
                return jobstore_pb2.ReportExternalResponse(job=await self._beat(request.alive_job_id))
        raise invalid_field("report", "must be given")

    async def end_silent(self, job_id: str, beats: int, seconds: int) -> None:
        """Ends a job that was not heard of for so many seconds, if its count still stands where it was seen to."""
        event_id = self._ids.new()
        await self._in_turn(lambda report: _fall_silent(report, job_id, beats, seconds, event_id))

    async def _begin_job(self, new: jobstore_pb2.NewExternalJob) -> jobs_pb2.Job:
        job = await self._in_turn(lambda report: _begin_job(report, new))
        if new.heartbeat_seconds:
            self.on_listening()
        return job

    async def _end_job(self, end: jobstore_pb2.ExternalJobEnd, user: str) -> jobs_pb2.Job:
        event_id = self._ids.new()
        return await self._in_turn(lambda report: _end_job(report, end, user, event_id))

    async def _clear(self, job_id: str) -> jobs_pb2.Job:
        cleared: list[jobs_pb2.Job] = []  # by an attempt of which nobody knew whether it was committed
        return await self._in_turn(lambda report: _clear(report, job_id, cleared))

    async def _beat(self, job_id: str) -> jobs_pb2.Job:
        """Notes that a job is alive. One that is not listened to is answered the same, unless it is over."""
        async with borrowed(self._beating) as connection:
            heard = await connection.execute(_BEAT, job_id)
            row = await connection.fetchrow(statements.READ_JOBS, [job_id])
        if row is None:
            raise no_job(job_id)
        if heard == "UPDATE 0":
            check_alive(Job(job_id, row["external"], row["status"]))
        return job_message(row)

    async def _in_turn(self, work: Callable[[Report], Awaitable[T]]) -> T:
        """Does what a report asks for in a turn of its own, and logs which jobs have begun or ended by it."""
        reports: list[Report] = []

        async def once(turn: Turn) -> T:
            reports.append(Report(turn))
            return await work(reports[-1])

        answer = await self._journal.alone(once)
        reports[-1].log()
        return answer


def _nobody_listens() -> None:
    """Nobody asked to be told of jobs that may fall silent."""


# --- jobs ------------------------------------------------------------------------------------------------------------


async def _begin_job(report: Report, new: jobstore_pb2.NewExternalJob) -> jobs_pb2.Job:
    job, turn = new.job, report.turn
    known = await _known(report, job)
    if known:
        return await report.job_message(known)
    subjects = await _named(report, job.subjects)
    columns = (job.job_id, job.command_type, job.description, job.owner, job.correlation_id, job.trace_id, job.span_id)
    more = (subjects_json(subjects), job.auto_cleared, job.request_id, job.request_hash or None)
    await turn.writer.change(_INSERT_JOB, turn.revision, turn.time, *columns, *more)
    keys = dict.fromkeys(map(key_of, subjects))
    await turn.writer.insert(statements.INSERT_SUBJECTS, rows=[(*key, job.job_id) for key in keys])
    await turn.writer.change(_INSERT_EXTERNAL, job.job_id, new.heartbeat_seconds or None)
    turn.changed = True
    report.began(job)
    return await report.job_message(job.job_id)


async def _known(report: Report, job: jobstore_pb2.JobRow) -> str:
    """Returns the job that the same report has begun before, or nothing. Raises REQUEST_ID_REUSED, JOB_DELETED."""
    if await report.knows(job.job_id):
        return job.job_id
    if not job.request_id:
        return ""
    guards = await read_guards(report.turn.writer, requests={(job.owner, job.request_id)})
    return known_job(guards, job)


async def _named(report: Report, subjects: Sequence[jobs_pb2.Subject]) -> list[jobs_pb2.Subject]:
    """Gives subjects the names of their entities, where they have none yet: they outlive the entities."""
    entities = await read_entities(report.turn.writer, {key_of(subject) for subject in subjects if not subject.name})
    return [
        jobs_pb2.Subject(
            entity_type=subject.entity_type,
            entity_id=subject.entity_id,
            name=subject.name or _name(entities, key_of(subject)),
        )
        for subject in subjects
    ]


def _name(entities: Mapping[Key, jobs_pb2.Entity], key: Key) -> str:
    return entities[key].name if key in entities else ""


async def _end_job(report: Report, end: jobstore_pb2.ExternalJobEnd, user: str, event_id: str) -> jobs_pb2.Job:
    row = await report.row(end.job_id)
    outcome = end_job(
        job_of(row),
        await report.open_steps(end.job_id),
        succeeded=end.succeeded,
        force=end.force,
        reason=end.reason,
        user=user,
    )
    if outcome.job is not None:
        await report.write(row, outcome)
        if end.force:
            await report.tell(row, _forced(event_id, outcome, user))
    if end.force and await report.turn.writer.change(_LET_CLEAR, end.job_id, report.turn.revision, report.turn.time):
        report.turn.changed = True
    return await report.job_message(end.job_id)


def _forced(event_id: str, outcome: Outcome, user: str) -> jobstore_pb2.EventRow:
    status = outcome.job.status if outcome.job else ""
    return jobstore_pb2.EventRow(
        event_id=event_id,
        event_type="JOB_FORCE_ENDED",
        severity=jobs_pb2.SEVERITY_WARNING,
        message=f"Ended by force: {status}, {len(outcome.steps)} open steps closed",
        user=user,
    )


async def _fall_silent(report: Report, job_id: str, beats: int, seconds: int, event_id: str) -> None:
    if not await report.turn.writer.change(_SILENCE, job_id, beats):
        return  # it was heard of, or has ended, or is gone
    row = await report.row(job_id)
    outcome = fall_silent(await report.open_steps(job_id), seconds)
    await report.write(row, outcome)
    event = jobstore_pb2.EventRow(
        event_id=event_id,
        event_type="HEARTBEAT_MISSED",
        severity=jobs_pb2.SEVERITY_ERROR,
        message=f"The reporting system was silent for {seconds} s; what became of its job is unknown",
    )
    await report.tell(row, event)


async def _clear(report: Report, job_id: str, cleared: list[jobs_pb2.Job]) -> jobs_pb2.Job:
    try:
        row = await report.row(job_id)
    except WaybillError:
        if cleared:
            return cleared[0]
        raise
    check_clear(job_of(row))
    cleared[:] = [await report.job_message(job_id)]
    await delete_whole(report.turn, job_id)
    return cleared[0]


# --- steps -----------------------------------------------------------------------------------------------------------


async def _begin_step(report: Report, new: jobstore_pb2.NewExternalStep) -> jobs_pb2.Step:
    row = await report.row(new.job_id)
    if known := await report.step_message(new.step.step_id):
        return _same_step(known, new)
    above = await _above(report, new)
    steps, top_steps = await report.counts(new.job_id)
    check_new_step(job_of(row), above, steps)
    step = jobstore_pb2.StepRow(
        step_id=new.step.step_id,
        parent_step_id=new.step.parent_step_id,
        step_type=new.step.step_type,
        description=new.step.description,
        number=await _next_below(report, above[0]) if above else top_steps,
        status=jobs_pb2.EXECUTION_STATUS_STARTED,
        external_id=new.step.external_id,
        external_system_type=jobs_pb2.EXTERNAL_SYSTEM_TYPE_EXTERNAL if new.step.external_id else 0,  # type: ignore[arg-type]
        weight=1,
    )
    await report.begin_step(row, step)
    stored = await report.step_message(step.step_id)
    assert stored is not None  # it was written just now
    return stored


def _same_step(known: jobs_pb2.Step, new: jobstore_pb2.NewExternalStep) -> jobs_pb2.Step:
    """Returns the step that the same report has begun before. Raises REQUEST_ID_REUSED."""
    step = new.step
    stored = (known.job_id, known.parent_step_id, known.step_type, known.description, known.external_id)
    if stored != (new.job_id, step.parent_step_id, step.step_type, step.description, step.external_id):
        message = "the request id was used with another body"
        raise already_exists("REQUEST_ID_REUSED", message, step_id=known.step_id, job_id=known.job_id)
    return known


async def _above(report: Report, new: jobstore_pb2.NewExternalStep) -> list[Step]:
    """Returns the steps above a new one, the nearest first. They nest no deeper than a step may."""
    above: list[Step] = []
    step_id = new.step.parent_step_id
    while step_id:
        step, job_id = await report.step(step_id)
        if job_id != new.job_id:
            raise no_step(step_id)
        above.append(step)
        step_id = step.parent_step_id
    return above


async def _next_below(report: Report, parent: Step) -> int:
    rows = await report.turn.writer.fetch(_LAST_BELOW, parent.step_id)
    return rows[0]["number"] + 1 if rows else 0


async def _end_step(report: Report, end: jobstore_pb2.ExternalStepEnd) -> jobs_pb2.Step:
    step, job_id = await report.step(end.step_id)
    row = await report.row(job_id)
    below = await report.turn.writer.fetch(_OPEN_BELOW, end.step_id) if end.succeeded else []
    outcome = end_step(
        job_of(row),
        step,
        [] if end.succeeded else await report.open_steps(job_id),
        succeeded=end.succeeded,
        reason=end.reason,
        below=below[0]["step_id"] if below else "",
    )
    if outcome.steps:
        await report.write(row, outcome)
    stored = await report.step_message(end.step_id)
    assert stored is not None  # it was read just now
    return stored
