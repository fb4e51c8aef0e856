"""One turn of the journal as it is used for an external job: what is read of it, and what is written.

Also what a flow that is attached to one does to it: `follow`, in the transaction of the flow's own commit.
"""

from __future__ import annotations

from typing import Final

from chassis import logs
from chassis.errors import WaybillError, not_found
from jobstore.journal import statements
from jobstore.journal.external import OPEN, End, Job, Outcome, Step, command_ended, progress, step_of
from jobstore.journal.parts import Turn
from jobstore.journal.rows import event_row, step_row
from jobstore.journal.shapes import Row as Values
from jobstore.journal.writer import Writer
from jobstore.messages import EXECUTION_STATUS, STEP_COLUMNS, Row, job_message, step_message
from waybill.v1 import jobs_pb2, jobstore_pb2

log = logs.get_logger(__name__)

_JOB: Final = """
    SELECT job.job_id, job.external, job.status::text AS status, job.correlation_id, job.command_type, job.trace_id
    FROM job WHERE job.job_id = $1
"""
_STEP: Final = """
    SELECT step_id, parent_step_id, job_id, command_id, status::text AS status FROM step WHERE step_id = $1
"""
_OPEN_STEPS: Final = """
    SELECT step_id, parent_step_id, command_id, status::text AS status FROM step
    WHERE job_id = $1 AND end_time IS NULL
"""
_COUNTS: Final = "SELECT steps, top_steps FROM external_job WHERE job_id = $1"
_READ_STEP: Final = f"SELECT {STEP_COLUMNS} FROM step WHERE step.step_id = $1"
_COUNT: Final = """
    UPDATE external_job SET steps = steps + $2, top_steps = top_steps + $3, finished_steps = finished_steps + $4,
                            beats = beats + 1
    WHERE job_id = $1 RETURNING steps, finished_steps
"""
_NOT_LISTENED_TO: Final = """
    UPDATE external_job SET heartbeat_seconds = NULL WHERE job_id = $1 AND heartbeat_seconds IS NOT NULL
"""
_JOBS: Final = """
    SELECT job_id, external, status::text AS status,
           (SELECT steps FROM external_job WHERE external_job.job_id = job.job_id) AS steps
    FROM job WHERE job_id = ANY ($1::text[])
"""


class Report:
    """What one report reads and writes, in one turn."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._begun_or_ended: list[dict[str, object]] = []

    def log(self) -> None:
        """Writes a line for each job that has begun or ended; to be called once that is committed."""
        for line in self._begun_or_ended:
            log.info("job changed status", **line, revision=self.turn.revision)

    async def knows(self, job_id: str) -> bool:
        """Tells whether there is such a job."""
        return bool(await self.turn.writer.fetch(_JOB, job_id))

    async def row(self, job_id: str) -> Row:
        """Returns the row of a job; raises JOB_NOT_FOUND."""
        for row in await self.turn.writer.fetch(_JOB, job_id):
            return row
        raise no_job(job_id)

    async def step(self, step_id: str) -> tuple[Step, str]:
        """Returns a step and its job's id; raises STEP_NOT_FOUND."""
        for row in await self.turn.writer.fetch(_STEP, step_id):
            return _step(row), row["job_id"]
        raise no_step(step_id)

    async def open_steps(self, job_id: str) -> list[Step]:
        """Returns all open steps of a job."""
        rows = await self.turn.writer.fetch(_OPEN_STEPS, job_id)
        return sorted(map(_step, rows), key=lambda step: step.step_id)

    async def counts(self, job_id: str) -> tuple[int, int]:
        """Returns how many steps a job has, and how many of them are top ones."""
        for row in await self.turn.writer.fetch(_COUNTS, job_id):
            return row["steps"], row["top_steps"]
        return 0, 0

    async def begin_step(self, job: Row, step: jobstore_pb2.StepRow) -> None:
        """Writes a new step of a job."""
        turn, rows = self.turn, [step_row(step, job["job_id"])]
        last = [job["correlation_id"]]
        await turn.writer.insert(statements.INSERT_STEPS, turn.revision, turn.time, rows=rows, last=last)
        await self.write(job, Outcome(), new_steps=1, new_top_steps=0 if step.parent_step_id else 1)

    async def write(self, job: Row, outcome: Outcome, *, new_steps: int = 0, new_top_steps: int = 0) -> None:
        """Writes what has come of a report: ended steps, counts, the job."""
        job_id, writer, turn = job["job_id"], self.turn.writer, self.turn
        steps = [_step_change(step_id, end) for step_id, end in outcome.steps.items()]
        await writer.change_each(statements.CHANGE_STEPS, turn.revision, turn.time, rows=steps)
        finished = sum(end.status == "FINISHED" for end in outcome.steps.values())
        [counts] = await writer.fetch(_COUNT, job_id, new_steps, new_top_steps, finished)
        done = progress(counts["steps"], counts["finished_steps"])
        if outcome.job is not None:
            await writer.change(_NOT_LISTENED_TO, job_id)
            self._note(job, outcome.job.status)
        change = _job_change(job_id, outcome.job or End(""), done)
        await writer.change_each(statements.CHANGE_JOBS, turn.revision, turn.time, rows=[change])
        turn.changed = True

    async def show(self, job: Row, step_id: str, status: str, done: int) -> None:
        """Writes how far an open step is."""
        turn = self.turn
        rows = [(step_id, status, str(done), "", "", "")]
        await turn.writer.change_each(statements.CHANGE_STEPS, turn.revision, turn.time, rows=rows)
        await self.write(job, Outcome())

    async def tell(self, job: Row, event: jobstore_pb2.EventRow) -> None:
        """Writes an event of a job."""
        row = event_row(event, job["job_id"])
        insert = self.turn.writer.insert
        await insert(statements.INSERT_EVENTS, self.turn.time, rows=[row], last=[job["correlation_id"]])

    async def job_message(self, job_id: str) -> jobs_pb2.Job:
        """Returns a job as it is now."""
        [row] = await self.turn.writer.fetch(statements.READ_JOBS, [job_id])
        return job_message(row)

    async def step_message(self, step_id: str) -> jobs_pb2.Step | None:
        """Returns a step as it is now; None if there is none."""
        for row in await self.turn.writer.fetch(_READ_STEP, step_id):
            return step_message(row)
        return None

    def began(self, job: jobstore_pb2.JobRow) -> None:
        """Notes a job that has begun."""
        self._note(
            {
                "job_id": job.job_id,
                "correlation_id": job.correlation_id,
                "command_type": job.command_type,
                "trace_id": job.trace_id,
            },
            "STARTED",
        )

    def _note(self, job: Row, status: str) -> None:
        ids = ("command_type", "job_id", "correlation_id", "trace_id")
        self._begun_or_ended.append({"status": status, **{name: job[name] for name in ids}})


# --- attached flows --------------------------------------------------------------------------------------------------


async def read_external_jobs(writer: Writer, job_ids: set[str]) -> dict[str, tuple[Job, int]]:
    """Returns those of the jobs that exist, each with the number of its steps."""
    rows = await writer.fetch(_JOBS, list(job_ids))
    return {row["job_id"]: (job_of(row), row["steps"] or 0) for row in rows}


async def follow(turn: Turn, commit: jobstore_pb2.FlowCommit) -> Report:
    """Has the external job show what a commit has made of the job that is a step of it; the report is to be logged."""
    report, step_id = Report(turn), step_of(commit.job_id)
    try:
        row = await report.row(commit.external_job_id)
        if commit.HasField("new_job"):
            await _attach(report, row, commit, step_id)
        step, _ = await report.step(step_id)
    except WaybillError:
        return report  # it was cleared: nobody is left to be shown anything
    if not commit.HasField("new_job") and not commit.HasField("job"):
        return report
    change = commit.new_job if commit.HasField("new_job") else commit.job
    status = _STATUS[change.status]
    if status and status not in OPEN:
        error = WaybillError.from_status(change.error) if change.HasField("error") else None
        badly = status != "FINISHED"
        outcome = command_ended(step, await report.open_steps(commit.external_job_id) if badly else (), status, error)
        if outcome.steps:
            await report.write(row, outcome)
    elif step.status in OPEN:
        await report.show(row, step_id, status, change.progress)
    return report


async def _attach(report: Report, job: Row, commit: jobstore_pb2.FlowCommit, step_id: str) -> None:
    _, top_steps = await report.counts(job["job_id"])
    new = commit.new_job
    pending = new.status == jobs_pb2.EXECUTION_STATUS_PENDING
    step = jobstore_pb2.StepRow(
        step_id=step_id,
        command_id=commit.flow_command_id,
        step_type=new.command_type,
        description=new.description,
        number=top_steps,
        status=new.status if pending else jobs_pb2.EXECUTION_STATUS_STARTED,
        span_id=new.span_id,
        subjects=new.subjects,
        weight=1,
    )
    await report.begin_step(job, step)


_STATUS: Final = {number: name or "" for name, number in EXECUTION_STATUS.items()}


# --- rows ------------------------------------------------------------------------------------------------------------


def job_of(row: Row) -> Job:
    """Returns a job as the rules look at it."""
    return Job(row["job_id"], row["external"], row["status"])


def _step(row: Row) -> Step:
    return Step(row["step_id"], row["parent_step_id"], row["status"], row["command_id"])


def _job_change(job_id: str, end: End, done: int) -> Values:
    return (job_id, end.status, "100" if end.status == "FINISHED" else str(done), "", _error(end), "")


def _step_change(step_id: str, end: End) -> Values:
    return (step_id, end.status, "100" if end.status == "FINISHED" else "0", "", "", _error(end))


def _error(end: End) -> str:
    return end.error.to_status().SerializeToString().hex() if end.error is not None else ""


def no_job(job_id: str) -> WaybillError:
    """Says that there is no such job."""
    return not_found("JOB_NOT_FOUND", f"there is no job {job_id}", job_id=job_id)


def no_step(step_id: str) -> WaybillError:
    """Says that there is no such step."""
    return not_found("STEP_NOT_FOUND", f"there is no step {step_id}", step_id=step_id)
