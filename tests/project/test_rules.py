"""How a test names the rule that it shows."""

from __future__ import annotations

import pytest
from tests.rules import RULES, Rule, read_rules, rule_named, table

CATALOGUE = """
## §4 Steps

* Many jobs may share one.
* `force` aborts open steps and lets it be cleared.
* A failed task makes exactly its step FAILED; siblings keep their own results

## §5 Locks

* Many jobs
"""


@pytest.fixture
def rules() -> list[Rule]:
    return read_rules(CATALOGUE)


@pytest.mark.parametrize(
    ("named", "begins"),
    [
        ("semantics §4: Many jobs may share one", "Many jobs may"),
        ("semantics §5: many jobs", "Many jobs"),
        ("semantics §4: force lets it be cleared", "`force`"),
        ("semantics §4: a failed task makes exactly its step failed", "A failed task"),
    ],
)
def test_a_rule_is_named_by_enough_of_its_words_in_their_order(rules: list[Rule], named: str, begins: str) -> None:
    rule = rule_named(rules, named)
    assert rule is not None
    assert rule.text.startswith(begins)


@pytest.mark.parametrize(
    "named",
    ["semantics §4: cleared be force", "semantics §5: force", "semantics §6: many jobs", "many jobs", "semantics §4: "],
)
def test_what_names_no_rule_is_seen(rules: list[Rule], named: str) -> None:
    assert rule_named(rules, named) is None


def test_a_rule_is_as_good_as_its_worst_test(rules: list[Rule]) -> None:
    first, second, third, _ = rules
    first.outcomes = {"a": "passed", "b": "failed"}
    second.outcomes = {"a": "passed"}
    assert [rule.verdict for rule in (first, second, third)] == ["failed", "passed", "no test"]
    assert "| §4 | Many jobs may share one. | a<br>b | failed |" in table(rules)


def test_the_catalogue_has_no_rule_twice() -> None:
    rules = read_rules(RULES.read_text())
    assert len(rules) > 150
    assert len({(rule.section, rule.text) for rule in rules}) == len(rules)
