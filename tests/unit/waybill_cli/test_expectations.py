"""The demo's verdict."""

from __future__ import annotations

import pytest

from waybill.v1.jobs_pb2 import ExecutionStatus, Job, Step, Subject
from waybill_cli.expectations import Expectations
from waybill_client import WaybillClient


def a_job(**deletions: str) -> Job:
    steps = [
        Step(
            step_type="DELETE_IMAGE",
            status=ExecutionStatus.Value(f"EXECUTION_STATUS_{status}"),
            subjects=[Subject(entity_id=disk)],
        )
        for disk, status in deletions.items()
    ]
    return Job(description="Removing VM web", status=ExecutionStatus.EXECUTION_STATUS_FAILED, steps=steps)


@pytest.fixture
def expect() -> Expectations:
    return Expectations(WaybillClient(), {})


def test_all_is_well_if_everything_is_so(expect: Expectations, capsys: pytest.CaptureFixture[str]) -> None:
    expect.status(a_job(), "FAILED")
    expect.deletions(a_job(a="FINISHED", b="FAILED"), {"b": "FAILED", "a": "FINISHED"})
    assert expect.conclude()
    assert "All of it is so." in capsys.readouterr().out


def test_one_difference_is_told_and_decides(expect: Expectations, capsys: pytest.CaptureFixture[str]) -> None:
    expect.status(a_job(), "FAILED")
    expect.status(a_job(), "FINISHED")
    assert not expect.conclude()
    said = capsys.readouterr().out
    assert "✗ Removing VM web: FINISHED: wanted 'FINISHED', saw 'FAILED'" in said
    assert "1 of 2 are not so." in said


@pytest.mark.parametrize("deletions", [{}, {"a": "FINISHED"}, {"a": "FINISHED", "b": "FINISHED"}])
def test_a_deletion_too_few_or_another_end_is_a_difference(expect: Expectations, deletions: dict[str, str]) -> None:
    expect.deletions(a_job(**deletions), {"a": "FINISHED", "b": "FAILED"})
    assert not expect.conclude()
