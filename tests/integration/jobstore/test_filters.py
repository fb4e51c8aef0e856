"""A filter says the same in SQL as it does of a message: random filters, on random rows."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from google.rpc import status_pb2
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.integration.jobstore.scribe import OPEN, Scribe

from chassis.errors import failed_precondition
from jobstore.feed.changes import read_batch
from jobstore.feed.window import JobChanged, Position, Scope
from jobstore.messages import EXECUTION_STATUS
from jobstore.search.fields import JOBS, error_reason
from jobstore.search.filter import Verdict, job_filter
from jobstore.search.kinds import Bindings
from jobstore.snapshots import Pool, snapshot

JOB_COUNT = 80
DAY = datetime(2026, 11, 22, tzinfo=UTC)
WORDS = ["a", "A", "ab", "abab", "ä", "Ä", "", "50%", "a_b", "a\\b", "x\ny", "*", "o'c", '"', "aab", "AND"]
REASONS = ["LOCKED", "CHILD_FAILED", "", "ab", "Ä"]
STATUSES = [status for status in EXECUTION_STATUS if status]


async def add_random_job(scribe: Scribe, rng: random.Random) -> None:
    """A job of which anything may be there or not."""
    status, external = rng.choice(STATUSES), rng.random() < 0.3
    start = DAY + timedelta(seconds=rng.randrange(4))
    started = status in ("STARTED", "FINISHED") or (status not in ("PENDING", "SKIPPED") and rng.random() < 0.5)
    failed = status not in (*OPEN, "FINISHED") and rng.random() < 0.8
    names = [word for word in WORDS if word]
    job_id = await scribe.add_job(
        status=status,
        create_time=DAY,
        start_time=start if started else None,
        end_time=None if status in OPEN else start + timedelta(milliseconds=rng.choice([0, 1, 500, 90_061_001])),
        deadline=rng.choice([None, DAY]),
        command_type=rng.choice(WORDS),
        categories=rng.sample(WORDS, rng.randrange(3)),
        owner=rng.choice(WORDS),
        correlation_id=rng.choice(["a", "A-b_1"]),
        description=" ".join(rng.sample(WORDS, 4)),
        subjects=sorted({(rng.choice(["VM", "HOST"]), rng.choice(names)) for _ in range(rng.randrange(3))}),
        progress=rng.choice([0, 50, 99]),
        priority=rng.choice([-2, 0, 7]),
        visible=rng.random() < 0.5,
        external=external,
        error=_an_error(rng.choice(REASONS)) if failed else None,
        restarted_from=rng.choice(["", scribe.ids.new()]),
        **rng.choice([{}, {"parent_job_id": scribe.ids.new(), "command_id": scribe.ids.new()}]),
        **({"flow_command_id": ""} if external else {}),
    )
    for _ in range(0 if external else rng.randrange(3)):
        await scribe.add_host_task(job_id, host_id=rng.choice(names))
    if rng.random() < 0.2 and not external:
        await scribe.add_host_task(job_id, kind="WAIT", host_id="", verb="")


def _an_error(reason: str) -> bytes:
    """As it is stored; not all errors are ours."""
    status = failed_precondition(reason, "\x12google.rpc.ErrorInfo", key="v").to_status()
    if reason == "CHILD_FAILED":
        status.code = -1
        status.details.insert(
            0, status.details.add(type_url="type.googleapis.com/other.Thing", value=b"\x0a\x06LOCKED")
        )
    if reason == "ab":
        del status.details[:]
    return status.SerializeToString()


class Jobs(list[JobChanged]):
    """Of which nobody wants to read all when a test fails."""

    def __repr__(self) -> str:
        return f"{len(self)} jobs"


@pytest.fixture
async def jobs(scribe: Scribe, pool: Pool) -> Jobs:
    """Random jobs, as a watch sees them."""
    rng = random.Random(11)
    async with scribe.revision():
        for _ in range(JOB_COUNT):
            await add_random_job(scribe, rng)
    async with snapshot(pool) as connection:
        batch = await read_batch(connection, Position(0), Scope.JOBS | Scope.HOSTS, limit=1_000)
    return Jobs(change for change in batch.jobs if isinstance(change, JobChanged))


# --- random filters ------------------------------------------------------------------------------------------------

_QUOTING = str.maketrans({"\\": "\\\\", '"': '\\"', "*": "\\*"})
_exact = st.sampled_from(WORDS).map(lambda word: f'"{word.translate(_QUOTING)}"')
_patterns = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(
    lambda words: f'"{"*".join(word.translate(_QUOTING) for word in words)}"'
)
_texts = st.one_of(_exact, _patterns)
_times = st.integers(0, 3).map(lambda seconds: f'"{(DAY + timedelta(seconds=seconds)).isoformat()}"')
_orders = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"])
_equalities = st.sampled_from(["=", "!=", ":"])
_TEXT_FIELDS = ["command_type", "category", "owner", "host", "description", "error.reason"]
_TIME_FIELDS = ["create_time", "start_time", "end_time", "deadline"]

_terms = st.one_of(
    st.tuples(st.sampled_from(_TEXT_FIELDS), _equalities, _texts),
    st.tuples(st.just("error.reason"), _equalities, st.sampled_from(["LOCKED", "CHILD_FAILED"])),
    st.tuples(st.just("correlation_id"), _equalities, st.sampled_from(["a", "A-b_1", "'A*'"])),
    st.tuples(st.just("job_id"), _equalities, st.sampled_from(["'0*'", "'*a'", "'*1*'"])),
    st.tuples(st.just("entity"), _equalities, st.sampled_from(["VM", "HOST"]), _patterns).map(
        lambda term: (*term[:2], f'"{term[2]}/{term[3][1:-1] or "x"}"')
    ),
    st.tuples(st.just("status"), _equalities, st.sampled_from(STATUSES)),
    st.tuples(st.sampled_from(_TIME_FIELDS), _orders, _times),
    st.tuples(st.just("duration"), _orders, st.sampled_from(["0s", "1ms", "0.5s", "1d1h1m1.001s"])),
    st.tuples(st.just("progress"), _orders, st.sampled_from(["0", "50", "99"])),
    st.tuples(st.just("priority"), _orders, st.sampled_from(["-2", "0", "7"])),
    st.tuples(st.sampled_from(["visible", "external"]), _equalities, st.sampled_from(["true", "false"])),
).map(" ".join)
_leaves = st.one_of(_terms, _texts, st.sampled_from([field.name for field in JOBS]).map(lambda name: f"has({name})"))
_filters = st.recursive(
    _leaves,
    lambda some: st.one_of(
        some.map(lambda one: f"NOT ({one})"),
        st.lists(some, min_size=2, max_size=3).map(lambda parts: f"({' OR '.join(parts)})"),
        st.lists(some, min_size=2, max_size=3).map(lambda parts: f"({' AND '.join(parts)})"),
    ),
    max_leaves=6,
)


@settings(
    max_examples=max(100, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=_filters)
async def test_what_sql_finds_is_what_a_watch_lets_through(text: str, jobs: Jobs, pool: Pool) -> None:
    filter = job_filter(text)
    bind = Bindings()
    matching, possible = filter.sql(bind), filter.possible_sql(bind)
    async with snapshot(pool) as connection:
        rows = await connection.fetch(
            f"SELECT job.job_id, ({matching}) IS TRUE AS matches, {possible} AS possible FROM job", *bind.values
        )
    found = {row["job_id"]: (row["matches"], row["possible"]) for row in rows}
    verdicts = {change.job.job_id: filter.verdict(change) for change in jobs}
    assert found == {job_id: (v is Verdict.MATCHES, v is not Verdict.NEVER) for job_id, v in verdicts.items()}
    event("some match" if 0 < list(verdicts.values()).count(Verdict.MATCHES) < JOB_COUNT else "all or none")


async def test_the_random_jobs_have_of_everything(jobs: Jobs) -> None:
    """Vacuity: for each field there are jobs that have it and, where that may be, jobs that do not."""
    always = {"job_id", "status", "correlation_id", "create_time", "update_time", "progress", "priority", "visible"}
    for field in JOBS:
        having = sum(job_filter(f"has({field.name}) AND has(visible)").verdict(job) is Verdict.MATCHES for job in jobs)
        assert having == JOB_COUNT if field.name in {*always, "external", "description"} else 0 < having < JOB_COUNT


# --- the reason of an error ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*REASONS, "X" * 300])
async def test_sql_reads_the_reason_of_an_error(reason: str, connection: asyncpg.Connection[asyncpg.Record]) -> None:
    error = _an_error(reason)
    said = await connection.fetchval("SELECT error_reason($1)", error)
    assert said == error_reason(status_pb2.Status.FromString(error))
    assert said == (None if reason in ("", "ab") else reason)


async def test_bytes_that_are_no_error_have_no_reason(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    rng = random.Random(3)
    whole = _an_error("LOCKED")
    cut = [whole[:end] for end in range(len(whole))]
    noise = [bytes(rng.choices((0x0A, 0x12, 0x1A, 0x7F, 0xFF, 0x01, 0x0D), k=rng.randrange(30))) for _ in range(200)]
    reasons = await connection.fetch("SELECT error_reason(e) AS reason FROM unnest($1::bytea[]) AS e", [*cut, *noise])
    assert {row["reason"] for row in reasons} <= {None, "LOCKED"}
