"""The client that watches: one WatchJobs reader, BASIC, of everything, which must see each job of a run FINISHED.

Without it a run is not valid: what nobody can see has not been done. For each job that it sees FINISHED it sends a
byte to the submitter.
"""

from __future__ import annotations

import os
import time
from contextlib import aclosing
from typing import Any

import child
import w1
from waybill.v1.jobs_pb2 import EXECUTION_STATUS_FINISHED, ExecutionStatus, Job
from waybill_client import WaybillClient
from waybill_client.watch import Complete, Upserted
from waybill_client.words import is_ended


class Watcher:
    """Counts the jobs of a run that have ended."""

    def __init__(self, run: str, finished: int) -> None:
        self._run = run
        self._pipe = finished
        self._seen: set[str] = set()
        self._unsaid = 0
        self.others: dict[str, str] = {}
        """How those ended that did not end well, by correlation id."""

    @property
    def ended(self) -> int:
        """How many have ended, well or not."""
        return len(self._seen) + len(self.others)

    @property
    def finished(self) -> int:
        """How many have FINISHED."""
        return len(self._seen)

    def take(self, job: Job) -> None:
        """Takes a change; one and the same may come twice."""
        name = job.correlation_id
        if not is_ended(job) or name in self._seen or not w1.is_of(self._run, name):
            return
        if job.status == EXECUTION_STATUS_FINISHED:
            self._seen.add(name)
        else:
            self.others[name] = f"{ExecutionStatus.Name(job.status)}: {job.error.message}"
        self._unsaid += 1

    def tell(self) -> None:
        """Lets the submitter go on."""
        if self._unsaid:
            os.write(self._pipe, bytes(self._unsaid))
            self._unsaid = 0


async def main(arguments: dict[str, Any]) -> None:
    async with (
        WaybillClient(jobstore=arguments["jobstore"], wait_for_ready=True) as client,
        aclosing(client.watch_jobs()) as changes,
    ):
        async for change in changes:
            if isinstance(change, Complete) and change.snapshot:
                break
        async for lap in child.orders():
            watcher = Watcher(lap["run"], arguments["finished"])
            while watcher.ended < lap["jobs"]:
                change = await anext(changes)
                if isinstance(change, Upserted):
                    watcher.take(change.job)
                else:
                    watcher.tell()
            watcher.tell()
            child.say(finished=watcher.finished, others=dict(list(watcher.others.items())[:5]), at=time.monotonic())


if __name__ == "__main__":
    child.run(main)
