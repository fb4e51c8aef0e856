"""Commands as the engine finds them stored: of other versions, of types that are gone; and how their code runs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chassis.background import Background
from chassis.clock import ManualClock, SequentialIds
from chassis.context import CallContext
from chassis.errors import WaybillError
from coordinator import submissions
from coordinator.commands.base import DISK, Command, Registry, command
from coordinator.engine.engine import Engine
from coordinator.hosts.taskbook import TaskReport
from coordinator.plan import Child, Plan, concurrently, task
from coordinator.rows import Job
from coordinator.world import World
from waybill.v1 import hostagent_pb2, jobs_pb2, jobstore_pb2
from waybill.v1.coordinator_pb2 import RunCommandRequest

CALLS: list[str] = []


@command("StoredWork", version=3, monitored=False)
class StoredWork(Command):
    """Works on an object, which version 1 called a thing."""

    object_id: str

    @classmethod
    def upgrade(cls, version: int, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"object_id": parameters["thing"], **parameters} if version == 1 else parameters

    async def validate(self, world: World) -> None:
        CALLS.append("validate")

    async def execute(self, world: World) -> Plan:
        CALLS.append("execute")
        return task("h1", "simWork", {"object_id": self.object_id})


@command("StoredParent")
class StoredParent(Command):
    """Has a child whose type is gone beside work of its own."""

    async def execute(self, world: World) -> Plan:
        return concurrently([Child(command_type="Gone", step="GONE"), task("h1", "simWork", step="WORK")])


@command("StoredChange")
class StoredChange(Command):
    """Changes a disk, and tells how it finds it when its work has failed."""

    async def execute(self, world: World) -> Plan:
        world.change(await world.find(DISK, "d-1"), status="LOCKED")
        return task("h1", "simWork")

    async def end_with_failure(self, world: World) -> None:
        disk = await world.find(DISK, "d-1")
        CALLS.append(f"{disk.name} is {disk.status}")


REGISTRY = Registry({each.type_.name: each.type_ for each in (StoredWork, StoredParent, StoredChange)})


class Stage:
    """A store that takes everything, a host that does nothing, and an engine between them."""

    def __init__(self, background: Background) -> None:
        self.commits: list[jobstore_pb2.FlowCommit] = []
        self.specs: list[hostagent_pb2.TaskSpec] = []
        self.disk = jobs_pb2.Entity(
            entity_type=jobs_pb2.ENTITY_TYPE_DISK, entity_id="d-1", name="data", status="OK", version=1
        )
        self.clock = ManualClock(1_000_000.0)
        parts: Any = (self, self, REGISTRY, background, self.clock, SequentialIds(), random.Random(1))
        self.engine = Engine(*parts)
        self.engine.start()
        self.engine.open()

    def commit(self, commit: jobstore_pb2.FlowCommit) -> asyncio.Future[jobstore_pb2.FlowCommitResult]:
        self.commits.append(commit)
        for change in commit.entities:
            self.disk.status = change.status
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(jobstore_pb2.FlowCommitResult(revision=len(self.commits)))
        return answer

    async def read_entities(self, refs: Sequence[jobstore_pb2.EntityRef]) -> list[jobs_pb2.Entity]:
        return [self.disk for _ in refs]

    def start(
        self, host_id: str, spec: hostagent_pb2.TaskSpec, deadline: float | None, stall_seconds: float | None
    ) -> None:
        self.specs.append(spec)

    def on_entities(self, heard: Any) -> None:
        """Nothing is told of them."""

    def on_requests(self, heard: Any) -> None:
        """There are none."""

    def on_wakes(self, heard: Any) -> None:
        """Nobody waits."""

    def incarnation_of(self, host_id: str) -> str:
        return ""

    def clear(self, host_id: str, task_ids: Sequence[str]) -> None:
        """Nothing to forget."""

    def forget(self, task_ids: Sequence[str]) -> None:
        """Nobody is told of them."""

    def take_up(self, *flows: jobstore_pb2.FlowRows) -> None:
        self.engine.flows_claimed(flows)

    async def submit(self, kind: type[Command], **parameters: Any) -> jobs_pb2.Job:
        job = Job("job-1", kind.type_.name, "Working", "ada", "corr-1", parameters=parameters)
        return await self.engine.submit(job, kind.type_.read(kind.type_.version, parameters))

    async def host_says(self, result: str = "SUCCESS") -> None:
        """The host has done all that it was told to."""
        for spec in self.specs:
            self.engine.task_reported(TaskReport("h1", spec.task_id, "FINISHED", result, 100, None, None, "i1"))
        await turns()
        self.clock.advance(1.0)  # an end method of a flow that was taken up waits for its count
        await turns()

    def end_of(self, job_id: str) -> jobstore_pb2.FlowCommit:
        """The last commit of a job."""
        [commit] = [commit for commit in self.commits if commit.job_id == job_id and commit.ends_flow]
        return commit


@asynccontextmanager
async def a_stage() -> AsyncIterator[Stage]:
    async with Background() as background:
        yield Stage(background)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def stored(job_id: str, command_type: str, version: int = 1, **parameters: Any) -> jobstore_pb2.FlowRows:
    """A flow that was stored before it was planned."""
    written, started = json.dumps(parameters), jobs_pb2.EXECUTION_STATUS_STARTED
    flow_id = f"00000000-0000-7000-8000-{int.from_bytes(job_id.encode()) % 10**12:012d}"
    root = jobstore_pb2.CommandRow(
        command_id=flow_id,
        command_type=command_type,
        parameters_json=written,
        parameters_version=version,
        status=jobs_pb2.COMMAND_STATUS_NOT_STARTED,
    )
    steps = [
        jobstore_pb2.StepRow(step_id=f"v-{job_id}", step_type="VALIDATION", number=0, status=started),
        jobstore_pb2.StepRow(
            step_id=f"x-{job_id}", step_type="EXECUTION", number=1, status=jobs_pb2.EXECUTION_STATUS_PENDING
        ),
    ]
    job = jobstore_pb2.JobRow(
        job_id=job_id,
        command_type=command_type,
        status=started,
        parameters_json=written,
        correlation_id="corr-1",
        cancelable=jobs_pb2.CANCEL_KIND_NONE,
    )
    return jobstore_pb2.FlowRows(flow_command_id=flow_id, epoch=2, sequence=1, job=job, steps=steps, commands=[root])


def reason(commit: jobstore_pb2.FlowCommit) -> str:
    return WaybillError.from_status(commit.job.error).reason


@pytest.mark.rule("semantics §2: an older version goes through `upgrade(version, parameters)`")
@pytest.mark.rule("semantics §2: Unknown fields are kept and ignored")
async def test_parameters_of_an_older_version_with_unknown_fields_go_on() -> None:
    async with a_stage() as stage:
        stage.take_up(
            stored("old", "StoredWork", 1, thing="o-1", colour="red"), stored("new", "StoredWork", 3, object_id="o-2")
        )
        await turns()
        assert [dict(spec.arguments) for spec in stage.specs] == [{"object_id": "o-1"}, {"object_id": "o-2"}]
        await stage.host_says()
        assert [stage.end_of(job_id).job.status for job_id in ("old", "new")] == [
            jobs_pb2.EXECUTION_STATUS_FINISHED
        ] * 2


@pytest.mark.rule("semantics §2: a type that no longer exists fails that command alone, visibly")
async def test_a_stored_command_of_a_type_that_is_gone_fails_alone() -> None:
    async with a_stage() as stage:
        stage.take_up(stored("gone", "Gone", colour="red"), stored("other", "StoredWork", 3, object_id="o-1"))
        await turns()
        await stage.host_says()
        assert stage.end_of("gone").job.status == jobs_pb2.EXECUTION_STATUS_FAILED
        assert reason(stage.end_of("gone")) == "COMMAND_TYPE_GONE"
        assert stage.end_of("other").job.status == jobs_pb2.EXECUTION_STATUS_FINISHED


@pytest.mark.rule("semantics §2: a type that no longer exists fails that command alone, visibly")
async def test_a_child_of_a_type_that_is_gone_fails_and_what_is_beside_it_goes_on() -> None:
    async with a_stage() as stage:
        await stage.submit(StoredParent)
        assert [spec.verb for spec in stage.specs] == ["simWork"]
        await stage.host_says()
        first, last = stage.commits[0], stage.end_of("job-1")
        types = {step.step_id: step.step_type for step in first.new_steps}
        statuses = {types[step.step_id]: step.status for step in (*first.new_steps, *last.steps)}
        assert (statuses["GONE"], statuses["WORK"]) == (
            jobs_pb2.EXECUTION_STATUS_FAILED,
            jobs_pb2.EXECUTION_STATUS_FINISHED,
        )
        assert reason(last) == "COMMAND_TYPE_GONE"


@pytest.mark.rule("semantics §2: `validate()` and `execute()` run")
async def test_a_command_is_validated_and_then_executed_once() -> None:
    CALLS.clear()
    async with a_stage() as stage:
        await stage.submit(StoredWork, object_id="o-1")
        await stage.host_says()
        assert stage.end_of("job-1").job.status == jobs_pb2.EXECUTION_STATUS_FINISHED
    assert CALLS == ["validate", "execute"]


@pytest.mark.rule("semantics §6: End methods never read snapshots")
async def test_an_end_method_sees_an_entity_as_it_is_and_not_as_it_was() -> None:
    CALLS.clear()
    async with a_stage() as stage:
        await stage.submit(StoredChange)
        assert json.loads(stage.commits[0].snapshots[0].former_json)["status"] == "OK"
        await stage.host_says("CLEAN_SUCCESS")
        assert stage.end_of("job-1").job.status == jobs_pb2.EXECUTION_STATUS_FAILED
    assert CALLS == ["data is LOCKED"]


@pytest.mark.rule("semantics §2: A non-monitored command submitted by itself becomes a job with `visible = false`")
def test_a_job_of_a_command_that_is_not_monitored_is_not_visible_unless_it_is_asked_to_be() -> None:
    def visible(**asked: bool) -> bool:
        request = RunCommandRequest(command_type="StoredWork", **asked)  # type: ignore[arg-type]
        request.parameters.update({"object_id": "o-1"})
        return submissions.read(request, REGISTRY, CallContext("corr-1", user="ada"), "job-1")[0].visible

    assert (visible(), visible(visible=True)) == (False, True)
