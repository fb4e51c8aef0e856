"""What waits to be written, what becomes of it, and how far the watch has come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import WaybillError, failed_precondition
from coordinator.journal import batches
from coordinator.journal.batches import Batch, Gathering, Waiting
from coordinator.journal.journalwatch import WatchPosition
from coordinator.retries import Backoff, verdict
from waybill.v1 import jobs_pb2, jobstore_pb2

VM = jobs_pb2.ENTITY_TYPE_VM
HOST = jobs_pb2.ENTITY_TYPE_HOST


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def a_commit(flow: str, size: int = 0) -> jobstore_pb2.FlowCommit:
    return jobstore_pb2.FlowCommit(flow_command_id=flow, epoch=1, sequence=1, job_id="x" * size)


def an_observation(vm_id: str, number: int, incarnation: str = "i1", state: str = "UP") -> jobstore_pb2.ObservedRow:
    return jobstore_pb2.ObservedRow(
        entity=jobstore_pb2.EntityRef(entity_type=VM, entity_id=vm_id),
        observed=jobs_pb2.Observed(state=state, host_id="h1", incarnation=incarnation, number=number),
    )


def a_host(host_id: str, version: int = 1) -> jobs_pb2.Entity:
    return jobs_pb2.Entity(entity_type=HOST, entity_id=host_id, version=version)


def gathered(loop: asyncio.AbstractEventLoop, *commits: jobstore_pb2.FlowCommit) -> Gathering:
    gathering = Gathering("c1")
    gathering.commits += [Waiting(commit, loop.create_future()) for commit in commits]
    return gathering


def flows(batch: Batch) -> list[str]:
    return [commit.flow_command_id for commit in batch.request.commits]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_takes_all_kinds_and_leaves_nothing(loop: asyncio.AbstractEventLoop) -> None:
    gathering = gathered(loop, a_commit("f1"), a_commit("f2"))
    gathering.observe(an_observation("v1", 1))
    gathering.cleared["t1"] = None
    gathering.events.append(jobstore_pb2.EventRow(event_id="e1"))

    request = gathering.take().request

    assert [commit.flow_command_id for commit in request.commits] == ["f1", "f2"]
    assert request.observations == [an_observation("v1", 1)]
    assert request.cleared_task_ids == ["t1"]
    assert [event.event_id for event in request.events] == ["e1"]
    assert request.coordinator_id == "c1"
    assert not gathering


def test_commits_go_in_order_and_no_more_than_fit(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_COMMITS", 2)
    gathering = gathered(loop, *(a_commit(f"f{number}") for number in range(5)))

    assert [flows(gathering.take()) for _ in range(3)] == [["f0", "f1"], ["f2", "f3"], ["f4"]]
    assert not gathering


def test_a_commit_larger_than_a_batch_goes_alone(loop: asyncio.AbstractEventLoop) -> None:
    gathering = gathered(loop, a_commit("small"), a_commit("large", batches.MOST_BYTES + 1), a_commit("after"))

    assert [flows(gathering.take()) for _ in range(3)] == [["small"], ["large"], ["after"]]


def test_only_the_latest_observation_of_an_entity_is_kept() -> None:
    gathering = Gathering("c1")
    for number in (3, 5, 4):
        gathering.observe(an_observation("v1", number))
    gathering.observe(an_observation("v2", 1))

    assert {row.entity.entity_id: row.observed.number for row in gathering.take().request.observations} == {
        "v1": 5,
        "v2": 1,
    }


def test_an_observation_of_another_incarnation_replaces_whatever_waits() -> None:
    gathering = Gathering("c1")
    gathering.observe(an_observation("v1", 9, "i1"))
    gathering.observe(an_observation("v1", 1, "i2"))

    assert [row.observed.incarnation for row in gathering.take().request.observations] == ["i2"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9))))
def test_whatever_order_observations_come_in_the_highest_number_goes(seen: list[tuple[str, int]]) -> None:
    gathering = Gathering("c1")
    for vm_id, number in seen:
        gathering.observe(an_observation(vm_id, number))

    taken = {row.entity.entity_id: row.observed.number for row in gathering.take().request.observations}
    assert taken == {vm_id: max(number for other, number in seen if other == vm_id) for vm_id, _ in seen}


def test_the_parts_of_a_batch_are_each_commit_and_each_note_alone(loop: asyncio.AbstractEventLoop) -> None:
    gathering = gathered(loop, a_commit("f1"), a_commit("f2"))
    gathering.observe(an_observation("v1", 1))
    gathering.events.append(jobstore_pb2.EventRow(event_id="e1"))
    gathering.cleared["t1"] = None

    parts = gathering.take().parts()

    assert [flows(part) for part in parts] == [["f1"], ["f2"], [], [], []]
    assert [len(part.waiting) for part in parts] == [1, 1, 0, 0, 0]
    assert all(part.request.coordinator_id == "c1" for part in parts)
    assert len(parts[0].parts()) == 1


def test_each_waiter_gets_its_own_result_and_a_cancelled_one_harms_nobody(loop: asyncio.AbstractEventLoop) -> None:
    batch = gathered(loop, a_commit("f1"), a_commit("f2")).take()
    batch.waiting[0].result.cancel()

    batch.answer([jobstore_pb2.FlowCommitResult(revision=7), jobstore_pb2.FlowCommitResult(revision=8)])

    assert batch.waiting[0].result.cancelled()
    assert batch.waiting[1].result.result().revision == 8


# --- the watch -------------------------------------------------------------------------------------------------------


def heard(position: WatchPosition, *hosts: jobs_pb2.Entity, revision: int = 0, done: bool = False) -> list[str]:
    message = jobstore_pb2.JournalWatchResponse(entities=hosts, revision=revision, snapshot_done=done)
    return [f"{entity.entity_id}:{entity.version}" for entity in position.heard(message)]


def test_a_watch_resumes_after_the_last_complete_revision() -> None:
    position = WatchPosition()
    position.begin()
    heard(position, a_host("h1"), revision=10, done=True)
    heard(position, a_host("h1", 2), revision=12)

    assert position.revision == 12


def test_a_snapshot_that_broke_off_begins_again() -> None:
    position = WatchPosition()
    position.begin()
    heard(position, a_host("h1"), revision=10)

    assert position.revision == 0


def test_a_second_snapshot_tells_which_hosts_are_gone() -> None:
    position = WatchPosition()
    position.begin()
    heard(position, a_host("h1"), a_host("h2"), revision=10, done=True)
    position.forget()
    position.begin()

    assert heard(position, a_host("h2"), revision=20, done=True) == ["h2:1", "h1:0"]


def test_a_host_that_was_removed_already_is_not_removed_twice() -> None:
    position = WatchPosition()
    position.begin()
    heard(position, a_host("h1"), revision=10, done=True)
    assert heard(position, a_host("h1", 0), revision=11) == ["h1:0"]
    position.forget()
    position.begin()

    assert heard(position, revision=20, done=True) == []


# --- retries ---------------------------------------------------------------------------------------------------------


def an_rpc_error(code: grpc.StatusCode, error: WaybillError | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata()
    if error is not None:
        trailing.add("grpc-status-details-bin", error.to_status().SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "details")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_silence_is_no_verdict(code: grpc.StatusCode) -> None:
    assert verdict(an_rpc_error(code)) is None


def test_what_the_transport_says_is_no_verdict_but_what_we_say_is() -> None:
    defect = WaybillError(grpc.StatusCode.INTERNAL, "INTERNAL", "a defect")

    assert verdict(an_rpc_error(grpc.StatusCode.INTERNAL)) is None
    found = verdict(an_rpc_error(grpc.StatusCode.INTERNAL, defect))
    assert found is not None
    assert found.message == "a defect"


def test_a_refusal_is_a_verdict() -> None:
    refusal = failed_precondition("LEASE_LOST", "gone")
    found = verdict(an_rpc_error(grpc.StatusCode.FAILED_PRECONDITION, refusal))

    assert found is not None
    assert found.reason == "LEASE_LOST"


def test_pauses_double_up_to_the_longest_and_begin_anew_after_an_answer() -> None:
    pauses = Backoff(random.Random(1), first=1.0, longest=4.0)
    taken = [pauses.next() for _ in range(4)]
    pauses.reset()

    for pause, most in zip([*taken, pauses.next()], [1, 2, 4, 4, 1], strict=True):
        assert most / 2 <= pause <= most
