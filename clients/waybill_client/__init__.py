"""The Python client of Waybill: runs commands, and reads and watches the jobs that they become.

It stands on the wire alone: gRPC and the messages of `waybill.v1`. `WaybillClient` is the way in; `watch` explains the
stream of changes, `view` keeps a copy of it, `words` turns enums and Structs into what people say, `errors` is what a
refused call raises.
"""

from waybill_client.client import WaybillClient, command_request
from waybill_client.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WaybillError,
)
from waybill_client.filters import where
from waybill_client.hosts import HostClient
from waybill_client.view import JobsView
from waybill_client.watch import Complete, JobChange, Marked, Removed, Resync, Upserted
from waybill_client.words import is_ended, is_finished, status_word

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Complete",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HostClient",
    "InvalidArgument",
    "JobChange",
    "JobsView",
    "Marked",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Removed",
    "ResourceExhausted",
    "Resync",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Upserted",
    "Violation",
    "WaybillClient",
    "WaybillError",
    "command_request",
    "is_ended",
    "is_finished",
    "status_word",
    "where",
]
