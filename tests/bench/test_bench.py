"""That the bench works, not what it measures: no time is asserted anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True, check=False)


def test_a_short_run_is_valid_and_says_what_everything_cost() -> None:
    done = bench("--jobs", "60", "--in-flight", "20", "--only", "single", "--only", "raw", "--json")

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    run = said["throughput"]["single"]
    assert run["jobs"] == 60
    assert run["commits_per_job"] >= 2  # more if a slow machine needs an interim one
    assert {"coordinator", "jobstore", "hostagent", "postgres", "submitter", "watcher"} < run["cpu_per_job"].keys()
    assert said["raw"]["jobs_per_second"] > 0
    assert said["latency"] is None


def test_a_wide_job_says_what_its_steps_cost_from_first_to_last() -> None:
    done = bench("--wide", "40", "--json")

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    wide = said["wide"]
    assert (wide["disks"], said["throughput"]) == (40, {})
    assert wide["whole"]["steps"] == wide["in_jobs_of_five"]["steps"] == 40
    assert sum(tenth["steps"] for tenth in wide["tenths"]) < 40  # from the first step's end on
    assert {"coordinator", "jobstore", "hostagent", "postgres", "watcher"} == wide["whole"]["cpu_per_step"].keys()
    assert {"coordinator-1", "jobstore-1", "host-1", "host-2", "postgres"} <= wide["memory"].keys()
    assert all(found["before"] > 0 and found["after"] > 0 for found in wide["memory"].values())
    assert {"answered", "listed", "read as a tree"} < wide["seconds"].keys()


def test_what_cannot_be_measured_is_refused() -> None:
    assert bench("--only", "everything").returncode == 2
    assert bench("--wide", "0").returncode == 2
