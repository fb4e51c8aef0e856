"""What hosts do for ScrubDisk: a verb for the driver `sim`."""

from hostagent.drivers.arguments import ObjectId
from hostagent.drivers.driver import Recovery
from hostagent.drivers.sim import driver
from hostagent.drivers.sim.host import Attempt, Sim
from hostagent.task import Json


@driver.task("scrubVolume", recovery=Recovery.RESUME)
async def scrub_volume(sim: Sim, attempt: Attempt, *, volume_id: ObjectId) -> Json:
    """Reads a volume from end to end, and repairs what can be repaired."""
    sim.model.volume(volume_id)  # raises if there is none
    await attempt.toil()
    return await attempt.take_effect({"repaired": 0})
