"""Children that show as jobs of their own, through the whole stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.datacentre import FINISHED, DataCentre, assert_all_finished, data_centre, outline, violations

from waybill.v1.jobs_pb2 import ExecutionStatus, Job
from waybill_client import FailedPrecondition, where

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def centre(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    async with data_centre(tmp_path_factory.mktemp("parts")) as centre:
        yield centre
        assert violations(centre.stack.jobstores[0].address) == []


async def run_with_parts(centre: DataCentre, object_id: str, **options: Any) -> Job:
    """A job of two parts at once, each a job of its own with two tasks in a row."""
    parameters = {"host_ids": ["host-1", "host-2"], "object_id": object_id, "width": 2, "depth": 2, "as_jobs": True}
    return await centre.client.run_command("BenchTree", parameters, **options)


async def parts_of(centre: DataCentre, job: Job) -> list[Job]:
    """The jobs that are parts of a job, with their steps."""
    found = [each.job_id async for each in centre.client.list_jobs(where(parent_job_id=job.job_id))]
    return [await centre.client.get_job(job_id) for job_id in sorted(found)]


@pytest.mark.rule("semantics §2: ExecutionContext decides how a command shows: as a job (default when submitted)")
async def test_the_parts_of_a_job_are_jobs_with_steps_of_their_own(centre: DataCentre) -> None:
    job = await centre.ended(await run_with_parts(centre, "whole", correlation_id="order-66"))
    parts = await parts_of(centre, job)
    assert_all_finished([job, *parts])
    assert [kind for kind, _ in outline(job)] == ["VALIDATION", "EXECUTION", "FINALIZATION"]
    for part in parts:
        assert [kind for kind, _ in outline(part)] == ["VALIDATION", "EXECUTION", "WORK", "WORK", "FINALIZATION"]
        assert (part.parent_job_id, part.flow_command_id) == (job.job_id, job.flow_command_id)
        assert (part.correlation_id, part.owner, part.visible) == ("order-66", job.owner, True)
        assert part.end_time.ToNanoseconds() <= job.end_time.ToNanoseconds()
        assert (list(part.categories), part.description) == (["bench"], "Working on 0 × 2 parts")
    assert len({part.command_id for part in parts}) == 2
    for part in parts:
        assert (await centre.client.get_job_of_command(part.command_id)).job_id == part.job_id
    assert {event.event_type for event in await centre.events(parts[0])} >= {"JOB_STARTED", "STEP_ENDED", "JOB_ENDED"}


@pytest.mark.rule("semantics §2: It carries job id, step id, correlation id, trace context, owner, visibility")
async def test_what_is_asked_of_a_part_is_refused_with_the_job_to_ask(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "outcome": "hang"})
    job = await run_with_parts(centre, "asked")
    await centre.until_running(job)
    part = (await parts_of(centre, job))[0]
    client = centre.client
    for ask in (client.cancel_job, client.stop_tasks, client.restart_job):
        with pytest.raises(FailedPrecondition) as refused:
            await ask(part.job_id)
        assert (refused.value.reason, refused.value.metadata["job_id"]) == ("PART_OF_JOB", job.job_id)
    with pytest.raises(FailedPrecondition):
        await client.set_priority(part.job_id, 5)
    with pytest.raises(FailedPrecondition):
        await client.force_end_job(part.job_id, "no more")
    await client.force_end_job(job.job_id, "no more")
    ended = [await centre.ended(job), *await parts_of(centre, job)]
    assert {each.status for each in ended} <= {ExecutionStatus.EXECUTION_STATUS_FAILED, FINISHED}
    assert ended[1].status == ended[0].status == ExecutionStatus.EXECUTION_STATUS_FAILED
    assert await client.check_consistency() == []
    await centre.behave()


@pytest.mark.rule("semantics §2: Every flow goes on, in whichever coordinator claims it")
async def test_a_part_goes_on_after_a_crash_with_its_flow(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "work_ms": 1500})
    job = await run_with_parts(centre, "crashed")
    await centre.until_running(job)
    before = [part.job_id for part in await parts_of(centre, job)]
    await centre.stack.kill(centre.stack.coordinators[0])
    job = await centre.ended(job)
    parts = await parts_of(centre, job)
    assert_all_finished([job, *parts])
    assert [part.job_id for part in parts] == before
    await centre.behave()


async def test_a_part_is_deleted_by_itself_only_when_its_whole_is_over(centre: DataCentre) -> None:
    await centre.program("host-1", {"verb": "simWork", "outcome": "hang"})
    job = await run_with_parts(centre, "deleted")

    async def one_is_over() -> bool:
        return any(part.status == FINISHED for part in await parts_of(centre, job))

    await centre.until(one_is_over)
    [over] = [part for part in await parts_of(centre, job) if part.status == FINISHED]
    with pytest.raises(FailedPrecondition) as refused:
        await centre.client.delete_job(over.job_id)
    assert refused.value.reason == "JOB_NOT_ENDED"
    await centre.client.cancel_job(job.job_id)
    await centre.ended(job)
    await centre.until_rest()  # while a host may know a task of it, it is not deleted
    await centre.client.delete_job(over.job_id)
    assert len(await parts_of(centre, job)) == 1
    await centre.behave()
