"""Enums and Structs as people say them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from waybill.v1.jobs_pb2 import EntityType, ExecutionStatus, HostTask, Job, TaskResult, TaskState
from waybill_client import is_ended, is_finished, status_word, where
from waybill_client.words import entity_type, entity_word, moment, plain, struct, task_word, timestamp


def test_a_status_loses_its_prefix() -> None:
    assert status_word(ExecutionStatus.EXECUTION_STATUS_STARTED) == "STARTED"


def test_a_status_of_a_newer_service_is_its_number() -> None:
    assert status_word(ExecutionStatus.ValueType(99)) == "99"


@pytest.mark.parametrize("word", ["FINISHED", "FAILED", "ABORTED", "UNKNOWN", "SKIPPED"])
def test_the_end_statuses_are_ended(word: str) -> None:
    assert is_ended(Job(status=ExecutionStatus.Value(f"EXECUTION_STATUS_{word}")))


@pytest.mark.parametrize("word", ["PENDING", "STARTED"])
def test_the_others_are_not(word: str) -> None:
    job = Job(status=ExecutionStatus.Value(f"EXECUTION_STATUS_{word}"))
    assert not is_ended(job)
    assert not is_finished(job)


def test_entity_types_are_read_in_any_case() -> None:
    assert entity_type("vm") == entity_type("VM") == EntityType.ENTITY_TYPE_VM
    assert entity_word(EntityType.ENTITY_TYPE_STORAGE_DOMAIN) == "STORAGE_DOMAIN"


def test_an_unknown_entity_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: HOST, VM, DISK"):
        entity_type("CAR")


def test_a_task_shows_its_result_once_it_is_over() -> None:
    assert task_word(HostTask()) == "RUNNING"
    over = HostTask(state=TaskState.TASK_STATE_FINISHED, result=TaskResult.TASK_RESULT_CLEAN_FAILURE)
    assert task_word(over) == "CLEAN_FAILURE"
    assert task_word(HostTask(state=TaskState.TASK_STATE_UNKNOWN)) == "UNKNOWN"


def test_whole_numbers_survive_a_struct() -> None:
    values = {"size_mb": 1024, "ratio": 0.5, "disks": ["a", 2, {"deep": 3}], "on": True, "none": None}
    assert plain(struct(values)) == values
    assert isinstance(plain(struct(values))["size_mb"], int)


def test_an_absent_time_is_none() -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert moment(Job().end_time) is None
    assert moment(timestamp(noon)) == noon


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        timestamp(datetime(2026, 11, 21))  # noqa: DTZ001


def test_a_filter_joins_its_terms_and_leaves_out_those_not_given() -> None:
    assert where(status="FAILED", owner=None, visible=True) == 'status = "FAILED" AND visible = true'


def test_a_filter_escapes_quotes_and_stars() -> None:
    assert where(owner='a"b\\c*') == 'owner = "a\\"b\\\\c\\*"'
