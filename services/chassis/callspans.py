"""The span of the call that is being answered.

Only noted while the call is answered, in as few steps as can be: what is done once in between costs several times what
it costs in a row. So even its id is made when somebody asks for it, at the latest when it leaves.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

from waybill_spans import Context, Value, described_call, new_span_id, otlp

_NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


class CallSpan:
    """Of one call; times in Unix seconds."""

    __slots__ = (
        "_place",
        "_rng",
        "above",
        "code",
        "correlation_id",
        "described",
        "error",
        "links",
        "method",
        "over",
        "start",
    )

    def __init__(
        self,
        method: str,
        correlation_id: str,
        start: float,
        *,
        above: Context | None,
        root: Context | None,
        rng: random.Random,
    ) -> None:
        """`above` is the caller's span; if there is none, `root` is where the call's own is."""
        self.method = method
        self.correlation_id = correlation_id
        self.start = self.over = start
        self.above = above
        self.code = 0
        self.error = ""
        self.described = _NOTHING
        self.links: tuple[Context, ...] = ()
        self._place = root
        self._rng = rng

    @property
    def place(self) -> Context:
        """Where it is: in the caller's trace, or in one of its own."""
        if self._place is None:
            assert self.above is not None
            self._place = self.above.at(new_span_id(self._rng))
        return self._place

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        return otlp.span(
            name=self.method[1:],
            trace_id=self.place.trace_id,
            span_id=self.place.span_id,
            parent_span_id=self.above.span_id if self.above is not None else "",
            kind=otlp.SERVER,
            start=self.start,
            end=max(self.start, self.over),
            attributes={"correlation_id": self.correlation_id, **self.described},
            described=described_call(self.method[1:], self.code),
            links=self.links,
            error=self.error,
        )


current: ContextVar[CallSpan | None] = ContextVar("waybill_call_span", default=None)
"""Of the call that is answered here; None if nobody traces it."""
