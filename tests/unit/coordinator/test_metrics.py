"""What a coordinator counts of its flows."""

from __future__ import annotations

import pytest
from tests.scrape import Scrape

from chassis.clock import ManualClock
from coordinator.metrics import FlowTallies, LeaseTallies

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECONDS = "waybill_coordinator_phase_duration_seconds"


def tallies() -> FlowTallies:
    return FlowTallies(flows=lambda: 1, tasks=lambda: 2, awaited=lambda: 3)


def test_a_phase_lasts_until_the_next_begins_and_the_last_until_the_end() -> None:
    flows = tallies()
    flows.job_ended("RunVm", {"VALIDATION": 10.0, "EXECUTION": 10.0, "FINALIZATION": 14.0}, 15.5, "")
    seen = Scrape(flows.collect())
    times = {phase: seen(f"{SECONDS}_sum", phase=phase) for phase in ("VALIDATION", "EXECUTION", "FINALIZATION")}
    assert times == {"VALIDATION": 0.0, "EXECUTION": 4.0, "FINALIZATION": 1.5}
    assert seen(f"{SECONDS}_count", type="RunVm") == 2  # of what began and ended at once nobody knows how long it took


def test_phases_that_were_read_from_rows_in_any_order_are_put_into_theirs() -> None:
    flows = tallies()
    flows.job_ended("RunVm", {"FINALIZATION": 14.0, "EXECUTION": 10.0}, 15.5, TRACE)
    seen = Scrape(flows.collect())
    assert seen(f"{SECONDS}_sum", phase="EXECUTION") == 4.0
    assert [exemplar.labels for exemplar in seen.exemplars(f"{SECONDS}_bucket")] == [{"trace_id": TRACE}] * 2


def test_a_job_that_was_refused_before_its_first_phase_has_none() -> None:
    flows = tallies()
    flows.job_ended("RunVm", {}, 15.5, "")
    assert Scrape(flows.collect())(f"{SECONDS}_count") == 0


def test_commands_are_counted_by_their_end() -> None:
    flows = tallies()
    flows.command_ended("RunVm", "ENDED_SUCCESSFULLY", 3.0, TRACE)
    flows.command_ended("RunVm", "ENDED_WITH_FAILURE", 4.0, "")
    seen = Scrape(flows.collect())
    assert seen("waybill_coordinator_commands_ended_total", type="RunVm", status="ENDED_WITH_FAILURE") == 1
    assert seen("waybill_coordinator_command_duration_seconds_sum", type="RunVm") == 7.0


def test_a_lease_grows_older_until_it_is_renewed() -> None:
    clock, renewed = ManualClock(), [0.0]
    lease = LeaseTallies(clock, held=lambda: True, renewed=lambda: renewed[0])
    clock.advance(2.5)
    assert Scrape(lease.collect())("waybill_coordinator_lease_age_seconds") == pytest.approx(2.5)
    renewed[0] = clock.monotonic()
    assert Scrape(lease.collect())("waybill_coordinator_lease_age_seconds") == 0
