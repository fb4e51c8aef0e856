"""The picture of a job: a line for it, a line for each step, what went wrong beneath.

RemoveVm  Removing VM web                    STARTED   ━━━━━━━━━━━━╌╌╌╌╌╌╌╌   60%  3.1s
├─ ✓ VALIDATION                              FINISHED                              0.0s
├─ ◐ EXECUTION                               STARTED   ━━━━━━━━━━━━╌╌╌╌╌╌╌╌   60%  3.0s
│  ├─ ✓ DELETE_IMAGE  Deleting disk-1        FINISHED                              1.6s
│  ╰─ ✗ DELETE_IMAGE  Deleting disk-2        FAILED                                1.7s
│       TASK_FAILED: the volume is in use
╰─ ○ FINALIZATION                            PENDING
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from google.rpc.status_pb2 import Status
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from waybill.v1.jobs_pb2 import Compensation, ExecutionStatus, Job, Step
from waybill_cli.output import duration_word, printable, status_style, status_text, subject_word
from waybill_client import WaybillError, is_ended, status_word

_SIGNS = {
    ExecutionStatus.EXECUTION_STATUS_PENDING: "○",
    ExecutionStatus.EXECUTION_STATUS_STARTED: "◐",
    ExecutionStatus.EXECUTION_STATUS_FINISHED: "✓",
    ExecutionStatus.EXECUTION_STATUS_FAILED: "✗",
    ExecutionStatus.EXECUTION_STATUS_ABORTED: "■",
    ExecutionStatus.EXECUTION_STATUS_UNKNOWN: "?",
    ExecutionStatus.EXECUTION_STATUS_SKIPPED: "–",
}
_BAR_WIDTH = 20
_STATE_WIDTH = _BAR_WIDTH + 28
_LEAST_TITLE = 20


class Line(NamedTuple):
    """A step and what is drawn before it and before what stands beneath it."""

    step: Step
    branch: str
    beneath: str


class JobPicture:
    """Jobs as they are; with a height for each, steps that say little are counted instead of drawn."""

    def __init__(self, *jobs: Job, height: int | None = None) -> None:
        self._rows = [row for job in jobs for row in _rows(job, height)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(_LEAST_TITLE, options.max_width - _STATE_WIDTH)
        width = min(room, max(row.title.cell_len for row in self._rows))
        for row in self._rows:
            title = row.title.copy()
            title.truncate(width, overflow="ellipsis", pad=True)
            yield _unwrapped(Text.assemble(title, "  ", row.state) if row.state else row.title)
            if row.error:
                before = Text(row.beneath + "  ", style="dim")
                for line in Text(row.error, style="red").wrap(console, options.max_width - before.cell_len):
                    yield _unwrapped(before + line)


class Row(NamedTuple):
    """What is drawn for a job or step, and beneath it."""

    title: Text
    state: Text
    beneath: str
    error: str


def tree_lines(job: Job) -> Iterator[Line]:
    """The steps, parents first, with the lines that connect them."""
    below: defaultdict[str, list[Step]] = defaultdict(list)
    for step in job.steps:
        below[step.parent_step_id].append(step)
    waiting = _siblings(below[""], "")
    while waiting:
        line = waiting.pop()
        yield line
        waiting.extend(_siblings(below[line.step.step_id], line.beneath))


def step_title(step: Step) -> Text:
    """`DELETE_IMAGE  Deleting image disk-1`."""
    words = printable(step.description)
    return Text(step.step_type) if words in ("", step.step_type) else Text(f"{step.step_type}  {words}")


def reason_line(error: Status) -> str:
    """`TASK_FAILED: the volume is in use`."""
    problem = WaybillError.from_status(error)
    return f"{problem.reason}: {printable(problem.message)}" if problem.message else problem.reason


def compensation_line(compensation: Compensation) -> str:
    """`if RemoveDisk fails: DISK/disk-1 is OK again, or ILLEGAL if its work is not rolled back`."""
    what = printable(subject_word(compensation.entity))
    becomes = "is removed" if compensation.removed else f"is {compensation.status} again"
    doubt = ", or ILLEGAL if its work is not rolled back" if compensation.may_become_illegal else ""
    return f"if {compensation.command_type} fails: {what} {becomes}{doubt}"


def change_lines(before: Job | None, job: Job, *, named: bool = False) -> Iterator[str]:
    """What has changed, one line each, for a pipe; `named` if there are lines of other jobs among them."""
    name = job.description or job.command_type
    if before is None or before.status != job.status:
        yield _change_line(job, name)
    known = {step.step_id: step for step in before.steps} if before else {}
    titles = {step.step_id: step_title(step).plain for step in job.steps}
    for step in job.steps:
        earlier = known.get(step.step_id)
        if earlier is None or (earlier.status, earlier.progress) != (step.status, step.progress):
            path = [name if named else None, titles.get(step.parent_step_id), titles[step.step_id]]
            yield _change_line(step, " > ".join(each for each in path if each))


def _change_line(of: Job | Step, title: str) -> str:
    reason = _reason_if_any(of)
    why = f"  ({reason})" if reason else ""
    return f"{status_word(of.status):<9}{of.progress:>4}%  {printable(title)}{why}"


def _siblings(steps: list[Step], before: str) -> list[Line]:
    """Lines of steps with the same parent, last first, as a stack takes them."""
    ordered = sorted(steps, key=lambda step: step.number)
    lines = [Line(step, before + "├─ ", before + "│  ") for step in ordered[:-1]]
    lines += [Line(step, before + "╰─ ", before + "   ") for step in ordered[-1:]]
    return lines[::-1]


def _rows(job: Job, height: int | None) -> Iterator[Row]:
    lines = list(tree_lines(job))
    shown = lines if height is None or len(lines) <= height else _telling(lines, height)
    yield _job_row(job)
    for line in shown:
        yield _step_row(line)
    for compensation in job.compensations:
        yield Row(Text(compensation_line(compensation), style="dim"), Text(), "", "")
    if len(shown) < len(lines):
        yield Row(Text(_count_of_hidden(lines, shown), style="dim"), Text(), "", "")


def _job_row(job: Job) -> Row:
    words = "" if job.description == job.command_type else printable(job.description)
    return Row(Text.assemble((job.command_type, "bold"), "  ", words), _state(job), "", _reason_if_any(job))


def _step_row(line: Line) -> Row:
    step = line.step
    title = Text.assemble((line.branch, "dim"), (_SIGNS.get(step.status, " "), status_style(step.status)), " ")
    return Row(title + step_title(step), _state(step), line.beneath, _reason_if_any(step))


def _reason_if_any(of: Job | Step) -> str:
    return reason_line(of.error) if of.HasField("error") else ""


def _state(of: Job | Step) -> Text:
    """Status, bar and percent while it runs, and how long it took."""
    running = not is_ended(of) and of.status != ExecutionStatus.EXECUTION_STATUS_PENDING
    done = round(of.progress * _BAR_WIDTH / 100)
    bar = [("━" * done, "cyan"), ("╌" * (_BAR_WIDTH - done), "dim"), f" {of.progress:>4}%"]
    took = duration_word(of.start_time, of.end_time)
    word = status_text(of.status)
    word.pad_right(9 - word.cell_len)
    return Text.assemble(word, " ", *(bar if running else [" " * (_BAR_WIDTH + 6)]), "  ", (took, "dim"))


def _unwrapped(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "crop"
    text.rstrip()
    return text


def _telling(lines: list[Line], height: int) -> list[Line]:
    """The steps worth a line when there is no room for all: those that run or went wrong, and those above them."""
    by_id = {line.step.step_id: line.step for line in lines}
    wanted: set[str] = set()
    for line in lines:
        if line.step.status not in _QUIET:
            step: Step | None = line.step
            while step is not None and step.step_id not in wanted:
                wanted.add(step.step_id)
                step = by_id.get(step.parent_step_id)
    return [line for line in lines if line.step.step_id in wanted][:height]


_QUIET = {
    ExecutionStatus.EXECUTION_STATUS_PENDING,
    ExecutionStatus.EXECUTION_STATUS_FINISHED,
    ExecutionStatus.EXECUTION_STATUS_SKIPPED,
}


def _count_of_hidden(lines: list[Line], shown: list[Line]) -> str:
    visible = {line.step.step_id for line in shown}
    hidden = Counter(status_word(line.step.status) for line in lines if line.step.step_id not in visible)
    return "   … and " + ", ".join(f"{count} {word}" for word, count in hidden.items())
