"""Logs: JSON lines for machines, a readable form on a terminal.

Every line carries the ids that are bound where it is written: the correlation id of the call by itself, job, command
and task ids where `bound` was entered, trace and span of the call that is traced. Values are made safe on the way out:
control characters are escaped, so that no text from outside can forge a line or move a terminal's cursor, and passwords
in URLs are masked.

A line is written for each change of a job or task, so it may not cost much: what is plainly harmless (printable text
without a URL, the usual keys) is recognised and left alone, and a line is one write. Nobody fails because it could not
be written: a log whose reader is gone loses lines, not work.
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
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TextIO, cast

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import FilteringBoundLogger

from chassis import context
from chassis.clock import Clock, SystemClock

_Event = MutableMapping[str, Any]
_Processor = Callable[[Any, str, _Event], Any]

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


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Adds ids to every line written inside, also by tasks started there."""
    former = _bound.set({**_bound.get(), **ids})
    try:
        yield
    finally:
        _bound.reset(former)


def configure(service: str, *, level: str = "INFO", stream: TextIO | None = None, clock: Clock | None = None) -> None:
    """Sends all logs of this process, the libraries' too, to a stream (stderr)."""
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    human = out is not None and out.isatty()
    shared: list[_Processor] = [
        add_ids,
        _stamper(service, clock or SystemClock()),
    ]
    final = _renderers(human=human)
    sink = _Sink(out, human=human)
    atexit.register(sink.flush)
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=True,
    )
    _route_libraries(sink, number, shared, final)


class _Sink:
    """Where lines go: whole, and never back as an error.

    What is well goes at the end of the loop's turn, all lines at once: writing each costs a busy service more than
    making it. What is not goes at once, behind what was said before it.
    """

    def __init__(self, out: TextIO | None, *, human: bool) -> None:
        """`out`: None if the process was started without a stderr."""
        self._out = out
        self._held: list[str] = []
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

    def flush(self) -> None:
        """Writes what is held."""
        if self._held:
            held, self._held = self._held, []
            self.write("".join(held))

    def msg(self, line: str) -> None:
        """Writes a line now; structlog calls the method that is named like the level."""
        if _in_a_loop():  # else another thread speaks, and what is held is not its business
            self.flush()
        self.write(line + "\n")

    def info(self, line: str) -> None:
        """Writes a line soon."""
        if self._file is None or not _in_a_loop():
            self.msg(line)
            return
        if not self._held:
            asyncio.get_running_loop().call_soon(self.flush)
        self._held.append(line + "\n")

    debug = info
    warning = error = critical = msg


def _in_a_loop() -> bool:
    return asyncio._get_running_loop() is not None


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


def _stamper(service: str, clock: Clock) -> _Processor:
    def add_stamp(_logger: object, method: str, event: _Event) -> _Event:
        """Adds from where, how grave and when."""
        second, fraction = divmod(clock.now(), 1.0)
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
