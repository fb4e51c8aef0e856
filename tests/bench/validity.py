"""Whether what was measured was work at all. A run that is not valid has no figures worth reading.

Besides, each run demands that its watcher saw every job FINISHED (`runs.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import w1
from stage import Stage
from waybill.v1.jobs_pb2 import EXECUTION_STATUS_FINISHED
from waybill_client import WaybillClient
from waybill_client.hosts import HostClient


class Invalid(Exception):  # noqa: N818 - reads as what it says
    """The run does not count; says why."""


async def check(stage: Stage) -> None:
    """Raises Invalid unless every submitted job is stored as FINISHED and took effect once, and the store is sound."""
    expected = [name for run, jobs in stage.submitted.items() for name in w1.names(run, jobs)]
    async with stage.stack.client(timeout=60.0) as client:
        problems = [
            *[f"inconsistent: {violation.message}" for violation in await client.check_consistency()],
            *_differences("jobs FINISHED", expected, await _finished(client)),
            *_differences("effects", expected, await _effects(stage.stack.hosts[0].address)),
        ]
    if problems:
        raise Invalid("\n".join(problems[:20]))


async def _finished(client: WaybillClient) -> Counter[str]:
    """How many finished jobs there are, by correlation id."""
    jobs = client.list_jobs(f'command_type = "{w1.COMMAND_TYPE}"', page_size=1000)
    return Counter([job.correlation_id async for job in jobs if job.status == EXECUTION_STATUS_FINISHED])


async def _effects(address: str) -> Counter[str]:
    """How often the host did the work, by object."""
    async with HostClient(address, timeout=60.0) as host:
        seen = await host.get_host()
    return Counter(
        {
            item.object_id: counter.effects
            for item in seen.objects
            for counter in item.counters
            if counter.verb == w1.VERB
        }
    )


def _differences(what: str, expected: list[str], found: Counter[str]) -> Iterator[str]:
    """Each name must have been found once, and no other."""
    wanted = Counter(expected)
    for name in sorted((wanted - found).keys() | (found - wanted).keys()):
        yield f"{what}: {found[name]} of {name}, expected {wanted[name]}"
