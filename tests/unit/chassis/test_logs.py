"""Log lines, for machines and for people."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from chassis import context, logs
from chassis.context import CallContext


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


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


def test_what_the_line_itself_says_wins(stream: io.StringIO) -> None:
    with logs.bound(job_id="j1"):
        logs.get_logger("depot").info("other job", job_id="j2")
    assert lines(stream)[0]["job_id"] == "j2"


def test_control_characters_can_neither_forge_a_line_nor_move_the_cursor(stream: io.StringIO) -> None:
    logs.get_logger("depot").info("name", text="a\n{}\x1b[2J\u202e\ud800", nested={"k\n": ["\x00"]})
    (line,) = lines(stream)
    assert line["text"] == r"a\n{}\x1b[2J\u202e\ud800"
    assert line["nested"] == {r"k\n": [r"\x00"]}


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
