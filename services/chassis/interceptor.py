"""What happens around every call, once, so that no service repeats it.

    bytes in ─▶ limit ─▶ parse ─▶ identify (correlation id, user) ─▶ the service
                                                                         │
    bytes out ◀─ echo ◀─ serialise ◀──────────────────────────────── answer, or error ─▶ echo, google.rpc.Status

When the correlation id is echoed matters: initial metadata commits a call, and gRPC retries no committed call. So a
unary call is echoed with its answer, and UNAVAILABLE, which clients retry by themselves, goes out without initial
metadata and echoes in the trailing ones. Streams are echoed at once: their readers resume by their own rules.

A method's handler is wrapped when it is first called and kept, so a call costs one more coroutine and the message that
carries the echo. Requests are parsed here rather than by gRPC, so that bytes which do not parse are the caller's
INVALID_ARGUMENT and not a nameless failure, and refused like everything else: with a reason and under a correlation id.

Observers are the seam for tracing and metrics: they see each call begin and end, whichever way it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message

from chassis import context, errors, logs
from chassis.clock import Ids, Uuid7Ids
from chassis.context import ANONYMOUS, CallContext
from chassis.errors import WaybillError
from chassis.principal import PrincipalOf, as_said

CORRELATION_KEY: Final = "x-correlation-id"
USER_KEY: Final = "x-waybill-user"

_LONGEST_USER: Final = 256
_NOBODY: Final = CallContext(correlation_id="", user=ANONYMOUS)

_Metadata = Iterable[tuple[str, str | bytes]]
_Echo = tuple[tuple[str, str | bytes], ...]
_Rpc = grpc.aio.ServicerContext[Any, Any]

log = logs.get_logger(__name__)


_GRPC_LOG: Final = logging.getLogger("grpc._cython.cygrpc")


def _is_no_complaint_about_encoding(record: logging.LogRecord) -> bool:
    """gRPC logs each header that is not UTF-8, as it came and several times: so anybody could fill the log."""
    return not str(record.msg).startswith("Invalid encoding")


class Call(NamedTuple):
    """A call as observers see it."""

    method: str
    """`/waybill.v1.JobStore/GetJob`"""
    metadata: _Metadata
    caller: CallContext
    rpc: _Rpc
    """What gRPC knows of it."""


Ended = Callable[[BaseException | None], None]
Observer = Callable[[Call], Ended]
"""Told of a call that begins, in the call's own context; returns what to tell of its end: the failure, or None."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Identifies callers, echoes correlation ids, maps errors."""

    def __init__(
        self,
        *,
        ids: Ids | None = None,
        observers: Sequence[Observer] = (),
        limits: Mapping[str, int] | None = None,
        principal_of: PrincipalOf = as_said,
    ) -> None:
        """`limits`: the most bytes of a request, by service name; the others have the transport's own.

        `principal_of` tells who calls.
        """
        _GRPC_LOG.addFilter(_is_no_complaint_about_encoding)
        self._ids = ids or Uuid7Ids()
        self._observers = tuple(observers)
        self._limits = limits or {}
        self._principal_of = principal_of
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:  # not kept: anybody can make up names
            return self._wrap(self._name_of_unknown(method), _unknown_method(method))
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _name_of_unknown(self, method: str) -> str:
        """What observers are told instead of a name that somebody made up: one a service, by OpenTelemetry's habit."""
        service = method.split("/")[1] if method.count("/") == 2 else ""
        return f"/{service}/_OTHER" if service in self._limits else "/_OTHER/_OTHER"

    def _wrap(self, method: str, handler: Any) -> Any:
        limit = self._limits.get(method.split("/")[1]) if method.count("/") == 2 else None
        return _Method(method, handler, self._ids, self._observers, limit, self._principal_of).handler()


class _Method:
    """One method with everything around it."""

    __slots__ = (
        "_handler",
        "_ids",
        "_inner",
        "_limit",
        "_name",
        "_names_action",
        "_observers",
        "_parse",
        "_principal_of",
    )

    def __init__(
        self,
        name: str,
        handler: Any,
        ids: Ids,
        observers: tuple[Observer, ...],
        limit: int | None,
        principal_of: PrincipalOf,
    ) -> None:
        self._name = name
        self._handler = handler
        self._ids = ids
        self._observers = observers
        self._limit = limit
        self._principal_of = principal_of
        self._parse = handler.request_deserializer
        self._inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        self._names_action: bool | None = None  # None until the first request shows its type

    def handler(self) -> Any:
        """Returns what gRPC is to call instead: of the same kind, with requests as bytes."""
        kind = self._handler
        if kind.request_streaming and kind.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream, self._parse, self._serialise)
        if kind.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary, self._parse, None)
        if kind.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream, None, self._serialise)
        return grpc.unary_unary_rpc_method_handler(self._unary, None, None)

    async def _unary(self, data: Any, rpc: _Rpc) -> bytes:
        metadata = rpc.invocation_metadata() or ()
        request, caller, problem = self._receive(data, metadata, rpc)
        ended = self._observe(rpc, metadata, caller) if self._observers else None
        try:
            if problem is not None:
                raise problem
            answer = self._serialise(await self._inner(request, rpc))
            await rpc.send_initial_metadata(_echo(caller))
        except BaseException as error:
            if ended is not None:
                ended(error)
            await self._refuse(error, rpc, _echo(caller))
            _leave_quietly(error)
            raise
        if ended is not None:
            ended(None)
        return answer

    async def _stream(self, data: Any, rpc: _Rpc) -> None:
        metadata = rpc.invocation_metadata() or ()
        request, caller, problem = self._receive(data, metadata, rpc)
        ended = self._observe(rpc, metadata, caller) if self._observers else None
        try:
            await rpc.send_initial_metadata(_echo(caller))
            if problem is not None:
                raise problem
            await self._pour(self._inner(request, rpc), rpc)
        except BaseException as error:
            if ended is not None:
                ended(error)
            await self._refuse(error, rpc, ())
            _leave_quietly(error)
            raise
        if ended is not None:
            ended(None)

    def _receive(self, data: Any, metadata: _Metadata, rpc: _Rpc) -> tuple[Any, CallContext, WaybillError | None]:
        """Returns the request, who sent it, and why it is refused, if it is; enters the caller's context."""
        caller, request, problem = _NOBODY, data, None
        try:
            correlation_id, said = _said(metadata)
            caller = CallContext(correlation_id, ANONYMOUS)
            if (principal := self._principal_of(said, rpc)) != ANONYMOUS:
                caller = CallContext(correlation_id, principal)
            if not self._handler.request_streaming:
                request = self._parsed(data)
                caller = self._named_by_request(request, caller)
        except WaybillError as error:
            problem = error
        if not caller.correlation_id:
            caller = CallContext(self._ids.new(), caller.user)
        context.enter(caller)
        return request, caller, problem

    def _parsed(self, data: bytes) -> Any:
        if self._limit is not None and len(data) > self._limit:
            raise errors.resource_exhausted(f"the request has {len(data)} bytes, more than {self._limit}")
        try:
            return self._parse(data) if self._parse else data
        except DecodeError as error:
            raise errors.invalid_argument("REQUEST_INVALID", f"the request does not parse: {error}") from None

    def _named_by_request(self, request: Any, caller: CallContext) -> CallContext:
        """Takes the correlation id that the request itself names; it and the metadata's must not differ."""
        if self._names_action is None:
            self._names_action = _names_action(request)
        if not self._names_action or not (named := request.correlation_id):
            return caller
        if caller.correlation_id and caller.correlation_id != named:
            raise _bad_correlation_id("differs from the metadata's x-correlation-id")
        _check_correlation_id(named)
        return CallContext(named, caller.user)

    def _observe(self, rpc: _Rpc, metadata: _Metadata, caller: CallContext) -> Ended:
        call = Call(self._name, metadata, caller, rpc)
        if len(self._observers) == 1:
            return self._observers[0](call)
        ends = [observer(call) for observer in self._observers]

        def ended(error: BaseException | None) -> None:
            for end in reversed(ends):
                end(error)

        return ended

    async def _pour(self, answers: Any, rpc: _Rpc) -> None:
        """Sends what the service yields. A reader that leaves closes the generator now, not at garbage collection."""
        if not hasattr(answers, "__aiter__"):
            await answers  # a service that calls rpc.write itself
            return
        async with aclosing(answers):
            async for answer in answers:
                await rpc.write(answer)

    def _serialise(self, answer: Any) -> bytes:
        """Answers may be bytes already: what many watchers are sent is serialised once."""
        return answer if type(answer) is bytes else self._handler.response_serializer(answer)

    async def _refuse(self, error: BaseException, rpc: _Rpc, echo: _Echo) -> None:
        """Ends the call with the status that the error stands for; returns if it has an end already.

        `echo` is what was not echoed yet.
        """
        if isinstance(error, WaybillError):
            refusal = error
        elif isinstance(error, grpc.aio.AioRpcError):
            refusal = self._neighbours_failure(error)
        elif isinstance(error, NotImplementedError):  # what generated servicers raise for calls that nobody wrote
            refusal = errors.not_available_yet(self._name)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.BaseError):
            refusal = self._defect(error)
        else:  # cancelled, or aborted by the service
            return
        details, trailing = errors.for_the_wire(refusal)
        if refusal.code is grpc.StatusCode.UNAVAILABLE:
            trailing += echo
        elif echo:
            await rpc.send_initial_metadata(echo)
        await rpc.abort(refusal.code, details, trailing)

    def _neighbours_failure(self, error: grpc.aio.AioRpcError) -> WaybillError:
        """What a service we called said, if it is of ours or away; anything else is a defect here."""
        failure = WaybillError.from_rpc_error(error)
        return self._defect(error) if failure.reason == "INTERNAL" else failure

    def _defect(self, error: Exception) -> WaybillError:
        log.error("call failed", method=self._name, exc_info=error)
        correlation_id = context.current().correlation_id
        return errors.internal(f"{self._name} failed; the log has the cause under {correlation_id}")


def _leave_quietly(error: BaseException) -> None:
    """Ends a call whose caller left in the middle of a write as a cancelled one; gRPC would log a defect of ours."""
    if isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.AbortError):
        raise asyncio.CancelledError from None


def _echo(caller: CallContext) -> _Echo:
    return ((CORRELATION_KEY, caller.correlation_id),)


def _said(metadata: _Metadata) -> tuple[str, str]:
    """Returns the correlation id that the metadata names, and who the caller says that he is; empty if they do not."""
    correlation_id, user = "", ""
    for key, value in metadata:
        if key == CORRELATION_KEY:
            if correlation_id and value != correlation_id:
                raise _bad_correlation_id("given twice with different values")
            correlation_id = str(value)
            _check_correlation_id(correlation_id)
        elif key == USER_KEY:
            user = _checked_user(str(value))
    return correlation_id, user


def _check_correlation_id(text: str) -> None:
    if not context.valid_correlation_id(text):
        raise _bad_correlation_id("must be 1-50 characters of [0-9A-Za-z_-]")


def _bad_correlation_id(problem: str) -> WaybillError:
    """The offending value stays out: it may hold anything, and this text goes to logs and terminals."""
    return errors.invalid_field("correlation_id", problem, reason="CORRELATION_ID_INVALID")


def _checked_user(user: str) -> str:
    if not 0 < len(user) <= _LONGEST_USER or not user.isascii() or not user.isprintable():
        raise errors.invalid_field(USER_KEY, f"must be 1-{_LONGEST_USER} printable characters of ASCII")
    return user


def _names_action(request: Any) -> bool:
    """Tells whether a request's `correlation_id` names the action. In a listing (AIP-158) it is a filter instead."""
    if not isinstance(request, Message):
        return False
    fields = request.DESCRIPTOR.fields_by_name
    return "correlation_id" in fields and "page_token" not in fields


def _unknown_method(method: str) -> Any:
    async def refuse(_request: bytes, _rpc: _Rpc) -> bytes:
        raise WaybillError(grpc.StatusCode.UNIMPLEMENTED, "NOT_AVAILABLE_YET", f"there is no call {method}")

    return grpc.unary_unary_rpc_method_handler(refuse)
