"""Log lines, for machines and for people."""

import asyncio
import io
import json
import logging
import os
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from chassis import context, logs
from chassis.clock import ManualClock
from chassis.context import CallContext


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level, configured = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure("depot", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_service_module_level_and_time(stream: io.StringIO) -> None:
    logs.get_logger("depot.gate").info("opened", gate=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "opened", "gate": 3, "level": "info", "module": "depot.gate", "service": "depot"}


async def test_a_line_carries_the_correlation_id_of_its_call_and_what_is_bound(stream: io.StringIO) -> None:
    async def call() -> None:
        context.enter(CallContext("order-7", "joe"))
        with logs.bound(job_id="j1", task_id="t1"), logs.bound(task_id="t2"):
            logs.get_logger("depot").info("inside")
        logs.get_logger("depot").info("outside")

    await asyncio.create_task(call())
    inside, outside = lines(stream)
    assert (inside["correlation_id"], inside["job_id"], inside["task_id"]) == ("order-7", "j1", "t2")
    assert outside["correlation_id"] == "order-7"
    assert "job_id" not in outside


def test_what_is_bound_is_nearer_to_the_work_than_the_call(stream: io.StringIO) -> None:
    def call() -> None:
        context.enter(CallContext("a-batch", "joe"))
        with logs.bound(correlation_id="an-item"):
            logs.get_logger("depot").info("inside")

    copy_context().run(call)
    assert lines(stream)[0]["correlation_id"] == "an-item"


def test_a_line_of_a_traced_call_names_trace_and_span(stream: io.StringIO) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False))
    with trace.use_span(span):
        logs.get_logger("depot").info("inside")
    logs.get_logger("depot").info("outside")
    inside, outside = lines(stream)
    assert (inside["trace_id"], inside["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert "trace_id" not in outside


def test_a_line_about_another_trace_is_not_given_the_calls_span(stream: io.StringIO) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False))
    with trace.use_span(span), logs.bound(trace_id="f" * 32):
        logs.get_logger("depot").info("about a job")
    (line,) = lines(stream)
    assert line["trace_id"] == "f" * 32
    assert "span_id" not in line


def test_a_line_says_when_it_was_written_to_the_microsecond() -> None:
    stream, clock = io.StringIO(), ManualClock(datetime(2026, 2, 28, 23, 59, 59, 999_990, UTC).timestamp())
    logs.configure("depot", stream=stream, clock=clock)
    for _ in range(2):
        logs.get_logger("depot").info("tick")
        clock.advance(0.00002)
    first, second = (datetime.fromisoformat(line["timestamp"]) for line in lines(stream))
    assert abs((second - first).total_seconds() - 0.00002) < 0.000002
    assert second.isoformat().startswith("2026-03-01T00:00:00.0000")


def test_what_the_line_itself_says_wins(stream: io.StringIO) -> None:
    with logs.bound(job_id="j1"):
        logs.get_logger("depot").info("other job", job_id="j2")
    assert lines(stream)[0]["job_id"] == "j2"


def test_control_characters_can_neither_forge_a_line_nor_move_the_cursor(stream: io.StringIO) -> None:
    logs.get_logger("depot").info("name", text="a\n{}\x1b[2J\u202e\ud800", nested={"k\n": ["\x00"]})
    (line,) = lines(stream)
    assert line["text"] == r"a\n{}\x1b[2J\u202e\ud800"
    assert line["nested"] == {r"k\n": [r"\x00"]}


@pytest.mark.parametrize(
    "character", ["\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066", "\udcff"]
)
def test_one_such_character_anywhere_in_a_line_is_escaped(stream: io.StringIO, character: str) -> None:
    facts = {"text": character, "list": [character], "nested": {"k": character, character: 1}}
    logs.get_logger("depot").info(f"name {character}", **facts)
    assert character not in stream.getvalue().removesuffix("\n")
    (line,) = lines(stream)
    escaped = character.encode("unicode_escape").decode()
    assert (line["event"], line["text"], line["list"]) == (f"name {escaped}", escaped, [escaped])
    assert line["nested"] == {"k": escaped, escaped: 1}


def test_what_json_knows_not_is_written_as_text(stream: io.StringIO) -> None:
    @dataclass
    class Gate:
        name: str

    gate = Gate("north\n")
    logs.get_logger("depot").info("odd", gate=gate, huge=1 << 70, keys={3: "three"}, raw=b"\xff", error=OSError("a\nb"))
    (line,) = lines(stream)
    assert (line["gate"], line["huge"], line["keys"]) == (str(gate), 1 << 70, {"3": "three"})
    assert (line["raw"], line["error"]) == (r"b'\xff'", r"a\nb")


def test_text_of_other_scripts_stays_readable(stream: io.StringIO) -> None:
    logs.get_logger("depot").info("größer")
    assert '"größer"' in stream.getvalue()


def test_secrets_stay_out(stream: io.StringIO) -> None:
    logs.get_logger("depot").info(
        "connecting",
        url="postgresql://me:hunter2@db/x",
        password="hunter2",
        options={"api_key": "hunter2"},
        page_token="p",
    )
    logs.get_logger("depot").info("asking", options=[{"token": "hunter2"}])
    logs.get_logger("depot").info("asking", authorization=["hunter2"])
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0]["url"] == "postgresql://me:***@db/x"
    assert lines(stream)[0]["page_token"] == "p"


def test_an_exception_is_logged_with_its_traceback(stream: io.StringIO) -> None:
    try:
        raise KeyError("postgresql://me:hunter2@db")
    except KeyError:
        logs.get_logger("depot").exception("failed")
    (line,) = lines(stream)
    assert line["exception"].startswith("Traceback")
    assert "hunter2" not in line["exception"]


def test_libraries_write_the_same_lines(stream: io.StringIO) -> None:
    logging.getLogger("asyncio").warning("slow %s", "callback")
    (line,) = lines(stream)
    assert (line["event"], line["module"], line["level"], line["service"]) == (
        "slow callback",
        "asyncio",
        "warning",
        "depot",
    )


def test_an_exception_that_a_library_logs_keeps_its_traceback(stream: io.StringIO) -> None:
    logging.getLogger("asyncio").error("lost", exc_info=KeyError("\x1b[2J"))
    (line,) = lines(stream)
    assert line["event"] == "lost"
    assert "KeyError" in line["exception"]
    assert "\x1b" not in line["exception"]


def test_lines_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    logs.configure("depot", level="warning", stream=stream)
    logs.get_logger("depot").info("too low")
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_readable_form() -> None:
    terminal = Terminal()
    logs.configure("depot", stream=terminal)
    logs.get_logger("depot").info("opened", gate="north\x1b[2J")
    text = terminal.getvalue()
    assert "opened" in text
    assert r"\x1b[2J" in text
    assert not text.startswith("{")


@pytest.mark.parametrize("human", [False, True])
def test_a_log_whose_reader_is_gone_loses_lines_and_nothing_else(human: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as pipe:
        if human:
            pipe.isatty = lambda: True  # type: ignore[method-assign]
        logs.configure("depot", stream=pipe)
        logs.get_logger("depot").info("to nobody")
        logging.getLogger("asyncio").warning("to nobody")
        if human:
            os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what the stream has kept, so that it can be closed


def test_a_log_that_was_closed_loses_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    logs.configure("depot", stream=stream)
    stream.close()
    logs.get_logger("depot").info("to nobody")


def test_a_process_without_stderr_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logs.configure("depot")
    logs.get_logger("depot").info("to nobody")


def test_a_long_line_arrives_whole(tmp_path: Any) -> None:
    with (tmp_path / "log").open("w") as file:
        logs.configure("depot", stream=file)
        logs.get_logger("depot").info("größer", text="ü" * 100_000)
        (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
    assert json.loads(line)["text"] == "ü" * 100_000
