"""The invariants of a flow, whatever happens to it in whatever order.

Set WAYBILL_STORMS to run more of them (200 seeds here take about a second).
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.unit.coordinator.flow_storm import Storm

STORMS = int(os.environ.get("WAYBILL_STORMS", "100"))


def weather(rng: Random) -> Storm:
    """A storm from its beginning to its end."""
    storm = Storm(rng)
    storm.rage()
    storm.calm_down()
    storm.judge()
    return storm


@settings(
    max_examples=STORMS,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.randoms(use_true_random=False))
def test_whatever_happens_to_a_flow_its_promises_hold(rng: Random) -> None:
    storm = weather(rng)
    for what in storm.happened:
        event(what)


def test_everything_does_happen() -> None:
    """The same storms, from seeds: none of the above would mean anything if they were calm."""
    happened = Counter[str]()
    for seed in range(STORMS):
        happened += weather(Random(seed)).happened
    expected = ["plan"]
    assert [what for what in expected if happened[what] < STORMS / 50] == []
