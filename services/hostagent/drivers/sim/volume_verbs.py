"""The sim's verbs on volumes.

All go the same way: check, register what would take it back, make the volume ILLEGAL, toil, and then in one stroke make
it LEGAL with the next generation and count the effect.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from hostagent.drivers.arguments import Megabytes, ObjectId
from hostagent.drivers.driver import Recovery, Work
from hostagent.drivers.sim.host import Attempt, Sim, driver
from hostagent.drivers.sim.model import VOLUME, ObjectKey, Volume, wrong_state
from hostagent.task import Json

_MISSING: Final = {"missing": True}
_STRUCTURE_MB: Final = Megabytes(1)
_NONE: Final[list[Json]] = []


@driver.task("createVolume", recovery=Recovery.RESUME)
async def create_volume(sim: Sim, attempt: Attempt, *, volume_id: ObjectId, size_mb: Megabytes) -> Json:
    """Creates an empty volume."""
    return await _make(sim, attempt, volume_id, size_mb)


@driver.task("cloneImageStructure", recovery=Recovery.RESUME)
async def clone_image_structure(
    sim: Sim,
    attempt: Attempt,
    *,
    volume_id: ObjectId,
    size_mb: Megabytes = _STRUCTURE_MB,
    snapshots: list[Json] = _NONE,
) -> Json:
    """Creates the empty structure, snapshots included, of an image that is going to be copied here."""
    return await _make(sim, attempt, volume_id, size_mb, snapshots=list(snapshots))


# Half a copy cannot be told from a whole one by looking at it, so it is thrown away.
@driver.task("copyImage", recovery=Recovery.ROLL_BACK)
async def copy_image(sim: Sim, attempt: Attempt, *, source_volume_id: ObjectId, volume_id: ObjectId) -> Json:
    """Copies a volume to a new one."""
    return await _make(sim, attempt, volume_id, sim.model.volume(source_volume_id).size_mb)


@driver.task("moveImage", recovery=Recovery.RESUME)
async def move_image(sim: Sim, attempt: Attempt, *, source_volume_id: ObjectId, volume_id: ObjectId) -> Json:
    """Copies a volume to a new one and removes the old one."""
    size_mb = sim.model.volume(source_volume_id).size_mb
    begun = await _begin_making(sim, attempt, volume_id, size_mb)
    await attempt.toil()
    sim.model.expect_generation(volume_id, begun)
    generation = sim.model.finish_writing(volume_id)
    sim.model.remove_volume(source_volume_id)
    return await attempt.take_effect({"generation": generation})


@driver.task("deleteVolume", recovery=Recovery.RESUME)
async def delete_volume(sim: Sim, attempt: Attempt, *, volume_id: ObjectId) -> Json:
    """Deletes a volume; fails if there is none."""
    sim.model.volume(volume_id)
    return await _delete(sim, attempt, volume_id)


@driver.task("deleteImage", recovery=Recovery.RESUME)
async def delete_image(sim: Sim, attempt: Attempt, *, volume_id: ObjectId) -> Json:
    """Deletes an image with its volume; one that is missing counts as deleted, and the answer says so."""
    return await _delete(sim, attempt, volume_id)


@driver.task("syncImageData", recovery=Recovery.PROBE)
async def sync_image_data(sim: Sim, attempt: Attempt, *, volume_id: ObjectId) -> Json:
    """Copies the data into an image whose structure was cloned."""
    return await _rewrite(sim, attempt, volume_id)


@driver.task("createSnapshot", recovery=Recovery.RESUME)
async def create_snapshot(sim: Sim, attempt: Attempt, *, volume_id: ObjectId, snapshot_id: ObjectId) -> Json:
    """Takes a snapshot of a volume."""
    snapshots = [each for each in sim.model.volume(volume_id).snapshots if each != snapshot_id]
    return await _rewrite(sim, attempt, volume_id, snapshots=[*snapshots, snapshot_id])


@driver.task("mergeSnapshots", recovery=Recovery.PROBE)
async def merge_snapshots(sim: Sim, attempt: Attempt, *, volume_id: ObjectId, snapshot_id: str = "") -> Json:
    """Merges a snapshot of a volume into it, or all of them if none is named."""
    left = [each for each in sim.model.volume(volume_id).snapshots if snapshot_id not in ("", each)]
    return await _rewrite(sim, attempt, volume_id, snapshots=left)


@driver.task("extendImageSize", recovery=Recovery.RESUME)
async def extend_image_size(sim: Sim, attempt: Attempt, *, volume_id: ObjectId, size_mb: Megabytes) -> Json:
    """Makes a volume larger."""
    return await _rewrite(sim, attempt, volume_id, size_mb=max(size_mb, sim.model.volume(volume_id).size_mb))


@driver.call("fenceVolume")
async def fence_volume(
    sim: Sim, attempt: Attempt, *, volume_id: ObjectId, generation: int, fenced_generation: int, writer: str
) -> Json:
    """Has a silent task (`writer`) that expects a generation of a volume write to it no more, by giving it another one.

    Answers with the volume's generation and legality as they are then, and the outcome: FENCED; or DONE, if the task
    had done its work before; or DOUBTFUL, if nobody can tell.
    """
    await attempt.toil()
    former = sim.model.volume(volume_id)
    fenced = sim.model.fence(volume_id, generation, fenced_generation, writer)
    volume = sim.model.volume(volume_id)
    answer = {"outcome": fenced.value, "generation": volume.generation, "legality": volume.legality.value}
    return answer if volume == former else await attempt.take_effect(answer)


@driver.call("replicateDiskStart")
async def replicate_disk_start(sim: Sim, attempt: Attempt, *, vm_id: ObjectId, volume_id: ObjectId) -> Json:
    """Begins to write a running VM's disk to its copy as well; if that is so already, nothing changes."""
    await attempt.toil()
    volume = sim.model.volume(volume_id)
    if volume.moved_to:
        raise wrong_state(volume_id, f"is not the VM's any more: that goes on with the copy on {volume.moved_to}")
    if volume.replicating:
        return None
    sim.model.change_volume(volume_id, replicating=True)
    return await attempt.take_effect()


@driver.call("replicateDiskFinish")
async def replicate_disk_finish(
    sim: Sim, attempt: Attempt, *, vm_id: ObjectId, volume_id: ObjectId, destination: str = ""
) -> Json:
    """Ends that: the VM goes on with the copy on the destination, or with this volume if none is named.

    If that is so already, nothing changes. A VM that goes on with its copy does not come back.
    """
    await attempt.toil()
    volume = sim.model.volume(volume_id)
    if not volume.replicating and volume.moved_to == destination:
        return None
    if not volume.replicating:
        raise wrong_state(volume_id, f"is not being replicated: its VM goes on with {volume.moved_to or 'this'}")
    sim.model.change_volume(volume_id, replicating=False, moved_to=destination)
    return await attempt.take_effect()


async def _make(sim: Sim, attempt: Attempt, volume_id: str, size_mb: int, **content: Json) -> Json:
    begun = await _begin_making(sim, attempt, volume_id, size_mb)
    await attempt.toil()
    sim.model.expect_generation(volume_id, begun)
    return await attempt.take_effect({"generation": sim.model.finish_writing(volume_id, **content)})


async def _begin_making(sim: Sim, attempt: Attempt, volume_id: str, size_mb: int) -> int:
    """Returns the generation that it must have still when the work is done: else somebody has fenced it."""
    attempt.check_generation(volume_id)
    await attempt.recover_by("discardVolume", volume_id=volume_id)
    sim.model.begin_making(volume_id, size_mb, attempt.task_id)
    await sim.save()
    return sim.model.volume(volume_id).generation


async def _rewrite(sim: Sim, attempt: Attempt, volume_id: str, **changes: Json) -> Json:
    attempt.check_generation(volume_id)
    begun = sim.model.volume(volume_id)
    await _register_restoring(attempt, volume_id, begun)
    sim.model.begin_writing(volume_id, attempt.task_id)
    await sim.save()
    await attempt.toil()
    sim.model.expect_generation(volume_id, begun.generation)
    return await attempt.take_effect({"generation": sim.model.finish_writing(volume_id, **changes)})


async def _delete(sim: Sim, attempt: Attempt, volume_id: str) -> Json:
    volume = sim.model.find_volume(volume_id)
    if volume is not None:
        attempt.check_generation(volume_id)
        await _register_restoring(attempt, volume_id, volume)
        sim.model.begin_deleting(volume_id, attempt.task_id)
        await sim.save()
    await attempt.toil()
    if volume is not None and sim.model.find_volume(volume_id) is not None:
        sim.model.expect_generation(volume_id, volume.generation)
    if not sim.model.remove_volume(volume_id):
        return _MISSING
    return await attempt.take_effect()


async def _register_restoring(attempt: Attempt, volume_id: str, volume: Volume) -> None:
    if volume.writer != attempt.task_id:  # else a former process did, with the volume as it was then
        await attempt.recover_by("restoreVolume", volume_id=volume_id, former=asdict(volume))


@driver.recovery_action("discardVolume")
async def discard_volume(sim: Sim, work: Work, *, volume_id: str) -> None:
    """Removes a volume if it was this task that made it."""
    volume = sim.model.find_volume(volume_id)
    if volume is not None and volume.maker == work.task_id:
        sim.model.remove_volume(volume_id)
        sim.model.count(ObjectKey(VOLUME, volume_id), "discardVolume", attempts=1, effects=1)
    await sim.save()


@driver.recovery_action("restoreVolume")
async def restore_volume(sim: Sim, work: Work, *, volume_id: str, former: Json) -> None:
    """Gives a volume back what the task had changed of it; a deleted one cannot be brought back."""
    sim.model.restore_volume(volume_id, former, work.task_id)
    await sim.save()
