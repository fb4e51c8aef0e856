"""The commands that ship with Waybill: one file each, registered by being imported."""

from coordinator.commands import (
    add_disk,
    remove_all_vm_images,
    remove_image,
    remove_vm,
    run_vm,
    stop_vm,
)

__all__ = ["add_disk", "remove_all_vm_images", "remove_image", "remove_vm", "run_vm", "stop_vm"]
