"""Plain Python values for `google.protobuf.Struct` and `Value`, and back.

A few times faster than `json_format`, which matters because every task has arguments. Struct knows only floating-point
numbers; a whole one comes back as an int, which is what whoever wrote `1024` had meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from hostagent.task import Json

DEEPEST: Final = 32


class TooDeep(Exception):  # noqa: N818
    """Values are nested deeper than anybody needs."""


def struct_to_plain(struct: Struct, depth: int = DEEPEST) -> dict[str, Json]:
    """Returns a struct as a dict. Raises TooDeep."""
    if not depth:
        raise TooDeep
    return {name: value_to_plain(value, depth - 1) for name, value in struct.fields.items()}


def value_to_plain(value: Value, depth: int = DEEPEST) -> Json:
    """Returns a value as None, bool, int, float, str, list or dict. Raises TooDeep."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return struct_to_plain(value.struct_value, depth)
    if kind == "list_value":
        if not depth:
            raise TooDeep
        return [value_to_plain(part, depth - 1) for part in value.list_value.values]
    return None


def plain_to_struct(plain: Mapping[str, Json]) -> Struct:
    """Returns a dict as a struct."""
    return Struct(fields={name: plain_to_value(part) for name, part in plain.items()})


def plain_to_value(plain: Json) -> Value:
    """Returns None, bool, int, float, str, list or dict as a value."""
    if isinstance(plain, str):
        return Value(string_value=plain)
    if isinstance(plain, bool):
        return Value(bool_value=plain)
    if isinstance(plain, (int, float)):
        return Value(number_value=plain)
    if isinstance(plain, Mapping):
        return Value(struct_value=plain_to_struct(plain))
    if isinstance(plain, (list, tuple)):
        return Value(list_value=ListValue(values=[plain_to_value(part) for part in plain]))
    return Value(null_value=NULL_VALUE)
