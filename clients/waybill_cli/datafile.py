"""Entities in a file: a YAML or JSON list, with the contract's own names, as `waybill entities list -o yaml` writes it.

- entity_type: VM
  entity_id: vm-web
  name: web
  status: OK              # OK unless given
  declared: {memory_mb: 512, disk_ids: []}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from waybill.v1.jobs_pb2 import Entity
from waybill_cli.exits import Complaint
from waybill_client.words import entity_type, struct

_WRITTEN = {"entity_type", "entity_id", "name", "status", "declared"}
_IGNORED = {"observed", "version", "revision", "progress"}  # a list's output may be loaded as it is


def read_entities(path: Path) -> list[Entity]:
    """The entities of a file; Complaint names the entry and field that is wrong."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Complaint(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Complaint(f"{path} is neither YAML nor JSON: {error}") from None
    if not isinstance(content, list):
        raise Complaint(f"{path} must be a list of entities", "each with entity_type, entity_id, name, declared")
    return [_entity(entry, f"{path}, entry {number}") for number, entry in enumerate(content, 1)]


def _entity(entry: Any, place: str) -> Entity:
    if not isinstance(entry, dict):
        raise Complaint(f"{place}: {entry!r} is no entity", "write entity_type, entity_id, name, declared")
    unknown = set(entry) - _WRITTEN - _IGNORED
    if unknown:
        raise Complaint(
            f"{place}: no field {', '.join(sorted(map(str, unknown)))}", "what is declared goes in declared"
        )
    for name in ("entity_type", "entity_id"):
        if not entry.get(name):
            raise Complaint(f"{place}: {name} is missing")
    try:
        return Entity(
            entity_type=entity_type(str(entry["entity_type"])),
            entity_id=str(entry["entity_id"]),
            name=str(entry.get("name") or ""),
            status=str(entry.get("status") or ""),
            declared=struct(entry.get("declared") or {}),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise Complaint(f"{place}: {error}") from None
