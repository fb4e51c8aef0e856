"""One error family, the same on both sides of the wire.

Every failure that a caller may act on is a `WaybillError`: a gRPC code for machines that know nothing of us, a reason
(a name of `waybill.v1.Reason`, or a plug-in's own) for those that do, and a sentence for people. It travels as
`google.rpc.Status` with exactly one `ErrorInfo`, whether as the status of a call (it could not start) or as data in a
job (it failed while running), and comes out as the same `WaybillError` at the other end.

    raise WaybillError ──interceptor──▶ grpc-status-details-bin ──from_rpc_error──▶ except WaybillError as error
                       ──to_status────▶ job.error, step.error   ──from_status────▶
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "waybill"
DETAILS_KEY: Final = "grpc-status-details-bin"

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# What a bare code means when its sender was not one of ours (a proxy, the transport, the deadline).
_REASONS_OF_BARE_CODES: Final = {
    grpc.StatusCode.UNAVAILABLE: "DEPENDENCY_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.CANCELLED: "ABORTED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
    grpc.StatusCode.INVALID_ARGUMENT: "REQUEST_INVALID",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_AVAILABLE_YET",
}


class WaybillError(Exception):
    """A failure with a code, a reason and a sentence.

    `violations` are pairs of field path and what is wrong with it; `retry_after` is in seconds, None when trying again
    will not help.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = metadata or {}
        self.violations: Sequence[tuple[str, str]] = tuple(violations)
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"WaybillError({self.code.name}, {self.reason}, {self.message!r})"

    def to_status(self) -> status_pb2.Status:
        """Returns it as `google.rpc.Status`, for the wire or for a row."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self._details():
            status.details.add().Pack(detail)
        return status

    def _details(self) -> Iterable[Message]:
        yield error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        if self.violations:
            yield error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
                    for field, description in self.violations
                ]
            )
        if self.retry_after is not None:
            seconds = duration_pb2.Duration()
            seconds.FromNanoseconds(round(self.retry_after * 1e9))
            yield error_details_pb2.RetryInfo(retry_delay=seconds)

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> WaybillError:
        """Returns the error that a status says. One without our `ErrorInfo` gets the reason of its bare code."""
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        reason, metadata = _reason_of_bare(code), dict[str, str]()
        violations: list[tuple[str, str]] = []
        retry_after: float | None = None
        info, bad_request, retry = _empty_details()
        for detail in status.details:
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad_request):
                violations += [(violation.field, violation.description) for violation in bad_request.field_violations]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        return cls(code, reason, status.message, metadata=metadata, violations=violations, retry_after=retry_after)

    @classmethod
    def from_rpc_error(cls, error: grpc.aio.AioRpcError) -> WaybillError:
        """Returns the error that a failed call carries, or one made of its bare code."""
        code = error.code()
        for key, value in error.trailing_metadata() or ():
            if key == DETAILS_KEY and isinstance(value, bytes):
                try:
                    return cls.from_status(status_pb2.Status.FromString(value))
                except DecodeError:
                    break  # not what the key promises: the bare code is all that there is to know
        return cls(code, _reason_of_bare(code), error.details() or code.name)


def for_the_wire(error: WaybillError) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
    """Returns the arguments of `rpc.abort` after the code: the sentence, and the whole status as trailing metadata.

    Metadata has a soft limit of 8 KiB, beyond which the reader would get RESOURCE_EXHAUSTED instead of our error, so
    what is too long is cut here. A job's stored error keeps all of it.
    """
    violations = error.violations[:8]
    brief = WaybillError(
        error.code,
        error.reason,
        _cut(error.message, 500),
        metadata={key: _cut(value, 200) for key, value in itertools.islice(error.metadata.items(), 8)},
        violations=[(_cut(field, 100), _cut(text, 800 // len(violations))) for field, text in violations],
        retry_after=error.retry_after,
    )
    return _cut(brief.message, 200), ((DETAILS_KEY, brief.to_status().SerializeToString()),)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _empty_details() -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo]:
    return error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()


def _reason_of_bare(code: grpc.StatusCode) -> str:
    return _REASONS_OF_BARE_CODES.get(code, "INTERNAL")


def invalid_argument(reason: str, message: str, *violations: tuple[str, str]) -> WaybillError:
    """Says that the request is malformed, naming each field and what would be right."""
    return WaybillError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, violations=violations)


def invalid_field(field: str, description: str, *, reason: str = "REQUEST_INVALID") -> WaybillError:
    """Says that one field of the request is malformed."""
    return invalid_argument(reason, f"{field}: {description}", (field, description))


def not_found(reason: str, message: str, **metadata: str) -> WaybillError:
    """Says that there is no such thing (or not for this caller: denied and missing look alike)."""
    return WaybillError(grpc.StatusCode.NOT_FOUND, reason, message, metadata=metadata)


def already_exists(reason: str, message: str, **metadata: str) -> WaybillError:
    """Says that the name is taken by something else."""
    return WaybillError(grpc.StatusCode.ALREADY_EXISTS, reason, message, metadata=metadata)


def failed_precondition(reason: str, message: str, **metadata: str) -> WaybillError:
    """Says that the thing is in no state for this; trying again helps only after somebody changed that."""
    return WaybillError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


def aborted(reason: str, message: str, **metadata: str) -> WaybillError:
    """Says that it lost a race: read again and repeat the whole."""
    return WaybillError(grpc.StatusCode.ABORTED, reason, message, metadata=metadata)


def out_of_range(reason: str, message: str, **metadata: str) -> WaybillError:
    """Says that what was asked for is no longer kept."""
    return WaybillError(grpc.StatusCode.OUT_OF_RANGE, reason, message, metadata=metadata)


def unavailable(
    message: str, *, reason: str = "DEPENDENCY_UNAVAILABLE", retry_after: float | None = None
) -> WaybillError:
    """Says that a part is away; the same call will do, later."""
    return WaybillError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_after=retry_after)


def resource_exhausted(
    message: str, *, reason: str = "LIMIT_EXCEEDED", retry_after: float | None = None
) -> WaybillError:
    """Says that a limit was reached; with `retry_after`, one that time lifts."""
    return WaybillError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_after=retry_after)


def not_available_yet(call: str) -> WaybillError:
    """Says that the contract has this call and this release does not answer it."""
    return WaybillError(grpc.StatusCode.UNIMPLEMENTED, "NOT_AVAILABLE_YET", f"{call} is not available in this release")


def internal(message: str) -> WaybillError:
    """Says that it is a defect of ours; the log has the rest."""
    return WaybillError(grpc.StatusCode.INTERNAL, "INTERNAL", message)


def reject_control(field: str, text: str) -> None:
    """Refuses a text with NUL or another control character, which neither Postgres, logs nor terminals take well."""
    if found := _CONTROL.search(text):
        raise invalid_field(field, f"control character U+{ord(found[0]):04X} at {found.start()} is not allowed")


def reject_control_in(message: Message, path: str = "") -> None:
    """Refuses a message if any text in it, at any depth, has a control character; the error names the field."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in _each(value):
                reject_control(here, text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _reject_control_in_parts(field, value, here)


def _reject_control_in_parts(field: FieldDescriptor, value: object, path: str) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(key, str):
                reject_control(path, key)
            here = f"{path}.{key}"
            if isinstance(part, Message):
                reject_control_in(part, here)
            elif isinstance(part, str):
                reject_control(here, part)
    elif isinstance(value, Message):
        reject_control_in(value, path)
    else:
        for index, part in enumerate(_each(value)):
            reject_control_in(part, f"{path}[{index}]")


def _each(value: Any) -> Iterable[Any]:
    return (value,) if isinstance(value, str) else value
