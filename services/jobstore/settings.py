"""The jobstore's settings: `JOBSTORE_*` in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from chassis.settings import ServiceSettings
from jobstore.postgres.postgres import EMBEDDED


def _default_data_dir() -> Path:
    """A folder of the user's, as the XDG rules name it; below WAYBILL_DATA if that is set."""
    if root := os.environ.get("WAYBILL_DATA"):
        return Path(root) / "jobstore"
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "waybill" / "jobstore"


@dataclass(frozen=True)
class Retention:
    """How long things are kept, in seconds; -1: for ever."""

    finished: float
    """Jobs that ended FINISHED."""
    others: float
    """Jobs that ended otherwise."""
    tombstones: float
    """What is known of a deleted job."""


class Settings(ServiceSettings, env_prefix="JOBSTORE_"):
    """What a jobstore is told from outside."""

    listen: str = Field("127.0.0.1:50052", description="Address to serve on; port 0 takes a free one.")
    database_url: str = Field(
        EMBEDDED, description="`embedded`, or the postgresql:// URL of a server, version 15 or newer."
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Folder of the embedded database; one jobstore owns it."
    )
    policy_file: str = Field("", description="TOML file of who may see what; empty: everything is for everybody.")
    finished_ttl_seconds: float = Field(
        86_400, ge=-1, description="How long jobs that ended FINISHED are kept; -1: for ever. Default: a day."
    )
    failed_ttl_seconds: float = Field(
        604_800, ge=-1, description="How long jobs that ended otherwise are kept; -1: for ever. Default: a week."
    )
    tombstone_seconds: float = Field(
        3_600,
        ge=1,
        description="How long a deleted job is known as such: watches resume from before, its request id is refused.",
    )
    sweep_seconds: float = Field(300, ge=1, description="How often is looked what was kept for long enough.")
    log_level: str = Field("INFO", description="Least severe log lines that are written: DEBUG, INFO, WARNING, ERROR.")

    @property
    def retention(self) -> Retention:
        """How long things are kept."""
        return Retention(self.finished_ttl_seconds, self.failed_ttl_seconds, self.tombstone_seconds)

    @field_validator("finished_ttl_seconds", "failed_ttl_seconds")
    @classmethod
    def _is_a_time_or_for_ever(cls, seconds: float) -> float:
        if -1 < seconds < 0:
            raise ValueError("must be -1, 0 or more")
        return seconds

    @field_validator("database_url")
    @classmethod
    def _is_embedded_or_postgres(cls, url: str) -> str:
        if url != EMBEDDED and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be `embedded` or a postgresql:// URL")
        return url

    @field_validator("log_level")
    @classmethod
    def _is_a_level(cls, level: str) -> str:
        if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return level.upper()
