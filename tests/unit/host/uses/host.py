"""Disks, interfaces, mounts and processes for a `FakeSysfs`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import HostDevice, find_device
from pyiommufd.host import sysfs, uses
from pyiommufd.host.uses import netlink, storage
from pyiommufd.host.uses.folders import number_of
from pyiommufd.host.uses.netlink import Link
from tests.fake_sysfs import FakeSysfs


class Host:
    """A machine whose host does something with its devices.

    Attributes:
        opened: The nodes of disks that were opened, in order.
        unopened: The errno that an open of a disk fails with, by its node; the disks are no real ones.
    """

    def __init__(self, fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = fake
        self.links: dict[int, Link] = {}
        (fake.root / "class/net").mkdir(parents=True, exist_ok=True)
        self._mounts: dict[str, list[str]] = {}
        monkeypatch.setattr(netlink, "links", lambda: self.links)
        self.opened: list[str] = []
        self.unopened: dict[str, int] = {}
        monkeypatch.setattr(storage, "open_block", self._open_block)

    @contextlib.contextmanager
    def _open_block(self, number: int | None, node: str, flags: int) -> Iterator[int]:
        assert (number, flags) == (number_of(sysfs.read(self.fake.root / f"class/block/{node[5:]}/dev")), os.O_EXCL)
        self.opened.append(node)
        if node in self.unopened:
            raise OSError(self.unopened[node], os.strerror(self.unopened[node]))
        yield -1

    def at(self, folder: Path) -> str:
        """A folder as `FakeSysfs` wants it."""
        return str(folder.relative_to(self.fake.root))

    def node(self, folder: Path, kind: str, number: str, name: str = "") -> Path:
        """A folder with a device node."""
        return self.fake.node(folder, kind, number, name)

    def disk(self, folder: Path, number: str) -> Path:
        """A block device with this folder."""
        return self.fake.disk(folder, number)

    def partition(self, disk: Path, number: str) -> Path:
        """The first partition of a disk."""
        return self.fake.disk(disk / f"{disk.name}p1", number, partition=True)

    def above(self, *disks: Path, name: str, number: str) -> Path:
        """A virtual block device, built on these."""
        folder = self.disk(self.fake.root / "devices/virtual/block" / name, number)
        for disk in disks:
            self.fake.link(f"{self.at(disk)}/holders/{name}", folder)
        return folder

    def interface(self, folder: Path, name: str, *addresses: str, kind: str = "", is_up: bool = True) -> Path:
        """A network interface of the device, or the virtual one, with this folder."""
        folder = self.fake.interface(folder, name)
        index = len(self.links) + 2
        self.fake.file(f"{self.at(folder)}/ifindex", str(index))
        parent = "" if "virtual" in folder.parts else folder.parent.parent.name
        self.links[index] = Link(index, name, kind, is_up, list(addresses), parent=parent)
        return folder

    def link(self, name: str) -> Link:
        """What the kernel says of an interface."""
        (link,) = (one for one in self.links.values() if one.name == name)
        return link

    def interface_above(self, *interfaces: Path, name: str, kind: str, master: bool = False) -> Path:
        """A virtual interface above these."""
        folder = self.interface(self.fake.root / "devices/virtual", name, kind=kind)
        for interface in interfaces:
            self.fake.link(f"{self.at(interface)}/upper_{name}", folder)
            if master:
                self.fake.link(f"{self.at(interface)}/master", folder)
        return folder

    def mount(
        self,
        number: str,
        point: str,
        source: str = "none",
        kind: str = "ext4",
        process: str = "self",
        options: str = "",
    ) -> None:
        """A line of a process's mount table."""
        lines = self._mounts.setdefault(process, [])
        lines.append(f"{len(lines)} 1 {number} / {point} rw shared:1 master:2 - {kind} {source} rw{options}")
        path = self.fake.proc / process / "mountinfo"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def process(
        self,
        pid: int,
        command: str,
        *,
        holds: str = "",
        maps: str = "",
        namespace: str = "mnt:[1]",
        network: str = "net:[1]",
    ) -> None:
        """A process.

        Args:
            pid: Its number.
            command: Its command.
            holds: A node of this machine that it holds open.
            maps: A node of this machine that it has mapped.
            namespace: Its mount namespace.
            network: Its network namespace.
        """
        folder = self.fake.proc / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        (folder / "ns").mkdir(exist_ok=True)
        for kind, value in (("mnt", namespace), ("net", network)):
            (folder / "ns" / kind).unlink(missing_ok=True)
            (folder / "ns" / kind).symlink_to(value)
        (folder / "comm").write_text(command + "\n")
        (folder / "maps").write_text(f"7f00-7f01 rw-s 00000000 00:05 3       {maps}\n" if maps else "")
        (folder / "fd/1").symlink_to("pipe:[77]")
        if holds:
            (folder / "fd/3").symlink_to(holds)

    def refusals(self, name: str = "0000:00:01.0") -> list[tuple[str, str]]:
        """Kind and reason of what speaks against a claim of a device."""
        found = uses.refusals(self.device(name))
        assert {refusal.device for refusal in found} <= {name}
        assert {refusal.kind for refusal in found} <= set(uses.KINDS)
        return [(refusal.kind, refusal.reason) for refusal in found]

    def device(self, name: str = "0000:00:01.0") -> HostDevice:
        return find_device(name)
