"""Everything that bears a correlation id, in the order of time: a line for each thing, what went wrong beneath.

correlation id  spring-cleaning
began           2026-11-21 12:30:05.123

AFTER    KIND       WHAT                       WHERE        STATUS                TOOK
+0.000s  ✗ job      RemoveVm  Removing VM web  coordinator  FAILED              3.120s
+0.012s  ✗ task     deleteImage DISK/disk-2    host-1       CLEAN_FAILURE       1.704s
           TASK_FAILED: the volume is in use

Where the window is wide enough, the time of day goes before it and the id after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from waybill_cli.output import Column, Format, printable, show_rows
from waybill_cli.things import Thing, began_at

_NAME = "WHAT"
_LEAST_NAME = 16  # so much of it there always is
_ENOUGH = 60  # beyond it, other columns are worth more
_IDS = ("ID", "SPAN", "JOB")
_GAP = 2
_SIGN_WIDTH = 2
_ON_HOSTS = ("task", "call", "wait")

_STYLES = {
    word: style
    for style, words in {
        "green": ("FINISHED", "SUCCEEDED", "ENDED_SUCCESSFULLY", "SUCCESS"),
        "red": ("FAILED", "EXECUTION_FAILED", "ENDED_WITH_FAILURE", "CLEAN_FAILURE", "ERROR", "ALERT"),
        "yellow": ("ABORTED", "ABORTING", "CLEANING", "CLEAN_SUCCESS", "WARNING"),
        "cyan": ("STARTED", "ACTIVE", "RUNNING", "HELD"),
        "magenta": ("UNKNOWN",),
        "dim": ("PENDING", "SKIPPED", "NOT_STARTED"),
    }.items()
    for word in words
}
_SIGNS = {"green": "✓", "red": "✗", "yellow": "■", "cyan": "◐", "magenta": "?", "dim": "○"}


class Facet(NamedTuple):
    """A heading, and the words under it."""

    heading: str
    words: Callable[[Thing], str]


class Timeline:
    """The lines for a window; `ids`: with all words and ids, even if they make the lines longer than it is wide."""

    def __init__(self, things: Sequence[Thing], now: datetime, *, ids: bool = False) -> None:
        self._things = things
        self._facets = _facets(began_at(things), now)
        self._ids = ids

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = {each.heading: [printable(each.words(thing)) for thing in self._things] for each in self._facets}
        cells["KIND"] = [f"{_SIGNS.get(_STYLES.get(thing.status, ''), '·')} {thing.kind}" for thing in self._things]
        widths = {heading: max(map(cell_len, (heading, *column))) for heading, column in cells.items()}
        shown, widths[_NAME] = self._fitted(widths, options.max_width)
        indent = sum(widths[heading] + _GAP for heading in shown[: shown.index("KIND")]) + _SIGN_WIDTH
        yield _line([Text(heading, "bold") for heading in shown], shown, widths)
        for index, (thing, error) in enumerate(zip(self._things, _errors(self._things), strict=True)):
            words = [Text(cells[heading][index], _style(heading, thing)) for heading in shown]
            yield _line(words, shown, widths)
            style = _STYLES.get(thing.status, "")
            for line in Text(error, style).wrap(console, max(_LEAST_NAME, options.max_width - indent)) if error else ():
                yield _unwrapped(Text(" " * indent) + line)

    def _fitted(self, widths: Mapping[str, int], window: int) -> tuple[list[str], int]:
        """The columns that there is room for, and how wide the names may be among them."""
        shown = [heading for heading in widths if heading not in ("TIME", *_IDS, "ERROR")]
        room = window - sum(widths[heading] + _GAP for heading in shown if heading != _NAME)
        if room - widths["TIME"] - _GAP >= min(widths[_NAME], _ENOUGH):
            shown, room = ["TIME", *shown], room - widths["TIME"] - _GAP
        if self._ids:
            return [*shown, *_IDS], widths[_NAME]
        if room - widths["ID"] - _GAP >= min(widths[_NAME], _ENOUGH):
            shown, room = [*shown, "ID"], room - widths["ID"] - _GAP
        return shown, min(widths[_NAME], max(_LEAST_NAME, room))


def show_lines(things: Sequence[Thing], now: datetime) -> None:
    """The lines for a pipe: all columns, each thing in one line."""
    columns = [Column(each.heading, each.words) for each in _facets(began_at(things), now, date=True)]
    show_rows(things, columns, Format.TABLE)


def _facets(began: datetime | None, now: datetime, *, date: bool = False) -> list[Facet]:
    clock = "%Y-%m-%d %H:%M:%S.%f" if date else "%H:%M:%S.%f"
    return [
        Facet("TIME", lambda thing: thing.time.astimezone().strftime(clock)[:-3] if thing.time else ""),
        Facet(
            "AFTER",
            lambda thing: f"+{exact_word((thing.time - began).total_seconds())}" if thing.time and began else "",
        ),
        Facet("KIND", lambda thing: thing.kind),
        Facet(_NAME, lambda thing: thing.name),
        Facet("WHERE", lambda thing: thing.where),
        Facet("STATUS", lambda thing: thing.status),
        Facet("TOOK", lambda thing: "" if (took := thing.seconds(now)) is None else exact_word(took)),
        Facet("ID", lambda thing: thing.id),
        Facet("SPAN", lambda thing: thing.record.get("span_id", "")),
        Facet("JOB", lambda thing: thing.record.get("job_id", "")),
        Facet("ERROR", lambda thing: thing.error),
    ]


def exact_word(seconds: float) -> str:
    """`0.012s`, `4m05.250s`, `3h20m05s`."""
    sign, thousandths = "-" if seconds < 0 else "", round(abs(seconds) * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    if not minutes:
        return f"{sign}{rest / 1000:.3f}s"
    if minutes < 60:
        return f"{sign}{minutes}m{rest / 1000:06.3f}s"
    return f"{sign}{minutes // 60}h{minutes % 60:02}m{rest // 1000:02}s"


def _errors(things: Sequence[Thing]) -> Iterator[str]:
    """What is said beneath each: a task says what went wrong, and what it is a part of does not say it again."""
    said = {thing.error for thing in things if thing.kind in _ON_HOSTS}
    for thing in things:
        repeated = thing.kind not in _ON_HOSTS and any(each.endswith(thing.error) for each in said)
        yield "" if repeated else printable(thing.error)
        said.add(thing.error)


def _style(heading: str, thing: Thing) -> str:
    match heading:
        case "KIND" | "STATUS":
            return _STYLES.get(thing.status, "")
        case "TIME" | "AFTER" | "TOOK" | "ID" | "SPAN" | "JOB":
            return "dim"
        case "WHAT":
            return "bold" if thing.kind == "job" else ""
        case _:
            return ""


def _line(words: Sequence[Text], shown: Sequence[str], widths: Mapping[str, int]) -> Text:
    for each, heading in zip(words, shown, strict=True):
        each.truncate(widths[heading], overflow="ellipsis")
        each.align("right" if heading == "TOOK" else "left", widths[heading])
    return _unwrapped(Text(" " * _GAP).join(words))


def _unwrapped(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    text.rstrip()
    return text
