"""What others' code says, as the core keeps it."""

from __future__ import annotations

import grpc

from chassis.errors import WaybillError
from coordinator import wire
from coordinator.world import Refused


def test_an_error_is_kept_in_words_that_can_be_stored() -> None:
    error = WaybillError(grpc.StatusCode.ABORTED, "ODD", "half \ud83d, \0 and \x1b[31mred\nmore", metadata={"k": "\0"})
    failure = wire.failure_of(error)
    assert (failure.code, failure.reason) == (10, "ODD")
    assert failure.message == "half \\ud83d, \\x00 and \\x1b[31mred\nmore"
    assert failure.metadata == {"k": "\\x00"}
    wire.status_of(failure).SerializeToString()


def test_an_error_is_not_kept_endlessly() -> None:
    error = WaybillError(grpc.StatusCode.ABORTED, "LONG", "Größe 𝒳 " * 100_000)
    assert len(wire.failure_of(error).message) == wire.LONGEST_WORDS


def test_the_facts_of_a_refusal_may_be_numbers() -> None:
    assert wire.failure_of(Refused("TOO_LARGE", "it is", size_mb=7)).metadata == {"size_mb": "7"}
