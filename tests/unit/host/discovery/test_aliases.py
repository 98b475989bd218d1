"""Under which addresses DMA arrives, on machines made for it."""

from __future__ import annotations

import struct

from pyiommufd import find_device, list_devices
from pyiommufd.host.discovery.aliases import devices_of_requester
from tests.fake_sysfs import FakeSysfs


def config(port_type: int) -> bytes:
    """A configuration space with one capability: PCI Express, of that type."""
    data = bytearray(256)
    data[0x06] = 0x10
    data[0x34] = 0x40
    struct.pack_into("<BBH", data, 0x40, 0x10, 0, port_type << 4 | 2)
    return bytes(data)


def test_device_behind_vmd_has_the_address_of_vmd(fake: FakeSysfs) -> None:
    fake.vmd()
    fake.pci("0000:00:02.0", group=2)
    assert {device.name: device.aliases for device in list_devices()} == {
        "0000:00:02.0": ("0000:00:02.0",),
        "0000:00:0e.0": ("0000:00:0e.0",),
        "10000:00:01.0": ("0000:00:0e.0",),
        "10000:01:00.0": ("0000:00:0e.0",),
    }
    names = [device.name for device in devices_of_requester("00:0e.0", list_devices())]
    assert names == ["0000:00:0e.0", "10000:00:01.0", "10000:01:00.0"]
    assert devices_of_requester("01:00.0", list_devices()) == ()


def test_bridges_above_vmd_add_theirs(fake: FakeSysfs) -> None:
    """What is between VMD and the root bus counts, and not what is behind it."""
    outer = fake.pci("0000:00:01.0", class_code=0x060400, secondary_bus_number="3")
    vmd = fake.pci("0000:03:02.0", parent=outer.name, driver="vmd", class_code=0x010400)
    inner = fake.pci("10000:00:01.0", parent=vmd.name, root_bus="pci10000:00", class_code=0x060400)
    fake.pci("10000:01:00.0", parent=inner.name)
    for bridge in (outer, inner):
        (bridge / "config").write_bytes(config(0x7))
    assert find_device("10000:01:00.0").aliases == ("0000:03:02.0", "0000:03:00.0")
