"""The commands that ship with Waybill: one file each, registered by being imported."""

from coordinator.commands import (
    add_disk,
    create_snapshot,
    discard_volume,
    live_migrate_disk,
    merge_snapshot,
    remove_all_vm_images,
    remove_image,
    remove_vm,
    run_vm,
    stop_vm,
)

__all__ = [
    "add_disk",
    "create_snapshot",
    "discard_volume",
    "live_migrate_disk",
    "merge_snapshot",
    "remove_all_vm_images",
    "remove_image",
    "remove_vm",
    "run_vm",
    "stop_vm",
]
