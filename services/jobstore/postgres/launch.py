"""Becomes Postgres: gives up root, asks to die with its parent, execs.

A program of its own, with the standard library only, because a process that serves gRPC must not run Python between
fork and exec. Run as `python -I -S launch.py IDENTITY PARENT -- COMMAND…`:

* IDENTITY `own`: as whoever we are. `namespace`: root, but as user 1000 of a user namespace, which is all that Postgres
  asks of root, and leaves the files root's. `user:UID:GID`: another user of the machine.
* PARENT: the pid whose end is ours. The order matters: changing the identity clears the wish to die with the parent,
  and a parent that died before the wish was made would never be noticed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

CANNOT_RUN = 77
"""Exit code: the kernel or the container does not allow this identity, or it may not reach the program."""

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_USER_IN_NAMESPACE = 1000


def main(arguments: list[str]) -> None:
    identity, parent, _, *command = arguments
    try:
        _become(identity)
        _die_with(int(parent))
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]} as {identity}: {error}", file=sys.stderr)
        raise SystemExit(CANNOT_RUN) from None


def _become(identity: str) -> None:
    kind, _, ids = identity.partition(":")
    if kind == "namespace":
        _enter_user_namespace()
    elif kind == "user":
        uid, gid = map(int, ids.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_USER_IN_NAMESPACE} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{_USER_IN_NAMESPACE} {gid} 1")


def _die_with(parent: int) -> None:
    """Ends with the parent, by a fast shutdown. Where the kernel cannot do that, the next start ends a leftover."""
    if sys.platform != "linux":
        return
    _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
