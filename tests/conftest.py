"""What all tests have in common.

Hypothesis draws the same examples in every run, so that a red test is red for a reason;
`HYPOTHESIS_PROFILE=search` looks for new ones instead, and for longer.
"""

from __future__ import annotations

import gc
import os

import structlog
from hypothesis import settings
from tests.rules import pytest_configure

__all__ = ["pytest_configure"]

settings.register_profile("same", derandomize=True, deadline=None, max_examples=15)
settings.register_profile("search", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


# What goes wrong on purpose is logged with its traceback; to colour all of them takes half a second.
_plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _plain])

# All that is made while tests are collected is kept: nothing is to be found in it.
gc.disable()


def pytest_collection_finish() -> None:
    """What has been imported is never garbage: to look through it again and again takes a tenth of the unit folder."""
    gc.freeze()
    gc.enable()
