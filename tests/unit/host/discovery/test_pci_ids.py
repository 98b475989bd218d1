"""Names from a PCI id database."""

from __future__ import annotations

import gzip
from pathlib import Path

from pyiommufd import find_device, list_devices
from pyiommufd.host.discovery import pci_ids as module
from pyiommufd.host.discovery.pci_ids import PciIds
from tests.fake_sysfs import FakeSysfs

TEXT = b"""#
# List of PCI ID's
0e11  Compaq Computer Corporation
# a comment between a vendor's lines
\t0001  PCI to EISA Bridge
\t11e8  Not the right one
1234  Technical Corp.
\t0001  Other
\t11e8  edu
\t\t1af4 1100  A subsystem
\t11e9  Caf\xc3\xa9 controller

C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
"""


def test_names() -> None:
    names = PciIds(TEXT)
    assert names.vendor(0x1234) == "Technical Corp."
    assert names.device(0x1234, 0x11E8) == "edu"
    assert names.device(0x1234, 0x11E9) == "Café controller"
    assert names.device(0x0E11, 0x11E8) == "Not the right one"
    # A subsystem's line is no device's, and a device of another vendor is not this one's.
    assert names.device(0x1234, 0x1AF4) is None
    assert names.device(0x0E11, 0x11E9) is None
    assert names.vendor(0x9999) is None
    assert names.device(0x9999, 0x11E8) is None


def test_classes() -> None:
    names = PciIds(TEXT)
    assert names.device_class(0x010802) == "Non-Volatile memory controller"
    assert names.device_class(0x010700) == "Mass storage controller"
    assert names.device_class(0x020000) == "Network controller"
    # Without the database's word, our own.
    assert names.device_class(0x030000) == "VGA controller"
    assert names.device_class(0xFF0000) == "Unassigned class"
    assert names.device_class(0x00FF00) == "Unclassified device"
    assert names.device_class(0x000100) == "VGA-compatible device"
    assert names.device_class(0x550000) is None


def test_description_of_a_device(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", ids=(0x1234, 0x11E8))
    fake.pci("0000:00:02.0", ids=(0x1234, 0x2222), class_code=0x010802)
    fake.pci("0000:00:03.0", ids=(0x9999, 0x2222), class_code=0xFF0000)
    fake.pci("0000:00:04.0", ids=(0x9999, 0x2222), class_code=0x550000)
    names = PciIds(TEXT)
    assert names.describe(find_device("00:01.0")) == "Technical Corp. edu"
    assert names.describe(find_device("00:02.0")) == "Technical Corp. Non-Volatile memory controller"
    assert names.describe(find_device("00:03.0")) == "Unassigned class"
    assert names.describe(find_device("00:04.0")) == ""


def test_description_without_a_database(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", class_code=0x020000)
    fake.pci("0000:00:02.0", class_code=0x010802)
    fake.pci("0000:00:03.0", class_code=0x048000)
    fake.device("mdev", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", group=1)
    names = PciIds()
    words = [names.describe(device) for device in list_devices()]
    assert words == ["Ethernet controller", "NVMe controller", "Multimedia device", ""]


def test_files(tmp_path: Path) -> None:
    plain, packed, broken = tmp_path / "pci.ids", tmp_path / "pci.ids.gz", tmp_path / "broken.gz"
    plain.write_bytes(TEXT)
    packed.write_bytes(gzip.compress(TEXT))
    broken.write_bytes(b"no gzip")
    for path in (plain, packed):
        assert PciIds.load(tmp_path / "none", path).device(0x1234, 0x11E8) == "edu"
    assert PciIds.load(broken, plain).vendor(0x1234) == "Technical Corp."
    assert PciIds.load(tmp_path / "none").vendor(0x1234) is None


def test_database_of_this_machine() -> None:
    """Where one is installed it knows the oldest of vendors; else there are no names, and no failure."""
    names = PciIds.load()
    installed = any(path.exists() for path in module.FILES)
    assert (names.vendor(0x8086) == "Intel Corporation") == installed
