"""Tasks that go silent or whose host has another memory: stopped, found out about, fenced."""

from __future__ import annotations

from tests.unit.coordinator.flow_scenario import DISK, a_running_flow

from coordinator.plan import task
from coordinator.rows import Status

SYNC = task("h1", "sync", {"volume_id": "v1"}, entity=DISK, expected_generation=7)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_a_task_is_asked_for_again_with_the_generation_that_it_expects() -> None:
    flow = a_running_flow(SYNC)
    flow.crash()
    assert flow.leaf("sync").expected_generation == 7
    flow.host_says("sync")
    flow.advance(1)
    assert flow.ended() is Status.FINISHED
