"""The coordinator's side of a host: what it sends, how often, and what it makes of answers and of silence."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from tests.integration.coordinator.far_end import (
    FINISHED,
    INIT,
    RUNNING,
    SILENCE,
    ScriptedHost,
    pass_time,
    turns,
    until,
)

from chassis.clock import ManualClock
from chassis.errors import WaybillError, failed_precondition, invalid_argument, not_found, resource_exhausted
from chassis.server import Server
from coordinator.hosts.hostlink import UNKNOWN_HOST_SECONDS
from coordinator.hosts.hosts import Hosts, TaskReport
from coordinator.hosts.starts import FEWEST_TASKS
from coordinator.hosts.tasksource import ROUNDS_BEFORE_REST
from waybill.v1 import hostagent_pb2, jobs_pb2

POLL_SECONDS = 10.0
STALL_SECONDS = 60.0
FULL = resource_exhausted("the queue is full", reason="QUEUE_FULL")


class Told:
    """What the engine and the journal are told."""

    def __init__(self) -> None:
        self.reports: list[TaskReport] = []
        self.cleared: list[str] = []
        self.outlived: list[tuple[str, str, str]] = []
        self.stalled: list[tuple[str, float]] = []
        """Which, and when."""

    def ended(self) -> dict[str, str]:
        """How each task or call that is over went."""
        return {
            report.task_id: "LOST" if report.lost else "REFUSED" if report.refused else report.result
            for report in self.reports
            if report.lost or report.result
        }

    def error(self, task_id: str) -> WaybillError:
        """Why it did not go well."""
        status = next(report.error for report in self.reports if report.task_id == task_id and report.error)
        return WaybillError.from_status(status)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def hosts(clock: ManualClock, rng: random.Random, told: Told) -> AsyncIterator[Hosts]:
    def stalled(task_id: str, seconds: float) -> None:
        told.stalled.append((task_id, clock.monotonic()))

    async with Hosts(
        clock,
        rng,
        POLL_SECONDS,
        told.reports.append,
        told.cleared.extend,
        "c1",
        stalled=stalled,
        stall_seconds=STALL_SECONDS,
        outlived=lambda *what: told.outlived.append(what),
    ) as hosts:
        yield hosts


@pytest.fixture
async def server(host: ScriptedHost, hosts: Hosts) -> AsyncIterator[Server]:
    """The host, known to the coordinator."""
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        yield server


def an_entity(address: str, version: int = 1) -> jobs_pb2.Entity:
    entity = jobs_pb2.Entity(entity_type=jobs_pb2.ENTITY_TYPE_HOST, entity_id="h1", version=version)
    if version:
        entity.declared["address"] = address
    return entity


def a_spec(task_id: str, verb: str = "simWork") -> hostagent_pb2.TaskSpec:
    return hostagent_pb2.TaskSpec(task_id=task_id, verb=verb, flow_command_id="f1", epoch=3, correlation_id="order-66")


def start(hosts: Hosts, *task_ids: str, deadline: float | None = None) -> None:
    for task_id in task_ids:
        hosts.start("h1", a_spec(task_id), deadline)


async def started(hosts: Hosts, host: ScriptedHost, *task_ids: str) -> None:
    """Starts tasks and waits until the coordinator knows that the host has them and listens."""
    start(hosts, *task_ids)
    await until(lambda: set(task_ids) <= {task_id for batch in host.batches for task_id in batch})
    await until(lambda: len(host.watchers))
    link = hosts.link("h1")  # whose answer to StartTasks comes before the next one
    await link.ask(link.stub.GetTaskStatus, hostagent_pb2.GetTaskStatusRequest(task_id=task_ids[0]))
    await turns()


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
async def test_starts_gather_while_a_batch_is_on_its_way(hosts: Hosts, host: ScriptedHost) -> None:
    gate = host.script.hold("StartTasks")
    start(hosts, "t1")
    await until(lambda: host.script.asked["StartTasks"])
    start(hosts, "t2", "t3")
    gate.set()
    await until(lambda: len(host.batches) == 2)

    assert host.batches == [["t1"], ["t2", "t3"]]


@pytest.mark.rule("semantics §3: Seen from the coordinator: pushed by `WatchTasks`")
@pytest.mark.rule("semantics §2: `task(host, verb, arguments)`: the host reports the task over")
@pytest.mark.usefixtures("server")
async def test_a_task_is_reported_when_its_host_says_that_it_is_over(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    await started(hosts, host, "t1")
    host.publish("t1", RUNNING, progress=40)
    host.finish("t1")
    await until(told.ended)

    assert [(report.state, report.progress, report.result) for report in told.reports] == [
        ("RUNNING", 40, ""),
        ("FINISHED", 100, "SUCCESS"),
    ]
    assert told.reports[-1].incarnation == hosts.incarnation_of("h1") == "i1"


@pytest.mark.rule("semantics §8: Priority of a job and its tasks, changeable while it waits")
@pytest.mark.usefixtures("server")
async def test_another_priority_is_told_to_who_has_the_task_waiting_and_to_nobody_else(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    host.takes_as = INIT
    await started(hosts, host, "working", "waiting")
    host.publish("working", RUNNING, progress=40)
    await until(lambda: told.reports)
    gate = host.script.hold("StartTasks")
    start(hosts, "on its way")
    await until(lambda: host.script.asked["StartTasks"] == 2)
    start(hosts, "queued")
    hosts.prioritise(["working", "waiting", "on its way", "queued", "unheard of"], 7)
    hosts.prioritise(["waiting"], 7)  # as it is
    gate.set()
    await until(lambda: host.priorities["on its way"] == [0, 7])

    assert host.priorities == {"working": [0], "waiting": [0, 7], "on its way": [0, 7], "queued": [7]}


@pytest.mark.usefixtures("server")
async def test_another_priority_is_told_again_until_it_is_heard(
    hosts: Hosts, host: ScriptedHost, clock: ManualClock
) -> None:
    host.takes_as = INIT
    await started(hosts, host, "t1")
    host.script.fail("StartTasks", SILENCE, times=20)
    hosts.prioritise(["t1"], 7)
    await pass_time(clock, lambda: host.priorities["t1"] == [0, 7], step=1.0)


@pytest.mark.rule("semantics §3: Same incarnation: always send again")
@pytest.mark.usefixtures("server")
async def test_a_start_that_nobody_answered_is_sent_again(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.script.fail("StartTasks", SILENCE, times=20)
    start(hosts, "t1")
    await pass_time(clock, lambda: host.batches, step=1.0)

    assert host.batches == [["t1"]]
    assert told.reports == []


@pytest.mark.rule("semantics §3: a full queue refuses with a retryable code: the start is repeated with backoff until")
@pytest.mark.usefixtures("server")
async def test_a_full_queue_is_offered_fewer_until_it_has_room(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    task_ids = [f"t{number}" for number in range(100)]
    host.refuse = lambda spec: FULL if len(host.tasks) >= 10 else None
    start(hosts, *task_ids)
    await pass_time(clock, lambda: len(host.batches) >= 3)
    assert [len(batch) for batch in host.batches[:3]] == [100, FEWEST_TASKS, FEWEST_TASKS]

    host.refuse = lambda spec: None
    await pass_time(clock, lambda: len(host.tasks) == 100)
    assert list(host.tasks) == task_ids
    assert told.reports == []


@pytest.mark.rule("semantics §3: a full queue refuses with a retryable code: the start is repeated with backoff until")
@pytest.mark.usefixtures("server")
async def test_a_queue_that_stays_full_until_the_deadline_refuses_the_task(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.refuse = lambda spec: FULL
    start(hosts, "t1", deadline=clock.now() + 5)
    await pass_time(clock, told.ended, step=0.5)

    assert told.ended() == {"t1": "REFUSED"}
    assert told.error("t1").reason == "DEADLINE_EXCEEDED"


@pytest.mark.usefixtures("server")
async def test_after_its_deadline_a_task_is_asked_about_and_not_sent(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.tasks["t1"] = hostagent_pb2.TaskStatus(task_id="t1", state=RUNNING)  # its answer was lost, in another life
    start(hosts, "t1", "t2", deadline=clock.now() - 1)
    await until(told.ended)

    assert told.ended() == {"t2": "REFUSED"}
    assert host.batches == []
    await until(lambda: len(host.watchers))
    host.finish("t1")
    await until(lambda: "t1" in told.ended())


@pytest.mark.rule("semantics §3: Another refusal fails that node alone")
@pytest.mark.usefixtures("server")
async def test_a_refusal_fails_that_task_alone(hosts: Hosts, host: ScriptedHost, told: Told) -> None:
    refusals = {
        "stale": failed_precondition("STALE_EPOCH", ""),
        "other data": failed_precondition("INCARNATION_CHANGED", ""),
        "cleared": failed_precondition("ALREADY_CLEARED", ""),
    }
    host.refuse = lambda spec: refusals.get(spec.task_id)
    await started(hosts, host, "good", *refusals)
    host.finish("good")
    await until(lambda: len(told.ended()) == 4)

    assert told.ended() == {"good": "SUCCESS", "stale": "REFUSED", "other data": "LOST", "cleared": "LOST"}
    assert told.error("stale").reason == "STALE_EPOCH"


@pytest.mark.usefixtures("server")
async def test_of_a_batch_that_is_refused_whole_each_task_goes_alone(hosts: Hosts, host: ScriptedHost) -> None:
    host.script.fail("StartTasks", invalid_argument("REQUEST_INVALID", "one is malformed"))
    start(hosts, "t1", "t2")
    await until(lambda: len(host.batches) == 2)

    assert host.batches == [["t1"], ["t2"]]


@pytest.mark.usefixtures("server")
async def test_what_nobody_waits_for_any_more_is_not_sent_and_not_reported(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    gate = host.script.hold("StartTasks")
    start(hosts, "t1")
    await until(lambda: host.script.asked["StartTasks"])
    start(hosts, "t2")
    hosts.forget(["t1", "t2"])
    gate.set()
    start(hosts, "t3")
    await until(lambda: len(host.batches) == 2)
    host.finish("t1")
    host.finish("t3")
    await until(told.ended)

    assert host.batches == [["t1"], ["t3"]]
    assert told.ended() == {"t3": "SUCCESS"}


# --- silence, loss, and other hosts ----------------------------------------------------------------------------------


@pytest.mark.rule("semantics §3: Seen from the coordinator: pushed by `WatchTasks`; polling `getAllTasksStatuses` is")
@pytest.mark.usefixtures("server")
async def test_with_a_mute_stream_the_net_hears_of_the_end_within_the_poll_seconds(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.mute = True
    host.finish("t1")
    begun = clock.monotonic()
    await pass_time(clock, told.ended, step=0.5)

    assert told.ended() == {"t1": "SUCCESS"}
    assert clock.monotonic() - begun <= POLL_SECONDS + 0.5


@pytest.mark.rule("semantics §3: Liveness is by progress, not age: no progress for the limit")
@pytest.mark.usefixtures("server")
async def test_a_task_without_progress_is_told_of_within_two_rounds_of_its_limit(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "stuck", "slow")
    host.publish("stuck", RUNNING, progress=3)
    begun = clock.monotonic()
    for percent in range(1, 9):
        host.publish("slow", RUNNING, progress=percent)
        asked = host.script.asked["GetAllTasksStatuses"]
        await pass_time(clock, lambda asked=asked: host.script.asked["GetAllTasksStatuses"] > asked, step=0.5)
    await pass_time(clock, lambda: told.stalled, step=0.5)

    [(task_id, when)] = told.stalled
    assert task_id == "stuck"
    assert STALL_SECONDS <= when - begun <= STALL_SECONDS + 2 * POLL_SECONDS
    assert told.ended() == {}


@pytest.mark.rule("semantics §3: Host unreachable → neither failed nor succeeded; asked again")
@pytest.mark.usefixtures("server")
async def test_the_silence_of_a_host_is_no_standstill_of_its_tasks(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.script.fail("GetAllTasksStatuses", SILENCE, 6)
    await pass_time(clock, lambda: host.script.asked["GetAllTasksStatuses"] > 8, step=0.5)

    assert clock.monotonic() > 2 * STALL_SECONDS
    assert told.stalled == []


@pytest.mark.usefixtures("server")
async def test_a_task_that_was_over_before_we_cared_is_asked_about_at_once(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "ours")
    host.finish("taken over")
    start(hosts, "taken over")
    begun = clock.monotonic()
    await pass_time(clock, told.ended, sleepers=2)

    assert told.ended() == {"taken over": "SUCCESS"}
    assert clock.monotonic() - begun < 1


@pytest.mark.usefixtures("server")
async def test_what_was_said_while_nobody_listened_is_heard_on_reconnecting(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.watchers.publish(SILENCE)
    await until(lambda: not len(host.watchers))
    host.finish("t1")
    await pass_time(clock, told.ended)

    assert told.ended() == {"t1": "SUCCESS"}


@pytest.mark.rule("semantics §3: Host unreachable → neither failed nor succeeded; asked again")
async def test_an_unreachable_host_has_neither_failed_nor_succeeded(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        await started(hosts, host, "t1")
    start(hosts, "t2")
    for _ in range(100):
        clock.advance(10.0)
        await turns(5)
    assert told.reports == []

    host.finish("t1")
    async with host.serve(server.address):
        await pass_time(clock, lambda: told.ended() and "t2" in host.tasks, step=1.0)
    assert told.ended() == {"t1": "SUCCESS"}


@pytest.mark.rule("semantics §3: A host task we did not create is left alone")
@pytest.mark.usefixtures("server")
async def test_a_task_that_we_did_not_create_is_left_alone(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.publish("theirs", RUNNING, progress=7)
    await started(hosts, host, "ours")
    host.publish("theirs", RUNNING, progress=70)
    rounds = host.script.asked["GetAllTasksStatuses"]
    await pass_time(clock, lambda: host.script.asked["GetAllTasksStatuses"] >= rounds + 3, step=1.0)
    host.finish("ours")
    await until(told.ended)
    hosts.clear("h1", ["ours"])
    await until(lambda: told.cleared)

    assert {report.task_id for report in told.reports} == {"ours"}
    assert told.cleared == ["ours"]
    assert host.tasks["theirs"].state == RUNNING
    assert (host.script.asked["StopTask"], host.script.asked["RevertTask"]) == (0, 0)


@pytest.mark.rule("semantics §3: Lost = the host denies a task whose acceptance we saw, in the same incarnation")
@pytest.mark.usefixtures("server")
async def test_a_task_that_its_host_denies_in_the_same_incarnation_is_lost(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1", "t2")
    del host.tasks["t1"]
    host.watchers.publish(SILENCE)  # and opens again, with a snapshot that does not name it
    await pass_time(clock, told.ended)

    assert told.ended() == {"t1": "LOST"}
    assert told.error("t1").reason == "TASK_LOST"


@pytest.mark.usefixtures("server")
async def test_a_start_on_its_way_is_not_taken_for_lost(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    gate = host.script.hold("StartTasks")
    start(hosts, "t1")
    for _ in range(3):  # snapshots that cannot know it
        await until(lambda: len(host.watchers))
        host.watchers.publish(SILENCE)
        await until(lambda: not len(host.watchers))
        await pass_time(clock, lambda: len(host.watchers))
    gate.set()
    await until(lambda: host.batches)
    await turns()

    assert told.reports == []


@pytest.mark.usefixtures("server")
async def test_a_host_whose_data_were_replaced_has_lost_what_the_old_ones_held(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.incarnation = "i2"
    host.tasks.clear()
    host.watchers.publish(SILENCE)
    await pass_time(clock, told.ended)

    assert told.ended() == {"t1": "LOST"}
    assert hosts.incarnation_of("h1") == "i2"


async def test_nothing_is_started_on_a_stranger(hosts: Hosts, told: Told, clock: ManualClock) -> None:
    stranger = ScriptedHost(host_id="h2")
    async with stranger.serve() as server:
        hosts.learn(an_entity(server.address))
        start(hosts, "t1")
        hosts.call("h1", a_spec("c1"), None)
        await pass_time(clock, lambda: stranger.script.asked["GetAllTasksStatuses"] > 5)

    assert stranger.batches == []
    assert stranger.script.asked["Call"] == 0
    assert told.reports == []


@pytest.mark.usefixtures("server")
async def test_what_a_stranger_refuses_says_nothing_of_the_host(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.host_id = "h2"  # another host has got the address
    host.script.fail("Call", failed_precondition("INCARNATION_CHANGED", "not mine"))
    hosts.call("h1", a_spec("c1"), None)
    await pass_time(clock, lambda: host.script.asked["GetAllTasksStatuses"] > 5)
    assert told.reports == []

    host.host_id = "h1"
    await pass_time(clock, told.ended)
    assert told.ended() == {"c1": "SUCCESS"}


async def test_a_host_that_moved_is_found_at_its_new_address(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    async with host.serve() as old, host.serve() as new:
        hosts.learn(an_entity(old.address))
        await started(hosts, host, "t1")
        host.script.hold("Call")
        hosts.call("h1", a_spec("c1"), None)
        await until(lambda: host.script.asked["Call"])
        hosts.learn(an_entity(new.address))
        await old.stop(0)
        host.script.hold("Call").set()
        host.finish("t1")
        await pass_time(clock, lambda: len(told.ended()) == 2)

    assert told.ended() == {"t1": "SUCCESS", "c1": "SUCCESS"}


async def test_what_is_for_a_host_that_is_not_known_yet_waits_for_it(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    start(hosts, "t1")
    clock.advance(UNKNOWN_HOST_SECONDS / 2)
    await turns()
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        await pass_time(clock, lambda: host.batches)

    assert told.reports == []


async def test_what_is_for_a_host_that_is_never_known_is_lost(hosts: Hosts, told: Told, clock: ManualClock) -> None:
    start(hosts, "t1")
    hosts.call("h1", a_spec("c1"), None)
    await pass_time(clock, lambda: len(told.ended()) == 2, step=1.0)

    assert told.ended() == {"t1": "LOST", "c1": "LOST"}


@pytest.mark.parametrize("nonsense", ["", "garbage", "a:1,b:2", "127.0.0.1:1,garbage", ":"])
async def test_an_address_that_is_none_counts_as_none(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock, nonsense: str
) -> None:
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        hosts.learn(an_entity(nonsense))
        start(hosts, "t1")
        await until(lambda: host.batches)  # where it was last
        hosts.learn(an_entity(server.address))
        host.finish("t1")
        await pass_time(clock, told.ended)

    assert told.ended() == {"t1": "SUCCESS"}


@pytest.mark.usefixtures("server")
async def test_the_stream_is_closed_when_nothing_was_there_for_some_rounds(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.finish("t1")
    await until(told.ended)
    begun = clock.monotonic()
    await pass_time(clock, lambda: not len(host.watchers), step=1.0)
    assert clock.monotonic() - begun > (ROUNDS_BEFORE_REST - 1) * POLL_SECONDS * 0.9

    await started(hosts, host, "t2")
    host.finish("t2")
    await until(lambda: "t2" in told.ended())


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
async def test_a_call_is_reported_with_its_answer_and_the_number_after_which_to_look(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    def answer(spec: hostagent_pb2.TaskSpec) -> hostagent_pb2.CallResponse:
        response = hostagent_pb2.CallResponse(observation_number=41)
        response.answer.struct_value["vm_id"] = "v1"
        return response

    host.answer = answer
    hosts.call("h1", a_spec("c1", "createVm"), None)
    await until(lambda: told.reports)

    assert told.reports == [
        TaskReport("h1", "c1", "FINISHED", "SUCCESS", 100, None, {"vm_id": "v1"}, "i1", observation_number=41)
    ]
    assert host.correlation_ids == ["order-66"]


@pytest.mark.rule("semantics §2: `call(host, verb, arguments)`: a repeat is harmless")
@pytest.mark.usefixtures("server")
async def test_a_call_that_nobody_answered_is_made_again(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.script.fail("Call", SILENCE, times=3)
    hosts.call("h1", a_spec("c1"), None)
    await pass_time(clock, told.ended)

    assert told.ended() == {"c1": "SUCCESS"}
    assert host.script.asked["Call"] == 4


@pytest.mark.usefixtures("server")
async def test_a_verb_that_fails_is_data_a_call_that_is_not_taken_refused_and_one_that_was_lost_lost(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    failed = failed_precondition("OBJECT_NOT_FOUND", "no such VM")
    host.answer = lambda spec: hostagent_pb2.CallResponse(error=failed.to_status())
    hosts.call("h1", a_spec("c1"), None)
    await until(told.ended)
    host.script.fail("Call", failed_precondition("STALE_EPOCH", "newer"))
    hosts.call("h1", a_spec("c2"), None)
    await until(lambda: "c2" in told.ended())
    host.script.fail("Call", not_found("TASK_UNKNOWN", "it was here"))
    hosts.call("h1", a_spec("c3"), None)
    await until(lambda: "c3" in told.ended())

    assert told.ended() == {"c1": "CLEAN_SUCCESS", "c2": "REFUSED", "c3": "LOST"}
    assert [told.error(each).reason for each in ("c1", "c2")] == ["OBJECT_NOT_FOUND", "STALE_EPOCH"]


@pytest.mark.usefixtures("server")
async def test_after_its_deadline_a_call_is_made_only_if_the_host_has_it_already(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.tasks["taken"] = hostagent_pb2.TaskStatus(task_id="taken", state=FINISHED)
    for call_id in ("taken", "never came"):
        hosts.call("h1", a_spec(call_id), clock.now() - 1)
    await until(lambda: len(told.ended()) == 2)

    assert told.ended() == {"taken": "SUCCESS", "never came": "REFUSED"}
    assert host.script.asked["Call"] == 1


@pytest.mark.usefixtures("server")
async def test_a_call_that_nobody_waits_for_is_not_made_again(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.script.fail("Call", SILENCE)
    hosts.call("h1", a_spec("c1"), None)
    await until(lambda: clock.sleeping)
    hosts.forget(["c1"])
    clock.advance(10.0)
    await turns()

    assert host.script.asked["Call"] == 1
    assert told.reports == []


# --- stops -----------------------------------------------------------------------------------------------------------


def stop(hosts: Hosts, task_id: str) -> None:
    hosts.stop("h1", task_id, "f1", 3, "order-66")


@pytest.mark.usefixtures("server")
async def test_a_stopped_task_ends_when_its_host_says_so(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    host.script.fail("StopTask", SILENCE)
    stop(hosts, "t1")
    await pass_time(clock, lambda: told.reports)
    assert [report.state for report in told.reports] == ["ABORTING"]

    host.publish("t1", FINISHED, result=jobs_pb2.TASK_RESULT_CLEAN_SUCCESS)
    await until(told.ended)
    assert told.ended() == {"t1": "CLEAN_SUCCESS"}
    assert set(host.correlation_ids) == {"order-66"}


@pytest.mark.usefixtures("server")
async def test_stopping_a_task_that_is_over_hears_of_its_end(hosts: Hosts, host: ScriptedHost, told: Told) -> None:
    await started(hosts, host, "t1")
    host.mute = True
    host.finish("t1")
    stop(hosts, "t1")
    await until(told.ended)

    assert told.ended() == {"t1": "SUCCESS"}


@pytest.mark.usefixtures("server")
async def test_a_task_that_waits_for_room_is_withdrawn_when_it_is_stopped(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    host.refuse = lambda spec: FULL
    start(hosts, "t1")
    await until(lambda: clock.sleeping and host.batches)
    host.refuse = lambda spec: None
    stop(hosts, "t1")
    await pass_time(clock, told.ended)
    clock.advance(10.0)
    await turns()

    assert told.ended() == {"t1": "REFUSED"}
    assert told.error("t1").reason == "ABORTED"
    assert "t1" not in host.tasks


@pytest.mark.usefixtures("server")
async def test_a_task_whose_start_is_on_its_way_is_stopped_once_it_is_there(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    gate = host.script.hold("StartTasks")
    start(hosts, "t1")
    await until(lambda: host.script.asked["StartTasks"])
    stop(hosts, "t1")
    await until(lambda: host.script.asked["StopTask"])
    gate.set()
    await pass_time(clock, lambda: told.reports)

    assert [report.state for report in told.reports] == ["ABORTING"]


@pytest.mark.usefixtures("server")
async def test_stopping_a_task_that_the_host_does_not_know_any_more_finds_it_lost(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    await started(hosts, host, "t1")
    host.tasks.clear()
    stop(hosts, "t1")
    await until(told.ended)

    assert told.ended() == {"t1": "LOST"}


# --- clears ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("semantics §2: Clearing on the hosts follows, in batches, retried for as long as a host is away")
@pytest.mark.usefixtures("server")
async def test_clears_gather_while_a_batch_is_on_its_way(hosts: Hosts, host: ScriptedHost, told: Told) -> None:
    gate = host.script.hold("ClearTasks")
    hosts.clear("h1", ["t1"])
    await until(lambda: host.script.asked["ClearTasks"])
    hosts.clear("h1", ["t2", "t3"])
    hosts.clear("h1", ["t3", "t4"])
    gate.set()
    await until(lambda: len(told.cleared) == 4)

    assert host.cleared == [["t1"], ["t2", "t3", "t4"]]
    assert told.cleared == ["t1", "t2", "t3", "t4"]


@pytest.mark.rule("semantics §2: Clearing on the hosts follows, in batches, retried for as long as a host is away")
async def test_clears_wait_for_as_long_as_the_host_is_away(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
    hosts.clear("h1", ["t1"])
    for _ in range(100):
        clock.advance(10.0)
        await turns(5)
    assert told.cleared == []

    async with host.serve(server.address):
        await pass_time(clock, lambda: told.cleared, step=1.0)
    assert told.cleared == ["t1"]


async def test_what_is_left_on_a_host_that_is_no_more_is_cleared_where_it_was_last(
    hosts: Hosts, host: ScriptedHost, told: Told
) -> None:
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        hosts.learn(an_entity("", version=0))
        hosts.clear("h1", ["t1"])
        await until(lambda: told.cleared == ["t1"])
    assert host.cleared == [["t1"]]


@pytest.mark.rule("semantics §2: an unknown id counts as cleared.")
async def test_a_host_that_is_no_more_and_not_reached_has_nothing_left(
    hosts: Hosts, told: Told, clock: ManualClock
) -> None:
    hosts.learn(an_entity("127.0.0.1:9"))
    hosts.learn(an_entity("", version=0))
    hosts.clear("h1", ["t1"])
    await pass_time(clock, lambda: told.cleared, step=UNKNOWN_HOST_SECONDS / 4)
    assert told.cleared == ["t1"]


@pytest.mark.rule("semantics §2: an unknown id counts as cleared")
@pytest.mark.usefixtures("server")
async def test_a_task_that_outlived_its_flow_is_stopped_and_then_cleared(
    hosts: Hosts, host: ScriptedHost, told: Told, clock: ManualClock
) -> None:
    await started(hosts, host, "t1")
    hosts.clear("h1", ["t1", "t2"])
    await until(lambda: host.script.asked["StopTask"])
    await until(lambda: told.cleared == ["t2"])
    asked = host.script.asked["StopTask"]
    await pass_time(clock, lambda: host.script.asked["StopTask"] > asked, step=1.0)
    host.finish("t1")
    await pass_time(clock, lambda: len(told.cleared) == 2, step=1.0)

    assert told.cleared == ["t2", "t1"]
    assert told.outlived == [("h1", "t1", "simWork")]  # once, however often it is asked to stop
    assert host.tasks == {}


async def test_many_tasks_are_started_reported_and_cleared(hosts: Hosts, host: ScriptedHost, told: Told) -> None:
    task_ids = [f"t{number}" for number in range(700)]
    async with host.serve() as server:
        hosts.learn(an_entity(server.address))
        start(hosts, *task_ids)
        await until(lambda: len(host.tasks) == len(task_ids))
        await until(lambda: len(host.watchers))
        for task_id in task_ids:
            host.finish(task_id)
        await until(lambda: len(told.ended()) == len(task_ids))
        hosts.clear("h1", task_ids)
        await until(lambda: len(told.cleared) == len(task_ids))

    assert set(told.ended().values()) == {"SUCCESS"}
    assert host.tasks == {}
