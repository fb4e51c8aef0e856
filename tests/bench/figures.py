"""What was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from accounts import CLIENTS, POSTGRES, SERVICES, Account
from database import Counts


@dataclass(frozen=True)
class Throughput:
    """A run of many jobs at once."""

    jobs: int
    in_flight: int
    seconds: float
    used: Account
    counts: Counts
    cores: int
    bare_call: float
    """CPU seconds of a bare gRPC call at that time (`yardstick.py`)."""

    @property
    def jobs_per_second(self) -> float:
        """From the first submission until the watcher saw the last end."""
        return self.jobs / self.seconds

    @property
    def cpu_per_job(self) -> Mapping[str, float]:
        """Seconds by party."""
        return {party: seconds / self.jobs for party, seconds in self.used.parties.items()}

    @property
    def cpu_of_a_job(self) -> float:
        """Seconds of everybody."""
        return self.used.ours / self.jobs

    @property
    def cpu_of_servers(self) -> float:
        """Seconds of our services and Postgres, without the clients."""
        return sum(self.cpu_per_job[party] for party in (*SERVICES, POSTGRES))

    @property
    def cpu_of_clients(self) -> float:
        """Seconds of those that submit and watch."""
        return sum(self.cpu_per_job[party] for party in CLIENTS)

    @property
    def bare_calls_per_job(self) -> float:
        """What a job costs, in bare calls."""
        return self.cpu_of_a_job / self.bare_call

    @property
    def taken_by_others(self) -> float:
        """Share of the machine that went to processes that have nothing to do with us."""
        return max(0.0, self.used.machine - self.used.ours) / (self.cores * self.seconds)


def whole(laps: Sequence[Throughput]) -> Throughput:
    """All laps as one run."""
    first = laps[0]
    return Throughput(
        jobs=sum(lap.jobs for lap in laps),
        in_flight=first.in_flight,
        seconds=sum(lap.seconds for lap in laps),
        used=Account.total([lap.used for lap in laps]),
        counts=Counts.total([lap.counts for lap in laps]),
        cores=first.cores,
        bare_call=median(lap.bare_call for lap in laps),
    )


def cost_of_tracing(laps: Mapping[str, Sequence[Throughput]]) -> float:
    """What a lap of `single` costs more than the one of `untraced` beside it, in CPU seconds a job: the median."""
    beside = zip(laps["single"], laps["untraced"], strict=True)
    return median(traced.cpu_of_a_job - untraced.cpu_of_a_job for traced, untraced in beside)


@dataclass(frozen=True)
class Latency:
    """Jobs one at a time, in seconds: until the durable answer, and until a watcher saw the end."""

    answers: Sequence[float]
    ends: Sequence[float]


def p50(times: Sequence[float]) -> float:
    """The median."""
    return median(times)


def p99(times: Sequence[float]) -> float:
    """What 99 of 100 stay below."""
    return quantiles(times, n=100)[98] if len(times) > 1 else times[0]
