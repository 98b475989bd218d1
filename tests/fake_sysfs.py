"""A fake sysfs in a folder: machines that a guest cannot emulate, for tests of code that only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyiommufd.host import sysfs
from pyiommufd.host.discovery import devices


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
        root_bus: str = "pci0000:00",
        bridge: bool | None = None,
        driver: str | None = None,
        group: int | None = None,
        class_code: int = 0x020000,
        ids: tuple[int, int] = (0x1234, 0x11E8),
        iommu: str | None = None,
        cdev: int | None = None,
        noiommu: bool = False,
        **attributes: str,
    ) -> Path:
        """A PCI device.

        Args:
            name: Its address.
            parent: The address of the bridge that it sits behind, or of the device, such as VMD, that has its root bus.
            root_bus: The folder of its root bus, below the parent where that is no bridge (Linux 7.3,
                drivers/pci/probe.c:1034 and 714; drivers/pci/controller/vmd.c:1072).
            bridge: Whether it has the header of a bridge, which the kernel shows by the number of the bus behind it
                (Linux 7.3, drivers/pci/pci-sysfs.c:1867); left out: by its class, as most have it.
            driver: The driver that it is on.
            group: Its IOMMU group.
            class_code: Class, subclass and interface.
            ids: Vendor and device.
            iommu: The IOMMU that covers it.
            cdev: The number of its vfio node; -1: it is on vfio, and the kernel has no nodes.
            noiommu: VFIO has it without an IOMMU: it has made the group, and the node is called so (Linux 7.3; older
                kernels have no node: a ``cdev`` of -1).
            attributes: Further attributes and their texts.
        """
        above = next((self.root / "devices").rglob(parent)) if parent else self.root / "devices"
        folder = (above if (above / "secondary_bus_number").exists() else above / root_bus) / name
        folder.mkdir(parents=True)
        here = str(folder.relative_to(self.root))
        self.link(f"{here}/subsystem", self.root / "bus/pci")
        self.link(f"bus/pci/devices/{name}", folder)
        # 0604 PCI-to-PCI and 0607 CardBus.
        if bridge if bridge is not None else class_code >> 8 in (0x0604, 0x0607):
            attributes.setdefault("secondary_bus_number", "1")
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
            self._join(folder, group)
            if noiommu:
                self.file(f"kernel/iommu_groups/{group}/name", "vfio-noiommu")
                self.file(f"kernel/iommu_groups/{group}/reserved_regions").write_text("")
        if iommu is not None:
            (self.root / "class/iommu" / iommu).mkdir(exist_ok=True)
            self.link(f"{here}/iommu", self.root / "class/iommu" / iommu)
        if cdev is not None:
            node = f"{here}/vfio-dev/{'noiommu-' if noiommu and cdev >= 0 else ''}vfio{max(cdev, 0)}"
            (self.root / node).mkdir(parents=True)
            if cdev >= 0:
                self.file(f"{node}/dev", f"240:{cdev}")
        return folder

    def device(
        self, bus: str, name: str, *, group: int | None, parent: Path | None = None, driver: str | None = None
    ) -> Path:
        """A device of another bus."""
        folder = (parent or self.root / "devices/platform") / name
        folder.mkdir(parents=True)
        here = str(folder.relative_to(self.root))
        (self.root / "bus" / bus / "devices").mkdir(parents=True, exist_ok=True)
        self.link(f"{here}/subsystem", self.root / "bus" / bus)
        self.link(f"bus/{bus}/devices/{name}", folder)
        if driver is not None:
            (self.root / "bus" / bus / "drivers" / driver).mkdir(parents=True)
            self.link(f"{here}/driver", self.root / "bus" / bus / "drivers" / driver)
        if group is not None:
            self._join(folder, group)
        return folder

    def mdev_type(self, parent: Path, type_id: str, available: int = 1, **attributes: str) -> Path:
        """A type of mediated device that the driver of a device offers.

        Args:
            parent: The folder of that device.
            type_id: The type.
            available: How many more can be made.
            attributes: Further attributes and their texts, such as ``description``.
        """
        folder = parent / "mdev_supported_types" / type_id
        here = str(folder.relative_to(self.root))
        attributes = {"name": type_id, "device_api": "vfio-pci", "available_instances": str(available)} | attributes
        for key, text in attributes.items():
            self.file(f"{here}/{key}", text)
        (folder / "devices").mkdir()
        if not (self.root / "class/mdev_bus" / parent.name).exists():
            self.link(f"class/mdev_bus/{parent.name}", parent)
        return folder

    def mdev(self, type_folder: Path, uuid: str, *, group: int | None, cdev: int = 0) -> Path:
        """A mediated device of a type that `mdev_type` has made."""
        parent = type_folder.parent.parent
        folder = self.device("mdev", uuid, group=group, parent=parent)
        here = str(folder.relative_to(self.root))
        self.link(f"{here}/mdev_type", type_folder)
        self.link(f"{type_folder.relative_to(self.root)}/devices/{uuid}", folder)
        node = self.file(f"{here}/vfio-dev/vfio{cdev}/dev", f"240:{cdev}").parent
        self.link(f"class/vfio-dev/vfio{cdev}", node)
        self.file(f"{here}/remove")
        return folder

    def node(self, folder: Path, kind: str, number: str, name: str = "") -> Path:
        """A folder with a device node.

        Args:
            folder: The folder.
            kind: ``block`` or ``char``.
            number: Its number, such as ``8:0``.
            name: Its path below /dev; left out: the folder's name.
        """
        here = str(folder.relative_to(self.root))
        self.file(f"{here}/dev", number)
        self.file(f"{here}/uevent", f"MAJOR=1\nDEVNAME={name or folder.name}")
        self.link(f"dev/{kind}/{number}", folder)
        return folder

    def disk(self, folder: Path, number: str, *, partition: bool = False) -> Path:
        """A disk or partition with this folder."""
        here = str(folder.relative_to(self.root))
        self.node(folder, "block", number)
        (folder / "holders").mkdir()
        self.link(f"{here}/subsystem", self.root / "class/block")
        self.link(f"class/block/{folder.name}", folder)
        if partition:
            self.file(f"{here}/partition", "1")
        else:
            self.link(f"block/{folder.name}", folder)
        return folder

    def interface(self, above: Path, name: str) -> Path:
        """A network interface of what has this folder."""
        folder = above / "net" / name
        folder.mkdir(parents=True)
        self.link(f"{folder.relative_to(self.root)}/subsystem", self.root / "class/net")
        self.link(f"class/net/{name}", folder)
        return folder

    def _join(self, folder: Path, group: int) -> None:
        """Make the device a member of an IOMMU group."""
        at = self.root / "kernel/iommu_groups" / str(group)
        if not at.exists():
            self.file(f"kernel/iommu_groups/{group}/type", "DMA-FQ")
            self.file(f"kernel/iommu_groups/{group}/reserved_regions", "0xfee00000 0xfeefffff msi")
            (at / "devices").mkdir()
        self.link(f"kernel/iommu_groups/{group}/devices/{folder.name}", folder)
        self.link(f"{folder.relative_to(self.root)}/iommu_group", at)

    def vmd(self, *, group: int = 7, driver: str | None = "vmd") -> Path:
        """Intel's VMD at 0000:00:0e.0 and, below its root bus, the port 10000:00:01.0 and the drive 10000:01:00.0.

        The form is that of Linux 7.3: domains from 10000 on and the link ``domain`` (drivers/pci/controller/vmd.c:1066
        and 1096). All are in one group, as all do DMA by one address (drivers/pci/search.c:39).
        """
        folder = self.pci("0000:00:0e.0", group=group, driver=driver, class_code=0x010400, ids=(0x8086, 0x467F))
        if driver == "vmd":
            here, root_bus = str(folder.relative_to(self.root)), "pci10000:00"
            port = self.pci(
                "10000:00:01.0",
                parent=folder.name,
                root_bus=root_bus,
                driver="pcieport",
                group=group,
                class_code=0x060400,
            )
            self.pci("10000:01:00.0", parent=port.name, driver="nvme", group=group, class_code=0x010802)
            bus = self.file(f"{here}/{root_bus}/pci_bus/10000:00/uevent").parent
            self.link(f"{here}/domain", bus)
        return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """An empty machine in place of this one."""
    tree = FakeSysfs(tmp_path)
    monkeypatch.setattr(sysfs, "SYS", tree.root)
    monkeypatch.setattr(sysfs, "PROC", tree.proc)
    # That of this machine's kernel says nothing of this one.
    monkeypatch.setattr(sysfs, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(sysfs, "MODULES", tmp_path / "modules")

    def enumerate_devices(subsystem: str, **match: str) -> Iterator[Any]:
        folder = tree.root / "bus" / subsystem / "devices"
        for link in folder.iterdir() if folder.is_dir() else ():
            values = {key: (link / key).read_text().strip() for key in match}
            if values == match:
                yield SimpleNamespace(sys_path=str(link.resolve()))

    monkeypatch.setattr(devices, "_enumerate", enumerate_devices)
    return tree
