"""Stands in for a real host: a small durable model instead of images and VMs, and every kind of trouble on demand.

host.py          opens the host; what happens around every verb
volume_verbs.py  createVolume, deleteImage, copyImage …
vm_verbs.py      createVm, shutdownVm, destroyVm, migrateVm; what VMs then go through by themselves
handover.py      how a host gives a VM to another one
host_verbs.py    installHost, fenceStatus, connectStorage, enterMaintenance …, simWork, simProgram, simHostState
model.py         volumes, VMs and the counters of what was done to them
program.py       rules that say how tasks go
documents.py     what keeps model and program through crashes, apart from the ledger
"""

from hostagent.drivers.sim import host_verbs, vm_verbs, volume_verbs
from hostagent.drivers.sim.host import driver

__all__ = ["driver", "host_verbs", "vm_verbs", "volume_verbs"]
