"""What a host's refusal of work means."""

from __future__ import annotations

import grpc
from google.rpc import status_pb2

from chassis.errors import WaybillError
from waybill.v1 import hostagent_pb2

# TASK_UNKNOWN is how a host says that it had a call and lost it.
_ABOUT_AN_EARLIER_ATTEMPT = frozenset({"INCARNATION_CHANGED", "ALREADY_CLEARED", "TASK_UNKNOWN"})


def is_for_now(status: status_pb2.Status) -> bool:
    """Tells whether the host would take the same work later."""
    error = WaybillError.from_status(status)
    return error.reason == "QUEUE_FULL" or error.code is grpc.StatusCode.UNAVAILABLE


def loses_the_truth(status: status_pb2.Status) -> bool:
    """Tells whether it leaves open what became of an earlier attempt under the same id: it may have had its effect."""
    return WaybillError.from_status(status).reason in _ABOUT_AN_EARLIER_ATTEMPT


def result_of(error: status_pb2.Status | None) -> str:
    """Returns how a call went: a verb that failed was rolled back unless its error says otherwise."""
    if error is None:
        return "SUCCESS"
    return WaybillError.from_status(error).metadata.get("result", "CLEAN_SUCCESS")


def too_late(spec: hostagent_pb2.TaskSpec) -> status_pb2.Status:
    """Returns the refusal of work that the host did not have when its deadline passed."""
    message = f"{spec.verb}: the host had not taken it when its deadline passed"
    return WaybillError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message).to_status()
