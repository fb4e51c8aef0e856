"""Messages as plain data, for `-o json` and `-o yaml`: enums as words, times as text, whole numbers as numbers.

Field names are those of the contract, so that `grep correlation_id` finds them here too. Absent messages and empty
lists are left out; plain fields (numbers, texts, flags) always keep their place, so that scripts can rely on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from waybill_client import WaybillError
from waybill_client.words import plain


def record(message: Message) -> dict[str, Any]:
    """The message as a dict that JSON and YAML can write."""
    fields = ((field, getattr(message, field.name)) for field in _fields(message) if _is_there(message, field))
    return {field.name: _value(field, value) for field, value in fields}


def _fields(message: Message) -> list[FieldDescriptor]:
    return cast("list[FieldDescriptor]", message.DESCRIPTOR.fields)


def _is_there(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    return message.HasField(field.name) if field.has_presence else True


def _value(field: FieldDescriptor, value: Any) -> Any:
    convert = _converter(field)
    if field.is_repeated:
        return [convert(each) for each in value]
    return convert(value)


def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    enum = field.enum_type
    if enum is not None:
        return lambda number: _enum_word(enum, number)
    if field.message_type is None:
        return lambda value: value
    return _CONVERTERS.get(field.message_type.full_name, record)


def _enum_word(enum: EnumDescriptor, number: int) -> str:
    """`STARTED` for EXECUTION_STATUS_STARTED: every value begins with its enum's name."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in enum.name)
    return str(value.name).removeprefix(prefix.lstrip("_") + "_")


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToJsonString()


def error_record(status: Status) -> dict[str, Any]:
    """Why something did not end well."""
    error = WaybillError.from_status(status)
    told = {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
        "violations": [violation._asdict() for violation in error.violations],
    }
    return {name: value for name, value in told.items() if value}


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    Timestamp.DESCRIPTOR.full_name: _time,
    Struct.DESCRIPTOR.full_name: plain,
    Value.DESCRIPTOR.full_name: plain,
    Status.DESCRIPTOR.full_name: error_record,
}
