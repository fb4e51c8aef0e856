"""What a refused call raises."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import Metadata

from waybill_client import FailedPrecondition, InvalidArgument, NotFound, Unavailable, Violation, WaybillError


def a_status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def an_rpc_error(code: grpc.StatusCode, details: str, *trailing: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, Metadata(("x-correlation-id", "abc")), Metadata(*trailing), details)


def test_the_class_says_the_code_and_the_details_say_why() -> None:
    info = error_details_pb2.ErrorInfo(reason="LOCKED", domain="waybill", metadata={"job_id": "j1"})
    error = WaybillError.from_status(a_status(grpc.StatusCode.FAILED_PRECONDITION, "disk is held", info))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.message, error.metadata) == ("LOCKED", "disk is held", {"job_id": "j1"})


def test_violations_name_the_fields() -> None:
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="parameters.vm_id", description="required")]
    )
    error = WaybillError.from_status(a_status(grpc.StatusCode.INVALID_ARGUMENT, "bad", bad))
    assert isinstance(error, InvalidArgument)
    assert error.violations == (Violation("parameters.vm_id", "required"),)
    assert "parameters.vm_id: required" in str(error)


def test_retry_info_is_seconds() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    assert WaybillError.from_status(a_status(grpc.StatusCode.UNAVAILABLE, "", retry)).retry_after == 1.5


def test_a_failure_of_the_transport_has_the_name_of_its_code() -> None:
    refused = an_rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused")
    error = WaybillError.from_rpc_error(refused, peer="jobstore at 127.0.0.1:1")
    assert isinstance(error, Unavailable)
    assert error.reason == "UNAVAILABLE"
    assert error.message == "cannot reach the jobstore at 127.0.0.1:1: connection refused"


def test_a_call_that_a_server_broke_off_may_be_made_again() -> None:
    error = WaybillError.from_rpc_error(an_rpc_error(grpc.StatusCode.CANCELLED, "CANCELLED"), peer="jobstore at x:1")
    assert isinstance(error, Unavailable)
    assert error.message == "the jobstore at x:1 broke the call off"


def test_the_correlation_id_comes_back_with_the_error() -> None:
    status = a_status(grpc.StatusCode.NOT_FOUND, "no", error_details_pb2.ErrorInfo(reason="JOB_NOT_FOUND"))
    refused = an_rpc_error(grpc.StatusCode.NOT_FOUND, "no", ("grpc-status-details-bin", status.SerializeToString()))
    error = WaybillError.from_rpc_error(refused, peer="jobstore")
    assert isinstance(error, NotFound)
    assert (error.reason, error.correlation_id) == ("JOB_NOT_FOUND", "abc")


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_becomes_an_error(code: grpc.StatusCode) -> None:
    assert WaybillError.from_status(a_status(code, "m")).code is code


def test_a_code_that_is_none_is_unknown() -> None:
    assert WaybillError.from_status(status_pb2.Status(code=999)).code is grpc.StatusCode.UNKNOWN
