"""The commit that ends a flow by force."""

from __future__ import annotations

import pytest

from chassis.errors import WaybillError
from coordinator.engine.forcedend import forced_end, tasks_by_host
from waybill.v1 import jobs_pb2, jobstore_pb2

ENDED = {"end_time": {"seconds": 1}}
DISK, DISK_2, VM = ((kind, name) for kind, name in (("DISK", "d-1"), ("DISK", "d-2"), ("VM", "vm-1")))


def ref(entity: tuple[str, str]) -> jobstore_pb2.EntityRef:
    kind = jobs_pb2.EntityType.Value(f"ENTITY_TYPE_{entity[0]}")
    return jobstore_pb2.EntityRef(entity_type=kind, entity_id=entity[1])


def some_rows() -> jobstore_pb2.FlowRows:
    """A root with a child that has ended and one that has not, and a task each."""
    rows = jobstore_pb2.FlowRows(flow_command_id="root", epoch=3, sequence=8)
    rows.job.job_id = "job-1"
    rows.job.status = jobs_pb2.EXECUTION_STATUS_STARTED
    for command_id, status in (("root", "ACTIVE"), ("done", "ENDED_SUCCESSFULLY"), ("next", "NOT_STARTED")):
        row = rows.commands.add(command_id=command_id, status=jobs_pb2.CommandStatus.Value(f"COMMAND_STATUS_{status}"))
        if command_id == "done":
            row.end_time.seconds = 1
    for step_id, step_status in (("s-1", "FINISHED"), ("s-2", "STARTED"), ("s-3", "PENDING")):
        rows.steps.add(step_id=step_id, status=jobs_pb2.ExecutionStatus.Value(f"EXECUTION_STATUS_{step_status}"))
    over = {"state": jobs_pb2.TASK_STATE_FINISHED, "result": jobs_pb2.TASK_RESULT_SUCCESS}
    rows.tasks.add(task_id="t-1", command_id="done", host_id="h1", entity=ref(DISK_2), **over)
    rows.tasks.add(task_id="t-2", command_id="root", host_id="h2", entity=ref(DISK))
    rows.tasks.add(task_id="t-3", command_id="root", kind=jobs_pb2.HOST_TASK_KIND_WAIT, entity=ref(VM))
    former = '{"name": "n", "status": "OK", "declared": {"size": 1}}'
    rows.snapshots.add(command_id="root", number=1, entity=ref(VM), former_json=former)
    rows.snapshots.add(command_id="root", number=2, entity=ref(DISK), former_json=former)
    rows.snapshots.add(command_id="done", number=3, entity=ref(DISK_2), former_json=former)
    return rows


def ended(rows: jobstore_pb2.FlowRows) -> jobstore_pb2.FlowCommit:
    return forced_end(rows, "ada", "it hangs", "event-1")


@pytest.mark.rule("semantics §2: A job in an end status has no lock, no live command, no running task, no open step")
def test_nothing_of_the_flow_stays_open() -> None:
    commit = ended(some_rows())
    assert (commit.epoch, commit.sequence, commit.ends_flow, commit.ends_wait) == (3, 9, True, True)
    assert commit.job.status == jobs_pb2.EXECUTION_STATUS_FAILED
    assert WaybillError.from_status(commit.job.error).reason == "FORCE_ENDED"
    assert {step.step_id: step.status for step in commit.steps} == {
        "s-2": jobs_pb2.EXECUTION_STATUS_ABORTED,
        "s-3": jobs_pb2.EXECUTION_STATUS_SKIPPED,
    }
    assert {command.command_id: command.status for command in commit.commands} == {
        "root": jobs_pb2.COMMAND_STATUS_UNKNOWN,
        "next": jobs_pb2.COMMAND_STATUS_ENDED_WITH_FAILURE,
    }
    assert {task.task_id: task.state for task in commit.tasks} == dict.fromkeys(
        ("t-2", "t-3"), jobs_pb2.TASK_STATE_UNKNOWN
    )


def test_entities_are_what_they_were_or_illegal_where_nobody_knows() -> None:
    changes = {change.entity.entity_id: change for change in ended(some_rows()).entities}
    assert changes.keys() == {"vm-1", "d-1"}  # what the child that has ended did is done
    assert (changes["vm-1"].status, changes["vm-1"].name, changes["vm-1"].declared_json) == ("OK", "n", '{"size":1}')
    assert changes["d-1"].status == "ILLEGAL"


def test_what_was_not_there_before_is_removed_unless_it_may_be_there_in_part() -> None:
    rows = some_rows()
    for snapshot in rows.snapshots:
        snapshot.former_json = ""
    changes = {change.entity.entity_id: change for change in ended(rows).entities}
    assert (changes["vm-1"].remove, changes["d-1"].remove, changes["d-1"].status) == (True, False, "ILLEGAL")


def test_of_several_changes_of_an_entity_the_first_is_undone() -> None:
    rows = some_rows()
    later = '{"name": "n", "status": "LOCKED", "declared": {}}'
    rows.snapshots.add(command_id="next", number=4, entity=ref(VM), former_json=later)
    [change] = [change for change in ended(rows).entities if change.entity.entity_id == "vm-1"]
    assert change.status == "OK"


def test_who_did_it_and_why_is_told() -> None:
    [event] = ended(some_rows()).events
    assert (event.event_id, event.event_type, event.user) == ("event-1", "JOB_FORCE_ENDED", "ada")
    assert "it hangs" in event.message


def test_hosts_are_to_forget_all_that_they_were_told_of() -> None:
    assert tasks_by_host(some_rows()) == {"h1": ["t-1"], "h2": ["t-2"]}
