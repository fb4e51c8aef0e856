"""Starts a jobstore: `python -m jobstore`."""

from __future__ import annotations

import random
import sys

from chassis import logs
from chassis.clock import SystemClock, Uuid7Ids
from chassis.metrics import open_metrics
from chassis.policy import load as load_policy
from chassis.principal import warn_if_open
from chassis.server import Mount, run, serve
from chassis.settings import load
from chassis.tracing import open_tracing
from jobstore.census import taking_census
from jobstore.feed.feed import Feed
from jobstore.heartbeats import Listener
from jobstore.journal.deletion import Deletion
from jobstore.journal.entities import Entities
from jobstore.journal.externaljobs import ExternalJobs, beating_pool
from jobstore.journal.journal import Journal
from jobstore.journal.leases import Leases, lease_pool
from jobstore.metrics import DatabaseTallies, PoolTallies
from jobstore.permissions import PermittedReads
from jobstore.postgres.migrate import migrate_database
from jobstore.postgres.postgres import database
from jobstore.postgres.postmaster import DatabaseError
from jobstore.queries.audit import Audit
from jobstore.queries.consistency import Consistency
from jobstore.queries.flows import Flows
from jobstore.queries.queries import Queries
from jobstore.reads import JobStoreService
from jobstore.service import LARGEST_MESSAGE_MIB, JournalService
from jobstore.settings import Settings
from jobstore.snapshots import reading_pool
from jobstore.sweeper import Sweeper
from waybill.v1 import jobstore_pb2_grpc

CANNOT_USE_DATABASE = 4
"""The exit code of a process whose database is not to be used as it is."""


async def main(settings: Settings) -> None:
    """Serves until the process is asked to end."""
    logs.configure("jobstore", level=settings.log_level)
    policy = load_policy(settings.policy_file)
    warn_if_open(policy, settings.listen, "JOBSTORE_POLICY_FILE")
    clock, ids, rng = SystemClock(), Uuid7Ids(), random.Random()
    postgres = DatabaseTallies()
    async with (
        open_metrics(settings.metrics_listen, clock) as metrics,
        database(settings.database_url, settings.data_dir, clock, postgres.restarts.add) as url,
    ):
        await migrate_database(url)
        async with (
            reading_pool(url) as pool,
            lease_pool(url) as leasing,
            beating_pool(url) as beating,
            Journal(url, clock) as journal,
            Feed(pool, clock, rng) as feed,
            Sweeper(pool, Deletion(journal, ids), clock, settings.retention, settings.sweep_seconds) as sweeper,
            open_tracing(settings.traces_endpoint, "waybill-jobstore") as tracing,
            taking_census(pool, clock, metrics),
        ):
            metrics.add(postgres, PoolTallies(pool), journal.metrics, feed.metrics, sweeper.metrics)
            entities = Entities(pool, journal)
            parts = (Queries(pool), Audit(pool), feed, Consistency(pool), entities, sweeper)
            reads = JobStoreService(*parts) if policy.is_open else PermittedReads(policy, *parts)
            leases, flows = Leases(leasing, journal, ids), Flows(pool, journal)
            external_jobs = ExternalJobs(beating, journal, ids)
            writes = JournalService(journal, leases, flows, entities, feed, external_jobs)
            async with Listener(pool, external_jobs, clock):
                await serve(
                    settings.listen,
                    [
                        Mount("waybill.v1.JobStore", reads, jobstore_pb2_grpc.add_JobStoreServicer_to_server),
                        Mount(
                            "waybill.v1.Journal",
                            writes,
                            jobstore_pb2_grpc.add_JournalServicer_to_server,
                            max_message_mib=LARGEST_MESSAGE_MIB,
                        ),
                    ],
                    before_stop=feed.close,
                    observers=[tracing.observer, *metrics.observers],
                )


if __name__ == "__main__":
    try:
        run(main(load(Settings)))
    except DatabaseError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(CANNOT_USE_DATABASE) from None
