"""A verb's signature as the schema of its arguments."""

from __future__ import annotations

from typing import Any

import pytest

from hostagent.drivers.arguments import ArgumentSchema, Megabytes, ObjectId
from hostagent.task import Json


async def create(host: object, work: object, *, volume_id: ObjectId, size_mb: Megabytes) -> Json: ...


async def program(
    host: object, work: object, *, rules: list[Json], keep: bool = False, notes: dict[str, Json]
) -> Json: ...


SCHEMA = ArgumentSchema.of(create)


def test_arguments_that_fit_have_no_violation() -> None:
    assert SCHEMA.violations({"volume_id": "v", "size_mb": 5}) == []


def test_an_argument_with_a_default_may_be_left_out() -> None:
    schema = ArgumentSchema.of(program)
    assert schema.violations({"rules": [], "notes": {}}) == []
    assert schema.violations({"rules": [], "notes": {}, "keep": True}) == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"volume_id": "v"}, "arguments.size_mb"),
        ({"volume_id": "v", "size_mb": 5, "color": "red"}, "arguments.color"),
        ({"volume_id": "", "size_mb": 5}, "arguments.volume_id"),
        ({"volume_id": "x" * 257, "size_mb": 5}, "arguments.volume_id"),
        ({"volume_id": "a\x00b", "size_mb": 5}, "arguments.volume_id"),
        ({"volume_id": 7, "size_mb": 5}, "arguments.volume_id"),
        ({"volume_id": "v", "size_mb": 0}, "arguments.size_mb"),
        ({"volume_id": "v", "size_mb": 1.5}, "arguments.size_mb"),
        ({"volume_id": "v", "size_mb": True}, "arguments.size_mb"),
        ({"volume_id": "v", "size_mb": None}, "arguments.size_mb"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    ((found, _),) = SCHEMA.violations(arguments)
    assert found == field


def test_all_bad_arguments_are_named_at_once() -> None:
    assert {field for field, _ in SCHEMA.violations({"size_mb": "x", "y": 1})} == {
        "arguments.volume_id",
        "arguments.size_mb",
        "arguments.y",
    }


def test_a_type_without_a_check_is_a_defect_of_the_verb() -> None:
    async def strange(host: object, work: object, *, when: complex) -> Json: ...

    with pytest.raises(TypeError, match="when"):
        ArgumentSchema.of(strange)
