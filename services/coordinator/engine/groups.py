"""Flows that are stored together: their first commits are one transaction, or none of them is made.

    each member plans ─▶ offers its first commit ─▶ when all have: one transaction ─▶ each goes its own way
                              ▲                           │
                              └── offers another one ◀────┘ refused

| policy | when one is refused |
| --- | --- |
| all or nothing | by `validate`, or for a lock: that one is stored as FAILED, the others as SKIPPED, together |
| in sequence | each but the first waits for the one before it; so what is refused is one of them that FAILED, no more |

Either way a CONFLICT is only a reason to plan that member again. What is refused for what the caller asked (a request
id of another call, a job to depend on that there is not) refuses all of them, and nothing is stored. Nobody is told
anything before all are stored, so a crash leaves all or nothing, and the same call finds either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chassis.errors import WaybillError, aborted
from coordinator.journal.journal import Journal
from waybill.v1 import jobs_pb2, jobstore_pb2

Result = jobstore_pb2.FlowCommitResult

_LIVED_AGAIN: Final = frozenset({"LOCKED", "CONFLICT", "GROUP_REFUSED"})
"""Refusals after which a flow offers another first commit."""
_ENDED: Final = frozenset({jobs_pb2.EXECUTION_STATUS_FAILED, jobs_pb2.EXECUTION_STATUS_SKIPPED})


@dataclass(slots=True)
class _Offer:
    commit: jobstore_pb2.FlowCommit
    result: asyncio.Future[Result]


@dataclass(slots=True)
class Group:
    """See the module. `members` are flows, in order: later ones may depend on earlier ones."""

    journal: Journal
    members: Sequence[str]
    all_or_nothing: bool
    _offers: dict[str, _Offer] = field(default_factory=dict)
    _broken: WaybillError | None = None  # why nothing will come of it

    def offer(self, commit: jobstore_pb2.FlowCommit) -> asyncio.Future[Result]:
        """Takes a member's first commit; the future has what became of it, as `Journal.commit`'s."""
        offer = _Offer(commit, asyncio.get_running_loop().create_future())
        if self._broken is not None:
            offer.result.set_exception(self._broken)
            return offer.result
        self._offers[commit.flow_command_id] = offer
        if len(self._offers) == len(self.members):
            self._all_have_offered()
        return offer.result

    def leave(self, why: WaybillError) -> None:
        """A member will offer nothing: nothing comes of the others either."""
        if self._broken is None and self.members:
            self._broken = why
            for offer in self._take():
                if not offer.result.done():
                    offer.result.set_exception(why)

    def _all_have_offered(self) -> None:
        if self.all_or_nothing and (culprit := self._refused_by_itself()) is not None:
            self._refuse_others(culprit)
        else:
            self._send()

    def _refused_by_itself(self) -> _Offer | None:
        """A member that failed before it began while others would begin; None if there is none."""
        failed = [each for each in self._offers.values() if each.commit.new_job.status in _ENDED]
        return failed[0] if failed and len(failed) < len(self._offers) else None

    def _refuse_others(self, culprit: _Offer) -> None:
        job = culprit.commit.new_job
        words = f"job {job.job_id} of the same group was refused: {job.error.message}"
        error = aborted("GROUP_REFUSED", words, job_id=job.job_id)
        others = [each for each in self._offers.values() if each.commit.new_job.status not in _ENDED]
        for offer in others:
            del self._offers[offer.commit.flow_command_id]
        for offer in others:
            offer.result.set_result(Result(error=error.to_status()))

    def _send(self) -> None:
        sent = [self._offers[member] for member in self.members]
        results = asyncio.gather(*self.journal.commit_together([offer.commit for offer in sent]))
        results.add_done_callback(lambda done: self._heard(sent, done))

    def _heard(self, sent: Sequence[_Offer], done: asyncio.Future[list[Result]]) -> None:
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            assert isinstance(error, WaybillError)
            self.leave(error)
            return
        results = done.result()
        reasons = [_reason(result) for result in results]
        if all(reason in _LIVED_AGAIN for reason in reasons if reason) and any(reasons):
            self._some_live_again(sent, results, reasons)
        else:
            self._over(sent, results, reasons)

    def _some_live_again(self, sent: Sequence[_Offer], results: Sequence[Result], reasons: Sequence[str]) -> None:
        """Those that were refused offer anew; the others too, if none is to begin, else they stand by their offers."""
        to_skip = self.all_or_nothing and "LOCKED" in reasons
        told = [
            (offer, result)
            for offer, result, reason in zip(sent, results, reasons, strict=True)
            if reason != "GROUP_REFUSED" or to_skip
        ]
        for offer, _ in told:
            del self._offers[offer.commit.flow_command_id]
        for offer, result in told:
            offer.result.set_result(result)

    def _over(self, sent: Sequence[_Offer], results: Sequence[Result], reasons: Sequence[str]) -> None:
        """All are stored, were stored before, or none ever will be."""
        self.members = ()
        self._take()
        refusal = next(
            (r for r, reason in zip(results, reasons, strict=True) if reason not in ("", *_LIVED_AGAIN)), None
        )
        for offer, result in zip(sent, results, strict=True):
            if not offer.result.done():
                offer.result.set_result(refusal or result)

    def _take(self) -> list[_Offer]:
        offers = list(self._offers.values())
        self._offers.clear()
        return offers


def _reason(result: Result) -> str:
    return WaybillError.from_status(result.error).reason if result.HasField("error") else ""
