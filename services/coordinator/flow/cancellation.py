"""The wish that a job stops, and whether it is granted.

| kind | while planning | once its plan is sealed | once the work is over |
| --- | --- | --- | --- |
| NONE | refused | refused | refused |
| BEFORE_START | granted | refused | refused |
| REVERT | granted | granted | refused |
| FINISH_FORWARD | granted | granted until a node marked `no_return` begins, then PAST_NO_RETURN | refused |

Where the root's plan marks no such node, the first leaf or child that it begins is the point of no return.

While a job is PENDING, waiting to begin, it can be cancelled whatever its kind; where that is NONE, BEFORE_START is
shown.

A wish is only that: it is stored, then what runs is stopped and what has not begun never does; how the job ends is
decided by how its parts ended. If all went well all the same it is FINISHED. A wish never goes away. The job's deadline
is a wish of the system; a job that it stopped has not been aborted but has failed.
"""

from __future__ import annotations

from coordinator.flow import failures
from coordinator.flow.book import Book
from coordinator.flow.nodes import LiveCommand, Outcome
from coordinator.rows import Cancel, CommandStatus, Failure, Status


class Cancellation:
    """See the module. `wish` says why the job is to stop, None while nobody wants that."""

    def __init__(self, book: Book, kind: Cancel) -> None:
        self.kind = kind
        self.wish: Failure | None = None
        self._book = book
        self._past_no_return = False
        if book.job.cancel_requested_by:
            self.wish = failures.wish_of(book.job.cancel_requested_by)

    def refusal(self, root: LiveCommand) -> Failure | None:
        """Why a wish would not be granted now; None if it would be."""
        job, kind = self._book.job, self.kind
        if job.status.ended:
            return failures.job_ended(job.job_id, job.status)
        if job.status is Status.PENDING:
            return None
        if kind is Cancel.NONE:
            return failures.not_cancelable(f"{job.command_type} cannot be cancelled")
        if root.root is None:
            return None
        if root.row.status is CommandStatus.EXECUTION_FAILED:
            return failures.not_cancelable("the work has failed and is being cleaned up")
        if root.row.status is not CommandStatus.ACTIVE:
            return failures.not_cancelable("the work is over, the job is being finalized")
        if kind is Cancel.BEFORE_START:
            return failures.not_cancelable(f"{job.command_type} has started; it will complete")
        if kind is Cancel.FINISH_FORWARD and self._past_no_return:
            return failures.past_no_return(job.command_type)
        return None

    def grant(self, by: str) -> Failure:
        """Takes the wish and returns it."""
        self._book.change_job().cancel_requested_by = by
        self.wish = failures.wish_of(by)
        self.close()
        return self.wish

    def begin(self) -> None:
        """A job is new, or begins: shows whether it can be cancelled."""
        job = self._book.change_job()
        waits = job.status is Status.PENDING and self.kind is Cancel.NONE
        job.cancelable = Cancel.BEFORE_START if waits else self.kind

    def seal(self) -> None:
        """The plan is sealed: the command has started."""
        if self.kind is Cancel.BEFORE_START:
            self.close()

    def pass_no_return(self) -> None:
        """Something that cannot be undone begins."""
        if not self._past_no_return:
            self._past_no_return = True
            if self.kind is Cancel.FINISH_FORWARD:
                self.close()

    def close(self) -> None:
        """Shows that there is nothing to be cancelled any more."""
        if self._book.job.cancelable is not Cancel.NONE:
            self._book.change_job().cancelable = Cancel.NONE

    def status_of(self, outcome: Outcome, error: Failure | None) -> tuple[Status, Failure | None]:
        """How the job ends whose root went like that."""
        if outcome is not Outcome.ABORTED or self.wish is None:
            return outcome.status, error
        if failures.is_stop(self.wish):
            return Status.ABORTED, self.wish
        return Status.FAILED, self.wish
