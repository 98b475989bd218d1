"""What the shell completes arguments with: names of this machine, those that make sense."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd.host import sysfs
from pyiommufd.testing.provision.kernels import CachedKernel
from tests.completions import completions
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def machine(fake: FakeSysfs) -> FakeSysfs:
    """A bridge, a disk and a device without a driver behind it, a card on vfio that has SR-IOV, and a network card."""
    fake.pci("0000:00:01.0", group=1, driver="pcieport", class_code=0x060400, secondary_bus_number="1")
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=2, driver="nvme")
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=2, ids=(0x1234, 0x0001))
    fake.pci("0000:00:02.0", group=3, driver="vfio-pci", cdev=0, ids=(0x8086, 0x10FB), sriov_totalvfs="8")
    network = fake.pci("0000:00:03.0", driver="e1000e", ids=(0x8086, 0x0001))
    fake.interface(network, "enp0s3")
    fake.interface(network, "enp$(x)")
    return fake


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("show 0000:01:00.", ["0000:01:00.0", "0000:01:00.1"]),
        ("show 01:00.", ["01:00.0", "01:00.1"]),
        ("show en", ["enp0s3"]),
        ("show /dev/v", ["file /dev/v"]),
        ("show ./v", ["file ./v"]),
        ("show ", ["0000:00:01.0", "0000:00:02.0", "0000:00:03.0", "0000:01:00.0", "0000:01:00.1", "enp0s3"]),
        ("claim 00:0", ["00:02.0", "00:03.0"]),
        ("run 00:03.0 00:0", ["00:02.0", "00:03.0"]),
        ("run 00:03.0 -- qemu -drive dis", ["file dis"]),
        ("rebind 0", ["0000:00:02.0", "0000:01:00.1"]),
        ("vfs 0", ["0000:00:02.0"]),
        ("list --driver ", ["e1000e", "none", "nvme", "pcieport", "vfio-pci"]),
        ("list --driver=nv", ["--driver=nvme"]),
        ("list --group=", ["--group=1", "--group=2", "--group=3"]),
        ("groups ", ["1", "2", "3"]),
        ("groups 2", ["2"]),
        ("groups 00:0", ["00:01.0", "00:02.0"]),
        ("list --group nv", []),
        ("list 8086:", ["8086:0001", "8086:10fb"]),
        ("list --standing cl", ["claimable"]),
        ("plan --driver vf", ["vfio-pci"]),
        ("explain IOMMU_IOAS_UN", ["IOMMU_IOAS_UNMAP"]),
        ("explain bind EPER", ["EPERM"]),
        ("guest -- python fi", ["file fi"]),
        ("guest --kernel /bo", ["file /bo"]),
        ("ch", ["check"]),
        ("guest --qemu-", ["--qemu-arg"]),
        ("nothing ch", ["check"]),
    ],
)
def test_names(machine: FakeSysfs, line: str, names: list[str]) -> None:
    assert completions(f"pyiommufd {line}") == names


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("show nvme0", ["nvme0n1", "nvme0n1p1", "nvme0"]),
        ("show nvme1", []),  # a disk of two controllers is no name of a device
        ("show 15b3", ["15b3:0002"]),
        ("caps 15b3:00", ["15b3:0002"]),
        ("explain bind EPERM 15B3:", ["15b3:0002"]),
        ("list 15b3:", ["15b3:0001", "15b3:0002"]),
        ("vfs 15b3:", []),
        ("show 0001:5:0", ["0001:5:00.0", "0001:5:01.0", "0001:5:02.0"]),
        ("show 1:5:0", ["1:5:00.0", "1:5:01.0", "1:5:02.0"]),
        ("show 5:2", ["5:2.0"]),
        ("show 05:0.", ["05:0.0"]),
        ("show pci_0001_05_01", ["pci_0001_05_01_0"]),
        ("show p", []),
        ("show 0000:00:00", ["0000:00:00.0"]),
        ("claim 0000:00:00", []),  # a host bridge
        ("rebind 0000:00:00", []),
        ("rebind 0000:00:02", ["0000:00:02.0"]),  # one that somebody has claimed
    ],
)
def test_all_ways_to_name_a_device(fake: FakeSysfs, line: str, names: list[str]) -> None:
    fake.pci("0000:00:00.0", group=0, class_code=0x060000)
    fake.pci("0000:00:02.0", group=1, class_code=0x060000, driver="vfio-pci", cdev=0)
    shared = fake.root / "devices/virtual/nvme-subsystem/nvme-subsys1"
    for number, device in ((0, 1), (1, 1), (2, 2)):
        folder = fake.pci(f"0001:05:0{number}.0", root_bus="pci0001:05", group=2, ids=(0x15B3, device)) / "nvme/nvme0"
        if number:
            fake.link(f"{shared.relative_to(fake.root)}/nvme{number}", folder.parent)
    disk = fake.disk(next(fake.root.glob("devices/*/0001:05:00.0")) / "nvme/nvme0/nvme0n1", "259:0")
    fake.disk(disk / "nvme0n1p1", "259:1", partition=True)
    fake.link("class/nvme/nvme0", disk.parent)
    fake.disk(shared / "nvme1n1", "259:2")
    assert completions(f"pyiommufd {line}") == names


@pytest.mark.parametrize("line", ["claim --user ", "run --user "])
def test_accounts(line: str) -> None:
    assert getpass.getuser() in completions(f"pyiommufd {line}{getpass.getuser()[:2]}")


def test_kernels_built_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pyiommufd/kernels/6.12-a"
    folder.mkdir(parents=True)
    (folder / "bzImage").touch()
    CachedKernel.write_manifest(folder, release="6.12.117")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completions("pyiommufd guest --kernel ") == ["6.12.117"]


def test_claims_of_those_who_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell at its prompt has no place for an error."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert completions("pyiommufd release ") == []


def test_many_devices_cost_no_read_of_each(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(128):
        fake.pci(f"0000:{number >> 3:02x}:00.{number & 7}")
    reads: list[object] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            reads.append(arguments[0])
            return function(*arguments)

        return wrapper

    for name in ("read", "number", "link_name"):
        monkeypatch.setattr(sysfs, name, counted(getattr(sysfs, name)))
    assert len(completions("pyiommufd claim 0000:")) == 128
    assert reads == []
    assert len(completions("pyiommufd claim 0000:0f")) == 8
    assert len(reads) <= 8 * 15
