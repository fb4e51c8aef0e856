"""The ledger on a real file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from chassis.clock import Uuid7Ids
from chassis.errors import WaybillError, failed_precondition
from hostagent.ledger import FlowOwner, Ledger, LedgerRow, RecoveryAction
from hostagent.task import Ending, TaskResult, TaskSpec
from waybill_spans import Kept


def a_row(ledger: Ledger, task_id: str, **fields: object) -> LedgerRow:
    spec = TaskSpec(task_id, "copyImage", {"volume_id": "v", "sizes": [1, 2.5], "deep": {"a": None}}, **fields)  # type: ignore[arg-type]
    return ledger.row_for(spec, is_call=False, observation_number=4, create_time=100.0)


async def test_everything_about_a_task_survives(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, Uuid7Ids()) as ledger:
        everything = a_row(
            ledger,
            "t1",
            flow_command_id="f",
            epoch=3,
            incarnation=ledger.incarnation,
            priority=2,
            correlation_id="c",
            traceparent="00-x",
            expected_generation=7,
            job_id="j",
            command_id="k",
            span_id="s",
        )
        plain = a_row(ledger, "t2")
        assert await ledger.accept([everything, plain], now=100.0) == [None, None]
        await ledger.start(everything)
        await ledger.advance(everything, 40)
        await ledger.add_recovery_action(everything, RecoveryAction("first", {"volume_id": "v"}))
        await ledger.add_recovery_action(everything, RecoveryAction("second", {}))
        await ledger.drop_recovery_action(everything)
        await ledger.ask_stop(plain)
        error = failed_precondition("OBJECT_STATE", "no", volume_id="v")
        await ledger.finish(plain, Ending(TaskResult.CLEAN_SUCCESS, error, {"a": 1}), progress=10, end_time=200.0)
    async with Ledger(path, Uuid7Ids()) as ledger:
        first, second = await ledger.live()
        assert first == everything
        assert second.ending is not None
        assert plain.ending is not None
        assert repr(second.ending) == repr(plain.ending)
        assert (second.end_time, second.progress, second.stop_asked) == (200.0, 10, True)


async def test_the_incarnation_is_made_once(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "ledger.db", Uuid7Ids()) as ledger:
        incarnation = ledger.incarnation
    async with Ledger(tmp_path / "ledger.db", Uuid7Ids()) as ledger:
        assert ledger.incarnation == incarnation
    async with Ledger(tmp_path / "another.db", Uuid7Ids()) as another:
        assert another.incarnation != incarnation


async def test_cleared_tasks_leave_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, Uuid7Ids()) as ledger:
        row = a_row(ledger, "t1")
        await ledger.accept([row], now=1.0)
        await ledger.add_recovery_action(row, RecoveryAction("first", {}))
        await ledger.clear([row], ["unknown"], now=2.0)
    async with Ledger(path, Uuid7Ids()) as ledger:
        assert await ledger.live() == []
        refusals = await ledger.accept([a_row(ledger, name) for name in ("t1", "unknown", "t2")], now=3.0)
        assert [refusal and refusal.reason for refusal in refusals] == ["ALREADY_CLEARED", "ALREADY_CLEARED", None]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM recovery_action").fetchone() == (0,)


def a_span(name: str) -> bytes:
    return b"\xff\0" + name.encode()


async def test_spans_outlive_their_tasks_until_they_are_forgotten(tmp_path: Path) -> None:
    path, done = tmp_path / "ledger.db", Ending(TaskResult.SUCCESS)
    async with Ledger(path, Uuid7Ids()) as ledger:
        first, second = a_row(ledger, "t1"), a_row(ledger, "t2")
        await ledger.accept([first, second], now=1.0)
        for row in (first, second):
            await ledger.finish(row, done, progress=100, end_time=200.0, span=Kept(a_span(row.spec.task_id)))
        await ledger.clear([first, second], [], now=2.0)
        ledger.forget_spans([first.number])
    async with Ledger(path, Uuid7Ids()) as ledger:
        assert await ledger.spans() == [(second.number, a_span("t2"))]
        third = a_row(ledger, "t3")  # whose number must not be that of a span
        await ledger.accept([third], now=3.0)
        await ledger.finish(third, done, progress=100, end_time=200.0, span=Kept(a_span("t3")))
        assert [span for _, span in await ledger.spans()] == [a_span("t2"), a_span("t3")]


async def test_a_span_that_cannot_be_forgotten_disturbs_nobody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, Uuid7Ids()) as ledger:
        row = a_row(ledger, "t1")
        await ledger.accept([row], now=1.0)
        await ledger.finish(row, Ending(TaskResult.SUCCESS), progress=100, end_time=2.0, span=Kept(a_span("s")))
        with sqlite3.connect(path) as saboteur:
            saboteur.execute("CREATE TRIGGER full BEFORE DELETE ON span BEGIN SELECT raise(ABORT, 'disk full'); END")
        ledger.forget_spans([row.number])
    async with Ledger(path, Uuid7Ids()) as ledger:
        assert [number for number, _ in await ledger.spans()] == [row.number]


async def test_the_newest_epoch_of_a_flow_survives(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, Uuid7Ids()) as ledger:
        assert await ledger.fence([FlowOwner("f", 4), FlowOwner("g", 1)], now=1.0) == [None, None]
    async with Ledger(path, Uuid7Ids()) as ledger:
        answers = await ledger.fence([FlowOwner("f", 3), FlowOwner("f", 4), FlowOwner("g", 1), FlowOwner("", 0)], 2.0)
        assert [answer and answer.reason for answer in answers] == ["STALE_EPOCH", None, None, None]


async def test_old_ids_and_epochs_are_swept_but_not_those_of_live_flows(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "ledger.db", Uuid7Ids()) as ledger:
        await ledger.clear([], [f"t{number}" for number in range(700)], now=10.0)
        await ledger.clear([], ["young"], now=20.0)
        await ledger.accept([a_row(ledger, "live", flow_command_id="f", epoch=2)], now=10.0)
        await ledger.fence([FlowOwner("g", 2)], now=10.0)
        assert [await ledger.sweep(before=15.0) for _ in range(3)] == [501, 200, 0]
        answers = await ledger.fence([FlowOwner("f", 1), FlowOwner("g", 1)], now=30.0)
        assert [answer and answer.reason for answer in answers] == ["STALE_EPOCH", None]
        (refusal,) = await ledger.accept([a_row(ledger, "young")], now=30.0)
        assert refusal is not None


async def test_a_ledger_that_cannot_be_written_says_so_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, Uuid7Ids()) as ledger:
        row = a_row(ledger, "t1")
        saboteur = sqlite3.connect(path)
        saboteur.execute("CREATE TRIGGER full BEFORE INSERT ON task BEGIN SELECT raise(ABORT, 'disk full'); END")
        with pytest.raises(WaybillError, match="disk full") as refused:
            await ledger.accept([row], now=1.0)
        assert refused.value.code.name == "UNAVAILABLE"
        saboteur.execute("DROP TRIGGER full")
        saboteur.close()
        assert await ledger.accept([row], now=1.0) == [None]
