"""What a coordinator counts of its work, and what can be read off it (`chassis/tallies.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from operator import itemgetter

from chassis.clock import Clock
from chassis.tallies import LONG_SECONDS, SHORT_SECONDS, SIZES, Counter, Gauge, Gauges, Histogram, Labels, Tallies


class FlowTallies(Tallies):
    """Commands and phases, as their commits become durable; flows."""

    def __init__(self, *, flows: Callable[[], float], tasks: Callable[[], float], awaited: Callable[[], float]) -> None:
        self.begun = Counter("waybill_coordinator_commands_begun", "Commands that were begun.", "type")
        self.ended = Counter("waybill_coordinator_commands_ended", "Commands that have ended.", "type", "status")
        self.command_seconds = Histogram(
            "waybill_coordinator_command_duration_seconds",
            "How long commands took, from commit to commit.",
            "type",
            buckets=LONG_SECONDS,
        )
        self.phase_seconds = Histogram(
            "waybill_coordinator_phase_duration_seconds",
            "How long phases of jobs took, from commit to commit; of those that outlasted one.",
            "type",
            "phase",
            buckets=LONG_SECONDS,
        )
        self.taken_up = Counter("waybill_coordinator_flows_taken_up", "Flows that were gone on with, from their rows.")
        self.crashes = Counter("waybill_coordinator_flow_crashes", "Flows whose actor had a defect.")
        self.flows = Gauge("waybill_coordinator_flows", "Flows at work.", flows)
        self.tasks = Gauge("waybill_coordinator_tasks_awaited", "Tasks and calls whose end flows wait for.", tasks)
        self.awaited = Gauge("waybill_coordinator_entities_awaited", "Entities that flows wait for.", awaited)

    def command_ended(self, command_type: str, status: str, seconds: float, trace_id: str) -> None:
        """Counts a command that has ended."""
        self.ended.add(command_type, status)
        self.command_seconds.of(command_type).observe(seconds, trace_id)

    def job_ended(self, command_type: str, phases: Mapping[str, float], end: float, trace_id: str) -> None:
        """Takes the times of a job's phases: each lasts until the next begins, the last until the job's end."""
        ordered = sorted(phases.items(), key=itemgetter(1))
        for (phase, begin), (_, over) in pairwise([*ordered, ("", end)]):
            if over > begin:
                self.phase_seconds.of(command_type, phase).observe(over - begin, trace_id)


class JournalTallies(Tallies):
    """Batches on their way to the jobstore."""

    def __init__(self, *, waiting: Callable[[], float], in_flight: Callable[[], float]) -> None:
        self.batches = Histogram("waybill_coordinator_batch_commits", "Commits in a batch.", buckets=SIZES)
        self.seconds = Histogram(
            "waybill_coordinator_batch_duration_seconds",
            "How long batches took until somebody had decided about them, all attempts included.",
            buckets=SHORT_SECONDS,
        )
        self.repeats = Counter("waybill_coordinator_batch_repeats", "Batches that were sent again, unanswered.")
        self.waiting = Gauge("waybill_coordinator_commits_waiting", "Commits that wait for the next batch.", waiting)
        self.in_flight = Gauge("waybill_coordinator_commits_in_flight", "Commits on their way.", in_flight)


class HostTallies(Tallies):
    """Hosts, and what is on its way to them."""

    def __init__(
        self,
        *,
        hosts: Callable[[], Mapping[Labels, float]],
        streams: Callable[[], float],
        tasks: Callable[[], Mapping[Labels, float]],
        clears: Callable[[], float],
    ) -> None:
        self.hosts = Gauges("waybill_coordinator_hosts", "Hosts, as their answers were last.", "state", read=hosts)
        self.streams = Gauge("waybill_coordinator_host_streams", "Open streams from hosts that have spoken.", streams)
        self.tasks = Gauges(
            "waybill_coordinator_tasks",
            "Tasks that are not over: waiting for their host to take them, or with it.",
            "state",
            read=tasks,
        )
        self.clears = Gauge("waybill_coordinator_clears_waiting", "Tasks that hosts are still to forget.", clears)


class LeaseTallies(Tallies):
    """Our right to write."""

    def __init__(self, clock: Clock, *, held: Callable[[], float], renewed: Callable[[], float]) -> None:
        """`renewed`: when it was last renewed, on the monotonic clock."""
        self.held = Gauge("waybill_coordinator_lease_held", "1: the lease is held.", held)
        self.age = Gauge(
            "waybill_coordinator_lease_age_seconds",
            "Since the last renewal that was answered was sent.",
            lambda: clock.monotonic() - renewed(),
        )
