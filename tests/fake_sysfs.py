"""A sysfs of one's own in a folder: machines that no guest can be, for tests of what only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyiommufd.host import devices, sysfs


class FakeSysfs:
    """The tree, made device by device, and put in place of /sys.

    Attributes:
        root: The folder that stands for ``/sys``.
        proc: The folder that stands for ``/proc`` where the kernel is asked how it runs.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sys"
        self.proc = folder / "proc"
        for path in ("bus/pci/devices", "bus/pci/drivers", "class/iommu", "class/misc", "kernel", "module", "devices"):
            (self.root / path).mkdir(parents=True)
        # As root sees it, in the initial namespaces.
        for process in ("1", "self"):
            (self.proc / process / "ns").mkdir(parents=True)
            for kind, number in (("pid", 0xEFFFFFFC), ("mnt", 0xEFFFFFF8), ("net", 0xEFFFFFF9)):
                (self.proc / process / "ns" / kind).symlink_to(f"{kind}:[{number}]")
        (self.proc / "self/status").write_text("CapEff:\t000001ffffffffff\n")

    def file(self, path: str, text: str = "") -> Path:
        """An attribute, relative to the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")
        return target

    def link(self, path: str, target: Path) -> None:
        """A symbolic link, relative as in sysfs."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))

    def pci(
        self,
        name: str,
        *,
        parent: str = "",
        driver: str | None = None,
        group: int | None = None,
        class_code: int = 0x020000,
        ids: tuple[int, int] = (0x1234, 0x11E8),
        iommu: str | None = None,
        cdev: int | None = None,
        **attributes: str,
    ) -> Path:
        """A PCI device.

        Args:
            name: Its address.
            parent: The address of the bridge that it sits behind.
            driver: The driver that it is on.
            group: Its IOMMU group.
            class_code: Class, subclass and interface.
            ids: Vendor and device.
            iommu: The IOMMU that covers it.
            cdev: The number of its vfio node; -1: it is on vfio, and the kernel has no nodes.
            attributes: Further attributes and their texts.
        """
        links = list((self.root / "devices").rglob(parent)) if parent else [self.root / "devices/pci0000:00"]
        folder = links[0] / name
        folder.mkdir(parents=True)
        here = str(folder.relative_to(self.root))
        self.link(f"{here}/subsystem", self.root / "bus/pci")
        self.link(f"bus/pci/devices/{name}", folder)
        attributes = {
            "vendor": f"{ids[0]:#06x}",
            "device": f"{ids[1]:#06x}",
            "class": f"{class_code:#08x}",
        } | attributes
        for key, text in attributes.items():
            self.file(f"{here}/{key}", text)
        if driver is not None:
            (self.root / "bus/pci/drivers" / driver).mkdir(exist_ok=True)
            self.link(f"{here}/driver", self.root / "bus/pci/drivers" / driver)
        if group is not None:
            at = self.root / "kernel/iommu_groups" / str(group)
            if not at.exists():
                self.file(f"kernel/iommu_groups/{group}/type", "DMA-FQ")
                self.file(f"kernel/iommu_groups/{group}/reserved_regions", "0xfee00000 0xfeefffff msi")
                (at / "devices").mkdir()
            self.link(f"kernel/iommu_groups/{group}/devices/{name}", folder)
            self.link(f"{here}/iommu_group", at)
        if iommu is not None:
            (self.root / "class/iommu" / iommu).mkdir(exist_ok=True)
            self.link(f"{here}/iommu", self.root / "class/iommu" / iommu)
        if cdev is not None:
            node = f"{here}/vfio-dev/vfio{max(cdev, 0)}"
            (self.root / node).mkdir(parents=True)
            if cdev >= 0:
                self.file(f"{node}/dev", f"240:{cdev}")
        return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """An empty machine in place of this one."""
    tree = FakeSysfs(tmp_path)
    monkeypatch.setattr(sysfs, "SYS", tree.root)
    monkeypatch.setattr(sysfs, "PROC", tree.proc)

    def enumerate_devices(subsystem: str, **match: str) -> Iterator[Any]:
        folder = tree.root / "bus" / subsystem / "devices"
        for link in folder.iterdir() if folder.is_dir() else ():
            values = {key: (link / key).read_text().strip() for key in match}
            if values == match:
                yield SimpleNamespace(sys_path=str(link.resolve()))

    monkeypatch.setattr(devices, "_enumerate", enumerate_devices)
    return tree
