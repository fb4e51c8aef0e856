"""A Prometheus for the tests: asks an endpoint and takes its answer apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.samples import Exemplar

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
"""What Prometheus says that it accepts, of which this is the half that has exemplars."""
PLAIN = "text/plain; version=0.0.4"


class Reply(NamedTuple):
    status: str
    """`HTTP/1.1 200 OK`"""
    headers: dict[str, str]
    body: str


async def fetch(address: str, request: str) -> Reply:
    """Sends a request as it stands, and reads until the server hangs up."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request.encode("latin-1"))
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        return Reply(status, dict(line.split(": ", 1) for line in lines), body)
    finally:
        writer.close()
        await writer.wait_closed()


class Scrape:
    """What an endpoint said."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def __call__(self, sample: str, **labels: str) -> float:
        """Returns the sum of all samples of this name that have these labels; 0 if there is none."""
        return sum(self.values(sample, **labels))

    def values(self, sample: str, **labels: str) -> list[float]:
        """Returns each of them."""
        return [value for value, _ in self._found(sample, labels)]

    def exemplars(self, sample: str, **labels: str) -> list[Exemplar]:
        """Returns the exemplars of such samples."""
        return [exemplar for _, exemplar in self._found(sample, labels) if exemplar is not None]

    def _found(self, name: str, labels: dict[str, str]) -> Iterable[tuple[float, Exemplar | None]]:
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.value, sample.exemplar


async def scrape(address: str, *, accept: str = OPENMETRICS) -> Scrape:
    """Asks as Prometheus does."""
    reply = await fetch(address, f"GET /metrics HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n")
    assert reply.status == "HTTP/1.1 200 OK", reply
    assert reply.headers["Content-Type"].startswith(accept.partition(";")[0])
    parse = openmetrics_families if accept == OPENMETRICS else plain_families
    return Scrape(parse(reply.body))


def address_in(log_line: str) -> str:
    """Returns where a process serves its metrics, by the line with which it says so."""
    said = json.loads(log_line)
    assert said["event"] == "metrics are served", log_line
    return urlsplit(said["url"]).netloc
