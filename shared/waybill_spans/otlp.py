"""OTLP's wire form of spans, written by hand.

Message objects cost five times as much, and every job has spans: that was most of the price of tracing. The format is
stable (opentelemetry-proto 1.x) and small; the field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`,
and the tests read what is written here with the official messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

Value = str | bool | int | float

_DOUBLE: Final = struct.Struct("<d")
_FIXED64: Final = struct.Struct("<Q")
_KIND_AND_TIMES: Final = struct.Struct("<BBBQBQ")

_SHORT: Final = 128
"""Lengths below it are a single byte, and a character at that."""

INTERNAL: Final = 1  # kinds of spans
SERVER: Final = 2
CLIENT: Final = 3


def request(resource: bytes, scope: str, spans: Iterable[bytes]) -> bytes:
    """Returns an ExportTraceServiceRequest with spans of one process; each is what `span` returned."""
    parts = [_message(1, _text(1, scope))]
    for each in spans:
        parts += (_TAGS[2], _varint(len(each)), each)
    body = b"".join(parts)
    return _message(1, resource + _message(2, body))


def resource(attributes: Mapping[str, Value]) -> bytes:
    """Returns a process's description, for `request`."""
    return _message(1, _each(1, attributes))


def described(attributes: Mapping[str, Value]) -> bytes:
    """Returns attributes that many spans have, for `span`."""
    return _each(9, attributes)


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
    described: bytes = b"",
    events: Iterable[tuple[str, float, Mapping[str, Value]]] = (),
    links: Iterable[tuple[str, str, bool]] = (),
    error: str = "",
) -> bytes:
    """Returns a Span.

    Ids in hex; times in Unix seconds; `described`: more attributes, as the function returned them; a link's flag is not
    said; no `error`: the status is unset.
    """
    ids = f"0a10{trace_id}1208{span_id}2208{parent_span_id}" if parent_span_id else f"0a10{trace_id}1208{span_id}"
    # To the microsecond: stored times are exact to that, and floats not much further.
    times = _KIND_AND_TIMES.pack(0x30, kind, 0x39, round(start * 1e6) * 1000, 0x41, round(end * 1e6) * 1000)
    parts = [bytes.fromhex(ids), _known_text(5, name), times, _attributes(attributes), described]
    for event, time, more in events:
        before, after = _around_time(event, *_items(more)) if more else _around_time(event)
        parts += (before, _FIXED64.pack(round(time * 1e6) * 1000), after)
    for trace, linked, _ in links:
        parts.append(_message(13, bytes.fromhex(f"0a10{trace}1208{linked}")))
    if error:
        parts.append(_message(15, _text(2, error) + b"\x18\x02"))
    return b"".join(parts)


def _attributes(attributes: Mapping[str, Value]) -> bytes:
    """Returns a span's. Most often all are short ASCII texts: what then stands around them depends on their sizes."""
    texts = tuple(attributes.values())
    try:
        around = _around_texts(tuple(attributes), tuple(map(len, texts)))  # type: ignore[arg-type]
    except TypeError:  # there is a number among them
        around = ""
    if around and (whole := around % texts).isascii():
        return whole.encode()
    return _each(9, attributes)


@lru_cache(maxsize=4096)  # keys are of our making, and most texts are ids, words or names
def _around_texts(keys: Sequence[str], sizes: Sequence[int]) -> str:
    """Returns the KeyValues of texts of these sizes, with places for them; nothing if a size takes more than a byte."""
    whole = ""
    for key, size in zip(keys, sizes, strict=True):
        pair = attribute(9, key, " " * size)
        if len(pair) > _SHORT:
            return ""
        whole += pair[: len(pair) - size].decode().replace("%", "%%") + "%s"
    return whole


def _each(number: int, attributes: Mapping[str, Value]) -> bytes:
    return b"".join([attribute(number, key, value) for key, value in attributes.items()])


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


def _items(attributes: Mapping[str, Value]) -> tuple[tuple[str, ...], tuple[Value, ...], tuple[type, ...]]:
    """Returns what attributes can be recognised by: True is 1, but is not the same."""
    values = tuple(attributes.values())
    return tuple(attributes), values, tuple(map(type, values))


@lru_cache(maxsize=1024)
def _around_time(
    event: str, keys: Sequence[str] = (), values: Sequence[Value] = (), _: Sequence[type] = ()
) -> tuple[bytes, bytes]:
    """What stands before and after an event's time."""
    after = _text(2, event) + _each(3, dict(zip(keys, values, strict=True)))
    return _TAGS[11] + _varint(9 + len(after)) + b"\x09", after


@lru_cache(maxsize=1024)  # of low cardinality
def _known_text(number: int, text: str) -> bytes:
    return _text(number, text)


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode(errors="replace"))


def _message(number: int, body: bytes) -> bytes:
    return _TAGS[number] + _varint(len(body)) + body


_TAGS: Final = [bytes((_number << 3 | 2,)) for _number in range(16)]  # all that have a length


def _varint(number: int) -> bytes:
    return _VARINTS[number] if number < len(_VARINTS) else _long_varint(number)


def _long_varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


_VARINTS: Final = [_long_varint(_number) for _number in range(2048)]  # of all lengths that are common
