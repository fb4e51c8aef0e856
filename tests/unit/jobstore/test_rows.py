"""From messages to rows."""

from __future__ import annotations

import json

import pytest

from chassis.errors import WaybillError
from jobstore.journal.rows import event_rows, newest, observation_rows, rows_of
from jobstore.journal.shapes import Row
from waybill.v1 import jobs_pb2, jobstore_pb2


def a_commit(**fields: object) -> jobstore_pb2.FlowCommit:
    return jobstore_pb2.FlowCommit(flow_command_id="flow", job_id="job", epoch=1, sequence=2, **fields)


def seen(number: int, state: str, incarnation: str = "i1", host_id: str = "h1") -> jobstore_pb2.ObservedRow:
    ref = jobstore_pb2.EntityRef(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1")
    observed = jobs_pb2.Observed(state=state, number=number, incarnation=incarnation, host_id=host_id)
    return jobstore_pb2.ObservedRow(entity=ref, observed=observed)


def newest_of(observed: list[jobstore_pb2.ObservedRow]) -> list[Row]:
    rounds = newest(observation_rows(observed))
    assert len(rounds) <= 1
    return [row for each in rounds for row in each]


def states(observations: list[Row]) -> list[str]:
    return [row[2] for row in observations]


def test_what_is_not_said_travels_empty() -> None:
    [step] = rows_of(a_commit(steps=[jobstore_pb2.StepChange(step_id="s")]), "c").step_changes
    assert step == ("s", "", "0", "", "", "")


def test_times_travel_as_text() -> None:
    commit = a_commit(new_tasks=[jobstore_pb2.TaskRow(task_id="t")])
    commit.new_tasks[0].deadline.FromJsonString("2026-11-01T10:00:00.25Z")
    [task] = rows_of(commit, "c").tasks
    assert task[-1] == "2026-11-01T10:00:00.250Z"


def test_a_job_is_touched_by_a_change_of_its_steps_but_not_of_its_tasks() -> None:
    assert rows_of(a_commit(steps=[jobstore_pb2.StepChange(step_id="s")]), "c").job_changes
    assert not rows_of(a_commit(tasks=[jobstore_pb2.TaskChange(task_id="t")]), "c").job_changes


def test_a_job_is_touched_when_it_reaches_a_host_for_whoever_watches_the_jobs_of_that_host() -> None:
    assert rows_of(a_commit(new_tasks=[jobstore_pb2.TaskRow(task_id="t", host_id="h")]), "c").job_changes
    assert not rows_of(a_commit(new_tasks=[jobstore_pb2.TaskRow(task_id="t")]), "c").job_changes


def test_the_root_keeps_the_sequence_whatever_else_changes() -> None:
    assert rows_of(a_commit(), "c").command_changes == [("flow", "", "", "0", "", "2")]


def test_a_change_of_the_root_keeps_the_sequence_itself() -> None:
    changed = jobstore_pb2.CommandChange(command_id="flow", status=jobs_pb2.COMMAND_STATUS_SUCCEEDED)
    child = jobstore_pb2.CommandChange(command_id="child", end_attempts=1)
    assert rows_of(a_commit(commands=[changed, child]), "c").command_changes == [
        ("flow", "SUCCEEDED", "", "0", "", "2"),
        ("child", "", "", "1", "", ""),
    ]


def test_subjects_are_json_and_keys_to_find_the_job_by() -> None:
    subject = jobs_pb2.Subject(entity_type=jobs_pb2.ENTITY_TYPE_VM, entity_id="vm-1", name='"web" ü')
    root = jobstore_pb2.CommandRow(command_id="flow")
    commit = a_commit(new_job=jobstore_pb2.JobRow(subjects=[subject, subject]), new_commands=[root])
    made = rows_of(commit, "c")
    assert made.subjects == [("VM", "vm-1", "job")]
    assert json.loads(made.jobs[0][10])[0] == {"entity_type": "VM", "entity_id": "vm-1", "name": '"web" ü'}


def test_a_flow_must_come_with_its_root() -> None:
    with pytest.raises(WaybillError, match="root command"):
        rows_of(a_commit(new_job=jobstore_pb2.JobRow()), "c")


@pytest.mark.parametrize("status", [99, -1])
def test_an_unknown_status_is_refused(status: int) -> None:
    change = jobstore_pb2.StepChange(step_id="s")
    change.status = status  # type: ignore[assignment]
    with pytest.raises(WaybillError, match="does not know"):
        rows_of(a_commit(steps=[change]), "c")


def test_an_unknown_severity_is_refused() -> None:
    event = jobstore_pb2.EventRow(event_id="e")
    event.severity = 99  # type: ignore[assignment]
    with pytest.raises(WaybillError, match="does not know"):
        event_rows([event])


def test_snapshots_of_a_flow_that_ends_are_not_written() -> None:
    snapshot = jobstore_pb2.SnapshotRow(command_id="flow", number=1)
    assert rows_of(a_commit(snapshots=[snapshot]), "c").snapshots
    assert not rows_of(a_commit(snapshots=[snapshot], ends_flow=True), "c").snapshots


def test_of_several_observations_the_highest_number_counts() -> None:
    assert states(newest_of([seen(9, "UP"), seen(10, "DOWN"), seen(8, "POWERING_UP")])) == ["DOWN"]


def test_of_several_incarnations_the_last_to_come_counts() -> None:
    assert states(newest_of([seen(5, "UP"), seen(1, "DOWN", "i2")])) == ["DOWN"]


def test_what_two_hosts_say_of_a_vm_is_written_one_after_the_other() -> None:
    both = [seen(5, "MIGRATING"), seen(1, "UP", "i2", "h2"), seen(6, "DOWN")]
    assert [states(rows) for rows in newest(observation_rows(both))] == [["DOWN"], ["UP"]]
