"""Logs: JSON lines for machines, a readable form on a terminal.

Every line carries the ids that are bound where it is written: the correlation id of the call by itself, job, command
and task ids where `bound` was entered. Values are made safe on the way out: control characters are escaped, so that no
text from outside can forge a line or move a terminal's cursor, and passwords in URLs are masked.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from chassis import context

_Event = MutableMapping[str, Any]
_Processor = Callable[[Any, str, _Event], Any]

_bound: ContextVar[Mapping[str, str]] = ContextVar("waybill_log_ids", default=MappingProxyType({}))

# Control characters, separators that some readers take for a new line, marks that turn the direction of writing, and
# halves of surrogate pairs, which no stream can encode.
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


def configure(service: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends all logs of this process, the libraries' too, to a stream (stderr)."""
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[_Processor] = [
        _add_ids,
        _adder(service),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final = _renderers(human=out.isatty())
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _route_libraries(out, number, shared, final)


def _route_libraries(out: TextIO, number: int, shared: list[_Processor], final: list[_Processor]) -> None:
    """Lets asyncio, grpc and the like write the same lines as we do."""
    handler = logging.StreamHandler(out)
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
    return [structlog.processors.format_exc_info, _make_safe, structlog.processors.JSONRenderer(ensure_ascii=False)]


def _adder(service: str) -> _Processor:
    def add_service(_logger: object, _method: str, event: _Event) -> _Event:
        event["service"] = service
        return event

    return add_service


def _name_of_library(logger: logging.Logger, _method: str, event: _Event) -> _Event:
    record = event.get("_record")
    event["module"] = record.name if record else logger.name
    return event


def _add_ids(_logger: object, _method: str, event: _Event) -> _Event:
    """Adds the call's correlation id and what is bound; what the line itself says wins."""
    if correlation_id := context.current().correlation_id:
        event.setdefault("correlation_id", correlation_id)
    for key, value in _bound.get().items():
        event.setdefault(key, value)
    return event


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
