from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from tests.integration.waybill_client.far_end import ScriptedCoordinator, ScriptedJobStore

from waybill.v1 import coordinator_pb2_grpc, jobstore_pb2_grpc
from waybill_client import WaybillClient


@pytest.fixture
def coordinator() -> ScriptedCoordinator:
    return ScriptedCoordinator()


@pytest.fixture
def jobstore() -> ScriptedJobStore:
    return ScriptedJobStore()


@pytest.fixture
async def client(coordinator: ScriptedCoordinator, jobstore: ScriptedJobStore) -> AsyncIterator[WaybillClient]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(coordinator, server)
    jobstore_pb2_grpc.add_JobStoreServicer_to_server(jobstore, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    async with WaybillClient(address, address, user="ann") as client:
        yield client
    await server.stop(0)
