"""What a refused or lost call raises.

Every error of the services is a `google.rpc.Status` with one `ErrorInfo`; here it becomes an exception whose class says
the code and whose `reason` says why, so that callers write `except NotFound` and compare `error.reason` to a name of
`errors.proto`. What goes wrong *while a job runs* is no exception but data in the job, as the same Status:
`WaybillError.from_status(job.error)` reads it in the same words.
"""

# ruff: noqa: N818 - the classes bear the names of the codes

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS = "grpc-status-details-bin"
CORRELATION_ID = "x-correlation-id"


class Violation(NamedTuple):
    """One malformed field of a request."""

    field: str
    description: str


@dataclass(eq=False)
class WaybillError(Exception):
    """A call that did not do what it was asked to.

    `metadata` are the facts that belong to the reason (`job_id`, `entity_id` ...); `violations` name the malformed
    fields of an INVALID_ARGUMENT; `retry_after` is in seconds, None when the service did not say; `correlation_id` is
    what the service calls the request in its logs, empty when it was never reached.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_after: float | None = None
    correlation_id: str = ""

    def __str__(self) -> str:
        fields = "".join(f"; {name}: {description}" for name, description in self.violations)
        return f"{self.code.name} {self.reason}: {self.message}{fields}"

    @staticmethod
    def from_status(status: status_pb2.Status, *, correlation_id: str = "") -> WaybillError:
        """Reads a Status, of a call or of a job, into the exception of its code."""
        details = _Details.of(status)
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        return _CLASSES.get(code, WaybillError)(
            code,
            details.reason or code.name,
            status.message,
            details.metadata,
            details.violations,
            details.retry_after,
            correlation_id,
        )

    @staticmethod
    def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str) -> WaybillError:
        """Reads what grpc raised by a call to `peer`.

        A failure of the transport has no Status: its reason is the name of its code.
        """
        metadata = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
        status = _first(metadata, STATUS_DETAILS)
        correlation_id = _first(metadata, CORRELATION_ID)
        return WaybillError.from_status(
            status_pb2.Status.FromString(status) if isinstance(status, bytes) else _transport_status(error, peer),
            correlation_id=correlation_id if isinstance(correlation_id, str) else "",
        )


class InvalidArgument(WaybillError):
    """The request itself is malformed; sending it again cannot help."""


class NotFound(WaybillError):
    """No such job, step, entity or command type."""


class PermissionDenied(WaybillError):
    """It is not for this user to do; somebody would have to grant it."""


class Unauthenticated(WaybillError):
    """The service does not believe who calls."""


class AlreadyExists(WaybillError):
    """The id is taken by something else."""


class FailedPrecondition(WaybillError):
    """Not in this state; `reason` says what would have to change."""


class Aborted(WaybillError):
    """Something changed meanwhile; try again."""


class OutOfRange(WaybillError):
    """The revision to resume from is not kept; start over."""


class ResourceExhausted(WaybillError):
    """A limit was reached; try again later."""


class Unavailable(WaybillError):
    """The service, or what it needs, cannot be reached; what became of the call is not known."""


class DeadlineExceeded(WaybillError):
    """No answer in time; what became of the call is not known."""


class Unimplemented(WaybillError):
    """This release of the service does not answer this call."""


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_CLASSES: dict[grpc.StatusCode, type[WaybillError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


class _Details(NamedTuple):
    """What the details of a Status say, whichever of them are there."""

    reason: str
    metadata: Mapping[str, str]
    violations: tuple[Violation, ...]
    retry_after: float | None

    @classmethod
    def of(cls, status: status_pb2.Status) -> _Details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        retry_after = None
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        violations = tuple(Violation(each.field, each.description) for each in bad_request.field_violations)
        return cls(info.reason, dict(info.metadata), violations, retry_after)


def _first(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str | bytes | None:
    return next((value for name, value in metadata if name == key), None)


def _transport_status(error: grpc.aio.AioRpcError, peer: str) -> status_pb2.Status:
    """What the transport says. A call that was cancelled, and not by us, was broken off by a server that goes down."""
    broken_off = error.code() is grpc.StatusCode.CANCELLED
    code = grpc.StatusCode.UNAVAILABLE if broken_off else error.code()
    return status_pb2.Status(code=_number(code), message=_transport_message(error, peer))


def _transport_message(error: grpc.aio.AioRpcError, peer: str) -> str:
    match error.code():
        case grpc.StatusCode.CANCELLED:
            return f"the {peer} broke the call off"
        case grpc.StatusCode.UNAVAILABLE:
            # "connections to all backends failing; last error: … remote host: Connection refused": the end says it.
            return f"cannot reach the {peer}: {(error.details() or '').rpartition(': ')[2]}"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the {peer} did not answer in time"
    return f"the {peer} says: {error.details()}"


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])
