"""Figures that a process keeps about itself: counters, histograms, gauges.

They are written in the midst of the work and read when somebody asks (`metrics.py`), so writing is what must be cheap:
an addition in a dict, 0.3 µs. `prometheus_client` has the same by the same names at 1 to 5 µs, for it takes a lock for
each and the time for each exemplar; all of ours are written and read in one thread, the loop's, and read by
prometheus_client's collectors and writers of formats.

What can be read off the state of the process when it is asked for is a `Gauge`, and costs nothing in between.

Names are `waybill_…`, with base units; labels have few values: types, methods, reasons, never ids. Ids of traces are
exemplars: of each bucket the last one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

Labels = tuple[str, ...]

SHORT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For what is over soon: calls, transactions."""
LONG_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""For what may take its time: jobs, tasks."""
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""For how much there was at once."""


class Figure(Collector):
    """One of a process's figures, or several: `collect` returns it as it is now."""


class Counter(Figure):
    """Counts what happens, by labels."""

    def __init__(self, name: str, documentation: str, *label_names: str) -> None:
        """`name` without `_total`."""
        self._name = name
        self._documentation = documentation
        self._label_names = label_names
        self._counts: dict[Labels, int] = {} if label_names else {(): 0}  # what is not labelled is there from the start

    def add(self, *labels: str, count: int = 1) -> None:
        """Counts what has happened under these labels."""
        self._counts[labels] = self._counts.get(labels, 0) + count

    def __getitem__(self, labels: Labels) -> int:
        """Returns how often it has happened."""
        return self._counts.get(labels, 0)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._label_names)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class Distribution:
    """How values are distributed: how many are in each bucket, and their sum."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the highest value of each bucket, ascending; what is higher has one more."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[tuple[str, float] | None] = [None] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, trace_id: str = "") -> None:
        """Adds a value, and the trace in which it came about, if there is one."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if trace_id:
            self._exemplars[bucket] = (trace_id, value)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def add_to(self, family: HistogramMetricFamily, labels: Labels) -> None:
        """Adds it to what is exported."""
        reached, buckets = 0, list[tuple[str, float] | tuple[str, float, Exemplar]]()
        bounds = [*map(str, self._bounds), "+Inf"]
        for bound, count, exemplar in zip(bounds, self._counts, self._exemplars, strict=True):
            reached += count
            if exemplar is None:
                buckets.append((bound, reached))
            else:
                buckets.append((bound, reached, Exemplar({"trace_id": exemplar[0]}, exemplar[1])))
        family.add_metric(labels, buckets, self._sum)


class Histogram(Figure):
    """Distributions of values, by labels."""

    def __init__(self, name: str, documentation: str, *label_names: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._label_names = label_names
        self._bounds = tuple(buckets)
        self._distributions: dict[Labels, Distribution] = {}
        if not label_names:
            self.of()

    def of(self, *labels: str) -> Distribution:
        """Returns the distribution under these labels."""
        found = self._distributions.get(labels)
        if found is None:
            found = self._distributions[labels] = Distribution(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        for labels, distribution in self._distributions.items():
            distribution.add_to(family, labels)
        yield family


class Gauge(Figure):
    """What can be read off at any time."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._documentation, value=self._read())


class Gauges(Figure):
    """What can be read off at any time, by labels."""

    def __init__(
        self, name: str, documentation: str, *label_names: str, read: Callable[[], Mapping[Labels, float]]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label_names = label_names
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._label_names)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family


class Tallies(Figure):
    """Figures that belong together; a subclass makes them its attributes."""

    def collect(self) -> Iterable[Metric]:
        for figure in vars(self).values():
            if isinstance(figure, Figure):
                yield from figure.collect()
