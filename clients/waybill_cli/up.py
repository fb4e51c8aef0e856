"""`waybill up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from waybill_cli.exits import Complaint, Exit
from waybill_cli.logfiles import shown_logs
from waybill_cli.output import out, tell
from waybill_cli.process import StartFailed
from waybill_cli.session import Session, perform
from waybill_cli.stack import Ports, Stack
from waybill_client import WaybillClient


def up(
    hosts: Annotated[int, typer.Option(min=0, help="Hosts, with the sim driver.")] = 2,
    coordinators: Annotated[int, typer.Option(min=1)] = 1,
    jobstores: Annotated[int, typer.Option(min=1, help="They share one database.")] = 1,
    data: Annotated[
        Path | None,
        typer.Option(envvar="WAYBILL_DATA", help="Folder for all data.", show_default="in the user's data folder"),
    ] = None,
    ports: Annotated[
        str,
        typer.Option(
            metavar="fixed|auto",
            help="fixed: coordinator 50051, jobstore 50052, hosts from 50061, Jaeger 16686 and 4317. "
            "auto: any free ones, kept for next time.",
        ),
    ] = "fixed",
    jaeger: Annotated[
        bool, typer.Option("--jaeger", help="Start Jaeger too, and send all traces there; `make jaeger` gets one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON once all are serving.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the services log.")] = False,
) -> None:
    """Runs jobstores with an embedded Postgres, coordinators and hosts, until Ctrl-C. Loopback only.

    What ends is started again. Data stay; the next `waybill up` goes on with them.
    """
    if ports not in ("fixed", "auto"):
        raise typer.BadParameter("fixed or auto", param_hint="--ports")
    stack = Stack(
        (data or default_data_folder()).absolute(),
        hosts=hosts,
        coordinators=coordinators,
        jobstores=jobstores,
        jaeger=jaeger,
        ports=Ports() if ports == "fixed" else None,
        tell=tell,
    )
    perform(_run(stack, as_json=as_json, verbose=verbose))


def default_data_folder() -> Path:
    """Where the user's programs keep their data."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "waybill"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "waybill"


async def _run(stack: Stack, *, as_json: bool, verbose: bool) -> Exit:
    tell(f"starting, with data in {stack.data_dir}")
    _let_signals_cancel()
    logs = shown_logs(stack.data_dir / "logs", tell) if verbose else nullcontext()
    try:
        async with logs, stack:
            _announce(stack, as_json=as_json)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        tell("stopped; data stay")
    except StartFailed as failed:
        raise Complaint(str(failed), exit_code=Exit.UNREACHABLE) from None
    return Exit.OK


def _let_signals_cancel() -> None:
    """Makes Ctrl-C and the like end the work from inside, so that everything stops in order; twice stops at once."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)


def _announce(stack: Stack, *, as_json: bool) -> None:
    if as_json:
        out.file.write(json.dumps(stack.describe()) + "\n")
        out.file.flush()
        return
    for process in stack.processes:
        tell(f"  {process.name:<14} {process.address:<21} pid {process.pid}")
    tell(f"serving; logs in {stack.data_dir / 'logs'}; Ctrl-C stops everything\n")
    if stack.jaeger is not None:
        tell(f"  traces in Jaeger: {stack.jaeger_url}")
        tell(f"  for clients: WAYBILL_JAEGER_URL={stack.jaeger_url} WAYBILL_TRACES_ENDPOINT={stack.traces_endpoint}\n")
    session = Session(*_unless_default(stack))
    tell("  try: " + session.command_line("commands", "list"))
    tell("       " + session.command_line("run", "AddDisk", "disk_id=first", "size_mb=64", "host_id=host-1", "--watch"))


def _unless_default(stack: Stack) -> tuple[str | None, str | None]:
    """The addresses to give to a client that would not find the services by itself."""
    client = stack.client()
    default = WaybillClient()
    coordinator, jobstore = client.coordinator_address, client.jobstore_address
    return (
        None if coordinator == default.coordinator_address else coordinator,
        None if jobstore == default.jobstore_address else jobstore,
    )
