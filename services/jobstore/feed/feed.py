"""Feeds watchers with what changes, in order of revision, without a gap.

Rows carry the revision of their last change and there is no log of changes, so the table itself is the log: whoever is
at revision R is owed the rows above R. Everything here follows from that.

**One reader, many watchers.** A process has one reader. It waits for the doorbell (NOTIFY, which says no more than that
there is something), reads head and rows above its own position in one REPEATABLE READ snapshot, and appends them as a
batch to the *window*: the latest batches, serialised once for all who want the same of them. A watcher is no more than
a position (`watcher.py`). Each time its messages are taken, it looks where it stands:

    in the window ───────▶ joins the batches after its position to one message
    before the window ───▶ reads the table, at its own pace
    at the window's end ─▶ waits; silent for too long, sends a bookmark

So many watchers share the reading, the building and, where they want the same, the bytes; what is left is a message
each. When that is much, the reader rests between rounds, and the next round is larger.

A slow watcher costs nothing but its own reads: nothing queues up for it, nobody waits for it, and what changed
several times while it was away comes folded. Memory is bounded by the window, whatever the number of watchers.

**From 0**: the head R0 is read, then the jobs that match, page by page, by id, each page in a snapshot of its own (a
long one would hold back vacuum). What changed while paging is above R0 and comes next, like any other change. Only then
is the copy a state, and says so: `snapshot_done`.

**Reading the table** may take several pages, too. `revision` is set when all are sent, for a resume from between two
pages could miss steps (`changes.py` has the argument). A watcher that is cut off there resumes from where it began.

**Steps** (rule 2, without a memory of who holds what). A watcher at R with view TREE is owed, of a job above R:
* made since R: all of its steps are above R, so "steps above R" is the whole tree;
* known at R: it was sent then, so the steps above R are what is missing;
* not matching at R, for the filter is about what changes: the whole tree. That it did not match at R cannot be seen any
  more, but that its status changed since R can: start or end time is then after the time of R, for no two commits have
  the same. If in doubt (the client brought R, so its time is not known) the tree is sent whole, which is never wrong.

**Bookmarks** come once the stream has caught up after its opening, when it was silent for the interval, and before the
server closes. With a digest they are read from the table: what is still owed, head and digest in one snapshot, so the
digest is of exactly what has been sent. Equal digests of equal revisions are computed once.

**Nobody watches**: the reader sleeps, and there is no statement at all.

| what goes wrong | what happens |
| --- | --- |
| the doorbell is not heard | the poll beneath it finds the change, `poll_seconds` later at most |
| the database is lost | the reader returns, after growing delays, to where it was; watchers stay open, miss nothing |
| tombstones are gone meanwhile | the window begins anew; who is behind finds its revision compacted, and is told |
| the store was restored, or went back | every watcher is told to start over |
| too much changed for one batch | the window begins anew; everybody reads the table, in pages |
| a watcher stops reading | its `yield` waits; the window moves on; it reads the table when it comes back |
| a watcher is gone | its generator is closed wherever it stands, and it is forgotten |
| the server closes | who has a state gets a bookmark, then UNAVAILABLE; the stuck are left to the server's grace |
"""

from __future__ import annotations

import asyncio
import functools
import operator
import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Final, Self

import grpc

from chassis import logs
from chassis.clock import Clock
from chassis.errors import WaybillError, unavailable
from chassis.tallies import Labels
from jobstore.feed.changes import read_batch
from jobstore.feed.head import Head, check_resume, epoch_changed, read_head
from jobstore.feed.selections import JobSelection, JournalSelection, Selection
from jobstore.feed.watcher import Turn, Watcher
from jobstore.feed.window import Batch, Position, Scope, Window
from jobstore.metrics import FeedTallies
from jobstore.search.filter import Filter
from jobstore.snapshots import Connection, Pool, borrowed, snapshot
from waybill.v1 import jobstore_pb2

CHANNEL: Final = "waybill_revision"
DEFAULT_BOOKMARK_SECONDS: Final = 10

_POLL_SECONDS: Final = 20.0  # one statement each: fewer than 5,000 a day
_WINDOW_BYTES: Final = 16 << 20
_LARGEST_ROUND: Final = 5_000
"""Changes that the reader reads at once; more, and everybody reads the table."""
_TABLE_PAGE: Final = 200
_TABLE_READERS: Final = 4
_REST_PER_WATCHER: Final = 0.000_1
"""Seconds; about twice what a message costs, so that messages take half of the process at most."""
_LEAST_REST: Final = 0.005
_LONGEST_DELAY: Final = 5.0
_KEPT_DIGESTS: Final = 64

log = logs.get_logger(__name__)


class Feed:
    """Watches the store for all watchers of this process: `async with Feed(pool, clock, rng) as feed`."""

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        rng: random.Random,
        *,
        poll_seconds: float = _POLL_SECONDS,
        window_bytes: int = _WINDOW_BYTES,
        largest_round: int = _LARGEST_ROUND,
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._poll_seconds = poll_seconds
        self._largest_round = largest_round
        self._window = Window(window_bytes)
        self._head: Head | None = None  # as last seen by the reader; None before it has read anything
        self._watchers: set[Watcher] = set()
        self._watched = asyncio.Event()
        self._unwatched = asyncio.Event()
        self._unwatched.set()
        self._doorbell = asyncio.Event()
        self._table = asyncio.Semaphore(_TABLE_READERS)
        self._history = 0  # counts the stores that were seen under this feed
        self._polls = False
        self._failures = 0  # of the reader, in a row
        self._digests: dict[tuple[str, int, str], tuple[int, str]] = {}
        self._closing = False
        self.metrics = FeedTallies(
            watchers=lambda: self._number_of(self._watchers),
            behind=lambda: self._number_of(each for each in self._watchers if self._behind(each)),
            most_behind=lambda: max(map(self._behind, self._watchers), default=0),
            revision=lambda: self._window.end.revision,
            window_bytes=lambda: self._window.size,
            failures=lambda: self._failures,
        )

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._agents = [self._group.create_task(agent) for agent in (self._read(), self._remind())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin_to_close()
        for agent in self._agents:
            agent.cancel()
        if isinstance(error, asyncio.CancelledError):  # perhaps the group's own, for an agent has failed
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    # --- watchers --------------------------------------------------------------------------------------------------

    async def watch_jobs(
        self,
        filter: Filter,
        *,
        resume_revision: int = 0,
        store_epoch: str = "",
        tree: bool = False,
        bookmark_interval: float = DEFAULT_BOOKMARK_SECONDS,
        digest: bool = False,
    ) -> AsyncGenerator[bytes]:
        """Yields serialised WatchJobsResponses for as long as they are taken.

        Raises WaybillError OUT_OF_RANGE (REVISION_COMPACTED, STORE_EPOCH_CHANGED), INVALID_ARGUMENT REVISION_UNKNOWN,
        UNAVAILABLE (SHUTTING_DOWN; DEPENDENCY_UNAVAILABLE if the database is away when the watch is opened).
        """
        head = await self._checked_head(resume_revision, store_epoch)
        watcher = Watcher(
            JobSelection(filter, tree),
            head,
            resume_revision,
            interval=bookmark_interval,
            digest=digest,
            now=self._clock.monotonic(),
        )
        async with aclosing(self._stream(watcher)) as stream:
            async for message in stream:
                yield message

    async def watch_journal(
        self, coordinator_id: str, resume_revision: int = 0
    ) -> AsyncGenerator[jobstore_pb2.JournalWatchResponse]:
        """Yields what concerns a coordinator; raises as `watch_jobs` does."""
        head = await self._checked_head(resume_revision, "")
        watcher = Watcher(
            JournalSelection(coordinator_id),
            head,
            resume_revision,
            interval=DEFAULT_BOOKMARK_SECONDS,
            digest=False,
            now=self._clock.monotonic(),
        )
        async with aclosing(self._stream(watcher)) as stream:
            async for message in stream:
                yield jobstore_pb2.JournalWatchResponse.FromString(message)

    async def close(self, patience: float = 2.0) -> None:
        """Sends every watcher a last bookmark and ends it; returns when all are gone, or after so many seconds."""
        self._begin_to_close()
        gone = asyncio.ensure_future(self._unwatched.wait())
        enough = asyncio.ensure_future(self._clock.sleep(patience))
        try:
            await asyncio.wait((gone, enough), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            enough.cancel()

    def _begin_to_close(self) -> None:
        self._closing = True
        self._wake_all()

    async def _checked_head(self, resume_revision: int, store_epoch: str) -> Head:
        if self._closing:
            raise _shutting_down()
        async with borrowed(self._pool) as connection:
            head = await read_head(connection)
        check_resume(head, resume_revision, store_epoch)
        return head

    async def _stream(self, watcher: Watcher) -> AsyncGenerator[bytes]:
        """Everything that a watcher is sent."""
        with self._watching(watcher):
            while not self._closing:
                for message in await self._next(watcher):
                    yield message
                    watcher.spoke(self._clock.monotonic())
                    self.metrics.messages.add(watcher.selection.kind)
                self._measure_lag(watcher)
            if watcher.is_state:
                yield watcher.bookmark()
        raise _shutting_down()

    async def _next(self, watcher: Watcher) -> list[bytes]:
        """Does what is its turn; returns what it is sent, if anything."""
        watcher.wake.clear()
        if watcher.history != self._history and self._head is not None:
            raise epoch_changed(self._head)
        try:
            match watcher.turn(self._window, self._clock.monotonic()):
                case Turn.SNAPSHOT:
                    return await self._snapshot_page(watcher)
                case Turn.TABLE:
                    return await self._table_page(watcher)
                case Turn.WINDOW:
                    return watcher.take_window(self._window)
                case Turn.BOOKMARK:
                    return [watcher.bookmark()]
                case Turn.WAIT:
                    await watcher.wake.wait()
        except WaybillError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            await self._until_back(watcher)
        return []

    async def _snapshot_page(self, watcher: Watcher) -> list[bytes]:
        assert watcher.snapshot_cursor is not None  # it is its turn
        async with self._table, snapshot(self._pool) as connection:
            watcher.check(await read_head(connection))
            page = await watcher.selection.read_snapshot(connection, watcher.snapshot_cursor)
        return watcher.take_snapshot_page(page)

    async def _table_page(self, watcher: Watcher) -> list[bytes]:
        matching, digest = 0, ""
        async with self._table, snapshot(self._pool) as connection:
            batch = await read_batch(
                connection,
                watcher.position,
                watcher.selection.scope,
                cursor=watcher.table_cursor,
                filter=watcher.selection.filter,
                limit=_TABLE_PAGE,
            )
            watcher.check(batch.head)
            if watcher.wants_digest(batch):
                matching, digest = await self._digest(connection, watcher.selection, batch.head)
        return watcher.take_table_page(batch, matching, digest)

    async def _digest(self, connection: Connection, selection: Selection, head: Head) -> tuple[int, str]:
        """The digest of what matches at the head. Many ask for the same: it is kept for them."""
        key = (selection.key, head.revision, head.store_epoch)
        if key not in self._digests:
            self._digests[key] = await selection.read_digest(connection)
            while len(self._digests) > _KEPT_DIGESTS:
                del self._digests[next(iter(self._digests))]
        return self._digests[key]

    async def _until_back(self, watcher: Watcher) -> None:
        """Waits until the database may be back: the reader has come through, or a second has passed."""
        watcher.away = True
        if not self._closing:
            await watcher.wake.wait()
        watcher.away = False

    @contextmanager
    def _watching(self, watcher: Watcher) -> Iterator[None]:
        watcher.history = self._history
        self._watchers.add(watcher)
        self._watched.set()
        self._unwatched.clear()
        try:
            yield
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._watched.clear()
                self._unwatched.set()
                self._doorbell.set()  # the reader may go

    def _measure_lag(self, watcher: Watcher) -> None:
        """Takes the time from a commit to now, when all of what the watcher was owed is on its way."""
        if watcher.oldest_told is not None:
            lag = max(0.0, self._clock.now() - watcher.oldest_told.timestamp())
            self.metrics.lag.of(watcher.selection.kind).observe(lag)
            watcher.oldest_told = None

    def _behind(self, watcher: Watcher) -> int:
        """How many revisions a watcher has not seen, of those that the feed has."""
        return max(0, self._window.end.revision - watcher.position.revision)

    def _number_of(self, watchers: Iterable[Watcher]) -> dict[Labels, float]:
        numbers = Counter(watcher.selection.kind for watcher in watchers)
        return {(kind,): numbers[kind] for kind in ("jobs", "journal")}

    def _wake_all(self) -> None:
        for watcher in self._watchers:
            watcher.wake.set()

    # --- the reader ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Keeps the window at the head for as long as anybody watches."""
        while True:
            if not self._watchers:
                self._head = None  # what changes from here on is nobody's business: begin anew
            await self._watched.wait()
            try:
                async with borrowed(self._pool) as connection:
                    await self._follow(connection)
            except WaybillError as error:
                self._failures += 1
                delay = self._rng.uniform(0.5, 1.0) * min(_LONGEST_DELAY, 0.05 * 2.0 ** min(self._failures, 10))
                log.warning("feed lost the database", error=error.message, attempt=self._failures, delay=delay)
                await self._clock.sleep(delay)

    async def _listen(self, connection: Connection) -> None:
        # Few rows of large tables, found by index. A young table without statistics would be scanned, each round.
        await connection.execute("SET enable_seqscan = off")
        connection.add_termination_listener(self._hung_up)
        await connection.add_listener(CHANNEL, self._heard)
        self._doorbell.set()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """The doorbell. A revision that the window has already is no news: the reader was faster than the bell."""
        revision = str(payload)
        if not (revision.isdecimal() and int(revision) <= self._window.end.revision):
            self._doorbell.set()

    def _hung_up(self, _connection: object) -> None:
        self._doorbell.set()

    async def _follow(self, connection: Connection) -> None:
        """Reads whenever the bell rings, until nobody watches any more."""
        try:
            await self._listen(connection)
            while self._watchers:
                await self._doorbell.wait()
                self._doorbell.clear()
                await self._round(connection)
                self._failures = 0
                await self._rest()
        finally:
            connection.remove_termination_listener(self._hung_up)
            connection.terminate()  # it listens, and has settings of its own: nothing to be given back

    async def _round(self, connection: Connection) -> None:
        """Reads what changed since the last round, and wakes everybody."""
        polls, self._polls = self._polls, False
        if polls and await read_head(connection) == self._head:
            return
        scope = self._scope() if self._head is not None else Scope.NOTHING
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            batch = await read_batch(connection, self._window.end, scope, limit=self._largest_round)
        self._take(batch)

    async def _rest(self) -> None:
        """Lets the next round gather more if many watch: each one is a message to each of them."""
        seconds = len(self._watchers) * _REST_PER_WATCHER
        if seconds >= _LEAST_REST:
            await self._clock.sleep(seconds)

    def _scope(self) -> Scope:
        """All that anybody wants."""
        return functools.reduce(operator.or_, {watcher.selection.scope for watcher in self._watchers}, Scope.NOTHING)

    def _take(self, batch: Batch) -> None:
        """Puts what was read into the window, or begins it anew where it cannot go on."""
        known, self._head = self._head, batch.head
        end = self._window.end.revision
        if known and (batch.head.store_epoch != known.store_epoch or batch.head.revision < known.revision):
            self._history += 1
            known = None
        if known and batch.complete and batch.head.compacted_revision <= end:
            self._window.append(batch)
        else:
            self._window.skip_to(Position(batch.head.revision, batch.head.time))
        self._wake_all()

    async def _remind(self) -> None:
        """Once a second, while anybody watches: nudges those who wait for more than news; now and then, polls."""
        polled_at = self._clock.monotonic()
        while True:
            await self._watched.wait()
            await self._clock.sleep(1.0)
            now = self._clock.monotonic()
            for watcher in self._watchers:
                if watcher.away or watcher.silent_too_long(now):
                    watcher.wake.set()
            if now - polled_at >= self._poll_seconds:
                polled_at = now
                self._polls = True
                self._doorbell.set()


def _shutting_down() -> WaybillError:
    return unavailable("the jobstore is shutting down", reason="SHUTTING_DOWN")
