"""What a policy names that is not there."""

from __future__ import annotations

from chassis.policy import read
from coordinator.commands.base import Registry
from coordinator.permissions import unknown_commands


def test_misspelt_types_and_categories_are_found() -> None:
    policy = read(
        """
        [users]
        ann = ["operator"]
        [[roles.operator]]
        do = ["run"]
        commands = ["AddDisk", "AdDisk", "category:storage", "category:storrage", "external", "*"]
        """
    )
    unknown = unknown_commands(policy, Registry.load())
    assert "AdDisk" in unknown
    assert "category:storrage" in unknown
    assert not {"AddDisk", "external", "*", "category:external"} & set(unknown)
