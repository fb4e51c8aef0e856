"""What the documentation quotes is what there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "your-own-command.md"
QUOTED = re.compile(r"<!-- (\S+) -->|```(?:python|toml)\n(.*?)```", re.DOTALL)


def test_the_page_about_own_commands_quotes_the_plug_in_that_the_tests_run() -> None:
    source, blocks = "", 0
    for path, block in QUOTED.findall(PAGE.read_text()):
        if path:
            source = lines_of((ROOT / path).read_text())
        else:
            assert lines_of(block) in source, f"not in the file any more:\n{block}"
            blocks += 1
    assert blocks >= 5


def lines_of(text: str) -> str:
    """The lines that say something, without their indentation, which a formatter may change."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
