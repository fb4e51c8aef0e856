"""Decides which commits of a batch are applied. Pure: what the store holds comes in, one verdict a commit comes out.

The store is read once for the whole batch, under the writers' mutex; then the commits are judged one after the other,
in order of arrival, each as if those before it had been applied already. So `Guards` changes as it is asked: a lock
taken, freed, a request id used by an earlier commit of the batch counts for a later one.

| guard | a commit is refused | with |
| --- | --- | --- |
| lease | whose coordinator has none | LEASE_LOST |
| ownership | of another coordinator or epoch than the flow's root says | STALE_EPOCH |
| sequence | that is neither the stored one (the same answer again) nor the next | SEQUENCE_MISMATCH |
| end | of a flow that has ended | JOB_ENDED |
| request id | that another request of the owner's has used (the same one: its job is the answer) | REQUEST_ID_REUSED |
| | whose job was deleted not long ago | JOB_DELETED |
| external job | that attaches its flow to one that is not there, not external, or over | JOB_NOT_FOUND … |
| locks | that wants what another flow holds, or queues for before it | LOCKED |
| dependencies | that is to wait for a job that there is not | JOB_NOT_FOUND |
| versions | that has read what has changed since | CONFLICT |

Nothing of a refused commit happens. That nothing can change between this judgement and the writing, nor between two
commits of two jobstores, is the mutex's doing (`journal.py`).

Locks are first come, first served: a place in the queue (`waits_since`, the revision that it was taken at) bars all
who come later, so who queues is never passed, and nothing is granted that would have to be taken back. Who is refused
and does not queue leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from chassis.errors import WaybillError, aborted, already_exists, failed_precondition, not_found
from jobstore.journal.external import Job as ExternalJob
from jobstore.journal.external import check_new_step
from jobstore.journal.rows import Key, key_of
from waybill.v1 import jobs_pb2, jobstore_pb2

ABSENT: Final = 0
"""The version of an entity that does not exist."""
UNSEEN: Final = -1
"""The version of an entity that an earlier commit of the batch has changed: nobody can have read it yet."""
_ENDED_BADLY: Final = frozenset(
    {
        jobs_pb2.EXECUTION_STATUS_FAILED,
        jobs_pb2.EXECUTION_STATUS_ABORTED,
        jobs_pb2.EXECUTION_STATUS_UNKNOWN,
        jobs_pb2.EXECUTION_STATUS_SKIPPED,
    }
)
LAST: Final = 1 << 62
"""The place in a queue of who joins it in this batch: after all who are there."""

_STATUS: Final = {number: name.removeprefix("EXECUTION_STATUS_") for name, number in jobs_pb2.ExecutionStatus.items()}


# --- what the store holds --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Root:
    """Who owns a flow and how far it has been written."""

    coordinator_id: str
    epoch: int
    sequence: int
    revision: int
    time: datetime
    """Revision and time of the last commit, to answer its repetition."""
    job_id: str
    correlation_id: str
    ended: bool
    command_type: str = ""
    traceparent: str = ""
    create_time: float = 0.0
    """In Unix seconds."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A flow that holds a lock."""

    flow_command_id: str
    job_id: str
    exclusive: bool
    reason: str
    waits_since: int = 0
    """0: it holds the lock. Else it queues for it, since that revision."""


@dataclass(slots=True)
class Guards:
    """What the store holds of all that the commits of a batch are guarded by."""

    leases: set[str] = field(default_factory=set)
    roots: dict[str, Root] = field(default_factory=dict)
    """By flow."""
    requests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """Job and hash by owner and request id."""
    spent_requests: dict[tuple[str, str], str] = field(default_factory=dict)
    """The same of deleted jobs; without the hash."""
    holders: dict[Key, list[Holder]] = field(default_factory=dict)
    versions: dict[Key, int] = field(default_factory=dict)
    external_jobs: dict[str, tuple[ExternalJob, int]] = field(default_factory=dict)
    """Jobs that flows are to be attached to, with the number of their steps, by id."""
    jobs: dict[str, str] | None = None
    """Status by id, of the jobs that flows are to wait for; None if none is to."""


# --- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Apply:
    """It is written."""

    locks: Sequence[jobstore_pb2.LockRow]
    """Those that the flow does not hold yet, or not yet exclusively."""
    correlation_id: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """It has been written before, and is answered as then."""

    revision: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Existing:
    """The request is known: its job is the answer, nothing is written."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It is not written, and neither is any part of it."""

    error: WaybillError


Verdict = Apply | Repeated | Existing | Refuse


def judge(guards: Guards, coordinator_id: str, commit: jobstore_pb2.FlowCommit) -> Verdict:
    """Judges one commit and notes what it changes for those after it."""
    verdict = (
        _check_lease(guards, coordinator_id)
        or _check_sequence(guards, coordinator_id, commit)
        or _check_request_id(guards, commit)
        or _check_external(guards, commit)
        or _check_locks(guards, commit)
        or _check_versions(guards, commit)
        or (_check_dependencies(guards, commit) if guards.jobs is not None else None)
    )
    return verdict or _apply(guards, commit)


def _check_lease(guards: Guards, coordinator_id: str) -> Verdict | None:
    return None if coordinator_id in guards.leases else Refuse(lease_lost(coordinator_id))


def lease_lost(coordinator_id: str) -> WaybillError:
    """Says that a coordinator must stop."""
    return failed_precondition("LEASE_LOST", f"coordinator {coordinator_id} has no lease; its flows are not its own")


def _check_sequence(guards: Guards, coordinator_id: str, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    root = guards.roots.get(commit.flow_command_id)
    if root is None:
        return None if commit.sequence == 1 and commit.HasField("new_job") else _mismatch(commit, 0)
    if (root.coordinator_id, root.epoch) != (coordinator_id, commit.epoch):
        return _stale(commit, root)
    if commit.sequence == root.sequence:
        return Repeated(root.revision, root.time)
    if commit.sequence != root.sequence + 1 or commit.HasField("new_job"):
        return _mismatch(commit, root.sequence)
    if root.ended:
        return Refuse(failed_precondition("JOB_ENDED", f"flow {commit.flow_command_id} has ended", job_id=root.job_id))
    return None


def _mismatch(commit: jobstore_pb2.FlowCommit, stored: int) -> Verdict:
    message = f"flow {commit.flow_command_id} is at sequence {stored}; {commit.sequence} does not follow"
    return Refuse(failed_precondition("SEQUENCE_MISMATCH", message, sequence=str(stored)))


def _stale(commit: jobstore_pb2.FlowCommit, root: Root) -> Verdict:
    message = f"flow {commit.flow_command_id} belongs to {root.coordinator_id} in epoch {root.epoch}"
    return Refuse(failed_precondition("STALE_EPOCH", message, epoch=str(root.epoch)))


def _check_request_id(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    try:
        job_id = known_job(guards, commit.new_job)
    except WaybillError as error:
        return Refuse(error)
    return Existing(job_id) if job_id else None


def known_job(guards: Guards, job: jobstore_pb2.JobRow) -> str:
    """Returns the job that the same request has made before, or nothing.

    Raises REQUEST_ID_REUSED, and JOB_DELETED if that job was deleted not long ago.
    """
    if not job.request_id:
        return ""
    known = guards.requests.get((job.owner, job.request_id))
    if known is not None:
        job_id, request_hash = known
        if request_hash == job.request_hash:
            return job_id
        message = f"request id {job.request_id} was used with another body"
        raise already_exists("REQUEST_ID_REUSED", message, job_id=job_id)
    if job_id := guards.spent_requests.get((job.owner, job.request_id), ""):
        message = f"the job of request id {job.request_id}, {job_id}, was deleted after it had ended"
        raise already_exists("JOB_DELETED", message, job_id=job_id)
    return ""


def _check_external(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    if not commit.external_job_id or not commit.HasField("new_job"):
        return None
    known = guards.external_jobs.get(commit.external_job_id)
    if known is None:
        job_id = commit.external_job_id
        return Refuse(not_found("JOB_NOT_FOUND", f"there is no job {job_id}", job_id=job_id))
    job, steps = known
    try:
        check_new_step(job, (), steps)
    except WaybillError as error:
        return Refuse(error)
    return None


def _check_locks(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    for lock in commit.locks:
        key = key_of(lock.entity)
        for holder in guards.holders.get(key, ()):
            if holder.flow_command_id != commit.flow_command_id and (lock.exclusive or holder.exclusive):
                if holder.waits_since and _is_before(guards.holders[key], commit.flow_command_id, holder):
                    continue
                return Refuse(locked(key, holder))
    return None


def _is_before(queue: Iterable[Holder], flow_command_id: str, other: Holder) -> bool:
    """Tells whether a flow has a place before another one's."""
    return any(
        holder.flow_command_id == flow_command_id
        and (
            not holder.waits_since or (holder.waits_since, flow_command_id) < (other.waits_since, other.flow_command_id)
        )
        for holder in queue
    )


def _check_dependencies(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    assert guards.jobs is not None
    for dependency in commit.dependencies:
        if dependency.job_id not in guards.jobs:
            message = f"there is no job {dependency.job_id} to depend on"
            return Refuse(not_found("JOB_NOT_FOUND", message, job_id=dependency.job_id))
    return None


def locked(key: Key, holder: Holder) -> WaybillError:
    """Says who holds an entity, and why."""
    entity_type, entity_id = key
    has_it = "is queued for by" if holder.waits_since else "is locked by"
    return failed_precondition(
        "LOCKED",
        f"{entity_type} {entity_id} {has_it} job {holder.job_id}: {holder.reason}",
        job_id=holder.job_id,
        holder_reason=holder.reason,
        entity_type=entity_type,
        entity_id=entity_id,
    )


def _check_versions(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Verdict | None:
    for read in commit.read_versions:
        key = key_of(read.entity)
        if guards.versions.get(key, ABSENT) != read.version:
            message = f"{key[0]} {key[1]} has changed since version {read.version} was read"
            return Refuse(aborted("CONFLICT", message, entity_type=key[0], entity_id=key[1]))
    return None


# --- what a commit changes for those after it ------------------------------------------------------------------------


def _apply(guards: Guards, commit: jobstore_pb2.FlowCommit) -> Apply:
    if commit.HasField("new_job"):
        correlation_id = commit.new_job.correlation_id
        _use_request_id(guards, commit)
        if guards.jobs is not None:
            guards.jobs[commit.job_id] = _STATUS[commit.new_job.status]
    else:
        correlation_id = guards.roots[commit.flow_command_id].correlation_id
    if commit.ends_wait:
        _leave_queues(guards, commit.flow_command_id)
    locks = _locks_to_take(guards, commit)
    _queue(guards, commit)
    if commit.ends_flow:
        free_locks(guards, commit.flow_command_id)
        locks = []
    if commit.external_job_id in guards.external_jobs:
        _note_external(guards, commit)
    for change in commit.entities:
        guards.versions[key_of(change.entity)] = ABSENT if change.remove else UNSEEN
    return Apply(locks, correlation_id)


def _use_request_id(guards: Guards, commit: jobstore_pb2.FlowCommit) -> None:
    job = commit.new_job
    if job.request_id:
        guards.requests[job.owner, job.request_id] = (commit.job_id, job.request_hash)


def _note_external(guards: Guards, commit: jobstore_pb2.FlowCommit) -> None:
    """An external job has a step more, or has failed with the flow that is attached to it."""
    job, steps = guards.external_jobs[commit.external_job_id]
    status = commit.new_job.status if commit.HasField("new_job") else commit.job.status
    if status in _ENDED_BADLY:
        job = ExternalJob(job.job_id, job.external, "FAILED")
    guards.external_jobs[commit.external_job_id] = (job, steps + commit.HasField("new_job"))


def _locks_to_take(guards: Guards, commit: jobstore_pb2.FlowCommit) -> list[jobstore_pb2.LockRow]:
    """Returns the wanted locks less those that the flow holds, each once, and enters the flow as their holder."""
    wanted: dict[Key, jobstore_pb2.LockRow] = {}
    for lock in commit.locks:
        key = key_of(lock.entity)
        if not lock.passing and (key not in wanted or (lock.exclusive and not wanted[key].exclusive)):
            wanted[key] = lock
    taken = []
    for key, lock in wanted.items():
        holders = guards.holders.setdefault(key, [])
        ours = [holder for holder in holders if holder.flow_command_id == commit.flow_command_id]
        if not any(holder.exclusive or not lock.exclusive for holder in ours):
            holders[:] = [holder for holder in holders if holder not in ours]
            holders.append(Holder(commit.flow_command_id, commit.job_id, lock.exclusive, lock.reason))
            taken.append(lock)
    return taken


def _queue(guards: Guards, commit: jobstore_pb2.FlowCommit) -> None:
    """Enters the flow at the end of the queues that it joins."""
    for lock in commit.lock_waits:
        queue = guards.holders.setdefault(key_of(lock.entity), [])
        if all(holder.flow_command_id != commit.flow_command_id for holder in queue):
            queue.append(Holder(commit.flow_command_id, commit.job_id, lock.exclusive, lock.reason, LAST))


def _leave_queues(guards: Guards, flow_command_id: str) -> None:
    for holders in guards.holders.values():
        holders[:] = [each for each in holders if each.flow_command_id != flow_command_id or not each.waits_since]


def free_locks(guards: Guards, flow_command_id: str) -> None:
    """Takes a flow off all locks."""
    for holders in guards.holders.values():
        holders[:] = [holder for holder in holders if holder.flow_command_id != flow_command_id]


def judge_all(guards: Guards, commits: Iterable[tuple[str, jobstore_pb2.FlowCommit]]) -> list[Verdict]:
    """Judges the commits of (coordinator, commit) in order. A flow may come only once: its root is judged as stored."""
    return [judge(guards, coordinator_id, commit) for coordinator_id, commit in commits]


def all_or_none(commits: Sequence[jobstore_pb2.FlowCommit], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Makes one of the verdicts of a group: all of them are applied, or known already, or none is.

    A refusal keeps its own words; those that would have been applied are refused because of it. A group some of whose
    request ids are known belongs to another call.
    """
    for commit, verdict in zip(commits, verdicts, strict=True):
        if isinstance(verdict, Refuse):
            return [each if isinstance(each, Refuse) else _because_of(commit, verdict) for each in verdicts]
    if len({type(verdict) for verdict in verdicts}) <= 1:
        return list(verdicts)
    message = "some of the request ids were used before in another call, others were not"
    return [Refuse(already_exists("REQUEST_ID_REUSED", message)) for _ in verdicts]


def _because_of(commit: jobstore_pb2.FlowCommit, verdict: Refuse) -> Refuse:
    if verdict.error.reason == "LEASE_LOST":
        return verdict
    message = f"job {commit.job_id} of the same group was refused: {verdict.error.message}"
    return Refuse(aborted("GROUP_REFUSED", message, job_id=commit.job_id, cause=verdict.error.reason))
