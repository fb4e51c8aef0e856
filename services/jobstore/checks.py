"""What is refused before anything is asked of the store: each refusal names the field and what would be right."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.context import valid_correlation_id
from chassis.errors import invalid_field, reject_control_in
from jobstore.messages import ENTITY_TYPE_NAME, EPOCH
from jobstore.search.kinds import MAX_NAME_LENGTH, UUID
from waybill.v1 import jobs_pb2


def check_text(request: Message) -> None:
    """Refuses control characters anywhere in a request; Postgres would not take NUL, nor terminals the others."""
    reject_control_in(request)


def checked_id(field: str, text: str) -> str:
    """Returns a UUID as it is stored, in lower case."""
    if not UUID.fullmatch(text):
        raise invalid_field(field, "must be a UUID")
    return text.lower()


def checked_correlation_id(text: str) -> str:
    """Returns a correlation id, or nothing if none was given."""
    if text and not valid_correlation_id(text):
        raise invalid_field(
            "correlation_id", "must be 1-50 characters of [0-9A-Za-z_-]", reason="CORRELATION_ID_INVALID"
        )
    return text


def checked_name(field: str, text: str) -> str:
    """Returns a name of at most 256 characters."""
    if len(text) > MAX_NAME_LENGTH:
        raise invalid_field(field, f"must be at most {MAX_NAME_LENGTH} characters")
    return text


def checked_entity(field: str, entity_type: jobs_pb2.EntityType.ValueType, entity_id: str) -> tuple[str, str]:
    """Returns an entity's type, by name, and id."""
    name = checked_entity_type(f"{field}entity_type", entity_type)
    if name is None:
        raise invalid_field(f"{field}entity_type", "must be given")
    if not entity_id:
        raise invalid_field(f"{field}entity_id", "must be given")
    return name, checked_name(f"{field}entity_id", entity_id)


def checked_entity_type(field: str, entity_type: jobs_pb2.EntityType.ValueType) -> str | None:
    """Returns a type's name; None if it is UNSPECIFIED."""
    if entity_type not in ENTITY_TYPE_NAME:
        raise invalid_field(field, f"there is no entity type {entity_type}")
    return ENTITY_TYPE_NAME[entity_type]


def checked_interval(seconds: int) -> int:
    """Returns a number of seconds, or 0."""
    if seconds < 0:
        raise invalid_field("bookmark_interval", "must not be negative")
    return seconds


def checked_time(field: str, time: Timestamp) -> datetime:
    """Returns a time, to the microsecond below."""
    try:
        return EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1_000)
    except OverflowError:
        raise invalid_field(field, "must be between the years 1 and 9999") from None


def checked_view(view: jobs_pb2.JobView.ValueType, *, default: jobs_pb2.JobView.ValueType) -> bool:
    """Tells whether steps are wanted."""
    if view not in jobs_pb2.JobView.values():
        raise invalid_field("view", "must be JOB_VIEW_BASIC or JOB_VIEW_TREE")
    return (view or default) == jobs_pb2.JOB_VIEW_TREE


def checked_order(order_by: str) -> bool:
    """Tells whether the oldest come first."""
    match order_by.split():
        case [] | ["create_time", "desc"]:
            return False
        case ["create_time"] | ["create_time", "asc"]:
            return True
    raise invalid_field("order_by", "must be `create_time desc` or `create_time`")
