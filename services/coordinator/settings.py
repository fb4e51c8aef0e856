"""What can be set about a coordinator: `COORDINATOR_…` in the environment."""

from __future__ import annotations

from pydantic import Field

from chassis.settings import ServiceSettings
from coordinator.flow.tree import PLAN_SECONDS


class Settings(ServiceSettings, env_prefix="COORDINATOR_"):
    """The coordinator's settings."""

    listen: str = Field("127.0.0.1:50051", description="address to serve on; port 0 takes a free one")
    jobstore: str = Field(
        "127.0.0.1:50052", min_length=1, description="address of the jobstore, or several separated by commas"
    )
    poll_seconds: float = Field(10.0, gt=0, description="how often hosts are asked for their tasks beneath the streams")
    stall_seconds: float = Field(
        1800.0, gt=0, description="how long a running task may make no progress before it is stopped, with an alarm"
    )
    plan_seconds: float = Field(
        PLAN_SECONDS, gt=0, description="how long a caller of RunCommand waits for the plan; then the job comes without"
    )
    lease_seconds: float = Field(3.0, gt=0.1, description="silence after which this coordinator's flows may be taken")
    policy_file: str = Field("", description="TOML file of who may do what; empty: everything is for everybody")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="least severity that is logged")
