"""The journal against a jobstore that is away, slow, or refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
from tests.integration.coordinator.far_end import SILENCE, ScriptedJobStore, pass_time, turns, until

from chassis.clock import ManualClock
from chassis.errors import WaybillError, failed_precondition, internal, invalid_argument, out_of_range
from coordinator.journal.journal import DEFECT_ATTEMPTS, PATIENCE, Journal
from waybill.v1 import jobs_pb2, jobstore_pb2, jobstore_pb2_grpc


@pytest.fixture
async def journal(
    journal_stub: jobstore_pb2_grpc.JournalStub, clock: ManualClock, rng: random.Random
) -> AsyncIterator[Journal]:
    async with Journal(journal_stub, "c1", clock, rng) as journal:
        yield journal


def a_commit(flow: str, sequence: int = 1, size: int = 0) -> jobstore_pb2.FlowCommit:
    commit = jobstore_pb2.FlowCommit(flow_command_id=flow, epoch=1, sequence=sequence, job_id="j")
    if size:
        commit.new_steps.add(description="x" * size)
    return commit


def an_observation(number: int) -> jobstore_pb2.ObservedRow:
    return jobstore_pb2.ObservedRow(
        entity=jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="v1"),
        observed=jobs_pb2.Observed(state="UP", incarnation="i1", number=number),
    )


def flows(requests: Sequence[jobstore_pb2.CommitRequest]) -> list[list[str]]:
    return [[commit.flow_command_id for commit in request.commits] for request in requests]


async def test_commits_gather_while_a_batch_is_on_its_way(journal: Journal, store: ScriptedJobStore) -> None:
    gate = store.script.hold("Commit")
    first = journal.commit(a_commit("f1"))
    await until(lambda: store.script.asked["Commit"])
    others = [journal.commit(a_commit(flow)) for flow in ("f2", "f3")]
    gate.set()

    assert (await first).revision == 101
    assert [result.revision for result in await asyncio.gather(*others)] == [102, 102]
    assert flows(store.commits) == [["f1"], ["f2", "f3"]]


async def test_a_commit_that_nobody_answered_is_sent_again_until_somebody_does(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.script.fail("Commit", SILENCE, times=30)

    commit = journal.commit(a_commit("f1", sequence=7))
    await pass_time(clock, commit.done, step=1.0)

    assert commit.result().revision == 101
    assert store.commits[0].commits == [a_commit("f1", sequence=7)]


async def test_a_refused_commit_is_data_and_harms_no_other(journal: Journal, store: ScriptedJobStore) -> None:
    store.refuse = lambda commit: failed_precondition("LOCKED", "") if commit.flow_command_id == "f1" else None

    refused, applied = await asyncio.gather(journal.commit(a_commit("f1")), journal.commit(a_commit("f2")))

    assert WaybillError.from_status(refused.error).reason == "LOCKED"
    assert not applied.HasField("error")


async def test_of_a_batch_that_is_refused_whole_only_the_culprit_is_told(
    journal: Journal, store: ScriptedJobStore
) -> None:
    malformed = invalid_argument("REQUEST_INVALID", "malformed")
    store.refuse_batch = lambda batch: malformed if "bad" in flows([batch])[0] else None
    journal.note(jobstore_pb2.EventRow(event_id="e1"))

    results = await asyncio.gather(*(journal.commit(a_commit(flow)) for flow in ("f1", "bad", "f2")))
    await until(lambda: any(request.events for request in store.commits))

    assert [result.HasField("error") for result in results] == [False, True, False]
    assert WaybillError.from_status(results[1].error).reason == "REQUEST_INVALID"


async def test_a_commit_that_makes_the_jobstore_stumble_is_given_up_after_some_attempts(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.refuse_batch = lambda batch: internal("a defect") if batch.commits else None

    commit = journal.commit(a_commit("f1"))
    await pass_time(clock, commit.done)

    assert WaybillError.from_status(commit.result().error).reason == "INTERNAL"
    assert store.script.asked["Commit"] == DEFECT_ATTEMPTS


async def test_without_a_lease_nothing_is_written_any_more(journal: Journal, store: ScriptedJobStore) -> None:
    store.script.fail("Commit", failed_precondition("LEASE_LOST", "another has it"))

    with pytest.raises(WaybillError, match="another has it") as first:
        await journal.commit(a_commit("f1"))
    with pytest.raises(WaybillError) as second:
        await journal.commit(a_commit("f2"))

    assert (first.value.reason, second.value.reason) == ("LEASE_LOST", "LEASE_LOST")
    assert journal.lease_lost.is_set()
    assert store.commits == []


async def test_a_commit_outlives_its_caller(journal: Journal, store: ScriptedJobStore) -> None:
    gate = store.script.hold("Commit")
    callers = [journal.commit(a_commit("f1"))]
    await until(lambda: store.script.asked["Commit"])
    callers.append(journal.commit(a_commit("f2")))
    await turns()
    for caller in callers:
        caller.cancel()
    gate.set()

    assert (await journal.commit(a_commit("f3"))).revision
    assert flows(store.commits) == [["f1"], ["f2", "f3"]]


async def test_who_waits_when_it_closes_is_told(
    journal_stub: jobstore_pb2_grpc.JournalStub, store: ScriptedJobStore, clock: ManualClock, rng: random.Random
) -> None:
    store.script.hold("Commit")
    async with Journal(journal_stub, "c1", clock, rng) as journal:
        on_its_way = journal.commit(a_commit("f1"))
        await until(lambda: store.script.asked["Commit"])
        waiting = journal.commit(a_commit("f2"))
        await turns()

    outcomes = await asyncio.gather(on_its_way, waiting, return_exceptions=True)
    assert [error.reason for error in outcomes if isinstance(error, WaybillError)] == ["SHUTTING_DOWN"] * 2
    with pytest.raises(WaybillError, match="going down"):
        await journal.commit(a_commit("f3"))


async def test_notes_go_without_a_commit_and_again_until_they_are_stored(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    store.script.fail("Commit", SILENCE)
    journal.observe(an_observation(1))
    journal.cleared(["t1", "t2"])
    journal.note(jobstore_pb2.EventRow(event_id="e1"))
    await until(lambda: store.script.asked["Commit"])
    journal.observe(an_observation(3))
    journal.observe(an_observation(2))
    await pass_time(clock, lambda: len(store.commits) == 2)

    first, second = store.commits
    assert [row.observed.number for row in first.observations] == [1]
    assert first.cleared_task_ids == ["t1", "t2"]
    assert [event.event_id for event in first.events] == ["e1"]
    assert [row.observed.number for row in second.observations] == [3]
    assert not second.cleared_task_ids


async def test_it_drains_when_everything_is_sent_and_not_before(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    gate = store.script.hold("Commit")
    journal.cleared(["t1"])
    draining = asyncio.create_task(journal.drain(1.0))
    await pass_time(clock, draining.done, step=1.0)
    assert draining.result() is False

    gate.set()
    assert await journal.drain(1.0) is True
    assert store.commits


async def test_a_commit_larger_than_the_usual_message_goes_through(journal: Journal, store: ScriptedJobStore) -> None:
    assert (await journal.commit(a_commit("f1", size=5 << 20))).revision == 101


async def test_a_read_is_repeated_while_nobody_answers_and_then_given_up(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    ref = jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="v1")
    store.script.fail("ReadEntities", SILENCE, times=6)
    read = asyncio.create_task(journal.read_entities([ref]))
    await pass_time(clock, read.done)
    assert [entity.entity_id for entity in read.result()] == ["v1"]

    store.script.fail("ReadEntities", SILENCE)
    read = asyncio.create_task(journal.read_entities([ref]))
    await until(lambda: store.script.asked["ReadEntities"] == 8)
    clock.advance(PATIENCE)
    await asyncio.wait([read])
    error = read.exception()
    assert isinstance(error, WaybillError)
    assert error.code is grpc.StatusCode.UNAVAILABLE


# --- the watch -------------------------------------------------------------------------------------------------------


def a_host(host_id: str, version: int = 1) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id=host_id, version=version)


def a_change(revision: int, *entities: jobs_pb2.Entity) -> jobstore_pb2.JournalWatchResponse:
    return jobstore_pb2.JournalWatchResponse(entities=entities, revision=revision)


async def test_the_watch_opens_with_a_snapshot_and_passes_on_what_changes(
    journal_stub: jobstore_pb2_grpc.JournalStub, store: ScriptedJobStore, clock: ManualClock, rng: random.Random
) -> None:
    heard: list[str] = []
    asked: list[str] = []
    store.snapshot = [a_host("h1")]
    journal = Journal(journal_stub, "c1", clock, rng)
    journal.on_entities(lambda entities: heard.extend(entity.entity_id for entity in entities))
    journal.on_requests(lambda requests: asked.extend(request.kind for request in requests))

    async with journal:
        await journal.first_snapshot.wait()
        assert heard == ["h1"]
        await until(lambda: len(store.watchers))
        store.watchers.publish(a_change(101, a_host("h2")))
        request = jobstore_pb2.FlowRequest(request_id="r1", kind="CANCEL")
        store.watchers.publish(jobstore_pb2.JournalWatchResponse(flow_requests=[request], revision=102))
        await until(lambda: asked)

    assert (heard, asked) == (["h1", "h2"], ["CANCEL"])


async def test_the_watch_resumes_where_it_was(journal: Journal, store: ScriptedJobStore, clock: ManualClock) -> None:
    await until(lambda: len(store.watchers))
    store.watchers.publish(a_change(105, a_host("h1")))
    store.watchers.publish(SILENCE)
    await pass_time(clock, lambda: len(store.watch_requests) == 2)

    assert store.watch_requests == [0, 105]


async def test_a_watch_that_is_too_late_begins_again_and_hosts_that_are_gone_are_said_to_be(
    journal: Journal, store: ScriptedJobStore, clock: ManualClock
) -> None:
    heard: list[tuple[str, int]] = []
    journal.on_entities(lambda entities: heard.extend((entity.entity_id, entity.version) for entity in entities))
    await until(lambda: len(store.watchers))
    store.watchers.publish(a_change(105, a_host("h1"), a_host("h2")))
    store.watchers.publish(out_of_range("REVISION_COMPACTED", "too old"))
    store.snapshot = [a_host("h2", 2)]
    await pass_time(clock, lambda: len(heard) == 4)

    assert store.watch_requests == [0, 0]
    assert heard == [("h1", 1), ("h2", 1), ("h2", 2), ("h1", 0)]
