"""Logs: JSON lines for machines, a readable form on a terminal.

Every line carries the ids that are bound where it is written: the correlation id of the call by itself, job, command
and task ids where `bound` was entered, trace and span of the call that is traced. Values are made safe on the way out:
control characters are escaped, so that no text from outside can forge a line or move a terminal's cursor, and passwords
in URLs are masked.

A line is written for each change of a job or task, so it may not cost much: in a loop, an INFO line is only noted, with
its time and the context it was said in, and all of a turn's lines are made and written together, for what is done a
hundred times in a row costs a fraction of what it costs in between. What is plainly harmless (printable text without a
URL, the usual keys) is recognised and left alone. Nobody fails because a line could not be written: a log whose reader
is gone loses lines, not work.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TextIO, cast

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import FilteringBoundLogger

from chassis import callspans, context
from chassis.clock import Clock, SystemClock

_Event = MutableMapping[str, Any]
_Processor = Callable[[Any, str, _Event], Any]
_Stamp = Callable[[_Event, str, float], _Event]

_bound: ContextVar[Mapping[str, str]] = ContextVar("waybill_log_ids", default=MappingProxyType({}))

# Control characters, separators that some readers take for a new line, marks that turn the direction of writing, and
# halves of surrogate pairs, which no stream can encode. Python calls none of them printable.
_UNSAFE: Final = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL: Final = re.compile(f"[\n{_UNSAFE}]")
_CONTROL_BUT_NEWLINE: Final = re.compile(f"[{_UNSAFE}]")
_URL_PASSWORD: Final = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")
_SECRET_KEYS: Final = re.compile(r"password|passwd|secret|(?<!page_)token|api_?key|authorization", re.IGNORECASE)


def get_logger(name: str) -> FilteringBoundLogger:
    """Returns a logger; call it with an event name in words and the facts as keywords."""
    return cast(FilteringBoundLogger, structlog.get_logger(module=name))


class bound:  # noqa: N801 - used as a word: `with bound(job_id=…):`
    """Adds ids to every line written inside, also by tasks started there."""

    __slots__ = ("_ids", "_token")

    def __init__(self, **ids: str) -> None:
        self._ids = ids

    def __enter__(self) -> None:
        self._token = _bound.set({**_bound.get(), **self._ids})

    def __exit__(self, *_: object) -> None:
        _bound.reset(self._token)


def configure(service: str, *, level: str = "INFO", stream: TextIO | None = None, clock: Clock | None = None) -> None:
    """Sends all logs of this process, the libraries' too, to a stream (stderr)."""
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    human = out is not None and out.isatty()
    clock = clock or SystemClock()
    stamp = _stamper(service)
    shared: list[_Processor] = [add_ids, lambda _logger, method, event: stamp(event, method, clock.now())]
    final = _renderers(human=human)
    sink = _Sink(out, stamp, human=human)
    atexit.register(sink.flush)
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=_wrapper(number, sink, clock),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=True,
    )
    _route_libraries(sink, number, shared, final)


def _wrapper(number: int, sink: _Sink, clock: Clock) -> type[FilteringBoundLogger]:
    """Returns structlog's logger that filters by level; INFO lines are held if they can be."""
    filtering: Any = structlog.make_filtering_bound_logger(number)
    if number > logging.INFO:
        return cast(type[FilteringBoundLogger], filtering)

    class Holding(filtering):  # type: ignore[misc]  # made at run time
        def info(self, event: str, *args: Any, **facts: Any) -> Any:
            if args or not sink.hold(_Held(copy_context(), clock.now(), {"event": event, **self._context, **facts})):
                return super().info(event, *args, **facts)
            return None

    return cast(type[FilteringBoundLogger], Holding)


class _Held(NamedTuple):
    """A line that is yet to be made; what it says is not changed before the loop's turn is over."""

    context: Context
    time: float
    event: _Event


class _Sink:
    """Where lines go: whole, and never back as an error.

    What is well goes at the end of the loop's turn, all lines at once. What is not goes at once, behind what was said
    before it.
    """

    def __init__(self, out: TextIO | None, stamp: _Stamp, *, human: bool) -> None:
        """`out`: None if the process was started without a stderr."""
        self._out = out
        self._stamp = stamp
        self._held: list[_Held] = []
        self._thread = 0
        """Whose loop's turn it is that lines are held for."""
        self._file: int | None = None
        """Where bytes are written past the stream, which would keep what a reader that is gone did not take, and fail
        with it at the process's end. None: to the stream, for its encoding or for want of a file."""
        if out is not None and not human:
            with suppress(OSError, ValueError):  # it has none, as in tests
                self._file = out.fileno()

    def write(self, line: str) -> None:
        """Writes lines, each with its end."""
        try:
            if self._file is not None:
                rest = line.encode()
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            elif self._out is not None:
                self._out.write(line)
                self._out.flush()
        except (OSError, ValueError):
            pass  # the reader is gone, the disk is full, the stream is closed: there is nobody to tell

    def hold(self, line: _Held) -> bool:
        """Keeps a line until the loop's turn is over; False: there is no such turn, or it is another thread's."""
        if not self._held:  # asked once a turn: it is a system call
            loop = asyncio._get_running_loop()
            if self._file is None or loop is None:
                return False
            self._thread = threading.get_ident()
            loop.call_soon(self.flush)
        elif self._thread != threading.get_ident():
            return False
        self._held.append(line)
        return True

    def flush(self) -> None:
        """Makes and writes what is held."""
        if self._held:
            held, self._held = self._held, []
            self.write("".join([line.context.run(self._made, line.time, line.event) for line in held]))

    def _made(self, time: float, event: _Event) -> str:
        return _render_json(self, "info", self._stamp(add_ids(self, "info", event), "info", time)) + "\n"

    def msg(self, line: str) -> None:
        """Writes a line now; structlog calls the method that is named like the level."""
        if self._thread == threading.get_ident():  # else what is held is another's business
            self.flush()
        self.write(line + "\n")

    debug = info = warning = error = critical = msg


def _route_libraries(sink: _Sink, number: int, shared: list[_Processor], final: list[_Processor]) -> None:
    """Lets asyncio, grpc and the like write the same lines as we do."""
    handler = logging.StreamHandler(cast(TextIO, sink))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _name_of_library],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def _renderers(*, human: bool) -> list[_Processor]:
    if human:
        return [structlog.processors.format_exc_info, _make_safe, structlog.dev.ConsoleRenderer(colors=True)]
    return [_render_json]


def _render_json(logger: object, method: str, event: _Event) -> str:
    """Encodes first and looks at the outcome: a line that shows nothing to be made safe is done, as nearly all are."""
    if not _need_care(tuple(event)):
        with suppress(TypeError):  # something in it is not JSON by itself
            line = orjson.dumps(event, option=_OURS_TO_ENCODE)
            if _is_harmless(line):
                return line.decode()
    event = _make_safe(logger, method, structlog.processors.format_exc_info(cast(Any, logger), method, event))
    return json.dumps(event, ensure_ascii=False)


_OURS_TO_ENCODE: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _is_harmless(line: bytes) -> bool:
    """Tells that no text in an encoded line had anything to escape or mask, and that only the line itself has keys."""
    return line.isascii() and b"\\" not in line and b"\x7f" not in line and b"://" not in line and line.rfind(b"{") == 0


@functools.lru_cache(maxsize=1024)  # a place in the code always has the same keys
def _need_care(keys: tuple[str, ...]) -> bool:
    return "exc_info" in keys or any(map(_SECRET_KEYS.search, keys))


def _stamper(service: str) -> _Stamp:
    def add_stamp(event: _Event, method: str, time: float) -> _Event:
        """Adds from where, how grave and when."""
        second, fraction = divmod(time, 1.0)
        event["service"] = service
        event["level"] = method
        event["timestamp"] = f"{_time_of(second)}.{int(fraction * 1e6):06}Z"
        return event

    return add_stamp


@functools.lru_cache(maxsize=1)
def _time_of(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _name_of_library(logger: logging.Logger, _method: str, event: _Event) -> _Event:
    record = event.get("_record")
    event["module"] = record.name if record else logger.name
    return event


def add_ids(_logger: object, _method: str, event: _Event) -> _Event:
    """Adds what is bound, and the call's correlation id; what the line itself says wins, then what is bound.

    For what is bound is nearer to the work: a batch's call has an id of its own, each of its items that of its flow.
    """
    for key, value in _bound.get().items():
        event.setdefault(key, value)
    if correlation_id := context.current().correlation_id:
        event.setdefault("correlation_id", correlation_id)
    if "trace_id" not in event:
        _add_span(event)
    return event


def _add_span(event: _Event) -> None:
    """Adds which span this is, if the call is traced: both ids, for one alone might be of another trace."""
    own = trace.get_current_span().get_span_context()
    if own.is_valid:
        event["trace_id"], event["span_id"] = f"{own.trace_id:032x}", f"{own.span_id:016x}"
    elif (call := callspans.current.get()) is not None:
        event["trace_id"], event["span_id"], _ = call.place


def _make_safe(_logger: object, _method: str, event: _Event) -> _Event:
    for key, value in event.items():
        event[key] = _safe(value, multiline=True) if key == "exception" else _safe_under(key, value)
    return event


def _safe_under(key: str, value: Any) -> Any:
    return "***" if _SECRET_KEYS.search(key) else _safe(value)


def _safe(value: Any, *, multiline: bool = False) -> Any:
    if isinstance(value, str):
        pattern = _CONTROL_BUT_NEWLINE if multiline else _CONTROL
        text = _URL_PASSWORD.sub(r"\1:***@", value) if "://" in value else value
        return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    if isinstance(value, Mapping):
        return {_safe(str(key)): _safe_under(str(key), part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_safe(part) for part in value]
    return value if isinstance(value, (int, float, bool, type(None))) else _safe(str(value))
