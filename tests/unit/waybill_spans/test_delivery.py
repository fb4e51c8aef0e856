"""Spans on their way to a collector that is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from waybill_spans import Context, FinishedSpan, Kept, Outbox, delivery


def a_span(name: str) -> FinishedSpan:
    return FinishedSpan(name, Context("ab" * 16, "cd" * 8), "", 1.0, 2.0)


class Broken:
    """A span that cannot be told."""

    def encoded(self) -> bytes:
        raise ValueError("no such attribute")


class Collector:
    """Takes spans while it is there."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.code = grpc.StatusCode.OK
        self.held = asyncio.Event()
        self.held.set()

    async def __call__(self, request: bytes, timeout: float) -> bytes:
        await self.held.wait()
        if self.code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), grpc.aio.Metadata())
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(request)
        [scope] = message.resource_spans[0].scope_spans
        self.batches.append([span.name for span in scope.spans])
        return b""


@asynccontextmanager
async def running(collector: Any) -> AsyncIterator[Outbox]:
    outbox = Outbox(collector, {"service.name": "test"}, lambda _seconds: asyncio.sleep(0))
    task = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.wait([task])


def noting(told: list[str], name: str) -> Callable[[], None]:
    return lambda: told.append(name)


async def test_what_comes_together_goes_together_in_order() -> None:
    collector, told = Collector(), list[str]()
    async with running(collector) as outbox:
        outbox.add(a_span("a"))
        outbox.add(Kept(a_span("b").encoded()), noting(told, "b"))
        await outbox.flush(5)
        outbox.add(a_span("c"), noting(told, "c"))
        await outbox.flush(5)
    assert (collector.batches, told) == ([["a", "b"], ["c"]], ["b", "c"])


async def test_who_asks_is_told_once_all_that_came_before_is_delivered() -> None:
    collector, told = Collector(), list[str]()
    collector.held.clear()
    async with running(collector) as outbox:
        outbox.when_delivered(noting(told, "nothing waits"))
        assert told == ["nothing waits"]
        outbox.add(a_span("a"))
        await asyncio.sleep(0)  # it is on its way
        outbox.when_delivered(noting(told, "a"))
        outbox.add(a_span("b"))
        await outbox.flush(0.01)
        assert told == ["nothing waits"]
        collector.held.set()
        await outbox.flush(5)
    assert told == ["nothing waits", "a"]
    assert [name for batch in collector.batches for name in batch] == ["a", "b"]


async def test_a_place_between_spans_is_not_sent() -> None:
    collector, told = Collector(), list[str]()
    collector.held.clear()
    async with running(collector) as outbox:
        outbox.add(a_span("a"))
        await outbox.flush(0.01)  # it is on its way
        outbox.when_delivered(noting(told, "a"))
        collector.held.set()
        await outbox.flush(5)
    assert (collector.batches, told) == ([["a"]], ["a"])


async def test_nobody_is_told_before_the_collector_has_it() -> None:
    collector, told = Collector(), list[str]()
    collector.held.clear()
    async with running(collector) as outbox:
        outbox.add(a_span("a"), noting(told, "a"))
        await outbox.flush(0.01)
        assert told == []
        collector.held.set()
        await outbox.flush(5)
    assert told == ["a"]


async def test_a_span_that_cannot_be_told_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    collector, told = Collector(), list[str]()
    async with running(collector) as outbox:
        outbox.add(a_span("a"))
        outbox.add(Broken(), noting(told, "broken"))
        outbox.add(a_span("b"))
        await outbox.flush(5)
    assert (collector.batches, told) == ([["a", "b"]], ["broken"])
    assert "a span cannot be told" in caplog.messages


async def test_what_the_collector_refuses_is_given_up_and_what_follows_is_not() -> None:
    collector, told = Collector(), list[str]()
    async with running(collector) as outbox:
        collector.code = grpc.StatusCode.INVALID_ARGUMENT
        outbox.add(a_span("a"), noting(told, "a"))
        await outbox.flush(5)
        collector.code = grpc.StatusCode.OK
        outbox.add(a_span("b"), noting(told, "b"))
        await outbox.flush(5)
        assert outbox.given_up == 1
    assert (collector.batches, told) == ([["b"]], ["a", "b"])


async def test_when_too_much_waits_the_oldest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MOST_WAITING", 2)
    collector, told = Collector(), list[str]()
    async with running(collector) as outbox:
        for name in "abc":
            outbox.add(a_span(name), noting(told, name))
        assert told == ["a"]
        await outbox.flush(5)
    assert collector.batches == [["b", "c"]]
