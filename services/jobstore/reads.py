"""Answers the readers' calls: proto in, checked, one question to the core, proto out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias, cast

import grpc

from chassis import context
from chassis.errors import invalid_argument, invalid_field
from jobstore.checks import (
    check_text,
    checked_correlation_id,
    checked_entity,
    checked_entity_type,
    checked_id,
    checked_interval,
    checked_name,
    checked_order,
    checked_time,
    checked_view,
)
from jobstore.feed.feed import DEFAULT_BOOKMARK_SECONDS, Feed
from jobstore.journal.deletion import Actor
from jobstore.journal.entities import Entities
from jobstore.queries.audit import Audit, key_kinds
from jobstore.queries.consistency import Consistency
from jobstore.queries.paging import Paging
from jobstore.queries.queries import Queries
from jobstore.search.fields import FILTERED, filter_field_message
from jobstore.search.filter import Filter, entity_filter, event_filter, job_filter
from jobstore.sweeper import Sweeper
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

BASIC: Final = jobs_pb2.JOB_VIEW_BASIC
TREE: Final = jobs_pb2.JOB_VIEW_TREE

_Rpc: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class JobStoreService(jobstore_pb2_grpc.JobStoreServicer):
    """The service that readers see."""

    def __init__(
        self,
        queries: Queries,
        audit: Audit,
        feed: Feed,
        consistency: Consistency,
        entities: Entities,
        sweeper: Sweeper,
    ) -> None:
        self._queries = queries
        self._audit = audit
        self._feed = feed
        self._consistency = consistency
        self._entities = entities
        self._sweeper = sweeper

    def _job_filter(self, text: str) -> Filter:
        """Returns which jobs are asked for: the seam for who may see which (`permissions.py`)."""
        return job_filter(text)

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def GetJob(self, request: jobstore_pb2.GetJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        tree = checked_view(request.view, default=TREE)
        match request.WhichOneof("key"):
            case "job_id":
                return await self._queries.get_job(checked_id("job_id", request.job_id), tree=tree)
            case "command_id":
                return await self._queries.get_job_of_command(checked_id("command_id", request.command_id), tree=tree)
        raise invalid_argument("REQUEST_INVALID", "job_id or command_id must be given", ("job_id", "must be given"))

    async def ListJobs(self, request: jobstore_pb2.ListJobsRequest, rpc: _Rpc) -> jobstore_pb2.ListJobsResponse:
        page = await self._queries.list_jobs(
            self._job_filter(request.filter),
            Paging(request, int, str),
            oldest_first=checked_order(request.order_by),
            tree=checked_view(request.view, default=BASIC),
        )
        return jobstore_pb2.ListJobsResponse(jobs=page.items, next_page_token=page.next_page_token)

    async def GetModifiedJobs(
        self, request: jobstore_pb2.GetModifiedJobsRequest, rpc: _Rpc
    ) -> jobstore_pb2.GetModifiedJobsResponse:
        by_time = request.HasField("since_time") and not request.since_revision
        return await self._queries.modified_jobs(
            checked_time("since_time", request.since_time) if by_time else request.since_revision,
            request.store_epoch,
            Paging.size_of(request),
            self._job_filter(request.filter),
        )

    def WatchJobs(  # an iterator of messages that are serialised already, which the chassis takes as well
        self, request: jobstore_pb2.WatchJobsRequest, rpc: _Rpc
    ) -> AsyncIterator[jobstore_pb2.WatchJobsResponse]:
        messages = self._feed.watch_jobs(
            self._job_filter(request.filter),
            resume_revision=request.resume_revision,
            store_epoch=request.store_epoch,
            tree=checked_view(request.view, default=BASIC),
            bookmark_interval=checked_interval(request.bookmark_interval) or DEFAULT_BOOKMARK_SECONDS,
            digest=request.digest,
        )
        return cast(AsyncIterator[jobstore_pb2.WatchJobsResponse], messages)

    async def DeleteJob(self, request: jobstore_pb2.DeleteJobRequest, rpc: _Rpc) -> jobstore_pb2.DeleteJobResponse:
        await self._sweeper.delete_job(checked_id("job_id", request.job_id), _caller())
        return jobstore_pb2.DeleteJobResponse()

    async def DeleteJobs(self, request: jobstore_pb2.DeleteJobsRequest, rpc: _Rpc) -> jobstore_pb2.DeleteJobsResponse:
        if not request.HasField("older_than"):
            raise invalid_field("older_than", "must be given")
        older_than = checked_time("older_than", request.older_than)
        return await self._sweeper.delete_older(older_than, _caller(), rpc.time_remaining())

    # --- what jobs are made of -------------------------------------------------------------------------------------

    async def ListSteps(self, request: jobstore_pb2.ListStepsRequest, rpc: _Rpc) -> jobstore_pb2.ListStepsResponse:
        page = await self._queries.list_steps(checked_id("job_id", request.job_id), Paging(request, str))
        return jobstore_pb2.ListStepsResponse(steps=page.items, next_page_token=page.next_page_token)

    async def GetStep(self, request: jobstore_pb2.GetStepRequest, rpc: _Rpc) -> jobs_pb2.Step:
        return await self._queries.get_step(checked_id("step_id", request.step_id))

    async def ListCommands(
        self, request: jobstore_pb2.ListCommandsRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListCommandsResponse:
        flow_command_id = checked_id("flow_command_id", request.flow_command_id)
        page = await self._queries.list_commands(flow_command_id, Paging(request, str))
        return jobstore_pb2.ListCommandsResponse(commands=page.items, next_page_token=page.next_page_token)

    async def ListHostTasks(
        self, request: jobstore_pb2.ListHostTasksRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListHostTasksResponse:
        check_text(request)
        of = request.entity
        job_id = checked_id("job_id", request.job_id) if request.job_id else ""
        entity = checked_entity("entity.", of.entity_type, of.entity_id) if request.HasField("entity") else None
        host_id = checked_name("host_id", request.host_id)
        correlation_id = checked_correlation_id(request.correlation_id)
        if not (job_id or entity or host_id or correlation_id):
            raise invalid_field("job_id", "one of job_id, entity, host_id, correlation_id must be given")
        page = await self._queries.list_host_tasks(
            Paging(request, int, str), job_id=job_id, entity=entity, host_id=host_id, correlation_id=correlation_id
        )
        return jobstore_pb2.ListHostTasksResponse(host_tasks=page.items, next_page_token=page.next_page_token)

    async def ListLocks(self, request: jobstore_pb2.ListLocksRequest, rpc: _Rpc) -> jobstore_pb2.ListLocksResponse:
        page = await self._queries.list_locks(Paging(request, str, str, str))
        return jobstore_pb2.ListLocksResponse(locks=page.items, next_page_token=page.next_page_token)

    async def ListEvents(self, request: jobstore_pb2.ListEventsRequest, rpc: _Rpc) -> jobstore_pb2.ListEventsResponse:
        filter = event_filter(request.filter)
        page = await self._audit.list_events(filter, Paging(request, *key_kinds(filter)))
        return jobstore_pb2.ListEventsResponse(events=page.items, next_page_token=page.next_page_token)

    # --- entities --------------------------------------------------------------------------------------------------

    async def GetEntity(self, request: jobstore_pb2.GetEntityRequest, rpc: _Rpc) -> jobs_pb2.Entity:
        check_text(request)
        return await self._queries.get_entity(*checked_entity("", request.entity_type, request.entity_id))

    async def ListEntities(
        self, request: jobstore_pb2.ListEntitiesRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListEntitiesResponse:
        entity_type = checked_entity_type("entity_type", request.entity_type)
        page = await self._queries.list_entities(entity_type, entity_filter(request.filter), Paging(request, str, str))
        return jobstore_pb2.ListEntitiesResponse(entities=page.items, next_page_token=page.next_page_token)

    async def ListFilterFields(
        self, request: jobstore_pb2.ListFilterFieldsRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListFilterFieldsResponse:
        if request.kind not in FILTERED:
            raise invalid_field("kind", f"there is no kind {request.kind}")
        return jobstore_pb2.ListFilterFieldsResponse(fields=map(filter_field_message, FILTERED[request.kind]))

    async def PutEntities(
        self, request: jobstore_pb2.PutEntitiesRequest, rpc: _Rpc
    ) -> jobstore_pb2.PutEntitiesResponse:
        return jobstore_pb2.PutEntitiesResponse(entities=await self._entities.put(request.entities))

    async def CheckConsistency(
        self, request: jobstore_pb2.CheckConsistencyRequest, rpc: _Rpc
    ) -> jobstore_pb2.CheckConsistencyResponse:
        return jobstore_pb2.CheckConsistencyResponse(violations=await self._consistency.check())


def _caller() -> Actor:
    call = context.current()
    return Actor(call.user, call.correlation_id)
