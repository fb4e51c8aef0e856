"""The simulated host, and what happens around every verb of it.

    draw a rule ─▶ the verb: prepare ─▶ toil ─▶ effect, counted and kept under the task id, one fsync ─▶ answer
         │                               │                                                      │
         └ silent                        ├ takes its time, with progress; deaf: without          └ crash: dies here
                                         └ hang, lose, fail, crash_before: all is prepared, nothing is done

A task whose effect is in the model already (the agent died before its ledger said done) is answered from there.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final, NoReturn

from chassis.clock import Clock
from hostagent.crew import Crew
from hostagent.drivers.driver import Driver, Finding, Forgotten, ObjectView, Probed, Surroundings, Verb, Work
from hostagent.drivers.sim.documents import Documents
from hostagent.drivers.sim.model import Model, ObjectKey, VmState
from hostagent.drivers.sim.program import Outcome, Program, Rule
from hostagent.task import Json

_KIND_OF_ARGUMENT: Final = {
    "volume_id": "volume",
    "vm_id": "vm",
    "storage_domain_id": "storage_domain",
    "object_id": "object",
}
_PROGRESS_SECONDS: Final = 0.25


class Attempt:
    """One go at a task, as the sim's verbs see it."""

    def __init__(self, sim: Sim, verb: Verb, work: Work, key: ObjectKey, rule: Rule) -> None:
        self._sim = sim
        self._verb = verb
        self._work = work
        self._key = key
        self.rule = rule

    @property
    def task_id(self) -> str:
        return self._work.task_id

    @property
    def names(self) -> Mapping[str, str]:
        return self._work.names

    def check_generation(self, volume_id: str) -> None:
        """Raises GENERATION_MISMATCH if the task expects another generation of the volume."""
        self._sim.model.expect_generation(volume_id, self._work.expected_generation)

    async def recover_by(self, action: str, **arguments: Json) -> None:
        """Registers what takes back the part of the work that comes next."""
        await self._work.recover_by(action, **arguments)

    async def toil(self) -> None:
        """Takes the time that the work takes, and runs into the trouble that it is programmed to have."""
        usual = 0.0 if self._verb.is_call else self._sim.usual_work_ms
        work_ms = usual if self.rule.work_ms is None else self.rule.work_ms
        if self.rule.outcome is Outcome.DEAF:
            self._work.begin_effect()  # from here on nobody interrupts it
            await self._sim.clock.sleep(work_ms / 1000)
            return
        if work_ms:
            await self._spend(work_ms / 1000)
        if self.rule.outcome is not Outcome.SUCCESS:
            await self._have_trouble()
        self._work.begin_effect()

    async def take_effect(self, answer: Json = None) -> Json:
        """Makes the effect durable, together with what the verb has just changed, and returns the answer."""
        self._sim.model.count(self._key, self._verb.name, effects=1)
        self._sim.model.remember(self.task_id, answer)
        await self._sim.save()
        return answer

    async def _spend(self, seconds: float) -> None:
        done = self._work.progress  # in former processes
        seconds *= (100 - done) / 100
        parts = math.ceil(seconds / _PROGRESS_SECONDS)
        for part in range(1, parts + 1):
            await self._sim.clock.sleep(seconds / parts)
            if part < parts:
                await self._work.advance(done + (100 - done) * part // parts)

    async def _have_trouble(self) -> None:
        match self.rule.outcome:
            case Outcome.HANG:
                await asyncio.get_running_loop().create_future()
            case Outcome.LOSE:
                raise Forgotten
            case Outcome.CRASH_BEFORE:
                await self._sim.crash()
            case Outcome.FAIL_DIRTY:
                await self.recover_by("failToRecover")
                self._fail()
            case Outcome.FAIL:
                self._fail()

    def _fail(self) -> NoReturn:
        raise self.rule.failure("TASK_FAILED", f"{self._verb.name} is programmed to fail")


class Sim:
    """A simulated host."""

    def __init__(self, surroundings: Surroundings, documents: Documents, crew: Crew) -> None:
        self._surroundings = surroundings
        self._documents = documents
        self.crew = crew
        """Does what VMs go through by themselves."""
        self.clock: Clock = surroundings.clock
        self.usual_work_ms = surroundings.settings.sim_work_ms
        self.boot_seconds = surroundings.settings.sim_boot_ms / 1000
        self.host_id = surroundings.host_id
        self.model = Model(documents)
        self.program = Program(documents)

    async def save(self) -> None:
        """Returns when the model is on disk as it is now."""
        await self._documents.save()

    def observe_vm(self, vm_id: str, state: VmState, error: str = "") -> None:
        """Tells the watchers what a VM is seen in."""
        self._surroundings.observe("VM", vm_id, state.value, error)

    def observe_host(self) -> None:
        """Tells the watchers what the host is seen in."""
        state, error = self.model.host_state()
        self._surroundings.observe("HOST", self.host_id, state, error)

    async def crash(self) -> NoReturn:
        """Dies, with what was counted so far on disk."""
        await self.save()
        self._surroundings.die()
        raise AssertionError("still alive")

    # As the agent sees it.

    async def admit(self, verb: Verb, arguments: Mapping[str, Json], expected_generation: int | None) -> None:
        await self.program.refuse(verb.name, arguments)
        volume_id = arguments.get("volume_id", "")
        if expected_generation is not None and self.model.find_volume(volume_id) is not None:
            self.model.expect_generation(volume_id, expected_generation)

    async def perform(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Json:
        key = self._object_of(arguments)
        self.model.count(key, verb.name, attempts=1)
        if (done := self.model.done(work.task_id)) is not None:
            return done["answer"]
        rule = await self.program.draw(verb.name, arguments)
        if rule.outcome is Outcome.SILENT:
            work.silence()
        answer = await verb.run(self, Attempt(self, verb, work, key, rule), **arguments)
        if rule.outcome is Outcome.CRASH:
            await self.crash()
        return answer

    async def probe(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Finding:
        done = self.model.done(work.task_id)
        return Finding(Probed.NOT_DONE) if done is None else Finding(Probed.DONE, done["answer"])

    async def recover(self, action: str, work: Work, arguments: Mapping[str, Json]) -> None:
        await driver.recovery_actions[action](self, work, **arguments)

    def forget(self, task_ids: Iterable[str]) -> None:
        self.model.forget(task_ids)

    def forget_all_but(self, task_ids: Iterable[str]) -> None:
        self.model.forget_all_but(task_ids)

    def capabilities(self) -> Mapping[str, Json]:
        return {"simulated": True, "cpus": os.cpu_count() or 1}

    def objects(self) -> Iterable[ObjectView]:
        return self.model.objects()

    def _object_of(self, arguments: Mapping[str, Json]) -> ObjectKey:
        """Returns what a task works on, by its arguments; the host, if they name nothing."""
        for name, kind in _KIND_OF_ARGUMENT.items():
            if name in arguments:
                return ObjectKey(kind, arguments[name])
        return ObjectKey("host", self.host_id)


@asynccontextmanager
async def _open(surroundings: Surroundings) -> AsyncIterator[Sim]:
    from hostagent.drivers.sim.vm_verbs import take_up_vms  # its verbs are this module's driver's

    async with Documents(surroundings.data_dir / "sim.db", surroundings.clock) as documents, Crew() as crew:
        sim = Sim(surroundings, documents, crew)
        if sim.model.host_state()[0] != "UP":
            sim.observe_host()
        take_up_vms(sim)
        yield sim


driver: Final = Driver("sim", open=_open)


@driver.recovery_action("failToRecover")
async def fail_to_recover(sim: Sim, work: Work) -> None:
    """Fails, as it is programmed to."""
    raise RuntimeError("programmed to fail")
