"""The audit log: what was stored and what jobs and steps tell, in one order."""

from __future__ import annotations

import pytest
from tests.integration.jobstore.scribe import Scribe

from chassis.errors import not_found
from jobstore.queries.audit import Audit, key_kinds
from jobstore.queries.paging import Page, Paging
from jobstore.search.filter import event_filter
from waybill.v1 import jobs_pb2
from waybill.v1.jobstore_pb2 import ListEventsRequest


async def page_of_events(audit: Audit, filter: str = "", **fields: object) -> Page[jobs_pb2.Event]:
    parsed = event_filter(filter)
    request = ListEventsRequest(filter=filter, **fields)  # type: ignore[arg-type]
    return await audit.list_events(parsed, Paging(request, *key_kinds(parsed)))


async def told(audit: Audit, filter: str = "") -> list[str]:
    return [event.message for event in (await page_of_events(audit, filter)).items]


async def a_removal(scribe: Scribe, correlation_id: str = "c-1") -> str:
    """A job with two deletions of which one fails, in three commits."""
    ids = {"correlation_id": correlation_id}
    failure = not_found("OBJECT_NOT_FOUND", "no such volume").to_status().SerializeToString()
    async with scribe.revision():
        job_id = await scribe.add_job(description="Removing VM web", owner="anna", **ids)
        await scribe.add_step(job_id, description="Validation", number=0, status="FINISHED", **ids)
        execution = await scribe.add_step(job_id, description="Execution", number=1, status="STARTED", **ids)
        disks = [
            await scribe.add_step(
                job_id,
                parent_step_id=execution,
                description=f"Deleting d-{number}",
                number=number,
                status="STARTED",
                subjects=f'[{{"entity_type": "DISK", "entity_id": "d-{number}", "name": ""}}]',
                **ids,
            )
            for number in range(2)
        ]
        final = await scribe.add_step(job_id, description="Finalization", number=2, **ids)
    async with scribe.revision():
        await scribe.change_step(job_id, disks[1], status="FAILED", error=failure)
    async with scribe.revision():
        await scribe.change_step(job_id, disks[0], status="FINISHED")
        await scribe.change_step(job_id, execution, status="FAILED")
        await scribe.change_step(job_id, final, start_time=scribe.time, status="FINISHED")
        await scribe.add_event(
            "DISK_ILLEGAL",
            job_id=job_id,
            severity="ALERT",
            message="Disk d-1 is ILLEGAL",
            entity_type="DISK",
            entity_id="d-1",
            **ids,
        )
        await scribe.end_job(job_id, "FAILED")
    return job_id


TOLD = [
    "Removing VM web: STARTED",
    "Validation: STARTED",
    "Validation: FINISHED",
    "Execution: STARTED",
    "Deleting d-0: STARTED",
    "Deleting d-1: STARTED",
    "Deleting d-1: FAILED, no such volume",
    "Deleting d-0: FINISHED",
    "Execution: FAILED",
    "Finalization: STARTED",
    "Finalization: FINISHED",
    "Disk d-1 is ILLEGAL",
    "Removing VM web: FAILED",
]


@pytest.mark.rule("semantics §4: Readable by job, correlation id, entity")
async def test_a_job_tells_its_story_in_the_order_in_which_it_happened(scribe: Scribe, audit: Audit) -> None:
    job_id = await a_removal(scribe)
    assert await told(audit, f"job_id = {job_id}") == TOLD


@pytest.mark.rule("semantics §4: Readable by job, correlation id, entity")
@pytest.mark.rule("semantics §4: Many jobs may share one")
async def test_a_correlation_id_tells_of_all_its_jobs_and_of_what_belongs_to_none(scribe: Scribe, audit: Audit) -> None:
    await a_removal(scribe, "c-a")
    await a_removal(scribe, "c-b")
    async with scribe.revision():
        await scribe.add_event("HOST_LOST", correlation_id="c-a", message="Host lost")
    assert await told(audit, "correlation_id = c-a") == [*TOLD, "Host lost"]


@pytest.mark.rule("semantics §4: Readable by job, correlation id, entity")
async def test_without_a_job_only_stored_events_are_listed(scribe: Scribe, audit: Audit) -> None:
    await a_removal(scribe)
    async with scribe.revision():
        await scribe.add_event("HOST_LOST", severity="ERROR", message="Host lost")
    assert await told(audit) == ["Disk d-1 is ILLEGAL", "Host lost"]
    assert await told(audit, "severity = ALERT") == ["Disk d-1 is ILLEGAL"]
    assert await told(audit, "event_type = HOST_LOST") == ["Host lost"]
    assert await told(audit, 'entity = "DISK/d-1"') == ["Disk d-1 is ILLEGAL"]
    assert await told(audit, 'entity != "DISK/d-1"') == ["Host lost"]


async def test_derived_events_obey_the_filter_like_stored_ones(scribe: Scribe, audit: Audit) -> None:
    job_id = await a_removal(scribe)
    assert await told(audit, f"job_id = {job_id} AND event_type = JOB_ENDED") == ["Removing VM web: FAILED"]
    assert await told(audit, f"job_id = {job_id} AND entity = DISK/d-1") == [
        "Deleting d-1: STARTED",
        "Deleting d-1: FAILED, no such volume",
        "Disk d-1 is ILLEGAL",
    ]
    assert len(await told(audit, f"job_id = {job_id} AND severity = ERROR")) == 3
    assert await told(audit, f"job_id = {job_id} AND correlation_id = other") == []


async def test_pages_of_events_join_to_the_whole_and_ids_stay_the_same(scribe: Scribe, audit: Audit) -> None:
    job_id = await a_removal(scribe)
    filter = f"job_id = {job_id}"
    whole = (await page_of_events(audit, filter)).items
    found, token = list[jobs_pb2.Event](), ""
    while True:
        page = await page_of_events(audit, filter, page_size=3, page_token=token)
        found += page.items
        token = page.next_page_token
        if not token:
            break
    assert found == whole
    assert len({event.event_id for event in whole}) == len(whole)


async def test_stored_events_are_paged_by_time(scribe: Scribe, audit: Audit) -> None:
    for number in range(5):
        async with scribe.revision():
            await scribe.add_event("NOTE", message=f"{number}")
    first = await page_of_events(audit, page_size=3)
    rest = await page_of_events(audit, page_size=3, page_token=first.next_page_token)
    assert [event.message for event in (*first.items, *rest.items)] == ["0", "1", "2", "3", "4"]


async def test_an_event_says_who_what_and_where(scribe: Scribe, audit: Audit) -> None:
    job_id = await a_removal(scribe)
    events = {event.message: event for event in (await page_of_events(audit, f"job_id = {job_id}")).items}
    started = events["Removing VM web: STARTED"]
    assert (started.event_type, started.user, started.severity) == ("JOB_STARTED", "anna", jobs_pb2.SEVERITY_NORMAL)
    failed = events["Deleting d-1: FAILED, no such volume"]
    assert (failed.event_type, failed.entity.entity_id, failed.severity) == (
        "STEP_ENDED",
        "d-1",
        jobs_pb2.SEVERITY_ERROR,
    )
    assert failed.step_id
    assert all(event.job_id == job_id and event.correlation_id == "c-1" for event in events.values())
