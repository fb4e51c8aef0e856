"""`waybill demo`: the whole story, as a person runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_shows_what_it_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "waybill_cli", "demo", "--work-ms", "300", "--data", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "All of it is so." in ended.stdout
    assert "TASK_FAILED: the volume is in use by a backup" in ended.stdout
    assert "DISK_ILLEGAL" in ended.stdout
    assert "CheckConsistency: no violation" in ended.stdout
    pids = re.findall(r" pid (\d+)$", ended.stdout, re.MULTILINE)
    assert len(pids) == 4
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_demo_says_what_is_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    command = [sys.executable, "-m", "waybill_cli", "demo", "--data", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
