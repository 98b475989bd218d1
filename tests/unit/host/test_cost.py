"""What a look at many devices costs, counted in reads of sysfs rather than in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from pyiommufd import list_devices, plan_claim
from pyiommufd.cli.group import cli
from pyiommufd.host import sysfs
from pyiommufd.host.discovery import devices
from pyiommufd.host.discovery.kernel_names import kernel_names
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def reads(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths in sysfs that were read, as they are."""
    seen: list[str] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any, *arguments: Any) -> Any:
            if str(path).startswith(f"{fake.root}/"):
                seen.append(str(path))
            return function(path, *arguments)

        return wrapper

    monkeypatch.setattr(sysfs, "read", counted(sysfs.read))
    monkeypatch.setattr(sysfs, "number", counted(sysfs.number))
    monkeypatch.setattr(sysfs, "link_name", counted(sysfs.link_name))
    monkeypatch.setattr(devices, "_vfio", counted(devices._vfio))
    monkeypatch.setattr(devices, "_is_bridge", counted(devices._is_bridge))
    return seen


def make(fake: FakeSysfs, numbers: range) -> None:
    for number in numbers:
        driver, cdev = ("vfio-pci", number) if number % 3 == 0 else ("ixgbevf", None)
        name = f"0000:00:{number >> 3:02x}.{number & 7}"
        fake.pci(name, group=number // 4, driver=driver, cdev=cdev, iommu="dmar0")


def test_list_reads_each_attribute_once(fake: FakeSysfs, reads: list[str]) -> None:
    make(fake, range(16))
    reads.clear()
    assert len(list_devices()) == 16
    assert len(reads) == len(set(reads))
    one = len(reads) / 16
    assert one <= 11
    make(fake, range(16, 64))
    reads.clear()
    assert CliRunner().invoke(cli, ["list"], catch_exceptions=False).exit_code == 0
    # The command reads no more of a device than the library, of one group whether it is an IOMMU's, and nothing twice,
    # however many there are.
    assert len(reads) == len(set(reads)) == one * 64 + 1


def test_names_of_interfaces_cost_little(fake: FakeSysfs, reads: list[str]) -> None:
    """A few reads of each interface, however many devices there are."""
    make(fake, range(64))
    interfaces = 8
    for number in range(interfaces):
        fake.interface(fake.root / f"devices/pci0000:00/0000:00:{number:02x}.1/virtio{number}", f"eth{number}")
    devices = list_devices()
    reads.clear()
    names = kernel_names(devices)
    assert sum(len(one.interfaces) for one in names.values()) == interfaces
    assert len(reads) <= 2 * interfaces


def test_plan_reads_its_group_alone(fake: FakeSysfs, reads: list[str]) -> None:
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    costs = []
    for numbers in (range(4, 8), range(8, 64)):
        make(fake, numbers)
        reads.clear()
        plan = plan_claim("0000:00:00.5")
        assert len(plan.groups[0].devices) == 4
        assert not [path for path in reads if "/0000:" in path and "/0000:00:00." not in path]
        costs.append(len(reads))
    assert costs[0] == costs[1]
