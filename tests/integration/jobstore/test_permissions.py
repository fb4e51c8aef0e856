"""What a policy lets somebody see, on real Postgres: the condition in SQL says what the one over messages says."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.integration.conftest import RunningJobstore
from tests.integration.jobstore.scribe import Scribe

from chassis.policy import Grant, Scope
from jobstore.feed.feed import Feed
from jobstore.feed.window import JobChanged
from jobstore.queries.paging import Paging
from jobstore.queries.queries import Queries
from jobstore.search.filter import Filter, Verdict, job_filter
from jobstore.search.permitted import thing_of, within
from waybill.v1 import jobs_pb2, jobstore_pb2

ALL = frozenset({"see"})
GRANTS = [
    Grant(ALL, every_type=True, any_owner=True),
    Grant(ALL, every_type=True),
    Grant(ALL, command_types=frozenset({"AddDisk"}), any_owner=True),
    Grant(ALL, command_types=frozenset({"external"}), any_owner=True),
    Grant(ALL, categories=frozenset({"vm"}), any_owner=True),
    Grant(ALL, command_types=frozenset({"AddDisk"}), categories=frozenset({"vm"})),
    Grant(ALL, every_type=True, any_owner=True, entities=("VM/dev-*",)),
    Grant(ALL, every_type=True, any_owner=True, entities=("VM/dev-1", "DISK/*")),
    Grant(ALL, every_type=True, any_owner=True, entities=("VM/d_v-*", "VM/100%")),
    Grant(ALL, every_type=True, entities=("*",)),
    Grant(ALL),
]
SCOPES = [Scope("ann", (grant,)) for grant in GRANTS] + [
    Scope("ann", ()),
    *(Scope("bob", pair) for pair in itertools.islice(itertools.combinations(GRANTS[1:], 2), 0, None, 5)),
]
SUBJECTS: list[list[tuple[str, str]]] = [
    [],
    [("VM", "dev-1")],
    [("VM", "prod-1")],
    [("VM", "dev-1"), ("DISK", "d-1")],
    [("VM", "dev-1"), ("VM", "prod-1")],
    [("VM", "d_v-1")],
]


@pytest.fixture
async def jobs(scribe: Scribe) -> None:
    """Jobs of every kind that a grant can tell from another."""
    async with scribe.revision():
        for owner, kind, subjects in itertools.product(("ann", "bob"), range(3), SUBJECTS):
            columns: dict[str, Any] = [
                {"command_type": "AddDisk", "categories": ["storage"]},
                {"command_type": "StopVm", "categories": ["vm", "power"]},
                {"command_type": "AddDisk", "external": True, "flow_command_id": ""},
            ][kind]
            await scribe.add_job(owner=owner, subjects=subjects, **columns)


async def listed(queries: Queries, filter: Filter) -> list[jobs_pb2.Job]:
    request = jobstore_pb2.ListJobsRequest(page_size=1000)
    page = await queries.list_jobs(filter, Paging(request, int, str), oldest_first=True, tree=False)
    return page.items


@pytest.mark.usefixtures("jobs")
async def test_lists_and_messages_are_judged_alike(queries: Queries) -> None:
    everything = await listed(queries, job_filter(""))
    assert len(everything) == 36
    numbers = set()
    for scope in SCOPES:
        filter = within(job_filter(""), scope)
        permitted = [job.job_id for job in everything if scope.holds(thing_of(job))]
        assert [job.job_id for job in await listed(queries, filter)] == permitted, scope
        for job in everything:
            wanted = Verdict.MATCHES if job.job_id in permitted else Verdict.NEVER
            assert filter.verdict(JobChanged(job.revision, job, True)) is wanted
        numbers.add(len(permitted))
    assert {0, 36} < numbers  # vacuity: they differ
    assert len(numbers) > 6


@pytest.mark.usefixtures("jobs")
async def test_what_changed_is_judged_alike(queries: Queries) -> None:
    everything = await listed(queries, job_filter(""))
    for scope in SCOPES:
        changes = await queries.modified_jobs(0, "", 1000, within(job_filter(""), scope))
        assert {job.job_id for job in changes.jobs} == {
            job.job_id for job in everything if scope.holds(thing_of(job))
        }, scope


async def test_a_watcher_is_never_told_of_a_job_that_he_may_not_see(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        before = {owner: await scribe.add_job(owner=owner) for owner in ("ann", "bob")}
    scope = Scope("ann", (Grant(ALL, every_type=True),))
    told: set[str] = set()
    async for message in _watch(feed, within(job_filter("status = STARTED"), scope)):
        told |= {change.upsert.job_id or change.removed_job_id for change in message.changes}
        if message.snapshot_done:
            async with scribe.revision():
                after = {owner: await scribe.add_job(owner=owner) for owner in ("bob", "ann")}
                await scribe.end_job(before["bob"])
            async with scribe.revision():
                await scribe.end_job(after["ann"])
        if any(change.removed_job_id for change in message.changes):
            break
    assert told == {before["ann"], after["ann"]}


async def _watch(feed: Feed, filter: Filter) -> AsyncIterator[jobstore_pb2.WatchJobsResponse]:
    stream = feed.watch_jobs(filter)
    try:
        async for message in stream:
            yield jobstore_pb2.WatchJobsResponse.FromString(message)
    finally:
        await stream.aclose()


async def test_coordinators_read_any_job(jobstore: RunningJobstore, scribe: Scribe) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job(owner="bob")
        step_id = await scribe.add_step(job_id, step_type="EXECUTION")
    by_job = await jobstore.journal.ReadJob(jobstore_pb2.ReadJobRequest(job_id=job_id))
    by_step = await jobstore.journal.ReadJob(jobstore_pb2.ReadJobRequest(step_id=step_id))
    assert by_job == by_step
    assert (by_job.job.job_id, by_job.job.owner) == (job_id, "bob")
