"""A scripted host and a scripted jobstore on real gRPC, and time that stands still."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.integration.coordinator.far_end import ScriptedHost, ScriptedJobStore

from chassis.channels import open_channel
from chassis.clock import ManualClock
from waybill.v1 import jobstore_pb2_grpc


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


@pytest.fixture
def host() -> ScriptedHost:
    return ScriptedHost()


@pytest.fixture
def store() -> ScriptedJobStore:
    return ScriptedJobStore()


@pytest.fixture
async def store_channel(store: ScriptedJobStore) -> AsyncIterator[grpc.aio.Channel]:
    async with store.serve() as server, open_channel(server.address, max_message_mib=64) as channel:
        yield channel


@pytest.fixture
def journal_stub(store_channel: grpc.aio.Channel) -> jobstore_pb2_grpc.JournalStub:
    return jobstore_pb2_grpc.JournalStub(store_channel)
