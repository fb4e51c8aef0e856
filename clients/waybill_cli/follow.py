"""Follows a job to its end: a live tree on a terminal, a line for each change in a pipe, JSON lines for programs.

The job does not know that it is followed: Ctrl-C, a lost connection or a closed window leave it as it is, and the last
thing said is how to return to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from datetime import datetime
from types import TracebackType
from typing import TypeAlias

from rich.live import Live

from waybill.v1.jobs_pb2 import Job
from waybill_cli.exits import Exit
from waybill_cli.output import Format, out, show_data, show_line, tell
from waybill_cli.records import record
from waybill_cli.session import Session
from waybill_cli.tree import JobPicture, change_lines
from waybill_client import WaybillClient, WaybillError, is_ended, is_finished

Show: TypeAlias = Callable[[Job], None]

_PATIENCE_SECONDS = 60.0  # how long a jobstore may be away before the follower gives up


async def follow(client: WaybillClient, job: Job, shown: AbstractContextManager[Show], session: Session) -> Job:
    """Shows the job as it changes; returns it as it ended."""
    try:
        with shown as show:
            return await shown_to_the_end(client, job, show)
    except (asyncio.CancelledError, WaybillError):
        tell(f"the job goes on; return to it with: {session.command_line('jobs', 'watch', job.job_id)}")
        raise


async def shown_to_the_end(client: WaybillClient, job: Job, show: Show) -> Job:
    """Shows each state of a job; returns the last."""
    states = client.follow_job(job.job_id, give_up_after=_PATIENCE_SECONDS)
    async with aclosing(states):
        async for job in states:
            show(job)
    return job


def shown_as(format: Format, *, several: bool = False) -> AbstractContextManager[Show]:
    """How changes of one or several jobs are shown for this format and this output."""
    if format is Format.JSON:
        return nullcontext(lambda job: show_line(record(job)))
    if format is Format.YAML:
        return nullcontext(_show_document)
    return LiveTree() if out.is_terminal else nullcontext(ChangeLines(named=several))


def unseen() -> AbstractContextManager[Show]:
    """For those who only wait."""
    return nullcontext(lambda job: None)


def exit_code_of(job: Job) -> Exit:
    """What a job means for the program: one that still runs has not failed."""
    return Exit.OK if is_finished(job) or not is_ended(job) else Exit.JOB_FAILED


class LiveTree:
    """The trees of one or several jobs, drawn over themselves while they run, and once more in full at the end."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._live = Live(console=out, get_renderable=self._picture, refresh_per_second=8, transient=True)

    def __enter__(self) -> Show:
        self._live.start()
        return self._show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        out.print(JobPicture(*self._jobs.values()))

    def _show(self, job: Job) -> None:
        self._jobs[job.job_id] = job
        self._live.refresh()

    def _picture(self) -> JobPicture:
        height = (out.height - 3) // max(1, len(self._jobs)) - 2  # without the job's own line and that of the count
        return JobPicture(*self._jobs.values(), height=max(3, height))


class ChangeLines:
    """A line for each change, with the time at which it came."""

    def __init__(self, *, named: bool = False) -> None:
        self._named = named
        self._before: dict[str, Job] = {}

    def __call__(self, job: Job) -> None:
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        for line in change_lines(self._before.get(job.job_id), job, named=self._named):
            out.print(f"{now}  {line}", markup=False, soft_wrap=True)
        self._before[job.job_id] = job


def _show_document(job: Job) -> None:
    out.print("---", markup=False)
    show_data(record(job), Format.YAML)
