"""A VM with thousands of disks: one job of thousands of steps, and what each of its changes costs from first to last.

RemoveVm deletes all disks at once, over two hosts, while a client watches the whole tree. It is done twice.

* Deletions take no time: how long that takes, in all and beside as many jobs of five steps, which also warm everything
  up. Thousands of ends are then one commit, so nothing can be said about a single one.
* Deletions take a while, so that steps end one by one: CPU, log and statements of their ends are read tenth by tenth.
  The last tenth must cost what the first did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Final

import psutil

import yardstick
from accounts import Account, Accountant
from child import Child
from database import Counts
from stage import Stage
from validity import Invalid
from waybill.v1.jobs_pb2 import (
    EXECUTION_STATUS_FINISHED,
    JOB_VIEW_BASIC,
    JOB_VIEW_TREE,
    Entity,
    EntityType,
    ExecutionStatus,
    Job,
)
from waybill_client import Complete, HostClient, WaybillClient, where

HOSTS: Final = 2
_TENTHS: Final = 10
_SMALL: Final = 5
"""Disks of a VM that is not wide."""
_SMALL_VMS: Final = 100
_WARM_UP_VMS: Final = 40
_READY_SECONDS: Final = 60.0
_SECONDS_A_DISK: Final = 0.2
"""Beyond which a run is given up."""
_WORK_MS: Final = 100
"""Of a deletion where they are to end one by one: ten at a time on each host, 200 a second."""
_READS: Final = 5
_AT_ONCE: Final = 500
"""Entities of a call."""
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Stretch:
    """Some of the steps' ends, one after the other."""

    steps: int
    seconds: float
    used: Account
    counts: Counts
    lag: float
    """Seconds from a step's stored end until the watcher saw it; the median."""

    def cpu_per_step(self, *parties: str) -> float:
        """Seconds of these parties, of all if none is named."""
        return sum(self.used.parties[party] for party in parties or self.used.parties) / self.steps


@dataclass
class Memory:
    """Resident bytes of one process; Postgres counts what its processes share once, and has no peak."""

    before: int
    peak: int = 0
    after: int = 0


@dataclass(frozen=True)
class Wide:
    """What a job of so many steps cost."""

    disks: int
    seconds: Mapping[str, float]
    """By what is waited for."""
    small: Stretch
    """Jobs of five steps, from their submission to the last step's end."""
    whole: Stretch
    """This one, in the same way."""
    tenths: Sequence[Stretch]
    """One by one, from the first step's end; fewer if the watcher saw many steps end at once all the same."""
    memory: Mapping[str, Memory]
    bare_call: float
    """CPU seconds of a bare gRPC call at that time (`yardstick.py`)."""


@dataclass
class _Removal:
    """VMs that were removed, and what was read on the way."""

    jobs: list[Job]
    answered: float
    finished: float
    marks: list[_Mark]

    def whole(self) -> Stretch:
        """From the submission to the last step's end."""
        lags = [mark.lag for mark in self.marks[1:]]
        return replace(_between(self.marks[0], self.marks[-1]), lag=median(lags))

    def stretches(self) -> list[Stretch]:
        """What came after the first step's end, in parts."""
        return [_between(one, other) for one, other in pairwise(self.marks[1:])]


@dataclass(frozen=True)
class _Mark:
    """So many steps are over."""

    over: int
    at: float
    lag: float
    account: Account
    counts: Counts


def _between(one: _Mark, other: _Mark) -> Stretch:
    return Stretch(
        steps=other.over - one.over,
        seconds=other.at - one.at,
        used=other.account.since(one.account),
        counts=other.counts.since(one.counts),
        lag=other.lag,
    )


async def measure(stage: Stage, disks: int) -> Wide:
    """Removes a VM with so many disks, after small ones. Raises Invalid or ChildFailed."""
    async with stage.stack.client(timeout=60.0) as client:
        await _removed(stage, client, "warm-up", vms=_WARM_UP_VMS, disks=_SMALL)
        few = await _removed(stage, client, "small", vms=min(_SMALL_VMS, max(1, disks // _SMALL)), disks=_SMALL)
        before = await yardstick.bare_call()
        async with _remembered(stage) as memory:
            wide = await _removed(stage, client, "wide", vms=1, disks=disks)
            cleared = await _seconds_until_cleared(stage) + wide.finished
            await _slow_down(stage)
            paced = await _removed(stage, client, "one-by-one", vms=1, disks=disks)
        after = await yardstick.bare_call()
        [job] = wide.jobs
        seconds = {
            "answered": wide.answered,
            "FINISHED, as the watcher saw it": wide.finished,
            "the hosts have forgotten it": cleared,
            "listed": await _median_seconds(lambda: _list(client, job.job_id)),
            "read as a tree": await _median_seconds(lambda: client.get_job(job.job_id)),
            "a new watcher has the tree": await _median_seconds(lambda: _begin_to_watch(client, job.job_id)),
        }
        for job in (*wide.jobs, *paced.jobs):
            await _check(client, job, disks)
    return Wide(
        disks=disks,
        seconds=seconds,
        small=few.whole(),
        whole=wide.whole(),
        tenths=paced.stretches(),
        memory=memory,
        bare_call=(before + after) / 2,
    )


async def _removed(stage: Stage, client: WaybillClient, run: str, *, vms: int, disks: int) -> _Removal:
    """Removes VMs with so many disks each, all at once."""
    vm_ids = [f"{run}-{number}" for number in range(vms)]
    await _declare(client, vm_ids, disks)
    arguments = {
        "jobstore": stage.stack.jobstores[0].address,
        "run": run,
        "jobs": vms,
        "steps": vms * disks,
        "marks": _TENTHS,
    }
    within = _READY_SECONDS + vms * disks * _SECONDS_A_DISK
    async with Child("step_watcher", arguments) as watcher:
        accountant = stage.accountant(watcher=watcher.pid)
        await watcher.hear(_READY_SECONDS)
        marks = [await _mark(stage, accountant, over=0, at=time.monotonic(), lag=0.0)]
        began = time.monotonic()
        answers = [
            client.run_command("RemoveVm", {"vm_id": each}, correlation_id=run, timeout=within) for each in vm_ids
        ]
        jobs = await asyncio.gather(*answers)
        answered = time.monotonic()
        while "finished" not in (words := await watcher.hear(within)):
            marks.append(await _mark(stage, accountant, **words))
    if words["finished"] != vms:
        raise Invalid(f"{run}: the watcher saw {words['finished']} of {vms} jobs FINISHED, {words['others']}")
    return _Removal(jobs, answered - began, words["at"] - began, marks)


async def _mark(stage: Stage, accountant: Accountant, *, over: int, at: float, lag: float) -> _Mark:
    return _Mark(over, at, lag, accountant.read(), await stage.database.after())


async def _declare(client: WaybillClient, vm_ids: Sequence[str], disks: int) -> None:
    entities = []
    for vm_id in vm_ids:
        disk_ids = [f"{vm_id}-{number}" for number in range(disks)]
        entities.append(_entity(EntityType.ENTITY_TYPE_VM, vm_id, disk_ids=disk_ids, memory_mb=64))
        entities += [
            _entity(
                EntityType.ENTITY_TYPE_DISK,
                disk_id,
                host_id=f"host-{1 + number % HOSTS}",
                volume_id=disk_id,
                size_mb=1,
            )
            for number, disk_id in enumerate(disk_ids)
        ]
    for first in range(0, len(entities), _AT_ONCE):
        await client.put_entities(entities[first : first + _AT_ONCE])


def _entity(entity_type: EntityType.ValueType, entity_id: str, **declared: Any) -> Entity:
    entity = Entity(entity_type=entity_type, entity_id=entity_id)
    entity.declared.update(declared)
    return entity


async def _slow_down(stage: Stage) -> None:
    for process in stage.stack.hosts:
        async with HostClient(process.address) as host:
            await host.program([{"verb": "deleteImage", "work_ms": _WORK_MS}])


# --- afterwards ------------------------------------------------------------------------------------------------------


async def _seconds_until_cleared(stage: Stage) -> float:
    """Seconds until no host has a task of a flow."""
    began = time.monotonic()
    for process in stage.stack.hosts:
        async with HostClient(process.address, timeout=60.0) as host:
            while any(info.spec.flow_command_id for info in await host.list_tasks()):
                if time.monotonic() - began > _READY_SECONDS:
                    raise Invalid(f"{process.name} still has tasks {_READY_SECONDS:.0f} s after the end")
                await asyncio.sleep(_LOOK_SECONDS)
    return time.monotonic() - began


async def _median_seconds(read: Callable[[], Awaitable[Any]]) -> float:
    times = []
    for _ in range(_READS):
        began = time.monotonic()
        await read()
        times.append(time.monotonic() - began)
    return median(times)


async def _list(client: WaybillClient, job_id: str) -> None:
    listed = [job async for job in client.list_jobs(where(job_id=job_id), view=JOB_VIEW_BASIC)]
    assert len(listed) == 1


async def _begin_to_watch(client: WaybillClient, job_id: str) -> None:
    async with aclosing(client.watch_jobs(where(job_id=job_id), view=JOB_VIEW_TREE)) as changes:
        async for change in changes:
            if isinstance(change, Complete):
                return


async def _check(client: WaybillClient, job: Job, disks: int) -> None:
    """Raises Invalid unless all that was to be removed is gone, and every step says so."""
    job = await client.get_job(job.job_id)
    well = sum(step.status == EXECUTION_STATUS_FINISHED for step in job.steps if step.step_type == "DELETE_IMAGE")
    left = [entity async for entity in client.list_entities(EntityType.ENTITY_TYPE_DISK, page_size=1000)]
    problems = [f"inconsistent: {violation.message}" for violation in await client.check_consistency()]
    if job.status != EXECUTION_STATUS_FINISHED:
        problems.append(f"the job is {ExecutionStatus.Name(job.status)}: {job.error.message}")
    if well != disks:
        problems.append(f"{well} of {disks} steps are FINISHED")
    if left:
        problems.append(f"{len(left)} disks are left")
    if problems:
        raise Invalid("\n".join(problems[:20]))


# --- memory ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _remembered(stage: Stage) -> AsyncIterator[dict[str, Memory]]:
    """How much memory each process has before, at most during, and after the block."""
    processes = {process.name: psutil.Process(process.pid) for process in stage.stack.processes}
    postgres = psutil.Process(stage.postgres.pid)
    found = {name: Memory(process.memory_info().rss) for name, process in processes.items()}
    found["postgres"] = Memory(_of_a_family(postgres))
    looking = asyncio.create_task(_look(processes, found))
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.wait([looking])
    for name, process in processes.items():
        found[name].after = process.memory_info().rss
    found["postgres"].after = _of_a_family(postgres)


async def _look(processes: Mapping[str, psutil.Process], found: Mapping[str, Memory]) -> None:
    while True:
        for name, process in processes.items():
            found[name].peak = max(found[name].peak, process.memory_info().rss)
        await asyncio.sleep(_LOOK_SECONDS)


def _of_a_family(process: psutil.Process) -> int:
    """Bytes of a process and its children, what they share counted once; where nobody tells that, resident ones."""
    total = 0
    for each in (process, *process.children()):
        try:
            whole = each.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        total += getattr(whole, "pss", 0) or whole.rss
    return total
