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
_KIND_AND_TIMES: Final = struct.Struct("<BBBQBQ")
_SHORT: Final = 128  # bytes

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
    ids = f"0a10{trace_id}1208{span_id}2208{parent_span_id}" if parent_span_id else f"0a10{trace_id}1208{span_id}"
    parts = [bytes.fromhex(ids), _known_text(5, name), _KIND_AND_TIMES.pack(0x30, kind, 0x39, start, 0x41, end)]
    _add_attributes(parts, 9, attributes)
    for event, time, more in events:
        body = [b"\x09", _FIXED64.pack(time), _known_text(2, event)]
        if more:
            _add_attributes(body, 3, more)
        parts.append(_message(11, b"".join(body)))
    for trace, linked in links:
        parts.append(_message(13, bytes.fromhex(f"0a10{trace}1208{linked}")))
    if error:
        parts.append(_message(15, _text(2, error) + b"\x18\x02"))
    return b"".join(parts)


def _add_attributes(parts: list[bytes], number: int, attributes: Mapping[str, Value]) -> None:
    """Adds KeyValues as fields of that number; nearly all are short texts, and what stands before those is known."""
    for key, value in attributes.items():
        if isinstance(value, str) and len(text := value.encode(errors="replace")) < _SHORT:
            parts.append(_before_short_text(number, key, len(text)))
            parts.append(text)
        else:
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


@lru_cache(maxsize=4096)  # some twenty keys, each with a length or two
def _before_short_text(number: int, key: str, size: int) -> bytes:
    whole = attribute(number, key, " " * size)
    return whole[: len(whole) - size]


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
