"""Which test shows which rule of the design: `@pytest.mark.rule("semantics §4: Many jobs may share one")`.

The rules are in `rules.md`, in the words of the page. A marker names one by its words, or by enough of them in their
order; one that fits no rule is an error. A run writes what it has shown to `build/rules.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

RULES = Path(__file__).with_suffix(".md")
TABLE = Path(__file__).parents[1] / "build" / "rules.md"

_SECTION = re.compile(r"## (§\d+) ")
_NAMED = re.compile(r"semantics (§\d+): (.+)", re.DOTALL)
_WORD = re.compile(r"[\w%+-]+")


@dataclass
class Rule:
    """A rule, and the tests that show it."""

    section: str
    text: str
    outcomes: dict[str, str] = field(default_factory=dict)
    """By test: `passed`, `failed`, `skipped`."""

    @property
    def verdict(self) -> str:
        """What a run has shown of it: as good as its worst test."""
        return min(self.outcomes.values(), key=_BEST_LAST.index, default="no test")


_BEST_LAST = ["failed", "not run", "skipped", "passed"]


def read_rules(text: str) -> list[Rule]:
    """Reads the catalogue."""
    rules, section = [], ""
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section = found[1]
        elif section and line.startswith("* "):
            rules.append(Rule(section, line.removeprefix("* ")))
    return rules


def rule_named(rules: Iterable[Rule], named: str) -> Rule | None:
    """Returns the rule that a marker names: the shortest of those that have its words, in their order."""
    found = _NAMED.fullmatch(named)
    if found is None:
        return None
    section, words = found[1], _words(found[2])
    fitting = [rule for rule in rules if rule.section == section and _are_within(words, _words(rule.text))]
    return min(fitting, key=lambda rule: len(rule.text), default=None)


@cache
def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _are_within(words: Sequence[str], all_words: Sequence[str]) -> bool:
    rest = iter(all_words)
    return bool(words) and all(word in rest for word in words)


def table(rules: Sequence[Rule]) -> str:
    """Returns the rules with their tests as Markdown."""
    lines = ["| | rule | shown by | outcome |", "| --- | --- | --- | --- |"]
    for rule in rules:
        tests = "<br>".join(rule.outcomes)
        lines.append(f"| {rule.section} | {_cell(rule.text)} | {_cell(tests)} | {rule.verdict} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


class RulesShown:
    """Pytest's plugin: gathers what the run shows."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._by_test: dict[str, list[Rule]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for marker in item.iter_markers("rule"):
                rule = rule_named(self._rules, str(marker.args[0]))
                if rule is None:
                    raise pytest.UsageError(f"{item.nodeid}: tests/rules.md has no rule {marker.args[0]!r}")
                self._by_test.setdefault(item.nodeid, []).append(rule)
                rule.outcomes.setdefault(_name(item.nodeid), "not run")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            for rule in self._by_test.get(report.nodeid, ()):
                rule.outcomes[_name(report.nodeid)] = _worse(rule.outcomes[_name(report.nodeid)], report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._by_test:
            return
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(self._rules))
        shown = sum(rule.verdict == "passed" for rule in self._rules)
        where = TABLE.relative_to(TABLE.parents[1])
        terminalreporter.write_line(
            f"rules of the design that tests have shown: {shown} of {len(self._rules)}, {where}"
        )


def _name(node_id: str) -> str:
    """The test without its parameters: they are one to a reader."""
    return node_id.partition("[")[0].removeprefix("tests/")


def _worse(one: str, other: str) -> str:
    """Of two outcomes of a test's examples; `not run` is none yet."""
    return other if one == "not run" else min(one, other, key=_BEST_LAST.index)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "rule(words): the rule of the design that the test shows, in the words of the page"
    )
    config.pluginmanager.register(RulesShown(read_rules(RULES.read_text())), "waybill-rules")
