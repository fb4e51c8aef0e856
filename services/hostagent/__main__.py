"""`python -m hostagent`: one host's agent."""

from __future__ import annotations

import os
import signal
import sys

from chassis import logs
from chassis.clock import SystemClock, Uuid7Ids
from chassis.metrics import open_metrics
from chassis.server import Mount, run, serve
from chassis.settings import BAD_SETTINGS, load
from chassis.tracing import open_tracing
from hostagent.data_folder import FolderTaken, data_folder
from hostagent.drivers.driver import NoSuchDriver, Surroundings, load_driver
from hostagent.ledger import Ledger
from hostagent.observations import Observations
from hostagent.recorder import Recorder
from hostagent.runner import TaskRunner
from hostagent.service import HostAgentService
from hostagent.settings import Settings
from waybill.v1 import hostagent_pb2, hostagent_pb2_grpc


async def serve_host(settings: Settings) -> None:
    """Opens the ledger and the host, takes up what a former process left, and serves."""
    clock, ids = SystemClock(), Uuid7Ids()
    driver = load_driver(settings.driver)
    with logs.bound(host_id=settings.host_id), data_folder(settings.data_folder()) as folder:
        async with (
            open_metrics(settings.metrics_listen, clock) as metrics,
            Ledger(folder / "ledger.db", ids, clock) as ledger,
            open_tracing(settings.traces_endpoint, "waybill-hostagent", _resource(settings.host_id)) as tracing,
            Observations(ledger, clock) as observations,
        ):
            surroundings = Surroundings(settings.host_id, folder, clock, settings, observations.observe, die)
            observations.observe("HOST", settings.host_id, "UP")
            async with (
                driver.open(surroundings) as host,
                TaskRunner(
                    verbs=driver.verbs,
                    host=host,
                    ledger=ledger,
                    observations=observations,
                    clock=clock,
                    recorder=Recorder(tracing, ledger, clock, settings.host_id),
                    workers=settings.workers,
                    queue=settings.queue,
                    cleared_days=settings.cleared_days,
                ) as runner,
            ):
                metrics.add(runner.metrics, ledger.metrics, observations.metrics)
                agent = hostagent_pb2.AgentIdentity(
                    host_id=settings.host_id, incarnation=ledger.incarnation, boot_id=ids.new()
                )
                service = HostAgentService(
                    agent=agent, driver=driver, host=host, runner=runner, observations=observations
                )
                mount = Mount("waybill.v1.HostAgent", service, hostagent_pb2_grpc.add_HostAgentServicer_to_server)
                observers = [tracing.observer, *metrics.observers]
                await serve(settings.listen, [mount], observers=observers, before_stop=service.before_stop)


def _resource(host_id: str) -> dict[str, str]:
    return {"host.id": host_id, "service.instance.id": host_id}


def die() -> None:
    """Ends the process as a crash would: at once, nothing closed, nobody told."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the agent until it is asked to end."""
    settings = load(Settings)
    logs.configure("hostagent", level=settings.log_level)
    try:
        run(serve_host(settings))
    except (FolderTaken, NoSuchDriver) as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(BAD_SETTINGS) from None


if __name__ == "__main__":
    main()
