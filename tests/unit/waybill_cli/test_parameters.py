"""From name=value to typed parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from waybill_cli.exits import Complaint, Exit
from waybill_cli.parameters import read_parameters, type_words

SCHEMA: dict[str, Any] = {
    "properties": {
        "vm_id": {"type": "string"},
        "size_mb": {"type": "integer"},
        "ratio": {"type": "number"},
        "force": {"type": "boolean"},
        "disk_ids": {"type": "array", "items": {"type": "string"}},
        "sizes": {"type": "array", "items": {"type": "integer"}},
        "host_id": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "limit": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        "labels": {"type": "object"},
        "kind": {"$ref": "#/$defs/Kind"},
        "anything": {},
    },
    "$defs": {"Kind": {"enum": ["thin", "thick"], "type": "string"}},
}


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("vm_id=vm-1", "vm-1"),
        ("vm_id=17", "17"),
        ("vm_id=", ""),
        ("vm_id=a=b", "a=b"),
        ("size_mb=1024", 1024),
        ("ratio=0.5", 0.5),
        ("force=yes", True),
        ("force=False", False),
        ("disk_ids=d1,d2", ["d1", "d2"]),
        ("disk_ids=d1", ["d1"]),
        ("disk_ids=", []),
        ('disk_ids=["d,1"]', ["d,1"]),
        ("sizes=1,2", [1, 2]),
        ("host_id=host-1", "host-1"),
        ("host_id=null", None),
        ("limit=3", 3),
        ('labels={"a": 1}', {"a": 1}),
        ("kind=thin", "thin"),
        ("anything=7", 7),
        ("anything=seven", "seven"),
    ],
)
def test_a_value_is_typed_by_the_schema(assignment: str, value: object) -> None:
    assert read_parameters(SCHEMA, [assignment]) == {assignment.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("assignment", "remedy"),
    [
        ("size_mb=big", "it takes integer"),
        ("size_mb=1.5", "it takes integer"),
        ("ratio=nan", "it takes number"),
        ("force=maybe", "it takes boolean"),
        ("limit=x", "it takes null or integer"),
        ("labels=[1]", "it takes object"),
        ("kind=fat", "it takes thin | thick"),
        ("sizes=1,x", "it takes integer"),
        ("vm_idd=1", "did you mean vm_id?"),
        ("colour=red", "it has vm_id, size_mb"),
        ("vm-1", "write name=value"),
        ("=x", "write name=value"),
    ],
)
def test_what_does_not_fit_is_complained_about_with_what_would(assignment: str, remedy: str) -> None:
    with pytest.raises(Complaint) as raised:
        read_parameters(SCHEMA, [assignment])
    assert raised.value.remedy.startswith(remedy)
    assert raised.value.exit_code is Exit.USAGE


def test_assignments_go_over_params() -> None:
    assert read_parameters(SCHEMA, ["size_mb=2"], '{"size_mb": 1, "vm_id": "a"}') == {"size_mb": 2, "vm_id": "a"}


def test_params_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_text(json.dumps({"vm_id": "vm-1"}))
    assert read_parameters(SCHEMA, [], f"@{file}") == {"vm_id": "vm-1"}


def test_params_are_sent_as_they_are() -> None:
    assert read_parameters(SCHEMA, [], '{"not in the schema": 1}') == {"not in the schema": 1}


@pytest.mark.parametrize("params", ["{", "[1]", "@/no/such/file"])
def test_params_that_are_no_object_are_complained_about(params: str) -> None:
    with pytest.raises(Complaint):
        read_parameters(SCHEMA, [], params)


def test_an_unknown_command_takes_anything() -> None:
    schema = {"additionalProperties": True}
    assert read_parameters(schema, ["a=1", "b=x"]) == {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("size_mb", "integer"),
        ("disk_ids", "list of string"),
        ("host_id", "string or null"),
        ("kind", "thin | thick"),
        ("anything", "any"),
    ],
)
def test_types_are_told_in_words(name: str, words: str) -> None:
    assert type_words(SCHEMA["properties"][name], SCHEMA) == words
