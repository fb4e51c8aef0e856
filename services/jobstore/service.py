"""The gRPC face of the journal: requests in, one call of the core, answers out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from chassis.errors import invalid_field, reject_control_in
from jobstore.feed.feed import Feed
from jobstore.journal.entities import Entities
from jobstore.journal.externaljobs import ExternalJobs
from jobstore.journal.journal import Journal
from jobstore.journal.leases import Leases
from jobstore.queries.flows import Flows
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

Rpc = grpc.aio.ServicerContext[Any, Any]

LARGEST_MESSAGE_MIB = 64
"""A coordinator's commits of one round trip, and the rows of a hundred flows."""


class JournalService(jobstore_pb2_grpc.JournalServicer):
    """waybill.v1.Journal: for coordinators alone."""

    def __init__(
        self,
        journal: Journal,
        leases: Leases,
        flows: Flows,
        entities: Entities,
        feed: Feed,
        external_jobs: ExternalJobs,
    ) -> None:
        self._journal = journal
        self._leases = leases
        self._flows = flows
        self._entities = entities
        self._feed = feed
        self._external_jobs = external_jobs

    async def Commit(self, request: jobstore_pb2.CommitRequest, context: Rpc) -> jobstore_pb2.CommitResponse:
        _require("coordinator_id", request.coordinator_id)
        return jobstore_pb2.CommitResponse(results=await self._journal.commit(request))

    async def Watch(
        self, request: jobstore_pb2.JournalWatchRequest, context: Rpc
    ) -> AsyncIterator[jobstore_pb2.JournalWatchResponse]:
        _require("coordinator_id", request.coordinator_id)
        async for response in self._feed.watch_journal(request.coordinator_id, request.resume_revision):
            yield response

    async def RenewLease(
        self, request: jobstore_pb2.RenewLeaseRequest, context: Rpc
    ) -> jobstore_pb2.RenewLeaseResponse:
        _require("coordinator_id", request.coordinator_id)
        reject_control_in(request)
        return jobstore_pb2.RenewLeaseResponse(leases=await self._leases.renew(request))

    async def ReleaseLease(
        self, request: jobstore_pb2.ReleaseLeaseRequest, context: Rpc
    ) -> jobstore_pb2.ReleaseLeaseResponse:
        await self._leases.release(request)
        return jobstore_pb2.ReleaseLeaseResponse()

    async def ClaimFlows(
        self, request: jobstore_pb2.ClaimFlowsRequest, context: Rpc
    ) -> jobstore_pb2.ClaimFlowsResponse:
        _require("coordinator_id", request.coordinator_id)
        return await self._leases.claim_flows(request)

    async def ClaimHosts(
        self, request: jobstore_pb2.ClaimHostsRequest, context: Rpc
    ) -> jobstore_pb2.ClaimHostsResponse:
        _require("coordinator_id", request.coordinator_id)
        return jobstore_pb2.ClaimHostsResponse(host_ids=await self._leases.claim_hosts(request.coordinator_id))

    async def LoadFlows(self, request: jobstore_pb2.LoadFlowsRequest, context: Rpc) -> jobstore_pb2.LoadFlowsResponse:
        return jobstore_pb2.LoadFlowsResponse(flows=await self._flows.load(request.flow_command_ids, request.job_ids))

    async def ListUntracedFlows(
        self, request: jobstore_pb2.ListUntracedFlowsRequest, context: Rpc
    ) -> jobstore_pb2.ListUntracedFlowsResponse:
        _require("coordinator_id", request.coordinator_id)
        flows, revision = await self._flows.untraced(request.coordinator_id, request.after_revision)
        return jobstore_pb2.ListUntracedFlowsResponse(flow_command_ids=flows, revision=revision)

    async def ReadEntities(
        self, request: jobstore_pb2.ReadEntitiesRequest, context: Rpc
    ) -> jobstore_pb2.ReadEntitiesResponse:
        return jobstore_pb2.ReadEntitiesResponse(entities=await self._entities.read(request.entities))

    async def ListUnclearedTasks(
        self, request: jobstore_pb2.ListUnclearedTasksRequest, context: Rpc
    ) -> jobstore_pb2.ListUnclearedTasksResponse:
        _require("host_id", request.host_id)
        tasks = await self._flows.uncleared_tasks(request.host_id, request.limit)
        return jobstore_pb2.ListUnclearedTasksResponse(task_ids=tasks)

    async def RequestFlow(
        self, request: jobstore_pb2.RequestFlowRequest, context: Rpc
    ) -> jobstore_pb2.RequestFlowResponse:
        _require("request.request_id", request.request.request_id)
        _require("request.kind", request.request.kind)
        reject_control_in(request)
        revision = await self._flows.leave_request(request.request, request.job_id)
        return jobstore_pb2.RequestFlowResponse(revision=revision)

    async def ReadJob(self, request: jobstore_pb2.ReadJobRequest, context: Rpc) -> jobstore_pb2.ReadJobResponse:
        if request.WhichOneof("key") is None:
            raise invalid_field("job_id", "job_id or step_id must be given")
        job = await self._flows.job(job_id=request.job_id, step_id=request.step_id)
        return jobstore_pb2.ReadJobResponse(job=job)

    async def ReportExternal(
        self, request: jobstore_pb2.ReportExternalRequest, context: Rpc
    ) -> jobstore_pb2.ReportExternalResponse:
        return await self._external_jobs.report(request)


def _require(field: str, value: str) -> None:
    if not value:
        raise invalid_field(field, "must be given")
