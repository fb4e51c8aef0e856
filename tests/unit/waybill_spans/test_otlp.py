"""What is written by hand is what the official messages read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from tests.unit.texts import any_text

from waybill_spans import otlp

ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
trace_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
texts = any_text()
times = st.integers(0, 2**51).map(lambda micros: micros / 1e6)  # what a float can say exactly
values = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
attributes = st.dictionaries(texts, values, max_size=4)
spans = st.fixed_dictionaries(
    {
        "name": texts,
        "trace_id": trace_ids,
        "span_id": ids,
        "parent_span_id": ids | st.just(""),
        "kind": st.sampled_from([otlp.INTERNAL, otlp.SERVER, otlp.CLIENT]),
        "start": times,
        "end": times,
        "attributes": attributes,
        "events": st.lists(st.tuples(texts, times, attributes), max_size=3),
        "links": st.lists(st.tuples(trace_ids, ids, st.just(True)), max_size=3),
        "error": texts,
    }
)


def read(request: bytes) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """What a collector understands: resource, scope, spans."""
    message = trace_service_pb2.ExportTraceServiceRequest.FromString(request)
    [group] = message.resource_spans
    [scope] = group.scope_spans
    return _attributes(group.resource.attributes), scope.scope.name, [_span(span) for span in scope.spans]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(span: Any) -> dict[str, Any]:
    assert span.status.code == (2 if span.status.message else 0)
    return {
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "kind": span.kind,
        "start": _seconds(span.start_time_unix_nano),
        "end": _seconds(span.end_time_unix_nano),
        "attributes": _attributes(span.attributes),
        "events": [
            (event.name, _seconds(event.time_unix_nano), _attributes(event.attributes)) for event in span.events
        ],
        "links": [(link.trace_id.hex(), link.span_id.hex(), True) for link in span.links],
        "error": span.status.message,
    }


def _seconds(nanos: int) -> float:
    assert nanos % 1000 == 0
    return nanos // 1000 / 1e6


@given(attributes, texts, st.lists(spans, max_size=3))
def test_a_request_is_read_as_it_was_meant(resource: dict[str, Any], scope: str, sent: list[dict[str, Any]]) -> None:
    request = otlp.request(otlp.resource(resource), scope, [otlp.span(**span) for span in sent])
    assert read(request) == (resource, scope, sent)


@pytest.mark.parametrize("texts", [["%s"], ["a" * 100, "b"], ["é", "b"], ["a", 7], [True, "b"], [1, 1.0], []])
@pytest.mark.parametrize("key", ["key", "100 %", "clé"])
def test_attributes_are_read_as_they_were_meant_however_often_the_like_came(key: str, texts: list[otlp.Value]) -> None:
    said = {f"{key}{number}": text for number, text in enumerate(texts)}
    sent = _plain(attributes=said, events=[("event", 1.0, said)])
    for _ in range(2):
        request = otlp.request(otlp.resource({}), "s", [otlp.span(**sent)])
        assert repr(read(request)[2]) == repr([sent])


@pytest.mark.parametrize("size", range(100, 140))
def test_a_text_of_any_size_is_read_as_it_was_meant(size: int) -> None:
    sent = _plain(attributes={"key": "a" * size})
    request = otlp.request(otlp.resource({}), "s", [otlp.span(**sent)])
    assert read(request)[2] == [sent]


def test_what_many_spans_have_in_common_may_be_put_into_its_form_before() -> None:
    common = otlp.described({"rpc.system": "grpc", "code": 0})
    request = otlp.request(otlp.resource({}), "s", [otlp.span(**_plain(attributes={"a": "b"}), described=common)])
    [span] = read(request)[2]
    assert span["attributes"] == {"a": "b", "rpc.system": "grpc", "code": 0}


def test_text_that_no_stream_can_carry_is_no_obstacle() -> None:
    request = otlp.request(otlp.resource({}), "s", [otlp.span(**_plain(name="\ud800"))])
    [span] = read(request)[2]
    assert span["name"] == "?"


def _plain(**other: Any) -> dict[str, Any]:
    span: dict[str, Any] = {"name": "", "trace_id": "ab" * 16, "span_id": "cd" * 8, "parent_span_id": "", "kind": 1}
    span |= {"start": 0.0, "end": 0.0, "attributes": {}, "events": [], "links": [], "error": ""}
    return span | other
