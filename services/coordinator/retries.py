"""When to ask again, and how soon.

A failed call is one of two things: somebody of ours decided (an answer, sent as an error), or nobody did and the
outcome is unknown. The second is normal: what we send may be repeated, so the answer to it is a loop with a growing,
jittered pause.
"""

from __future__ import annotations

import random

import grpc

from chassis.errors import DETAILS_KEY, WaybillError

_NOBODY_DECIDED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_ONLY_WITH_DETAILS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}  # bare, they are the transport's noise


def verdict(error: grpc.aio.AioRpcError) -> WaybillError | None:
    """Returns what was decided about a call, or None when nobody did and the same should be sent again."""
    code = error.code()
    if code in _NOBODY_DECIDED:
        return None
    if code in _ONLY_WITH_DETAILS and not _has_details(error):
        return None
    return WaybillError.from_rpc_error(error)


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())


class Backoff:
    """Pauses that double up to a limit, each at random between half of it and all of it."""

    def __init__(self, rng: random.Random, *, first: float = 0.05, longest: float = 1.0) -> None:
        """`first` and `longest` in seconds."""
        self._rng = rng
        self._first = first
        self._longest = longest
        self._pause = first

    def next(self) -> float:
        """Returns the seconds to wait now."""
        pause, self._pause = self._pause, min(2 * self._pause, self._longest)
        return pause * (0.5 + self._rng.random() / 2)

    def reset(self) -> None:
        """Begins small again: somebody answered."""
        self._pause = self._first
