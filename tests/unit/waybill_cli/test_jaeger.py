"""What Jaeger answers, as a real one answered; and links to it."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from waybill_cli.exits import Complaint
from waybill_cli.jaeger import Jaeger, spans_of

ANSWER: dict[str, Any] = json.loads(Path(__file__).with_name("jaeger_answer.json").read_text())
TRACE_ID = "e36dba174354a05cb8accc3bc657b243"


def test_the_spans_come_by_their_start_and_parents_first() -> None:
    assert [(span.name, span.service) for span in spans_of(ANSWER)] == [
        ("/waybill.v1.Coordinator/RunCommand", "waybill-client"),
        ("/waybill.v1.Coordinator/RunCommand", "waybill-coordinator"),
        ("RemoveVm", "waybill-coordinator"),
        ("RemoveVm started", "waybill-coordinator"),
        ("task deleteImage", "waybill-hostagent"),
    ]


def test_the_root_has_no_parent_and_the_others_have_one() -> None:
    client, server, command, *_ = spans_of(ANSWER)
    assert (client.parent_span_id, client.kind) == ("", "client")
    assert (server.parent_span_id, server.kind) == (client.span_id, "server")
    assert (command.parent_span_id, command.links) == (client.span_id, ())


def test_a_span_has_its_times_its_error_and_what_is_said_of_it() -> None:
    task = spans_of(ANSWER)[-1]
    assert task.start == datetime(2026, 11, 21, 23, 37, 24, 144699, UTC)
    assert task.end - task.start == timedelta(microseconds=716_669)
    assert (task.failed, task.message) == (True, "TASK_FAILED: the volume is in use")
    assert (task.resource["host.id"], task.attributes["task.result"]) == ("host-2", "CLEAN_FAILURE")
    assert [event["time"] for event in task.events] == sorted(event["time"] for event in task.events)
    assert len(task.events) == 4


def test_a_span_that_was_delivered_twice_is_one() -> None:
    answer = copy.deepcopy(ANSWER)
    answer["data"][0]["spans"] *= 2
    assert spans_of(answer) == spans_of(ANSWER)


def test_spans_in_a_circle_are_shown_too() -> None:
    answer = copy.deepcopy(ANSWER)
    for span in answer["data"][0]["spans"]:
        span["references"] = [{"refType": "CHILD_OF", "traceID": TRACE_ID, "spanID": span["spanID"]}]
    assert len(spans_of(answer)) == 5


def test_a_reference_to_anything_but_the_parent_is_a_link() -> None:
    answer = copy.deepcopy(ANSWER)
    span = answer["data"][0]["spans"][0]
    span["references"] = [
        {"refType": "CHILD_OF", "traceID": TRACE_ID, "spanID": "00000000000000aa"},
        {"refType": "FOLLOWS_FROM", "traceID": "f" * 32, "spanID": "00000000000000bb"},
    ]
    (found,) = [each for each in spans_of(answer) if each.span_id == span["spanID"]]
    assert found.parent_span_id == "00000000000000aa"
    assert found.links == ({"trace_id": "f" * 32, "span_id": "00000000000000bb"},)


@pytest.mark.parametrize("base_url", ["http://jaeger:16686", "http://jaeger:16686/"])
def test_a_link_leads_to_the_span_in_its_trace(base_url: str) -> None:
    assert Jaeger(base_url).link("t", "s") == "http://jaeger:16686/trace/t?uiFind=s"
    assert Jaeger(base_url).link("t") == "http://jaeger:16686/trace/t"


def test_the_path_that_jaeger_is_served_under_stays() -> None:
    assert Jaeger("https://ops/jaeger/").link("t") == "https://ops/jaeger/trace/t"


@pytest.mark.parametrize("base_url", ["127.0.0.1:16686", "file:///etc/passwd", "http://", "jaeger"])
def test_what_is_no_url_of_a_page_is_refused_with_an_example(base_url: str) -> None:
    with pytest.raises(Complaint, match="no URL of a Jaeger") as refused:
        Jaeger(base_url)
    assert "http://127.0.0.1:16686" in refused.value.remedy
