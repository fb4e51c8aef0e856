"""Who may do what: a file in, answers out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.policy import ACTIONS, OPEN, BadPolicy, Thing, load, read

STAFF = """
[users]
ann = ["operator", "reader"]
bob = ["reader"]
root = ["admin"]
"*" = ["guest"]

[[roles.operator]]
do = ["run", "cancel"]
commands = ["AddDisk", "category:vm"]

[[roles.operator]]
do = ["cancel"]
commands = ["RemoveVm"]
jobs = "any"
entities = ["VM/dev-*", "DISK/d-1"]

[[roles.reader]]
do = ["see"]
commands = ["*"]
jobs = "any"

[[roles.guest]]
do = ["see"]
commands = ["external"]

[[roles.admin]]
do = ["*"]
commands = ["*"]
jobs = "any"

[[roles.declarer]]
do = ["declare"]
entities = ["VM/*"]
"""
POLICY = read(STAFF)


def may(user: str, action: str, command_type: str, owner: str = "", *entities: str, category: str = "") -> bool:
    thing = Thing(command_type, (category,) if category else (), owner, entities)
    return POLICY.scope(user, action).holds(thing)


def test_without_a_file_everything_is_granted_to_everybody() -> None:
    assert load("") is OPEN
    assert all(OPEN.scope("anybody", action).is_boundless for action in ACTIONS)


def test_what_nobody_grants_is_refused() -> None:
    assert not may("bob", "run", "AddDisk", "bob")
    assert not may("stranger", "see", "AddDisk", "stranger")
    assert not POLICY.scope("stranger", "run").grants


def test_a_type_is_granted_by_its_name_or_by_a_category() -> None:
    assert may("ann", "run", "AddDisk", "ann")
    assert may("ann", "run", "StopVm", "ann", category="vm")
    assert not may("ann", "run", "StopVm", "ann", category="storage")
    assert not may("ann", "run", "vm", "ann")
    assert POLICY.scope("ann", "run").holds_type("StopVm", ["vm"])
    assert not POLICY.scope("ann", "run").holds_type("RemoveVm", [])


def test_own_jobs_are_those_that_one_owns() -> None:
    assert may("ann", "cancel", "AddDisk", "ann")
    assert not may("ann", "cancel", "AddDisk", "bob")
    assert may("bob", "see", "AddDisk", "ann")


def test_all_that_a_job_is_about_must_be_granted_and_something_must_be() -> None:
    assert may("ann", "cancel", "RemoveVm", "bob", "VM/dev-7")
    assert may("ann", "cancel", "RemoveVm", "bob", "VM/dev-7", "DISK/d-1")
    assert not may("ann", "cancel", "RemoveVm", "bob", "VM/dev-7", "DISK/d-10")
    assert not may("ann", "cancel", "RemoveVm", "bob", "VM/prod-1")
    assert not may("ann", "cancel", "RemoveVm", "bob")


def test_everybody_has_the_roles_of_everybody_besides_the_own() -> None:
    assert may("stranger", "see", "external", "stranger")
    assert not may("stranger", "see", "external", "ann")
    assert may("bob", "see", "external", "ann")


def test_a_scope_knows_that_it_is_everything() -> None:
    assert POLICY.scope("bob", "see").is_boundless
    assert not POLICY.scope("stranger", "see").is_boundless
    assert not POLICY.scope("ann", "run").is_boundless
    assert all(POLICY.scope("root", action).is_boundless for action in ACTIONS)


def test_entities_are_declared_whatever_the_jobs() -> None:
    declarers = read(STAFF.replace('bob = ["reader"]', 'bob = ["declarer"]'))
    assert declarers.scope("bob", "declare").holds_entity("VM/vm-1")
    assert not declarers.scope("bob", "declare").holds_entity("HOST/h-1")
    assert not declarers.scope("ann", "declare").holds_entity("VM/vm-1")


def test_all_mistakes_are_told_at_once_each_with_its_place() -> None:
    text = """
    color = "blue"
    [users]
    ann = ["operatr"]
    bob = []
    [[roles.operator]]
    do = ["sea"]
    commands = ["*"]
    jobs = "mine"
    comands = ["*"]
    [[roles.operator]]
    do = ["see"]
    entities = ["vm/x", "VM/*x"]
    [roles.broken]
    do = ["see"]
    """
    with pytest.raises(BadPolicy) as bad:
        read(text)
    assert bad.value.complaints == [
        "color: means nothing here; there are roles, users",
        "roles.operator[0].comands: means nothing here; did you mean 'commands'?",
        "roles.operator[0].do: there is no action 'sea'; did you mean 'see'?",
        'roles.operator[0].jobs: must be "own" or "any"',
        "roles.operator[1].commands: must be a list of texts, and not empty",
        "roles.operator[1].entities: 'vm/x' is none of TYPE/id, TYPE/beginning* and *",
        "roles.operator[1].entities: 'VM/*x' is none of TYPE/id, TYPE/beginning* and *",
        "roles.broken: must be a list of grants, each begun by [[roles.broken]]",
        "users.ann: there is no role 'operatr'; did you mean 'operator'?",
        "users.bob: must be a list of texts, and not empty",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "roles: is required"),
        ("[users]\nann = ['a']\nann = ['b']\n", "is not TOML: "),
        ("roles = 1\nusers = 2", "users: is required"),
        ("[[roles.a]]\ndo = 'see'\ncommands = ['*']\n[users]\nann = ['a']", "roles.a[0].do: must be a list"),
    ],
)
def test_a_file_that_is_no_policy_grants_nothing(text: str, complaint: str) -> None:
    with pytest.raises(BadPolicy) as bad:
        read(text)
    assert any(complaint in each for each in bad.value.complaints), bad.value.complaints


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"nonsense", b"x" * (1 << 20) + b"xx"])
def test_a_file_that_is_configured_and_cannot_be_used_ends_the_process(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        load(str(file))
    assert end.value.code == 2
    assert str(file) in capsys.readouterr().err


def test_the_policy_that_the_documentation_shows_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "permissions.md").read_text()
    [shown] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    policy = read(shown)
    assert policy.scope("root", "force").is_boundless
    assert policy.scope("ann", "cancel").holds(Thing("StopVm", ["vm"], "bob", ["VM/dev-1"]))
    assert not policy.scope("ann", "cancel").holds(Thing("StopVm", ["vm"], "bob", ["VM/prod-1"]))
    assert all(f"`{action}`" in page for action in ACTIONS)


NAMES = st.sampled_from(["a", "b", "c"])


@given(user=NAMES, owner=NAMES, kind=NAMES, action=st.sampled_from(ACTIONS), entities=st.lists(NAMES, max_size=2))
def test_nobody_may_more_than_some_grant_of_a_role_of_his_says(
    user: str, owner: str, kind: str, action: str, entities: list[str]
) -> None:
    policy = read(
        """
        [users]
        a = ["x"]
        b = ["x", "y"]
        [[roles.x]]
        do = ["run", "see"]
        commands = ["a"]
        [[roles.y]]
        do = ["see"]
        commands = ["b", "c"]
        jobs = "any"
        entities = ["VM/a*"]
        """
    )
    things = [f"VM/{each}" for each in entities]
    expected = (user in "ab" and action in ("run", "see") and kind == "a" and owner == user) or (
        user == "b" and action == "see" and kind in "bc" and set(entities) == {"a"}
    )
    assert policy.scope(user, action).holds(Thing(kind, (), owner, things)) is expected
