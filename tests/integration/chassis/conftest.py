"""A server that answers as the test says, and channels to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import structlog
from tests.integration.chassis.scripted import ScriptedJobStore, a_server

from chassis.channels import open_channel
from chassis.server import Server
from waybill.v1 import jobstore_pb2_grpc


@pytest.fixture
def jobstore() -> ScriptedJobStore:
    return ScriptedJobStore()


@pytest.fixture
async def server(jobstore: ScriptedJobStore) -> AsyncIterator[Server]:
    async with a_server(jobstore) as server:
        yield server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.address) as channel:
        yield channel


@pytest.fixture
async def plain_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of somebody who has none of our code: nothing is retried."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def plain_stub(plain_channel: grpc.aio.Channel) -> Any:
    return jobstore_pb2_grpc.JobStoreStub(plain_channel)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return jobstore_pb2_grpc.JobStoreStub(channel)


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """What is logged during the test, as events."""
    with structlog.testing.capture_logs() as lines:
        yield lines
