"""Messages as plain data."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from waybill.v1.jobs_pb2 import CancelKind, Entity, EntityType, ExecutionStatus, ExternalSystemType, Job, Step, Subject
from waybill_cli.records import record
from waybill_client.words import struct, timestamp


def test_a_job_reads_as_people_speak() -> None:
    job = Job(
        job_id="j",
        status=ExecutionStatus.EXECUTION_STATUS_STARTED,
        cancelable=CancelKind.CANCEL_KIND_FINISH_FORWARD,
        parameters=struct({"size_mb": 10}),
        subjects=[Subject(entity_type=EntityType.ENTITY_TYPE_VM, entity_id="vm-1")],
        create_time=timestamp(datetime(2026, 11, 21, 12, tzinfo=UTC)),
        revision=7,
        steps=[Step(step_id="s", external_system_type=ExternalSystemType.EXTERNAL_SYSTEM_TYPE_HOST_AGENT)],
    )
    data = record(job)
    assert (data["status"], data["cancelable"], data["revision"]) == ("STARTED", "FINISH_FORWARD", 7)
    assert data["parameters"] == {"size_mb": 10}
    assert data["subjects"] == [{"entity_type": "VM", "entity_id": "vm-1", "name": ""}]
    assert data["create_time"] == "2026-11-21T12:00:00Z"
    assert data["steps"][0]["external_system_type"] == "HOST_AGENT"


def test_what_is_absent_is_left_out_and_what_is_plain_stays() -> None:
    data = record(Job(job_id="j"))
    assert "end_time" not in data
    assert "error" not in data
    assert "steps" not in data
    assert (data["progress"], data["visible"], data["owner"]) == (0, False, "")


def test_an_error_tells_its_reason() -> None:
    detail = Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="LOCKED", domain="waybill", metadata={"job_id": "other"}))
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="held", details=[detail])
    assert record(Job(error=status))["error"] == {
        "code": "FAILED_PRECONDITION",
        "reason": "LOCKED",
        "message": "held",
        "metadata": {"job_id": "other"},
    }


def test_an_entity_reads_as_it_may_be_loaded() -> None:
    entity = Entity(entity_type=EntityType.ENTITY_TYPE_STORAGE_DOMAIN, entity_id="sd", declared=struct({"on": True}))
    assert record(entity)["entity_type"] == "STORAGE_DOMAIN"
    assert record(entity)["declared"] == {"on": True}


def test_a_number_that_no_word_is_known_for_stays_a_number() -> None:
    assert record(Job(status=ExecutionStatus.ValueType(77)))["status"] == "77"
