"""The picture of a job: a line for it, a line for each step, what went wrong beneath.

RemoveVm  Removing VM web                               STARTED  ████████████░░░░░░░░  60%  3.1s
├─ ✓ VALIDATION                                         FINISHED                       0.0s
├─ ◐ EXECUTION                                          STARTED  ████████████░░░░░░░░  60%  3.0s
│  ├─ ✓ DELETE_IMAGE  Deleting image disk-1             FINISHED                       1.6s
│  ╰─ ✗ DELETE_IMAGE  Deleting image disk-2             FAILED                         1.7s
│       TASK_FAILED: the volume is in use
╰─ ○ FINALIZATION                                       PENDING
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from google.rpc.status_pb2 import Status
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from waybill.v1.jobs_pb2 import ExecutionStatus, Job, Step
from waybill_cli.output import duration_word, printable, status_style, status_text
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


class Line(NamedTuple):
    """A step and what is drawn before it and before what stands beneath it."""

    step: Step
    branch: str
    beneath: str


def job_picture(job: Job, *, height: int | None = None) -> Table:
    """The job as it is; with a height, steps that say little are counted instead of drawn."""
    lines = list(tree_lines(job))
    shown = lines if height is None or len(lines) <= height else _telling(lines, height)
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(5):
        table.add_column(no_wrap=True, overflow="ellipsis")
    title = Text.assemble((job.command_type, "bold"), "  ", printable(job.description))
    table.add_row(title, *_state_cells(job))
    _add_error(table, "", job.error)
    for step, branch, beneath in shown:
        title = Text.assemble((branch, "dim"), (_SIGNS.get(step.status, " "), status_style(step.status)), " ")
        table.add_row(title + step_title(step), *_state_cells(step))
        _add_error(table, beneath, step.error)
    if len(shown) < len(lines):
        table.add_row(Text(_count_of_hidden(lines, shown), style="dim"))
    return table


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


def change_lines(before: Job | None, job: Job) -> Iterator[str]:
    """What has changed, one line each, for a pipe."""
    if before is None or before.status != job.status:
        yield _change_line(job, job.description or job.command_type, job.error if job.HasField("error") else None)
    known = {step.step_id: step for step in before.steps} if before else {}
    titles = {step.step_id: step_title(step).plain for step in job.steps}
    for step in job.steps:
        earlier = known.get(step.step_id)
        if earlier is None or (earlier.status, earlier.progress) != (step.status, step.progress):
            above = titles.get(step.parent_step_id)
            title = f"{above} > {titles[step.step_id]}" if above else titles[step.step_id]
            yield _change_line(step, title, step.error if step.HasField("error") else None)


def _change_line(of: Job | Step, title: str, error: Status | None) -> str:
    why = f"  ({reason_line(error)})" if error is not None else ""
    return f"{status_word(of.status):<9}{of.progress:>4}%  {printable(title)}{why}"


def _siblings(steps: list[Step], before: str) -> list[Line]:
    """Lines of steps with the same parent, last first, as a stack takes them."""
    ordered = sorted(steps, key=lambda step: step.number)
    lines = [Line(step, before + "├─ ", before + "│  ") for step in ordered[:-1]]
    lines += [Line(step, before + "╰─ ", before + "   ") for step in ordered[-1:]]
    return lines[::-1]


def _state_cells(of: Job | Step) -> tuple[Text, ProgressBar | Text, Text, Text]:
    running = not is_ended(of) and of.status != ExecutionStatus.EXECUTION_STATUS_PENDING
    bar = ProgressBar(100, of.progress, width=_BAR_WIDTH) if running else Text()
    percent = Text(f"{of.progress:>3}%") if running else Text()
    return status_text(of.status), bar, percent, Text(duration_word(of.start_time, of.end_time), style="dim")


def _add_error(table: Table, before: str, error: Status) -> None:
    if error.code:
        table.add_row(Text.assemble((before + "  ", "dim"), (reason_line(error), "red")))


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
