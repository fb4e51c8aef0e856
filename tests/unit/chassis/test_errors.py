"""One error family on both sides of the wire."""

import re
from pathlib import Path

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.texts import any_text

from chassis import errors
from chassis.errors import DETAILS_KEY, WaybillError, reject_control, reject_control_in
from waybill.v1 import coordinator_pb2, errors_pb2

SERVICES = Path(__file__).parents[3] / "services"

failures = st.builds(
    WaybillError,
    st.sampled_from([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]),
    st.sampled_from(["LOCKED", "CONFLICT", "OWN_REASON_OF_A_PLUGIN"]),
    any_text(max_size=2000),
    metadata=st.dictionaries(any_text(min_size=1, max_size=20), any_text(max_size=500), max_size=12),
    violations=st.lists(st.tuples(any_text(max_size=200), any_text(max_size=300)), max_size=20),
    retry_after=st.none() | st.floats(0, 3600).map(lambda seconds: round(seconds, 6)),
)


def an_rpc_error(code: grpc.StatusCode, *trailing: tuple[str, str | bytes], details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def facts(error: WaybillError) -> tuple[object, ...]:
    return (error.code, error.reason, error.message, dict(error.metadata), list(error.violations), error.retry_after)


def test_an_error_has_exactly_one_error_info_of_our_domain() -> None:
    error = WaybillError(
        grpc.StatusCode.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the database is away",
        metadata={"host": "db1"},
        violations=[("page_size", "at most 1000")],
        retry_after=1.5,
    )
    kinds = [detail.TypeName() for detail in error.to_status().details]
    assert kinds == ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"]
    info = error_details_pb2.ErrorInfo()
    assert error.to_status().details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("waybill", "DEPENDENCY_UNAVAILABLE", {"host": "db1"})


@given(failures)
def test_an_error_comes_out_of_a_status_as_it_went_in(error: WaybillError) -> None:
    assert facts(WaybillError.from_status(error.to_status())) == facts(error)


@given(failures)
def test_an_error_on_the_wire_fits_into_metadata_and_keeps_code_and_reason(error: WaybillError) -> None:
    details, ((key, data),) = errors.for_the_wire(error)
    assert key == DETAILS_KEY
    percent_encoded = len(details.encode()) * 3
    assert percent_encoded + len(data) * 4 / 3 < 16 * 1024
    received = WaybillError.from_rpc_error(an_rpc_error(error.code, (key, data), details=details))
    assert (received.code, received.reason, received.retry_after) == (error.code, error.reason, error.retry_after)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
        (grpc.StatusCode.UNKNOWN, "INTERNAL"),
    ],
)
def test_an_error_of_a_stranger_gets_the_reason_of_its_code(code: grpc.StatusCode, reason: str) -> None:
    error = WaybillError.from_rpc_error(an_rpc_error(code, details="said the proxy"))
    assert (error.code, error.reason, error.message) == (code, reason, "said the proxy")


def test_details_that_do_not_parse_leave_the_bare_code() -> None:
    error = WaybillError.from_rpc_error(an_rpc_error(grpc.StatusCode.UNAVAILABLE, (DETAILS_KEY, b"\xff\xff")))
    assert (error.reason, error.message) == ("DEPENDENCY_UNAVAILABLE", "UNAVAILABLE")


def test_a_status_with_an_unheard_of_code_is_unknown() -> None:
    assert WaybillError.from_status(status_pb2.Status(code=99, message="?")).code is grpc.StatusCode.UNKNOWN


def test_a_bad_field_is_named_in_sentence_and_violation() -> None:
    error = errors.invalid_field("page_size", "must be at most 1000")
    assert error.message == "page_size: must be at most 1000"
    assert error.violations == (("page_size", "must be at most 1000"),)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


def test_every_reason_that_the_chassis_gives_is_in_the_contract() -> None:
    ours = {name.removeprefix("REASON_") for name in errors_pb2.Reason.keys()}  # noqa: SIM118
    text = "".join(path.read_text() for path in (SERVICES / "chassis").glob("*.py"))
    given = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', text)) - {"GRPC_VERBOSITY", "WAYBILL_SUPERVISOR_FD", "JOBSTORE_"}
    assert given <= ours


@pytest.mark.parametrize("text", ["", "plain", "größer ✓ 東京", "non-breaking\u00a0space"])
def test_printable_text_of_any_script_passes(text: str) -> None:
    reject_control("description", text)


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\x7f", "\x9b"])
def test_a_control_character_is_refused_with_its_field_and_place(character: str) -> None:
    with pytest.raises(WaybillError) as refusal:
        reject_control("description", f"ab{character}c")
    assert refusal.value.violations[0][0] == "description"
    assert f"U+{ord(character):04X} at 2" in refusal.value.message
    assert character not in refusal.value.message


def test_a_control_character_is_found_at_any_depth() -> None:
    parameters = Struct()
    parameters.update({"disks": [{"name": "ok"}, {"name": "b\0d"}]})
    request = coordinator_pb2.RunMultipleCommandsRequest(
        commands=[{"command_type": "Noop"}, {"command_type": "AddDisk", "parameters": parameters}]
    )
    with pytest.raises(WaybillError) as refusal:
        reject_control_in(request)
    assert refusal.value.violations[0][0].startswith("commands[1].parameters")


def test_a_control_character_is_found_in_a_name_of_the_parameters() -> None:
    parameters = Struct()
    parameters.update({"a\0b": 1})
    with pytest.raises(WaybillError):
        reject_control_in(coordinator_pb2.RunCommandRequest(parameters=parameters))


def test_a_clean_message_passes() -> None:
    parameters = Struct()
    parameters.update({"size_mb": 1024, "name": "disk", "tags": ["a", None, True]})
    reject_control_in(coordinator_pb2.RunCommandRequest(command_type="AddDisk", parameters=parameters))
