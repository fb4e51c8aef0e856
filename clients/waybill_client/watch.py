"""Follows the jobstore's stream of job changes, and resumes it by itself.

    CONNECTING ──first message──▶ STREAMING ──lost (UNAVAILABLE, silence, end)──▶ AWAY
        ▲                             │                                            │
        │                             └── OUT_OF_RANGE: Resync, from revision 0 ──┐ │
        └──────────────── after a growing, jittered delay ◀───────────────────────┴─┘

| what happens                                    | what the reader of the stream sees                                |
| ----------------------------------------------- | ----------------------------------------------------------------- |
| jobstore restarts, connection breaks            | nothing: it goes on after the last complete revision, repeats may |
|                                                 | occur                                                             |
| broken before the snapshot was complete         | Resync, then a new snapshot: jobs of the broken one may be gone   |
| the revision is not kept any more, or the store | Resync with the reason, then a snapshot                           |
| was replaced or went back in time               |                                                                   |
| the peer hangs                                  | as a broken connection: bookmarks come when idle, so silence for  |
|                                                 | longer than two of them is a loss                                 |
| never reached at all                            | Unavailable, unless the caller said that it waits                 |
| away for longer than `give_up_after`            | Unavailable                                                       |

Only a *complete* revision is a place to resume from, and only after the snapshot: one seen inside it says nothing about
the jobs that the snapshot has not come to.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from waybill.v1.jobs_pb2 import Job
from waybill.v1.jobstore_pb2 import Bookmark, WatchJobsRequest, WatchJobsResponse
from waybill_client.calls import Caller
from waybill_client.errors import STATUS_DETAILS, OutOfRange, Unavailable, WaybillError

WatchMethod: TypeAlias = grpc.aio.UnaryStreamMultiCallable[WatchJobsRequest, WatchJobsResponse]

_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_STREAM_SECONDS = 3600.0  # every call has a deadline; a watch that reaches it simply resumes
_DEFAULT_BOOKMARK_SECONDS = 10
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0


@dataclass(frozen=True)
class Upserted:
    """A job is new or has changed. In view TREE later ones carry the changed steps only."""

    job: Job


@dataclass(frozen=True)
class Removed:
    """A job was deleted or matches no more; to be ignored if it is not held."""

    job_id: str


@dataclass(frozen=True)
class Complete:
    """Everything up to `revision` has come; `snapshot` the first time, when the copy becomes a state."""

    revision: int
    snapshot: bool = False


@dataclass(frozen=True)
class Marked:
    """A bookmark: a place to resume from, and with a digest the proof of what a true copy holds."""

    bookmark: Bookmark


@dataclass(frozen=True)
class Resync:
    """The stream starts over with a snapshot: what is held and not in it is gone. `reason` is of `errors.proto`."""

    reason: str


JobChange: TypeAlias = Upserted | Removed | Complete | Marked | Resync


class JobWatch:
    """One watch, over as many streams as it takes."""

    def __init__(
        self,
        method: WatchMethod,
        request: WatchJobsRequest,
        caller: Caller,
        *,
        give_up_after: float = math.inf,
    ) -> None:
        self._method = method
        self._request = request
        self._caller = caller
        self._give_up_after = give_up_after
        self._silence_limit = 5.0 + 2.0 * (request.bookmark_interval or _DEFAULT_BOOKMARK_SECONDS)
        self._whole = request.resume_revision > 0  # the reader's copy is a state: revisions are places to resume from
        self._delivered = False  # something of an incomplete snapshot may be in the reader's hands
        self._heard_at: float | None = None  # None until the first message
        self._failures = 0  # since the last message

    async def changes(self) -> AsyncGenerator[JobChange]:
        """Yields changes until the reader stops; raises what resuming cannot mend."""
        while True:
            try:
                async with aclosing(self._stream()) as changes:
                    async for change in changes:
                        yield change
                lost = self._away("ended the stream")
            except TimeoutError:
                lost = self._away("has fallen silent")
            except grpc.aio.AioRpcError as error:
                lost = WaybillError.from_rpc_error(error, peer=self._caller.peer)
                if self._place_is_gone(lost):
                    yield self._start_over(lost.reason)
                    continue
                if not _is_lost(error):
                    raise lost from None
            await self._back_off(lost)
            if self._delivered and not self._whole:
                yield self._start_over("SNAPSHOT_INTERRUPTED")

    async def _stream(self) -> AsyncGenerator[JobChange]:
        call = self._method(
            self._request,
            timeout=_STREAM_SECONDS,
            metadata=self._caller.metadata(),
            wait_for_ready=self._caller.wait_for_ready,
        )
        try:
            while True:
                async with asyncio.timeout(self._silence_limit):
                    response = await call.read()
                if not isinstance(response, WatchJobsResponse):
                    return  # EOF
                self._heard_at, self._failures = asyncio.get_running_loop().time(), 0
                for change in self._read(response):
                    yield change
        finally:
            call.cancel()

    def _read(self, response: WatchJobsResponse) -> Iterator[JobChange]:
        """The changes in a message, in order; notes where to resume only once they are in the reader's hands."""
        for change in response.changes:
            self._delivered = True
            yield Upserted(change.upsert) if change.HasField("upsert") else Removed(change.removed_job_id)
        self._whole = self._whole or response.snapshot_done
        if response.snapshot_done or response.revision:
            self._note(response.revision)
            yield Complete(response.revision, response.snapshot_done)
        if response.HasField("bookmark"):
            self._note(response.bookmark.revision)
            self._request.store_epoch = response.bookmark.store_epoch
            yield Marked(response.bookmark)

    def _note(self, revision: int) -> None:
        if self._whole:
            self._request.resume_revision = max(revision, self._request.resume_revision)

    def _place_is_gone(self, refused: WaybillError) -> bool:
        """True if the store does not keep the revision to resume from, or gave it out and no longer knows it."""
        went_back = refused.reason == "REVISION_UNKNOWN" and self._heard_at is not None
        return self._request.resume_revision > 0 and (isinstance(refused, OutOfRange) or went_back)

    def _start_over(self, reason: str) -> Resync:
        self._request.resume_revision = 0
        self._request.store_epoch = ""
        self._whole = self._delivered = False
        return Resync(reason)

    async def _back_off(self, lost: WaybillError) -> None:
        if self._heard_at is None and not self._caller.wait_for_ready:
            raise lost
        now = asyncio.get_running_loop().time()
        self._heard_at = self._heard_at or now
        if now - self._heard_at > self._give_up_after:
            raise lost
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    def _away(self, what: str) -> WaybillError:
        return Unavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", f"the {self._caller.peer} {what}")


def _is_lost(error: grpc.aio.AioRpcError) -> bool:
    """True for the transport's own failures, which connecting again may mend."""
    said_by_service = any(key == STATUS_DETAILS for key, _ in error.trailing_metadata() or ())
    return error.code() in _LOST or (error.code() is grpc.StatusCode.INTERNAL and not said_by_service)
