"""The client: one object for both services. Commands go to the coordinator, reading goes to the jobstore."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc
from opentelemetry.trace import TracerProvider

from waybill.v1 import coordinator_pb2 as coordinator
from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc
from waybill.v1 import jobstore_pb2 as jobstore
from waybill.v1.jobs_pb2 import (
    Command,
    DependencyPolicy,
    Entity,
    EntityType,
    Event,
    HostTask,
    Job,
    JobView,
    Lock,
    Step,
    Subject,
)
from waybill_client.calls import Caller, pages
from waybill_client.channels import check, open_channel
from waybill_client.errors import DeadlineExceeded, Unavailable, WaybillError
from waybill_client.filters import where
from waybill_client.tracing import call_spans
from waybill_client.view import JobsView
from waybill_client.watch import Complete, JobChange, JobWatch, Marked, Removed
from waybill_client.words import is_ended, struct, timestamp

DEFAULT_COORDINATOR = "127.0.0.1:50051"
DEFAULT_JOBSTORE = "127.0.0.1:50052"


class WaybillClient:
    """Runs commands, and reads and watches what becomes of them.

    Addresses come from WAYBILL_COORDINATOR and WAYBILL_JOBSTORE unless given; each may be several with commas between
    them. `timeout` is the deadline of every call in seconds. `wait_for_ready` waits that long for a service that is
    away instead of giving up after a second or two. `tracer_provider` makes the calls' spans; by default the one that
    the application has set up for OpenTelemetry. With `traces_endpoint`, the `host:port` of an OTLP/gRPC collector, the
    client makes and delivers them itself, below the application's current span if it has one.

        async with WaybillClient() as client:
            job = await client.run_command("RemoveVm", {"vm_id": "vm-1"})
            job = await client.wait(job.job_id)
    """

    def __init__(
        self,
        coordinator: str | None = None,
        jobstore: str | None = None,
        *,
        user: str = "",
        timeout: float = 10.0,
        wait_for_ready: bool = False,
        tracer_provider: TracerProvider | None = None,
        traces_endpoint: str = "",
    ) -> None:
        """Raises ValueError for what is no address, and for both `traces_endpoint` and `tracer_provider`."""
        self.coordinator_address = coordinator or os.environ.get("WAYBILL_COORDINATOR") or DEFAULT_COORDINATOR
        self.jobstore_address = jobstore or os.environ.get("WAYBILL_JOBSTORE") or DEFAULT_JOBSTORE
        check("coordinator", self.coordinator_address)
        check("jobstore", self.jobstore_address)
        self._spans = call_spans(tracer_provider, traces_endpoint)
        self._runs = Caller(f"coordinator at {self.coordinator_address}", user, timeout, wait_for_ready, self._spans)
        self._reads = Caller(f"jobstore at {self.jobstore_address}", user, timeout, wait_for_ready, self._spans)
        self._channels = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls under way are cancelled, jobs are not. Spans of its own are delivered first."""
        try:
            await self._spans.close()
        finally:
            await self._channels.aclose()

    # Commands

    async def run_command(
        self,
        command_type: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        request_id: str | None = None,
        correlation_id: str = "",
        validate_only: bool = False,
        priority: int = 0,
        depends_on: Sequence[str] = (),
        dependency_policy: DependencyPolicy.ValueType = DependencyPolicy.DEPENDENCY_POLICY_UNSPECIFIED,
        deadline: datetime | None = None,
        visible: bool | None = None,
        external_job_id: str = "",
        timeout: float | None = None,
    ) -> Job:
        """Runs a command and returns its job as soon as it is durable; `wait` for its end.

        It begins when the jobs of `depends_on` have ended; if one does not end FINISHED, `dependency_policy` counts.

        A request id is made unless given, so that a repeat after UNAVAILABLE cannot make a second job. With
        `validate_only` nothing is stored: the job shows the planned steps, or FAILED with the reason. With
        `external_job_id` a step of that external job shows it, too.
        """
        request = command_request(
            command_type,
            parameters,
            request_id=request_id,
            correlation_id=correlation_id,
            validate_only=validate_only,
            priority=priority,
            depends_on=depends_on,
            dependency_policy=dependency_policy,
            deadline=deadline,
            visible=visible,
            external_job_id=external_job_id,
        )
        return await self._runs.call(
            self._coordinator.RunCommand, request, correlation_id=correlation_id, timeout=timeout
        )

    async def run_multiple_commands(
        self,
        commands: Iterable[coordinator.RunCommandRequest],
        *,
        policy: coordinator.MultiplePolicy.ValueType = coordinator.MULTIPLE_POLICY_INDEPENDENT,
        timeout: float | None = None,
    ) -> list[Job | WaybillError]:
        """Runs several commands (of `command_request`) in one call; what became of each, in their order.

        Only INDEPENDENT ones are refused one by one: by the other policies all become jobs, or the call is refused.
        """
        request = coordinator.RunMultipleCommandsRequest(commands=commands, policy=policy)
        answer = await self._runs.call(self._coordinator.RunMultipleCommands, request, timeout=timeout)
        return [each.job if each.HasField("job") else WaybillError.from_status(each.error) for each in answer.results]

    async def cancel_job(self, job_id: str, reason: str = "") -> Job:
        """Asks a job to stop; returns it as it is after the wish was taken, which is not its end."""
        return await self._runs.call(
            self._coordinator.CancelJob, coordinator.CancelJobRequest(job_id=job_id, reason=reason)
        )

    async def unended_jobs(self, filter: str) -> list[Job]:
        """All jobs that match now and have not ended. Raises InvalidArgument for a filter that is none."""
        unended = "status = (PENDING OR STARTED)"
        # AND binds loosest, so no parentheses; the filter goes first, so that a refusal's place is right.
        return [job async for job in self.list_jobs(f"{filter} AND {unended}" if filter else unended)]

    async def cancel_jobs(
        self, jobs: Iterable[Job], reason: str = ""
    ) -> AsyncIterator[tuple[Job, WaybillError | None]]:
        """Asks several jobs to stop: those of `unended_jobs`, so that whoever looked at them first cancels no others.

        Yields each as it is after the wish was taken; or as it was given, with the refusal.
        """
        for job in jobs:
            try:
                asked = await self.cancel_job(job.job_id, reason)
            except WaybillError as refusal:
                yield job, refusal
            else:
                yield asked, None

    async def set_priority(self, job_id: str, priority: int, reason: str = "") -> Job:
        """Changes the priority of a job and of its tasks that wait; FailedPrecondition JOB_ENDED if it is over."""
        request = coordinator.SetPriorityRequest(job_id=job_id, priority=priority, reason=reason)
        return await self._runs.call(self._coordinator.SetPriority, request)

    async def stop_tasks(self, job_id: str, task_ids: Iterable[str] = (), reason: str = "") -> Job:
        """Has hosts stop tasks of a job, all if none is named; what that means for the job is up to its plan."""
        request = coordinator.StopTasksRequest(job_id=job_id, task_ids=task_ids, reason=reason)
        return await self._runs.call(self._coordinator.StopTasks, request)

    async def force_end_job(self, job_id: str, reason: str) -> Job:
        """Ends a job that is stuck, whatever it is doing; its tasks are stopped and cleared, its locks are free."""
        request = coordinator.ForceEndJobRequest(job_id=job_id, reason=reason)
        return await self._runs.call(self._coordinator.ForceEndJob, request)

    async def restart_job(
        self, job_id: str, reason: str = "", *, request_id: str | None = None, validate_only: bool = False
    ) -> Job:
        """Runs a job that did not end well again from where it failed; returns the new job, `restarted_from` it.

        With `validate_only` nothing is stored: steps that would be reused are FINISHED, the others PENDING, and
        `compensations` has what would be undone if it failed. A request id is made unless given.
        """
        if request_id is None:
            request_id = "" if validate_only else str(uuid4())
        request = coordinator.RestartJobRequest(
            job_id=job_id, reason=reason, request_id=request_id, validate_only=validate_only
        )
        return await self._runs.call(self._coordinator.RestartJob, request)

    async def list_command_types(self) -> list[coordinator.CommandType]:
        """The command types that can be run, by name."""
        answer = await self._runs.call(self._coordinator.ListCommandTypes, coordinator.ListCommandTypesRequest())
        return list(answer.command_types)

    # External jobs: work that another system does, and reports

    async def add_external_job(
        self,
        description: str,
        *,
        command_type: str = "",
        subjects: Iterable[Subject] = (),
        request_id: str | None = None,
        correlation_id: str = "",
        auto_cleared: bool = True,
        heartbeat_seconds: int = 0,
    ) -> Job:
        """Reports a job of another system: it is STARTED until `end_external_job`.

        With `heartbeat_seconds` it must be heard of that often (`heartbeat_external_job`, or a report that changes it),
        else it ends UNKNOWN. A request id is made unless given, so that a repeat cannot make a second job.
        """
        request = coordinator.AddExternalJobRequest(
            description=description,
            command_type=command_type,
            subjects=subjects,
            request_id=str(uuid4()) if request_id is None else request_id,
            correlation_id=correlation_id,
            auto_cleared=auto_cleared,
            heartbeat_seconds=heartbeat_seconds,
        )
        return await self._runs.call(self._coordinator.AddExternalJob, request, correlation_id=correlation_id)

    async def add_external_step(
        self,
        job_id: str,
        description: str,
        *,
        step_type: str = "",
        parent_step_id: str = "",
        external_id: str = "",
        request_id: str | None = None,
    ) -> Step:
        """Adds a step to an external job, below another one if that is named: it is STARTED."""
        request = coordinator.AddExternalStepRequest(
            job_id=job_id,
            parent_step_id=parent_step_id,
            step_type=step_type,
            description=description,
            external_id=external_id,
            request_id=str(uuid4()) if request_id is None else request_id,
        )
        return await self._runs.call(self._coordinator.AddExternalStep, request)

    async def end_external_step(self, step_id: str, *, succeeded: bool = True, reason: str = "") -> Step:
        """Ends a step of an external job; one that failed fails the job."""
        request = coordinator.EndExternalStepRequest(step_id=step_id, succeeded=succeeded, reason=reason)
        return await self._runs.call(self._coordinator.EndExternalStep, request)

    async def end_external_job(
        self, job_id: str, *, succeeded: bool = True, force: bool = False, reason: str = ""
    ) -> Job:
        """Ends an external job. With steps open it can only have failed, unless they are aborted by `force`."""
        request = coordinator.EndExternalJobRequest(job_id=job_id, succeeded=succeeded, force=force, reason=reason)
        return await self._runs.call(self._coordinator.EndExternalJob, request)

    async def clear_external_job(self, job_id: str) -> Job:
        """Removes an ended external job; returns what it was. NotFound once it is gone."""
        request = coordinator.ClearExternalJobRequest(job_id=job_id)
        return await self._runs.call(self._coordinator.ClearExternalJob, request)

    async def heartbeat_external_job(self, job_id: str) -> Job:
        """Says that an external job is still alive. FailedPrecondition once it has ended, UNKNOWN perhaps."""
        request = coordinator.HeartbeatExternalJobRequest(job_id=job_id)
        return await self._runs.call(self._coordinator.HeartbeatExternalJob, request)

    # Jobs

    async def list_filter_fields(
        self, kind: jobstore.FilteredKind.ValueType = jobstore.FILTERED_KIND_JOBS
    ) -> list[jobstore.FilterField]:
        """The fields that filters of jobs, events or entities may name."""
        answer = await self._reads.call(self._jobstore.ListFilterFields, jobstore.ListFilterFieldsRequest(kind=kind))
        return list(answer.fields)

    async def get_job(self, job_id: str, view: JobView.ValueType = JobView.JOB_VIEW_TREE) -> Job:
        """One job, with its steps unless the view is BASIC."""
        return await self._reads.call(self._jobstore.GetJob, jobstore.GetJobRequest(job_id=job_id, view=view))

    async def get_job_of_command(self, command_id: str, view: JobView.ValueType = JobView.JOB_VIEW_TREE) -> Job:
        """The job of a flow, by the id of any command of it."""
        return await self._reads.call(self._jobstore.GetJob, jobstore.GetJobRequest(command_id=command_id, view=view))

    def list_jobs(
        self,
        filter: str = "",
        *,
        order_by: str = "",
        view: JobView.ValueType = JobView.JOB_VIEW_BASIC,
        page_size: int = 0,
    ) -> AsyncIterator[Job]:
        """All jobs that match, newest first unless ordered `create_time`; pages are fetched as they are needed."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListJobs,
                jobstore.ListJobsRequest(
                    filter=filter, order_by=order_by, view=view, page_size=page_size, page_token=token
                ),
            ),
            lambda page: page.jobs,
        )

    async def get_modified_jobs(
        self,
        since_revision: int = 0,
        *,
        since_time: datetime | None = None,
        store_epoch: str = "",
        filter: str = "",
        page_size: int = 0,
    ) -> jobstore.GetModifiedJobsResponse:
        """What changed since a revision or a time of what matches; ask again with the answer's revision."""
        request = jobstore.GetModifiedJobsRequest(
            since_revision=since_revision,
            since_time=timestamp(since_time) if since_time else None,
            store_epoch=store_epoch,
            filter=filter,
            page_size=page_size,
        )
        return await self._reads.call(self._jobstore.GetModifiedJobs, request)

    def watch_jobs(
        self,
        filter: str = "",
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_BASIC,
        resume_revision: int = 0,
        store_epoch: str = "",
        bookmark_interval: int = 0,
        digest: bool = False,
        give_up_after: float = math.inf,
    ) -> AsyncGenerator[JobChange]:
        """Every change of the matching jobs, as `waybill_client.watch` describes; for ever, unless the caller stops.

        It resumes by itself. Once connected, a jobstore that stays away for `give_up_after` seconds raises Unavailable.
        """
        request = jobstore.WatchJobsRequest(
            filter=filter,
            view=view,
            resume_revision=resume_revision,
            store_epoch=store_epoch,
            bookmark_interval=bookmark_interval,
            digest=digest,
        )
        return JobWatch(self._jobstore.WatchJobs, request, self._reads, give_up_after=give_up_after).changes()

    async def follow_job(
        self,
        job_id: str,
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_TREE,
        poll_seconds: int = 5,
        give_up_after: float = math.inf,
    ) -> AsyncGenerator[Job]:
        """The job each time that it has changed, whole; the last one has ended. NotFound if there is no such job.

        The watch tells. The net beneath it: whenever it was idle for `poll_seconds`, the job is read.
        """
        job = await self.get_job(job_id, view)
        yield job
        copy, opening = JobsView(), True  # the first bookmark only says that the stream has caught up
        changes = self.watch_jobs(
            where(job_id=job_id), view=view, bookmark_interval=poll_seconds, give_up_after=give_up_after
        )
        async with aclosing(changes):
            while not is_ended(job):
                change = await anext(changes)
                copy.apply(change)
                # A large tree comes in several messages: what is shown of it before the last one was never true.
                newer = copy.get(job_id) if isinstance(change, Complete | Marked) else None
                if isinstance(change, Removed) or (isinstance(change, Marked) and not opening):
                    newer = await self._asked_again(job_id, view)
                opening = opening and not isinstance(change, Marked)
                if newer is not None and newer.revision > job.revision:
                    job = newer
                    yield job

    async def _asked_again(self, job_id: str, view: JobView.ValueType) -> Job | None:
        """The job as it is now; None if nobody answers just now, which the watch will find out for itself."""
        with suppress(Unavailable, DeadlineExceeded):
            return await self.get_job(job_id, view)
        return None

    async def wait(
        self,
        job_id: str,
        *,
        view: JobView.ValueType = JobView.JOB_VIEW_TREE,
        timeout: float | None = None,
        poll_seconds: int = 5,
        give_up_after: float = math.inf,
    ) -> Job:
        """The job once it has ended, well or not; TimeoutError after `timeout` seconds, which leaves it running."""
        states = self.follow_job(job_id, view=view, poll_seconds=poll_seconds, give_up_after=give_up_after)
        async with asyncio.timeout(timeout), aclosing(states):
            job = await anext(states)
            async for job in states:  # noqa: B007 - the last one is the answer
                pass
        return job

    async def delete_job(self, job_id: str) -> None:
        """Deletes an ended job, whole. NotFound; FailedPrecondition for JOB_NOT_ENDED and TASKS_NOT_CLEARED."""
        await self._reads.call(self._jobstore.DeleteJob, jobstore.DeleteJobRequest(job_id=job_id))

    async def delete_jobs(self, older_than: datetime, *, timeout: float = 60.0) -> jobstore.DeleteJobsResponse:
        """Deletes all jobs that ended before a time, but for those that have to stay, of which it says how many.

        It asks as often as it takes; `timeout` is that of each call.
        """
        request = jobstore.DeleteJobsRequest(older_than=timestamp(older_than))
        deleted = 0
        while True:
            answer = await self._reads.call(self._jobstore.DeleteJobs, request, timeout=timeout)
            deleted += answer.deleted
            if answer.complete:
                answer.deleted = deleted
                return answer

    # What jobs are made of

    def list_steps(self, job_id: str, *, page_size: int = 0) -> AsyncIterator[Step]:
        """The steps of a job, parents before children, by number."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListSteps,
                jobstore.ListStepsRequest(job_id=job_id, page_size=page_size, page_token=token),
            ),
            lambda page: page.steps,
        )

    async def get_step(self, step_id: str) -> Step:
        """One step."""
        return await self._reads.call(self._jobstore.GetStep, jobstore.GetStepRequest(step_id=step_id))

    def list_commands(self, flow_command_id: str, *, page_size: int = 0) -> AsyncIterator[Command]:
        """The commands of a flow, parents before children."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListCommands,
                jobstore.ListCommandsRequest(flow_command_id=flow_command_id, page_size=page_size, page_token=token),
            ),
            lambda page: page.commands,
        )

    def list_host_tasks(
        self,
        *,
        job_id: str = "",
        entity: tuple[EntityType.ValueType, str] | None = None,
        host_id: str = "",
        correlation_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[HostTask]:
        """Begun tasks, calls and waits, newest first; what is given must all match, something must be given."""
        subject = Subject(entity_type=entity[0], entity_id=entity[1]) if entity else None
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListHostTasks,
                jobstore.ListHostTasksRequest(
                    job_id=job_id,
                    entity=subject,
                    host_id=host_id,
                    correlation_id=correlation_id,
                    page_size=page_size,
                    page_token=token,
                ),
            ),
            lambda page: page.host_tasks,
        )

    def list_locks(self, *, page_size: int = 0) -> AsyncIterator[Lock]:
        """All locks that flows hold now."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListLocks, jobstore.ListLocksRequest(page_size=page_size, page_token=token)
            ),
            lambda page: page.locks,
        )

    def list_events(self, filter: str = "", *, page_size: int = 0) -> AsyncIterator[Event]:
        """The audit log, oldest first; those of steps only if the filter names a job or a correlation id."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListEvents,
                jobstore.ListEventsRequest(filter=filter, page_size=page_size, page_token=token),
            ),
            lambda page: page.events,
        )

    # Entities

    async def get_entity(self, entity_type: EntityType.ValueType, entity_id: str) -> Entity:
        """One entity."""
        return await self._reads.call(
            self._jobstore.GetEntity, jobstore.GetEntityRequest(entity_type=entity_type, entity_id=entity_id)
        )

    def list_entities(
        self,
        entity_type: EntityType.ValueType = EntityType.ENTITY_TYPE_UNSPECIFIED,
        filter: str = "",
        *,
        page_size: int = 0,
    ) -> AsyncIterator[Entity]:
        """Entities of a type, or of all types, by id."""
        return pages(
            lambda token: self._reads.call(
                self._jobstore.ListEntities,
                jobstore.ListEntitiesRequest(
                    entity_type=entity_type, filter=filter, page_size=page_size, page_token=token
                ),
            ),
            lambda page: page.entities,
        )

    async def put_entities(self, entities: Iterable[Entity]) -> list[Entity]:
        """Declares entities, all in one revision or none; returns them as stored."""
        answer = await self._reads.call(self._jobstore.PutEntities, jobstore.PutEntitiesRequest(entities=entities))
        return list(answer.entities)

    # The whole

    async def check_consistency(self, *, timeout: float = 60.0) -> list[jobstore.Violation]:
        """Every violation of what must always hold; empty when all is well."""
        answer = await self._reads.call(
            self._jobstore.CheckConsistency, jobstore.CheckConsistencyRequest(), timeout=timeout
        )
        return list(answer.violations)

    @cached_property
    def _coordinator(self) -> coordinator_pb2_grpc.CoordinatorStub:
        return coordinator_pb2_grpc.CoordinatorStub(self._open(self.coordinator_address))

    @cached_property
    def _jobstore(self) -> jobstore_pb2_grpc.JobStoreStub:
        return jobstore_pb2_grpc.JobStoreStub(self._open(self.jobstore_address))

    def _open(self, addresses: str) -> grpc.aio.Channel:
        channel = open_channel(addresses)
        self._channels.push_async_callback(channel.close)
        return channel


def command_request(
    command_type: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    request_id: str | None = None,
    correlation_id: str = "",
    validate_only: bool = False,
    priority: int = 0,
    depends_on: Sequence[str] = (),
    dependency_policy: DependencyPolicy.ValueType = DependencyPolicy.DEPENDENCY_POLICY_UNSPECIFIED,
    deadline: datetime | None = None,
    visible: bool | None = None,
    external_job_id: str = "",
) -> coordinator.RunCommandRequest:
    """One command to run. A request id is made unless given or empty; `validate_only` needs none."""
    if request_id is None:
        request_id = "" if validate_only else str(uuid4())
    return coordinator.RunCommandRequest(
        command_type=command_type,
        parameters=struct(parameters or {}),
        request_id=request_id,
        correlation_id=correlation_id,
        validate_only=validate_only,
        priority=priority,
        depends_on=depends_on,
        dependency_policy=dependency_policy,
        deadline=timestamp(deadline) if deadline else None,
        visible=visible,
        external_job_id=external_job_id,
    )
