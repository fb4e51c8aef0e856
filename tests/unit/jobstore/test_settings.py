"""How long things are kept, as the environment says it."""

import pytest

from chassis.settings import BadSettings, read
from jobstore.settings import Retention, Settings


def test_a_day_for_what_ended_well_and_a_week_for_the_rest() -> None:
    assert read(Settings).retention == Retention(finished=86_400, others=604_800, tombstones=3_600)


def test_minus_one_is_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSTORE_FINISHED_TTL_SECONDS", "-1")
    assert read(Settings).retention.finished == -1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBSTORE_FINISHED_TTL_SECONDS", "-0.5"),
        ("JOBSTORE_FAILED_TTL_SECONDS", "-2"),
        ("JOBSTORE_FAILED_TTL_SECONDS", "a week"),
        ("JOBSTORE_TOMBSTONE_SECONDS", "0"),
        ("JOBSTORE_SWEEP_SECONDS", "0"),
    ],
)
def test_what_is_no_time_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        read(Settings)
    [complaint] = caught.value.complaints
    assert name in complaint
