"""One data centre a module: a stack takes seconds to start, a test on it a fraction of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.e2e.datacentre import DataCentre, data_centre, violations

from waybill_cli.stack import Stack


@pytest.fixture(autouse=True)
def consistent(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, CheckConsistency finds nothing in the stacks that it has used, while they still run."""
    yield
    for used in request.node.funcargs.values():
        stack = getattr(used, "stack", used)
        if isinstance(stack, Stack) and request.node.get_closest_marker("inconsistent") is None:
            assert violations(stack.jobstores[0].address) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DataCentre]:
    """A data centre with two hosts that work for as long as they are programmed to."""
    environment = {"COORDINATOR_POLL_SECONDS": "1"}
    async with data_centre(tmp_path_factory.mktemp("centre"), environment=environment) as centre:
        yield centre


@pytest_asyncio.fixture(loop_scope="module")
async def centre(running: DataCentre) -> AsyncIterator[DataCentre]:
    """The module's data centre, at rest; after the test it must be so again."""
    yield running
    await running.behave()
    await running.until_rest()
    assert [lock async for lock in running.client.list_locks()] == []
