"""The gRPC face of the coordinator: requests are checked, the engine is asked, the answer is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc

import waybill_spans
from chassis import context, logs, tracing
from chassis.clock import Ids
from chassis.errors import (
    WaybillError,
    failed_precondition,
    internal,
    invalid_field,
)
from coordinator import submissions, wire
from coordinator.commands.base import Command, CommandType, Registry
from coordinator.engine.engine import Engine
from coordinator.externals import Externals
from coordinator.rows import Dependency, Job
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
        if len(request.commands) > MAX_COMMANDS:
            raise invalid_field("commands", f"are {len(request.commands)}; at most {MAX_COMMANDS} are taken")
        if request.policy not in INDEPENDENT:
            jobs = await self._run_together(request)
            results = [coordinator_pb2.RunCommandResult(job=job) for job in jobs]
            return coordinator_pb2.RunMultipleCommandsResponse(results=results)
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

    async def _run_together(self, request: coordinator_pb2.RunMultipleCommandsRequest) -> list[jobs_pb2.Job]:
        """All of them are stored, or none: what is wrong with one is wrong with the call."""
        all_or_nothing = request.policy == coordinator_pb2.MULTIPLE_POLICY_ALL_OR_NOTHING
        members: list[tuple[Job, Command, list[Dependency]]] = []
        for index, each in enumerate(request.commands):
            try:
                if each.validate_only:
                    raise invalid_field("validate_only", "is for one command, or for INDEPENDENT ones")
                if each.depends_on and all_or_nothing:
                    raise invalid_field("depends_on", "cannot be waited for by what begins together or not at all")
                dependencies = submissions.dependencies_of(each)
                job, command = submissions.read(each, self._registry, context.current(), self._ids.new())
            except WaybillError as error:
                raise submissions.located(error, f"commands[{index}].") from error
            if not all_or_nothing and members:
                dependencies.append(Dependency(members[-1][0].job_id))
            members.append((job, command, dependencies))
        if not members:
            return []
        return await self._engine.submit_together(members, all_or_nothing=all_or_nothing)

    async def _run(self, request: coordinator_pb2.RunCommandRequest) -> jobs_pb2.Job:
        job, command = submissions.read(request, self._registry, context.current(), self._ids.new())
        dependencies = submissions.dependencies_of(request) if request.depends_on else ()
        if request.validate_only:
            return await self._engine.plan_only(job, command)
        stored = await self._engine.submit(job, command, dependencies)
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
        job = job if job is not None else await self._ask_elsewhere(job_id, "CANCEL", user, reason)
        _link_to(job)
        return job

    async def SetPriority(self, request: coordinator_pb2.SetPriorityRequest, _: Context) -> jobs_pb2.Job:
        job_id = submissions.checked_job_id(request.job_id)
        priority = submissions.checked_priority(request.priority)
        reason = submissions.checked_reason(request.reason)
        user = context.current().user
        job = await self._engine.set_priority(job_id, priority, user, reason)
        if job is None:
            job = await self._ask_elsewhere(job_id, "SET_PRIORITY", user, reason, {"priority": priority})
        _link_to(job)
        return job

    async def StopTasks(self, request: coordinator_pb2.StopTasksRequest, _: Context) -> jobs_pb2.Job:
        job_id = submissions.checked_job_id(request.job_id)
        task_ids = submissions.checked_task_ids(request.task_ids)
        reason = submissions.checked_reason(request.reason)
        user = context.current().user
        job = await self._engine.stop_tasks(job_id, task_ids, user, reason)
        if job is None:
            job = await self._ask_elsewhere(job_id, "STOP_TASKS", user, reason, {"task_ids": task_ids})
        _link_to(job)
        return job

    async def _ask_elsewhere(
        self, job_id: str, kind: str, user: str, reason: str, arguments: Mapping[str, Any] | None = None
    ) -> jobs_pb2.Job:
        """The flow is another coordinator's, or over, or there is none: leaves it a wish, of a kind."""
        job = await self._stored(job_id)
        _refuse_part(job)
        if not job.flow_command_id:
            raise failed_precondition("NOT_CANCELABLE", f"job {job_id} is external: only its own system can do that")
        if job.HasField("end_time"):
            status = wire.STATUS_NAMES[job.status]
            raise failed_precondition("JOB_ENDED", f"job {job_id} has ended {status}", job_id=job_id)
        intent = jobstore_pb2.FlowRequest(
            request_id=self._ids.new(),
            flow_command_id=job.flow_command_id,
            kind=kind,
            user=user,
            reason=reason,
            arguments_json=wire.dump(arguments) if arguments else "",
        )
        await self._engine.journal.request_flow(intent, job_id)
        return job

    async def _stored(self, job_id: str) -> jobs_pb2.Job:
        return await self._engine.journal.read_job(job_id=job_id)

    async def ListCommandTypes(
        self, request: coordinator_pb2.ListCommandTypesRequest, _: Context
    ) -> coordinator_pb2.ListCommandTypesResponse:
        return coordinator_pb2.ListCommandTypesResponse(command_types=[_described(kind) for kind in self._registry])

    async def ForceEndJob(self, request: coordinator_pb2.ForceEndJobRequest, _: Context) -> jobs_pb2.Job:
        job_id = submissions.checked_job_id(request.job_id)
        reason = submissions.checked_reason(request.reason)
        if not reason.strip():
            raise invalid_field("reason", "is required: who reads the audit log will want to know")
        user = context.current().user
        if await self._engine.force_end(job_id, user, reason):
            job = await self._stored(job_id)
        else:
            job = await self._ask_elsewhere(job_id, "FORCE_END", user, reason)
        _link_to(job)
        return job

    async def RestartJob(self, request: coordinator_pb2.RestartJobRequest, _: Context) -> jobs_pb2.Job:
        job_id = submissions.checked_job_id(request.job_id)
        former = await self._stored(job_id)
        _refuse_part(former)
        if not former.HasField("end_time"):
            raise failed_precondition("JOB_NOT_ENDED", f"job {job_id} has not ended", job_id=job_id)
        rows = await self._engine.journal.load_flow_of(job_id)
        if rows is None:
            raise failed_precondition("NOT_RESTARTABLE", f"job {job_id} is external: only its own system can do that")
        if former.status == jobs_pb2.EXECUTION_STATUS_FINISHED:
            message = f"job {job_id} has ended well; to do the same again, run its command"
            raise failed_precondition("NOT_RESTARTABLE", message, job_id=job_id)
        job, command = submissions.restarted(rows, request, self._registry, context.current(), self._ids.new())
        if request.validate_only:
            return await self._engine.plan_only(job, command, rows)
        user, why = context.current().user, f": {request.reason}" if request.reason else ""
        stored = await self._engine.submit(job, command, former=rows, note=f"restarts job {job_id}, by {user}{why}")
        if stored.job_id != job.job_id:
            _link_to(stored)
        else:
            tracing.describe_call({"job.id": stored.job_id})
        return stored

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


def _refuse_part(job: jobs_pb2.Job) -> None:
    """What is asked of a child's job is to be asked of the one whose plan counts on the child."""
    if above := job.parent_job_id:
        message = f"job {job.job_id} is a part of job {above}, whose plan counts on it; ask that of job {above}"
        raise failed_precondition("PART_OF_JOB", message, job_id=above)


def _linked_to(job: jobs_pb2.Job) -> jobs_pb2.Job:
    _link_to(job)
    return job


def _link_to(job: jobs_pb2.Job) -> None:
    """A call that is about somebody else's job is part of its own trace, and points to the job's."""
    tracing.describe_call({"job.id": job.job_id})
    if job.trace_id:
        tracing.link_call(waybill_spans.Context(job.trace_id, job.span_id))


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
