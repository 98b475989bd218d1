"""XML for libvirt."""

from __future__ import annotations

import dataclasses

import pytest

from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.vmm import hostdev_xml
from tests.fake_sysfs import FakeSysfs


def test_pci_device(fake: FakeSysfs) -> None:
    device = from_sys_path(fake.pci("0001:af:02.3", group=3))
    assert hostdev_xml(device) == (
        '<hostdev mode="subsystem" type="pci" managed="no">\n'
        '  <driver name="vfio" iommufd="yes" />\n'
        "  <source>\n"
        '    <address domain="0x0001" bus="0xaf" slot="0x02" function="0x3" />\n'
        "  </source>\n"
        "</hostdev>"
    )
    assert 'managed="yes"' in hostdev_xml(device, managed=True)


def test_other_buses_are_refused(fake: FakeSysfs) -> None:
    device = dataclasses.replace(from_sys_path(fake.pci("0000:00:02.0")), subsystem="mdev")
    with pytest.raises(ValueError, match="is not a PCI device"):
        hostdev_xml(device)
