"""Jaeger: links to its pages, and the spans of a trace by its query API.

`/api/traces/{id}` is what Jaeger's own pages read, in all its releases; `raw=true` leaves times as they were recorded.
It knows OpenTelemetry's words as tags: the kind is `span.kind`, the status `error` and `otel.status_description`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from waybill_cli.exits import Complaint

_SECONDS = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NoSpans(Exception):  # noqa: N818 - what the user is told
    """Jaeger has no such trace, or cannot be asked at all, which is `final`: the message says which, in one line."""

    def __init__(self, message: str, *, final: bool = True) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class Span:
    """A span as Jaeger has it."""

    trace_id: str
    span_id: str
    parent_span_id: str
    """Empty: it is the root."""
    name: str
    kind: str
    """`server`, `client`, `internal` …"""
    service: str
    resource: Mapping[str, Any]
    """What is said of the process that made it: `host.id`, `service.version` …"""
    start: datetime
    end: datetime
    failed: bool
    message: str
    """What went wrong; empty unless it failed."""
    attributes: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]
    """`time`, `name`, `attributes` of each, in order."""
    links: tuple[Mapping[str, str], ...]
    """`trace_id`, `span_id` of each."""


@dataclass(frozen=True)
class Jaeger:
    """A Jaeger by its base URL, like `http://127.0.0.1:16686`; whatever path it is served under belongs to it."""

    base_url: str
    timeout: float = _SECONDS

    def __post_init__(self) -> None:
        """Raises Complaint for what is no URL of a web page."""
        if urlsplit(self.base_url).scheme not in ("http", "https") or not urlsplit(self.base_url).netloc:
            raise Complaint(
                f"{self.base_url!r} is no URL of a Jaeger", "WAYBILL_JAEGER_URL is like http://127.0.0.1:16686"
            )

    def link(self, trace_id: str, span_id: str = "") -> str:
        """The page of a trace, at a span of it if there is one."""
        page = f"{self.base_url.rstrip('/')}/trace/{trace_id}"
        return f"{page}?uiFind={span_id}" if span_id else page

    async def spans(self, trace_id: str) -> list[Span]:
        """All spans of a trace by their start, parents first, each once; raises NoSpans."""
        answer = await asyncio.to_thread(self._get, f"/api/traces/{trace_id}?raw=true")
        try:
            return spans_of(answer)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise NoSpans(f"{self.base_url} does not answer as a Jaeger does") from None

    def _get(self, path: str) -> Any:
        try:
            with urlopen(self.base_url.rstrip("/") + path, timeout=self.timeout) as response:
                return json.load(response)
        except HTTPError as error:
            error.close()
            raise self._refused(error.code, path) from None
        except (URLError, OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise NoSpans(f"cannot reach Jaeger at {self.base_url}: {getattr(why, 'strerror', None) or why}") from None
        except ValueError:
            raise NoSpans(f"{self.base_url} does not answer as a Jaeger does") from None

    def _refused(self, code: int, path: str) -> NoSpans:
        if code == http.client.NOT_FOUND:
            trace_id = path.rpartition("/")[2].partition("?")[0]
            return NoSpans(f"Jaeger at {self.base_url} does not know trace {trace_id}, or not yet", final=False)
        return NoSpans(f"Jaeger at {self.base_url} answers HTTP {code}")


def spans_of(answer: Mapping[str, Any]) -> list[Span]:
    """The spans in an answer of the API. One that was delivered twice is the same span."""
    spans = [_span(each, trace["processes"]) for trace in answer["data"] for each in trace["spans"]]
    unique = {(each.trace_id, each.span_id, each.name, each.start, each.end): each for each in spans}
    parents = {each.span_id: each.parent_span_id for each in unique.values()}
    return sorted(unique.values(), key=lambda span: (span.start, _depth(span.span_id, parents), span.span_id))


def _depth(span_id: str, parents: Mapping[str, str]) -> int:
    """How many spans are above it; of spans in a circle, which nobody should have made, just many."""
    depth = 0
    while depth < len(parents) and parents.get(span_id):
        span_id, depth = parents[span_id], depth + 1
    return depth


def _span(each: Mapping[str, Any], processes: Mapping[str, Any]) -> Span:
    process = processes[each["processID"]]
    tags = _values(each["tags"])
    start = _time(each["startTime"])
    references = [(one["refType"], one["traceID"], one["spanID"]) for one in each["references"] or ()]
    parents = [span_id for kind, trace_id, span_id in references if (kind, trace_id) == ("CHILD_OF", each["traceID"])]
    failed = bool(tags.pop("error", False))
    return Span(
        trace_id=each["traceID"],
        span_id=each["spanID"],
        parent_span_id=parents[0] if parents else "",
        name=each["operationName"],
        kind=str(tags.pop("span.kind", "")),
        service=process["serviceName"],
        resource=_values(process["tags"]),
        start=start,
        end=start + timedelta(microseconds=each["duration"]),
        failed=failed,
        message=str(tags.pop("otel.status_description", "")) if failed else "",
        attributes=tags,
        events=tuple(_event(log) for log in sorted(each["logs"] or (), key=lambda log: int(log["timestamp"]))),
        links=tuple(
            {"trace_id": trace_id, "span_id": span_id}
            for _, trace_id, span_id in references
            if parents[:1] != [span_id] or trace_id != each["traceID"]
        ),
    )


def _event(log: Mapping[str, Any]) -> dict[str, Any]:
    fields = _values(log["fields"])
    return {"time": _time(log["timestamp"]), "name": str(fields.pop("event", "")), "attributes": fields}


def _values(tags: Iterable[Mapping[str, Any]] | None) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in tags or ()}


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
