"""One run of the program: whom it talks to, and how it ends.

Whatever goes wrong below becomes here a message that says what, which field and what would help, and an exit code
(`exits.py`). A traceback is a defect of ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass
from shlex import join
from typing import Any

import typer
from rich.markup import escape

from waybill_cli.exits import Complaint, Exit
from waybill_cli.jaeger import Jaeger
from waybill_cli.output import err, printable
from waybill_client import DeadlineExceeded, InvalidArgument, Unavailable, WaybillClient, WaybillError

_REMEDIES = {
    "UNAVAILABLE": "does it run? `waybill up` starts everything here; --coordinator and --jobstore say where it is",
    "DEADLINE_EXCEEDED": "it may be busy, or frozen; --timeout waits longer",
    "COMMAND_TYPE_UNKNOWN": "`waybill commands list` shows what can be run",
    "PARAMETERS_INVALID": "`waybill commands describe TYPE` shows what it takes",
    "CORRELATION_ID_INVALID": "1 to 50 of letters, digits, _ and -",
    "REQUEST_ID_REUSED": "another body was sent under that id: `waybill jobs get {job_id}`",
    "FILTER_INVALID": """like 'status = FAILED AND entity:"VM/vm-1"'; `waybill jobs fields` shows what can be asked""",
    "JOB_NOT_FOUND": "`waybill jobs list` shows the jobs",
    "JOB_NOT_ENDED": "`waybill jobs watch {job_id}` follows it to its end",
    "TASKS_NOT_CLEARED": "`waybill jobs tasks {job_id}` shows them; delete it when {host_ids} has answered",
    "JOB_DELETED": "its job {job_id} has ended and was deleted; another request id runs the command again",
    "NOT_CANCELABLE": "`waybill commands describe TYPE` says what cancelling does",
    "PERMISSION_DENIED": "whoever keeps the services' policy file can grant it",
    "USER_NOT_TRUSTED": "leave out --user and WAYBILL_USER: the call is then anonymous",
    "STEPS_OPEN": "end them first, or end the job with --failed REASON or --force",
    "LOCKED": "wait for the job that holds it: `waybill jobs watch {job_id}`",
}


@dataclass(frozen=True)
class Session:
    """Where the services are and who asks; None means by the environment, or by default."""

    coordinator: str | None = None
    jobstore: str | None = None
    user: str = ""
    timeout: float = 10.0
    jaeger_url: str = ""

    def client(self) -> WaybillClient:
        """A client of these services. Raises Complaint for what is no address."""
        try:
            return WaybillClient(
                self.coordinator,
                self.jobstore,
                user=self.user,
                timeout=self.timeout,
                traces_endpoint=os.environ.get("WAYBILL_TRACES_ENDPOINT", ""),
            )
        except ValueError as problem:
            raise Complaint(
                str(problem), "an address is host:port; of several with commas between, each has an IP"
            ) from None

    def jaeger(self) -> Jaeger | None:
        """Jaeger, if it was said where it is."""
        return Jaeger(self.jaeger_url) if self.jaeger_url else None

    def command_line(self, *words: str) -> str:
        """A command that reaches the same services, for people to paste."""
        options = [("--coordinator", self.coordinator), ("--jobstore", self.jobstore)]
        given = [part for name, value in options if value for part in (name, value)]
        return join(["waybill", *given, *words])


def session_of(context: typer.Context) -> Session:
    """The session that the program's own options describe."""
    session = context.find_object(Session)
    return session or Session()


def perform(work: Coroutine[Any, Any, Exit | None]) -> None:
    """Does the work and ends the program with its exit code."""
    try:
        code = asyncio.run(work)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except Complaint as complaint:
        complain(complaint.message, complaint.remedy)
        code = complaint.exit_code
    except WaybillError as error:
        complain_of(error)
        code = _code_of(error)
    if code:
        raise typer.Exit(code)


def confirm(question: str) -> None:
    """Asks whoever is at the terminal; raises Complaint unless the answer is yes. Only results go to the output.

    Ctrl-C ends the program here, too: a loop would wait for the answer before it looks.
    """
    of_the_loop = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        typer.echo(f"{question} [y/N]: ", nl=False, err=True)
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, of_the_loop)
    if answer.strip().casefold() not in ("y", "yes"):
        raise Complaint("not confirmed; nothing was done")


def complain(message: str, remedy: str = "") -> None:
    """Says what is wrong, and what would help."""
    err.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    if remedy:
        err.print(f"  → {escape(remedy)}", soft_wrap=True)


def complain_of(error: WaybillError) -> None:
    """Says what a service refused, which fields are wrong, and what would help."""
    known_reason = "" if error.reason in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else f" ({error.reason})"
    complain(printable(error.message) + known_reason)
    for name, description in error.violations:
        err.print(f"  {escape(printable(name))}: {escape(printable(description))}", soft_wrap=True)
    remedy = _REMEDIES.get(error.reason)
    if remedy:
        err.print(f"  → {escape(remedy.format_map(defaultdict(lambda: '…', error.metadata)))}", soft_wrap=True)
    if error.correlation_id:
        err.print(f"  correlation id: {escape(error.correlation_id)}", style="dim", soft_wrap=True)


def _code_of(error: WaybillError) -> Exit:
    match error:
        case Unavailable() | DeadlineExceeded():
            return Exit.UNREACHABLE
        case InvalidArgument():
            return Exit.USAGE
        case _:
            return Exit.REFUSED
