"""A process that is to follow a policy does not start without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("service", ["coordinator", "jobstore"])
def test_a_policy_that_cannot_be_used_keeps_the_process_from_starting(service: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[users]\nann = ["operatr"]\n[[roles.operator]]\ndo = ["sea"]\ncommands = ["*"]\n')
    for name, complaints in (
        (str(file), ["no action 'sea'", "no role 'operatr'"]),
        (str(tmp_path / "missing.toml"), ["No such file"]),
        (str(tmp_path), ["cannot be read"]),
    ):
        environment = {**os.environ, f"{service.upper()}_POLICY_FILE": name, "WAYBILL_DATA": str(tmp_path / "data")}
        ended = subprocess.run(
            [sys.executable, "-m", service], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert all(complaint in ended.stderr for complaint in complaints), ended.stderr
    assert not (tmp_path / "data").exists()
