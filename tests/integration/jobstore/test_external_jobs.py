"""External jobs on a real jobstore, reported as coordinators pass them on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import grpc
import pytest
from tests.integration.conftest import RunningJobstore

from chassis.clock import SystemClock, Uuid7Ids
from chassis.context import CallContext
from chassis.errors import WaybillError
from coordinator.externals import Externals
from jobstore.heartbeats import Listener
from jobstore.journal.externaljobs import ExternalJobs, beating_pool
from jobstore.journal.journal import Journal
from jobstore.snapshots import reading_pool
from waybill.v1 import coordinator_pb2 as asked
from waybill.v1 import jobs_pb2, jobstore_pb2
from waybill_spans import Context

IDS = Uuid7Ids()
ANN = CallContext("spring-cleaning", "ann")
FINISHED, FAILED = jobs_pb2.EXECUTION_STATUS_FINISHED, jobs_pb2.EXECUTION_STATUS_FAILED
STARTED, UNKNOWN = jobs_pb2.EXECUTION_STATUS_STARTED, jobs_pb2.EXECUTION_STATUS_UNKNOWN
ABORTED = jobs_pb2.EXECUTION_STATUS_ABORTED
VM = jobs_pb2.ENTITY_TYPE_VM


class Line:
    """What a coordinator has of a jobstore, and what got lost on it."""

    def __init__(self, jobstore: RunningJobstore) -> None:
        self._jobstore = jobstore
        self.lose_answers = 0

    async def report_external(self, report: jobstore_pb2.ReportExternalRequest) -> jobstore_pb2.ReportExternalResponse:
        """Asks, and the same again for each answer that is to be lost."""
        try:
            while self.lose_answers:
                self.lose_answers -= 1
                await self._jobstore.journal.ReportExternal(report)
            return await self._jobstore.journal.ReportExternal(report)
        except grpc.aio.AioRpcError as error:
            raise WaybillError.from_rpc_error(error) from error


class Reporter:
    """Another system, that reports through some coordinator."""

    def __init__(self, jobstore: RunningJobstore) -> None:
        self.line = Line(jobstore)
        self.externals = Externals(self.line, IDS)

    async def begin(self, description: str = "Nightly backup", **fields: Any) -> jobs_pb2.Job:
        request = asked.AddExternalJobRequest(description=description, **fields)
        return await self.externals.add_job(request, ANN, None)

    async def step(self, job: jobs_pb2.Job, description: str = "Copying", **fields: Any) -> jobs_pb2.Step:
        request = asked.AddExternalStepRequest(job_id=job.job_id, description=description, **fields)
        return await self.externals.add_step(request, ANN)

    async def end_step(self, step: jobs_pb2.Step, *, failed: str | None = None) -> jobs_pb2.Step:
        request = asked.EndExternalStepRequest(step_id=step.step_id, succeeded=failed is None, reason=failed or "")
        return await self.externals.end_step(request, ANN)

    async def end(self, job: jobs_pb2.Job, *, failed: str | None = None, force: bool = False) -> jobs_pb2.Job:
        request = asked.EndExternalJobRequest(
            job_id=job.job_id, succeeded=failed is None, reason=failed or "", force=force
        )
        return await self.externals.end_job(request, ANN)

    async def clear(self, job: jobs_pb2.Job) -> jobs_pb2.Job:
        return await self.externals.clear_job(job.job_id, ANN)

    async def beat(self, job: jobs_pb2.Job) -> jobs_pb2.Job:
        return await self.externals.heartbeat(job.job_id, ANN)


@pytest.fixture
def reporter(jobstore: RunningJobstore) -> Reporter:
    return Reporter(jobstore)


async def refusal(call: Awaitable[object]) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        await call
    return caught.value


async def stored(jobstore: RunningJobstore, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return await jobstore.reads.GetJob(jobstore_pb2.GetJobRequest(job_id=job.job_id))


async def events(jobstore: RunningJobstore, job: jobs_pb2.Job) -> list[str]:
    request = jobstore_pb2.ListEventsRequest(filter=f'job_id = "{job.job_id}"')
    return [event.event_type for event in (await jobstore.reads.ListEvents(request)).events]


async def violations(jobstore: RunningJobstore) -> list[jobstore_pb2.Violation]:
    return list((await jobstore.reads.CheckConsistency(jobstore_pb2.CheckConsistencyRequest())).violations)


@pytest.mark.rule("semantics §4: External jobs: another system reports its work")
async def test_a_job_is_reported_from_its_beginning_to_its_end(reporter: Reporter, jobstore: RunningJobstore) -> None:
    job = await reporter.begin(command_type="Backup", correlation_id="c-7")
    assert (job.status, job.external, job.owner, job.command_type) == (STARTED, True, "ann", "Backup")
    assert (job.correlation_id, job.flow_command_id, job.progress, job.visible) == ("c-7", "", 0, True)
    first = await reporter.step(job, "Copying", step_type="COPY", external_id="copy-1")
    below = [await reporter.step(job, f"Disk {number}", parent_step_id=first.step_id) for number in range(2)]
    second = await reporter.step(job, "Verifying")
    for step in (*below, first):
        await reporter.end_step(step)
    assert (await stored(jobstore, job)).progress == 75
    await reporter.end_step(second)
    ended = await reporter.end(job)
    assert (ended.status, ended.progress) == (FINISHED, 100)
    tree = await stored(jobstore, job)
    assert [(step.description, step.number, step.status, step.progress) for step in tree.steps] == [
        ("Copying", 0, FINISHED, 100),
        ("Disk 0", 0, FINISHED, 100),
        ("Disk 1", 1, FINISHED, 100),
        ("Verifying", 1, FINISHED, 100),
    ]
    assert {step.correlation_id for step in tree.steps} == {"c-7"}
    assert (tree.steps[0].external_id, tree.steps[0].external_system_type) == (
        "copy-1",
        jobs_pb2.EXTERNAL_SYSTEM_TYPE_EXTERNAL,
    )
    assert (await events(jobstore, job)) == [
        "JOB_STARTED",
        "STEP_STARTED",
        "STEP_STARTED",
        "STEP_STARTED",
        "STEP_STARTED",
        "STEP_ENDED",
        "STEP_ENDED",
        "STEP_ENDED",
        "STEP_ENDED",
        "JOB_ENDED",
    ]
    assert await violations(jobstore) == []


@pytest.mark.parametrize("text", ["", "   ", "\t"])
@pytest.mark.rule("semantics §4: a blank description is refused")
async def test_a_blank_description_is_refused_and_nothing_is_stored(
    text: str, reporter: Reporter, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    error = await refusal(reporter.begin(text))
    assert (error.reason, error.violations[0][0]) == ("REQUEST_INVALID", "description")
    job = await reporter.begin()
    assert (await refusal(reporter.step(job, text))).violations[0][0] == "description"
    assert await connection.fetchval("SELECT count(*) FROM job") == 1
    assert await connection.fetchval("SELECT count(*) FROM step") == 0


@pytest.mark.rule("semantics §4: a failed step fails the job and closes its open steps")
async def test_a_failed_step_fails_the_job_and_closes_its_open_steps(
    reporter: Reporter, jobstore: RunningJobstore
) -> None:
    job = await reporter.begin()
    done, above, other = [await reporter.step(job, name) for name in ("done", "above", "other")]
    failed = await reporter.step(job, "failed", parent_step_id=above.step_id)
    await reporter.end_step(done)
    assert (await reporter.end_step(failed, failed="no space left")).status == FAILED
    tree = await stored(jobstore, job)
    assert (tree.status, "no space left" in tree.error.message) == (FAILED, True)
    assert {step.description: step.status for step in tree.steps} == {
        "done": FINISHED,
        "above": FAILED,
        "failed": FAILED,
        "other": ABORTED,
    }
    assert tree.progress == 25
    assert (await refusal(reporter.step(job, "late"))).reason == "JOB_ENDED"
    assert (await refusal(reporter.end_step(other))).reason == "STEP_ENDED"
    assert (await refusal(reporter.end(job))).reason == "JOB_ENDED"
    assert await violations(jobstore) == []


@pytest.mark.rule("semantics §4: `force` aborts open steps and lets it be cleared")
async def test_force_aborts_open_steps_and_lets_the_job_be_cleared(
    reporter: Reporter, jobstore: RunningJobstore
) -> None:
    job = await reporter.begin(auto_cleared=False)
    step = await reporter.step(job)
    error = await refusal(reporter.end(job))
    assert (error.reason, error.metadata["step_id"]) == ("STEPS_OPEN", step.step_id)
    assert (await refusal(reporter.clear(job))).reason == "JOB_NOT_ENDED"
    ended = await reporter.end(job, force=True)
    assert (ended.status, ended.auto_cleared) == (ABORTED, True)
    assert [step.status for step in (await stored(jobstore, job)).steps] == [ABORTED]
    assert "JOB_FORCE_ENDED" in await events(jobstore, job)
    assert await violations(jobstore) == []


@pytest.mark.rule("semantics §4: ClearExternalJob")
async def test_an_ended_job_is_cleared_whole_and_watchers_are_told(
    reporter: Reporter, jobstore: RunningJobstore, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    job = await reporter.begin(subjects=[jobs_pb2.Subject(entity_type=VM, entity_id="vm-1")], heartbeat_seconds=60)
    await reporter.step(job)
    await reporter.end(job, force=True)
    changes = jobstore.reads.WatchJobs(jobstore_pb2.WatchJobsRequest())
    seen: list[str] = []
    async for message in changes:
        seen += [change.removed_job_id for change in message.changes if change.removed_job_id]
        if message.snapshot_done:
            assert (await reporter.clear(job)).status == ABORTED
        if seen:
            changes.cancel()
            break
    assert seen == [job.job_id]
    for table in ("job", "step", "job_subject_entity", "external_job", "event"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table
    assert (await refusal(reporter.clear(job))).reason == "JOB_NOT_FOUND"


class TestRepetitions:
    """Any answer may be lost."""

    pytestmark = pytest.mark.rule("semantics §4: Written by compare-and-set")

    async def test_a_report_whose_answer_was_lost_on_the_way_takes_effect_once(
        self, reporter: Reporter, jobstore: RunningJobstore
    ) -> None:
        reporter.line.lose_answers = 2
        job = await reporter.begin()
        reporter.line.lose_answers = 2
        step = await reporter.step(job)
        reporter.line.lose_answers = 2
        await reporter.end_step(step)
        reporter.line.lose_answers = 2
        await reporter.end(job)
        tree = await stored(jobstore, job)
        assert (tree.status, len(tree.steps)) == (FINISHED, 1)
        listed = await jobstore.reads.ListJobs(jobstore_pb2.ListJobsRequest())
        assert len(listed.jobs) == 1

    async def test_the_same_request_id_is_the_same_job_and_the_same_step(self, reporter: Reporter) -> None:
        job = await reporter.begin(request_id="r-1")
        assert (await reporter.begin(request_id="r-1")).job_id == job.job_id
        step = await reporter.step(job, request_id="s-1")
        assert (await reporter.step(job, request_id="s-1")).step_id == step.step_id
        await reporter.end_step(step)
        await reporter.end(job)
        assert (await reporter.step(job, request_id="s-1")).status == FINISHED
        assert (await reporter.begin(request_id="r-1")).status == FINISHED

    async def test_a_request_id_whose_job_was_cleared_is_refused(self, reporter: Reporter) -> None:
        job = await reporter.begin(request_id="r-1")
        await reporter.end(job)
        await reporter.clear(job)
        error = await refusal(reporter.begin(request_id="r-1"))
        assert (error.reason, error.metadata["job_id"]) == ("JOB_DELETED", job.job_id)

    async def test_a_request_id_with_another_body_is_refused(self, reporter: Reporter) -> None:
        job = await reporter.begin(request_id="r-1")
        error = await refusal(reporter.begin("Something else", request_id="r-1"))
        assert (error.reason, error.metadata["job_id"]) == ("REQUEST_ID_REUSED", job.job_id)
        await reporter.step(job, request_id="s-1")
        assert (await refusal(reporter.step(job, "Other", request_id="s-1"))).reason == "REQUEST_ID_REUSED"

    async def test_ending_again_is_answered_with_what_is_so(self, reporter: Reporter) -> None:
        job = await reporter.begin()
        step = await reporter.step(job)
        first = await reporter.end_step(step)
        assert await reporter.end_step(step) == first
        ended = await reporter.end(job)
        assert await reporter.end(job) == ended


@pytest.mark.rule("semantics §4: Written by compare-and-set; no coordinator owns them")
async def test_of_two_reports_at_once_one_wins_and_the_other_is_told(
    jobstore: RunningJobstore, another_jobstore: Callable[[], Awaitable[RunningJobstore]]
) -> None:
    one, other = Reporter(jobstore), Reporter(await another_jobstore())
    job = await one.begin()
    steps = [await one.step(job, f"step {number}") for number in range(8)]
    well, badly = (
        [reporter.end_step(step, failed=failed) for step in steps] for reporter, failed in ((one, None), (other, "no"))
    )
    said = await asyncio.gather(*well, *badly, return_exceptions=True)
    tree = await stored(jobstore, job)
    failed = [step.status for step in tree.steps].count(FAILED)
    assert (failed, tree.status) in ((1, FAILED), (0, STARTED))
    for step, succeeded, failing in zip(tree.steps, said[:8], said[8:], strict=True):
        assert isinstance(succeeded, WaybillError) == (step.status != FINISHED)
        assert isinstance(failing, WaybillError) == (step.status != FAILED)
    assert {error.reason for error in said if isinstance(error, WaybillError)} <= {"STEP_ENDED", "JOB_ENDED"}
    assert await violations(jobstore) == []


@pytest.mark.rule("semantics §4: Only on external jobs")
async def test_nothing_is_reported_of_other_jobs_or_of_none(
    reporter: Reporter, jobstore: RunningJobstore, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    nobody = jobs_pb2.Job(job_id=IDS.new())
    for call in (reporter.step(nobody), reporter.end(nobody), reporter.clear(nobody), reporter.beat(nobody)):
        assert (await refusal(call)).reason == "JOB_NOT_FOUND"
    assert (await refusal(reporter.end_step(jobs_pb2.Step(step_id=IDS.new())))).reason == "STEP_NOT_FOUND"
    job, other = await reporter.begin(), await reporter.begin()
    step = await reporter.step(other)
    assert (await refusal(reporter.step(job, parent_step_id=step.step_id))).reason == "STEP_NOT_FOUND"


@pytest.mark.inconsistent("plants what the check must find")
async def test_what_must_not_be_of_an_external_job_is_named(
    reporter: Reporter, jobstore: RunningJobstore, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Vacuity: the check knows these jobs, and finds what is planted."""
    job = await reporter.begin(heartbeat_seconds=60)
    await reporter.end_step(await reporter.step(job))
    await reporter.end(job)
    assert await violations(jobstore) == []
    await connection.execute("UPDATE external_job SET heartbeat_seconds = 60")
    await connection.execute("UPDATE step SET status = 'ABORTED'")
    assert {(each.rule, each.job_id) for each in await violations(jobstore)} == {
        ("ENDED_JOB_LISTENED_TO", job.job_id),
        ("FINISHED_WITH_UNFINISHED_WORK", job.job_id),
    }


async def test_names_of_subjects_are_kept_as_they_were(reporter: Reporter, jobstore: RunningJobstore) -> None:
    entity = jobs_pb2.Entity(entity_type=VM, entity_id="vm-1", name="mail")
    await jobstore.reads.PutEntities(jobstore_pb2.PutEntitiesRequest(entities=[entity]))
    subjects = [
        jobs_pb2.Subject(entity_type=VM, entity_id=entity_id, name=name)
        for entity_id, name in (("vm-1", ""), ("vm-2", ""), ("vm-3", "mine"))
    ]
    job = await reporter.begin(subjects=subjects)
    assert [subject.name for subject in job.subjects] == ["mail", "", "mine"]
    listed = await jobstore.reads.ListJobs(jobstore_pb2.ListJobsRequest(filter='entity = "VM/vm-1"'))
    assert [each.job_id for each in listed.jobs] == [job.job_id]


async def test_the_callers_trace_is_kept(reporter: Reporter) -> None:
    caller = Context("a" * 32, "b" * 16)
    job = await reporter.externals.add_job(asked.AddExternalJobRequest(description="traced"), ANN, caller)
    assert (job.trace_id, job.span_id) == ("a" * 32, "b" * 16)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("description", {"description": "x" * 1001}),
        ("description", {"description": "two\nlines"}),
        ("command_type", {"command_type": "x" * 257}),
        ("request_id", {"request_id": "x" * 257}),
        ("correlation_id", {"correlation_id": "not one"}),
        ("heartbeat_seconds", {"heartbeat_seconds": -1}),
        ("heartbeat_seconds", {"heartbeat_seconds": 2_592_001}),
        ("subjects[0].entity_id", {"subjects": [jobs_pb2.Subject(entity_type=VM)]}),
        ("subjects[0].entity_type", {"subjects": [jobs_pb2.Subject(entity_id="vm-1")]}),
        ("subjects", {"subjects": [jobs_pb2.Subject(entity_type=VM, entity_id="vm-1")] * 101}),
    ],
)
async def test_a_malformed_report_names_the_field(field: str, fields: dict[str, Any], reporter: Reporter) -> None:
    error = await refusal(reporter.begin(**{"description": "ok", **fields}))
    assert error.violations[0][0] == field


class TestHeartbeats:
    """Looks are taken by hand, with a clock that stands: no test waits for silence."""

    pytestmark = pytest.mark.rule("semantics §4: an optional heartbeat deadline ends a silent one as UNKNOWN")

    async def test_a_silent_job_ends_unknown_with_its_open_steps(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin(heartbeat_seconds=30)
        await reporter.end_step(await reporter.step(job, "done"))
        await reporter.step(job, "open")
        async with Looking(database_url) as looking:
            await looking.after(0)
            assert (await stored(jobstore, job)).status == STARTED
            await looking.after(30)
        tree = await stored(jobstore, job)
        assert (tree.status, [step.status for step in tree.steps]) == (UNKNOWN, [FINISHED, UNKNOWN])
        assert "silent for 30 s" in tree.error.message
        assert "HEARTBEAT_MISSED" in await events(jobstore, job)
        assert (await refusal(reporter.beat(job))).reason == "JOB_ENDED"
        assert (await refusal(reporter.end(job))).reason == "JOB_ENDED"
        assert await violations(jobstore) == []

    async def test_a_job_that_is_heard_of_goes_on(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        beating, reporting = await reporter.begin(heartbeat_seconds=30), await reporter.begin(heartbeat_seconds=30)
        async with Looking(database_url) as looking:
            await looking.after(0)
            revision = (await reporter.beat(beating)).revision
            await reporter.step(reporting)
            await looking.after(30)
            assert [(await stored(jobstore, job)).status for job in (beating, reporting)] == [STARTED, STARTED]
            assert (await stored(jobstore, beating)).revision == revision == beating.revision

    async def test_a_job_that_wants_no_listener_may_be_silent(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin()
        assert (await reporter.beat(job)).status == STARTED
        async with Looking(database_url) as looking:
            await looking.after(0)
            await looking.after(10_000_000)
        assert (await stored(jobstore, job)).status == STARTED

    async def test_many_listeners_end_a_silent_job_once(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin(heartbeat_seconds=5)
        async with Looking(database_url) as one, Looking(database_url) as other:
            await asyncio.gather(one.after(0), other.after(0))
            await asyncio.gather(one.after(5), other.after(5))
        assert (await stored(jobstore, job)).status == UNKNOWN
        assert (await events(jobstore, job)).count("HEARTBEAT_MISSED") == 1

    async def test_a_report_between_the_look_and_the_end_keeps_it_alive(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin(heartbeat_seconds=5)
        async with Looking(database_url) as looking:
            await reporter.beat(job)
            await looking.jobs.end_silent(job.job_id, 0, 5)  # as it was seen before
            assert (await stored(jobstore, job)).status == STARTED
            await looking.jobs.end_silent(job.job_id, 1, 5)
        assert (await stored(jobstore, job)).status == UNKNOWN

    async def test_a_listener_that_begins_anew_grants_the_whole_time(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        """A jobstore dies with what it has seen."""
        job = await reporter.begin(heartbeat_seconds=30)
        async with Looking(database_url) as died:
            await died.after(0)
            await died.after(29)
        async with Looking(database_url) as heir:
            await heir.after(0)
            await heir.after(29)
            assert (await stored(jobstore, job)).status == STARTED
            await heir.after(30)
        assert (await stored(jobstore, job)).status == UNKNOWN

    async def test_silence_does_not_count_while_no_coordinator_takes_reports(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin(heartbeat_seconds=60)
        async with Looking(database_url) as looking:
            await looking.after(0)
            looking.coordinator_lives = False
            await looking.after(60)
            assert (await stored(jobstore, job)).status == STARTED
            looking.coordinator_lives = True
            await looking.after(119)
            assert (await stored(jobstore, job)).status == STARTED
            await looking.after(120)
        assert (await stored(jobstore, job)).status == UNKNOWN

    async def test_a_running_listener_ends_it_by_itself(
        self, reporter: Reporter, jobstore: RunningJobstore, database_url: str
    ) -> None:
        job = await reporter.begin(heartbeat_seconds=1)
        async with Looking(database_url) as looking:
            listener = Listener(looking.pool, looking.jobs, SystemClock())
            request = jobstore_pb2.WatchJobsRequest(filter=f'job_id = "{job.job_id}"')
            async with listener:
                changes = jobstore.reads.WatchJobs(request)
                async for message in changes:
                    if any(change.upsert.status == UNKNOWN for change in message.changes):
                        changes.cancel()
                        break
        assert (await stored(jobstore, job)).status == UNKNOWN


class Hands:
    """A clock that somebody sets; nobody sleeps by it."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody should sleep")


class Looking:
    """A listener whose looks are taken by hand, while a coordinator lives."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self.coordinator_lives = True

    async def __aenter__(self) -> Looking:
        self._reading, self._beating = reading_pool(self._url), beating_pool(self._url)
        self.pool = await self._reading.__aenter__()
        self._journal = Journal(self._url, SystemClock())
        self.jobs = ExternalJobs(await self._beating.__aenter__(), await self._journal.__aenter__(), IDS)
        self._clock = Hands()
        self._listener = Listener(self.pool, self.jobs, self._clock)
        self._began = self._clock.time
        self._lease = await asyncpg.connect(self._url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lease.close()
        await self._journal.__aexit__(None, None, None)
        await self._beating.__aexit__(None, None, None)
        await self._reading.__aexit__(None, None, None)

    async def after(self, seconds: float) -> None:
        """Looks so many seconds after the first look."""
        self._clock.time = self._began + seconds
        if self.coordinator_lives:
            await self._renew_lease()
        await self._listener.look()

    async def _renew_lease(self) -> None:
        """Does what every coordinator does while it lives."""
        await self._lease.execute(
            """
            INSERT INTO coordinator_lease (counter, update_time, coordinator_id, address)
            VALUES (1, now(), 'coordinator-1', '')
            ON CONFLICT (coordinator_id) DO UPDATE SET counter = coordinator_lease.counter + 1
            """
        )
