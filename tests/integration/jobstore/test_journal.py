"""The journal on real Postgres: what is applied, what is refused, and what is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
import structlog
from google.rpc import status_pb2
from tests.integration.jobstore.flow import (
    COORDINATOR,
    FINISHED,
    PENDING,
    SKIPPED,
    STARTED,
    Flow,
    a_flow,
    hashed,
    host,
    lock,
    request,
    vm,
)

from chassis.clock import SystemClock
from chassis.errors import WaybillError
from jobstore.journal.journal import Journal
from waybill.v1 import jobs_pb2, jobstore_pb2

Connection = asyncpg.Connection

Result = jobstore_pb2.FlowCommitResult


@pytest.fixture
async def lease(connection: Connection) -> str:
    await take_lease(connection, COORDINATOR)
    return COORDINATOR


async def take_lease(connection: Connection, coordinator_id: str) -> None:
    await connection.execute(
        """
        INSERT INTO coordinator_lease (coordinator_id, counter, address, update_time)
        VALUES ($1, 1, '', now())
        """,
        coordinator_id,
    )


@pytest.fixture
async def journal(database_url: str, lease: str) -> AsyncIterator[Journal]:
    async with Journal(database_url, SystemClock()) as journal:
        yield journal


async def commit(journal: Journal, *commits: jobstore_pb2.FlowCommit) -> list[Result]:
    return await journal.commit(request(*commits))


async def applied(journal: Journal, *commits: jobstore_pb2.FlowCommit) -> list[Result]:
    results = await commit(journal, *commits)
    assert [reason(result) for result in results] == [""] * len(results)
    return results


def reason(result: Result) -> str:
    return WaybillError.from_status(result.error).reason if result.HasField("error") else ""


async def head(connection: Connection) -> int:
    revision: int = await connection.fetchval("SELECT revision FROM head")
    return revision


async def put_vm(journal: Journal, connection: Connection, entity_id: str) -> None:
    flow = a_flow()
    change = jobstore_pb2.EntityChange(entity=vm(entity_id), name=entity_id, declared_json='{"memory_mb": 64}')
    await applied(
        journal,
        flow.first(entities=[change]),
    )
    await applied(journal, flow.last())


# --- what is applied -------------------------------------------------------------------------------------------------


async def test_a_flow_is_stored_with_the_times_of_its_commits(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    [first] = await applied(journal, flow.first())
    [last] = await applied(journal, flow.last())
    job = await connection.fetchrow("SELECT * FROM job")
    assert (first.revision, last.revision) == (1, 2)
    assert job["job_id"] == flow.job_id
    assert (job["status"], job["progress"], job["revision"]) == ("FINISHED", 100, 2)
    assert job["create_time"] == job["start_time"] == first.time.ToDatetime(job["start_time"].tzinfo)
    assert job["end_time"] == job["update_time"] == last.time.ToDatetime(job["end_time"].tzinfo)


async def test_a_step_begins_when_it_leaves_pending_and_ends_in_an_end_status(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    [first] = await applied(journal, flow.first())
    before = {row["step_type"]: row for row in await connection.fetch("SELECT * FROM step")}
    await applied(journal, flow.last())
    after = {row["step_type"]: row for row in await connection.fetch("SELECT * FROM step")}
    assert before["VALIDATION"]["start_time"] == before["VALIDATION"]["end_time"]
    assert before["EXECUTION"]["start_time"] is not None
    assert before["EXECUTION"]["end_time"] is None
    assert before["FINALIZATION"]["start_time"] is None
    assert after["FINALIZATION"]["start_time"] == after["FINALIZATION"]["end_time"] > before["EXECUTION"]["start_time"]
    assert after["VALIDATION"]["revision"] == first.revision  # not touched again


async def test_a_skipped_step_never_began(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    skip = jobstore_pb2.StepChange(step_id=flow.steps["FINALIZATION"], status=SKIPPED)
    await applied(journal, flow.next(steps=[skip]))
    step = await connection.fetchrow("SELECT * FROM step WHERE step_id = $1", flow.steps["FINALIZATION"])
    assert step["start_time"] is None
    assert step["end_time"] is not None


async def test_a_job_that_waits_has_not_begun(journal: Journal, connection: Connection) -> None:
    await applied(journal, a_flow(status=PENDING).first())
    assert await connection.fetchval("SELECT start_time FROM job") is None


async def test_every_row_of_a_flow_has_its_correlation_id(journal: Journal, connection: Connection) -> None:
    flow = a_flow(correlation_id="nightly-42")
    event = jobstore_pb2.EventRow(
        event_id="e1", event_type="DISK_ILLEGAL", severity=jobs_pb2.SEVERITY_ALERT, message="!"
    )
    step = jobstore_pb2.StepRow(step_id="late", step_type="CLEANUP", status=STARTED)
    await applied(journal, flow.first())
    await applied(journal, flow.next(new_steps=[step], events=[event]))
    for table in ("job", "step", "command", "host_task", "event"):
        ids = {row["correlation_id"] for row in await connection.fetch(f"SELECT correlation_id FROM {table}")}
        assert ids == {"nightly-42"}, table


@pytest.mark.rule("semantics §4: Every change of a step raises its job's `revision` and `update_time`")
async def test_a_changed_step_raises_the_revision_of_its_job(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    change = jobstore_pb2.StepChange(step_id=flow.steps["DELETE_IMAGE"], progress=40)
    [result] = await applied(journal, flow.next(steps=[change]))
    assert await connection.fetchval("SELECT revision FROM job") == result.revision
    assert await connection.fetchval("SELECT update_time = (SELECT time FROM head) FROM job")


async def test_progress_never_falls(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    await applied(journal, flow.progress(60))
    await applied(journal, flow.progress(30))
    assert await connection.fetchval("SELECT progress FROM job") == 60


async def test_many_flows_share_a_transaction_and_its_revision(journal: Journal, connection: Connection) -> None:
    flows = [a_flow() for _ in range(20)]
    results = await applied(journal, *(flow.first() for flow in flows))
    assert {result.revision for result in results} == {1}
    assert await connection.fetchval("SELECT count(*) FROM job") == 20


async def test_a_child_command_is_stored_under_its_flow(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    child = jobstore_pb2.CommandRow(
        command_id="child",
        parent_command_id=flow.flow_command_id,
        command_type="RemoveImage",
        status=jobs_pb2.COMMAND_STATUS_ACTIVE,
        node="1:0",
    )
    await applied(journal, flow.first())
    await applied(journal, flow.next(new_commands=[child]))
    row = await connection.fetchrow("SELECT * FROM command WHERE command_id = 'child'")
    assert row["flow_command_id"] == flow.flow_command_id
    assert row["epoch"] is None


async def test_a_wait_that_is_over_counts_as_cleared(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    wait = jobstore_pb2.TaskRow(
        task_id="wait", kind=jobs_pb2.HOST_TASK_KIND_WAIT, command_id=flow.flow_command_id, entity=vm("vm-1")
    )
    over = jobstore_pb2.TaskChange(
        task_id="wait", state=jobs_pb2.TASK_STATE_FINISHED, result=jobs_pb2.TASK_RESULT_SUCCESS, answer_json='"UP"'
    )
    await applied(journal, flow.first())
    await applied(journal, flow.next(new_tasks=[wait]))
    assert await connection.fetchval("SELECT cleared FROM host_task WHERE task_id = 'wait'") is False
    await applied(journal, flow.next(tasks=[over]))
    assert await connection.fetchval("SELECT cleared FROM host_task WHERE task_id = 'wait'") is True


async def test_why_a_task_was_to_be_stopped_is_forgotten_when_it_ends_well_and_only_then(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    tasks = [
        jobstore_pb2.TaskRow(
            task_id=name, kind=jobs_pb2.HOST_TASK_KIND_TASK, command_id=flow.flow_command_id, host_id="h1", verb="copy"
        )
        for name in ("well", "ill")
    ]
    stalls = [
        jobstore_pb2.TaskChange(
            task_id=name, state=jobs_pb2.TASK_STATE_ABORTING, error=status_pb2.Status(code=4, message="no progress")
        )
        for name in ("well", "ill")
    ]
    ends = [
        jobstore_pb2.TaskChange(task_id=name, state=jobs_pb2.TASK_STATE_FINISHED, result=result)
        for name, result in (("well", jobs_pb2.TASK_RESULT_SUCCESS), ("ill", jobs_pb2.TASK_RESULT_CLEAN_SUCCESS))
    ]
    await applied(journal, flow.first())
    await applied(journal, flow.next(new_tasks=tasks))
    await applied(journal, flow.next(tasks=stalls))
    await applied(journal, flow.next(tasks=ends))
    rows = await connection.fetch(
        "SELECT task_id, error IS NULL AS is_well FROM host_task WHERE verb = 'copy' ORDER BY task_id"
    )
    assert [tuple(row) for row in rows] == [("ill", False), ("well", True)]


async def test_no_text_gets_the_rows_of_others_out_of_step(journal: Journal, connection: Connection) -> None:
    """Not even one with the character that rows travel by."""
    texts = ["plain", "a\x1fb", "\x1f", "", "üñí\t\n\x1b[2J", '{"quoted", \\}']
    flows = [a_flow(description=text) for text in texts]
    await applied(journal, *(flow.first() for flow in flows))
    stored = {row["job_id"]: row["description"] for row in await connection.fetch("SELECT * FROM job")}
    assert [stored[flow.job_id] for flow in flows] == [text.replace("\x1f", "\u241f") for text in texts]


# --- sequences and epochs --------------------------------------------------------------------------------------------


async def test_a_repeated_commit_gets_the_same_answer_and_changes_nothing(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    first = flow.first()
    [answer] = await applied(journal, first)
    [again] = await applied(journal, first)
    assert again == answer
    assert await head(connection) == 1


async def test_the_last_commit_can_be_repeated(journal: Journal) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    last = flow.last()
    [answer] = await applied(journal, last)
    assert await applied(journal, last) == [answer]


async def test_a_commit_and_its_repetition_may_be_on_their_way_together(journal: Journal) -> None:
    first = a_flow().first()
    [one], [other] = await asyncio.gather(applied(journal, first), applied(journal, first))
    assert one == other


@pytest.mark.parametrize("sequence", [0, 3, 9])
async def test_a_sequence_that_does_not_follow_is_refused(journal: Journal, sequence: int) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    late = flow.progress(10)
    late.sequence = sequence
    assert reason((await commit(journal, late))[0]) == "SEQUENCE_MISMATCH"


async def test_a_flow_that_is_not_there_cannot_go_on(journal: Journal) -> None:
    flow = a_flow()
    flow.first()
    assert reason((await commit(journal, flow.progress(10)))[0]) == "SEQUENCE_MISMATCH"


async def test_an_ended_flow_takes_no_more(journal: Journal) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    await applied(journal, flow.last())
    assert reason((await commit(journal, flow.progress(10)))[0]) == "JOB_ENDED"


async def test_an_old_epoch_is_refused(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    await connection.execute("UPDATE command SET epoch = 2")
    assert reason((await commit(journal, flow.progress(10)))[0]) == "STALE_EPOCH"


async def test_a_flow_of_another_coordinator_is_refused(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    await take_lease(connection, "coordinator-2")
    [result] = await journal.commit(request(flow.progress(10), coordinator_id="coordinator-2"))
    assert reason(result) == "STALE_EPOCH"


async def test_without_a_lease_the_whole_call_is_refused(journal: Journal, connection: Connection) -> None:
    with pytest.raises(WaybillError) as refused:
        await journal.commit(request(a_flow().first(), a_flow().first(), coordinator_id="nobody"))
    assert refused.value.reason == "LEASE_LOST"
    assert await connection.fetchval("SELECT count(*) FROM job") == 0


async def test_notes_without_a_lease_are_refused(journal: Journal, connection: Connection) -> None:
    event = jobstore_pb2.EventRow(event_id="e1", event_type="X", severity=jobs_pb2.SEVERITY_NORMAL, message="x")
    with pytest.raises(WaybillError) as refused:
        await journal.commit(jobstore_pb2.CommitRequest(coordinator_id="nobody", events=[event]))
    assert refused.value.reason == "LEASE_LOST"
    assert await connection.fetchval("SELECT count(*) FROM event") == 0


# --- refused alone ---------------------------------------------------------------------------------------------------


async def test_a_refused_commit_is_refused_alone_and_leaves_nothing(journal: Journal, connection: Connection) -> None:
    good, bad, other = a_flow(), a_flow(), a_flow()
    stale = bad.first(read_versions=[jobstore_pb2.EntityVersion(entity=vm("vm-1"), version=7)])
    results = await commit(journal, good.first(), stale, other.first())
    assert [reason(result) for result in results] == ["", "CONFLICT", ""]
    assert {row["job_id"] for row in await connection.fetch("SELECT job_id FROM job")} == {good.job_id, other.job_id}
    assert await connection.fetchval("SELECT count(*) FROM step WHERE job_id = $1", bad.job_id) == 0


async def test_a_batch_in_which_nothing_is_applied_burns_no_revision(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await commit(journal, flow.first(read_versions=[jobstore_pb2.EntityVersion(entity=vm("vm-1"), version=7)]))
    assert await head(connection) == 0
    await applied(journal, a_flow().first())
    assert await head(connection) == 1


def _of_an_unknown_status(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    commit.new_steps[0].status = 99
    return commit


def _with_a_nul(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    commit.new_job.description = "a\0b"
    return commit


def _with_bad_json(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    commit.new_commands[0].parameters_json = "{"
    return commit


def _without_root(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    del commit.new_commands[:]
    return commit


def _complete_but_not_finished(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    commit.new_job.progress = 100
    return commit


def _more_than_complete(flow: Flow) -> jobstore_pb2.FlowCommit:
    commit = flow.first()
    commit.new_steps[0].progress = 101
    return commit


def _changing_an_unknown_step(flow: Flow) -> jobstore_pb2.FlowCommit:
    return flow.first(steps=[jobstore_pb2.StepChange(step_id="nobody", status=FINISHED)])


@pytest.mark.parametrize(
    "spoil",
    [
        _of_an_unknown_status,
        _with_a_nul,
        _with_bad_json,
        _without_root,
        _complete_but_not_finished,
        _more_than_complete,
        _changing_an_unknown_step,
    ],
)
async def test_rows_that_cannot_be_stored_are_refused_alone(
    journal: Journal, connection: Connection, spoil: Any
) -> None:
    flows = [a_flow() for _ in range(7)]
    commits = [flow.first() for flow in flows]
    flows[4].sequence = 0
    commits[4] = spoil(flows[4])
    results = await commit(journal, *commits)
    assert [reason(result) for result in results] == [""] * 4 + ["REQUEST_INVALID"] + [""] * 2
    assert await connection.fetchval("SELECT count(*) FROM job") == 6


@pytest.mark.rule("semantics §1: an end status never changes again")
async def test_what_has_ended_does_not_change_again(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first())
    change = jobstore_pb2.StepChange(step_id=flow.steps["VALIDATION"], status=STARTED)
    assert reason((await commit(journal, flow.next(steps=[change])))[0]) == "REQUEST_INVALID"
    assert await connection.fetchval("SELECT status FROM step WHERE step_type = 'VALIDATION'") == "FINISHED"


# --- request ids -----------------------------------------------------------------------------------------------------


async def test_a_known_request_is_answered_with_its_job(journal: Journal, connection: Connection) -> None:
    job = {"request_id": "r1", "request_hash": hashed("body")}
    first, again = a_flow(**job), a_flow(**job)
    await applied(journal, first.first())
    [result] = await applied(journal, again.first())
    assert result.existing_job.job_id == first.job_id
    assert await connection.fetchval("SELECT count(*) FROM job") == 1


async def test_a_request_id_with_another_body_is_refused(journal: Journal) -> None:
    first = a_flow(request_id="r1", request_hash=hashed("body"))
    other = a_flow(request_id="r1", request_hash=hashed("other body"))
    await applied(journal, first.first())
    [result] = await commit(journal, other.first())
    assert reason(result) == "REQUEST_ID_REUSED"
    assert WaybillError.from_status(result.error).metadata == {"job_id": first.job_id}


async def test_request_ids_are_each_owners_own(journal: Journal) -> None:
    await applied(journal, a_flow(request_id="r1", request_hash=hashed("a"), owner="alice").first())
    await applied(journal, a_flow(request_id="r1", request_hash=hashed("b"), owner="bob").first())


async def test_the_same_request_many_times_at_once_makes_one_job(
    journal: Journal, database_url: str, connection: Connection
) -> None:
    flows = [a_flow(request_id="r1", request_hash=hashed("body")) for _ in range(20)]
    async with Journal(database_url, SystemClock()) as other:
        answers = await asyncio.gather(
            *(applied([journal, other][index % 2], flow.first()) for index, flow in enumerate(flows))
        )
    [job_id] = [row["job_id"] for row in await connection.fetch("SELECT job_id FROM job")]
    assert sum(not result.HasField("existing_job") for [result] in answers) == 1
    assert {result.existing_job.job_id for [result] in answers if result.HasField("existing_job")} == {job_id}


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §5: Refusal names the holder's job and reason")
@pytest.mark.rule("semantics §5: Held by the flow, stored")
async def test_a_lock_is_held_until_the_flow_has_ended(journal: Journal, connection: Connection) -> None:
    holder, other, later = a_flow(), a_flow(), a_flow()
    await applied(journal, holder.first(locks=[lock(vm("vm-1"), reason="Removing VM vm-1")]))
    [refused] = await commit(journal, other.first(locks=[lock(vm("vm-1"))]))
    error = WaybillError.from_status(refused.error)
    assert error.reason == "LOCKED"
    assert error.metadata == {
        "job_id": holder.job_id,
        "holder_reason": "Removing VM vm-1",
        "entity_type": "VM",
        "entity_id": "vm-1",
    }
    await applied(journal, holder.last())
    await applied(journal, later.first(locks=[lock(vm("vm-1"))]))


async def test_within_a_batch_the_first_to_come_gets_the_lock(journal: Journal) -> None:
    results = await commit(journal, *(a_flow().first(locks=[lock(vm("vm-1"))]) for _ in range(3)))
    assert [reason(result) for result in results] == ["", "LOCKED", "LOCKED"]


async def test_a_lock_that_is_freed_in_a_batch_can_be_taken_in_it(journal: Journal, connection: Connection) -> None:
    holder, heir = a_flow(), a_flow()
    await applied(journal, holder.first(locks=[lock(vm("vm-1"))]))
    await applied(journal, holder.last(), heir.first(locks=[lock(vm("vm-1"))]))
    assert await connection.fetchval("SELECT flow_command_id FROM entity_lock") == heir.flow_command_id


@pytest.mark.rule("semantics §5: Exclusive or shared; all of a command's keys or none")
async def test_shared_locks_go_together_and_keep_an_exclusive_one_out(journal: Journal) -> None:
    one, two, three = a_flow(), a_flow(), a_flow()
    await applied(journal, one.first(locks=[lock(host("h"), exclusive=False)]))
    await applied(journal, two.first(locks=[lock(host("h"), exclusive=False)]))
    assert reason((await commit(journal, three.first(locks=[lock(host("h"))])))[0]) == "LOCKED"


@pytest.mark.rule("semantics §5: Held by the flow, stored, re-entrant within it")
async def test_a_flow_may_take_its_own_locks_again_and_raise_them(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    await applied(journal, flow.first(locks=[lock(vm("vm-1"), exclusive=False)]))
    await applied(journal, flow.next(locks=[lock(vm("vm-1"), exclusive=False), lock(vm("vm-1"))]))
    assert await connection.fetch("SELECT exclusive FROM entity_lock") == [(True,)]


# --- entities --------------------------------------------------------------------------------------------------------


async def test_an_entity_is_created_changed_and_removed(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    create = jobstore_pb2.EntityChange(entity=vm("vm-1"), name="web", declared_json='{"memory_mb": 64}')
    lock_it = jobstore_pb2.EntityChange(entity=vm("vm-1"), status="LOCKED")
    remove = jobstore_pb2.EntityChange(entity=vm("vm-1"), remove=True)
    await applied(journal, flow.first(entities=[create]))
    await applied(journal, flow.next(entities=[lock_it]))
    row = await connection.fetchrow("SELECT name, status, declared, version, revision FROM entity")
    assert tuple(row) == ("web", "LOCKED", '{"memory_mb": 64}', 2, 2)
    await applied(journal, flow.next(entities=[remove]))
    assert await connection.fetchval("SELECT count(*) FROM entity") == 0
    assert await connection.fetchval("SELECT (entity_id, revision) FROM tombstone") == ("vm-1", 3)


async def test_an_entity_that_comes_back_goes_on_from_its_last_version(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    await applied(journal, flow.first(entities=[jobstore_pb2.EntityChange(entity=vm("vm-1"))]))
    await applied(journal, flow.next(entities=[jobstore_pb2.EntityChange(entity=vm("vm-1"), remove=True)]))
    await applied(journal, flow.next(entities=[jobstore_pb2.EntityChange(entity=vm("vm-1"))]))
    assert await connection.fetchval("SELECT version FROM entity") == 2
    assert await connection.fetchval("SELECT count(*) FROM tombstone") == 0


async def test_of_two_flows_that_read_the_same_version_one_wins(journal: Journal, connection: Connection) -> None:
    await put_vm(journal, connection, "vm-1")
    read = jobstore_pb2.EntityVersion(entity=vm("vm-1"), version=1)
    change = jobstore_pb2.EntityChange(entity=vm("vm-1"), status="LOCKED")
    results = await commit(journal, *(a_flow().first(read_versions=[read], entities=[change]) for _ in range(3)))
    assert [reason(result) for result in results] == ["", "CONFLICT", "CONFLICT"]
    assert await connection.fetchval("SELECT version FROM entity") == 2


async def test_changes_of_one_entity_by_two_flows_of_a_batch_are_both_made(
    journal: Journal, connection: Connection
) -> None:
    await put_vm(journal, connection, "vm-1")
    rename = jobstore_pb2.EntityChange(entity=vm("vm-1"), name="renamed")
    spoil = jobstore_pb2.EntityChange(entity=vm("vm-1"), status="ILLEGAL")
    await applied(journal, a_flow().first(entities=[rename]), a_flow().first(entities=[spoil]))
    assert await connection.fetchval("SELECT (name, status) FROM entity") == ("renamed", "ILLEGAL")


@pytest.mark.rule("semantics §2: the commit that stores a wait answers with the entity as it is")
async def test_a_commit_answers_with_the_entities_it_asks_for_as_they_are_then(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    create = jobstore_pb2.EntityChange(entity=vm("vm-1"), name="web")
    first = flow.first(entities=[create], report_entities=[vm("nobody"), vm("vm-1")])
    [result] = await applied(journal, first)
    assert [(entity.entity_id, entity.version) for entity in result.entities] == [("nobody", 0), ("vm-1", 1)]
    await observe(journal, "vm-1", state="UP", number=3)
    [again] = await applied(journal, first)
    assert again.entities[1].observed.state == "UP"


@pytest.mark.rule("semantics §6: Ends well → snapshots go with the last commit")
async def test_snapshots_stay_until_the_flow_has_ended(journal: Journal, connection: Connection) -> None:
    flow = a_flow()
    snapshot = jobstore_pb2.SnapshotRow(command_id=flow.flow_command_id, number=1, entity=vm("vm-1"))
    await applied(journal, flow.first(snapshots=[snapshot]))
    assert await connection.fetchval("SELECT count(*) FROM entity_snapshot WHERE former IS NULL") == 1
    await applied(journal, flow.last())
    assert await connection.fetchval("SELECT count(*) FROM entity_snapshot") == 0


# --- notes -----------------------------------------------------------------------------------------------------------


async def observe(journal: Journal, entity_id: str, **seen: Any) -> None:
    observed = jobs_pb2.Observed(**{"incarnation": "i1", "host_id": "host-1", **seen})
    row = jobstore_pb2.ObservedRow(entity=vm(entity_id), observed=observed)
    await journal.commit(jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, observations=[row]))


async def test_the_same_number_with_other_content_is_news(journal: Journal, connection: Connection) -> None:
    await put_vm(journal, connection, "vm-1")
    await observe(journal, "vm-1", state="UP", number=5)
    await observe(journal, "vm-1", state="UNREACHABLE", number=5)
    assert await connection.fetchval("SELECT observed_state FROM entity") == "UNREACHABLE"


@pytest.mark.rule("semantics §2: Entities have observed fields, written only from what hosts report, ordered by")
async def test_observations_are_ordered_by_their_number(journal: Journal, connection: Connection) -> None:
    await put_vm(journal, connection, "vm-1")
    await observe(journal, "vm-1", state="UP", number=5)
    await observe(journal, "vm-1", state="POWERING_UP", number=4)
    row = await connection.fetchrow("SELECT observed_state, observed_number, version, revision FROM entity")
    assert tuple(row) == ("UP", 5, 1, 3)
    assert await head(connection) == 3  # what was known already burned no revision


@pytest.mark.rule("semantics §2: Entities have observed fields, written only from what hosts report, ordered by")
async def test_another_incarnation_is_news(journal: Journal, connection: Connection) -> None:
    await put_vm(journal, connection, "vm-1")
    await observe(journal, "vm-1", state="UP", number=5)
    await observe(journal, "vm-1", state="DOWN", number=1, incarnation="i2")
    assert await connection.fetchval("SELECT observed_state FROM entity") == "DOWN"


@pytest.mark.rule("semantics §2: observed fields, ordered by (incarnation, number)")
async def test_a_late_word_of_the_former_host_does_not_override_that_of_the_new_one(
    journal: Journal, connection: Connection
) -> None:
    await put_vm(journal, connection, "vm-1")
    await observe(journal, "vm-1", state="UP", number=5)
    await observe(journal, "vm-1", state="MIGRATING", number=6)
    await observe(journal, "vm-1", state="UP", number=1, incarnation="i2", host_id="host-2")
    for state, number in (("MIGRATING", 7), ("DOWN", 8)):
        await observe(journal, "vm-1", state=state, number=number)
    assert await connection.fetchval("SELECT observed_state || ' ' || observed_host_id FROM entity") == "UP host-2"


async def test_a_vm_that_was_seen_down_may_be_spoken_of_by_any_host(journal: Journal, connection: Connection) -> None:
    await put_vm(journal, connection, "vm-1")
    await observe(journal, "vm-1", state="DOWN", number=5)
    await observe(journal, "vm-1", state="DOWN", number=1, incarnation="i2", host_id="host-2", error="no memory")
    assert await connection.fetchval("SELECT observed_error FROM entity") == "no memory"


async def test_an_unknown_entity_is_not_observed(journal: Journal, connection: Connection) -> None:
    await observe(journal, "nobody", state="UP", number=1)
    assert await head(connection) == 0


async def test_tasks_are_cleared_when_over_and_their_jobs_stay_as_they_are(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    cleared = jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, cleared_task_ids=[flow.task_id, "unknown"])
    await applied(journal, flow.first())
    await journal.commit(cleared)
    assert await connection.fetchval("SELECT cleared FROM host_task") is False
    [last] = await applied(journal, flow.last())
    await journal.commit(cleared)
    assert await connection.fetchval("SELECT cleared FROM host_task") is True
    assert await connection.fetchval("SELECT revision FROM job") == last.revision


async def test_an_event_of_no_flow_is_stored_once(journal: Journal, connection: Connection) -> None:
    event = jobstore_pb2.EventRow(
        event_id="e1",
        event_type="HOST_DOWN",
        severity=jobs_pb2.SEVERITY_ERROR,
        message="Host h1 does not answer",
        entity=host("h1"),
        correlation_id="c-1",
    )
    for _ in range(2):
        await journal.commit(jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, events=[event]))
    row = await connection.fetchrow("SELECT * FROM event")
    assert (row["job_id"], row["correlation_id"], row["entity_id"]) == ("", "c-1", "h1")
    assert await connection.fetchval("SELECT count(*) FROM event") == 1


@pytest.mark.rule("semantics §4: stored ones for alarms, cancels, interventions, take-overs, fences, leftovers")
async def test_an_event_about_a_task_of_a_flow_that_is_over_is_stored_once_with_all_its_names(
    journal: Journal, connection: Connection
) -> None:
    flow = a_flow()
    task = jobstore_pb2.TaskRow(
        task_id="left", kind=jobs_pb2.HOST_TASK_KIND_TASK, command_id=flow.flow_command_id, host_id="h1", verb="copy"
    )
    task.entity.CopyFrom(vm("vm-1"))
    await applied(journal, flow.first())
    await applied(journal, flow.next(new_tasks=[task]))
    events = [
        jobstore_pb2.EventRow(
            event_id=f"about {task_id}",
            event_type="LEFTOVER",
            severity=jobs_pb2.SEVERITY_WARNING,
            message="it outlived its flow",
            task_id=task_id,
        )
        for task_id in ("left", "unknown", "left")
    ]
    for _ in range(2):
        await journal.commit(jobstore_pb2.CommitRequest(coordinator_id=COORDINATOR, events=events))
    [row] = await connection.fetch("SELECT * FROM event")
    job = await connection.fetchrow("SELECT * FROM job")
    assert (row["job_id"], row["correlation_id"]) == (job["job_id"], job["correlation_id"])
    assert (row["event_type"], row["entity_type"], row["entity_id"]) == ("LEFTOVER", "VM", "vm-1")


async def test_the_doorbell_rings_once_a_transaction_with_its_revision(
    journal: Journal, connection: Connection
) -> None:
    rung: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("waybill_revision", lambda *call: rung.put_nowait(call[3]))
    await applied(journal, a_flow().first(), a_flow().first())
    assert await rung.get() == "1"
    await applied(journal, a_flow().first())
    assert await rung.get() == "2"


class TestLogLines:
    @pytest.fixture
    def lines(self) -> Iterator[list[Any]]:
        with structlog.testing.capture_logs() as lines:
            yield lines

    async def test_a_job_has_a_line_for_its_beginning_and_its_end_and_none_for_its_progress(
        self, journal: Journal, lines: list[Any]
    ) -> None:
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        flow = a_flow(command_type="RemoveImage", correlation_id="order-7", trace_id=trace_id)
        first = flow.first()
        first.new_commands[0].traceparent = f"00-{trace_id}-b7ad6b7169203331-01"
        [begun] = await commit(journal, first)
        await commit(journal, flow.progress(50))
        [ended] = await commit(journal, flow.last())
        assert [(line["status"], line["revision"]) for line in lines] == [
            ("STARTED", begun.revision),
            ("FINISHED", ended.revision),
        ]
        names = {"job_id": flow.job_id, "correlation_id": "order-7", "trace_id": trace_id}
        expected = {"event": "job changed status", "command_type": "RemoveImage", "log_level": "info", **names}
        assert all(expected.items() <= line.items() for line in lines)

    async def test_what_is_refused_or_said_twice_has_no_line(self, journal: Journal, lines: list[Any]) -> None:
        flow = a_flow()
        first = flow.first()
        await commit(journal, first)
        await commit(journal, first)
        stale = flow.last()
        stale.epoch += 1
        await commit(journal, stale)
        assert [line["status"] for line in lines] == ["STARTED"]
