"""The picture of a job, and the lines that tell its changes."""

from __future__ import annotations

import io
from typing import Any

from google.rpc import code_pb2, status_pb2
from rich.console import Console

from waybill.v1.jobs_pb2 import EntityType, ExecutionStatus, Job, Step, Subject
from waybill_cli.tree import JobPicture, change_lines


def a_step(step_id: str, step_type: str, status: str, parent: str = "", number: int = 0, **fields: Any) -> Step:
    return Step(
        step_id=step_id,
        step_type=step_type,
        parent_step_id=parent,
        number=number,
        status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"),
        **fields,
    )


def a_job(*steps: Step, status: str = "STARTED", **fields: Any) -> Job:
    return Job(
        job_id="j",
        command_type="RemoveVm",
        description="Removing VM web",
        status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"),
        steps=steps,
        **fields,
    )


def drawn(job: Job, height: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(JobPicture(job, height=height))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_steps_hang_beneath_their_parents_by_number() -> None:
    job = a_job(
        a_step("e", "EXECUTION", "STARTED", number=1, progress=50),
        a_step("d2", "DELETE_IMAGE", "STARTED", parent="e", number=1, progress=40, description="disk-2"),
        a_step("d1", "DELETE_IMAGE", "FINISHED", parent="e", number=0, progress=100, description="disk-1"),
        a_step("v", "VALIDATION", "FINISHED", number=0),
        a_step("f", "FINALIZATION", "PENDING", number=2),
        progress=50,
    )
    titles = [
        line[:45].split("  STARTED")[0].split("  FINISHED")[0].split("  PENDING")[0].rstrip() for line in drawn(job)
    ]
    assert titles == [
        "RemoveVm  Removing VM web",
        "├─ ✓ VALIDATION",
        "├─ ◐ EXECUTION",
        "│  ├─ ✓ DELETE_IMAGE  disk-1",
        "│  ╰─ ◐ DELETE_IMAGE  disk-2",
        "╰─ ○ FINALIZATION",
    ]


def test_what_runs_has_a_bar_and_what_is_over_has_none() -> None:
    running, over = drawn(a_job(progress=40)), drawn(a_job(status="FINISHED", progress=100))
    assert "40%" in running[0]
    assert "━" in running[0]
    assert "%" not in over[0]


def test_an_error_stands_beneath_its_step() -> None:
    error = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="the volume is in use")
    job = a_job(a_step("d", "DELETE_IMAGE", "FAILED", error=error))
    assert drawn(job)[2].strip() == "FAILED_PRECONDITION: the volume is in use"


def test_control_characters_never_reach_the_terminal() -> None:
    job = a_job(a_step("d", "DELETE_IMAGE", "STARTED", description="a\x1b[2Jb"))
    assert "a\\x1b[2Jb" in drawn(job)[1]


def test_what_would_be_undone_stands_beneath_the_plan() -> None:
    job = a_job(a_step("1", "EXECUTION", "PENDING"), status="PENDING")
    disk = Subject(entity_type=EntityType.ENTITY_TYPE_DISK, entity_id="disk-1")
    job.compensations.add(entity=disk, command_type="RemoveDisk", status="OK", may_become_illegal=True)
    disk.entity_id = "disk-2"
    job.compensations.add(entity=disk, command_type="AddDisk", removed=True)
    assert drawn(job)[-2:] == [
        "if RemoveDisk fails: DISK/disk-1 is OK again, or ILLEGAL if its work is not rolled back",
        "if AddDisk fails: DISK/disk-2 is removed",
    ]


def test_in_a_low_window_only_what_tells_is_drawn() -> None:
    steps = [a_step(str(number), "DELETE_IMAGE", "FINISHED", parent="e", number=number) for number in range(100)]
    steps[70].status = ExecutionStatus.EXECUTION_STATUS_STARTED
    lines = drawn(a_job(a_step("e", "EXECUTION", "STARTED"), *steps), height=10)
    assert len(lines) == 4
    assert lines[-1].strip() == "… and 99 FINISHED"


def test_a_new_job_is_told_with_all_its_steps() -> None:
    job = a_job(
        a_step("e", "EXECUTION", "STARTED"), a_step("d", "DELETE_IMAGE", "PENDING", parent="e", description="disk-1")
    )
    assert list(change_lines(None, job)) == [
        "STARTED     0%  Removing VM web",
        "STARTED     0%  EXECUTION",
        "PENDING     0%  EXECUTION > DELETE_IMAGE  disk-1",
    ]


def test_only_what_has_changed_is_told() -> None:
    before = a_job(a_step("v", "VALIDATION", "FINISHED"), a_step("e", "EXECUTION", "STARTED", progress=10))
    after = a_job(a_step("v", "VALIDATION", "FINISHED"), a_step("e", "EXECUTION", "STARTED", progress=60))
    assert list(change_lines(before, after)) == ["STARTED    60%  EXECUTION"]


def test_a_failure_is_told_with_its_reason() -> None:
    error = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no VM vm-9")
    (line,) = change_lines(a_job(), a_job(status="FAILED", error=error))
    assert line == "FAILED      0%  Removing VM web  (NOT_FOUND: no VM vm-9)"
