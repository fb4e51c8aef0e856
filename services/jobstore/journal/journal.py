"""The journal: everything that is ever written about flows goes through here, in one order.

A *commit* is one flow's mutations under (owner, epoch, sequence). A *transaction* takes many commits, of many callers,
and one revision. While one is on its way the next gathers; there is no timer, so an idle journal writes at once and a
busy one writes much.

    commit() ──▶ waiting ──gather──▶ one transaction (transaction.py):
                                       take turn     UPDATE head …, whose row lock is the writers' mutex
                                       read guards   in one question, after the lock: nothing can change any more
                                       judge         in memory, in order of arrival (guards.py)
                                       write         one statement a table (statements.py)
                                       COMMIT ─────▶ callers answered   (nothing to apply: ROLLBACK, no revision)

The mutex is what the promises rest on: revisions have no gaps and are in the order of the commits, because the next
writer, in this process or another, gets its number only when the last one is committed or gone; and guards that were
read after it cannot be outdated when they are acted on.

A group of flows that begin together is a transaction of its own: all of its commits are applied, or none.

| goes wrong | what happens |
| --- | --- |
| a guard refuses a commit | it alone is refused, nothing of it stays; the others are applied |
| Postgres refuses the rows of a batch | rolled back; its halves go alone, and theirs, until the culprit is alone |
| connection lost, also in COMMIT | unknown: the same parts again; a commit that was applied is known by its sequence |
| Postgres does not answer | after a while the connection is cut, and it is as above; a COMMIT is never cancelled |
| Postgres stays away | callers are told UNAVAILABLE; they send the same again |
| disk full | commits that begin a flow are refused for a while; all others are tried: they end things |
| a caller goes away | its commits go on: nobody can say that they did not |
| we are paused with the mutex | Postgres ends our transaction after 2 s (writer.py) |
| we are killed | committed or not, never half; the callers ask another jobstore |

A flow comes at most once in a transaction (each change of a row is one row of an `unnest`), so where one would come
again the batch ends before it. What is rare and no commit (claims, entities declared by hand, intents) takes its turn
as a transaction of its own: `alone`.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from chassis import logs
from chassis.clock import Clock
from chassis.errors import WaybillError, internal, invalid_argument, invalid_field, resource_exhausted, unavailable
from chassis.server import end_process
from jobstore.journal.parts import Commit, Group, Notes, Part, Turn
from jobstore.journal.transaction import transact
from jobstore.journal.writer import DiskFull, Lost, Misfit, Writer, understood
from jobstore.metrics import JournalTallies
from waybill.v1 import jobstore_pb2

LARGEST_GROUP: Final = 1000
"""Commits that are applied together or not at all."""
LARGEST_BATCH: Final = 512
"""Commits in a transaction: beyond that, longer waits buy nothing."""
PATIENCE: Final = 8.0
"""How long callers are kept waiting while Postgres is away; less than they wait for an answer."""
LONGEST_PAUSE: Final = 0.5
DISK_FULL_SECONDS: Final = 5.0
"""How long no flow is begun after the disk was found full."""

T = TypeVar("T")
Batch = Sequence[Commit | Notes]

log = logs.get_logger(__name__)


class Alone(Part[T]):
    """A transaction of its own. `work` notes in its turn whether it has changed anything, and answers."""

    def __init__(self, work: Callable[[Turn], Awaitable[T]], *, repeatable: bool) -> None:
        super().__init__()
        self.work = work
        self.repeatable = repeatable


class Journal:
    """Writes in one order. Entered, it owns the task that takes the turns and, once needed, a connection."""

    def __init__(self, url: str, clock: Clock, on_defect: Callable[[str], None] = end_process) -> None:
        """`on_defect` is called if the task that takes the turns ends by itself, which it never should."""
        self._on_defect = on_defect
        self._writer = Writer(url)
        self._clock = clock
        self._waiting: deque[Commit | Notes | Alone[Any] | Group] = deque()
        self._something = asyncio.Event()
        self._closing = False
        self._full_until = 0.0  # on the monotonic clock
        self._task: asyncio.Task[None] | None = None  # None unless entered
        self.metrics = JournalTallies(
            waiting=lambda: len(self._waiting),
            disk_full=lambda: self._disk_is_full,
        )

    async def __aenter__(self) -> Journal:
        self._task = asyncio.create_task(self._take_turns(), name="journal")
        self._task.add_done_callback(self._stopped)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Takes nothing more, lets what waits have its turn, and closes the connection."""
        assert self._task is not None
        self._closing = True
        self._something.set()
        await asyncio.shield(asyncio.wait([self._task]))
        await self._writer.close()
        self._task.result()

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """A journal that takes calls and answers none would be worse than none."""
        if not task.cancelled() and (error := task.exception()):
            log.critical("the journal stopped", exc_info=error)
            self._on_defect("the journal stopped")

    # -- for callers --------------------------------------------------------------------------------------------------

    async def commit(self, request: jobstore_pb2.CommitRequest) -> list[jobstore_pb2.FlowCommitResult]:
        """Applies or refuses each commit of the request, and returns what became of them, in order.

        Raises LEASE_LOST if the coordinator has no lease, UNAVAILABLE if nobody knows what became of it, and
        INVALID_ARGUMENT if its notes cannot be read.
        """
        if request.all_or_nothing:
            return await self._commit_together(request)
        notes = Notes(request) if request.observations or request.cleared_task_ids or request.events else None
        commits = [_commit_or_refusal(request.coordinator_id, commit) for commit in request.commits]
        self._enqueue(commit for commit in commits if isinstance(commit, Commit))
        if notes is not None:
            self._enqueue([notes])
            await notes.result()
        return [await commit.result() if isinstance(commit, Commit) else commit for commit in commits]

    async def _commit_together(self, request: jobstore_pb2.CommitRequest) -> list[jobstore_pb2.FlowCommitResult]:
        if request.observations or request.cleared_task_ids or request.events:
            raise invalid_field("all_or_nothing", "is for commits alone")
        if len(request.commits) > LARGEST_GROUP:
            raise invalid_field("commits", f"are {len(request.commits)}; at most {LARGEST_GROUP} go together")
        if len({commit.flow_command_id for commit in request.commits}) < len(request.commits):
            raise invalid_field("commits", "at most one a flow")
        group = Group([Commit(request.coordinator_id, commit) for commit in request.commits])
        if group.commits:
            self._enqueue([group])
        return [await commit.result() for commit in group.commits]

    async def alone(self, work: Callable[[Turn], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Runs `work` in a transaction of its own, in its turn, and returns its answer.

        What is not repeatable is not tried again once nobody knows whether it was committed: UNAVAILABLE.
        """
        part = Alone(work, repeatable=repeatable)
        self._enqueue([part])
        return await part.result()

    def _enqueue(self, parts: Iterable[Commit | Notes | Alone[Any] | Group]) -> None:
        if self._closing:
            raise unavailable("the jobstore is going down", reason="SHUTTING_DOWN")
        self._waiting.extend(parts)
        self._something.set()

    # -- turns --------------------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        while await self._something_waits():
            first = self._waiting[0]
            if isinstance(first, Alone):
                self._waiting.popleft()
                await self._settle_alone(first)
            elif isinstance(first, Group):
                self._waiting.popleft()
                await self._settle_group(first)
            else:
                await self._settle(self._gather())

    async def _something_waits(self) -> bool:
        """Waits until something waits; returns False when nothing ever will."""
        while not self._waiting and not self._closing:
            self._something.clear()
            await self._something.wait()
        return bool(self._waiting)

    def _gather(self) -> Batch:
        """Takes what may go into one transaction off the queue, in order."""
        batch: list[Commit | Notes] = []
        flows: set[str] = set()
        while self._waiting and len(batch) < LARGEST_BATCH:
            part = self._waiting[0]
            if isinstance(part, Alone | Group):
                break
            if isinstance(part, Commit):
                if part.commit.flow_command_id in flows:
                    break
                flows.add(part.commit.flow_command_id)
            batch.append(part)
            self._waiting.popleft()
        return batch

    async def _settle(self, batch: Batch) -> None:
        """Has every part of a batch answered, whatever it takes."""
        patience = Patience(self._clock, PATIENCE)
        while batch:
            if self._disk_is_full:
                batch = self._refuse_beginnings(batch)
            try:
                await self._perform(functools.partial(transact, batch, self.metrics))
                batch = ()
            except Misfit as error:
                batch = await self._without_culprit(batch, error)
            except DiskFull as error:
                self._full_until = self._clock.monotonic() + DISK_FULL_SECONDS
                log.error("the disk is full; no flow is begun for a while", error=str(error))
                if not any(map(_begins_flow, batch)):
                    batch = await self._once_more(batch, patience, error)
            except Lost as error:
                batch = await self._once_more(batch, patience, error)

    async def _without_culprit(self, batch: Batch, error: Misfit) -> Batch:
        """Settles the first half of a batch and returns the second; a part that is alone is the culprit."""
        if len(batch) == 1:
            _blame(batch[0], error)
            self.metrics.refused("INTERNAL" if error.defect else "REQUEST_INVALID")
        middle = len(batch) // 2
        await self._settle(batch[:middle])
        return batch[middle:] if len(batch) > 1 else ()

    async def _once_more(self, batch: Batch, patience: Patience, error: Exception) -> Batch:
        """Waits a little and returns the batch, or gives it up and returns nothing."""
        if not self._closing and await patience.pause():
            return batch
        self._give_up(batch, error)
        return ()

    async def _settle_group(self, group: Group) -> None:
        """As `_settle`, but whole: nobody is looked for who is to blame alone."""
        patience = Patience(self._clock, PATIENCE)
        batch: Batch = group.commits
        while batch:
            if self._disk_is_full:
                batch = self._refuse_beginnings(batch)
            try:
                return await self._perform(functools.partial(transact, batch, self.metrics, together=True))
            except Misfit as error:
                for part in batch:
                    _blame(part, error)
                return None
            except DiskFull as error:
                self._full_until = self._clock.monotonic() + DISK_FULL_SECONDS
                log.error("the disk is full; no flow is begun for a while", error=str(error))
            except Lost as error:
                batch = await self._once_more(batch, patience, error)
        return None

    async def _settle_alone(self, part: Alone[Any]) -> None:
        patience = Patience(self._clock, PATIENCE)
        while True:
            try:
                return await self._perform(functools.partial(_work_alone, part))
            except Misfit as error:
                return _blame(part, error)
            except (Lost, DiskFull) as error:
                if not part.repeatable:
                    return part.answer(unavailable(f"nobody knows whether it was done: {error}"))
                if self._closing or not await patience.pause():
                    return self._give_up([part], error)

    def _give_up(self, parts: Sequence[Part[Any]], error: Exception) -> None:
        """Postgres has been away for too long: nobody who waits is kept waiting any longer."""
        log.error("the database is away", error=str(error), waiting=len(self._waiting))
        for part in (*parts, *self._waiting):
            part.answer(unavailable(f"the database is away: {error}", retry_after=1.0))
        self._waiting.clear()

    # -- a full disk --------------------------------------------------------------------------------------------------

    @property
    def _disk_is_full(self) -> bool:
        return self._clock.monotonic() < self._full_until

    def _refuse_beginnings(self, batch: Batch) -> Batch:
        """Refuses what begins a flow, so that there is room for what ends one."""
        full = resource_exhausted("the database's disk is full", retry_after=DISK_FULL_SECONDS)
        for part in batch:
            if _begins_flow(part):
                part.refuse(full)
                self.metrics.refused(full.reason)
        return [part for part in batch if not _begins_flow(part)]

    # -- a transaction ------------------------------------------------------------------------------------------------

    async def _perform(self, work: Callable[[Turn], Awaitable[Callable[[], None]]]) -> None:
        """Runs one transaction, from the turn to the answers; raises Misfit, DiskFull or Lost."""
        writer, began = self._writer, self._clock.monotonic()
        if not writer.connected:
            self.metrics.connecting()
            await writer.connect()
        try:
            with understood():
                turn = Turn(writer, *await writer.take_turn())
                tell = await work(turn)
                await (writer.commit() if turn.changed else writer.roll_back())
        except Lost as error:
            log.warning("nobody knows whether a transaction was committed", error=str(error))
            self.metrics.transactions.add("lost")
            writer.terminate()
            raise
        except (Misfit, DiskFull):
            self.metrics.transactions.add("refused")
            await writer.abandon()
            raise
        except Exception as error:
            # A defect of ours. It must not stop the journal, and whichever part set it off is to be found and told.
            log.exception("a transaction failed")
            self.metrics.transactions.add("refused")
            await writer.abandon()
            raise Misfit(f"{type(error).__name__}: {error}", defect=True) from error
        seconds = self._clock.monotonic() - began
        self.metrics.performed(turn.revision, changed=turn.changed, seconds=seconds)
        tell()


class Patience:
    """Growing pauses, up to a time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._next = 0.01

    async def pause(self) -> bool:
        """Waits a little, longer each time; returns False, at once, if the time is over."""
        if self._clock.monotonic() + self._next > self._end:
            return False
        await self._clock.sleep(self._next)
        self._next = min(LONGEST_PAUSE, 2 * self._next)
        return True


def _commit_or_refusal(coordinator_id: str, commit: jobstore_pb2.FlowCommit) -> Commit | jobstore_pb2.FlowCommitResult:
    try:
        return Commit(coordinator_id, commit)
    except WaybillError as error:
        return jobstore_pb2.FlowCommitResult(error=error.to_status())


async def _work_alone(part: Alone[Any], turn: Turn) -> Callable[[], None]:
    try:
        answer = await part.work(turn)
    except WaybillError as error:
        turn.changed = False
        answer = error
    return lambda: part.answer(answer)


def _begins_flow(part: Part[Any]) -> bool:
    return isinstance(part, Commit) and part.commit.HasField("new_job")


def _blame(part: Part[Any], error: Misfit) -> None:
    """Tells a part that it is the one which cannot be stored."""
    log.error("rows were refused by the database", error=str(error), defect=error.defect)
    part.refuse(internal(str(error)) if error.defect else invalid_argument("REQUEST_INVALID", str(error)))
