"""Questions about jobs and what they are made of, on real rows."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.jobstore.scribe import Scribe

from chassis.errors import WaybillError, not_found
from jobstore.queries.paging import LARGEST_ANSWER, Page, Paging
from jobstore.queries.queries import Queries
from jobstore.search.filter import entity_filter, job_filter
from waybill.v1 import jobs_pb2
from waybill.v1.jobstore_pb2 import (
    ListCommandsRequest,
    ListEntitiesRequest,
    ListHostTasksRequest,
    ListJobsRequest,
    ListLocksRequest,
    ListStepsRequest,
)


async def list_jobs(queries: Queries, *, tree: bool = False, **fields: object) -> Page[jobs_pb2.Job]:
    request = ListJobsRequest(**fields)  # type: ignore[arg-type]
    oldest_first = request.order_by == "create_time"
    return await queries.list_jobs(
        job_filter(request.filter), Paging(request, int, str), oldest_first=oldest_first, tree=tree
    )


async def listed(queries: Queries, filter: str = "") -> list[str]:
    return [job.job_id for job in (await list_jobs(queries, filter=filter)).items]


async def all_pages(ask: Callable[[str], Awaitable[Page[jobs_pb2.Job]]]) -> list[str]:
    found, token = list[str](), ""
    while True:
        page = await ask(token)
        found += [job.job_id for job in page.items]
        token = page.next_page_token
        if not token:
            return found


# --- one job -------------------------------------------------------------------------------------------------------


async def test_a_job_is_found_by_its_id_and_by_any_of_its_commands(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job(command_type="RemoveVm", parameters='{"vm_id": "vm-1", "force": true}')
        child = await scribe.add_command(job_id, parent_command_id=await scribe.root_of(job_id))
    job = await queries.get_job(job_id, tree=False)
    assert (job.job_id, job.command_type, job.status) == (job_id, "RemoveVm", jobs_pb2.EXECUTION_STATUS_STARTED)
    assert dict(job.parameters) == {"vm_id": "vm-1", "force": True}
    assert job.HasField("start_time")
    assert not job.HasField("end_time")
    assert await queries.get_job_of_command(child, tree=False) == job
    assert await queries.get_job_of_command(job.flow_command_id, tree=False) == job


async def test_an_unknown_job_is_not_found(scribe: Scribe, queries: Queries) -> None:
    for ask in (queries.get_job, queries.get_job_of_command):
        with pytest.raises(WaybillError) as caught:
            await ask(scribe.ids.new(), tree=True)
        assert (caught.value.code.name, caught.value.reason) == ("NOT_FOUND", "JOB_NOT_FOUND")


async def test_a_tree_shows_parents_before_children_and_siblings_by_number(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        execution = await scribe.add_step(job_id, description="X", number=1)
        await scribe.add_step(job_id, description="F", number=2)
        await scribe.add_step(job_id, description="X1", number=1, parent_step_id=execution)
        await scribe.add_step(job_id, description="X0", number=0, parent_step_id=execution)
        await scribe.add_step(job_id, description="V", number=0)
    job = await queries.get_job(job_id, tree=True)
    assert [step.description for step in job.steps] == ["V", "X", "X0", "X1", "F"]
    assert not (await queries.get_job(job_id, tree=False)).steps


async def test_a_stored_error_comes_back_as_it_was(scribe: Scribe, queries: Queries) -> None:
    status = not_found("OBJECT_NOT_FOUND", "no such volume", volume_id="v-1").to_status()
    async with scribe.revision():
        job_id = await scribe.add_job(status="FAILED", error=status.SerializeToString())
    assert (await queries.get_job(job_id, tree=False)).error == status


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_jobs_come_newest_first_unless_asked_otherwise(scribe: Scribe, queries: Queries) -> None:
    job_ids = []
    for _ in range(5):
        async with scribe.revision():
            job_ids.append(await scribe.add_job())
    assert await listed(queries) == job_ids[::-1]
    assert [job.job_id for job in (await list_jobs(queries, order_by="create_time")).items] == job_ids


@pytest.mark.parametrize("order_by", ["create_time", "create_time desc"])
async def test_pages_stay_stable_while_jobs_come_and_go(order_by: str, scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        there = [await scribe.add_job() for _ in range(23)]  # one time for all of them: ids decide

    async def ask(token: str) -> Page[jobs_pb2.Job]:
        page = await list_jobs(queries, page_size=5, page_token=token, order_by=order_by)
        async with scribe.revision():
            await scribe.add_job()
            await scribe.delete_job(page.items[0].job_id)  # the very first of this page
        return page

    found = await all_pages(ask)
    assert [job_id for job_id in found if job_id in there] == sorted(there, reverse="desc" in order_by)
    assert len(found) == len(set(found))


async def test_the_largest_page_is_a_thousand_and_the_default_fifty(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        await scribe.connection.execute(
            """
            INSERT INTO job (revision, create_time, update_time, start_time, status, job_id, flow_command_id,
                             command_type, owner, correlation_id, description)
            SELECT $1, $2, $2, $2, 'STARTED', gen_random_uuid(), 'f', 'Bench', 'o', 'c', 'd'
            FROM generate_series(1, 1100)
            """,
            scribe.at,
            scribe.time,
        )
    assert len((await list_jobs(queries)).items) == 50
    assert len((await list_jobs(queries, page_size=5_000)).items) == 1_000


async def test_a_page_that_would_be_too_large_a_message_is_cut(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        for _ in range(20):
            await scribe.add_job(parameters=json.dumps({"blob": "x" * 250_000}))
    page = await list_jobs(queries)
    assert 1 < len(page.items) < 20
    assert sum(job.ByteSize() for job in page.items) < 4 << 20
    rest = await all_pages(lambda token: list_jobs(queries, page_token=token or page.next_page_token))
    assert len(page.items) + len(rest) == 20


@pytest.mark.parametrize("fields", [{"filter": "owner = x"}, {"order_by": "create_time"}])
async def test_a_page_token_belongs_to_its_arguments(fields: dict[str, str], scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        for _ in range(3):
            await scribe.add_job()
    token = (await list_jobs(queries, page_size=1)).next_page_token
    assert len((await list_jobs(queries, page_size=2, page_token=token)).items) == 2  # the size may change
    for bad in ({"page_token": token} | fields, {"page_token": token[:-3]}, {"page_token": "☃"}, {"page_token": "x"}):
        with pytest.raises(WaybillError) as caught:
            await list_jobs(queries, **bad)
        assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
    with pytest.raises(WaybillError, match="page_token"):
        await queries.list_locks(Paging(ListLocksRequest(page_token=token), str, str, str))


@pytest.mark.rule("semantics §2: A non-monitored command: a job with `visible = false`, left out of lists unless asked")
async def test_each_published_field_filters(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        one = await scribe.add_job(
            command_type="RemoveVm", owner="anna", correlation_id="c-1", subjects=[("VM", "vm-1"), ("DISK", "d-1")]
        )
        two = await scribe.add_job(command_type="RunVm", owner="ben", correlation_id="c-2", status="FINISHED")
        hidden = await scribe.add_job(visible=False)
    assert await listed(queries, "command_type = RemoveVm") == [one]
    assert await listed(queries, "owner = ben") == [two]
    assert await listed(queries, "correlation_id = c-2") == [two]
    assert await listed(queries, "status = STARTED") == [one]
    assert await listed(queries, "status = FINISHED") == [two]
    assert await listed(queries, "status != FINISHED") == [one]
    assert await listed(queries, 'entity = "VM/vm-1"') == [one]
    assert await listed(queries, "entity = DISK/d-1 AND entity = VM/vm-1") == [one]
    assert await listed(queries, "entity != VM/vm-1") == [two]
    assert await listed(queries, f"job_id = {two}") == [two]
    assert await listed(queries, "visible = false") == [hidden]
    assert await listed(queries, "visible != false AND owner = ben") == [two]
    assert sorted(await listed(queries)) == sorted([one, two])


async def test_listed_trees_have_their_own_steps(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        for name in "ab":
            job_id = await scribe.add_job(description=name)
            await scribe.add_step(job_id, description=f"{name}0", number=0)
            await scribe.add_step(job_id, description=f"{name}1", number=1)
    page = await list_jobs(queries, tree=True, page_size=1)
    [job] = page.items
    assert [step.description for step in job.steps] == [f"{job.description}0", f"{job.description}1"]


# --- modified jobs -------------------------------------------------------------------------------------------------


async def test_modified_jobs_are_asked_for_until_there_are_no_more(scribe: Scribe, queries: Queries) -> None:
    for _ in range(4):
        async with scribe.revision():
            for _ in range(3):
                last = await scribe.add_job()
    async with scribe.revision():
        await scribe.delete_job(last)
    seen, since = list[str](), 0
    while True:
        answer = await queries.modified_jobs(since, "", 2, job_filter(""))
        assert all(since < job.revision <= answer.revision for job in answer.jobs)
        if answer.revision == since:
            break
        seen += [job.job_id for job in answer.jobs]
        since = answer.revision
    assert since == scribe.at
    assert len(seen) == len(set(seen)) == 11
    assert (await queries.modified_jobs(scribe.at - 1, "", 50, job_filter(""))).removed_job_ids == [last]


async def test_modified_jobs_are_told_as_a_watch_with_that_filter_would(scribe: Scribe, queries: Queries) -> None:
    filter = job_filter("host = host-1 AND status = STARTED AND owner = anna")
    async with scribe.revision():
        matching, ended, another = [await scribe.add_job(owner=owner) for owner in ("anna", "anna", "ben")]
        for job_id in (matching, ended, another):
            await scribe.add_host_task(job_id, host_id="host-1")
    since = scribe.at
    async with scribe.revision():
        await scribe.change_job(matching, progress=5)
        await scribe.end_job(ended)
        await scribe.change_job(another, progress=5)
        deleted = await scribe.add_job(owner="ben")
    async with scribe.revision():
        await scribe.delete_job(deleted)
    answer = await queries.modified_jobs(since, "", 50, filter)
    assert [job.job_id for job in answer.jobs] == [matching]
    assert answer.removed_job_ids == [ended, deleted]


async def test_modified_jobs_that_are_large_come_in_answers_that_are_not(scribe: Scribe, queries: Queries) -> None:
    for _ in range(5):
        async with scribe.revision():
            for _ in range(2):
                await scribe.add_job(parameters=json.dumps({"note": "x" * 500_000}))
    seen, since = 0, 0
    while since < scribe.at:
        answer = await queries.modified_jobs(since, "", 1000, job_filter(""))
        assert answer.ByteSize() < LARGEST_ANSWER
        assert len(answer.jobs) % 2 == 0  # what shares a revision stays together
        seen, since = seen + len(answer.jobs), answer.revision
    assert seen == 10


async def test_modified_since_a_time_is_what_changed_then_or_later(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        old = await scribe.add_job()
        changed = await scribe.add_job()
    async with scribe.revision():
        await scribe.change_job(changed, progress=10)
    assert scribe.time is not None
    answer = await queries.modified_jobs(scribe.time, "", 50, job_filter(""))
    assert [job.job_id for job in answer.jobs] == [changed]
    everything = await queries.modified_jobs(scribe.time - timedelta(days=1), "", 50, job_filter(""))
    assert {job.job_id for job in everything.jobs} == {old, changed}
    assert (
        await queries.modified_jobs(scribe.time + timedelta(seconds=1), "", 50, job_filter(""))
    ).revision == scribe.at


async def test_modified_since_what_is_not_kept_or_not_yet_there_is_refused(scribe: Scribe, queries: Queries) -> None:
    for _ in range(3):
        async with scribe.revision():
            await scribe.add_job()
    await scribe.compact(2)

    async def reason(since: int, epoch: str = "") -> str:
        with pytest.raises(WaybillError) as caught:
            await queries.modified_jobs(since, epoch, 50, job_filter(""))
        return caught.value.reason

    assert await reason(1) == "REVISION_COMPACTED"
    assert await reason(4) == "REVISION_UNKNOWN"
    assert await reason(2, "another") == "STORE_EPOCH_CHANGED"
    assert await reason(-1) == "REQUEST_INVALID"
    assert len((await queries.modified_jobs(0, "", 50, job_filter(""))).jobs) == 3


# --- what jobs are made of -----------------------------------------------------------------------------------------


async def test_steps_are_paged_in_display_order(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        for top in range(3):
            parent = await scribe.add_step(job_id, description=f"{top}", number=top)
            for below in (1, 0):
                await scribe.add_step(job_id, description=f"{top}.{below}", number=below, parent_step_id=parent)
    found, token = list[str](), ""
    while True:
        page = await queries.list_steps(
            job_id, Paging(ListStepsRequest(job_id=job_id, page_size=2, page_token=token), str)
        )
        found += [step.description for step in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == ["0", "0.0", "0.1", "1", "1.0", "1.1", "2", "2.0", "2.1"]
    step = page.items[0]
    assert await queries.get_step(step.step_id) == step


async def test_steps_of_an_unknown_job_and_an_unknown_step_are_not_found(scribe: Scribe, queries: Queries) -> None:
    with pytest.raises(WaybillError, match="there is no job"):
        await queries.list_steps(scribe.ids.new(), Paging(ListStepsRequest(), str))
    with pytest.raises(WaybillError) as caught:
        await queries.get_step(scribe.ids.new())
    assert caught.value.reason == "STEP_NOT_FOUND"
    async with scribe.revision():
        job_id = await scribe.add_job()
    assert (await queries.list_steps(job_id, Paging(ListStepsRequest(), str))).items == []


async def test_commands_come_in_the_order_of_the_plan(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        root = await scribe.root_of(job_id)
        tenth = await scribe.add_command(job_id, parent_command_id=root, node="1:10", command_type="tenth")
        await scribe.add_command(job_id, parent_command_id=root, node="2:0", command_type="again")
        await scribe.add_command(job_id, parent_command_id=root, node="1:2", command_type="second")
        await scribe.add_command(
            job_id,
            parent_command_id=tenth,
            node="1:",
            command_type="below",
            plans='[{"kind": "nothing"}]',
        )
    page = await queries.list_commands(root, Paging(ListCommandsRequest(), str))
    assert [command.command_type for command in page.items] == ["Bench", "second", "tenth", "below", "again"]
    assert page.items[0].coordinator_id == "coordinator-1"
    assert page.items[3].plans[0].struct_value["kind"] == "nothing"
    with pytest.raises(WaybillError, match="there is no flow"):
        await queries.list_commands(scribe.ids.new(), Paging(ListCommandsRequest(), str))


async def test_host_tasks_match_all_that_is_given_newest_first(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        one = await scribe.add_job(correlation_id="c-one")
        two = await scribe.add_job(correlation_id="c-two")
        first = await scribe.add_host_task(one, entity_type="DISK", entity_id="d-1")
        answered = await scribe.add_host_task(one, host_id="host-2", result="SUCCESS", answer='{"missing": true}')
    async with scribe.revision():
        waiting = await scribe.add_host_task(two, kind="WAIT", host_id="", verb="", arguments='{"state": ["UP"]}')

    async def found(**conditions: object) -> list[str]:
        paging = Paging(ListHostTasksRequest(), int, str)
        return [task.task_id for task in (await queries.list_host_tasks(paging, **conditions)).items]  # type: ignore[arg-type]

    assert await found(job_id=one) == [answered, first]
    assert await found(correlation_id="c-two") == [waiting]
    assert await found(entity=("DISK", "d-1")) == [first]
    assert await found(host_id="host-2", job_id=one) == [answered]
    assert await found(host_id="host-2", job_id=two) == []
    page = await queries.list_host_tasks(Paging(ListHostTasksRequest(), int, str), job_id=one)
    assert page.items[0].answer.struct_value["missing"] is True
    assert page.items[0].result == jobs_pb2.TASK_RESULT_SUCCESS
    assert not page.items[1].HasField("answer")


async def test_locks_are_listed_by_what_is_locked(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        job_id = await scribe.add_job()
        for key in [("VM", "vm-2"), ("DISK", "d-9"), ("VM", "vm-1")]:
            await scribe.add_lock(job_id, key, reason="Removing VM web")
    first = await queries.list_locks(Paging(ListLocksRequest(page_size=2), str, str, str))
    assert [lock.entity_id for lock in first.items] == ["d-9", "vm-1"]
    request = ListLocksRequest(page_size=2, page_token=first.next_page_token)
    rest = await queries.list_locks(Paging(request, str, str, str))
    assert [(lock.entity_id, lock.reason, lock.job_id) for lock in rest.items] == [("vm-2", "Removing VM web", job_id)]
    assert rest.next_page_token == ""


# --- entities ------------------------------------------------------------------------------------------------------


async def test_entities_are_found_listed_and_filtered(scribe: Scribe, queries: Queries) -> None:
    async with scribe.revision():
        await scribe.add_entity("VM", "vm-1", name="web", declared='{"disk_ids": ["d-1"], "memory_mb": 64}')
        await scribe.add_entity(
            "VM", "vm-2", observed_state="UP", observed_host_id="host-1", observed_incarnation="i", observed_number=3
        )
        await scribe.add_entity("DISK", "vm-1", status="ILLEGAL")
    vm = await queries.get_entity("VM", "vm-1")
    assert (vm.name, vm.version, vm.revision, vm.HasField("observed")) == ("web", 1, scribe.at, False)
    assert vm.declared["memory_mb"] == 64

    async def found(filter: str = "", entity_type: str | None = None, **fields: object) -> list[str]:
        request = ListEntitiesRequest(**fields)  # type: ignore[arg-type]
        page = await queries.list_entities(entity_type, entity_filter(filter), Paging(request, str, str))
        return [f"{entity.entity_type}/{entity.entity_id}" for entity in page.items]

    assert await found() == ["3/vm-1", "2/vm-1", "2/vm-2"]
    assert await found(entity_type="VM") == ["2/vm-1", "2/vm-2"]
    assert await found("name = web") == ["2/vm-1"]
    assert await found("status = ILLEGAL") == ["3/vm-1"]
    assert await found("state = UP AND host = host-1") == ["2/vm-2"]
    assert await found("state = ''", entity_type="VM") == ["2/vm-1"]
    first = await queries.list_entities(None, entity_filter(""), Paging(ListEntitiesRequest(page_size=2), str, str))
    assert await found(page_size=2, page_token=first.next_page_token) == ["2/vm-2"]


@pytest.mark.rule("semantics §4: An entity's progress is the weighted sum over the running steps that work on it")
async def test_an_entity_s_progress_is_that_of_the_running_steps_that_work_on_it(
    scribe: Scribe, queries: Queries
) -> None:
    async def step(job_id: str, status: str, progress: int, entity_id: str = "d-1", **columns: Any) -> str:
        subjects = [{"entity_type": "DISK", "entity_id": entity_id, "name": "of the time"}]
        columns |= {"status": status, "progress": progress, "subjects": json.dumps(subjects)}
        return await scribe.add_step(job_id, **columns)

    async def progress(entity_id: str) -> int | None:
        disk = await queries.get_entity("DISK", entity_id)
        return disk.progress if disk.HasField("progress") else None

    async with scribe.revision():
        for entity_id in ("d-1", "d-2", "d-3"):
            await scribe.add_entity("DISK", entity_id)
        one, other, over = [await scribe.add_job(status=status) for status in ("STARTED", "STARTED", "FINISHED")]
        outer = await step(one, "STARTED", 40, weight=3.0)
        inner = await step(one, "STARTED", 99, parent_step_id=outer)  # of what the outer one counts already
        await step(one, "STARTED", 80, "d-2", parent_step_id=outer)  # another entity's
        last = await step(other, "STARTED", 81, weight=1.0)
        await step(other, "PENDING", 0, weight=100.0)
        await step(other, "FINISHED", 100, weight=100.0)
        await step(over, "FINISHED", 100, "d-3")
        await step(one, "STARTED", 50, "d-3", weight=0.0)
    assert (await progress("d-1"), await progress("d-2"), await progress("d-3")) == (50, 80, None)
    async with scribe.revision():
        await scribe.change_step(one, outer, status="FINISHED", progress=100)
        await scribe.change_step(one, inner, status="FINISHED", progress=100)
    assert await progress("d-1") == 81
    async with scribe.revision():
        await scribe.change_step(other, last, status="FAILED")
    assert await progress("d-1") is None


async def test_an_unknown_entity_is_not_found(queries: Queries) -> None:
    with pytest.raises(WaybillError) as caught:
        await queries.get_entity("VM", "vm-9")
    assert caught.value.reason == "ENTITY_NOT_FOUND"
    assert caught.value.metadata == {"entity_type": "VM", "entity_id": "vm-9"}
