"""Who holds a device open by a node of its own host driver, such as ``/dev/nvme0`` or ``/dev/dri/card0``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyiommufd.errors import Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses.folders import is_below, join_words, node_name
from pyiommufd.host.uses.processes import char_path, console_names, is_registers
from pyiommufd.host.uses.snapshot import MachineSnapshot

PARENTLESS = {"ccp": ("misc/sev", "misc/sfs"), "hfi1": ("hfi1_user/hfi1_*",)}
"""Where the nodes of a driver's devices are in sysfs, which does not say whose they are."""


def node_refusals(device: HostDevice, snapshot: MachineSnapshot, above: Iterable[Path]) -> Iterator[Refusal]:
    """The nodes of the device that are held open, and its registers in sysfs.

    Args:
        device: The device.
        snapshot: At the machine.
        above: The folders of what is built on the device and is not below it, such as those of RAID arrays.
    """
    holders: dict[str, list[str]] = {}
    tops = tuple(f"{folder}/" for folder in above)
    own = _unlisted_nodes(device)
    for path, users in snapshot.open_files.items():
        if path in own:
            holders.setdefault(own[path], []).extend(users)
        elif is_node_of(device, path) or f"{path}/".startswith(tops):
            name = path if is_registers(path) else node_name(path)
            holders.setdefault(name, []).extend(users)
    for name, processes in sorted(holders.items()):
        yield Refusal(device.name, "held", f"{name} is held open by {join_words(processes)}")
    yield from _paravirtual_console(device, snapshot)
    yield from _dma_channels(device, snapshot)


def is_node_of(device: HostDevice, path: str) -> bool:
    """Whether a node's folder is one of the device's; but for its own vfio node, of which `host.holders` tells."""
    return is_below(device, path) and not path.startswith(f"{device.sys_path}/vfio-dev/")


def _unlisted_nodes(device: HostDevice) -> dict[str, str]:
    """Nodes of the device of which sysfs does not say whose they are: where it has them, or would, and their names.

    AMD's secure processor, whose firmware ends with its driver under all virtual machines, and Omni-Path adapters have
    nodes without a parent (Linux 7.3, drivers/crypto/ccp/sev-dev.c:2828, drivers/infiniband/hw/hfi1/device.c:47).
    NVIDIA's own driver makes its nodes without a class, and says which is whose in /proc (its README, "Known Issues"
    and "The /proc Interface").
    """
    if device.driver in PARENTLESS:
        top = sysfs.SYS / "devices/virtual"
        paths = [path for pattern in PARENTLESS[device.driver] for path in top.glob(pattern)]
        return {os.path.realpath(path): node_name(path) for path in paths}
    text = sysfs.read(sysfs.PROC / "driver/nvidia/gpus" / device.name / "information") or ""
    minor = re.search(r"^Device Minor:\s*(\d+)", text, re.MULTILINE)
    if minor is None:
        return {}
    majors = re.findall(r"^\s*(\d+) nvidia(?:-frontend)?$", sysfs.read(sysfs.PROC / "devices") or "", re.MULTILINE)
    return {char_path(int(major), int(minor[1])): f"/dev/nvidia{minor[1]}" for major in majors}


def _dma_channels(device: HostDevice, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    """Channels of a DMA engine that the kernel has in use, such as for RAID (Linux 7.3, drivers/dma/dmaengine.c)."""
    channels = [folder for folder in snapshot.folders(device) if folder.parent.name == "dma"]
    names = sorted(folder.name for folder in channels if sysfs.number(folder / "in_use"))
    if names:
        yield Refusal(device.name, "held", f"the kernel has DMA channels of it in use: {join_words(names)}")


def _paravirtual_console(device: HostDevice, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    """A console of virtio: the kernel does not say which of its consoles hvc0, hvc1 … goes by which device."""
    names = [name for name in console_names() if name.startswith("hvc")]
    if names and any(sysfs.link_name(folder / "driver") == "virtio_console" for folder in snapshot.folders(device)):
        yield Refusal(device.name, "held", f"the kernel's console {join_words(names)} may go by it")
