"""Tables, JSON, YAML, and small words."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
import typer
import yaml
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from waybill.v1.jobs_pb2 import EntityType, Lock, Subject
from waybill_cli import output
from waybill_cli.operations import LOCK_COLUMNS
from waybill_cli.output import Format, duration_word, open_page, printable, show_rows, subject_word
from waybill_client.words import timestamp

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LOCKS = [
    Lock(entity_type=EntityType.ENTITY_TYPE_VM, entity_id="vm-1", exclusive=True, job_id="j", reason="Removing [b]")
]


def test_in_a_pipe_a_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(LOCKS, LOCK_COLUMNS, Format.TABLE)
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ENTITY", "KIND", "SINCE", "JOB", "REASON"]
    assert row.split(maxsplit=3) == ["VM/vm-1", "exclusive", "j", "Removing [b]"]


@pytest.mark.parametrize(("format", "read"), [(Format.JSON, json.loads), (Format.YAML, yaml.safe_load)])
def test_programs_get_data(capsys: pytest.CaptureFixture[str], format: Format, read: object) -> None:
    show_rows(LOCKS, LOCK_COLUMNS, format)
    assert callable(read)
    (lock,) = read(capsys.readouterr().out)
    assert (lock["entity_type"], lock["exclusive"]) == ("VM", True)


def test_nothing_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([], LOCK_COLUMNS, Format.JSON)
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "word"), [(0, "0.0s"), (59.94, "59.9s"), (60, "1m00s"), (245, "4m05s"), (12_000, "3h20m"), (-5, "0.0s")]
)
def test_durations_are_short(seconds: float, word: str) -> None:
    assert duration_word(timestamp(NOON), timestamp(NOON + timedelta(seconds=seconds))) == word


def a_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 40) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(output, "out", Console(file=written, force_terminal=True, color_system=None, width=width))
    return written


def test_on_a_terminal_a_table_fits_the_window_unless_it_shall_be_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for format in (Format.TABLE, Format.WIDE):
        written = a_terminal(monkeypatch)
        show_rows([Lock(job_id="j", reason="word " * 20)], LOCK_COLUMNS, format)
        shown[format] = written.getvalue().splitlines()
    assert max(map(len, shown[Format.TABLE])) <= 40
    assert len(shown[Format.WIDE]) == 2
    assert "word " * 19 in shown[Format.WIDE][1]


def test_a_page_is_opened_where_there_is_a_screen_and_always_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    written = a_terminal(monkeypatch)
    open_page("http://jaeger/trace/1")
    assert (written.getvalue(), opened) == ("http://jaeger/trace/1\n", ["http://jaeger/trace/1"])


def test_in_a_pipe_a_page_is_printed_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    open_page("http://jaeger/trace/1")
    assert (capsys.readouterr().out, opened) == ("http://jaeger/trace/1\n", [])


def test_what_has_not_begun_took_no_time() -> None:
    assert duration_word(Timestamp(), Timestamp()) == ""


def test_subjects_are_type_and_id() -> None:
    assert subject_word(Subject(entity_type=EntityType.ENTITY_TYPE_DISK, entity_id="d")) == "DISK/d"
    assert subject_word(Subject()) == ""


def test_control_characters_are_made_visible() -> None:
    assert printable("a\tb\x00ü–\n") == "a\\tb\\x00ü–\\n"
