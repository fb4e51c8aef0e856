"""Scripted services at the far end of a real connection."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc
from waybill.v1.coordinator_pb2 import (
    CancelJobRequest,
    CommandType,
    ForceEndJobRequest,
    ListCommandTypesRequest,
    ListCommandTypesResponse,
    RestartJobRequest,
    RunCommandRequest,
    RunMultipleCommandsRequest,
    RunMultipleCommandsResponse,
    SetPriorityRequest,
    StopTasksRequest,
)
from waybill.v1.jobs_pb2 import Command, Entity, Event, ExecutionStatus, HostTask, Job, Lock
from waybill.v1.jobstore_pb2 import (
    CheckConsistencyRequest,
    CheckConsistencyResponse,
    DeleteJobRequest,
    DeleteJobResponse,
    DeleteJobsRequest,
    DeleteJobsResponse,
    GetJobRequest,
    ListCommandsRequest,
    ListCommandsResponse,
    ListEventsRequest,
    ListEventsResponse,
    ListHostTasksRequest,
    ListHostTasksResponse,
    ListJobsRequest,
    ListJobsResponse,
    ListLocksRequest,
    ListLocksResponse,
    ListStepsRequest,
    ListStepsResponse,
    PutEntitiesRequest,
    PutEntitiesResponse,
    Violation,
    WatchJobsRequest,
    WatchJobsResponse,
)

Context = grpc.aio.ServicerContext[Any, Any]
Stream = Callable[[WatchJobsRequest, Context], AsyncIterator[WatchJobsResponse]]


class ScriptedCoordinator(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers RunCommand as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[RunCommandRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.answer: Callable[[RunCommandRequest, Context], Awaitable[Job]] = accept
        self.command_types: list[CommandType] = []
        self.cancelled: list[CancelJobRequest] = []
        self.together: list[RunMultipleCommandsRequest] = []
        self.wishes: list[SetPriorityRequest | StopTasksRequest | ForceEndJobRequest | RestartJobRequest] = []

    async def RunCommand(self, request: RunCommandRequest, context: Context) -> Job:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        return await self.answer(request, context)

    async def RunMultipleCommands(
        self, request: RunMultipleCommandsRequest, context: Context
    ) -> RunMultipleCommandsResponse:
        self.together.append(request)
        answer = RunMultipleCommandsResponse()
        for command in request.commands:
            if command.command_type == "Unknown":
                answer.results.add(error=a_status(grpc.StatusCode.NOT_FOUND, "COMMAND_TYPE_UNKNOWN", "no such type"))
            else:
                answer.results.add(job=Job(job_id="j", command_type=command.command_type))
        return answer

    async def SetPriority(self, request: SetPriorityRequest, context: Context) -> Job:
        self.wishes.append(request)
        return Job(job_id=request.job_id, priority=request.priority)

    async def StopTasks(self, request: StopTasksRequest, context: Context) -> Job:
        self.wishes.append(request)
        return Job(job_id=request.job_id, status=ExecutionStatus.EXECUTION_STATUS_STARTED)

    async def RestartJob(self, request: RestartJobRequest, context: Context) -> Job:
        self.wishes.append(request)
        return Job(job_id="new", restarted_from=request.job_id, status=ExecutionStatus.EXECUTION_STATUS_STARTED)

    async def ForceEndJob(self, request: ForceEndJobRequest, context: Context) -> Job:
        self.wishes.append(request)
        return Job(job_id=request.job_id, status=ExecutionStatus.EXECUTION_STATUS_FAILED)

    async def ListCommandTypes(self, request: ListCommandTypesRequest, context: Context) -> ListCommandTypesResponse:
        return ListCommandTypesResponse(command_types=self.command_types)

    async def CancelJob(self, request: CancelJobRequest, context: Context) -> Job:
        self.cancelled.append(request)
        return Job(job_id=request.job_id, status=ExecutionStatus.EXECUTION_STATUS_STARTED)


class ScriptedJobStore(jobstore_pb2_grpc.JobStoreServicer):
    """Serves jobs from a dict, and one scripted stream after the other."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.streams: list[Stream] = []
        self.watches: list[WatchJobsRequest] = []
        self.filters: list[str] = []
        self.entities: list[Entity] = []
        self.violations: list[Violation] = []
        self.commands: list[Command] = []
        self.host_tasks: list[HostTask] = []
        self.locks: list[Lock] = []
        self.events: list[Event] = []
        self.deleted: list[str] = []
        self.asked_to_delete: list[DeleteJobsRequest] = []
        self.deletions: list[DeleteJobsResponse] = []

    async def GetJob(self, request: GetJobRequest, context: Context) -> Job:
        if request.job_id not in self.jobs:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", f"no job {request.job_id}")
        return self.jobs[request.job_id]

    async def ListJobs(self, request: ListJobsRequest, context: Context) -> ListJobsResponse:
        self.filters.append(request.filter)
        begin, size = int(request.page_token or 0), request.page_size or 50
        jobs = [job for job in self.jobs.values() if _is_of(request.filter, job.correlation_id, job.job_id)]
        more = str(begin + size) if begin + size < len(jobs) else ""
        return ListJobsResponse(jobs=jobs[begin : begin + size], next_page_token=more)

    async def ListSteps(self, request: ListStepsRequest, context: Context) -> ListStepsResponse:
        return ListStepsResponse(steps=self.jobs[request.job_id].steps)

    async def ListCommands(self, request: ListCommandsRequest, context: Context) -> ListCommandsResponse:
        commands = [each for each in self.commands if each.flow_command_id == request.flow_command_id]
        return ListCommandsResponse(commands=commands)

    async def ListHostTasks(self, request: ListHostTasksRequest, context: Context) -> ListHostTasksResponse:
        tasks = [each for each in self.host_tasks if each.correlation_id == request.correlation_id]
        return ListHostTasksResponse(host_tasks=tasks)

    async def ListLocks(self, request: ListLocksRequest, context: Context) -> ListLocksResponse:
        return ListLocksResponse(locks=self.locks)

    async def ListEvents(self, request: ListEventsRequest, context: Context) -> ListEventsResponse:
        return ListEventsResponse(events=[each for each in self.events if _is_of(request.filter, each.correlation_id)])

    async def WatchJobs(self, request: WatchJobsRequest, context: Context) -> AsyncIterator[WatchJobsResponse]:
        self.watches.append(request)
        stream = self.streams.pop(0)
        async for response in stream(request, context):
            yield response

    async def DeleteJob(self, request: DeleteJobRequest, context: Context) -> DeleteJobResponse:
        self.deleted.append(request.job_id)
        return DeleteJobResponse()

    async def DeleteJobs(self, request: DeleteJobsRequest, context: Context) -> DeleteJobsResponse:
        self.asked_to_delete.append(request)
        return self.deletions.pop(0)

    async def PutEntities(self, request: PutEntitiesRequest, context: Context) -> PutEntitiesResponse:
        self.entities.extend(request.entities)
        return PutEntitiesResponse(entities=request.entities)

    async def CheckConsistency(self, request: CheckConsistencyRequest, context: Context) -> CheckConsistencyResponse:
        return CheckConsistencyResponse(violations=self.violations)


def _is_of(filter: str, correlation_id: str, job_id: str = "") -> bool:
    """The two terms of a filter that are understood here."""
    wanted, part = re.search(r'correlation_id = "(.*?)"', filter), re.search(r'job_id = "([^"]*)\*"', filter)
    if part is not None and not (job_id.startswith(part[1]) or job_id.endswith(part[1])):
        return False
    return wanted is None or wanted[1] == correlation_id


def a_status(code: grpc.StatusCode, reason: str, message: str, **metadata: str) -> status_pb2.Status:
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="waybill", metadata=metadata))
    return status_pb2.Status(code=code.value[0], message=message, details=[detail])


async def refuse(context: Context, code: grpc.StatusCode, reason: str, message: str, **metadata: str) -> None:
    status = a_status(code, reason, message, **metadata)
    await context.send_initial_metadata((("x-correlation-id", "made-by-the-service"),))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(code, message)


async def accept(request: RunCommandRequest, context: Context) -> Job:
    return Job(job_id="j1", command_type=request.command_type, correlation_id=request.correlation_id)
