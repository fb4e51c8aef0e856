"""The readers' calls under a policy: each shows its caller what he may see, and nothing that tells of the rest.

What is denied looks like what is missing: the same code, reason and words. Jobs are left out of lists and watches by a
condition (`search/permitted.py`); what else is listed (tasks, locks, events, violations) is looked through after it was
read, page by page, by the jobs that it is of. What is of no job, an event about a host say, is for those who may see
everything. Entities are for everybody to read; whoever declares them needs to be let.

Where there is no policy this is not used, and costs nothing. The Journal is for coordinators, which ask for nobody in
particular and see everything: until processes prove who they are, the network has to keep others from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from chassis import context
from chassis.errors import not_found
from chassis.policy import CLEAR, DECLARE, SEE, Policy, Scope, denied
from jobstore.checks import checked_id
from jobstore.queries.queries import no_job
from jobstore.reads import JobStoreService
from jobstore.search.filter import Filter
from jobstore.search.permitted import entity_of, thing_of, within
from waybill.v1 import jobs_pb2, jobstore_pb2

MOST_PAGES: Final = 20
"""That are looked through for something to show, before an empty one is answered."""

_Rpc: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Q = TypeVar("Q", jobstore_pb2.ListHostTasksRequest, jobstore_pb2.ListLocksRequest, jobstore_pb2.ListEventsRequest)
A = TypeVar("A", jobstore_pb2.ListHostTasksResponse, jobstore_pb2.ListLocksResponse, jobstore_pb2.ListEventsResponse)


class PermittedReads(JobStoreService):
    """The service that readers see, under a policy."""

    def __init__(self, policy: Policy, *parts: Any) -> None:
        """`parts` are those of the service without a policy."""
        super().__init__(*parts)
        self._policy = policy

    # --- jobs ------------------------------------------------------------------------------------------------------

    def _job_filter(self, text: str) -> Filter:
        return within(super()._job_filter(text), self._scope(SEE))

    async def GetJob(self, request: jobstore_pb2.GetJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        job = await super().GetJob(request, rpc)
        if not self._scope(SEE).holds(thing_of(job)):
            raise no_job((request.job_id or request.command_id).lower())
        return job

    async def DeleteJob(self, request: jobstore_pb2.DeleteJobRequest, rpc: _Rpc) -> jobstore_pb2.DeleteJobResponse:
        job_id = checked_id("job_id", request.job_id)
        thing = thing_of(await self._queries.get_job(job_id, tree=False))
        if not self._scope(CLEAR).holds(thing):
            if not self._scope(SEE).holds(thing):
                raise no_job(job_id)
            raise denied(f"you may not delete job {job_id}")
        return await super().DeleteJob(request, rpc)

    async def DeleteJobs(self, request: jobstore_pb2.DeleteJobsRequest, rpc: _Rpc) -> jobstore_pb2.DeleteJobsResponse:
        if not self._scope(CLEAR).is_boundless:
            raise denied("you may not delete the jobs of everybody; DeleteJob deletes one")
        return await super().DeleteJobs(request, rpc)

    # --- what jobs are made of -------------------------------------------------------------------------------------

    async def ListSteps(self, request: jobstore_pb2.ListStepsRequest, rpc: _Rpc) -> jobstore_pb2.ListStepsResponse:
        job_id = request.job_id.lower()
        answer = await super().ListSteps(request, rpc)
        if not await self._visible([job_id]):
            raise no_job(job_id)
        return answer

    async def GetStep(self, request: jobstore_pb2.GetStepRequest, rpc: _Rpc) -> jobs_pb2.Step:
        step = await super().GetStep(request, rpc)
        if not await self._visible([step.job_id]):
            raise not_found("STEP_NOT_FOUND", f"there is no step {step.step_id}", step_id=step.step_id)
        return step

    async def ListCommands(
        self, request: jobstore_pb2.ListCommandsRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListCommandsResponse:
        answer = await super().ListCommands(request, rpc)
        flow = request.flow_command_id.lower()
        job = await self._queries.get_job_of_command(flow, tree=False)
        if not self._scope(SEE).holds(thing_of(job)):
            raise not_found("JOB_NOT_FOUND", f"there is no flow {flow}", flow_command_id=flow)
        return answer

    async def ListHostTasks(
        self, request: jobstore_pb2.ListHostTasksRequest, rpc: _Rpc
    ) -> jobstore_pb2.ListHostTasksResponse:
        return await self._shown(request, lambda page: super(PermittedReads, self).ListHostTasks(page, rpc))

    async def ListLocks(self, request: jobstore_pb2.ListLocksRequest, rpc: _Rpc) -> jobstore_pb2.ListLocksResponse:
        return await self._shown(request, lambda page: super(PermittedReads, self).ListLocks(page, rpc))

    async def ListEvents(self, request: jobstore_pb2.ListEventsRequest, rpc: _Rpc) -> jobstore_pb2.ListEventsResponse:
        return await self._shown(request, lambda page: super(PermittedReads, self).ListEvents(page, rpc))

    async def CheckConsistency(
        self, request: jobstore_pb2.CheckConsistencyRequest, rpc: _Rpc
    ) -> jobstore_pb2.CheckConsistencyResponse:
        answer = await super().CheckConsistency(request, rpc)
        visible = await self._visible(violation.job_id for violation in answer.violations)
        shown = [violation for violation in answer.violations if violation.job_id in visible]
        return jobstore_pb2.CheckConsistencyResponse(violations=shown)

    # --- entities --------------------------------------------------------------------------------------------------

    async def PutEntities(
        self, request: jobstore_pb2.PutEntitiesRequest, rpc: _Rpc
    ) -> jobstore_pb2.PutEntitiesResponse:
        scope = self._scope(DECLARE)
        for entity in request.entities:
            if not scope.holds_entity(entity_of(entity)):
                raise denied(f"you may not declare {entity_of(entity)}")
        return await super().PutEntities(request, rpc)

    # --- what is permitted -----------------------------------------------------------------------------------------

    def _scope(self, action: str) -> Scope:
        return self._policy.scope(context.current().user, action)

    async def _visible(self, job_ids: Iterable[str]) -> frozenset[str]:
        """Returns those of the jobs that the caller may see; the empty id, of no job, if he may see everything."""
        scope, asked = self._scope(SEE), frozenset(job_ids)
        if scope.is_boundless:
            return asked
        jobs = await self._queries.get_jobs(asked - {""})
        return frozenset(job.job_id for job in jobs if scope.holds(thing_of(job)))

    async def _shown(self, request: Q, ask: Callable[[Q], Awaitable[A]]) -> A:
        """Looks through pages until there is something to show."""
        page = type(request)()
        page.CopyFrom(request)
        for _ in range(MOST_PAGES):
            answer = await ask(page)
            items = _items(answer)
            visible = await self._visible(item.job_id for item in items)
            shown = [item for item in items if item.job_id in visible]
            if shown or not answer.next_page_token:
                break
            page.page_token = answer.next_page_token
        shown_page = type(answer)(next_page_token=answer.next_page_token)
        _items(shown_page).extend(shown)
        return shown_page


def _items(answer: Any) -> Any:
    """The repeated field of a page."""
    return next(getattr(answer, field.name) for field in answer.DESCRIPTOR.fields if field.message_type is not None)
