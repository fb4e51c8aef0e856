"""One transaction of the journal: a batch of commits judged, written and answered.

Turn (has the mutex) ─▶ guards read ─▶ verdicts ─▶ rows gathered by table ─▶ written ─▶ answers, told after COMMIT
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from google.protobuf.timestamp_pb2 import Timestamp

from chassis import logs
from chassis.errors import WaybillError
from jobstore.journal import rows, statements
from jobstore.journal.declarations import Declarations
from jobstore.journal.externalturn import follow, read_external_jobs
from jobstore.journal.guards import (
    Apply,
    Existing,
    Guards,
    Holder,
    Refuse,
    Repeated,
    Root,
    Verdict,
    all_or_none,
    judge,
    lease_lost,
)
from jobstore.journal.parts import Commit, Notes, Turn
from jobstore.journal.rows import Key, key_of
from jobstore.journal.shapes import Row
from jobstore.journal.writer import Writer
from jobstore.messages import EXECUTION_STATUS, entity_message, job_message, timestamp
from jobstore.metrics import JournalTallies
from waybill.v1 import jobs_pb2, jobstore_pb2

log = logs.get_logger(__name__)

# --- the transaction -------------------------------------------------------------------------------------------------


async def transact(
    batch: Sequence[Commit | Notes], metrics: JournalTallies, turn: Turn, *, together: bool = False
) -> Callable[[], None]:
    """Judges and writes a batch; returns what tells the callers, to be called when it is committed.

    `together`: all of it, or nothing.
    """
    commits = [part for part in batch if isinstance(part, Commit)]
    notes = [part for part in batch if isinstance(part, Notes)]
    guards = await _guards_of(batch, turn.writer)
    stored = frozenset(guards.versions)
    verdicts = [(part, judge(guards, part.coordinator_id, part.commit)) for part in commits]
    if together:
        judged = all_or_none([part.commit for part in commits], [verdict for _, verdict in verdicts])
        verdicts = list(zip(commits, judged, strict=True))
    applied = [(part, verdict) for part, verdict in verdicts if isinstance(verdict, Apply)]
    if applied:
        turn.changed = True
        await _write(turn, _gather(applied, stored))
    attached = [await follow(turn, part.commit) for part, _ in applied if part.commit.external_job_id]
    await _write_notes(turn, [note for note in notes if note.coordinator_id in guards.leases])
    answers = await _answers(turn, verdicts)

    def tell() -> None:
        for part, answer in answers:
            part.answer(answer)
        for note in notes:
            note.answer(None if note.coordinator_id in guards.leases else lease_lost(note.coordinator_id))
        metrics.settled(verdicts, guards.roots, turn.time, len(commits))
        _log(applied, guards.roots, turn.revision)
        for report in attached:
            report.log()

    return tell


def _log(applied: Iterable[tuple[Commit, Apply]], roots: Mapping[str, Root], revision: int) -> None:
    """Writes a line for each job that was begun or has ended; none for its progress."""
    for part, verdict in applied:
        commit = part.commit
        if commit.HasField("new_job"):
            status, command_type, trace_id = commit.new_job.status, commit.new_job.command_type, commit.new_job.trace_id
        elif commit.job.status in _UNFINISHED:  # of a change: as it was
            continue
        else:
            root = roots[commit.flow_command_id]
            # As the coordinator made it of its caller's: version, trace …
            status, command_type, trace_id = commit.job.status, root.command_type, root.traceparent[3:35]
        log.info(
            "job changed status",
            status=jobs_pb2.ExecutionStatus.Name(status).removeprefix("EXECUTION_STATUS_"),
            command_type=command_type,
            job_id=commit.job_id,
            correlation_id=verdict.correlation_id,
            trace_id=trace_id,
            revision=revision,
        )


_UNFINISHED: Final = frozenset(
    {
        jobs_pb2.EXECUTION_STATUS_UNSPECIFIED,
        jobs_pb2.EXECUTION_STATUS_PENDING,
        jobs_pb2.EXECUTION_STATUS_STARTED,
    }
)


# --- guards ----------------------------------------------------------------------------------------------------------


async def _guards_of(batch: Sequence[Commit | Notes], writer: Writer) -> Guards:
    commits = [part.commit for part in batch if isinstance(part, Commit)]
    jobs = [commit.new_job for commit in commits if commit.new_job.request_id]
    read = {key_of(read.entity) for commit in commits for read in commit.read_versions}
    changed = {key_of(change.entity) for commit in commits for change in commit.entities}
    guards = await read_guards(
        writer,
        coordinators={part.coordinator_id for part in batch},
        flows=[commit.flow_command_id for commit in commits],
        requests={(job.owner, job.request_id) for job in jobs},
        locks={key_of(lock.entity) for commit in commits for lock in commit.locks},
        entities=read | changed,
    )
    external_jobs = {commit.external_job_id for commit in commits if commit.external_job_id}
    if external_jobs:
        guards.external_jobs = await read_external_jobs(writer, external_jobs)
    if depended := {each.job_id for commit in commits for each in commit.dependencies}:
        guards.jobs = await _statuses(writer, depended)
    return guards


async def _statuses(writer: Writer, job_ids: Iterable[str]) -> dict[str, str]:
    return dict(map(tuple, await writer.fetch(statements.READ_DEPENDED, list(job_ids))))


async def read_guards(
    writer: Writer,
    *,
    coordinators: Collection[str] = (),
    flows: Collection[str] = (),
    requests: Iterable[tuple[str, str]] = (),
    locks: Iterable[Key] = (),
    entities: Iterable[Key] = (),
) -> Guards:
    """Reads, in one question, what the store holds of leases, flows, (owner, request id)s, locks and entities."""
    columns = (*arrays_of(requests), *arrays_of(locks), *arrays_of(entities))
    [row] = await writer.fetch(statements.READ_GUARDS, list(coordinators), list(flows), *columns)
    guards = Guards(
        leases=set(row["leases"]),
        roots={command_id: Root(*root) for command_id, *root in row["roots"]},
        requests={(owner, request_id): (job_id, hash_) for owner, request_id, job_id, hash_ in row["requests"]},
        spent_requests={(owner, request_id): job_id for owner, request_id, job_id in row["spent_requests"]},
        versions={(entity_type, entity_id): version for entity_type, entity_id, version in row["versions"]},
    )
    for entity_type, entity_id, *holder in row["locks"]:
        guards.holders.setdefault((entity_type, entity_id), []).append(Holder(*holder))
    return guards


def arrays_of(pairs: Iterable[tuple[str, str]]) -> tuple[Sequence[str], Sequence[str]]:
    """Turns pairs into two arrays."""
    columns = tuple(zip(*pairs, strict=True))
    return cast(tuple[Sequence[str], Sequence[str]], columns or ((), ()))


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Gathered(rows.Rows):
    """The rows of all applied commits. Those that are of a flow without being its job's need its correlation id."""

    step_correlations: list[str] = field(default_factory=list)
    command_correlations: list[str] = field(default_factory=list)
    task_correlations: list[str] = field(default_factory=list)
    event_correlations: list[str] = field(default_factory=list)
    locks: list[Row] = field(default_factory=list)
    ended_flows: list[str] = field(default_factory=list)
    ended_waits: list[str] = field(default_factory=list)
    handled_requests: list[str] = field(default_factory=list)
    declarations: Declarations = field(default_factory=lambda: Declarations(()))


def _gather(applied: Iterable[tuple[Commit, Apply]], stored: frozenset[Key]) -> _Gathered:
    gathered = _Gathered(declarations=Declarations(stored))
    for part, verdict in applied:
        _gather_rows(gathered, part.rows, verdict.correlation_id)
        commit = part.commit
        gathered.locks += rows.lock_rows(commit, verdict.locks)
        gathered.handled_requests += commit.handled_requests
        for change in commit.entities:
            gathered.declarations.change(change)
        if commit.ends_flow:
            gathered.ended_flows.append(commit.flow_command_id)
        if commit.ends_wait:
            gathered.ended_waits.append(commit.flow_command_id)
    return gathered


def _gather_rows(gathered: _Gathered, more: rows.Rows, correlation_id: str) -> None:
    gathered.jobs += more.jobs
    gathered.child_jobs += more.child_jobs
    gathered.subjects += more.subjects
    gathered.names += more.names
    gathered.more_subjects += more.more_subjects
    gathered.job_changes += more.job_changes
    gathered.steps += more.steps
    gathered.step_changes += more.step_changes
    gathered.commands += more.commands
    gathered.command_changes += more.command_changes
    gathered.tasks += more.tasks
    gathered.task_changes += more.task_changes
    gathered.snapshots += more.snapshots
    gathered.events += more.events
    gathered.dependencies += more.dependencies
    gathered.places += more.places
    gathered.priorities += more.priorities
    gathered.step_correlations += [correlation_id] * len(more.steps)
    gathered.command_correlations += [correlation_id] * len(more.commands)
    gathered.task_correlations += [correlation_id] * len(more.tasks)
    gathered.event_correlations += [correlation_id] * len(more.events)


async def _write(turn: Turn, gathered: _Gathered) -> None:
    """Writes what the applied commits say."""
    await _end_flows(turn.writer, gathered)
    await _insert(turn, gathered)
    await _change(turn, gathered)
    await declare(turn, gathered.declarations)


async def _end_flows(writer: Writer, gathered: _Gathered) -> None:
    """Frees what ended flows hold; before anything is taken, because it may be by another flow of the batch."""
    if gathered.ended_flows:
        await writer.change(statements.END_FLOWS, gathered.ended_flows)
    if gathered.ended_waits:
        await writer.change(statements.END_WAITS, gathered.ended_waits)
    if gathered.handled_requests:
        await writer.change(statements.HANDLE_REQUESTS, gathered.handled_requests)


async def _insert(turn: Turn, new: _Gathered) -> None:
    """Writes what is new, in the order of the foreign keys."""
    insert, revision, time = turn.writer.insert, turn.revision, turn.time
    await insert(statements.INSERT_JOBS, revision, time, rows=new.jobs)
    await insert(statements.INSERT_CHILD_JOBS, revision, time, rows=new.child_jobs)
    await insert(statements.INSERT_SUBJECTS, rows=new.subjects)
    await insert(statements.INSERT_MORE_SUBJECTS, rows=new.more_subjects)
    await insert(statements.INSERT_STEPS, revision, time, rows=new.steps, last=new.step_correlations)
    await insert(statements.INSERT_COMMANDS, revision, time, rows=new.commands, last=new.command_correlations)
    await insert(statements.INSERT_TASKS, time, rows=new.tasks, last=new.task_correlations)
    await insert(statements.INSERT_LOCKS, time, rows=new.locks)
    await insert(statements.INSERT_DEPENDENCIES, rows=new.dependencies)
    await insert(statements.INSERT_PLACES, revision, time, rows=new.places)
    await insert(statements.INSERT_SNAPSHOTS, rows=new.snapshots)
    await insert(statements.INSERT_EVENTS, time, rows=new.events, last=new.event_correlations)


async def _change(turn: Turn, changed: _Gathered) -> None:
    """Writes what has changed; each change must find its row."""
    change_each, revision, time = turn.writer.change_each, turn.revision, turn.time
    await change_each(statements.CHANGE_JOBS, revision, time, rows=changed.job_changes)
    await change_each(statements.CHANGE_PRIORITIES, rows=changed.priorities)
    await change_each(statements.NAME_JOBS, rows=changed.names)
    await change_each(statements.CHANGE_STEPS, revision, time, rows=changed.step_changes)
    await change_each(statements.CHANGE_COMMANDS, revision, time, rows=changed.command_changes)
    await change_each(statements.CHANGE_TASKS, time, rows=changed.task_changes)


async def declare(turn: Turn, declarations: Declarations) -> None:
    """Writes declared changes of entities, folded before."""
    writer, revision = turn.writer, turn.revision
    await writer.insert(statements.CREATE_ENTITIES, revision, rows=declarations.created)
    await writer.change_each(statements.CHANGE_ENTITIES, revision, rows=declarations.changed)
    await writer.change_each(statements.REMOVE_ENTITIES, revision, turn.time, rows=declarations.removed)


async def _write_notes(turn: Turn, notes: Sequence[Notes]) -> None:
    """Writes what hosts reported and forgot, and events of no flow. What is known already changes nothing."""
    observations = rows.newest(seen for note in notes for seen in note.observations)
    cleared = [task_id for note in notes for task_id in note.cleared_task_ids]
    events = [event for note in notes for event in note.events]
    correlations = [correlation_id for note in notes for correlation_id in note.correlation_ids]
    changed = 0
    for seen_once in observations:
        changed += await turn.writer.insert(statements.OBSERVE, turn.revision, rows=seen_once)
    changed += await turn.writer.insert(statements.INSERT_EVENTS_OF_NO_FLOW, turn.time, rows=events, last=correlations)
    told = {event[0]: event for note in notes for event in note.task_events}
    changed += await turn.writer.insert(statements.INSERT_EVENTS_OF_TASKS, turn.time, rows=list(told.values()))
    if cleared:
        changed += await turn.writer.change(statements.CLEAR_TASKS, cleared)
    turn.changed = turn.changed or changed > 0


# --- answers ---------------------------------------------------------------------------------------------------------

Answer = jobstore_pb2.FlowCommitResult | WaybillError


async def _answers(turn: Turn, verdicts: Sequence[tuple[Commit, Verdict]]) -> list[tuple[Commit, Answer]]:
    """Returns what is to be said of each commit, with what it asked to be told, as things are after the batch."""
    jobs = await _existing_jobs(
        turn.writer, [verdict.job_id for _, verdict in verdicts if isinstance(verdict, Existing)]
    )
    wanted = {key_of(ref) for part, _ in verdicts for ref in part.commit.report_entities}
    entities = await read_entities(turn.writer, wanted)
    now = timestamp(turn.time)
    answers = [(part, _answer(part.commit, verdict, turn.revision, now, jobs, entities)) for part, verdict in verdicts]
    await _tell_dependencies(turn.writer, answers)
    return answers


async def _tell_dependencies(writer: Writer, answers: Sequence[tuple[Commit, Answer]]) -> None:
    """Says how the jobs are that flows have begun to wait for, as things are after the batch."""
    depended = {each.job_id for part, _ in answers for each in part.commit.dependencies}
    statuses = await _statuses(writer, depended) if depended else {}
    for part, answer in answers:
        if part.commit.dependencies and isinstance(answer, jobstore_pb2.FlowCommitResult):
            for each in part.commit.dependencies:
                status = EXECUTION_STATUS[statuses.get(each.job_id)]
                answer.dependencies.add(job_id=each.job_id, policy=each.policy, status=status)


def _answer(
    commit: jobstore_pb2.FlowCommit,
    verdict: Verdict,
    revision: int,
    now: Timestamp | None,
    jobs: Mapping[str, jobs_pb2.Job],
    entities: Mapping[Key, jobs_pb2.Entity],
) -> Answer:
    match verdict:
        case Refuse(error):
            return error if error.reason == "LEASE_LOST" else jobstore_pb2.FlowCommitResult(error=error.to_status())
        case Existing(job_id):
            return jobstore_pb2.FlowCommitResult(existing_job=jobs[job_id])
        case Repeated(revision, time):
            now = timestamp(time)
    return jobstore_pb2.FlowCommitResult(
        revision=revision, time=now, entities=as_asked(commit.report_entities, entities)
    )


async def _existing_jobs(writer: Writer, job_ids: Sequence[str]) -> dict[str, jobs_pb2.Job]:
    if not job_ids:
        return {}
    return {row["job_id"]: job_message(row) for row in await writer.fetch(statements.READ_JOBS, job_ids)}


async def read_entities(writer: Writer, keys: Collection[Key]) -> dict[Key, jobs_pb2.Entity]:
    """Returns those of the entities that exist."""
    if not keys:
        return {}
    found = await writer.fetch(statements.READ_ENTITIES, *arrays_of(keys))
    return {(row["entity_type"], row["entity_id"]): entity_message(row) for row in found}


def as_asked(
    refs: Iterable[jobstore_pb2.EntityRef], entities: Mapping[Key, jobs_pb2.Entity]
) -> Iterator[jobs_pb2.Entity]:
    """Yields entities in the order asked; an absent one has version 0."""
    for ref in refs:
        absent = jobs_pb2.Entity(entity_type=ref.entity_type, entity_id=ref.entity_id)
        yield entities.get(key_of(ref), absent)
