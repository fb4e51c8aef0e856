"""The sim's rules: which task they pick, how they are read, how they are used up."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from chassis.clock import ManualClock
from chassis.errors import WaybillError
from hostagent.drivers.sim.documents import Documents
from hostagent.drivers.sim.program import AS_USUAL, Outcome, Program, Rule, parse_rules


def test_a_rule_picks_by_verb_and_arguments() -> None:
    rule = Rule("deleteImage", {"volume_id": "v1"})
    assert rule.fits("deleteImage", {"volume_id": "v1", "more": 1})
    assert not rule.fits("deleteImage", {"volume_id": "v2"})
    assert not rule.fits("deleteImage", {})
    assert not rule.fits("deleteVolume", {"volume_id": "v1"})


def test_a_rule_without_verb_picks_any_but_the_program_itself() -> None:
    assert Rule().fits("createVm", {"vm_id": "x"})
    assert not Rule().fits("simProgram", {"rules": []})


def test_a_rule_that_is_used_up_picks_nothing() -> None:
    assert not Rule("createVm", count=0).fits("createVm", {})


def test_rules_are_read_with_their_defaults() -> None:
    assert parse_rules([{"verb": "createVm"}, {"outcome": "fail", "error": "no", "count": 1, "work_ms": 5}]) == [
        Rule("createVm"),
        Rule(outcome=Outcome.FAIL, error={"message": "no"}, count=1, work_ms=5),
    ]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("x", "arguments.rules[0]"),
        ({"outcome": "explode"}, "arguments.rules[0].outcome"),
        ({"count": -1}, "arguments.rules[0].count"),
        ({"count": 1.5}, "arguments.rules[0].count"),
        ({"work_ms": "long"}, "arguments.rules[0].work_ms"),
        ({"work_ms": True}, "arguments.rules[0].work_ms"),
        ({"match": []}, "arguments.rules[0].match"),
        ({"verb": 1}, "arguments.rules[0].verb"),
        ({"outcom": "fail"}, "arguments.rules[0].outcom"),
        ({"error": {"kind": "x"}}, "arguments.rules[0].error"),
        ({"error": {"reason": 1}}, "arguments.rules[0].error"),
        ({"error": {"code": "BAD"}}, "arguments.rules[0].error.code"),
    ],
)
def test_a_bad_rule_is_refused_by_field(rule: Any, field: str) -> None:
    with pytest.raises(WaybillError) as refused:
        parse_rules([rule])
    assert refused.value.reason == "ARGUMENTS_INVALID"
    assert [found for found, _ in refused.value.violations] == [field]


def test_a_rules_error_replaces_the_outcomes_own() -> None:
    own = Rule(outcome=Outcome.FAIL).failure("TASK_FAILED", "programmed")
    assert (own.code, own.reason, own.message) == (grpc.StatusCode.FAILED_PRECONDITION, "TASK_FAILED", "programmed")
    (rule,) = parse_rules([{"error": {"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "message": "later"}}])
    given = rule.failure("TASK_FAILED", "programmed")
    assert (given.code, given.reason, given.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "later")


async def test_a_count_is_used_up() -> None:
    async with Documents(":memory:", ManualClock()) as documents:
        program = Program(documents)
        program.replace([Rule("createVm", outcome=Outcome.FAIL, count=2)])
        drawn = [(await program.draw("createVm", {})).outcome for _ in range(3)]
        assert drawn == [Outcome.FAIL, Outcome.FAIL, Outcome.SUCCESS]


async def test_the_first_rule_that_fits_decides() -> None:
    async with Documents(":memory:", ManualClock()) as documents:
        program = Program(documents)
        program.replace([Rule("a", outcome=Outcome.HANG, count=1), Rule("a", outcome=Outcome.FAIL), Rule("b")])
        assert [(await program.draw("a", {})).outcome for _ in range(2)] == [Outcome.HANG, Outcome.FAIL]
        assert await program.draw("c", {}) is AS_USUAL


async def test_refusals_are_drawn_before_a_task_is_accepted_and_not_after() -> None:
    async with Documents(":memory:", ManualClock()) as documents:
        program = Program(documents)
        program.replace([Rule("a", outcome=Outcome.REFUSE, count=1)])
        assert await program.draw("a", {}) is AS_USUAL
        with pytest.raises(WaybillError) as refused:
            await program.refuse("a", {})
        assert refused.value.reason == "REFUSED"
        await program.refuse("a", {})


async def test_a_new_program_replaces_the_whole_old_one() -> None:
    async with Documents(":memory:", ManualClock()) as documents:
        program = Program(documents)
        program.replace([Rule("a", outcome=Outcome.FAIL), Rule("b", outcome=Outcome.FAIL)])
        program.replace([Rule("b", outcome=Outcome.HANG)])
        assert await program.draw("a", {}) is AS_USUAL
        read_again = Program(documents)
        assert (await read_again.draw("b", {})).outcome is Outcome.HANG
