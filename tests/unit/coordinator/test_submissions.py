"""What RunCommand refuses before anything comes of it, and how it says so."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import timestamp_pb2

from chassis.context import CallContext
from chassis.errors import WaybillError
from coordinator import submissions
from coordinator.commands.base import Registry
from coordinator.rows import Job
from waybill.v1.coordinator_pb2 import RunCommandRequest

REGISTRY = Registry.load()
CALL = CallContext(correlation_id="corr-1", user="anna")


def a_request(command_type: str = "RemoveVm", parameters: object = None, **fields: object) -> RunCommandRequest:
    request = RunCommandRequest(command_type=command_type, **fields)  # type: ignore[arg-type]
    request.parameters.update({"vm_id": "vm-1"} if parameters is None else parameters)  # type: ignore[arg-type]
    return request


def read(request: RunCommandRequest) -> Job:
    return submissions.read(request, REGISTRY, CALL, "job-1")[0]


def refusal(request: RunCommandRequest) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        read(request)
    return caught.value


def fields_of(error: WaybillError) -> list[str]:
    return [field for field, _ in error.violations]


def test_a_job_takes_owner_and_correlation_id_from_the_call() -> None:
    job = read(a_request())
    assert (job.owner, job.correlation_id) == ("anna", "corr-1")


@pytest.mark.rule("semantics §2: Correlation id: given, else the parent's, else made")
def test_the_correlation_id_of_the_request_goes_first() -> None:
    assert read(a_request(correlation_id="mine")).correlation_id == "mine"


@pytest.mark.rule("semantics §2: Unknown fields are kept and ignored")
def test_unknown_parameters_are_kept() -> None:
    assert read(a_request(parameters={"vm_id": "vm-1", "colour": "red"})).parameters["colour"] == "red"


def test_whole_numbers_stay_whole() -> None:
    job = read(a_request("AddDisk", {"disk_id": "d", "size_mb": 10, "host_id": "h"}))
    assert job.parameters["size_mb"] == 10
    assert isinstance(job.parameters["size_mb"], int)


def test_an_unknown_command_is_not_found() -> None:
    error = refusal(a_request("RemoveMoon"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "COMMAND_TYPE_UNKNOWN")


def test_a_missing_command_type_names_the_field() -> None:
    assert fields_of(refusal(a_request(""))) == ["command_type"]


@pytest.mark.rule("semantics §2: It and the shape of the parameters are checked: bad → the call is refused (RPC error")
def test_every_bad_parameter_is_named_at_once() -> None:
    error = refusal(a_request("AddDisk", {"disk_id": "", "size_mb": "many"}))
    assert error.reason == "PARAMETERS_INVALID"
    assert fields_of(error) == ["parameters.disk_id", "parameters.size_mb", "parameters.host_id"]


@pytest.mark.rule("semantics §4: Correlation id: 1–50 of `[0-9A-Za-z_-]`; anything else is refused, never cut or")
@pytest.mark.parametrize("bad", ["x" * 51, "a b", "ä", "a/b", "a\nb"])
def test_a_bad_correlation_id_is_refused_and_never_cut(bad: str) -> None:
    error = refusal(a_request(correlation_id=bad))
    assert error.reason == "CORRELATION_ID_INVALID"
    assert fields_of(error) == ["correlation_id"]


def test_a_nul_byte_is_refused_wherever_it_is() -> None:
    assert fields_of(refusal(a_request(parameters={"vm_id": "vm\x00"}))) == ["parameters.vm_id"]
    assert fields_of(refusal(a_request(parameters={"vm_id": "v", "a": [{"b": "\x00"}]}))) == ["parameters.a[0].b"]
    assert fields_of(refusal(a_request(parameters={"vm_id": "v", "\x00": 1}))) == ["parameters"]
    assert fields_of(refusal(a_request(request_id="a\x00"))) == ["request_id"]


def test_parameters_over_the_limit_are_refused() -> None:
    error = refusal(a_request(parameters={"vm_id": "vm-1", "note": "x" * 300 * 1024}))
    assert error.reason == "PARAMETERS_TOO_LARGE"
    assert fields_of(error) == ["parameters"]


def test_parameters_up_to_the_limit_are_taken() -> None:
    assert read(a_request(parameters={"vm_id": "vm-1", "note": "x" * 250 * 1024})).job_id == "job-1"


def test_parameters_nested_too_deep_are_refused() -> None:
    nested: object = 1
    for _ in range(40):
        nested = {"a": nested}
    assert refusal(a_request(parameters={"vm_id": "v", "a": nested})).reason == "PARAMETERS_TOO_LARGE"


def test_a_number_that_is_none_is_refused() -> None:
    assert fields_of(refusal(a_request(parameters={"vm_id": "v", "a": float("nan")}))) == ["parameters.a"]


def test_long_names_are_refused() -> None:
    assert fields_of(refusal(a_request(request_id="x" * 257))) == ["request_id"]


def test_the_same_request_has_the_same_hash_whatever_its_correlation_id() -> None:
    one = read(a_request(request_id="r", correlation_id="a"))
    two = read(a_request(request_id="r", correlation_id="b"))
    assert one.request_hash == two.request_hash != b""


def test_another_body_has_another_hash() -> None:
    one = read(a_request(request_id="r"))
    assert one.request_hash != read(a_request(request_id="r", parameters={"vm_id": "vm-2"})).request_hash
    later = timestamp_pb2.Timestamp(seconds=9)
    assert one.request_hash != read(a_request(request_id="r", deadline=later)).request_hash


def test_an_external_job_is_named_by_its_id() -> None:
    refused = refusal(a_request(external_job_id="x"))
    assert (refused.reason, refused.violations[0][0]) == ("REQUEST_INVALID", "external_job_id")
