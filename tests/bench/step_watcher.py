"""The client that watches jobs with their trees, and says when so many steps that delete an image are over.

Its first word after `ready` comes with the first such end, the next ones with every further part of all of them.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from statistics import median
from typing import Any

import child
from waybill.v1.jobs_pb2 import EXECUTION_STATUS_FINISHED, JOB_VIEW_TREE, ExecutionStatus, Job
from waybill_client import WaybillClient, where
from waybill_client.watch import Complete, Upserted
from waybill_client.words import is_ended


class StepWatcher:
    """Counts the steps that are over, and the jobs that have ended."""

    def __init__(self, steps: int, marks: int) -> None:
        self._marks = sorted({1, *(steps * number // marks for number in range(1, marks + 1))} - {0})
        self._over: set[str] = set()
        self._lags: list[float] = []
        self.ended: dict[str, Job] = {}

    def take(self, job: Job) -> None:
        """Takes a change; one and the same may come twice."""
        now = time.time()
        for step in job.steps:
            if step.step_type == "DELETE_IMAGE" and step.HasField("end_time") and step.step_id not in self._over:
                self._over.add(step.step_id)
                self._lags.append(now - step.end_time.ToNanoseconds() / 1e9)
        if is_ended(job):
            self.ended[job.job_id] = job
        self._tell()

    def _tell(self) -> None:
        if self._marks and len(self._over) >= self._marks[0]:
            child.say(over=len(self._over), at=time.monotonic(), lag=median(self._lags))
            self._lags.clear()
            self._marks = [mark for mark in self._marks if mark > len(self._over)]


async def main(arguments: dict[str, Any]) -> None:
    watcher = StepWatcher(arguments["steps"], arguments["marks"])
    async with (
        WaybillClient(jobstore=arguments["jobstore"], wait_for_ready=True) as client,
        aclosing(client.watch_jobs(where(correlation_id=arguments["run"]), view=JOB_VIEW_TREE)) as changes,
    ):
        async for change in changes:
            if isinstance(change, Complete) and change.snapshot:
                break
        child.say(ready=True)
        async for change in changes:
            if isinstance(change, Upserted):
                watcher.take(change.job)
            elif len(watcher.ended) == arguments["jobs"]:
                break
    others = [job for job in watcher.ended.values() if job.status != EXECUTION_STATUS_FINISHED]
    child.say(
        finished=len(watcher.ended) - len(others),
        others={job.job_id: f"{ExecutionStatus.Name(job.status)}: {job.error.message}" for job in others[:5]},
        at=time.monotonic(),
    )


if __name__ == "__main__":
    child.run(main)
