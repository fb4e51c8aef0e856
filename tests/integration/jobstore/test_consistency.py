"""Each rule finds the violation that is planted for it, and nothing else complains about a sound store."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
from tests.integration.jobstore.scribe import Scribe

from jobstore.queries.consistency import Consistency

TASK = {"kind": "task", "host_id": "host-1", "verb": "deleteImage"}


async def violations(consistency: Consistency) -> set[tuple[str, str]]:
    return {(violation.rule, violation.job_id) for violation in await consistency.check()}


async def a_finished_job(scribe: Scribe, plan: object = None, *, result: str | None = "SUCCESS") -> str:
    """A job whose only command declared a plan, by default of one task, and ended well."""
    async with scribe.revision():
        job_id = await scribe.add_job()
        await scribe.connection.execute(
            "UPDATE command SET plans = $2 WHERE job_id = $1", job_id, json.dumps([TASK if plan is None else plan])
        )
        await scribe.add_step(job_id, step_type="VALIDATION", status="FINISHED")
        await scribe.add_step(job_id, step_type="EXECUTION", number=1, status="FINISHED")
        if result:
            await scribe.add_host_task(job_id, result=result)
    async with scribe.revision():
        await scribe.end_job(job_id)
    return job_id


async def test_a_sound_store_has_no_violation(scribe: Scribe, consistency: Consistency) -> None:
    await a_finished_job(scribe)
    async with scribe.revision():
        job_id = await scribe.add_job()
        await scribe.add_lock(job_id, ("VM", "vm-1"))
        await scribe.add_host_task(job_id)
        await scribe.add_step(job_id)
        await scribe.add_job(external=True, flow_command_id="")
    assert await violations(consistency) == set()


Plant = Callable[[Scribe, str], Awaitable[None]]


async def _live_command(scribe: Scribe, job_id: str) -> None:
    root = await scribe.root_of(job_id)
    await scribe.add_command(job_id, parent_command_id=root, status="ACTIVE", node="1:7")


async def _lock(scribe: Scribe, job_id: str) -> None:
    await scribe.add_lock(job_id, ("VM", "vm-1"))


async def _wait(scribe: Scribe, job_id: str) -> None:
    await scribe.connection.execute(
        "INSERT INTO job_dependency (flow_command_id, depends_on) VALUES ($1, 'another')", await scribe.root_of(job_id)
    )


async def _running_task(scribe: Scribe, job_id: str) -> None:
    await scribe.add_host_task(job_id, path="7")


async def _snapshot(scribe: Scribe, job_id: str) -> None:
    root = await scribe.root_of(job_id)
    await scribe.connection.execute(
        """
        INSERT INTO entity_snapshot (number, entity_type, entity_id, flow_command_id, command_id)
        VALUES (1, 'VM', 'vm-1', $1, $1)
        """,
        root,
    )


async def _open_step(scribe: Scribe, job_id: str) -> None:
    await scribe.add_step(job_id, step_type="FINALIZATION", number=2, revision=0)


async def _failed_execution(scribe: Scribe, job_id: str) -> None:
    await scribe.connection.execute(
        "UPDATE step SET status = 'FAILED' WHERE job_id = $1 AND step_type = 'EXECUTION'", job_id
    )


async def _no_end_time(scribe: Scribe, job_id: str) -> None:
    await scribe.connection.execute("ALTER TABLE step DROP CONSTRAINT step_end_time_iff_ended")
    await scribe.connection.execute(
        "UPDATE step SET end_time = NULL WHERE job_id = $1 AND step_type = 'EXECUTION'", job_id
    )


async def _ended_before_it_began(scribe: Scribe, job_id: str) -> None:
    await scribe.connection.execute("ALTER TABLE job DROP CONSTRAINT job_end_not_before_start")
    await scribe.connection.execute("UPDATE job SET end_time = start_time - interval '1 s' WHERE job_id = $1", job_id)


async def _step_ahead_of_its_job(scribe: Scribe, job_id: str) -> None:
    await scribe.connection.execute("UPDATE step SET revision = revision + 100 WHERE job_id = $1", job_id)


@pytest.mark.rule("semantics §8: Consistency: one call lists every violation of: ended job with a live command, lock")
@pytest.mark.parametrize(
    ("rules", "plant"),
    [
        ({"ENDED_JOB_WITH_LIVE_COMMAND"}, _live_command),
        ({"ENDED_JOB_WITH_LOCK", "LOCK_WITHOUT_FLOW"}, _lock),
        ({"WAIT_WITHOUT_WAITING_FLOW"}, _wait),
        ({"RUNNING_TASK_WITHOUT_FLOW"}, _running_task),
        ({"SNAPSHOT_WITHOUT_FLOW"}, _snapshot),
        ({"OPEN_STEP_IN_ENDED_JOB"}, _open_step),
        ({"FINISHED_WITH_UNFINISHED_WORK"}, _failed_execution),
        ({"END_TIME_MISSING"}, _no_end_time),
        ({"END_BEFORE_START"}, _ended_before_it_began),
        ({"REVISION_OUT_OF_ORDER"}, _step_ahead_of_its_job),
    ],
)
async def test_a_planted_violation_is_named(
    rules: set[str], plant: Plant, scribe: Scribe, consistency: Consistency
) -> None:
    await a_finished_job(scribe)
    job_id = await a_finished_job(scribe)
    await plant(scribe, job_id)
    assert await violations(consistency) == {(rule, job_id) for rule in rules}


async def test_who_waits_may_queue_but_holds_nothing(scribe: Scribe, consistency: Consistency) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job(status="PENDING")
        await scribe.connection.execute("UPDATE command SET status = 'NOT_STARTED' WHERE job_id = $1", job_id)
        await scribe.add_lock(job_id, ("VM", "vm-1"), waits_since=scribe.at, waits_until=scribe.time)
    assert await violations(consistency) == set()
    await scribe.connection.execute("UPDATE entity_lock SET waits_since = NULL, waits_until = NULL")
    assert await violations(consistency) == {("WAITING_JOB_WITH_LOCK", job_id)}


async def test_a_lock_of_a_flow_that_ended_before_its_job_is_named(scribe: Scribe, consistency: Consistency) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        await scribe.add_lock(job_id, ("VM", "vm-1"))
        await scribe.connection.execute("UPDATE command SET status = 'UNKNOWN', end_time = $1", scribe.time)
    assert await violations(consistency) == {("LOCK_WITHOUT_FLOW", job_id), ("OPEN_JOB_WITHOUT_FLOW", job_id)}


@pytest.mark.rule("semantics §8: Consistency: one call lists every violation of: sealed set not over in a FINISHED job")
@pytest.mark.rule("semantics §2: Success reported with less done than declared must be impossible")
@pytest.mark.parametrize(
    ("plan", "result", "message"),
    [
        (TASK, None, "never began its task at 1:"),
        (TASK, "CLEAN_SUCCESS", "is CLEAN_SUCCESS"),
        ({"kind": "serially", "plans": [{"kind": "nothing"}, TASK]}, None, "never began its task at 1:1"),
        ({"kind": "child", "command_type": "RemoveImage"}, None, "never began its child RemoveImage at 1:"),
    ],
)
async def test_a_finished_job_that_did_less_than_it_sealed_is_named(
    plan: object, result: str | None, message: str, scribe: Scribe, consistency: Consistency
) -> None:
    job_id = await a_finished_job(scribe, plan, result=result)
    [violation] = await consistency.check()
    assert (violation.rule, violation.job_id) == ("FINISHED_WITH_UNFINISHED_WORK", job_id)
    assert message in violation.message


async def test_best_effort_work_may_have_failed(scribe: Scribe, consistency: Consistency) -> None:
    await a_finished_job(scribe, TASK | {"best_effort": True}, result="CLEAN_FAILURE")
    assert await violations(consistency) == set()


async def test_many_finished_jobs_are_gone_through_page_by_page(
    scribe: Scribe, consistency: Consistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.queries.consistency._PAGE", 2)
    job_ids = [await a_finished_job(scribe, result=None) for _ in range(5)]
    assert await violations(consistency) == {("FINISHED_WITH_UNFINISHED_WORK", job_id) for job_id in job_ids}
