"""What the README promises is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coordinator.settings import Settings as CoordinatorSettings
from hostagent.settings import Settings as HostAgentSettings
from jobstore.settings import Settings as JobStoreSettings
from waybill_cli.exits import Exit

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("settings", [CoordinatorSettings, JobStoreSettings, HostAgentSettings])
def test_every_setting_is_in_the_table_and_nothing_else(
    settings: type[CoordinatorSettings] | type[JobStoreSettings] | type[HostAgentSettings],
) -> None:
    prefix = settings.model_config["env_prefix"].upper()
    fields = {f"{prefix}{field.upper()}" for field in settings.model_fields} - {f"{prefix}LOG_LEVEL"}
    assert set(re.findall(rf"`({prefix}[A-Z_]+)`", README)) == fields


def test_every_exit_code_is_in_the_table() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)] == [code.value for code in Exit]


def test_every_file_and_folder_that_is_named_exists() -> None:
    named = re.findall(r"`((?:protos|services|clients|tests)/[\w./]*)`", README)
    assert [path for path in named if not (ROOT / path).exists()] == []
