"""Filters for list and watch calls."""

from __future__ import annotations

import re


def where(**terms: str | bool | None) -> str:
    """A filter in which all of the terms must hold; a term that is None is left out. A star is a star, no wildcard.

    >>> where(status="FAILED", entity="VM/vm-1", owner=None)
    'status = "FAILED" AND entity = "VM/vm-1"'
    """
    return " AND ".join(f"{name} = {_literal(value)}" for name, value in terms.items() if value is not None)


def _literal(value: str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return '"' + re.sub(r'(["*\\])', r"\\\1", value) + '"'
