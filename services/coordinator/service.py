"""The gRPC face of the coordinator: requests are checked, the engine is asked, the answer is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from chassis import context, logs, spans, tracing
from chassis.clock import Ids
from chassis.errors import (
    WaybillError,
    failed_precondition,
    internal,
    invalid_field,
    not_available_yet,
)
from coordinator import submissions, wire
from coordinator.commands.base import CommandType, Registry
from coordinator.engine import Engine
from coordinator.externals import Externals
from waybill.v1 import coordinator_pb2, coordinator_pb2_grpc, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

log = logs.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

MAX_COMMANDS = 1000
READ_SECONDS = 5.0
INDEPENDENT = (coordinator_pb2.MULTIPLE_POLICY_UNSPECIFIED, coordinator_pb2.MULTIPLE_POLICY_INDEPENDENT)


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """See the proto for what each call does."""

    def __init__(self, engine: Engine, registry: Registry, jobs: jobstore_pb2_grpc.JobStoreStub, ids: Ids) -> None:
        self._engine = engine
        self._registry = registry
        self._jobs = jobs
        self._ids = ids
        self._externals = Externals(engine.journal, ids)

    async def RunCommand(self, request: coordinator_pb2.RunCommandRequest, _: Context) -> jobs_pb2.Job:
        return await self._run(request)

    async def RunMultipleCommands(
        self, request: coordinator_pb2.RunMultipleCommandsRequest, _: Context
    ) -> coordinator_pb2.RunMultipleCommandsResponse:
        if request.policy not in coordinator_pb2.MultiplePolicy.values():
            raise invalid_field("policy", f"there is no policy {request.policy}")
        if request.policy not in INDEPENDENT:
            raise not_available_yet(f"policy {coordinator_pb2.MultiplePolicy.Name(request.policy)}")
        if len(request.commands) > MAX_COMMANDS:
            raise invalid_field("commands", f"are {len(request.commands)}; at most {MAX_COMMANDS} are taken")
        results = await asyncio.gather(*(self._result(command) for command in request.commands))
        return coordinator_pb2.RunMultipleCommandsResponse(results=results)

    async def _result(self, request: coordinator_pb2.RunCommandRequest) -> coordinator_pb2.RunCommandResult:
        try:
            return coordinator_pb2.RunCommandResult(job=await self._run(request))
        except WaybillError as error:
            return coordinator_pb2.RunCommandResult(error=error.to_status())
        except Exception:  # one command's defect must not hide what became of the others
            log.exception("a command of several raised", command_type=request.command_type)
            return coordinator_pb2.RunCommandResult(error=internal("a defect; the log has the details").to_status())

    async def _run(self, request: coordinator_pb2.RunCommandRequest) -> jobs_pb2.Job:
        job, command = submissions.read(request, self._registry, context.current(), self._ids.new())
        if request.validate_only:
            return await self._engine.plan_only(job, command)
        stored = await self._engine.submit(job, command)
        if stored.job_id == job.job_id:
            tracing.describe_call({"job.id": stored.job_id})
        else:  # of a former request with this id, and in that one's trace
            _link_to(stored)
        return stored

    async def CancelJob(self, request: coordinator_pb2.CancelJobRequest, _: Context) -> jobs_pb2.Job:
        job_id = submissions.checked_job_id(request.job_id)
        reason = submissions.checked_reason(request.reason)
        user = context.current().user
        job = await self._engine.cancel(job_id, user, reason)
        job = job if job is not None else await self._cancel_elsewhere(job_id, user, reason)
        _link_to(job)
        return job

    async def _cancel_elsewhere(self, job_id: str, user: str, reason: str) -> jobs_pb2.Job:
        """The flow is another coordinator's, or over, or there is none."""
        job = await self._engine.journal.read_job(job_id=job_id)
        if not job.flow_command_id:
            raise failed_precondition("NOT_CANCELABLE", f"job {job_id} is external: only its own system can stop it")
        if job.HasField("end_time"):
            status = wire.STATUS_NAMES[job.status]
            raise failed_precondition("JOB_ENDED", f"job {job_id} has ended {status}", job_id=job_id)
        intent = jobstore_pb2.FlowRequest(
            request_id=self._ids.new(), flow_command_id=job.flow_command_id, kind="CANCEL", user=user, reason=reason
        )
        await self._engine.journal.request_flow(intent, job_id)
        return job

    async def ListCommandTypes(
        self, request: coordinator_pb2.ListCommandTypesRequest, _: Context
    ) -> coordinator_pb2.ListCommandTypesResponse:
        return coordinator_pb2.ListCommandTypesResponse(command_types=[_described(kind) for kind in self._registry])

    async def ForceEndJob(self, request: coordinator_pb2.ForceEndJobRequest, _: Context) -> jobs_pb2.Job:
        raise not_available_yet("ForceEndJob")

    async def RestartJob(self, request: coordinator_pb2.RestartJobRequest, _: Context) -> jobs_pb2.Job:
        raise not_available_yet("RestartJob")

    async def SetPriority(self, request: coordinator_pb2.SetPriorityRequest, _: Context) -> jobs_pb2.Job:
        raise not_available_yet("SetPriority")

    async def StopTasks(self, request: coordinator_pb2.StopTasksRequest, _: Context) -> jobs_pb2.Job:
        raise not_available_yet("StopTasks")

    # External jobs

    async def AddExternalJob(self, request: coordinator_pb2.AddExternalJobRequest, _: Context) -> jobs_pb2.Job:
        job = await self._externals.add_job(request, context.current(), tracing.parent_of_work())
        tracing.describe_call({"job.id": job.job_id})
        return job

    async def AddExternalStep(self, request: coordinator_pb2.AddExternalStepRequest, _: Context) -> jobs_pb2.Step:
        tracing.describe_call({"job.id": request.job_id})
        return await self._externals.add_step(request, context.current())

    async def EndExternalStep(self, request: coordinator_pb2.EndExternalStepRequest, _: Context) -> jobs_pb2.Step:
        step = await self._externals.end_step(request, context.current())
        tracing.describe_call({"job.id": step.job_id})
        return step

    async def EndExternalJob(self, request: coordinator_pb2.EndExternalJobRequest, _: Context) -> jobs_pb2.Job:
        return _linked_to(await self._externals.end_job(request, context.current()))

    async def ClearExternalJob(self, request: coordinator_pb2.ClearExternalJobRequest, _: Context) -> jobs_pb2.Job:
        return _linked_to(await self._externals.clear_job(request.job_id, context.current()))

    async def HeartbeatExternalJob(
        self, request: coordinator_pb2.HeartbeatExternalJobRequest, _: Context
    ) -> jobs_pb2.Job:
        return _linked_to(await self._externals.heartbeat(request.job_id, context.current()))


def _linked_to(job: jobs_pb2.Job) -> jobs_pb2.Job:
    _link_to(job)
    return job


def _link_to(job: jobs_pb2.Job) -> None:
    """A call that is about somebody else's job is part of its own trace, and points to the job's."""
    tracing.describe_call({"job.id": job.job_id})
    if job.trace_id:
        tracing.link_call(spans.Context(job.trace_id, job.span_id))


def _described(kind: CommandType) -> coordinator_pb2.CommandType:
    return coordinator_pb2.CommandType(
        name=kind.name,
        version=kind.version,
        description=kind.doc,
        categories=kind.categories,
        parameters_schema=wire.struct(kind.schema),
        monitored=kind.monitored,
        cancel=wire.CANCEL[kind.cancel],
    )
