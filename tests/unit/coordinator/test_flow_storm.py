"""The invariants of a flow, whatever happens to it in whatever order.

Set WAYBILL_STORMS to run more of them (200 seeds here take about a second).
"""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from tests.unit.coordinator.flow_storm import Storm

STORMS = int(os.environ.get("WAYBILL_STORMS", "30"))


def weather(rng: Random) -> Storm:
    """A storm from its beginning to its end."""
    storm = Storm(rng)
    storm.rage()
    storm.calm_down()
    storm.judge()
    return storm


@pytest.mark.rule("semantics §2: A command never ends early")
@pytest.mark.rule("semantics §2: Not while one expected node is missing, unstarted or running")
@pytest.mark.rule("semantics §2: Success reported with less done than declared must be impossible")
@pytest.mark.rule("semantics §2: The end method runs, always, exactly once in effect")
@pytest.mark.rule("semantics §2: A job in an end status has no lock, no live command, no running task, no open step")
@pytest.mark.rule("semantics §8: It must be empty after anything")
@settings(
    max_examples=STORMS,
    deadline=None,
    print_blob=True,
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # of choices by the thousand: it would take hours
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.randoms(use_true_random=False))
def test_whatever_happens_to_a_flow_its_promises_hold(rng: Random) -> None:
    storm = weather(rng)
    for what in storm.happened:
        event(what)
