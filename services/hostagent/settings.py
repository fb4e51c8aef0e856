"""What a host agent is told by its environment."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from pydantic import Field

from chassis.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="HOSTAGENT_"):
    """Environment of `python -m hostagent`."""

    listen: str = Field(default="127.0.0.1:50061", description="Address to serve on; port 0 takes a free one.")
    host_id: str = Field(
        default_factory=platform.node, min_length=1, max_length=256, description="Id of this host's HOST entity."
    )
    driver: str = Field(default="sim", description="Which of the installed drivers does the work.")
    data_dir: Path | None = Field(
        default=None,
        description="Folder of the ledger and of the driver's data; by default under the user's data folder.",
    )
    workers: int = Field(default=10, ge=1, le=1000, description="How many tasks run at once.")
    queue: int = Field(default=500, ge=1, le=100_000, description="How many tasks may wait for a worker.")
    cleared_days: float = Field(
        default=7.0, gt=0, description="For how many days the ids of cleared tasks are remembered."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Which log lines are written."
    )
    sim_work_ms: float = Field(default=0.0, ge=0, description="Driver sim: how long a task works, in milliseconds.")
    sim_boot_ms: float = Field(
        default=200.0, ge=0, description="Driver sim: how long a VM takes to boot, in milliseconds."
    )

    def data_folder(self) -> Path:
        """Returns the data folder."""
        return self.data_dir or _users_data_folder() / "waybill" / "hosts" / self.host_id


def _users_data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
