"""Settings from the environment: one frozen class a service, every mistake told at once.

    class Settings(ServiceSettings, env_prefix="JOBSTORE_"):
        listen: str = Field("127.0.0.1:50052", description="address to serve on; port 0 takes a free one")

A variable with the service's prefix that no field explains is an error: a misspelt setting that is silently ignored is
the worst kind of default. Complaints never repeat a value, which may be a password.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from typing import Final, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

BAD_SETTINGS: Final = 2
"""The exit code of a process that was started with settings it cannot use."""

_KUBERNETES_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")


class ServiceSettings(BaseSettings):
    """The settings of a service: subclass with `env_prefix="JOBSTORE_"` and fields that say what they are for."""

    traces_endpoint: str = Field(default="", description="host:port of an OTLP/gRPC collector for traces; empty: none")
    metrics_listen: str = Field(default="", description="host:port to serve Prometheus metrics on; empty: none")

    model_config = SettingsConfigDict(frozen=True, extra="ignore", validate_default=True)


_Settings = TypeVar("_Settings", bound=ServiceSettings)


class BadSettings(Exception):  # noqa: N818
    """The environment is no good; one complaint for each mistake, naming the variable and the remedy."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


def load(settings_class: type[_Settings]) -> _Settings:
    """Reads the settings, or prints everything that is wrong with them to stderr and exits with 2."""
    try:
        return read(settings_class)
    except BadSettings as bad:
        print("cannot start with these settings:", *bad.complaints, sep="\n  ", file=sys.stderr, flush=True)
        raise SystemExit(BAD_SETTINGS) from None


def read(settings_class: type[_Settings]) -> _Settings:
    """Reads the settings out of the environment. Raises BadSettings."""
    complaints = list(_unknown_names(settings_class))
    try:
        settings = settings_class()
    except ValidationError as error:
        raise BadSettings(complaints + list(_bad_values(settings_class, error))) from None
    if complaints:
        raise BadSettings(complaints)
    return settings


def _prefix(settings_class: type[ServiceSettings]) -> str:
    return settings_class.model_config.get("env_prefix", "").upper()


def _names(settings_class: type[ServiceSettings]) -> dict[str, str]:
    """Returns the variable of each field."""
    return {field: f"{_prefix(settings_class)}{field}".upper() for field in settings_class.model_fields}


def _unknown_names(settings_class: type[ServiceSettings]) -> Iterator[str]:
    prefix, known = _prefix(settings_class), list(_names(settings_class).values())
    for name in sorted(os.environ):
        if prefix and name.upper().startswith(prefix) and name.upper() not in known:
            yield f"{name}: no such setting; {_hint(name, known)}"


def _hint(name: str, known: list[str]) -> str:
    if _KUBERNETES_LINK.search(name):
        return "if Kubernetes put it there, say `enableServiceLinks: false` in the pod"
    if nearest := difflib.get_close_matches(name.upper(), known, n=1):
        return f"did you mean {nearest[0]}?"
    return f"there are {', '.join(known)}"


def _bad_values(settings_class: type[ServiceSettings], error: ValidationError) -> Iterator[str]:
    names, fields = _names(settings_class), settings_class.model_fields
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        purpose = fields[field].description if field in fields else None
        yield f"{names.get(field, 'settings')}: {problem['msg']}" + (f" ({purpose})" if purpose else "")
