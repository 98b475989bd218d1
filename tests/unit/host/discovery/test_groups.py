"""What makes a group viable, on constructed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import Group, HostDevice, list_groups
from pyiommufd.host.discovery.groups import is_safe


def member(name: str, driver: str | None, *, on_vfio: bool = False) -> HostDevice:
    path = Path("/sys/devices/pci0000:00") / name
    return HostDevice(name, "pci", path, 1, 2, 0x020000, driver, 5, None, None, None, on_vfio)


@pytest.mark.parametrize(
    ("driver", "on_vfio", "safe"),
    [
        (None, False, True),
        ("pcieport", False, True),
        ("pci-stub", False, True),
        ("vfio-pci", True, True),
        ("mlx5_vfio_pci", True, True),
        ("shpchp", False, False),
        ("pci-pf-stub", False, False),
        ("nvme", False, False),
        ("vfio-pci", False, False),
    ],
)
def test_safe_beside_a_bound_device(driver: str | None, on_vfio: bool, safe: bool) -> None:
    device = member("0000:02:01.0", driver, on_vfio=on_vfio)
    assert is_safe(device) == safe
    group = Group(5, "DMA", (device, member("0000:02:02.0", None)), ())
    assert group.viable == safe
    assert group.blockers == (() if safe else (device,))


def test_groups_of_this_machine_hold_their_members() -> None:
    for group in list_groups():
        assert all(device.group_id == group.id for device in group.devices)
