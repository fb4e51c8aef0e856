"""`waybill up` as a program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def waybill_up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "waybill_cli", "up", "--json", "--ports", "auto", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as up:
        yield up
        up.kill()


def test_waybill_up_tells_in_json_where_everything_is_and_ends_with_ctrl_c(
    waybill_up: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert waybill_up.stdout is not None
    told = json.loads(waybill_up.stdout.readline())
    assert [host["host_id"] for host in told["hosts"]] == ["host-1", "host-2"]
    assert told["data"] == str(tmp_path)
    assert told["database_url"].startswith("postgres")
    pids = [each["pid"] for kind in ("coordinators", "jobstores", "hosts") for each in told[kind]]
    waybill_up.send_signal(signal.SIGINT)
    assert waybill_up.wait(30) == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
