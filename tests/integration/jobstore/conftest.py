"""The read side on a real database."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.integration.jobstore.scribe import Scribe

from chassis.clock import SystemClock
from jobstore.feed.feed import Feed
from jobstore.queries.audit import Audit
from jobstore.queries.consistency import Consistency
from jobstore.queries.queries import Queries
from jobstore.snapshots import Pool, reading_pool


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """The readers' connections."""
    async with reading_pool(database_url) as pool:
        yield pool


@pytest.fixture
def scribe(connection: asyncpg.Connection[asyncpg.Record]) -> Scribe:
    """A writer that knows no rule but the order of the revisions."""
    return Scribe(connection)


@pytest.fixture
def queries(pool: Pool) -> Queries:
    return Queries(pool)


@pytest.fixture
def audit(pool: Pool) -> Audit:
    return Audit(pool)


@pytest.fixture
def consistency(pool: Pool) -> Consistency:
    return Consistency(pool)


@pytest.fixture
async def feed(pool: Pool) -> AsyncIterator[Feed]:
    """A feed that watches the test's database."""
    async with Feed(pool, SystemClock(), random.Random(7)) as feed:
        yield feed
