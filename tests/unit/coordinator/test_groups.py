"""Flows that are stored together, in front of a journal that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chassis.errors import WaybillError, aborted, already_exists, failed_precondition, unavailable
from coordinator.engine.groups import Group
from waybill.v1 import jobs_pb2, jobstore_pb2

Result = jobstore_pb2.FlowCommitResult
LOCKED = failed_precondition("LOCKED", "VM vm-1 is locked by job x")
CONFLICT = aborted("CONFLICT", "VM vm-1 has changed")
BECAUSE = aborted("GROUP_REFUSED", "another one was refused")
REUSED = already_exists("REQUEST_ID_REUSED", "some were used")


class ScriptedJournal:
    """Answers groups, one after the other, with these errors; then with none."""

    def __init__(self, *answers: Sequence[WaybillError | None] | WaybillError) -> None:
        self.answers = list(answers)
        self.groups: list[list[str]] = []

    def commit_together(self, commits: Sequence[jobstore_pb2.FlowCommit]) -> list[asyncio.Future[Result]]:
        self.groups.append([commit.flow_command_id for commit in commits])
        errors = self.answers.pop(0) if self.answers else [None] * len(commits)
        futures: list[asyncio.Future[Result]] = []
        for index in range(len(commits)):
            future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            if isinstance(errors, WaybillError):
                future.set_exception(errors)
            else:
                error = errors[index]
                future.set_result(Result(error=error.to_status()) if error else Result(revision=7))
            futures.append(future)
        return futures


def a_group(*answers: Any, all_or_nothing: bool = True, members: str = "abc") -> tuple[Group, ScriptedJournal]:
    journal = ScriptedJournal(*answers)
    scripted: Any = journal
    return Group(scripted, list(members), all_or_nothing), journal


def first(flow: str, status: str = "STARTED") -> jobstore_pb2.FlowCommit:
    commit = jobstore_pb2.FlowCommit(flow_command_id=flow)
    commit.new_job.job_id = f"job-{flow}"
    commit.new_job.status = jobs_pb2.ExecutionStatus.Value(f"EXECUTION_STATUS_{status}")
    return commit


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def reasons(*offers: asyncio.Future[Result]) -> list[str]:
    """What became of each: "waits", "stored", or why it was refused."""
    return [_reason(offer) for offer in offers]


def _reason(offer: asyncio.Future[Result]) -> str:
    if not offer.done():
        return "waits"
    if (error := offer.exception()) is not None:
        assert isinstance(error, WaybillError)
        return f"raised {error.reason}"
    result = offer.result()
    return WaybillError.from_status(result.error).reason if result.HasField("error") else "stored"


async def test_nothing_is_stored_before_all_have_offered_and_then_all_in_order() -> None:
    group, journal = a_group()
    offers = [group.offer(first(flow)) for flow in "ca"]
    await settle()
    assert (reasons(*offers), journal.groups) == (["waits"] * 2, [])
    offers.append(group.offer(first("b")))
    await settle()
    assert (reasons(*offers), journal.groups) == (["stored"] * 3, [["a", "b", "c"]])


async def test_one_that_validate_refuses_has_the_others_skipped_and_all_are_stored_together() -> None:
    group, journal = a_group()
    good, bad, other = (
        group.offer(first(flow, status)) for flow, status in zip("abc", ("STARTED", "FAILED", "STARTED"), strict=True)
    )
    await settle()
    assert (reasons(good, bad, other), journal.groups) == (["GROUP_REFUSED", "waits", "GROUP_REFUSED"], [])
    again = [group.offer(first(flow, "SKIPPED")) for flow in "ac"]
    await settle()
    assert reasons(bad, *again) == ["stored"] * 3


async def test_one_that_is_locked_out_fails_and_the_others_are_skipped() -> None:
    group, journal = a_group([BECAUSE, LOCKED, BECAUSE])
    offers = [group.offer(first(flow)) for flow in "abc"]
    await settle()
    assert reasons(*offers) == ["GROUP_REFUSED", "LOCKED", "GROUP_REFUSED"]
    again = [
        group.offer(first(flow, status)) for flow, status in zip("abc", ("SKIPPED", "FAILED", "SKIPPED"), strict=True)
    ]
    await settle()
    assert reasons(*again) == ["stored"] * 3
    assert len(journal.groups) == 2


@pytest.mark.parametrize("all_or_nothing", [True, False])
async def test_after_a_conflict_only_that_one_plans_again(all_or_nothing: bool) -> None:
    group, journal = a_group([CONFLICT, BECAUSE, BECAUSE], all_or_nothing=all_or_nothing)
    offers = [group.offer(first(flow)) for flow in "abc"]
    await settle()
    assert reasons(*offers) == ["CONFLICT", "waits", "waits"]
    again = group.offer(first("a"))
    await settle()
    assert reasons(again, *offers[1:]) == ["stored"] * 3
    assert len(journal.groups) == 2


async def test_in_sequence_who_is_locked_out_fails_alone() -> None:
    group, _ = a_group([LOCKED, BECAUSE, BECAUSE], all_or_nothing=False)
    offers = [
        group.offer(first(flow, status)) for flow, status in zip("abc", ("STARTED", "PENDING", "PENDING"), strict=True)
    ]
    await settle()
    assert reasons(*offers) == ["LOCKED", "waits", "waits"]
    again = group.offer(first("a", "FAILED"))
    await settle()
    assert reasons(again, *offers[1:]) == ["stored"] * 3


async def test_what_the_caller_got_wrong_is_told_to_all() -> None:
    group, _ = a_group([BECAUSE, REUSED, BECAUSE])
    offers = [group.offer(first(flow)) for flow in "abc"]
    await settle()
    assert reasons(*offers) == ["REQUEST_ID_REUSED"] * 3


async def test_when_the_lease_is_lost_nobody_waits_on() -> None:
    group, _ = a_group(failed_precondition("LEASE_LOST", "it is gone"))
    offers = [group.offer(first(flow)) for flow in "abc"]
    await settle()
    assert reasons(*offers) == ["raised LEASE_LOST"] * 3


async def test_when_one_drops_out_nothing_comes_of_the_others() -> None:
    group, journal = a_group()
    early = group.offer(first("a"))
    group.leave(unavailable("going down", reason="SHUTTING_DOWN"))
    late = group.offer(first("b"))
    assert reasons(early, late) == ["raised SHUTTING_DOWN"] * 2
    assert journal.groups == []
