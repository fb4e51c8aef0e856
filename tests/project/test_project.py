"""The promises of the project's own files: what no linter of somebody else checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
MIGRATIONS = SERVICES / "jobstore" / "migrations"

MODULES = sorted(SERVICES.rglob("*.py"))
# The decisions, made without a loop, a socket or a clock; what they import of their own service is as pure as they.
PURE_CORE = [
    *sorted((SERVICES / "coordinator" / "flow").glob("*.py")),
    *(SERVICES / name for name in ("coordinator/plan.py", "coordinator/rows.py", "hostagent/task.py")),
]
IMPURE = {"asyncio", "os", "random", "socket", "sqlite3", "subprocess", "threading", "time"}

SMUGGLED = """
import random
import time
import uuid
from datetime import datetime
from random import shuffle
from time import monotonic

print(time.time(), monotonic(), uuid.uuid4(), random.random(), datetime.now(), shuffle)
rng: random.Random
"""


def ruff_on(text: str, pretended_path: str) -> list[str]:
    """Returns the rules that a file of this text and place would break."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet", "--output-format=concise"]
    found = subprocess.run(
        [*command, "--stdin-filename", pretended_path, "-"],
        input=text,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr == ""
    return re.findall(r"TID251 `([\w.]+)`", found.stdout)


class TestTimeIdsAndRandomnessAreArguments:
    def test_a_service_that_asks_the_machine_itself_is_caught(self) -> None:
        caught = set(ruff_on(SMUGGLED, "services/coordinator/smuggler.py"))
        assert caught >= {"time", "uuid.uuid4", "random.random", "datetime.datetime.now", "random.shuffle"}
        assert "random.Random" not in caught

    def test_only_the_chassis_clock_may(self) -> None:
        assert ruff_on(SMUGGLED, "services/chassis/clock.py") == []

    def test_nobody_asks_the_loop_for_the_time(self) -> None:
        asking = [f"{path}:{line}" for path in MODULES for line in _lines_asking_loop_for_time(path.read_text())]
        assert asking == []

    def test_asking_the_loop_would_be_seen(self) -> None:
        asking = "asyncio.get_running_loop().time()\nself._loop.time()\nframe.time()\nnow = loop.time"
        assert _lines_asking_loop_for_time(asking) == [1, 2, 4]


def _lines_asking_loop_for_time(text: str) -> list[int]:
    if "loop" not in text:
        return []
    return sorted(
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr == "time" and "loop" in ast.unparse(node.value).lower()
    )


class TestThePureCore:
    @pytest.mark.parametrize("path", PURE_CORE, ids=lambda path: str(path.relative_to(SERVICES)))
    def test_it_stands_on_the_standard_library_alone(self, path: Path) -> None:
        assert sorted(_foreign_imports(path)) == []


def _foreign_imports(path: Path) -> set[str]:
    """Returns what a module imports, itself or through its own service, that does no mere computing."""
    service = SERVICES / path.relative_to(SERVICES).parts[0]
    seen, todo, foreign = set[Path](), [path], set[str]()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in _imports(module):
            own = _modules_of(service, name)
            todo += own
            top = name.partition(".")[0]
            if not own and (top not in sys.stdlib_module_names or top in IMPURE):
                foreign.add(f"{module.name}: {name}")
    return foreign


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules_of(service: Path, name: str) -> list[Path]:
    """Returns the module of this service that is meant by `service.module`, `service.package.module.thing` …"""
    first, *parts = name.split(".")
    if first != service.name:
        return []
    candidates = [service.joinpath(*parts[:count]).with_suffix(".py") for count in range(1, len(parts) + 1)]
    return [path for path in candidates if path.exists()]


class TestMigrations:
    """Forward only, readable by everybody, and silent about nothing."""

    FILES = sorted(MIGRATIONS.glob("*"))

    def test_there_are_some(self) -> None:
        assert self.FILES

    def test_they_are_numbered_without_gaps(self) -> None:
        names = [path.name for path in self.FILES]
        assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", name) for name in names), names
        assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_they_are_ascii_with_unix_line_ends(self, path: Path) -> None:
        text = path.read_bytes()
        assert text.isascii()
        assert b"\r" not in text
        assert b"\t" not in text
        assert text.endswith(b"\n")

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_they_never_take_back(self, path: Path) -> None:
        """A rolling update has old code on the new schema: expand now, contract releases later and on purpose."""
        assert re.findall(r"(?i)\b(DROP\s+(?:TABLE|COLUMN)|RENAME|TRUNCATE)\b", _without_comments(path)) == []

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_their_constraints_have_names(self, path: Path) -> None:
        """The name is what an error report and a later migration can refer to."""
        statements = _without_comments(path)
        named = re.findall(r"\bCONSTRAINT\s+\w+\s+(?:CHECK|FOREIGN\s+KEY)\s*\(", statements)
        assert len(named) == len(re.findall(r"\b(?:CHECK|FOREIGN\s+KEY)\s*\(", statements))


def _without_comments(path: Path) -> str:
    return re.sub(r"--[^\n]*", "", path.read_text())


@pytest.mark.parametrize(
    "path",
    [*chain(sorted((SERVICES / "jobstore").rglob("*.py")), MIGRATIONS.glob("*.sql"))],
    ids=lambda path: str(path.relative_to(SERVICES)),
)
def test_statements_name_their_columns(path: Path) -> None:
    """A row's shape is the statement's to say: a column added by a newer migration must not shift an older program."""
    text = path.read_text()
    assert re.findall(r"(?i)\bSELECT\s+\*\s+FROM\s+(?!unnest|\()\w+", text) == []
    assert re.findall(r"\bINSERT\s+INTO\s+[\w{}.]+\s+(?:VALUES|SELECT)\b", text) == []


def test_make_alone_tells_what_there_is() -> None:
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = set(re.findall(r"^  make (\w+)", shown.stdout, re.MULTILINE))
    assert {"help", "demo", "up", "test", "check", "protos", "bench", "crash"} <= targets
