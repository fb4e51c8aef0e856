"""Entities in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from waybill.v1.jobs_pb2 import EntityType
from waybill_cli.datafile import read_entities
from waybill_cli.demo import DATA_CENTRE, FAILING_DISK
from waybill_cli.exits import Complaint
from waybill_cli.records import record
from waybill_client.words import plain


def a_file(folder: Path, content: str) -> Path:
    file = folder / "entities.yaml"
    file.write_text(content)
    return file


def test_entities_are_read(tmp_path: Path) -> None:
    file = a_file(
        tmp_path, "- {entity_type: vm, entity_id: vm-1, name: web, declared: {memory_mb: 512, disk_ids: [a]}}"
    )
    (entity,) = read_entities(file)
    assert (entity.entity_type, entity.entity_id, entity.name) == (EntityType.ENTITY_TYPE_VM, "vm-1", "web")
    assert plain(entity.declared) == {"memory_mb": 512, "disk_ids": ["a"]}


def test_what_a_list_shows_can_be_loaded(tmp_path: Path) -> None:
    entities = read_entities(DATA_CENTRE)
    entities[0].version, entities[0].observed.state = 3, "UP"
    again = read_entities(a_file(tmp_path, yaml.safe_dump([record(entity) for entity in entities])))
    entities[0].ClearField("observed")
    entities[0].version = 0
    assert again == entities


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "neither YAML nor JSON"),
        ("a: b", "must be a list"),
        ("- just text", "entry 1: 'just text' is no entity"),
        ("- {entity_type: VM}", "entry 1: entity_id is missing"),
        ("- {entity_type: CAR, entity_id: a}", "no entity type 'CAR'; known: HOST, VM"),
        ("- {entity_type: VM, entity_id: a, memory_mb: 3}", "entry 1: no field memory_mb"),
        ("- {entity_type: VM, entity_id: a, declared: 7}", "entry 1"),
        ("- {entity_type: VM, entity_id: a, declared: {when: 2026-01-01}}", "entry 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(Complaint) as raised:
        read_entities(a_file(tmp_path, content))
    assert message in raised.value.message


def test_a_missing_file_is_complained_about(tmp_path: Path) -> None:
    with pytest.raises(Complaint, match="No such file"):
        read_entities(tmp_path / "nothing.yaml")


def test_the_demo_has_two_vms_with_four_disks_over_both_hosts() -> None:
    disks = [
        plain(each.declared) for each in read_entities(DATA_CENTRE) if each.entity_type == EntityType.ENTITY_TYPE_DISK
    ]
    for vm_id in ("vm-web", "vm-mail"):
        hosts = [disk["host_id"] for disk in disks if disk["vm_id"] == vm_id]
        assert (len(hosts), set(hosts)) == (4, {"host-1", "host-2"})
    assert FAILING_DISK in {each.entity_id for each in read_entities(DATA_CENTRE)}
