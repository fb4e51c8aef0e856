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
from typing import Final, NamedTuple, TypeGuard

from chassis.errors import WaybillError
from hostagent.task import Ending, TaskResult, TaskSpec, TaskState
from waybill_spans import Context, Event, Value, otlp

_PROGRESS: Final = "progress"
_REACHED: Final = "task.progress"
_QUARTER: Final = 25
_LONGEST_ERROR: Final = 500
_AT_WORK: Final = (TaskState.RUNNING, TaskState.ABORTING, TaskState.CLEANING)
_SPAN_ID: Final = re.compile(r"(?!0+$)[0-9a-f]{16}", re.ASCII)


def is_recorded(above: Context | None, spec: TaskSpec) -> TypeGuard[Context]:
    """Tells whether somebody wants a task's span, and its own id is good for one."""
    return above is not None and above.sampled and _SPAN_ID.fullmatch(spec.span_id) is not None


class TaskSpan(NamedTuple):
    """What the span of a task that is over is made of; times in Unix seconds."""

    spec: TaskSpec
    """Of one that `is_recorded`."""
    above: Context
    """The command's."""
    ending: Ending
    is_call: bool
    host_id: str
    start: float
    end: float
    stop_asked: bool
    events: Sequence[Event] = ()

    def encoded(self) -> bytes:
        """Returns it as OTLP's Span."""
        spec = self.spec
        attributes: dict[str, Value] = {
            "correlation_id": spec.correlation_id,
            "job.id": spec.job_id,
            "command.id": spec.command_id,
            "task.id": spec.task_id,
            "task.verb": spec.verb,
            "task.result": self.ending.result.value,
            "host.id": self.host_id,
        }
        if "" in attributes.values():
            attributes = {name: value for name, value in attributes.items() if value}
        return otlp.span(
            name=f"{'call' if self.is_call else 'task'} {spec.verb}",
            trace_id=self.above.trace_id,
            span_id=spec.span_id,
            parent_span_id=self.above.span_id,
            kind=otlp.INTERNAL,
            start=self.start,
            end=self.end,
            attributes=attributes,
            events=self.events,
            error=_error_of(self.ending, self.stop_asked),
        )


def _error_of(ending: Ending, stop_asked: bool) -> str:
    """What is wrong: not that it was stopped as somebody wished, but that it is in doubt since."""
    if ending.error is None or (stop_asked and ending.result is TaskResult.CLEAN_SUCCESS):
        return ""
    reason = f"{ending.error.reason}: " if isinstance(ending.error, WaybillError) else ""
    return f"{reason}{ending.error}"[:_LONGEST_ERROR]


def is_told(state: TaskState) -> bool:
    """Tells whether a span has events of that state."""
    return state in _AT_WORK


def event_of(noted: Sequence[Event], state: TaskState, progress: int, now: float) -> Event | None:
    """Returns what is new about a task in a state that `is_told`, None if that is not worth an event."""
    if not noted or state.value not in (event.name for event in noted):
        return Event(state.value, now, {_REACHED: progress})
    if progress < 100 and progress // _QUARTER > max(_quarter(event) for event in noted):
        return Event(_PROGRESS, now, {_REACHED: progress})
    return None


def _quarter(event: Event) -> int:
    return int(event.attributes[_REACHED]) // _QUARTER
