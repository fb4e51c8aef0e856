"""A client that has never heard of Waybill, only of reflection and health: `stranger.py COORDINATOR JOBSTORE`.

Prints as JSON what it found out and what it did. Run in a process of its own, so that nothing of ours is there to help.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SECONDS = 10.0


class Server:
    """A server, as far as it describes itself."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self._database = ProtoReflectionDescriptorDatabase(self.channel)
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def services(self) -> list[str]:
        """Names of its services."""
        return sorted(self._database.get_services())

    def describe(self, service: str) -> dict[str, str]:
        """The calls of a service, in the words of the proto language."""
        return {method.name: signature(method) for method in self._service(service).methods}

    def fields(self, message: str) -> dict[str, int]:
        """Names and numbers of a message's fields."""
        return {field.name: field.number for field in self._pool.FindMessageTypeByName(message).fields}

    def call(self, service: str, method_name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Makes a call with a request written as JSON; returns the answer, or the error, as JSON."""
        method = self._service(service).methods_by_name[method_name]
        ask = self.channel.unary_unary(
            f"/{service}/{method_name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        message = json_format.ParseDict(request, message_factory.GetMessageClass(method.input_type)())
        try:
            return json_format.MessageToDict(ask(message, timeout=SECONDS), preserving_proto_field_name=True)
        except grpc.RpcError as error:
            return {"code": error.code().name, "reason": reason_of(error)}

    def health(self, service: str) -> str:
        """What it says of a service of its own, or ("") of itself."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def _service(self, name: str) -> ServiceDescriptor:
        return self._pool.FindServiceByName(name)


def signature(method: MethodDescriptor) -> str:
    """`GetJobRequest -> Job`"""
    stream = "stream " if method.server_streaming else ""
    return f"{method.input_type.name} -> {stream}{method.output_type.name}"


def reason_of(error: Any) -> str:
    """The reason in the one ErrorInfo that an error carries."""
    details = dict([*error.trailing_metadata()])["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    [found] = [each for each in status_pb2.Status.FromString(details).details if each.Unpack(info)]
    return str(info.reason) if found else ""


def main(coordinator_address: str, jobstore_address: str) -> dict[str, Any]:
    """Looks around, runs a command, reads what became of it."""
    coordinator, jobstore = Server(coordinator_address), Server(jobstore_address)
    run = {"command_type": "BenchWork", "parameters": {"host_id": "host-1", "object_id": "strange"}}
    job = coordinator.call("waybill.v1.Coordinator", "RunCommand", run)
    return {
        "services": {"coordinator": coordinator.services(), "jobstore": jobstore.services()},
        "calls": coordinator.describe("waybill.v1.Coordinator") | jobstore.describe("waybill.v1.JobStore"),
        "fields": coordinator.fields("waybill.v1.RunCommandRequest"),
        "types": coordinator.call("waybill.v1.Coordinator", "ListCommandTypes", {}),
        "ran": job,
        "read": jobstore.call("waybill.v1.JobStore", "GetJob", {"job_id": job["job_id"]}),
        "refused": coordinator.call("waybill.v1.Coordinator", "RunCommand", {"command_type": "MakeCoffee"}),
        "health": {
            service: [coordinator.health(service), jobstore.health(service)]
            for service in ("", "waybill.v1.Coordinator", "waybill.v1.JobStore", "waybill.v1.Journal", "no.Such")
        },
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("waybill", "waybill_client", "chassis")),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
