"""Becomes Jaeger, as a child of the supervisor (`process.py`): `python -m waybill_cli.jaegerd`.

Jaeger knows neither of the line that tells where a child listens nor of the supervisor's pipe, so both are seen to
before it takes over this process. What is announced is its health service, which says SERVING once every part of it is.

Its wish to die with the supervisor is the kernel's to grant. Where that is not Linux, a Jaeger whose supervisor was
killed stays, and has to be ended by hand.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
BINARY = _CHECKOUT / "build" / "jaeger" / "jaeger"
CONFIGURATION = _CHECKOUT / "deploy" / "jaeger"

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Takes JAEGERD_LISTEN for the health service (port 0: a free one), and all else from Jaeger's own settings."""
    _die_with(int(os.environ["WAYBILL_SUPERVISOR_FD"]))
    host, _, port = os.environ["JAEGERD_LISTEN"].rpartition(":")
    port = port if int(port) else str(free_port(host))
    print(f"listening {host}:{port}", flush=True)
    files = [CONFIGURATION / "jaeger.yaml", CONFIGURATION / "badger.yaml"]
    arguments = [argument for file in files for argument in ("--config", str(file))]
    os.execve(BINARY, [str(BINARY), *arguments], {**os.environ, "JAEGER_HOST": host, "JAEGER_HEALTH_PORT": port})


def free_port(host: str) -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with(supervisor_pipe: int) -> None:
    """Ends with the supervisor; also with one that died before the wish was made, whose pipe is closed by now."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if select.select([supervisor_pipe], [], [], 0)[0]:
        raise SystemExit("the supervisor is gone")
    os.close(supervisor_pipe)


if __name__ == "__main__":
    main()
