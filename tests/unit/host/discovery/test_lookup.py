"""From names and paths to devices, on machines made for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyiommufd import DeviceNotFoundError, find_device
from pyiommufd.host.discovery.lookup import pci_address
from tests.escapes import CONTROL_TEXT, invisible
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def machine(fake: FakeSysfs) -> FakeSysfs:
    """A card with two interfaces, NVMe drives with and without multipath, and what is built on these."""
    nic = fake.pci("0000:00:03.0", driver="virtio-pci", group=1)
    for name in ("eth0", "eth1"):
        fake.interface(nic / "virtio0", name)
    (nic / "virtio0/subsystem").symlink_to("../../../../bus/virtio")
    alone = fake.pci("0000:00:04.0", driver="nvme", group=2) / "nvme/nvme0"
    disk = fake.disk(alone / "nvme0n1", "259:0")
    fake.disk(disk / "nvme0n1p1", "259:1", partition=True)
    fake.node(alone, "char", "240:0")
    fake.link("class/nvme-generic/ng0n1", fake.node(alone / "ng0n1", "char", "241:0"))
    fake.link("class/nvme/nvme0", alone)
    shared = fake.root / "devices/virtual/nvme-subsystem/nvme-subsys1"
    for number in (5, 6):
        controller = fake.pci(f"0000:00:0{number}.0", driver="nvme", group=number) / f"nvme/nvme{number}"
        fake.file(f"{controller.relative_to(fake.root)}/subsysnqn", "nqn.x")
        fake.link(f"class/nvme/nvme{number}", controller)
        fake.link(f"{shared.relative_to(fake.root)}/nvme{number}", controller)
    fake.disk(shared / "nvme1n1", "259:2")
    fake.pci("0000:00:0a.0", driver="vfio-pci", group=3, cdev=0)
    fake.pci("0000:00:0b.0", ids=(0x8086, 0x10FB))
    fake.link("class/vfio-dev/vfio0", fake.root / "devices/pci0000:00/0000:00:0a.0/vfio-dev/vfio0")
    virtual = fake.root / "devices/virtual"
    bond = fake.interface(virtual, "bond0")
    vlan = fake.interface(virtual, "bond0.7")
    for above, name, below in ((bond, "eth0", "eth0"), (bond, "eth1", "eth1"), (vlan, "bond0", "bond0")):
        fake.link(f"{above.relative_to(fake.root)}/lower_{name}", (fake.root / "class/net" / below).resolve())
    fake.interface(virtual, "lo")
    volume = fake.disk(virtual / "block/dm-0", "254:0")
    fake.file("devices/virtual/block/dm-0/dm/name", "vg-root")
    for below in ("nvme0n1p1", "nvme1n1"):
        fake.link(f"devices/virtual/block/dm-0/slaves/{below}", (fake.root / "class/block" / below).resolve())
    array = fake.disk(virtual / "block/md0", "9:0")
    fake.link("devices/virtual/block/md0/slaves/dm-0", volume)
    fake.disk(array / "md0p1", "9:1", partition=True)
    return fake


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("0000:00:0A.0", "0a"),
        ("00:0a.0", "0a"),
        ("0:A.0", "0a"),
        ("0:0:3.0", "03"),
        ("00:3.0", "03"),
        ("pci_0000_00_03_0", "03"),
        ("pci-0000:00:03.0", "03"),
        ("pci@0000:00:03.0", "03"),
        ("pci/0000:00:03.0", "03"),
        ("8086:10fb", "0b"),
        ("0x8086:0x10FB", "0b"),
        ("eth1", "03"),
        ("nvme0", "04"),
        ("nvme0n1", "04"),
        ("nvme0n1p1", "04"),
        ("ng0n1", "04"),
        ("nvme6", "06"),
        ("vfio0", "0a"),
        ("/dev/vfio/devices/vfio0", "0a"),
        ("/sys/class/net/eth0", "03"),
        ("/sys/class/net/eth0/nothing/../subsystem/eth1", "03"),
        ("/sys/block/nvme0n1", "04"),
        ("/sys/class/block/nvme0n1p1/partition", "04"),
        ("/sys/dev/char/240:0", "04"),
        ("/sys/bus/pci/devices/0000:00:0a.0/vendor", "0a"),
        ("/sys/kernel/iommu_groups/3/devices/0000:00:0a.0", "0a"),
    ],
)
def test_names_of_a_device(machine: FakeSysfs, name: str, found: str) -> None:
    (machine.root / "class/net/eth0/nothing").mkdir()
    assert find_device(name.replace("/sys/", f"{machine.root}/")).name == f"0000:00:{found}.0"


@pytest.mark.parametrize("name", ["./eth0", "eth0/..", "../block/vda", "../../devices/pci0000:00/0000:00:03.0", "."])
def test_relative_paths(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    card = machine.root / "devices/pci0000:00/0000:00:03.0"
    machine.disk(card / "virtio1/block/vda", "254:16")
    monkeypatch.chdir(card if name == "." else machine.root / "class/net")
    assert find_device(name).name == "0000:00:03.0"
    monkeypatch.chdir("/")
    with pytest.raises(DeviceNotFoundError):
        find_device(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("eth9", "eth0 or eth1"),
        ("ETH0", "eth0"),
        ("nvme0n1p3", "nvme0n1p1"),
        ("/dev/eth0", "eth0"),
        ("/sys/class/net/eth9", "eth0 or eth1"),
        ("0a:00", "0000:00:0a.0"),
        ("pci_0000_00_0a_1", "0000:00:0a.0"),
        ("bond1", ""),  # it is of no device
        ("platform9", ""),
    ],
)
def test_names_that_are_near(machine: FakeSysfs, name: str, near: str) -> None:
    machine.device("platform", "platform0", group=None)
    with pytest.raises(DeviceNotFoundError) as caught:
        find_device(name.replace("/sys/", f"{machine.root}/"))
    assert str(caught.value).partition("; did you mean ")[2] == (f"{near}?" if near else "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bond0", "bond0 is no device of its own: it is built on eth0 (0000:00:03.0), eth1 (0000:00:03.0)"),
        ("bond0.7", "bond0.7 is no device of its own: it is built on eth0 (0000:00:03.0), eth1 (0000:00:03.0)"),
        (
            "dm-0",
            "dm-0 (vg-root) is no device of its own: it is built on nvme0n1p1 (0000:00:04.0), "
            "nvme1n1 (0000:00:05.0, 0000:00:06.0)",
        ),
        ("md0p1", "md0p1 is no device of its own: it is built on nvme0n1p1 (0000:00:04.0), nvme1n1 (0000:00:05.0, "),
        ("nvme1n1", "'nvme1n1' is ambiguous: it names 0000:00:05.0, 0000:00:06.0"),
        ("lo", "lo belongs to no PCI device"),
        ("eth7", "there is no device 'eth7'; a device is named like 0000:02:01.0"),
        ("/sys/kernel/iommu_groups/3", "is IOMMU group 3, and no device: name one of 0000:00:0a.0"),
        ("/sys/bus/pci", "belongs to no PCI device"),
        ("/sys/class/net/eth7", "there is no /"),
    ],
)
def test_names_of_none_say_what_is_below(machine: FakeSysfs, name: str, words: str) -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        find_device(name.replace("/sys/", f"{machine.root}/"))
    assert words in str(caught.value)
    assert caught.value.is_unknown == words.startswith("there is no ")
    assert bool(caught.value.names) == ("ambiguous" in words)


def test_interface_shadows_nothing(machine: FakeSysfs) -> None:
    """Its name is whatever somebody has given it."""
    # Names that the kernel does not allow, so that it cannot be one of these at all, are looked up first all the same.
    for name in ("00:0a.0", "pci_0000_00_0a_0"):
        machine.interface(machine.root / "devices/virtual", name)
        assert find_device(name).name == "0000:00:0a.0"
    machine.interface(machine.root / "devices/virtual", "nvme0n1")
    with pytest.raises(DeviceNotFoundError, match=r"ambiguous.*class/net/nvme0n1.*class/block/nvme0n1"):
        find_device("nvme0n1")
    assert find_device(f"{machine.root}/class/block/nvme0n1").name == "0000:00:04.0"


def test_text_of_others_is_printable(machine: FakeSysfs) -> None:
    name = CONTROL_TEXT.replace("/", "").replace("\n", "")
    folder = machine.interface(machine.root / "devices/virtual", name)
    machine.interface(machine.root / "devices/pci0000:00/0000:00:03.0", name + "2")
    machine.link(f"{folder.relative_to(machine.root)}/lower_x", machine.root / "class/net" / (name + "2"))
    for text in (name, str(folder), f"/nowhere/{CONTROL_TEXT}"):
        with pytest.raises(DeviceNotFoundError) as caught:
            find_device(text)
        assert invisible(str(caught.value)) == ""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/null", "/dev/null belongs to no PCI device"),
        ("/etc", "/etc is a folder, not a device's node or a path in"),
        (__file__, "is a file, not a device's node or a path in"),
        ("/dev/nothing", "there is no /dev/nothing"),
        ("/\ud800", "no path"),
        (f"/{'x' * 5000}", "File name too long"),
    ],
)
def test_paths_of_this_machine_that_are_no_devices(path: str, words: str) -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        find_device(path)
    assert words in str(caught.value)


def test_nodes_are_followed_by_their_number(machine: FakeSysfs, tmp_path: Path) -> None:
    """Of whatever name, and by links, as in /dev/disk."""
    number = os.stat("/dev/null").st_rdev  # noqa: PTH116
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116
    machine.node(
        machine.root / "devices/pci0000:00/0000:00:04.0/nvme/nvme0/ng0n1",
        "char",
        f"{os.major(number)}:{os.minor(number)}",
    )
    (tmp_path / "by-id").symlink_to("/dev/null")
    assert find_device(str(tmp_path / "by-id")).name == "0000:00:04.0"


def test_loops_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DeviceNotFoundError, match="Too many levels"):
        find_device(str(tmp_path / "loop"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10000:E1:1F.7", ("10000", "e1:1f.7")),
        ("00010000:00:00.0", ("10000", "00:00.0")),
        ("3:0.1", (None, "03:00.1")),
        ("PCI_0000_3a_00_1", ("0000", "3a:00.1")),
        ("1234:11e8", None),
        ("00:03.8", None),
        ("pci_0000_3_0_1", None),
        ("", None),
    ],
)
def test_addresses(text: str, address: tuple[str | None, str] | None) -> None:
    assert pci_address(text) == address
