"""The objects of a simulated host: volumes with legality and generation, VMs with states, and what was done to each.

A volume is ILLEGAL while somebody writes to it (`writer`, a task id) and LEGAL with its generation raised by one when
that is done. So one look at it tells whether a silent host did the work, and a task that expects another generation is
refused. Two tasks never write to one volume at a time; deleting is always allowed. A fence raises the generation under
the task that is writing: what that has begun it cannot finish any more, nor take back.

Counters, by object and verb: *attempts*, how often a verb was begun, and *effects*, how often it changed something.
What a task did is kept under its id, in the same transaction as the effect, until the task is cleared: a task that is
run again after a crash finds it and does nothing twice.

The model is memory; whoever changes it saves its documents before telling anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

from chassis import errors
from chassis.errors import WaybillError
from hostagent.drivers.driver import ObjectView
from hostagent.drivers.sim.documents import Documents
from hostagent.task import Json

VOLUME: Final = "volume"
VM: Final = "vm"
HOST: Final = "host"
_COUNTERS: Final = "counters"
_DONE: Final = "done"


class Legality(StrEnum):
    """Whether a volume's content can be relied upon."""

    LEGAL = "LEGAL"
    ILLEGAL = "ILLEGAL"


class Fenced(StrEnum):
    """What a fence found."""

    FENCED = "FENCED"
    """The work was not done, and never will be."""
    DONE = "DONE"
    DOUBTFUL = "DOUBTFUL"


class VmState(StrEnum):
    """Where a VM is in its life on this host."""

    POWERING_UP = "POWERING_UP"
    UP = "UP"
    POWERING_DOWN = "POWERING_DOWN"
    DOWN = "DOWN"
    MIGRATING = "MIGRATING"


class ObjectKey(NamedTuple):
    """Names an object of the host."""

    kind: str
    object_id: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk image."""

    size_mb: int
    legality: Legality = Legality.ILLEGAL
    generation: int = 0
    writer: str = ""
    """Id of the task that writes to it, or that left it ILLEGAL; empty while it is LEGAL."""
    maker: str = ""
    """Id of the task that made it."""
    written_by: str = ""
    """Id of the task that raised its generation last; empty if a fence did, or nobody."""
    snapshots: list[str] = field(default_factory=list)
    replicating: bool = False
    """What its VM writes goes to a copy as well."""
    moved_to: str = ""
    """The host with the copy that its VM goes on with; empty while it is this one."""


@dataclass(frozen=True, slots=True)
class Vm:
    """A virtual machine on this host."""

    state: VmState
    memory_mb: int
    life: str
    """Id of the call that began what it is going through, so that a late timer does not meet a later life."""
    error: str = ""
    gets_up: bool = True
    """False: it is programmed never to be UP; or, while it is MIGRATING, not to get away."""
    destination: str = ""
    """While it is MIGRATING: the address of the agent that is to take it; empty if nobody is."""
    names: dict[str, str] = field(default_factory=dict)
    """While it is MIGRATING: what that is part of."""


class Model:
    """All objects of a host, over the documents that keep them."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    # Volumes.

    def volume(self, volume_id: str) -> Volume:
        """Returns a volume. Raises OBJECT_NOT_FOUND."""
        volume = self.find_volume(volume_id)
        if volume is None:
            raise _not_found(VOLUME, volume_id)
        return volume

    def find_volume(self, volume_id: str) -> Volume | None:
        """Returns a volume, None if there is none."""
        body = self._documents.get(VOLUME, volume_id)
        return None if body is None else _volume_from(body)

    def expect_generation(self, volume_id: str, expected: int | None) -> None:
        """Raises GENERATION_MISMATCH if a volume has not this generation; one that does not exist has 0."""
        volume = self.find_volume(volume_id)
        generation = 0 if volume is None else volume.generation
        if expected is not None and expected != generation:
            raise errors.failed_precondition(
                "GENERATION_MISMATCH",
                f"volume {volume_id} has generation {generation}, not {expected}",
                generation=str(generation),
                volume_id=volume_id,
            )

    def begin_making(self, volume_id: str, size_mb: int, maker: str) -> None:
        """Makes a volume that is ILLEGAL until `finish_writing`. Raises OBJECT_EXISTS."""
        volume = self.find_volume(volume_id)
        if volume is None:
            self._put_volume(volume_id, Volume(size_mb=size_mb, writer=maker, maker=maker))
        elif volume.writer != maker or volume.maker != maker:
            raise errors.already_exists("OBJECT_EXISTS", f"volume {volume_id} exists", volume_id=volume_id)

    def begin_writing(self, volume_id: str, writer: str) -> None:
        """Makes a volume ILLEGAL. Raises OBJECT_STATE if another task writes to it, or left it ILLEGAL."""
        volume = self.volume(volume_id)
        if volume.legality is Legality.ILLEGAL and volume.writer != writer:
            raise wrong_state(volume_id, "is ILLEGAL")
        self.begin_deleting(volume_id, writer)

    def begin_deleting(self, volume_id: str, writer: str) -> None:
        """Makes a volume ILLEGAL, in whatever state it is."""
        self._put_volume(volume_id, replace(self.volume(volume_id), legality=Legality.ILLEGAL, writer=writer))

    def finish_writing(self, volume_id: str, **changes: Json) -> int:
        """Makes a volume LEGAL, with what has changed and the next generation, which it returns."""
        volume = self.volume(volume_id)
        generation = volume.generation + 1
        finished = replace(
            volume, legality=Legality.LEGAL, writer="", written_by=volume.writer, generation=generation, **changes
        )
        self._put_volume(volume_id, finished)
        return generation

    def fence(self, volume_id: str, generation: int, raised: int, writer: str) -> Fenced:
        """Has a task that expects a generation write to the volume no more, or finds that it has done its work.

        Raises OBJECT_NOT_FOUND.
        """
        volume = self.volume(volume_id)
        if volume.generation == generation:
            self._put_volume(volume_id, replace(volume, generation=raised, writer="", maker="", written_by=""))
            return Fenced.FENCED
        if volume.generation == raised and not volume.written_by:
            return Fenced.FENCED
        is_its_work = volume.generation == generation + 1 and volume.written_by == writer
        return Fenced.DONE if is_its_work and volume.legality is Legality.LEGAL else Fenced.DOUBTFUL

    def change_volume(self, volume_id: str, **changes: Json) -> None:
        """Changes what is not its content."""
        self._put_volume(volume_id, replace(self.volume(volume_id), **changes))

    def restore_volume(self, volume_id: str, former: Mapping[str, Json], writer: str) -> None:
        """Makes a volume what it was before a task changed it. Raises OBJECT_STATE if others have changed it since."""
        volume, before = self.volume(volume_id), _volume_from(former)
        if volume.writer == writer:  # in the middle of it
            self._put_volume(volume_id, before)
        elif volume.generation == before.generation + 1 and volume.legality is Legality.LEGAL:
            # Generations never go back: who expects the former one has not seen what happened since.
            self._put_volume(volume_id, replace(before, generation=volume.generation + 1))
        elif volume.generation != before.generation:
            raise wrong_state(volume_id, "was changed since")

    def remove_volume(self, volume_id: str) -> bool:
        """Removes a volume; returns False if there is none."""
        return self._documents.remove(VOLUME, volume_id)

    def _put_volume(self, volume_id: str, volume: Volume) -> None:
        self._documents.put(VOLUME, volume_id, asdict(volume))

    # VMs.

    def vm(self, vm_id: str) -> Vm:
        """Returns a VM. Raises OBJECT_NOT_FOUND."""
        vm = self.find_vm(vm_id)
        if vm is None:
            raise _not_found(VM, vm_id)
        return vm

    def find_vm(self, vm_id: str) -> Vm | None:
        """Returns a VM, None if there is none."""
        body = self._documents.get(VM, vm_id)
        return None if body is None else Vm(**{**body, "state": VmState(body["state"])})

    def vm_ids(self) -> list[str]:
        """Returns the ids of all VMs."""
        return list(self._documents.kind(VM))

    def put_vm(self, vm_id: str, vm: Vm) -> None:
        """Sets a VM."""
        self._documents.put(VM, vm_id, asdict(vm))

    def remove_vm(self, vm_id: str) -> None:
        """Removes a VM, if there is one."""
        self._documents.remove(VM, vm_id)

    # The host itself.

    def host_state(self) -> tuple[str, str]:
        """Returns what the host is seen in, and why: UP unless something was done to it."""
        body = self._documents.get(HOST, HOST)
        return ("UP", "") if body is None else (body["state"], body["error"])

    def put_host_state(self, state: str, error: str = "") -> None:
        """Sets what the host is seen in."""
        self._documents.put(HOST, HOST, {"state": state, "error": error})

    # What was done.

    def count(self, key: ObjectKey, verb: str, *, attempts: int = 0, effects: int = 0) -> None:
        """Adds to the counters of an object and verb."""
        document_id = f"{key.kind}/{key.object_id}"
        counters = self._documents.get(_COUNTERS, document_id) or {}
        former_attempts, former_effects = counters.get(verb, (0, 0))
        counters[verb] = [former_attempts + attempts, former_effects + effects]
        self._documents.put(_COUNTERS, document_id, counters)

    def remember(self, task_id: str, answer: Json) -> None:
        """Keeps that a task had its effect, with what it answers."""
        self._documents.put(_DONE, task_id, {"answer": answer})

    def done(self, task_id: str) -> Mapping[str, Json] | None:
        """Returns what a task answers that had its effect, as `{"answer": …}`; None if it had none."""
        done: Mapping[str, Json] | None = self._documents.get(_DONE, task_id)
        return done

    def forget(self, task_ids: Iterable[str]) -> None:
        """Drops what was kept of tasks; it leaves the disk with what is saved next."""
        for task_id in task_ids:
            self._documents.remove(_DONE, task_id)

    def forget_all_but(self, task_ids: Iterable[str]) -> None:
        """Drops what was kept of all other tasks."""
        self.forget(list(self._documents.kind(_DONE).keys() - set(task_ids)))

    # How it looks.

    def objects(self) -> Iterator[ObjectView]:
        """Returns all objects, also those of which only the counters are left."""
        keys = [ObjectKey(*document_id.split("/", 1)) for document_id in self._documents.kind(_COUNTERS)]
        keys += [ObjectKey(kind, object_id) for kind in (VOLUME, VM) for object_id in self._documents.kind(kind)]
        return map(self._view, dict.fromkeys(keys))

    def _view(self, key: ObjectKey) -> ObjectView:
        counters = self._documents.get(_COUNTERS, f"{key.kind}/{key.object_id}") or {}
        details = dict(self._documents.get(key.kind, key.object_id) or {}) if key.kind in (VOLUME, VM) else {}
        state = details.pop("legality", None) or details.pop("state", None)
        return ObjectView(
            kind=key.kind,
            object_id=key.object_id,
            state=state or ("GONE" if key.kind in (VOLUME, VM) else ""),
            generation=details.pop("generation", 0),
            counters={verb: (attempts, effects) for verb, (attempts, effects) in counters.items()},
            details=details,
        )


def _volume_from(body: Mapping[str, Json]) -> Volume:
    return Volume(**{**body, "legality": Legality(body["legality"])})


def wrong_state(volume_id: str, problem: str) -> WaybillError:
    """A volume is not as the verb needs it."""
    return errors.failed_precondition("OBJECT_STATE", f"volume {volume_id} {problem}", volume_id=volume_id)


def _not_found(kind: str, object_id: str) -> WaybillError:
    return errors.not_found("OBJECT_NOT_FOUND", f"this host has no {kind} {object_id}", **{f"{kind}_id": object_id})
