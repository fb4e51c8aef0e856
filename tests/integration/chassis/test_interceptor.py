"""What happens around every call, seen from a real client."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.integration.chassis.scripted import ScriptedJobStore, a_server

from chassis import errors
from chassis.channels import open_channel
from chassis.errors import WaybillError
from chassis.interceptor import Call, Ended
from waybill.v1 import coordinator_pb2, coordinator_pb2_grpc, jobs_pb2, jobstore_pb2, jobstore_pb2_grpc

GET_JOB = "/waybill.v1.JobStore/GetJob"
BAD_CORRELATION_IDS = ["x" * 51, "a b", "a;rm", "a.b", "(none)"]


def a_request(job_id: str = "j1") -> jobstore_pb2.GetJobRequest:
    return jobstore_pb2.GetJobRequest(job_id=job_id)


async def refusal_of(call: Any) -> WaybillError:
    """Waits for a call, unary or stream, to fail; returns why."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (call.read() if hasattr(call, "read") else call)
    return WaybillError.from_rpc_error(failure.value)


async def echo_of(call: Any) -> str:
    metadata = dict([*await call.initial_metadata()])
    return str(metadata["x-correlation-id"])


class TestCorrelationId:
    async def test_a_given_one_is_the_calls_and_is_echoed(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        call = stub.GetJob(a_request(), metadata=(("x-correlation-id", "order-7"),))
        await call
        assert await echo_of(call) == "order-7"
        assert jobstore.callers[0].correlation_id == "order-7"

    async def test_one_is_made_when_none_is_given(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        call = stub.GetJob(a_request())
        await call
        assert uuid.UUID(await echo_of(call)).version == 7
        assert jobstore.callers[0].correlation_id == await echo_of(call)

    async def test_it_is_echoed_with_errors_too(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        async def refuse(_request: Any, _rpc: Any) -> None:
            raise errors.not_found("JOB_NOT_FOUND", "no such job")

        jobstore.get_job = refuse
        call = stub.GetJob(a_request(), metadata=(("x-correlation-id", "order-7"),))
        await refusal_of(call)
        assert await echo_of(call) == "order-7"

    async def test_it_is_echoed_in_the_trailing_metadata_of_what_clients_retry(
        self, plain_stub: Any, jobstore: ScriptedJobStore
    ) -> None:
        async def refuse(_request: Any, _rpc: Any) -> None:
            raise errors.unavailable("the database is away")

        jobstore.get_job = refuse
        call = plain_stub.GetJob(a_request(), metadata=(("x-correlation-id", "order-7"),))
        await refusal_of(call)
        assert dict([*await call.initial_metadata()]) == {}
        assert dict([*await call.trailing_metadata()])["x-correlation-id"] == "order-7"

    async def test_it_is_echoed_before_a_streams_first_message(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        async def silent(_request: Any, _rpc: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield None

        jobstore.watch = silent
        call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest(), metadata=(("x-correlation-id", "order-7"),))
        assert await echo_of(call) == "order-7"
        call.cancel()

    async def test_it_is_echoed_for_a_call_that_there_is_not(self, channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/waybill.v1.JobStore/Nonsense")(b"", metadata=(("x-correlation-id", "order-7"),))
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_AVAILABLE_YET")
        assert await echo_of(call) == "order-7"

    @pytest.mark.parametrize("bad", BAD_CORRELATION_IDS)
    async def test_a_bad_one_is_refused_and_neither_echoed_nor_logged(
        self, stub: Any, jobstore: ScriptedJobStore, log_lines: list[Any], bad: str
    ) -> None:
        call = stub.GetJob(a_request(), metadata=(("x-correlation-id", bad),))
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CORRELATION_ID_INVALID")
        assert refusal.violations[0][0] == "correlation_id"
        assert bad not in refusal.message
        assert uuid.UUID(await echo_of(call))
        assert jobstore.callers == []
        assert bad not in str(log_lines)

    async def test_an_empty_one_is_refused(self, stub: Any) -> None:
        refusal = await refusal_of(stub.GetJob(a_request(), metadata=(("x-correlation-id", ""),)))
        assert refusal.reason == "CORRELATION_ID_INVALID"

    async def test_two_different_ones_are_refused(self, stub: Any) -> None:
        twice = (("x-correlation-id", "a"), ("x-correlation-id", "b"))
        assert (await refusal_of(stub.GetJob(a_request(), metadata=twice))).reason == "CORRELATION_ID_INVALID"

    async def test_a_bad_one_ends_a_stream(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest(), metadata=(("x-correlation-id", "a b"),))
        assert (await refusal_of(call)).reason == "CORRELATION_ID_INVALID"
        assert jobstore.callers == []

    async def test_in_a_listing_the_field_is_a_filter(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        request = jobstore_pb2.ListHostTasksRequest(correlation_id="yesterday")
        call = stub.ListHostTasks(request, metadata=(("x-correlation-id", "today"),))
        await call
        assert await echo_of(call) == jobstore.callers[0].correlation_id == "today"


class TestCorrelationIdInTheRequest:
    @pytest.fixture
    async def run_command(self) -> AsyncIterator[Any]:
        from chassis import context
        from chassis.server import Mount, Server

        class Coordinator(coordinator_pb2_grpc.CoordinatorServicer):
            async def RunCommand(self, _request: Any, _rpc: Any) -> jobs_pb2.Job:
                return jobs_pb2.Job(correlation_id=context.current().correlation_id)

        add = coordinator_pb2_grpc.add_CoordinatorServicer_to_server
        async with (
            Server("127.0.0.1:0", [Mount("waybill.v1.Coordinator", Coordinator(), add)], grace=0) as server,
            open_channel(server.address) as channel,
        ):
            server.set_serving(True)
            yield coordinator_pb2_grpc.CoordinatorStub(channel).RunCommand

    async def test_the_field_alone_counts(self, run_command: Any) -> None:
        call = run_command(coordinator_pb2.RunCommandRequest(correlation_id="order-7"))
        assert (await call).correlation_id == "order-7"
        assert await echo_of(call) == "order-7"

    async def test_the_same_in_both_places_is_fine(self, run_command: Any) -> None:
        request = coordinator_pb2.RunCommandRequest(correlation_id="order-7")
        job = await run_command(request, metadata=(("x-correlation-id", "order-7"),))
        assert job.correlation_id == "order-7"

    async def test_different_ones_are_refused(self, run_command: Any) -> None:
        request = coordinator_pb2.RunCommandRequest(correlation_id="order-7")
        refusal = await refusal_of(run_command(request, metadata=(("x-correlation-id", "order-8"),)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CORRELATION_ID_INVALID")
        assert "differs" in refusal.message

    @pytest.mark.parametrize("bad", [*BAD_CORRELATION_IDS, "a\0b", "größe"])
    async def test_a_bad_one_is_refused(self, run_command: Any, bad: str) -> None:
        refusal = await refusal_of(run_command(coordinator_pb2.RunCommandRequest(correlation_id=bad)))
        assert refusal.reason == "CORRELATION_ID_INVALID"


class TestUser:
    async def test_a_caller_is_anonymous_by_default(self, stub: Any) -> None:
        assert (await stub.GetJob(a_request())).owner == "anonymous"

    async def test_a_caller_may_say_who_it_is(self, stub: Any) -> None:
        assert (await stub.GetJob(a_request(), metadata=(("x-waybill-user", "joe@site"),))).owner == "joe@site"

    @pytest.mark.parametrize("bad", ["", "x" * 257])
    async def test_a_name_that_is_none_is_refused(self, stub: Any, bad: str) -> None:
        refusal = await refusal_of(stub.GetJob(a_request(), metadata=(("x-waybill-user", bad),)))
        assert (refusal.reason, refusal.violations[0][0]) == ("REQUEST_INVALID", "x-waybill-user")


class TestUserFromElsewhere:
    """On a server that others can reach, too."""

    @pytest.fixture
    async def open_stub(self, jobstore: ScriptedJobStore) -> AsyncIterator[Any]:
        async with a_server(jobstore, listen="0.0.0.0:0") as server:
            address = f"127.0.0.1:{server.address.rpartition(':')[2]}"
            async with grpc.aio.insecure_channel(address) as channel:
                yield jobstore_pb2_grpc.JobStoreStub(channel)

    async def test_a_caller_on_this_machine_is_believed(self, open_stub: Any) -> None:
        assert (await open_stub.GetJob(a_request(), metadata=(("x-waybill-user", "joe"),))).owner == "joe"

    async def test_one_elsewhere_is_not_and_is_told_so_under_his_correlation_id(
        self, open_stub: Any, jobstore: ScriptedJobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chassis.principal.is_near", lambda peer: False)
        call = open_stub.GetJob(a_request(), metadata=(("x-waybill-user", "joe"), ("x-correlation-id", "order-7")))
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "USER_NOT_TRUSTED")
        assert await echo_of(call) == "order-7"
        assert jobstore.callers == []
        assert (await open_stub.GetJob(a_request())).owner == "anonymous"


class TestErrors:
    async def test_an_error_arrives_with_exactly_one_error_info(
        self, plain_stub: Any, jobstore: ScriptedJobStore
    ) -> None:
        async def refuse(_request: Any, _rpc: Any) -> None:
            raise WaybillError(
                grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "come again", metadata={"a": "b"}, retry_after=0.5
            )

        jobstore.get_job = refuse
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await plain_stub.GetJob(a_request())
        status = rpc_status.from_call(failure.value)  # by somebody else's reading of the same convention
        assert status is not None
        infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
        assert len(infos) == 1
        error = WaybillError.from_rpc_error(failure.value)
        assert (error.reason, dict(error.metadata), error.retry_after) == ("SHUTTING_DOWN", {"a": "b"}, 0.5)

    async def test_an_error_of_any_length_arrives(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        async def refuse(_request: Any, _rpc: Any) -> None:
            raise errors.invalid_argument(
                "PARAMETERS_INVALID", "ü" * 100_000, *((f"field{n}", "ü" * 1000) for n in range(1000))
            )

        jobstore.get_job = refuse
        refusal = await refusal_of(stub.GetJob(a_request()))
        assert (refusal.reason, len(refusal.violations)) == ("PARAMETERS_INVALID", 8)

    async def test_a_defect_is_internal_and_logged_once_under_the_correlation_id(
        self, stub: Any, jobstore: ScriptedJobStore, log_lines: list[Any]
    ) -> None:
        async def defect(_request: Any, _rpc: Any) -> None:
            raise ZeroDivisionError("secret of the house")

        jobstore.get_job = defect
        refusal = await refusal_of(stub.GetJob(a_request(), metadata=(("x-correlation-id", "order-7"),)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "order-7" in refusal.message
        assert "secret" not in refusal.message
        (line,) = log_lines
        assert (line["method"], type(line["exc_info"])) == (GET_JOB, ZeroDivisionError)

    async def test_a_refusal_is_not_logged(self, stub: Any, jobstore: ScriptedJobStore, log_lines: list[Any]) -> None:
        async def refuse(_request: Any, _rpc: Any) -> None:
            raise errors.not_found("JOB_NOT_FOUND", "no such job")

        jobstore.get_job = refuse
        await refusal_of(stub.GetJob(a_request()))
        assert log_lines == []

    async def test_a_stream_may_fail_in_the_middle(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        async def torn(_request: Any, _rpc: Any) -> AsyncIterator[Any]:
            yield jobstore_pb2.WatchJobsResponse(revision=1)
            raise errors.out_of_range("REVISION_COMPACTED", "too old", oldest_revision="5")

        jobstore.watch = torn
        call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
        assert (await call.read()).revision == 1
        refusal = await refusal_of(call)
        assert (refusal.reason, dict(refusal.metadata)) == ("REVISION_COMPACTED", {"oldest_revision": "5"})

    async def test_what_a_service_aborts_itself_stays_as_it_is(
        self, stub: Any, jobstore: ScriptedJobStore, log_lines: list[Any]
    ) -> None:
        async def abort(_request: Any, rpc: Any) -> None:
            await rpc.abort(grpc.StatusCode.DATA_LOSS, "gone")

        jobstore.get_job = abort
        refusal = await refusal_of(stub.GetJob(a_request()))
        assert (refusal.code, refusal.message) == (grpc.StatusCode.DATA_LOSS, "gone")
        assert log_lines == []

    async def test_a_neighbour_that_is_away_makes_us_unavailable(
        self, plain_stub: Any, jobstore: ScriptedJobStore
    ) -> None:
        async def ask_neighbour(_request: Any, _rpc: Any) -> None:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no connection"
            )

        jobstore.get_job = ask_neighbour
        refusal = await refusal_of(plain_stub.GetJob(a_request()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")

    async def test_a_call_that_nobody_wrote_is_unimplemented(self, stub: Any, log_lines: list[Any]) -> None:
        refusal = await refusal_of(stub.CheckConsistency(jobstore_pb2.CheckConsistencyRequest()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_AVAILABLE_YET")
        assert log_lines == []

    @pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["not protobuf", "not UTF-8"])
    async def test_bytes_that_do_not_parse_are_the_callers_fault(
        self, channel: grpc.aio.Channel, jobstore: ScriptedJobStore, data: bytes
    ) -> None:
        refusal = await refusal_of(channel.unary_unary(GET_JOB)(data))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
        assert jobstore.callers == []

    async def test_a_request_over_the_limit_is_refused_with_a_reason(
        self, server: Any, jobstore: ScriptedJobStore
    ) -> None:
        async with open_channel(server.address, max_message_mib=64) as channel:
            stub = jobstore_pb2_grpc.JobStoreStub(channel)
            refusal = await refusal_of(stub.GetJob(a_request("x" * (4 << 20))))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
        assert jobstore.callers == []


class TestStreams:
    async def test_answers_may_be_bytes_that_were_serialised_once(self, stub: Any, jobstore: ScriptedJobStore) -> None:
        async def shared(_request: Any, _rpc: Any) -> AsyncIterator[Any]:
            yield jobstore_pb2.WatchJobsResponse(revision=7).SerializeToString()
            yield jobstore_pb2.WatchJobsResponse(revision=8)

        jobstore.watch = shared
        call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
        assert [response.revision async for response in call] == [7, 8]

    async def test_a_reader_that_leaves_closes_the_generator_at_once(
        self, stub: Any, jobstore: ScriptedJobStore
    ) -> None:
        closed = asyncio.Event()

        async def endless(_request: Any, _rpc: Any) -> AsyncIterator[Any]:
            try:
                yield jobstore_pb2.WatchJobsResponse(revision=1)
                await asyncio.Event().wait()
            finally:
                closed.set()

        jobstore.watch = endless
        call = stub.WatchJobs(jobstore_pb2.WatchJobsRequest())
        await call.read()
        call.cancel()
        await asyncio.wait_for(closed.wait(), 5)


class TestObservers:
    async def test_observers_see_each_call_begin_and_end_whichever_way(self, jobstore: ScriptedJobStore) -> None:
        seen: list[tuple[str, str, str]] = []
        ended = asyncio.Queue[str]()
        running = asyncio.Event()

        def observer(call: Call) -> Ended:
            def end(error: BaseException | None) -> None:
                seen.append((call.method, call.caller.correlation_id, type(error).__name__))
                ended.put_nowait(call.caller.correlation_id)

            return end

        async def by_name(request: Any, _rpc: Any) -> jobs_pb2.Job:
            if request.job_id == "refused":
                raise errors.not_found("JOB_NOT_FOUND", "no such job")
            if request.job_id == "cancelled":
                running.set()
                await asyncio.Event().wait()
            return jobs_pb2.Job()

        jobstore.get_job = by_name
        async with a_server(jobstore, observers=(observer,)) as server, open_channel(server.address) as channel:
            stub: Any = jobstore_pb2_grpc.JobStoreStub(channel)
            await stub.GetJob(a_request("fine"), metadata=(("x-correlation-id", "c1"),))
            await refusal_of(stub.GetJob(a_request("refused"), metadata=(("x-correlation-id", "c2"),)))
            call = stub.GetJob(a_request("cancelled"), metadata=(("x-correlation-id", "c3"),))
            await running.wait()
            call.cancel()
            while await ended.get() != "c3":
                pass
        assert [(name, error) for method, name, error in seen if method == GET_JOB] == [
            ("c1", "NoneType"),
            ("c2", "WaybillError"),
            ("c3", "CancelledError"),
        ]
