"""OTLP's wire form of spans, written by hand.

Message objects cost five times as much, and every job has spans: that was most of the price of tracing. The format is
stable (opentelemetry-proto 1.x) and small; the field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`,
and the tests read what is written here with the official messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Final

Value = str | bool | int | float

_DOUBLE: Final = struct.Struct("<d")
_FIXED64: Final = struct.Struct("<Q")
_KIND_AND_TIMES: Final = struct.Struct("<BBBQBQ")

_KNOWN: Final = 128
"""Lengths and numbers below it are met again and again."""

INTERNAL: Final = 1  # kinds of spans
SERVER: Final = 2
CLIENT: Final = 3


def request(resource: bytes, scope: str, spans: Iterable[bytes]) -> bytes:
    """Returns an ExportTraceServiceRequest with spans of one process; each is what `span` returned."""
    body = b"".join([_message(1, _text(1, scope)), *(_message(2, each) for each in spans)])
    return _message(1, resource + _message(2, body))


def resource(attributes: Mapping[str, Value]) -> bytes:
    """Returns a process's description, for `request`."""
    return _message(1, b"".join(attribute(1, key, value) for key, value in attributes.items()))


def span(
    *,
    name: str,
    trace_id: str,
    span_id: str,
    parent_span_id: str,
    kind: int,
    start: float,
    end: float,
    attributes: Mapping[str, Value],
    events: Iterable[tuple[str, float, Mapping[str, Value]]] = (),
    links: Iterable[tuple[str, str, bool]] = (),
    error: str = "",
) -> bytes:
    """Returns a Span. Ids in hex; times in Unix seconds; a link's flag is not said; no `error`: the status is unset."""
    ids = f"0a10{trace_id}1208{span_id}2208{parent_span_id}" if parent_span_id else f"0a10{trace_id}1208{span_id}"
    times = _KIND_AND_TIMES.pack(0x30, kind, 0x39, _nanos(start), 0x41, _nanos(end))
    parts = [bytes.fromhex(ids), _known_text(5, name), times]
    _add_attributes(parts, 9, attributes)
    for event, time, more in events:
        described: list[bytes] = []
        if more:
            _add_attributes(described, 3, more)
        before, after = _around_time(event, sum(map(len, described)))
        parts += (before, _FIXED64.pack(_nanos(time)), after, *described)
    for trace, linked, _ in links:
        parts.append(_message(13, bytes.fromhex(f"0a10{trace}1208{linked}")))
    if error:
        parts.append(_message(15, _text(2, error) + b"\x18\x02"))
    return b"".join(parts)


def _nanos(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # stored times are exact to the microsecond, floats not much further


def _add_attributes(parts: list[bytes], number: int, attributes: Mapping[str, Value]) -> None:
    """Adds KeyValues as fields of that number. Nearly all are texts, and what stands before those is known."""
    for key, value in attributes.items():
        if type(value) is str:
            text = value.encode("utf-8", "replace")
            if (size := len(text)) < _KNOWN:
                parts += (_before_text(number, key, size), text)
                continue
        elif type(value) is int and 0 <= value < _KNOWN:  # a code, a percentage
            parts.append(_known_number(number, key, value))
            continue
        parts.append(attribute(number, key, value))


def attribute(number: int, key: str, value: Value) -> bytes:
    """Returns a KeyValue as a field of that number."""
    if isinstance(value, str):
        held = _text(1, value)
    elif isinstance(value, bool):
        held = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        held = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    else:
        held = b"\x21" + _DOUBLE.pack(value)
    return _message(number, _text(1, key) + _message(2, held))


@cache  # keys are of our making, some twenty; one that forgets would cost as much as it spares
def _before_text(number: int, key: str, size: int) -> bytes:
    whole = attribute(number, key, " " * size)
    return whole[: len(whole) - size]


@lru_cache(maxsize=1024)
def _around_time(event: str, more: int) -> tuple[bytes, bytes]:
    """What stands before and after an event's time, if so many bytes of attributes follow."""
    name = _text(2, event)
    return _TAGS[11] + _varint(9 + len(name) + more) + b"\x09", name


@cache
def _known_number(number: int, key: str, value: int) -> bytes:
    return attribute(number, key, value)


@lru_cache(maxsize=1024)  # of low cardinality
def _known_text(number: int, text: str) -> bytes:
    return _text(number, text)


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode(errors="replace"))


def _message(number: int, body: bytes) -> bytes:
    return _TAGS[number] + _varint(len(body)) + body


_TAGS: Final = [bytes((_number << 3 | 2,)) for _number in range(16)]  # all that have a length


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


_SMALL: Final = [bytes((_number,)) for _number in range(128)]
