"""Disks that the kernel serves to other machines: by NVMe over Fabrics, and by the SCSI target (iSCSI and others).

Neither opens a disk exclusively in every case, and no process has it open: its configuration alone tells.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.uses.mounts import block_number
from pyiommufd.host.uses.processes import char_path


@dataclass(frozen=True, slots=True)
class Export:
    """Something that is served.

    Attributes:
        what: As what, for a sentence.
        path: By which node.
        number: The number of the block device; None where a whole controller is passed through, or where no device of
            that path is to be found here.
        controller: The path in sysfs of that controller; else empty.
    """

    what: str
    path: str
    number: int | None
    controller: str = ""


def exports() -> list[Export]:
    """All that is served. For root only: others may not look (Linux 7.3, drivers/nvme/target and drivers/target)."""
    top = sysfs.SYS / "kernel/config"
    found: list[Export] = []
    for folder in (top / "nvmet/subsystems").glob("*/namespaces/*"):
        name = f"namespace {folder.name} of the NVMe subsystem {folder.parent.parent.name}"
        found += _export(folder, "device_path", name)
    for folder in (top / "nvmet/subsystems").glob("*/passthru"):
        found += _export(folder, "device_path", f"the NVMe subsystem {folder.parent.name}")
    for folder in (top / "target/core").glob("*/*"):
        found += _export(folder, "udev_path", f"the SCSI target's {folder.parent.name}/{folder.name}")
    return found


def served_ports() -> set[int]:
    """The names (WWPN) of the Fibre Channel ports by which disks are served."""
    top = sysfs.SYS / "kernel/config"
    names = [
        (sysfs.read(folder / "addr_traddr") or "").rpartition("pn-")[2]
        for folder in (top / "nvmet/ports").glob("*")
        if sysfs.read(folder / "addr_trtype") == "fc" and any((folder / "subsystems").glob("*"))
    ]
    # The SCSI target calls them 21:00:00:24:ff:31:ae:12, 0x2100… or naa.2100…, as each driver likes.
    names += [
        folder.parent.name.removeprefix("naa.").replace(":", "")
        for folder in (top / "target").glob("*/*/tpgt_*")
        if sysfs.read(folder / "enable") == "1"
    ]
    found = set()
    for name in names:
        with contextlib.suppress(ValueError):
            found.add(int(name, 16))
    return found


def _export(folder: Path, attribute: str, what: str) -> Iterator[Export]:
    path = sysfs.read(folder / attribute)
    if not path or not path.startswith("/dev/") or sysfs.read(folder / "enable") != "1":
        return
    number = block_number(path)
    controller = ""
    if number is None:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)  # noqa: PTH116
            if stat.S_ISCHR(status.st_mode):
                controller = char_path(os.major(status.st_rdev), os.minor(status.st_rdev))
    yield Export(what, path, number, controller)
