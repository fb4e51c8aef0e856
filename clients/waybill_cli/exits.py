"""Exit codes, the same for every command: what a script can rely on."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How the program ended."""

    OK = 0
    """Done; of a job that was waited for: FINISHED."""
    JOB_FAILED = 1
    """The job ended otherwise; or `check` or `demo` found something wrong."""
    USAGE = 2
    """The command line, a file or a parameter is malformed; nothing was sent, or nothing was stored."""
    UNREACHABLE = 3
    """A service cannot be reached, or did not answer in time; or `up` could not start."""
    REFUSED = 4
    """A service refused: no such thing, not in this state, not allowed."""
    INTERRUPTED = 130
    """Ctrl-C. Jobs that were started go on."""


class Complaint(Exception):  # noqa: N818 - what the user is told
    """Ends the program with a message: what is wrong, and what would help."""

    def __init__(self, message: str, remedy: str = "", *, exit_code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code
