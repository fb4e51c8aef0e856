"""What coordinators are told: entities, and requests for their flows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
from tests.integration.jobstore.scribe import Scribe

from chassis.errors import WaybillError
from jobstore.feed.feed import Feed
from waybill.v1.jobs_pb2 import Entity
from waybill.v1.jobstore_pb2 import JournalWatchResponse

MINE = "coordinator-1"


class Told:
    """What a coordinator was told, each entity as it was last."""

    def __init__(self) -> None:
        self.entities: dict[str, Entity] = {}
        self.requests: list[str] = []
        self.revision = 0
        self.snapshot_done = False

    async def until(
        self, stream: AsyncIterator[JournalWatchResponse], so: Callable[[Told], bool]
    ) -> JournalWatchResponse:
        while True:
            response = await anext(stream)
            self.entities |= {entity.entity_id: entity for entity in response.entities}
            self.requests += [request.request_id for request in response.flow_requests]
            self.revision = response.revision or self.revision
            self.snapshot_done = self.snapshot_done or response.snapshot_done
            if so(self):
                return response

    async def to(self, stream: AsyncIterator[JournalWatchResponse], revision: int) -> None:
        await self.until(stream, lambda told: told.snapshot_done and told.revision >= revision)


async def test_a_snapshot_has_all_hosts_and_the_requests_for_ones_own_flows(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        await scribe.add_entity("HOST", "host-1", declared='{"address": "127.0.0.1:1"}')
        await scribe.add_entity("HOST", "host-2")
        await scribe.add_entity("VM", "vm-1")
        mine = await scribe.request_flow(await scribe.add_job())
        others = await scribe.add_job()
        await scribe.connection.execute("UPDATE command SET coordinator_id = 'other' WHERE job_id = $1", others)
        await scribe.request_flow(others)
    told = Told()
    async with aclosing(feed.watch_journal(MINE)) as stream:
        await told.to(stream, scribe.at)
    assert set(told.entities) == {"host-1", "host-2"}
    assert told.entities["host-1"].declared["address"] == "127.0.0.1:1"
    assert told.requests == [mine]


async def test_afterwards_come_changed_and_removed_entities_of_all_types_and_new_requests(
    scribe: Scribe, feed: Feed
) -> None:
    async with scribe.revision():
        await scribe.add_entity("VM", "vm-1")
        await scribe.add_entity("DISK", "d-1")
        job_id = await scribe.add_job()
    told = Told()
    async with aclosing(feed.watch_journal(MINE)) as stream:
        await told.to(stream, scribe.at)
        assert told.entities == {}
        async with scribe.revision():
            await scribe.change_entity(
                "VM", "vm-1", observed_state="UP", observed_incarnation="i-1", observed_number=4, observed_host_id="h"
            )
            await scribe.remove_entity("DISK", "d-1")
            request_id = await scribe.request_flow(job_id)
        await told.to(stream, scribe.at)
    vm = told.entities["vm-1"]
    assert (vm.observed.state, vm.observed.number, vm.observed.host_id) == ("UP", 4, "h")
    assert told.entities["d-1"].version == 0
    assert told.requests == [request_id]


async def test_a_resumed_watch_hears_what_came_after(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision() as first:
        await scribe.add_entity("HOST", "host-1")
    async with scribe.revision():
        await scribe.add_entity("VM", "vm-1")
    async with aclosing(feed.watch_journal(MINE, first)) as stream:
        response = await anext(stream)
    assert [entity.entity_id for entity in response.entities] == ["vm-1"]
    assert (response.revision, response.snapshot_done) == (scribe.at, False)


async def test_jobs_are_none_of_its_business_but_the_revision_moves_on_at_the_close(scribe: Scribe, feed: Feed) -> None:
    told = Told()
    async with aclosing(feed.watch_journal(MINE)) as stream:
        await told.to(stream, 0)
        async with scribe.revision():
            await scribe.add_job()
        async with scribe.revision():
            await scribe.add_entity("VM", "vm-1")
        await told.to(stream, scribe.at)
        assert set(told.entities) == {"vm-1"}
        feed._begin_to_close()
        assert (await anext(stream)).revision >= scribe.at
        with pytest.raises(WaybillError, match="shutting down"):
            await told.until(stream, lambda told: False)


async def test_a_flow_that_was_taken_over_is_its_new_owners(scribe: Scribe, feed: Feed) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
    old, new = Told(), Told()
    async with (
        aclosing(feed.watch_journal(MINE)) as stream,
        aclosing(feed.watch_journal("coordinator-2")) as new_stream,
    ):
        await old.to(stream, scribe.at)
        await new.to(new_stream, scribe.at)
        async with scribe.revision():
            await scribe.connection.execute("UPDATE command SET coordinator_id = 'coordinator-2', epoch = 2")
            request_id = await scribe.request_flow(job_id)
            await scribe.add_entity("VM", "vm-1")
        await new.to(new_stream, scribe.at)
        await old.to(stream, scribe.at)
    assert (old.requests, new.requests) == ([], [request_id])
