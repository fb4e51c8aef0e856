"""Every call of the contract, over real gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.hostagent.conftest import agent_here
from tests.integration.hostagent.host_client import (
    CLEAN_FAILURE,
    CLEAN_SUCCESS,
    FINISHED,
    SUCCESS,
    HostClient,
    a_spec,
    reason_in,
    refusal_of,
    within,
)

from chassis.errors import WaybillError
from hostagent import values
from hostagent.settings import Settings
from waybill.v1 import hostagent_pb2, jobs_pb2

# Starting.


async def test_a_task_is_started_and_its_end_is_streamed(agent: HostClient) -> None:
    status = await agent.run("createVolume", volume_id="v1", size_mb=10)
    assert (status.state, status.result, status.progress) == (FINISHED, SUCCESS, 100)
    assert values.value_to_plain(status.answer) == {"generation": 1}
    volume = await agent.object("v1")
    assert (volume.kind, volume.state, volume.generation) == ("volume", "LEGAL", 1)
    assert await agent.counted("v1", "createVolume") == (1, 1)


async def test_each_start_of_a_batch_is_answered_for_itself(agent: HostClient) -> None:
    reasons = await agent.start_all(
        a_spec("simWork", object_id="o"),
        a_spec("noSuchVerb"),
        a_spec("createVm", vm_id="x", memory_mb=1),
        a_spec("createVolume", volume_id="v", size_mb=1.5),
        a_spec("simWork", object_id="o", fields={"incarnation": "another"}),
        a_spec("simWork", object_id="o", fields={"correlation_id": "not valid"}),
        a_spec("simWork", object_id="o", fields={"job_id": "a\x00b"}),
        a_spec("simWork", object_id="o", fields={"task_id": ""}),
    )
    assert reasons == [
        "",
        "VERB_UNKNOWN",
        "VERB_UNKNOWN",
        "ARGUMENTS_INVALID",
        "INCARNATION_CHANGED",
        "CORRELATION_ID_INVALID",
        "REQUEST_INVALID",
        "REQUEST_INVALID",
    ]


async def test_a_bad_argument_is_named(agent: HostClient) -> None:
    request = hostagent_pb2.StartTasksRequest(tasks=[a_spec("createVolume", volume_id="v", size_mb="big")])
    (result,) = (await agent.stub.StartTasks(request)).results
    assert WaybillError.from_status(result.error).violations == (
        ("arguments.size_mb", "must be a whole number of at least 1"),
    )


async def test_arguments_that_are_too_much_are_refused(agent: HostClient) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    assert await agent.start_all(
        a_spec("simWork", object_id="o", more="x" * 300_000), a_spec("simWork", deep=deep)
    ) == [
        "ARGUMENTS_INVALID",
        "ARGUMENTS_INVALID",
    ]


async def test_more_tasks_than_a_request_may_have_are_refused_as_a_whole(agent: HostClient) -> None:
    specs = [a_spec("simWork", object_id="o") for _ in range(1001)]
    refusal = await refusal_of(agent.start_all(*specs))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert len((await agent.stub.GetAllTasksInfo(hostagent_pb2.GetAllTasksInfoRequest())).infos) == 0


@pytest.mark.rule("semantics §3: Starting the same id with the same arguments again is a success and changes nothing")
async def test_the_same_start_again_runs_once_and_a_different_one_is_refused(agent: HostClient) -> None:
    await agent.run("simWork", "t1", object_id="o")
    assert await agent.start_all(
        a_spec("simWork", "t1", object_id="o"),
        a_spec("simWork", "t1", object_id="p"),
        a_spec("simWork", "t1", object_id="o", fields={"epoch": 0}),
    ) == ["", "TASK_DIFFERS", ""]
    assert await agent.counted("o", "simWork") == (1, 1)


@pytest.mark.rule("semantics §3: Objects with a generation (volumes): a task names the generation it expects")
@pytest.mark.rule("semantics §3: a mismatch is refused")
async def test_a_task_that_expects_another_generation_is_refused(agent: HostClient) -> None:
    await agent.run("createVolume", volume_id="v1", size_mb=10)
    wrong = a_spec("extendImageSize", volume_id="v1", size_mb=20, fields={"expected_generation": 7})
    right = a_spec("extendImageSize", volume_id="v1", size_mb=20, fields={"expected_generation": 1})
    assert await agent.start_all(wrong, right) == ["GENERATION_MISMATCH", ""]
    assert (await agent.end_of(right.task_id)).result == SUCCESS
    assert (await agent.object("v1")).generation == 2
    assert await agent.start_all(right) == [""]  # a repeat is judged by what it was, not by what it did


@pytest.mark.rule("semantics §3: a fence (raising the generation) makes sure that it no longer will")
@pytest.mark.parametrize("verb", ["extendImageSize", "deleteImage"])
async def test_a_task_that_heeds_no_stop_changes_nothing_any_more_once_its_volume_is_fenced(
    agent: HostClient, verb: str
) -> None:
    await agent.run("createVolume", volume_id="v1", size_mb=10)
    await agent.program({"verb": verb, "outcome": "deaf", "work_ms": 500})
    arguments = {"size_mb": 20} if verb == "extendImageSize" else {}
    task = a_spec(verb, volume_id="v1", fields={"expected_generation": 1}, **arguments)
    assert await agent.start_all(task) == [""]
    await agent.at_work(verb, "v1")
    assert (await agent.stop(task.task_id)).state == jobs_pb2.TASK_STATE_ABORTING
    fence = {"volume_id": "v1", "generation": 1, "fenced_generation": 101, "writer": task.task_id}
    fenced = await agent.call("fenceVolume", **fence)
    assert values.value_to_plain(fenced.answer)["outcome"] == "FENCED"
    ended = await agent.end_of(task.task_id)
    assert (ended.result, reason_in(ended.error)) == (CLEAN_FAILURE, "GENERATION_MISMATCH")
    assert (await agent.object("v1")).generation == 101
    assert (await agent.counted("v1", verb))[1] == 0
    again = await agent.call("fenceVolume", **fence)
    assert values.value_to_plain(again.answer)["outcome"] == "FENCED"
    assert await agent.counted("v1", "fenceVolume") == (2, 1)


@pytest.mark.rule("semantics §3: So one read of an object tells whether a silent host did the work")
async def test_a_fence_tells_that_a_task_had_done_its_work(agent: HostClient) -> None:
    done = a_spec("createVolume", volume_id="v1", size_mb=10, fields={"expected_generation": 0})
    await agent.start_all(done)
    await agent.end_of(done.task_id)
    for task_id, outcome in ((done.task_id, "DONE"), ("somebody else", "DOUBTFUL")):
        fence = {"volume_id": "v1", "generation": 0, "fenced_generation": 100, "writer": task_id}
        answer = (await agent.call("fenceVolume", **fence)).answer
        assert values.value_to_plain(answer) == {"outcome": outcome, "generation": 1, "legality": "LEGAL"}
    none = await agent.call("fenceVolume", **{**fence, "volume_id": "none"})
    assert reason_in(none.error) == "OBJECT_NOT_FOUND"


@pytest.mark.rule("semantics §3: a full queue refuses with a retryable code")
async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    async with agent_here(tmp_path, Settings(queue=3)) as agent:
        await agent.program({"verb": "simWork", "outcome": "hang"})
        specs = [a_spec("simWork", object_id="o") for _ in range(3)]
        assert await agent.start_all(*specs) == ["", "", ""]
        request = hostagent_pb2.StartTasksRequest(tasks=[a_spec("simWork", object_id="o") for _ in range(20)])
        refused = [result.error for result in (await agent.stub.StartTasks(request)).results if result.error.code]
        assert refused
        error = WaybillError.from_status(refused[0])
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after


async def test_starts_and_clears_of_nothing_are_fine(agent: HostClient) -> None:
    assert await agent.start_all() == []
    assert await agent.clear() == []


# Asking.


@pytest.mark.rule("semantics §3: `incarnation` is made with the agent's data folder, `boot_id` with its process; both")
async def test_every_reply_says_who_answers(agent: HostClient) -> None:
    await agent.run("simWork", "t1", object_id="o")
    replies = [
        await agent.stub.GetTaskStatus(hostagent_pb2.GetTaskStatusRequest(task_id="t1")),
        await agent.stub.GetTaskInfo(hostagent_pb2.GetTaskInfoRequest(task_id="t1")),
        await agent.stub.GetAllTasksStatuses(hostagent_pb2.GetAllTasksStatusesRequest()),
        await agent.stub.GetAllTasksInfo(hostagent_pb2.GetAllTasksInfoRequest()),
        await agent.stub.ClearTasks(hostagent_pb2.ClearTasksRequest(task_ids=["t1"])),
        await agent.stub.GetHost(hostagent_pb2.GetHostRequest()),
        await agent.call("fenceStatus"),
    ]
    identities = {(reply.agent.host_id, reply.agent.incarnation, reply.agent.boot_id) for reply in replies}
    assert len(identities) == 1
    assert all(identities.pop())


async def test_infos_show_what_was_asked_for(agent: HostClient) -> None:
    spec = a_spec(
        "simWork", object_id="o", fields={"job_id": "j", "command_id": "k", "priority": 3, "expected_generation": 0}
    )
    await agent.start_all(spec)
    await agent.end_of(spec.task_id)
    info = (await agent.stub.GetTaskInfo(hostagent_pb2.GetTaskInfoRequest(task_id=spec.task_id))).info
    assert (info.spec, info.call, info.status.state) == (spec, False, FINISHED)
    assert info.end_time.ToNanoseconds() >= info.create_time.ToNanoseconds() > 0


async def test_calls_are_among_the_infos_but_not_among_the_tasks_unless_asked_for(agent: HostClient) -> None:
    await agent.call("fenceStatus", "c1")
    infos = (await agent.stub.GetAllTasksInfo(hostagent_pb2.GetAllTasksInfoRequest())).infos
    assert [(info.spec.task_id, info.call) for info in infos] == [("c1", True)]
    asked = agent.stub.GetAllTasksStatuses
    assert not (await asked(hostagent_pb2.GetAllTasksStatusesRequest())).statuses
    named = hostagent_pb2.GetAllTasksStatusesRequest(task_ids=["c1", "unknown"])
    assert [status.task_id for status in (await asked(named)).statuses] == ["c1"]


async def test_an_unknown_task_is_not_found(agent: HostClient) -> None:
    for asking in (agent.status_of("x"), agent.stop("x"), agent.revert("x")):
        refusal = await refusal_of(asking)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_UNKNOWN")


async def test_a_host_says_what_it_can_and_has(agent: HostClient) -> None:
    host = await agent.host()
    assert (host.driver, host.running_tasks, host.queued_tasks) == ("sim", 0, 0)
    verbs = {verb.verb: verb for verb in host.verbs}
    assert not verbs["deleteImage"].call
    assert verbs["createVm"].call
    assert all(verb.description for verb in host.verbs)
    assert host.capabilities["simulated"] is True


# Stopping, reverting, clearing.


@pytest.mark.rule('semantics §3: States move stop: → FINISHED, CLEAN_SUCCESS, code "aborted"')
async def test_a_hanging_task_is_stopped_and_rolled_back(agent: HostClient) -> None:
    await agent.program({"verb": "createVolume", "outcome": "hang"})
    task_id = await agent.start("createVolume", volume_id="v1", size_mb=5)
    await agent.stop(task_id)
    status = await agent.end_of(task_id)
    assert (status.result, reason_in(status.error)) == (CLEAN_SUCCESS, "ABORTED")
    assert (await agent.status_of(task_id)).state == FINISHED
    assert [found.state for found in (await agent.host("v1")).objects] in ([], ["GONE"])


@pytest.mark.rule("semantics §3: Stop of a finished task changes nothing and is no error")
async def test_stopping_a_finished_task_is_no_error(agent: HostClient) -> None:
    status = await agent.run("simWork", "t1", object_id="o")
    assert await agent.stop("t1") == status


@pytest.mark.rule("semantics §3: Fencing: StopTask carry flow command id and epoch; older than the newest seen for")
async def test_an_old_owner_may_not_stop(agent: HostClient) -> None:
    await agent.start_all(a_spec("simWork", "t1", object_id="o", fields={"epoch": 3}))
    refusal = await refusal_of(agent.stop("t1", epoch=2))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH")


@pytest.mark.rule("semantics §3: Revert only when finished: runs recovery, ends CLEAN_SUCCESS")
async def test_a_finished_task_is_reverted(agent: HostClient) -> None:
    await agent.run("createVolume", "t1", volume_id="v1", size_mb=5)
    await agent.revert("t1")
    async for status in agent.statuses():
        if status.state == FINISHED and status.result == CLEAN_SUCCESS:
            break
    assert (await agent.object("v1")).state == "GONE"


async def test_what_cannot_be_brought_back_is_said(agent: HostClient) -> None:
    await agent.run("createVolume", volume_id="v1", size_mb=5)
    await agent.run("deleteImage", "t1", volume_id="v1")
    await agent.revert("t1")
    async for status in agent.statuses():
        if status.task_id == "t1" and status.state == FINISHED:
            break
    assert status.result == CLEAN_FAILURE
    assert WaybillError.from_status(status.error).metadata["volume_id"] == "v1"


@pytest.mark.rule("semantics §3: Illegal moves are refused with a code")
@pytest.mark.rule("semantics §3: Clear only when over")
@pytest.mark.rule("semantics §3: Revert only when finished")
async def test_a_task_that_is_not_over_is_neither_cleared_nor_reverted(agent: HostClient) -> None:
    await agent.program({"outcome": "hang"})
    task_id = await agent.start("simWork", object_id="o")
    assert await agent.clear(task_id, "unknown") == ["TASK_STATE", ""]
    assert (await refusal_of(agent.revert(task_id))).reason == "TASK_STATE"


@pytest.mark.rule("semantics §3: Clear only when over; afterwards the id is unknown")
@pytest.mark.rule("semantics §3: Cleared ids are remembered: starting one answers `ALREADY_CLEARED`")
async def test_a_cleared_task_is_unknown_and_its_id_is_spent(agent: HostClient) -> None:
    await agent.run("simWork", "t1", object_id="o")
    assert await agent.clear("t1") == [""]
    assert (await refusal_of(agent.status_of("t1"))).reason == "TASK_UNKNOWN"
    assert await agent.start_all(a_spec("simWork", "t1", object_id="o")) == ["ALREADY_CLEARED"]
    assert await agent.clear("t1") == [""]


# Calling.


async def test_a_call_answers_with_what_was_seen_before_it(agent: HostClient) -> None:
    answer = await agent.call("createVm", "c1", vm_id="vm1", memory_mb=512)
    assert (answer.task_id, answer.observation_number) == ("c1", 1)  # 1: the host is UP
    up = await agent.seen("vm1", "UP")
    assert up.number > answer.observation_number
    assert await agent.call("createVm", "c1", vm_id="vm1", memory_mb=512) == answer
    assert await agent.counted("vm1", "createVm") == (1, 1)


async def test_what_goes_wrong_in_a_call_is_data(agent: HostClient) -> None:
    answer = await agent.call("shutdownVm", vm_id="none")
    assert reason_in(answer.error) == "OBJECT_NOT_FOUND"


async def test_a_call_that_cannot_be_taken_is_refused(agent: HostClient) -> None:
    cases = {
        "VERB_UNKNOWN": agent.call("deleteImage", volume_id="v"),
        "ARGUMENTS_INVALID": agent.call("createVm", vm_id="v"),
        "INCARNATION_CHANGED": agent.call("fenceStatus", fields={"incarnation": "x"}),
        "REQUEST_INVALID": agent.call("fenceStatus", fields={"task_id": ""}),
    }
    for reason, calling in cases.items():
        assert (await refusal_of(calling)).reason == reason


async def test_a_call_under_two_names_is_refused(agent: HostClient) -> None:
    request = hostagent_pb2.CallRequest(call=a_spec("fenceStatus"))
    refusal = await refusal_of(agent.stub.Call(request, metadata=(("x-correlation-id", "another"),)))
    assert refusal.reason == "CORRELATION_ID_INVALID"
    assert not (await agent.stub.GetAllTasksInfo(hostagent_pb2.GetAllTasksInfoRequest())).infos


@pytest.mark.rule("semantics §3: Calls are kept and cleared in the same way")
async def test_calls_are_cleared_like_tasks(agent: HostClient) -> None:
    await agent.call("fenceStatus", "c1")
    assert await agent.clear("c1") == [""]
    assert (await refusal_of(agent.call("fenceStatus", "c1"))).reason == "ALREADY_CLEARED"


# Watching.


async def test_a_watch_opens_with_all_tasks_there_are(agent: HostClient) -> None:
    for number in range(3):
        await agent.run("simWork", f"t{number}", object_id="o")
    await agent.call("fenceStatus")
    watch = agent.stub.WatchTasks(hostagent_pb2.WatchTasksRequest(watcher="w"))
    named = []
    async for message in watch:
        named += [status.task_id for status in message.statuses]
        if message.snapshot_done:
            break
    watch.cancel()
    assert named == ["t0", "t1", "t2"]


async def test_a_large_snapshot_comes_in_parts(agent: HostClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.service.MOST_AT_ONCE", 3)
    for _ in range(4):
        await agent.run("simWork", object_id="o")
    watch = agent.stub.WatchTasks(hostagent_pb2.WatchTasksRequest(watcher="w"))
    parts = []
    async for message in watch:
        parts.append(len(message.statuses))
        if message.snapshot_done:
            break
    watch.cancel()
    assert parts == [3, 1, 0]


@pytest.mark.rule("semantics §3: Progress 0–100 never falls")
async def test_progress_is_streamed_and_never_falls(agent: HostClient) -> None:
    await agent.program({"verb": "copyImage", "work_ms": 1000})
    await agent.run("createVolume", volume_id="a", size_mb=5)
    task_id = await agent.start("copyImage", source_volume_id="a", volume_id="b")
    seen = []
    async for status in agent.statuses():
        if status.task_id == task_id:
            seen.append(status.progress)
            if status.state == FINISHED:
                break
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert any(0 < progress < 100 for progress in seen)


async def test_events_open_with_what_is_on_the_host(agent: HostClient) -> None:
    await agent.call("createVm", vm_id="vm1", memory_mb=1)
    await agent.call("createVm", vm_id="vm2", memory_mb=1)
    await agent.seen("vm1", "UP")
    await agent.seen("vm2", "UP")
    await agent.call("destroyVm", vm_id="vm2")
    watch = agent.stub.WatchEvents(hostagent_pb2.WatchEventsRequest(watcher="w"))
    shown: list[Any] = []
    async for message in watch:
        shown += message.observations
        if message.snapshot_done:
            break
    watch.cancel()
    assert [(each.entity_type, each.entity_id, each.state) for each in shown] == [
        (jobs_pb2.ENTITY_TYPE_HOST, "host-1", "UP"),
        (jobs_pb2.ENTITY_TYPE_VM, "vm1", "UP"),
    ]
    assert message.newest_number == 6  # host up; two VMs powering up and up; one down
    assert [each.number for each in shown] == sorted(each.number for each in shown)


async def test_a_vm_that_is_shut_down_is_seen_down(agent: HostClient) -> None:
    await agent.call("createVm", vm_id="vm1", memory_mb=1)
    await agent.seen("vm1", "UP")
    async with agent.events() as seen:
        answer = await agent.call("shutdownVm", vm_id="vm1")
        assert (await within(10, seen("vm1", "DOWN"))).number > answer.observation_number


async def test_a_silent_task_is_only_heard_of_by_asking(agent: HostClient) -> None:
    await agent.program({"verb": "simWork", "match": {"object_id": "quiet"}, "outcome": "silent"})
    told: list[str] = []

    async def listen() -> None:
        async for status in agent.statuses():
            told.append(status.task_id)
            if status.task_id == "loud":
                return

    listening = asyncio.create_task(listen())
    await agent.start("simWork", "quiet", object_id="quiet")
    while (await agent.status_of("quiet")).state != FINISHED:
        pass
    await agent.start("simWork", "loud", object_id="loud")
    await within(10, listening)
    assert "quiet" not in told or told.index("quiet") == 0  # at most from the snapshot, while it waited


# The sim's troubles.


@pytest.mark.rule("semantics §1: TaskResult: `CLEAN_SUCCESS` (failed and rolled back)")
async def test_a_task_programmed_to_fail_is_rolled_back(agent: HostClient) -> None:
    await agent.program({"verb": "createVolume", "outcome": "fail", "error": "no space", "count": 1})
    status = await agent.run("createVolume", volume_id="v1", size_mb=5)
    assert (status.result, status.error.message, reason_in(status.error)) == (CLEAN_SUCCESS, "no space", "TASK_FAILED")
    assert (await agent.object("v1")).state == "GONE"
    assert await agent.counted("v1", "createVolume") == (1, 0)
    assert (await agent.run("createVolume", volume_id="v1", size_mb=5)).result == SUCCESS


async def test_a_deletion_that_fails_leaves_the_volume_as_it_was(agent: HostClient) -> None:
    await agent.run("createVolume", volume_id="v1", size_mb=5)
    await agent.program({"verb": "deleteImage", "outcome": "fail"})
    assert (await agent.run("deleteImage", volume_id="v1")).result == CLEAN_SUCCESS
    volume = await agent.object("v1")
    assert (volume.state, volume.generation) == ("LEGAL", 1)


@pytest.mark.rule("semantics §1: TaskResult: `CLEAN_FAILURE` (failed, not rolled back)")
async def test_a_dirty_failure_leaves_the_object_illegal(agent: HostClient) -> None:
    await agent.run("createVolume", volume_id="v1", size_mb=5)
    await agent.program({"verb": "deleteImage", "match": {"volume_id": "v1"}, "outcome": "fail_dirty"})
    status = await agent.run("deleteImage", volume_id="v1")
    assert status.result == CLEAN_FAILURE
    assert (await agent.object("v1")).state == "ILLEGAL"
    await agent.program()
    assert (await agent.run("deleteImage", volume_id="v1")).result == SUCCESS  # an ILLEGAL image can be removed


async def test_a_refused_task_is_not_even_accepted(agent: HostClient) -> None:
    await agent.program(
        {"verb": "simWork", "outcome": "refuse", "error": {"reason": "HOST_TIRED", "message": "later"}, "count": 1}
    )
    assert await agent.start_all(a_spec("simWork", "t1", object_id="o")) == ["HOST_TIRED"]
    assert await agent.start_all(a_spec("simWork", "t1", object_id="o")) == [""]
    await agent.program({"verb": "fenceStatus", "outcome": "refuse", "count": 1})
    assert (await refusal_of(agent.call("fenceStatus"))).reason == "REFUSED"


async def test_a_lost_task_is_denied_and_can_be_started_again(agent: HostClient) -> None:
    await agent.program({"verb": "simWork", "outcome": "lose", "count": 1})
    await agent.start("simWork", "t1", object_id="o")
    while (await agent.stub.GetAllTasksStatuses(hostagent_pb2.GetAllTasksStatusesRequest(task_ids=["t1"]))).statuses:
        pass
    assert (await agent.run("simWork", "t1", object_id="o")).result == SUCCESS
    assert await agent.counted("o", "simWork") == (2, 1)


async def test_deleting_an_image_that_is_missing_is_a_success_that_says_so(agent: HostClient) -> None:
    status = await agent.run("deleteImage", volume_id="none")
    assert (status.result, values.value_to_plain(status.answer)) == (SUCCESS, {"missing": True})
    assert await agent.counted("none", "deleteImage") == (1, 0)
    assert reason_in((await agent.run("deleteVolume", volume_id="none")).error) == "OBJECT_NOT_FOUND"


async def test_a_vm_that_never_gets_up(agent: HostClient) -> None:
    await agent.program({"verb": "createVm", "outcome": "never_up", "error": "no memory", "count": 1})
    async with agent.events() as seen:
        await agent.call("createVm", vm_id="vm1", memory_mb=1)
        assert (await within(10, seen("vm1", "DOWN"))).error == "no memory"
    await agent.call("createVm", vm_id="vm1", memory_mb=1)
    await within(10, agent.seen("vm1", "UP"))


async def test_a_vm_in_the_wrong_state_is_said(agent: HostClient) -> None:
    await agent.program({"verb": "createVm", "outcome": "never_up"})
    await agent.call("createVm", vm_id="vm1", memory_mb=1)
    assert reason_in((await agent.call("createVm", vm_id="vm1", memory_mb=1)).error) == "VM_IS_RUNNING"
    assert reason_in((await agent.call("migrateVm", vm_id="vm1", destination="host-2")).error) == "OBJECT_STATE"


async def test_a_migrated_vm_is_gone_from_here(agent: HostClient) -> None:
    await agent.call("createVm", vm_id="vm1", memory_mb=1)
    await agent.seen("vm1", "UP")
    async with agent.events() as seen:
        await agent.call("migrateVm", vm_id="vm1", destination="host-2")
        await within(10, seen("vm1", "MIGRATING"))
    while (await agent.object("vm1")).state != "GONE":
        pass


async def test_images_are_copied_moved_and_changed(agent: HostClient) -> None:
    await agent.run("createVolume", volume_id="a", size_mb=5)
    await agent.run("copyImage", source_volume_id="a", volume_id="b")
    await agent.run("moveImage", source_volume_id="b", volume_id="c")
    await agent.run("createSnapshot", volume_id="c", snapshot_id="s1")
    await agent.run("extendImageSize", volume_id="c", size_mb=9)
    await agent.run("mergeSnapshots", volume_id="c")
    await agent.run("cloneImageStructure", volume_id="d")
    await agent.run("syncImageData", volume_id="d")
    states = {found.object_id: found for found in (await agent.host()).objects}
    assert {name: (found.state, found.generation) for name, found in states.items() if found.kind == "volume"} == {
        "a": ("LEGAL", 1),
        "b": ("GONE", 0),
        "c": ("LEGAL", 4),
        "d": ("LEGAL", 2),
    }
    assert (states["c"].details["size_mb"], list(states["c"].details["snapshots"])) == (9, [])
