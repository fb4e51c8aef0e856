"""What span a task leaves."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from chassis.errors import failed_precondition
from hostagent.spans import TaskSpan, event_of, is_recorded, is_told
from hostagent.task import Ending, TaskResult, TaskSpec, TaskState
from waybill_spans import Event, parse_traceparent

TRACE, PARENT, OWN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "53995c3f42cd8ad8"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
DONE = Ending(TaskResult.SUCCESS)
STATES = TaskState


def a_span(ending: Ending = DONE, *, stop_asked: bool = False, is_call: bool = False, **fields: Any) -> Any:
    spec = TaskSpec(
        "t1", "deleteImage", {}, **{"correlation_id": "c1", "traceparent": TRACEPARENT, "span_id": OWN, **fields}
    )
    above = parse_traceparent(spec.traceparent)
    if not is_recorded(above, spec):
        return None
    span = TaskSpan(spec, above, ending, is_call, "h1", 100.0, 101.5, stop_asked)
    return trace_pb2.Span.FromString(span.encoded())


def attributes_of(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_it_has_the_reserved_id_beneath_the_command() -> None:
    span = a_span(job_id="j1", command_id="k1")
    assert span.name == "task deleteImage"
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (TRACE, OWN, PARENT)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (100_000_000_000, 101_500_000_000)
    assert attributes_of(span) == {
        "correlation_id": "c1",
        "job.id": "j1",
        "command.id": "k1",
        "task.id": "t1",
        "task.verb": "deleteImage",
        "task.result": "SUCCESS",
        "host.id": "h1",
    }


def test_a_call_is_named_as_one() -> None:
    assert a_span(is_call=True).name == "call deleteImage"


def test_what_is_not_known_is_no_attribute() -> None:
    assert "job.id" not in attributes_of(a_span())


@pytest.mark.parametrize(
    "fields",
    [
        {"traceparent": ""},
        {"traceparent": f"00-{TRACE}-{PARENT}-00"},  # its root decided that nobody records it
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": "\r\n" + TRACEPARENT},
        {"span_id": ""},
        {"span_id": "0" * 16},
        {"span_id": OWN.upper()},
        {"span_id": OWN + "-01\n"},
        {"span_id": "é" * 16},
    ],
)
def test_ids_that_are_no_good_make_no_span(fields: dict[str, Any]) -> None:
    assert a_span(**fields) is None


def test_a_failure_is_an_error_and_says_why() -> None:
    failure = failed_precondition("OBJECT_STATE", "no such volume")
    assert a_span(Ending(TaskResult.CLEAN_SUCCESS, failure)).status.message == "OBJECT_STATE: no such volume"
    assert a_span(Ending(TaskResult.CLEAN_FAILURE, RuntimeError("x" * 1000))).status.message == "x" * 500


def test_a_stop_is_an_error_only_if_something_stayed() -> None:
    aborted = failed_precondition("ABORTED", "stopped on request")
    assert a_span(Ending(TaskResult.CLEAN_SUCCESS, aborted), stop_asked=True).status.message == ""
    assert (
        a_span(Ending(TaskResult.CLEAN_FAILURE, aborted), stop_asked=True).status.message
        == "ABORTED: stopped on request"
    )


def events_of(*seen: tuple[TaskState, int]) -> list[Event]:
    noted: list[Event] = []
    for now, (state, progress) in enumerate(seen):
        event = event_of(noted, state, progress, float(now)) if is_told(state) else None
        noted += [event] if event is not None else []
    return noted


def test_states_are_events_where_they_tell_something() -> None:
    seen = [(STATES.INIT, 0), (STATES.RUNNING, 0), (STATES.ABORTING, 0), (STATES.CLEANING, 0), (STATES.FINISHED, 0)]
    assert [(event.name, event.time) for event in events_of(*seen)] == [
        ("RUNNING", 1.0),
        ("ABORTING", 2.0),
        ("CLEANING", 3.0),
    ]


def test_progress_is_told_by_quarters() -> None:
    events = events_of(*((STATES.RUNNING, percent) for percent in (0, *range(1, 101))))
    assert [(event.name, event.attributes) for event in events] == [
        ("RUNNING", {"task.progress": 0}),
        ("progress", {"task.progress": 25}),
        ("progress", {"task.progress": 50}),
        ("progress", {"task.progress": 75}),
    ]


def test_a_leap_over_several_quarters_is_one_event() -> None:
    events = events_of((STATES.RUNNING, 10), (STATES.RUNNING, 80), (STATES.RUNNING, 99))
    assert [event.attributes["task.progress"] for event in events] == [10, 80]


def test_what_was_taken_up_again_goes_on_from_where_it_was() -> None:
    assert [event.attributes["task.progress"] for event in events_of((STATES.RUNNING, 60), (STATES.RUNNING, 70))] == [
        60
    ]
