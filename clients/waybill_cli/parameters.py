"""From `key=value` on the command line to a command's parameters, by the command type's own JSON Schema.

    size_mb=1024        a number, because the schema says integer
    disk_ids=d1,d2      a list; also disk_ids='["d1","d2"]'
    force=yes           true
    host_id=null        null, where the schema allows it

A value that does not fit is complained about here, with what would fit; what values *mean* is the service's to judge.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from waybill_cli.exits import Complaint

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_parameters(schema: Mapping[str, Any], assignments: Iterable[str], params: str = "") -> dict[str, Any]:
    """The parameters of `params` (JSON, or @file with JSON), then of the assignments, each typed by the schema."""
    parameters = _read_json_object(params) if params else {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise Complaint(f"{assignment!r} is not a parameter", "write name=value")
        parameters[name] = _typed(name, text, _property(schema, name), schema)
    return parameters


def type_words(property_schema: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a parameter takes, in words: `integer`, `list of string`, `string or null`."""
    words = []
    for variant in _variants(property_schema, schema):
        if "enum" in variant:
            words.append(" | ".join(str(each) for each in variant["enum"]))
        elif variant.get("type") == "array":
            words.append(f"list of {type_words(variant.get('items', {}), schema)}")
        else:
            words.append(str(variant.get("type", "any")))
    return " or ".join(words)


def _read_json_object(params: str) -> dict[str, Any]:
    try:
        text = Path(params[1:]).read_text() if params.startswith("@") else params
        value = json.loads(text)
    except OSError as error:
        raise Complaint(f"cannot read {params[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise Complaint(f"--params is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Complaint("--params must be a JSON object", """like '{"vm_id": "vm-1"}'""")
    return value


def _property(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    if name in properties or schema.get("additionalProperties"):
        return properties.get(name, {})
    near = difflib.get_close_matches(name, properties, n=1)
    known = f"it has {', '.join(properties)}" if properties else "it has none"
    raise Complaint(f"no parameter {name!r}", f"did you mean {near[0]}?" if near else known)


def _typed(name: str, text: str, property_schema: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    for variant in sorted(_variants(property_schema, schema), key=_takes_any_text):  # those that take any text last
        try:
            return _read_as(variant, text, schema)
        except (ValueError, KeyError):
            continue
    raise Complaint(f"parameter {name!r} cannot be {text!r}", f"it takes {type_words(property_schema, schema)}")


def _takes_any_text(variant: Mapping[str, Any]) -> bool:
    return variant.get("type") in ("string", None) and "enum" not in variant


def _variants(property_schema: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a value may be: one simple schema each."""
    if "$ref" in property_schema:
        name = str(property_schema["$ref"]).rpartition("/")[2]
        yield from _variants(schema.get("$defs", {}).get(name, {}), schema)
    elif choices := property_schema.get("anyOf") or property_schema.get("oneOf") or property_schema.get("allOf"):
        for choice in choices:
            yield from _variants(choice, schema)
    elif isinstance(property_schema.get("type"), list):
        for each in property_schema["type"]:
            yield {**property_schema, "type": each}
    else:
        yield property_schema


def _read_as(variant: Mapping[str, Any], text: str, schema: Mapping[str, Any]) -> Any:
    if "enum" in variant:
        return {str(each): each for each in variant["enum"]}[text]
    match variant.get("type"):
        case "integer":
            return int(text)
        case "number":
            return _finite(text)
        case "boolean":
            return _FLAGS[text.lower()]
        case "null":
            return {"null": None}[text]
        case "array":
            return _read_list(variant.get("items", {}), text, schema)
        case "object":
            return _read_json(text, dict)
        case "string":
            return text
        case _:
            return _read_anything(text)


def _read_list(items: Mapping[str, Any], text: str, schema: Mapping[str, Any]) -> list[Any]:
    if text.startswith("["):
        return list(_read_json(text, list))
    return [_typed("item", each.strip(), items, schema) for each in text.split(",") if each.strip()]


def _read_json(text: str, kind: type) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(text)
    return value


def _read_anything(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
