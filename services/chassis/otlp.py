"""OTLP's wire form of spans, written by hand.

Message objects cost five times as much, and every job has spans: that was most of the price of tracing. The format is
stable (opentelemetry-proto 1.x) and small; the field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`,
and the tests read what is written here with the official messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

Value = str | bool | int | float

_DOUBLE: Final = struct.Struct("<d")
_FIXED64: Final = struct.Struct("<Q")

KINDS: Final = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}


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
    start: int,
    end: int,
    attributes: Mapping[str, Value],
    events: Iterable[tuple[str, int, Mapping[str, Value]]],
    links: Iterable[tuple[str, str]],
    error: str,
) -> bytes:
    """Returns a Span. Ids in hex; times in nanoseconds; `error` empty: the status is unset."""
    parts = [
        b"\x0a\x10",
        bytes.fromhex(trace_id),
        b"\x12\x08",
        bytes.fromhex(span_id),
        b"\x22\x08" + bytes.fromhex(parent_span_id) if parent_span_id else b"",
        _text(5, name),
        b"\x30" + bytes((kind,)),
        b"\x39" + _FIXED64.pack(start),
        b"\x41" + _FIXED64.pack(end),
        *[attribute(9, key, value) for key, value in attributes.items()],
    ]
    for event, time, more in events:
        body = b"\x09" + _FIXED64.pack(time) + _text(2, event)
        parts.append(_message(11, body + b"".join(attribute(3, key, value) for key, value in more.items())))
    for trace, linked in links:
        parts.append(_message(13, b"\x0a\x10" + bytes.fromhex(trace) + b"\x12\x08" + bytes.fromhex(linked)))
    if error:
        parts.append(_message(15, _text(2, error) + b"\x18\x02"))
    return b"".join(parts)


def attribute(number: int, key: str, value: Value) -> bytes:
    """Returns a KeyValue as a field of that number."""
    if isinstance(value, str):
        text, named = value.encode(errors="replace"), _key(key)
        size = len(text)
        if size + len(named) < 124:  # then each length is one byte, as it is in nearly all
            whole = _TAGS[number] + _SMALL[size + len(named) + 4] + named
            return whole + b"\x12" + _SMALL[size + 2] + b"\x0a" + _SMALL[size] + text
        held = _message(1, text)
    elif isinstance(value, bool):
        held = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        held = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    else:
        held = b"\x21" + _DOUBLE.pack(value)
    return _message(number, _key(key) + _message(2, held))


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return _text(1, key)


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
