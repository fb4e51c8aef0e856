"""What a driver is: a named set of verbs, and how a host is opened that they work on.

    driver = Driver("sim", open=open_sim)

    @driver.task("createVolume", recovery=Recovery.RESUME)
    async def create_volume(host: Sim, work: Work, *, volume_id: ObjectId, size_mb: Megabytes) -> Json:
        \"""Creates an empty volume.\"""

A verb is run at least once, and must have its effect once: the agent may die between the effect and writing down that
it is done. Each verb declares what then is to be done with a task that was begun and has no end:

* RESUME: run it again under the same task id; the verb finds what it did before and does not do it twice.
* ROLL_BACK: run the recovery actions that it had registered; the task fails.
* PROBE: ask the host (`Host.probe`) whether it was done; if not, run it again; if nobody can tell, roll back.

A driver whose volumes have a generation has the short verb `fenceVolume {volume_id, generation, fenced_generation,
writer}`, which looks and acts in one stroke. If the volume has that generation it gets the fenced one, and the task
`writer` can neither finish its work then nor take it back. The answer is `{outcome, generation, legality}`, the latter
two as they are then. The outcome is FENCED; or DONE, if the writer had done its work; or DOUBTFUL, if nobody can tell.
Without the verb such tasks count as lost.

A verb fails by raising WaybillError. Before each part of its work that would have to be taken back, it registers a
recovery action, which is durable before that part begins; they run last in, first out, and may run twice.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from chassis.clock import Clock
from hostagent.drivers.arguments import ArgumentSchema
from hostagent.settings import Settings
from hostagent.task import Json

ENTRY_POINTS: Final = "waybill.verbs"


Run = Callable[..., Awaitable[Json]]
"""`run(host, work, **arguments)` does a verb and returns its answer, None for none."""
Recover = Callable[..., Awaitable[None]]
"""`recover(host, work, **arguments)` takes back a part of a task's work; it may find that there is nothing to do."""


class Recovery(StrEnum):
    """What becomes of a task that was begun by an agent that died."""

    RESUME = "RESUME"
    ROLL_BACK = "ROLL_BACK"
    PROBE = "PROBE"


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that a host can do."""

    name: str
    is_call: bool
    """Short: by Call, not by StartTasks."""
    recovery: Recovery
    arguments: ArgumentSchema
    description: str
    run: Run


class Work(Protocol):
    """A task as its verb sees it while it runs."""

    @property
    def task_id(self) -> str: ...

    @property
    def names(self) -> Mapping[str, str]:
        """What it is part of: correlation_id, job_id, command_id and so on; empty where nobody said."""
        ...

    @property
    def expected_generation(self) -> int | None:
        """The generation that the object must have; None for any."""
        ...

    @property
    def progress(self) -> int:
        """0-100: how far it has come, in former processes too."""
        ...

    async def advance(self, percent: int) -> None:
        """Reports how far it has come; at most a few times a second, please."""
        ...

    async def recover_by(self, action: str, **arguments: Json) -> None:
        """Registers a recovery action for the part of the work that comes next; durable when it returns."""
        ...

    def begin_effect(self) -> None:
        """Says that the effect comes now, and takes no time but the disk's.

        From here on the task is not interrupted (a stop comes too late), only observations made from now on can show
        its effect, and its worker takes up another task while this one waits for the disk.
        """
        ...

    def silence(self) -> None:
        """Has nothing more of this task published, as if the host's pushes were lost."""
        ...


class Forgotten(Exception):  # noqa: N818
    """Raised by a verb whose host lost the task: the agent forgets it without a trace."""


class Probed(StrEnum):
    """What a host could find out about a task's work."""

    DONE = "DONE"
    NOT_DONE = "NOT_DONE"
    DOUBTFUL = "DOUBTFUL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found, and what the work answered if it was done."""

    probed: Probed
    answer: Json = None


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object of a host, for GetHost. `counters`: by verb, attempts and real effects."""

    kind: str
    object_id: str
    state: str
    generation: int = 0
    counters: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    details: Mapping[str, Json] = field(default_factory=dict)


class Host(Protocol):
    """A host that a driver has opened. All calls come from one event loop."""

    async def admit(self, verb: Verb, arguments: Mapping[str, Json], expected_generation: int | None) -> None:
        """Raises WaybillError if it refuses such a task now; asked before a new task is accepted."""
        ...

    async def perform(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Json:
        """Does a verb and returns its answer. Raises WaybillError. Cancelled when the task is stopped."""
        ...

    async def probe(self, verb: Verb, work: Work, arguments: Mapping[str, Json]) -> Finding:
        """Finds out whether the work of a task was done, for verbs that declare PROBE."""
        ...

    async def recover(self, action: str, work: Work, arguments: Mapping[str, Json]) -> None:
        """Runs a recovery action that a task had registered. Raises if that fails."""
        ...

    def forget(self, task_ids: Iterable[str]) -> None:
        """Is told that tasks were cleared: what was kept so that they have their effect once can go."""
        ...

    def forget_all_but(self, task_ids: Iterable[str]) -> None:
        """Is told, when the agent starts, which tasks there still are."""
        ...

    def capabilities(self) -> Mapping[str, Json]:
        """Returns what the host is: cores, memory and so on."""
        ...

    def objects(self) -> Iterable[ObjectView]:
        """Returns its objects."""
        ...


class Observe(Protocol):
    """Takes what a host sees of itself or of a VM."""

    def __call__(self, entity_type: str, entity_id: str, state: str, error: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a driver is given to open its host with."""

    host_id: str
    data_dir: Path
    clock: Clock
    settings: Settings
    observe: Observe
    die: Callable[[], None]
    """Ends the process at once, like a crash."""


OpenHost = Callable[[Surroundings], AbstractAsyncContextManager[Host]]


class Driver:
    """A set of verbs and the way to open the host on which they work."""

    def __init__(self, name: str, open: OpenHost) -> None:
        self.name = name
        self.open = open
        self.verbs: dict[str, Verb] = {}
        self.recovery_actions: dict[str, Recover] = {}

    def task(self, name: str, *, recovery: Recovery) -> Callable[[Run], Run]:
        """Registers an asynchronous verb."""
        return self._register(name, is_call=False, recovery=recovery)

    def call(self, name: str, *, recovery: Recovery = Recovery.RESUME) -> Callable[[Run], Run]:
        """Registers a short verb."""
        return self._register(name, is_call=True, recovery=recovery)

    def recovery_action(self, name: str) -> Callable[[Recover], Recover]:
        """Registers what takes back a part of a task's work."""

        def register(recover: Recover) -> Recover:
            self.recovery_actions[name] = recover
            return recover

        return register

    def _register(self, name: str, *, is_call: bool, recovery: Recovery) -> Callable[[Run], Run]:
        def register(run: Run) -> Run:
            if name in self.verbs:
                raise ValueError(f"driver {self.name} has two verbs {name}")
            description = " ".join((run.__doc__ or "").split())
            self.verbs[name] = Verb(name, is_call, recovery, ArgumentSchema.of(run), description, run)
            return run

        return register


class NoSuchDriver(Exception):  # noqa: N818
    """No installed package has a driver of that name."""


def load_driver(name: str) -> Driver:
    """Finds an installed driver by its name, with the verbs that other packages add to it. Raises NoSuchDriver."""
    found: dict[str, Any] = {each.name: each for each in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    drivers = sorted(each for each in found if "." not in each)
    if name not in drivers:
        raise NoSuchDriver(f"no driver {name}; installed: {', '.join(drivers) or 'none'}")
    driver = found[name].load().driver
    assert isinstance(driver, Driver), f"{found[name].value}.driver is no Driver"
    for each in found.values():
        if each.name.startswith(f"{name}."):
            each.load()
    return driver
