from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.waybill_cli.scripted import FarEnd, ScriptedJaeger


@pytest.fixture
def far_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    """Scripted services; the program finds them by its environment. There is no Jaeger unless a test sets one."""
    far_end = FarEnd()
    far_end.start()
    monkeypatch.setenv("WAYBILL_COORDINATOR", far_end.address)
    monkeypatch.setenv("WAYBILL_JOBSTORE", far_end.address)
    monkeypatch.delenv("WAYBILL_JAEGER_URL", raising=False)
    yield far_end
    far_end.stop()


@pytest.fixture
def jaeger(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedJaeger]:
    """A Jaeger that the program finds by its environment."""
    with ScriptedJaeger() as jaeger:
        monkeypatch.setenv("WAYBILL_JAEGER_URL", jaeger.url)
        monkeypatch.setenv("no_proxy", "*")
        yield jaeger
