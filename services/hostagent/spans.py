"""A task as a span: pure, out of what is known of the task when it ends.

The span of `task deleteImage` has the id that its coordinator reserved for it, and is a child of the command's. It
begins when the host accepted the task; that it waited, was stopped or was taken back shows in its events, and so do the
quarters of its progress that its verb reported.

It is made once, at the task's first end, and written down together with it; so whoever delivers it, and how often,
delivers the same. Work that an earlier process did is in its time, but the events are those of the last one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from chassis.errors import WaybillError
from chassis.spans import Event, FinishedSpan, Value, parse_traceparent
from hostagent.task import Ending, TaskResult, TaskSpec, TaskState

_PROGRESS: Final = "progress"
_REACHED: Final = "task.progress"
_QUARTER: Final = 25
_LONGEST_ERROR: Final = 500
_SPAN_ID: Final = re.compile(r"(?!0+$)[0-9a-f]{16}", re.ASCII)


def task_span(
    spec: TaskSpec,
    ending: Ending,
    *,
    is_call: bool,
    host_id: str,
    start: float,
    end: float,
    stop_asked: bool,
    events: Sequence[Event] = (),
) -> FinishedSpan | None:
    """Returns the span of a task that is over (Unix seconds); None if nobody wants it or its ids are no good."""
    parent = parse_traceparent(spec.traceparent)
    if parent is None or not parent.sampled or not _SPAN_ID.fullmatch(spec.span_id):
        return None
    attributes: dict[str, Value] = {
        "correlation_id": spec.correlation_id,
        "job.id": spec.job_id,
        "command.id": spec.command_id,
        "task.id": spec.task_id,
        "task.verb": spec.verb,
        "task.result": ending.result.value,
        "host.id": host_id,
    }
    return FinishedSpan(
        name=f"{'call' if is_call else 'task'} {spec.verb}",
        context=parent._replace(span_id=spec.span_id),
        parent_span_id=parent.span_id,
        start=start,
        end=end,
        attributes={name: value for name, value in attributes.items() if value},
        events=tuple(events),
        error=_error_of(ending, stop_asked),
    )


def _error_of(ending: Ending, stop_asked: bool) -> str:
    """What is wrong: not that it was stopped as somebody wished, but that it is in doubt since."""
    if ending.error is None or (stop_asked and ending.result is TaskResult.CLEAN_SUCCESS):
        return ""
    reason = f"{ending.error.reason}: " if isinstance(ending.error, WaybillError) else ""
    return f"{reason}{ending.error}"[:_LONGEST_ERROR]


def event_of(noted: Sequence[Event], state: TaskState, progress: int, now: float) -> Event | None:
    """Returns what is new about a task that is worked on, None if that is not worth an event."""
    if state not in (TaskState.RUNNING, TaskState.ABORTING, TaskState.CLEANING):
        return None
    if state.value not in (event.name for event in noted):
        return Event(state.value, now, {_REACHED: progress})
    if progress < 100 and progress // _QUARTER > max(_quarter(event) for event in noted):
        return Event(_PROGRESS, now, {_REACHED: progress})
    return None


def _quarter(event: Event) -> int:
    return int(event.attributes[_REACHED]) // _QUARTER
