"""The coordinator's calls under a policy: each is let through, or refused before anything comes of it.

| call | needs |
| --- | --- |
| RunCommand, each of RunMultipleCommands | `run` the type, about all the subjects |
| RestartJob | `cancel` of the job, and `run` |
| CancelJob, StopTasks, SetPriority | `cancel` of the job |
| ForceEndJob | `force` of the job |
| AddExternalJob | `run` of `external`, about all the subjects |
| the other reports about external jobs | `run` of the job: one's own, or anybody's |
| ClearExternalJob | `clear` of the job |

What somebody may not see is refused as what is not there, in the same words; what he sees and may not do, as
PERMISSION_DENIED. A command type that he may never run is unknown to him, and not listed.

Where there is no policy this is not used, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc

from chassis import context
from chassis.errors import WaybillError, not_found
from chassis.policy import CANCEL, CLEAR, EXTERNAL, FORCE, RUN, SEE, Policy, Thing, denied
from coordinator import submissions, wire
from coordinator.commands.base import CommandType, Registry
from coordinator.service import MAX_COMMANDS, CoordinatorService
from waybill.v1 import coordinator_pb2, jobs_pb2

_Rpc = grpc.aio.ServicerContext[Any, Any]

_TOGETHER: Final = (coordinator_pb2.MULTIPLE_POLICY_ALL_OR_NOTHING, coordinator_pb2.MULTIPLE_POLICY_IN_SEQUENCE)


class PermittedCoordinator(CoordinatorService):
    """The service that callers see, under a policy."""

    def __init__(self, policy: Policy, *parts: Any) -> None:
        """`parts` are those of the service without a policy."""
        super().__init__(*parts)
        self._policy = policy

    # --- commands ----------------------------------------------------------------------------------------------------

    async def RunCommand(self, request: coordinator_pb2.RunCommandRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_command(request)
        return await super().RunCommand(request, rpc)

    async def RunMultipleCommands(
        self, request: coordinator_pb2.RunMultipleCommandsRequest, rpc: _Rpc
    ) -> coordinator_pb2.RunMultipleCommandsResponse:
        """Each for itself: those that are refused are left out. Together: one that is refused refuses all."""
        if len(request.commands) > MAX_COMMANDS or request.policy in _TOGETHER:
            for command in request.commands[:MAX_COMMANDS]:
                await self._check_command(command)
            return await super().RunMultipleCommands(request, rpc)
        refusals = [await self._refusal_of(command) for command in request.commands]
        let = [command for command, refusal in zip(request.commands, refusals, strict=True) if refusal is None]
        rest = coordinator_pb2.RunMultipleCommandsRequest(commands=let, policy=request.policy)
        results = iter((await super().RunMultipleCommands(rest, rpc)).results)
        return coordinator_pb2.RunMultipleCommandsResponse(
            results=[
                next(results) if refusal is None else coordinator_pb2.RunCommandResult(error=refusal.to_status())
                for refusal in refusals
            ]
        )

    async def ListCommandTypes(
        self, request: coordinator_pb2.ListCommandTypesRequest, rpc: _Rpc
    ) -> coordinator_pb2.ListCommandTypesResponse:
        answer = await super().ListCommandTypes(request, rpc)
        scope = self._policy.scope(context.current().user, RUN)
        listed = [each for each in answer.command_types if scope.holds_type(each.name, each.categories)]
        return coordinator_pb2.ListCommandTypesResponse(command_types=listed)

    async def _refusal_of(self, command: coordinator_pb2.RunCommandRequest) -> WaybillError | None:
        try:
            await self._check_command(command)
        except WaybillError as error:
            return error
        return None

    async def _check_command(self, request: coordinator_pb2.RunCommandRequest) -> None:
        """Refuses a command that the caller may not run; one that is malformed besides is refused for that.

        Nor may he learn of jobs that he may not see, by naming them.
        """
        call = context.current()
        kind = self._registry.get(request.command_type)
        if kind is not None:
            self._check_type(kind, call.user)
        job, _ = submissions.read(request, self._registry, call, self._ids.new())
        entities = [f"{subject.entity_type}/{subject.entity_id}" for subject in job.subjects]
        thing = Thing(job.command_type, job.categories, call.user, entities)
        if not self._policy.scope(call.user, RUN).holds(thing):
            about = ", ".join(entities) or "nothing"
            raise denied(f"you may not run {job.command_type} about {about}")
        for job_id in request.depends_on:
            await self._check_job(SEE, job_id=job_id)
        if request.external_job_id:
            await self._check_job(RUN, job_id=request.external_job_id)

    def _check_type(self, kind: CommandType, user: str) -> None:
        """Refuses a type that the caller may never run as one that is not there."""
        if not self._policy.scope(user, RUN).holds_type(kind.name, kind.categories):
            Registry({}).find(kind.name)

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def CancelJob(self, request: coordinator_pb2.CancelJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(CANCEL, job_id=request.job_id)
        return await super().CancelJob(request, rpc)

    async def ForceEndJob(self, request: coordinator_pb2.ForceEndJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(FORCE, job_id=request.job_id)
        return await super().ForceEndJob(request, rpc)

    async def RestartJob(self, request: coordinator_pb2.RestartJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        thing = await self._check_job(CANCEL, job_id=request.job_id)
        user = context.current().user
        again = Thing(thing.command_type, thing.categories, user, thing.entities)
        if not self._policy.scope(user, RUN).holds(again):
            raise denied(f"you may not run {thing.command_type} again")
        return await super().RestartJob(request, rpc)

    async def SetPriority(self, request: coordinator_pb2.SetPriorityRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(CANCEL, job_id=request.job_id)
        return await super().SetPriority(request, rpc)

    async def StopTasks(self, request: coordinator_pb2.StopTasksRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(CANCEL, job_id=request.job_id)
        return await super().StopTasks(request, rpc)

    async def _check_job(self, action: str, *, job_id: str = "", step_id: str = "") -> Thing:
        """Refuses what the caller may not do to a job; returns what the job is about."""
        key = submissions.checked_id("step_id", step_id) if step_id else submissions.checked_id("job_id", job_id)
        job = await self._engine.journal.read_job(**{"step_id" if step_id else "job_id": key})
        thing, user = _thing_of(job), context.current().user
        if self._policy.scope(user, action).holds(thing):
            return thing
        if self._policy.scope(user, SEE).holds(thing):
            raise denied(f"you may not {_WORDS[action]} job {job.job_id}")
        if step_id:
            raise not_found("STEP_NOT_FOUND", f"there is no step {key}", step_id=key)
        raise not_found("JOB_NOT_FOUND", f"there is no job {key}", job_id=key)

    # --- external jobs -----------------------------------------------------------------------------------------------

    async def AddExternalJob(self, request: coordinator_pb2.AddExternalJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        user = context.current().user
        if not self._policy.scope(user, RUN).holds(Thing(EXTERNAL, (), user, _entities_of(request.subjects))):
            raise denied("you may not report such an external job")
        return await super().AddExternalJob(request, rpc)

    async def AddExternalStep(self, request: coordinator_pb2.AddExternalStepRequest, rpc: _Rpc) -> jobs_pb2.Step:
        await self._check_job(RUN, job_id=request.job_id)
        return await super().AddExternalStep(request, rpc)

    async def EndExternalStep(self, request: coordinator_pb2.EndExternalStepRequest, rpc: _Rpc) -> jobs_pb2.Step:
        if not request.step_id:
            return await super().EndExternalStep(request, rpc)  # which says what is wrong with it
        await self._check_job(RUN, step_id=request.step_id)
        return await super().EndExternalStep(request, rpc)

    async def EndExternalJob(self, request: coordinator_pb2.EndExternalJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(RUN, job_id=request.job_id)
        return await super().EndExternalJob(request, rpc)

    async def ClearExternalJob(self, request: coordinator_pb2.ClearExternalJobRequest, rpc: _Rpc) -> jobs_pb2.Job:
        await self._check_job(CLEAR, job_id=request.job_id)
        return await super().ClearExternalJob(request, rpc)

    async def HeartbeatExternalJob(
        self, request: coordinator_pb2.HeartbeatExternalJobRequest, rpc: _Rpc
    ) -> jobs_pb2.Job:
        await self._check_job(RUN, job_id=request.job_id)
        return await super().HeartbeatExternalJob(request, rpc)


def unknown_commands(policy: Policy, registry: Registry) -> list[str]:
    """Returns the command types and categories that a policy names and nothing here has: misspelt, or gone."""
    types = {kind.name for kind in registry} | {EXTERNAL, "*"}
    categories = {category for kind in registry for category in kind.categories}
    grants = [grant for grants in policy.roles.values() for grant in grants]
    unknown = {name for grant in grants for name in grant.command_types - types}
    return sorted(unknown | {f"category:{name}" for grant in grants for name in grant.categories - categories})


_WORDS: Final = {
    CANCEL: "stop or change",
    FORCE: "end by force",
    CLEAR: "delete",
    RUN: "report about",
}


def _thing_of(job: jobs_pb2.Job) -> Thing:
    kind = EXTERNAL if job.external else job.command_type
    return Thing(kind, job.categories, job.owner, _entities_of(job.subjects))


def _entities_of(subjects: Iterable[jobs_pb2.Subject]) -> list[str]:
    return [f"{wire.ENTITY_NAMES.get(each.entity_type, '')}/{each.entity_id}" for each in subjects]
