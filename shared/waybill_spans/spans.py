"""Spans: what one did, from when to when, and where it belongs. Pure.

A span that is over is a plain value. It is put into OTLP's wire form when it leaves, many at once (`delivery.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from waybill_spans import otlp

Value = otlp.Value

_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.ASCII
)
_SIZE: Final = 55  # of version 00, which has nothing after the flags
_LONGEST_TRACEPARENT: Final = 256
_NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


class Context(NamedTuple):
    """Where in which trace a span is."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool = True
    """False: the trace's root decided that nobody records it."""

    def at(self, span_id: str) -> Context:
        """Returns the place of another span of the same trace."""
        return Context(self.trace_id, span_id, self.sampled)


def new_span_id(rng: random.Random) -> str:
    """Returns a fresh one, never 0."""
    return f"{rng.getrandbits(64) or 1:016x}"


def new_root(rng: random.Random) -> Context:
    """Returns the place of a span that begins a trace."""
    ids = f"{rng.getrandbits(192) or 1:048x}"
    return Context(ids[:32], ids[32:])


def parse_traceparent(text: str) -> Context | None:
    """Returns what a `traceparent` names, None if it is none (W3C Trace Context, level 1)."""
    if len(text) > _SIZE and (len(text) > _LONGEST_TRACEPARENT or text.startswith("00")):
        return None
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    return Context(trace_id, span_id, int(flags, 16) & 1 == 1)


def format_traceparent(context: Context) -> str:
    """Returns the `traceparent` of a span."""
    return f"00-{context.trace_id}-{context.span_id}-{'01' if context.sampled else '00'}"


@lru_cache(maxsize=1024)
def described_call(method: str, code: int | None) -> bytes:
    """Returns what is said of every call of a method (`package.Service/Name`) that ended alike, for `otlp.span`.

    By OpenTelemetry's conventions. `code` is gRPC's; None: nobody knows.
    """
    service, _, name = method.partition("/")
    said: dict[str, Value] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    return otlp.described(said if code is None else {**said, "rpc.grpc.status_code": code})


class Event(NamedTuple):
    """Something that happened in a span; time in Unix seconds."""

    name: str
    time: float
    attributes: Mapping[str, Value] = _NOTHING


class FinishedSpan(NamedTuple):
    """A span that is over, of no call; times in Unix seconds. Its attributes do not change any more."""

    name: str
    """Of low cardinality: `RemoveVm`, `task deleteImage`."""
    context: Context
    parent_span_id: str
    """Empty: it is the root."""
    start: float
    end: float
    attributes: Mapping[str, Value] = _NOTHING
    events: Sequence[Event] = ()
    error: str = ""
    """What went wrong; empty: nothing did, or nobody can say."""
    links: Sequence[Context] = ()

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        return otlp.span(
            name=self.name,
            trace_id=self.context.trace_id,
            span_id=self.context.span_id,
            parent_span_id=self.parent_span_id,
            kind=otlp.INTERNAL,
            start=self.start,
            end=self.end,
            attributes=self.attributes,
            events=self.events,
            links=self.links,
            error=self.error,
        )
