"""The members of a group that is claimed."""

from __future__ import annotations

import pytest

from pyiommufd.host.claims.members import is_left_as_is, parents_among
from pyiommufd.host.discovery.devices import from_sys_path, list_devices
from tests.fake_sysfs import FakeSysfs


@pytest.mark.parametrize(
    ("driver", "class_code", "wanted", "left"),
    [
        ("nvme", 0x010802, False, False),
        (None, 0x010802, False, False),
        ("pci-stub", 0x010802, False, True),
        ("pci-stub", 0x010802, True, False),
        ("pcieport", 0x060400, False, True),
        ("shpchp", 0x060400, False, False),
        (None, 0x060000, False, True),
        (None, 0x060000, True, False),
    ],
)
def test_member_that_is_left_as_is(
    fake: FakeSysfs, driver: str | None, class_code: int, wanted: bool, left: bool
) -> None:
    device = from_sys_path(fake.pci("0000:00:02.0", driver=driver, class_code=class_code, group=1))
    assert is_left_as_is(device, wanted) is left
    on_vfio = from_sys_path(fake.pci("0000:00:03.0", driver="vfio-pci", class_code=class_code, group=1, cdev=0))
    assert is_left_as_is(on_vfio, wanted)


def test_members_that_go_away_with_another(fake: FakeSysfs) -> None:
    """As drives do behind VMD; the uppermost that is claimed is named."""
    fake.pci("0000:00:0e.0", driver="vmd", group=1)
    fake.pci("10000:00:01.0", parent="0000:00:0e.0", root_bus="pci10000:00", class_code=0x060400, group=1)
    fake.pci("10000:01:00.0", parent="10000:00:01.0", driver="nvme", group=1)
    fake.pci("0000:00:0f.0", driver="igb", group=1)
    devices = {device.name: device for device in list_devices("pci")}
    vmd = devices["0000:00:0e.0"]
    assert parents_among(devices.values()) == {devices["10000:00:01.0"]: vmd, devices["10000:01:00.0"]: vmd}
    without = [device for device in devices.values() if device is not vmd]
    assert parents_among(without) == {}
