"""What is counted comes out as Prometheus's formats have it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from chassis.tallies import Counter, Gauge, Gauges, Histogram, Tallies


def exported(*figures: Collector) -> list[str]:
    """The samples in Prometheus's text format."""
    registry = CollectorRegistry()
    for figure in figures:
        registry.register(figure)
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_a_counter_counts_by_labels() -> None:
    parcels = Counter("waybill_parcels", "Parcels.", "size", "fate")
    parcels.add("small", "lost")
    parcels.add("small", "lost", count=2)
    parcels.add("large", "found")
    assert exported(parcels) == [
        'waybill_parcels_total{fate="lost",size="small"} 3.0',
        'waybill_parcels_total{fate="found",size="large"} 1.0',
    ]
    assert parcels["small", "lost"] == 3
    assert parcels["large", "lost"] == 0


def test_a_counter_without_labels_begins_at_nought() -> None:
    assert exported(Counter("waybill_parcels", "Parcels.")) == ["waybill_parcels_total 0.0"]


def test_a_value_on_a_bound_is_in_its_bucket_and_buckets_add_up() -> None:
    weights = Histogram("waybill_weight_grams", "Weights.", buckets=(1.0, 2.0))
    for weight in (1.0, 1.5, 2.0, 99.0):
        weights.of().observe(weight)
    assert exported(weights) == [
        'waybill_weight_grams_bucket{le="1.0"} 1.0',
        'waybill_weight_grams_bucket{le="2.0"} 3.0',
        'waybill_weight_grams_bucket{le="+Inf"} 4.0',
        "waybill_weight_grams_count 4.0",
        "waybill_weight_grams_sum 103.5",
    ]
    assert weights.of().count == 4


def test_a_bucket_keeps_the_trace_of_its_last_value_that_had_one() -> None:
    weights = Histogram("waybill_weight_grams", "Weights.", "size", buckets=(1.0, 2.0))
    for weight, trace_id in ((0.5, "a" * 32), (0.75, "b" * 32), (0.25, ""), (1.5, "")):
        weights.of("small").observe(weight, trace_id)
    registry = CollectorRegistry()
    registry.register(weights)
    exemplars = [line.partition(" # ")[::2] for line in generate_openmetrics(registry).decode().splitlines()]
    assert [(sample, exemplar) for sample, exemplar in exemplars if exemplar] == [
        ('waybill_weight_grams_bucket{le="1.0",size="small"} 3.0', f'{{trace_id="{"b" * 32}"}} 0.75')
    ]


def test_gauges_are_read_when_they_are_asked_for() -> None:
    shelf: list[str] = []
    length = Gauge("waybill_shelf_parcels", "Parcels on the shelf.", lambda: len(shelf))
    by_name = Gauges("waybill_shelf", "The same.", "name", read=lambda: {(name,): 1.0 for name in shelf})
    assert exported(length, by_name) == ["waybill_shelf_parcels 0.0"]
    shelf.append("one")
    assert exported(length, by_name) == ["waybill_shelf_parcels 1.0", 'waybill_shelf{name="one"} 1.0']


def test_what_belongs_together_is_exported_together() -> None:
    class Shelf(Tallies):
        def __init__(self) -> None:
            self._width = 7
            self.parcels = Counter("waybill_parcels", "Parcels.")
            self.length = Gauge("waybill_shelf_parcels", "Parcels on the shelf.", lambda: self._width)

    assert exported(Shelf()) == ["waybill_parcels_total 0.0", "waybill_shelf_parcels 7.0"]


@pytest.mark.parametrize("hostile", ['"', "\\", "\n", "\x00", "€"])
def test_a_hostile_label_stays_a_label(hostile: str) -> None:
    parcels = Counter("waybill_parcels", "Parcels.", "name")
    parcels.add(hostile)
    [line] = exported(parcels)
    assert line.startswith('waybill_parcels_total{name="')
    assert line.endswith('"} 1.0')
