"""A VM with thousands of disks: one job of thousands of steps, which everybody can still list, read and watch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
from tests.e2e.datacentre import DISK, FINISHED, VM, DataCentre, assert_all_over, data_centre, steps_of

from waybill.v1.jobs_pb2 import JOB_VIEW_BASIC, JOB_VIEW_TREE, Entity, ExecutionStatus
from waybill_client import Complete, Upserted, where
from waybill_client.words import is_ended

DISKS = 5_000

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre that answers long before so many parts are planned, as it does by default."""
    environment = {"COORDINATOR_POLL_SECONDS": "1", "COORDINATOR_PLAN_SECONDS": "0.05"}
    async with data_centre(tmp_path_factory.mktemp("centre"), environment=environment) as centre:
        yield centre


async def test_a_vm_with_thousands_of_disks_is_removed_listed_read_and_watched(centre: DataCentre) -> None:
    disk_ids = [f"many-{number}" for number in range(DISKS)]
    await centre.client.put_entities([_entity(VM, "vm-many", disk_ids=disk_ids, memory_mb=64)])
    disks = [
        _entity(DISK, disk_id, host_id=f"host-{1 + number % 2}", volume_id=disk_id, size_mb=1)
        for number, disk_id in enumerate(disk_ids)
    ]
    for first in range(0, DISKS, 500):
        await centre.client.put_entities(disks[first : first + 500])
    job = await centre.client.run_command("RemoveVm", {"vm_id": "vm-many"}, timeout=60)
    watched = asyncio.create_task(_watched_to_the_end(centre, job.job_id))
    job = await centre.client.wait(job.job_id, timeout=200, poll_seconds=1)
    assert (job.status, job.progress) == (FINISHED, 100)
    [listed] = [each async for each in centre.client.list_jobs('entity:"VM/vm-many"', view=JOB_VIEW_BASIC)]
    assert (listed.job_id, len(listed.steps)) == (job.job_id, 0)
    deletions = steps_of(job, "DELETE_IMAGE")
    assert Counter(step.status for step in deletions) == {FINISHED: DISKS}
    assert {step.subjects[0].entity_id for step in deletions} == set(disk_ids)
    assert await asyncio.wait_for(watched, 60) == {step.step_id: step.status for step in job.steps}
    assert [entity async for entity in centre.client.list_entities(DISK, where(entity_id="many-*"))] == []
    await assert_all_over(centre, [job])


def _entity(entity_type: int, entity_id: str, **declared: object) -> Entity:
    entity = Entity(entity_type=entity_type, entity_id=entity_id)  # type: ignore[arg-type]
    entity.declared.update(declared)
    return entity


async def _watched_to_the_end(centre: DataCentre, job_id: str) -> dict[str, ExecutionStatus.ValueType]:
    """The statuses of a job's steps as a watch builds them up, from its beginning to its end.

    So many do not fit into a message: the job comes in parts, and the copy is whole again when the revision is.
    """
    steps: dict[str, ExecutionStatus.ValueType] = {}
    ended = False
    async with aclosing(centre.client.watch_jobs("type = RemoveVm", view=JOB_VIEW_TREE)) as changes:
        async for change in changes:
            if isinstance(change, Upserted) and change.job.job_id == job_id:
                steps |= {step.step_id: step.status for step in change.job.steps}
                ended = is_ended(change.job)
            elif isinstance(change, Complete) and ended:
                return steps
    raise AssertionError("the watch has ended")
