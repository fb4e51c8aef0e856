"""`waybill`: the program. Its parts, and the options that all of them share."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from waybill_cli import catalogue, entities, external, jobs, operations
from waybill_cli.demo import demo
from waybill_cli.run import run, run_many
from waybill_cli.session import Session
from waybill_cli.trace import trace
from waybill_cli.up import up

app = typer.Typer(
    name="waybill",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done · 1 the job failed · 2 malformed · 3 cannot reach · 4 refused · 130 Ctrl-C.",
)


def show_version(wanted: bool) -> None:
    """Ends the program with its version."""
    if wanted:
        typer.echo(version("waybill"))
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    coordinator: Annotated[
        str | None,
        typer.Option(help="Address, or several with commas; else WAYBILL_COORDINATOR, else 127.0.0.1:50051."),
    ] = None,
    jobstore: Annotated[
        str | None,
        typer.Option(help="Address, or several with commas; else WAYBILL_JOBSTORE, else 127.0.0.1:50052."),
    ] = None,
    user: Annotated[str, typer.Option(envvar="WAYBILL_USER", help="Who asks.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 10.0,
    jaeger: Annotated[
        str,
        typer.Option(envvar="WAYBILL_JAEGER_URL", metavar="URL", help="Where Jaeger's pages are, for links and spans."),
    ] = "",
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Runs commands on a data centre, and shows the jobs that they become."""
    context.obj = Session(coordinator, jobstore, user, timeout, jaeger)


app.command()(run)
app.command("run-many")(run_many)
app.command()(trace)
app.add_typer(jobs.app, name="jobs")
app.add_typer(external.app, name="external")
app.add_typer(catalogue.app, name="commands")
app.command()(operations.hosts)
app.add_typer(entities.app, name="entities")
app.command()(operations.events)
app.command()(operations.locks)
app.command()(operations.check)
app.command()(up)
app.command()(demo)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
