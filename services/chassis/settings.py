"""Settings from the environment: one frozen class a service, every mistake told at once.

    class Settings(ServiceSettings, prefix="JOBSTORE_"):
        listen: str = Field("127.0.0.1:50052", description="Address to serve on; port 0 takes a free one.")

A variable with the service's prefix that no field explains is an error: a misspelt setting that is silently ignored is
the worst kind of default.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

BAD_SETTINGS = 2
"""The exit code of a process that was started with settings it cannot use."""

_KUBERNETES_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")


class ServiceSettings(BaseSettings):
    """The settings of a service: subclass with `prefix="JOBSTORE_"` and explained fields."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file=None, validate_default=True)

    def __init_subclass__(cls, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if prefix is not None:
            cls.model_config = SettingsConfigDict(**{**cls.model_config, "env_prefix": prefix})


_Settings = TypeVar("_Settings", bound=ServiceSettings)


class SettingsError(Exception):
    """What is wrong with the environment, one complaint a line."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


def load(settings_class: type[_Settings]) -> _Settings:
    """Reads the settings, or prints everything that is wrong with them to stderr and exits with 2."""
    try:
        return read(settings_class, os.environ)
    except SettingsError as error:
        print(f"{len(error.complaints)} bad setting(s):", *error.complaints, sep="\n  ", file=sys.stderr, flush=True)
        raise SystemExit(BAD_SETTINGS) from None


def read(settings_class: type[_Settings], environment: Mapping[str, str]) -> _Settings:
    """Reads the settings out of an environment, or raises all complaints as one `SettingsError`."""
    complaints = list(_unknown(settings_class, environment))
    try:
        settings = settings_class()
    except ValidationError as error:
        complaints += _bad_values(settings_class, error)
    if complaints:
        raise SettingsError(complaints)
    return settings


def _names(settings_class: type[ServiceSettings]) -> dict[str, str]:
    prefix = settings_class.model_config.get("env_prefix", "")
    return {f"{prefix}{field}".upper(): field for field in settings_class.model_fields}


def _unknown(settings_class: type[ServiceSettings], environment: Mapping[str, str]) -> Iterator[str]:
    prefix = settings_class.model_config.get("env_prefix", "").upper()
    known = _names(settings_class)
    for name in sorted(environment):
        if prefix and name.upper().startswith(prefix) and name.upper() not in known:
            yield f"{name}: no such setting; {_hint(name, list(known))}"


def _hint(name: str, known: list[str]) -> str:
    if _KUBERNETES_LINK.search(name):
        return "if Kubernetes put it there, set enableServiceLinks: false"
    if nearest := difflib.get_close_matches(name.upper(), known, n=1):
        return f"did you mean {nearest[0]}?"
    return f"there are {', '.join(known)}"


def _bad_values(settings_class: type[ServiceSettings], error: ValidationError) -> Iterator[str]:
    names = {field: name for name, field in _names(settings_class).items()}
    for problem in error.errors(include_input=False, include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        purpose = settings_class.model_fields[field].description if field in settings_class.model_fields else None
        yield f"{names.get(field, 'settings')}: {problem['msg']}" + (f" ({purpose})" if purpose else "")
