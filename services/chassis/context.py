"""Who calls, and under which name: the one thing that every call has besides its request."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import NamedTuple

ANONYMOUS = "anonymous"

_CORRELATION_ID = re.compile(r"[0-9A-Za-z_-]{1,50}")


class CallContext(NamedTuple):
    """The call being answered."""

    correlation_id: str
    """The caller's name for the action. Empty only outside a call."""
    user: str
    """The caller: `anonymous` unless it said otherwise."""


_OUTSIDE = CallContext(correlation_id="", user=ANONYMOUS)
_current: ContextVar[CallContext] = ContextVar("waybill_call", default=_OUTSIDE)


def current() -> CallContext:
    """Returns the call that this code works for; outside of one, an anonymous one without correlation id."""
    return _current.get()


def enter(call: CallContext) -> None:
    """Makes this the current call of the running task and of the tasks that it starts from now on."""
    _current.set(call)


def valid_correlation_id(text: str) -> bool:
    """Tells whether this is 1-50 characters of `[0-9A-Za-z_-]`. Anything else is refused, never cut or cleaned."""
    return _CORRELATION_ID.fullmatch(text) is not None
