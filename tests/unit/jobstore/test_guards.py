"""Which commits of a batch are applied: no database, state in, verdicts out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from jobstore.journal.guards import UNSEEN, Apply, Existing, Guards, Holder, Refuse, Repeated, Root, Verdict, judge
from waybill.v1 import jobs_pb2, jobstore_pb2

NOW = datetime(2026, 11, 1, tzinfo=UTC)
US = "coordinator-1"


def vm(entity_id: str) -> jobstore_pb2.EntityRef:
    return jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id=entity_id)


def a_root(**fields: Any) -> Root:
    values: dict[str, Any] = {
        "coordinator_id": US,
        "epoch": 1,
        "sequence": 1,
        "revision": 7,
        "time": NOW,
        "job_id": "job-1",
        "correlation_id": "c-1",
        "ended": False,
    }
    return Root(**{**values, **fields})


def a_commit(flow: str = "flow-1", sequence: int = 2, epoch: int = 1, **fields: Any) -> jobstore_pb2.FlowCommit:
    return jobstore_pb2.FlowCommit(
        flow_command_id=flow, job_id=f"job-of-{flow}", epoch=epoch, sequence=sequence, **fields
    )


def a_beginning(flow: str, *, request_id: str = "", body: str = "", **fields: Any) -> jobstore_pb2.FlowCommit:
    job = jobstore_pb2.JobRow(
        owner="alice", correlation_id=f"c-of-{flow}", request_id=request_id, request_hash=body.encode()
    )
    return a_commit(flow, sequence=1, new_job=job, **fields)


def wanting(*entity_ids: str, exclusive: bool = True) -> list[jobstore_pb2.LockRow]:
    return [jobstore_pb2.LockRow(entity=vm(each), exclusive=exclusive, reason="theirs") for each in entity_ids]


def having_read(entity_id: str, version: int) -> list[jobstore_pb2.EntityVersion]:
    return [jobstore_pb2.EntityVersion(entity=vm(entity_id), version=version)]


def guards(**state: Any) -> Guards:
    return Guards(**{"leases": {US}, "roots": {"flow-1": a_root()}, **state})


def judged(state: Guards, *commits: jobstore_pb2.FlowCommit) -> list[Verdict]:
    return [judge(state, US, commit) for commit in commits]


def reasons(verdicts: list[Verdict]) -> list[str]:
    return [verdict.error.reason if isinstance(verdict, Refuse) else type(verdict).__name__ for verdict in verdicts]


# --- leases, epochs, sequences ---------------------------------------------------------------------------------------


def test_the_next_commit_is_applied_under_the_flows_correlation_id() -> None:
    assert judged(guards(), a_commit()) == [Apply([], "c-1")]


def test_a_beginning_brings_its_correlation_id() -> None:
    assert judged(guards(), a_beginning("flow-2")) == [Apply([], "c-of-flow-2")]


def test_without_a_lease_nothing_is_applied() -> None:
    assert reasons(judged(guards(leases=set()), a_commit(), a_beginning("flow-2"))) == ["LEASE_LOST", "LEASE_LOST"]


def test_the_stored_sequence_is_answered_as_before() -> None:
    assert judged(guards(), a_commit(sequence=1)) == [Repeated(7, NOW)]


@pytest.mark.parametrize("sequence", [0, 3])
def test_a_sequence_that_does_not_follow_is_refused(sequence: int) -> None:
    assert reasons(judged(guards(), a_commit(sequence=sequence))) == ["SEQUENCE_MISMATCH"]


def test_a_flow_begins_with_its_first_commit() -> None:
    assert reasons(judged(guards(), a_commit("flow-2", sequence=1))) == ["SEQUENCE_MISMATCH"]
    assert reasons(judged(guards(), a_commit("flow-2", sequence=2))) == ["SEQUENCE_MISMATCH"]


def test_a_flow_does_not_begin_twice() -> None:
    again = a_beginning("flow-1")
    again.sequence = 2
    assert reasons(judged(guards(), again)) == ["SEQUENCE_MISMATCH"]


@pytest.mark.parametrize("root", [a_root(epoch=2), a_root(epoch=0), a_root(coordinator_id="other")])
def test_a_flow_is_written_by_its_owner_in_its_epoch_alone(root: Root) -> None:
    assert reasons(judged(guards(roots={"flow-1": root}), a_commit())) == ["STALE_EPOCH"]


def test_an_old_owner_is_not_told_that_its_commit_was_applied() -> None:
    taken_over = a_root(coordinator_id="other", epoch=2)
    assert reasons(judged(guards(roots={"flow-1": taken_over}), a_commit(sequence=1))) == ["STALE_EPOCH"]


def test_an_ended_flow_takes_no_more_but_repeats_its_last_answer() -> None:
    state = guards(roots={"flow-1": a_root(ended=True)})
    assert reasons(judged(state, a_commit(sequence=2), a_commit(sequence=1))) == ["JOB_ENDED", "Repeated"]


# --- request ids -----------------------------------------------------------------------------------------------------


def test_a_known_request_is_answered_with_its_job() -> None:
    state = guards(requests={("alice", "r1"): ("job-0", b"body")})
    assert judged(state, a_beginning("flow-2", request_id="r1", body="body")) == [Existing("job-0")]


def test_a_request_id_with_another_body_is_refused() -> None:
    state = guards(requests={("alice", "r1"): ("job-0", b"body")})
    assert reasons(judged(state, a_beginning("flow-2", request_id="r1", body="else"))) == ["REQUEST_ID_REUSED"]


def test_a_request_id_counts_from_the_commit_that_uses_it() -> None:
    verdicts = judged(
        guards(),
        a_beginning("flow-2", request_id="r1", body="body"),
        a_beginning("flow-3", request_id="r1", body="body"),
        a_beginning("flow-4", request_id="r1", body="else"),
    )
    assert reasons(verdicts) == ["Apply", "Existing", "REQUEST_ID_REUSED"]
    assert verdicts[1] == Existing("job-of-flow-2")


def test_a_refused_commit_does_not_use_its_request_id() -> None:
    verdicts = judged(
        guards(),
        a_beginning("flow-2", request_id="r1", body="body", read_versions=having_read("vm-1", 9)),
        a_beginning("flow-3", request_id="r1", body="body"),
    )
    assert reasons(verdicts) == ["CONFLICT", "Apply"]


def test_without_a_request_id_all_are_different() -> None:
    assert reasons(judged(guards(), a_beginning("flow-2"), a_beginning("flow-3"))) == ["Apply", "Apply"]


# --- locks -----------------------------------------------------------------------------------------------------------

OTHERS = Holder("flow-9", "job-9", True, "Removing VM vm-1")
SHARED = Holder("flow-9", "job-9", False, "Reading VM vm-1")
OURS = Holder("flow-1", "job-of-flow-1", True, "ours")


@pytest.mark.rule("semantics §5: Refusal names the holder's job and reason")
def test_what_another_flow_holds_is_refused_with_its_job_and_reason() -> None:
    [verdict] = judged(guards(holders={("VM", "vm-1"): [OTHERS]}), a_commit(locks=wanting("vm-1")))
    assert isinstance(verdict, Refuse)
    assert verdict.error.metadata == {
        "job_id": "job-9",
        "holder_reason": "Removing VM vm-1",
        "entity_type": "VM",
        "entity_id": "vm-1",
    }


@pytest.mark.rule("semantics §5: Exclusive or shared; all of a command's keys or none")
def test_shared_locks_go_together() -> None:
    state = guards(holders={("VM", "vm-1"): [SHARED]})
    assert reasons(judged(state, a_commit(locks=wanting("vm-1", exclusive=False)))) == ["Apply"]


@pytest.mark.rule("semantics §5: Exclusive or shared; all of a command's keys or none")
def test_a_shared_lock_keeps_an_exclusive_one_out() -> None:
    state = guards(holders={("VM", "vm-1"): [SHARED]})
    assert reasons(judged(state, a_commit(locks=wanting("vm-1")))) == ["LOCKED"]


@pytest.mark.rule("semantics §5: Held by the flow, stored, re-entrant within it")
def test_a_flows_own_locks_are_no_obstacle_and_not_taken_twice() -> None:
    state = guards(holders={("VM", "vm-1"): [OURS]})
    [verdict] = judged(state, a_commit(locks=wanting("vm-1", "vm-2")))
    assert isinstance(verdict, Apply)
    assert [lock.entity.entity_id for lock in verdict.locks] == ["vm-2"]


@pytest.mark.rule("semantics §5: Exclusive or shared; all of a command's keys or none")
def test_all_locks_are_taken_or_none() -> None:
    state = guards(holders={("VM", "vm-2"): [OTHERS]})
    verdicts = judged(state, a_commit(locks=wanting("vm-1", "vm-2")), a_beginning("flow-2", locks=wanting("vm-1")))
    assert reasons(verdicts) == ["LOCKED", "Apply"]


def test_a_lock_counts_from_the_commit_that_takes_it() -> None:
    verdicts = judged(
        guards(), a_beginning("flow-2", locks=wanting("vm-1")), a_beginning("flow-3", locks=wanting("vm-1"))
    )
    assert reasons(verdicts) == ["Apply", "LOCKED"]


def test_a_lock_is_free_from_the_commit_that_ends_its_flow() -> None:
    state = guards(holders={("VM", "vm-1"): [OURS]})
    verdicts = judged(
        state,
        a_beginning("flow-2", locks=wanting("vm-1")),
        a_commit(ends_flow=True),
        a_beginning("flow-3", locks=wanting("vm-1")),
    )
    assert reasons(verdicts) == ["LOCKED", "Apply", "Apply"]


def test_a_flow_that_begins_and_ends_at_once_takes_no_lock() -> None:
    verdicts = judged(
        guards(),
        a_beginning("flow-2", locks=wanting("vm-1"), ends_flow=True),
        a_beginning("flow-3", locks=wanting("vm-1")),
    )
    assert verdicts[0] == Apply([], "c-of-flow-2")
    assert reasons(verdicts) == ["Apply", "Apply"]


def test_wanted_twice_a_lock_is_taken_once_at_its_strongest() -> None:
    [verdict] = judged(guards(), a_commit(locks=wanting("vm-1", exclusive=False) + wanting("vm-1")))
    assert isinstance(verdict, Apply)
    assert [lock.exclusive for lock in verdict.locks] == [True]


def test_a_shared_lock_of_ones_own_can_be_made_exclusive() -> None:
    ours = Holder("flow-1", "job-of-flow-1", False, "ours")
    state = guards(holders={("VM", "vm-1"): [ours]})
    [raised, refused] = judged(
        state, a_commit(locks=wanting("vm-1")), a_beginning("flow-2", locks=wanting("vm-1", exclusive=False))
    )
    assert isinstance(raised, Apply)
    assert [lock.exclusive for lock in raised.locks] == [True]
    assert isinstance(refused, Refuse)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "read", "verdict"), [(3, 3, "Apply"), (4, 3, "CONFLICT"), (0, 3, "CONFLICT")])
def test_what_was_read_must_not_have_changed(stored: int, read: int, verdict: str) -> None:
    state = guards(versions={("VM", "vm-1"): stored} if stored else {})
    assert reasons(judged(state, a_commit(read_versions=having_read("vm-1", read)))) == [verdict]


def test_that_something_is_absent_can_be_read_too() -> None:
    commits = a_commit(read_versions=having_read("vm-1", 0)), a_beginning("f", read_versions=having_read("vm-2", 0))
    assert reasons(judged(guards(versions={("VM", "vm-2"): 1}), *commits)) == ["Apply", "CONFLICT"]


def test_a_change_counts_from_the_commit_that_makes_it() -> None:
    state = guards(versions={("VM", "vm-1"): 3})
    change = jobstore_pb2.EntityChange(entity=vm("vm-1"), status="LOCKED")
    verdicts = judged(
        state,
        a_commit(read_versions=having_read("vm-1", 3), entities=[change]),
        a_beginning("flow-2", read_versions=having_read("vm-1", 3)),
        a_beginning("flow-3", read_versions=having_read("vm-1", 4)),
    )
    assert reasons(verdicts) == ["Apply", "CONFLICT", "CONFLICT"]
    assert state.versions["VM", "vm-1"] == UNSEEN


@pytest.mark.rule("semantics §2: An entity that changed meanwhile: locks first, then validate and execute again")
def test_locks_are_looked_at_before_versions() -> None:
    """Whoever is refused for a lock can wait for it; a conflict is for those who hold it."""
    state = guards(holders={("VM", "vm-1"): [OTHERS]})
    both = a_commit(locks=wanting("vm-1"), read_versions=having_read("vm-1", 9))
    assert reasons(judged(state, both)) == ["LOCKED"]
