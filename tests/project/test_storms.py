"""That the storms of the flows' invariants are none in a teacup: all that can happen does."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.unit.coordinator.test_flow_storm import weather

SEEDS = 300


def test_everything_does_happen() -> None:
    """The same storms, from seeds: none of the above would mean anything if they were calm."""
    happened = Counter[str]()
    for seed in range(SEEDS):
        happened += weather(Random(seed)).happened
    assert {what: happened[what] for what, share in OFTEN.items() if happened[what] < share * SEEDS} == {}


OFTEN = {
    "plan": 1.5,
    "end": 1.5,
    "after failure": 0.3,
    "attempt 2": 0.05,
    "cleaned up": 0.1,
    "recorded": 3,
    "compared with a loaded tree": 1.5,
    "SUCCESS": 1,
    "CLEAN_SUCCESS": 0.1,
    "CLEAN_FAILURE": 0.05,
    "lost": 0.05,
    "progress": 0.5,
    "repeated report": 1,
    "seen": 0.3,
    "stopped": 0.05,
    "stall": 0.05,
    "fence DONE": 0.01,
    "fence FENCED": 0.01,
    "fence DOUBTFUL": 0.01,
    "cancel": 0.5,
    "crash": 0.3,
    "crash, commit lost": 0.03,
    "crash, commit stored": 0.03,
    "first commit refused CONFLICT": 0.01,
    "first commit refused LOCKED": 0.02,
    "first commit refused REQUEST_ID_REUSED": 0.01,
    "later commit refused CONFLICT": 0.01,
    "later commit refused LOCKED": 0.02,
    "later commit refused INTERNAL": 0.1,
    "timer slow": 0.5,
    "timer progress": 0.2,
    "timer retry": 0.08,
    "timer end": 0.5,
    "timer leaf": 0.3,
    "timer deadline": 0.05,
    "undone": 0.05,
    "inlined child ended": 0.1,
    "another job ends": 0.05,
    "a lock is freed that it queues for": 0.01,
    "timer locks": 0.01,
    "stop asked": 0.05,
    "priority asked": 0.05,
    "job FINISHED": 0.2,
    "job FAILED": 0.2,
    "job ABORTED": 0.1,
    "job SKIPPED": 0.005,
}
"""What must happen in so many storms out of one."""
