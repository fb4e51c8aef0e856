"""The keepalive figures of both ends, side by side because they must fit.

A client that pings more often than the server allows is thrown out with `too_many_pings`; a server that allows it must
say so in two options. The ping timeout has two names as well, and hides at 60 s under the second.
"""

from __future__ import annotations

from typing import Final

Options = tuple[tuple[str, int], ...]

CLIENT_KEEPALIVE: Final[Options] = (
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.http2.ping_timeout_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_KEEPALIVE: Final[Options] = (
    # Half of what clients do, since timers on a busy machine are late by their own measure.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A watcher that vanished without a word is noticed from this side too, less eagerly.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
