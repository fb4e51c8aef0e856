"""A server as strangers see it: health, reflection, channelz, its port, its end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tests.integration.chassis.scripted import ScriptedJobStore, a_server, mount_of

from chassis.channels import open_channel
from chassis.server import CannotListen, Server
from waybill.v1 import jobstore_pb2, jobstore_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class TestHealth:
    @pytest.mark.parametrize("service", ["", "waybill.v1.JobStore"])
    async def test_every_service_answers_for_itself_and_for_all(
        self, server: Server, plain_channel: grpc.aio.Channel, service: str
    ) -> None:
        health: Any = health_pb2_grpc.HealthStub(plain_channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await health.Check(request)).status == SERVING
        server.set_serving(False)
        assert (await health.Check(request)).status == NOT_SERVING

    async def test_an_unknown_service_is_not_found(self, plain_channel: grpc.aio.Channel) -> None:
        health: Any = health_pb2_grpc.HealthStub(plain_channel)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND

    async def test_a_watch_sees_every_turn_and_ends_with_the_server(self, jobstore: ScriptedJobStore) -> None:
        async with Server("127.0.0.1:0", [mount_of(jobstore)], grace=60) as server:
            channel = grpc.aio.insecure_channel(server.address)
            watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            server.set_serving(True)
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.stop(grace=60))
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
            await asyncio.wait_for(stopping, 10)  # far below the grace, which an open watch would use up
            await channel.close()

    async def test_a_watch_of_an_unknown_service_says_so(self, plain_channel: grpc.aio.Channel) -> None:
        watch: Any = health_pb2_grpc.HealthStub(plain_channel).Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        watch.cancel()


class Stranger:
    """A generic client: knows the reflection protocol and nothing else."""

    def __init__(self, channel: grpc.aio.Channel, version: str) -> None:
        self._channel = channel
        self._method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        self._pool = descriptor_pool.DescriptorPool()

    async def services(self) -> set[str]:
        answer = await self._ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def call(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        await self._learn(file_containing_symbol=service)
        description = self._pool.FindServiceByName(service).methods_by_name[method]
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(description.output_type).FromString,
        )
        message = message_factory.GetMessageClass(description.input_type)()
        answer = await call(json_format.ParseDict(request, message))
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    async def _learn(self, **question: str) -> None:
        answer = await self._ask(**question)
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            for dependency in file.dependency:
                await self._learn(file_by_filename=dependency)
            self._pool.Add(file)

    async def _ask(self, **question: str) -> Any:
        stream: Any = self._channel.stream_stream(
            self._method,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await stream.write(reflection_pb2.ServerReflectionRequest(**question))
        await stream.done_writing()
        return await stream.read()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_a_stranger_can_list_describe_and_call(plain_channel: grpc.aio.Channel, version: str) -> None:
    stranger = Stranger(plain_channel, version)
    assert {"waybill.v1.JobStore", "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= await stranger.services()
    job = await stranger.call("waybill.v1.JobStore", "GetJob", {"job_id": "j1"})
    assert job == {"job_id": "j1", "owner": "anonymous"}


async def test_channelz_tells_of_the_server(plain_channel: grpc.aio.Channel) -> None:
    channelz: Any = channelz_pb2_grpc.ChannelzStub(plain_channel)
    assert (await channelz.GetServers(channelz_pb2.GetServersRequest())).server


class TestPort:
    async def test_a_second_server_on_a_port_cannot_start(self, server: Server, jobstore: ScriptedJobStore) -> None:
        with pytest.raises(CannotListen, match=f"cannot listen on {server.address}: in use"):
            async with a_server(jobstore, listen=server.address):
                pass

    async def test_localhost_is_one_address_and_not_two_to_choose_from(
        self, server: Server, jobstore: ScriptedJobStore
    ) -> None:
        with pytest.raises(CannotListen):
            async with a_server(jobstore, listen=server.address.replace("127.0.0.1", "localhost")):
                pass

    @pytest.mark.parametrize("listen", ["", "50052", ":50052", "127.0.0.1", "127.0.0.1:http", "192.0.2.1:1"])
    async def test_an_address_that_is_none_of_ours_is_told(self, jobstore: ScriptedJobStore, listen: str) -> None:
        with pytest.raises(CannotListen, match="cannot listen on"):
            async with a_server(jobstore, listen=listen):
                pass

    async def test_a_port_can_be_taken_again_at_once(self, jobstore: ScriptedJobStore) -> None:
        async with a_server(jobstore) as first, open_channel(first.address) as channel:
            await jobstore_pb2_grpc.JobStoreStub(channel).GetJob(jobstore_pb2.GetJobRequest())
        async with a_server(jobstore, listen=first.address) as second:
            assert second.address == first.address


async def test_a_call_that_runs_may_end_within_the_grace(jobstore: ScriptedJobStore) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, rpc: Any) -> Any:
        running.set()
        await go_on.wait()
        return await jobstore.same_job(request, rpc)

    jobstore.get_job = slow
    async with Server("127.0.0.1:0", [mount_of(jobstore)], grace=30) as server:
        channel = open_channel(server.address)
        server.set_serving(True)
        stub: Any = jobstore_pb2_grpc.JobStoreStub(channel)
        call = stub.GetJob(jobstore_pb2.GetJobRequest(job_id="j1"))
        await running.wait()
        stopping = asyncio.create_task(server.stop(grace=30))
        await asyncio.sleep(0)
        go_on.set()
        assert (await call).job_id == "j1"
        await stopping
        await channel.close()
