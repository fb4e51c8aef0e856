"""Reports about external jobs, as other systems bring them: checked, given ids, and passed on.

What becomes of them the jobstore decides, for no coordinator owns such a job. Ids are chosen here, before anything is
stored, so a report whose answer was lost is passed on again as it is. A step's id follows from its job and its request
id, so its repetition by the reporter needs no memory either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol
from uuid import UUID, uuid5

from chassis import context
from chassis.clock import Ids
from chassis.errors import invalid_field, reject_control
from coordinator import wire
from coordinator.submissions import CORRELATION_ID_RULE, MAX_NAME, checked_id, checked_job_id
from waybill.v1 import coordinator_pb2, jobs_pb2, jobstore_pb2
from waybill_spans import Context

LONGEST_TEXT: Final = 1000
"""Characters of a description, or of a reason."""
MOST_SUBJECTS: Final = 100
LONGEST_SILENCE: Final = 30 * 24 * 3600
USUAL_TYPE: Final = "External"
USUAL_STEP: Final = "EXECUTION"


class Reports(Protocol):
    """Where reports go."""

    async def report_external(
        self, report: jobstore_pb2.ReportExternalRequest
    ) -> jobstore_pb2.ReportExternalResponse: ...


class Externals:
    """Takes reports about external jobs. All raise WaybillError as the proto says."""

    def __init__(self, reports: Reports, ids: Ids) -> None:
        self._reports = reports
        self._ids = ids

    async def add_job(
        self, request: coordinator_pb2.AddExternalJobRequest, call: context.CallContext, caller: Context | None
    ) -> jobs_pb2.Job:
        """Begins a job; `caller` is the span under which it belongs, if anybody traces it."""
        _check_new_job(request)
        job = jobstore_pb2.JobRow(
            job_id=self._ids.new(),
            command_type=request.command_type or USUAL_TYPE,
            description=request.description,
            owner=call.user,
            correlation_id=request.correlation_id or call.correlation_id,
            trace_id=caller.trace_id if caller else "",
            span_id=caller.span_id if caller else "",
            subjects=request.subjects,
            auto_cleared=request.auto_cleared if request.HasField("auto_cleared") else True,
            request_id=request.request_id,
            request_hash=_body_hash(request) if request.request_id else b"",
        )
        new = jobstore_pb2.NewExternalJob(job=job, heartbeat_seconds=request.heartbeat_seconds)
        return await self._of_job(jobstore_pb2.ReportExternalRequest(user=call.user, new_job=new))

    async def add_step(
        self, request: coordinator_pb2.AddExternalStepRequest, call: context.CallContext
    ) -> jobs_pb2.Step:
        """Begins a step."""
        job_id = checked_job_id(request.job_id)
        _check_description(request.description)
        for field in ("step_type", "external_id", "request_id"):
            _check_text(field, getattr(request, field), MAX_NAME)
        step = jobstore_pb2.StepRow(
            step_id=str(uuid5(UUID(job_id), f"step {request.request_id}")) if request.request_id else self._ids.new(),
            parent_step_id=checked_id("parent_step_id", request.parent_step_id) if request.parent_step_id else "",
            step_type=request.step_type or USUAL_STEP,
            description=request.description,
            external_id=request.external_id,
        )
        new = jobstore_pb2.NewExternalStep(job_id=job_id, step=step)
        return await self._of_step(jobstore_pb2.ReportExternalRequest(user=call.user, new_step=new))

    async def end_step(
        self, request: coordinator_pb2.EndExternalStepRequest, call: context.CallContext
    ) -> jobs_pb2.Step:
        """Ends a step."""
        _check_text("reason", request.reason, LONGEST_TEXT)
        step_id = checked_id("step_id", request.step_id)
        end = jobstore_pb2.ExternalStepEnd(step_id=step_id, succeeded=request.succeeded, reason=request.reason)
        return await self._of_step(jobstore_pb2.ReportExternalRequest(user=call.user, step_end=end))

    async def end_job(self, request: coordinator_pb2.EndExternalJobRequest, call: context.CallContext) -> jobs_pb2.Job:
        """Ends a job."""
        _check_text("reason", request.reason, LONGEST_TEXT)
        end = jobstore_pb2.ExternalJobEnd(
            job_id=checked_job_id(request.job_id),
            succeeded=request.succeeded,
            force=request.force,
            reason=request.reason,
        )
        return await self._of_job(jobstore_pb2.ReportExternalRequest(user=call.user, job_end=end))

    async def clear_job(self, job_id: str, call: context.CallContext) -> jobs_pb2.Job:
        """Removes a job."""
        report = jobstore_pb2.ReportExternalRequest(user=call.user, clear_job_id=checked_job_id(job_id))
        return await self._of_job(report)

    async def heartbeat(self, job_id: str, call: context.CallContext) -> jobs_pb2.Job:
        """Says that a job is alive."""
        report = jobstore_pb2.ReportExternalRequest(user=call.user, alive_job_id=checked_job_id(job_id))
        return await self._of_job(report)

    async def _of_job(self, report: jobstore_pb2.ReportExternalRequest) -> jobs_pb2.Job:
        return (await self._reports.report_external(report)).job

    async def _of_step(self, report: jobstore_pb2.ReportExternalRequest) -> jobs_pb2.Step:
        return (await self._reports.report_external(report)).step


def _check_new_job(request: coordinator_pb2.AddExternalJobRequest) -> None:
    _check_description(request.description)
    for field in ("command_type", "request_id"):
        _check_text(field, getattr(request, field), MAX_NAME)
    if request.correlation_id and not context.valid_correlation_id(request.correlation_id):
        raise invalid_field("correlation_id", f"must be {CORRELATION_ID_RULE}", reason="CORRELATION_ID_INVALID")
    if not 0 <= request.heartbeat_seconds <= LONGEST_SILENCE:
        raise invalid_field("heartbeat_seconds", f"must be between 0 (never) and {LONGEST_SILENCE} (30 days)")
    _check_subjects(request.subjects)


def _check_subjects(subjects: Sequence[jobs_pb2.Subject]) -> None:
    if len(subjects) > MOST_SUBJECTS:
        raise invalid_field("subjects", f"are {len(subjects)}; at most {MOST_SUBJECTS} are taken")
    for number, subject in enumerate(subjects):
        where = f"subjects[{number}]"
        if subject.entity_type not in jobs_pb2.EntityType.values() or not subject.entity_type:
            raise invalid_field(f"{where}.entity_type", "must be one of EntityType")
        if not subject.entity_id:
            raise invalid_field(f"{where}.entity_id", "is required")
        _check_text(f"{where}.entity_id", subject.entity_id, MAX_NAME)
        _check_text(f"{where}.name", subject.name, MAX_NAME)


def _check_description(text: str) -> None:
    if not text.strip():
        raise invalid_field("description", "must not be blank: it is what people see of it")
    _check_text("description", text, LONGEST_TEXT)


def _check_text(field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise invalid_field(field, f"has {len(text)} characters; at most {longest} are taken")
    reject_control(field, text)


def _body_hash(request: coordinator_pb2.AddExternalJobRequest) -> bytes:
    """What makes two requests of one request id the same: everything but the correlation id."""
    body = {
        "external": True,
        "command_type": request.command_type,
        "description": request.description,
        "subjects": [[subject.entity_type, subject.entity_id, subject.name] for subject in request.subjects],
        "auto_cleared": request.auto_cleared if request.HasField("auto_cleared") else None,
        "heartbeat_seconds": request.heartbeat_seconds,
    }
    return hashlib.sha256(wire.dump_sorted(body)).digest()
