"""What every driver owes the runner. A new driver adds itself and its verbs to DRIVERS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.errors import WaybillError
from hostagent.drivers.driver import Driver, Host, NoSuchDriver, Probed, Recovery, Surroundings, load_driver
from hostagent.settings import Settings
from hostagent.task import Json


@dataclass
class Contract:
    """What the suite has to know of a driver: a verb with an effect on an object, for each kind of recovery."""

    driver: str
    makes: tuple[str, dict[str, Json]]
    """A task that makes an object, and can be taken back."""
    object_id: str
    changes: dict[Recovery, tuple[str, dict[str, Json]]]
    """Tasks on that object."""


DRIVERS = [
    Contract(
        "sim",
        makes=("createVolume", {"volume_id": "v1", "size_mb": 4}),
        object_id="v1",
        changes={
            Recovery.RESUME: ("extendImageSize", {"volume_id": "v1", "size_mb": 8}),
            Recovery.PROBE: ("syncImageData", {"volume_id": "v1"}),
        },
    )
]


@dataclass
class ScriptedWork:
    """A task as the runner would show it to a verb."""

    task_id: str
    expected_generation: int | None = None
    progress: int = 0
    registered: list[tuple[str, dict[str, Json]]] = field(default_factory=list)

    async def advance(self, percent: int) -> None:
        self.progress = max(self.progress, percent)

    async def recover_by(self, action: str, **arguments: Json) -> None:
        self.registered.append((action, arguments))

    def begin_effect(self) -> None: ...

    def silence(self) -> None: ...


@asynccontextmanager
async def opened(driver: Driver, folder: Path) -> AsyncIterator[Host]:
    def observe(entity_type: str, entity_id: str, state: str, error: str = "") -> None: ...

    surroundings = Surroundings("host-1", folder, SystemClock(), Settings(), observe, lambda: None)
    async with driver.open(surroundings) as host:
        yield host


@pytest.fixture(params=DRIVERS, ids=lambda contract: contract.driver)
def contract(request: Any) -> Contract:
    found: Contract = request.param
    return found


async def perform(driver: Driver, host: Host, task: tuple[str, dict[str, Json]], work: ScriptedWork) -> Json:
    name, arguments = task
    assert driver.verbs[name].arguments.violations(arguments) == []
    return await host.perform(driver.verbs[name], work, arguments)


def effects(host: Host, object_id: str, verb: str) -> int:
    return sum(found.counters.get(verb, (0, 0))[1] for found in host.objects() if found.object_id == object_id)


def test_every_verb_says_what_it_is(contract: Contract) -> None:
    driver = load_driver(contract.driver)
    assert driver.name == contract.driver
    for name, verb in driver.verbs.items():
        assert verb.name == name
        assert verb.description.endswith(".")


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(NoSuchDriver, match=r"no driver warp; installed: .*sim"):
        load_driver("warp")


async def test_a_task_run_again_has_its_effect_once_and_answers_the_same(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    async with opened(driver, tmp_path) as host:
        first = await perform(driver, host, contract.makes, ScriptedWork("t1"))
    async with opened(driver, tmp_path) as host:
        assert await perform(driver, host, contract.makes, ScriptedWork("t1")) == first
        assert effects(host, contract.object_id, contract.makes[0]) == 1


async def test_a_forgotten_task_is_a_new_one(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    change = contract.changes[Recovery.RESUME]
    async with opened(driver, tmp_path) as host:
        await perform(driver, host, contract.makes, ScriptedWork("t1"))
        for round_ in range(2):
            await perform(driver, host, change, ScriptedWork("t2"))
            if round_ == 0:
                host.forget(["t2"])
        assert effects(host, contract.object_id, change[0]) == 2


async def test_what_no_ledger_knows_is_forgotten_at_the_start(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    change = contract.changes[Recovery.RESUME]
    async with opened(driver, tmp_path) as host:
        await perform(driver, host, contract.makes, ScriptedWork("t1"))
        await perform(driver, host, change, ScriptedWork("t2"))
    async with opened(driver, tmp_path) as host:
        host.forget_all_but([])
        await perform(driver, host, change, ScriptedWork("t2"))
        assert effects(host, contract.object_id, change[0]) == 2


async def test_a_probe_tells_whether_the_work_was_done(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    name, arguments = contract.changes[Recovery.PROBE]
    assert driver.verbs[name].recovery is Recovery.PROBE
    work = ScriptedWork("t2")
    async with opened(driver, tmp_path) as host:
        await perform(driver, host, contract.makes, ScriptedWork("t1"))
        assert (await host.probe(driver.verbs[name], work, arguments)).probed is Probed.NOT_DONE
        answer = await perform(driver, host, (name, arguments), work)
    async with opened(driver, tmp_path) as host:
        finding = await host.probe(driver.verbs[name], work, arguments)
        assert (finding.probed, finding.answer) == (Probed.DONE, answer)


async def test_recovery_actions_take_the_work_back_and_may_run_twice(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    work = ScriptedWork("t1")
    async with opened(driver, tmp_path) as host:
        await perform(driver, host, contract.makes, work)
        assert work.registered
        for _ in range(2):
            for action, arguments in reversed(work.registered):
                await host.recover(action, work, arguments)
    async with opened(driver, tmp_path) as host:
        assert {found.state for found in host.objects() if found.object_id == contract.object_id} <= {"GONE"}


@pytest.mark.rule("semantics §3: a mismatch is refused")
async def test_a_task_for_another_generation_is_refused(contract: Contract, tmp_path: Path) -> None:
    driver = load_driver(contract.driver)
    name, arguments = contract.changes[Recovery.RESUME]
    async with opened(driver, tmp_path) as host:
        await perform(driver, host, contract.makes, ScriptedWork("t1"))
        (made,) = (found for found in host.objects() if found.object_id == contract.object_id)
        with pytest.raises(WaybillError) as refused:
            await host.admit(driver.verbs[name], arguments, made.generation + 1)
        assert refused.value.reason == "GENERATION_MISMATCH"
        with pytest.raises(WaybillError):
            await perform(driver, host, (name, arguments), ScriptedWork("t2", expected_generation=made.generation + 1))
        await perform(driver, host, (name, arguments), ScriptedWork("t3", expected_generation=made.generation))
        (changed,) = (found for found in host.objects() if found.object_id == contract.object_id)
        assert changed.generation == made.generation + 1
