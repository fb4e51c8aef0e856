"""Settings from the environment."""

import pytest
from pydantic import Field, ValidationError

from chassis.settings import BadSettings, ServiceSettings, load, read


class Settings(ServiceSettings, env_prefix="DEPOT_"):
    listen: str = Field("127.0.0.1:50099", description="address to serve on")
    workers: int = Field(10, ge=1, description="how many work at once")
    database_url: str = Field("embedded", pattern="^(embedded|postgresql://.*)$", description="where the rows are")


def complaints(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as bad:
        read(Settings)
    return bad.value.complaints


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPOT_WORKERS", "3")
    monkeypatch.setenv("UNRELATED", "x")
    settings = load(Settings)
    assert (settings.workers, settings.listen) == (3, "127.0.0.1:50099")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read(Settings).workers = 4


def test_a_misspelt_name_is_an_error_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints(monkeypatch, DEPOT_WORKER="3") == ["DEPOT_WORKER: no such setting; did you mean DEPOT_WORKERS?"]


def test_a_name_like_no_other_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    (complaint,) = complaints(monkeypatch, DEPOT_ZZZZZZ="3")
    assert complaint.endswith(
        "there are DEPOT_TRACES_ENDPOINT, DEPOT_METRICS_LISTEN, DEPOT_LISTEN, DEPOT_WORKERS, DEPOT_DATABASE_URL"
    )


def test_a_variable_of_a_kubernetes_service_link_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    (complaint,) = complaints(monkeypatch, DEPOT_PORT_50051_TCP_ADDR="10.0.0.1")
    assert "enableServiceLinks: false" in complaint


def test_everything_that_is_wrong_is_told_at_once_with_its_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    told = complaints(monkeypatch, DEPOT_WORKER="3", DEPOT_WORKERS="many", DEPOT_DATABASE_URL="mysql://")
    assert [complaint.split(":")[0] for complaint in told] == ["DEPOT_WORKER", "DEPOT_WORKERS", "DEPOT_DATABASE_URL"]
    assert "(how many work at once)" in told[1]


def test_a_bad_value_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    (complaint,) = complaints(monkeypatch, DEPOT_DATABASE_URL="mysql://me:hunter2@db")
    assert "hunter2" not in complaint


def test_a_process_with_bad_settings_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEPOT_WORKERS", "0")
    with pytest.raises(SystemExit) as exit_:
        load(Settings)
    assert exit_.value.code == 2
    assert "DEPOT_WORKERS: Input should be greater than or equal to 1" in capsys.readouterr().err
