"""What devices are known by from one boot to the next, on machines that change between them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import ClaimError, find_device
from pyiommufd.host.persistent.identity import identify, pci_path, serial_number
from tests.fake_sysfs import FakeSysfs

BOARD: dict[str, Any] = {"subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "revision": "0x02"}


def with_serial(folder: Path, number: bytes, *, first: bool = False) -> None:
    """Give a device extended configuration space with a serial number, as the first capability or the second."""
    config = bytearray(4096)
    at = 0x100 if first else 0x140
    if not first:
        struct.pack_into("<I", config, 0x100, 0x0001 | 1 << 16 | at << 20)  # advanced error reporting
    struct.pack_into("<I", config, at, 0x0003 | 1 << 16)
    config[at + 4 : at + 12] = number[::-1]
    (folder / "config").write_bytes(config)


@pytest.fixture
def machine(fake: FakeSysfs) -> FakeSysfs:
    """Two cards of one kind behind ports, and one of another."""
    fake.pci("0000:00:01.0", driver="pcieport", class_code=0x060400)
    fake.pci("0000:00:02.0", driver="pcieport", class_code=0x060400)
    fake.pci("0000:01:00.0", parent="0000:00:01.0", **BOARD)
    fake.pci("0000:02:00.0", parent="0000:00:02.0", **BOARD)
    fake.pci("0000:00:03.0", ids=(0x8086, 0x10FB), **BOARD)
    return fake


def moved(machine: FakeSysfs, name: str, to: str, parent: str) -> None:
    """Have a device be at another address, as after another boot."""
    (link,) = (machine.root / "bus/pci/devices").glob(name)
    target = next((machine.root / "devices").rglob(parent)) / to
    link.resolve().rename(target)
    link.unlink()
    machine.link(f"bus/pci/devices/{to}", target)


def test_way_has_no_numbers_of_buses(machine: FakeSysfs) -> None:
    assert pci_path(find_device("0000:01:00.0")) == "pci0000:00/01.0/00.0"
    assert pci_path(find_device("0000:00:03.0")) == "pci0000:00/03.0"
    identity = identify(find_device("0000:01:00.0"))
    assert identity.ids == ("1234", "11e8", "1af4", "1100", "020000", "02")
    assert identity.twins == ("pci0000:00/02.0/00.0",)
    assert str(identity) == "1234:11e8 at pci0000:00/01.0/00.0"


def test_other_bus_number_is_the_same_device(machine: FakeSysfs) -> None:
    identity = identify(find_device("0000:01:00.0"))
    moved(machine, "0000:01:00.0", "0000:05:00.0", "0000:00:01.0")
    assert identity.find().name == "0000:05:00.0"


def test_its_address_is_another_device_by_now(machine: FakeSysfs) -> None:
    """The first card has been taken out, and the second has its address: neither is taken."""
    identity = identify(find_device("0000:01:00.0"))
    (machine.root / "bus/pci/devices/0000:01:00.0").unlink()
    moved(machine, "0000:02:00.0", "0000:01:00.0", "0000:00:02.0")
    with pytest.raises(ClaimError, match=r"cannot be told for certain.*were at .*01\.0.*and are at pci0000:00/02\.0"):
        identity.find()


def test_twin_in_its_very_slot_is_not_taken_while_the_other_is_gone(machine: FakeSysfs) -> None:
    identity = identify(find_device("0000:01:00.0"))
    (machine.root / "bus/pci/devices/0000:02:00.0").unlink()
    with pytest.raises(ClaimError, match="cannot be told for certain"):
        identity.find()


def test_one_more_of_its_kind(machine: FakeSysfs) -> None:
    identity = identify(find_device("0000:00:03.0"))
    assert identity.twins == ()
    assert identity.find().name == "0000:00:03.0"
    machine.pci("0000:00:04.0", ids=(0x8086, 0x10FB), **BOARD)
    with pytest.raises(ClaimError, match="cannot be told for certain"):
        identity.find()


@pytest.mark.parametrize("attribute", ["vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"])
def test_other_hardware_in_its_slot(machine: FakeSysfs, attribute: str) -> None:
    identity = identify(find_device("0000:00:03.0"))
    (machine.root / "bus/pci/devices/0000:00:03.0" / attribute).write_text("0x0815\n")
    assert identify(find_device("0000:00:03.0")) != identity
    with pytest.raises(ClaimError, match="no device has its ids"):
        identity.find()


@pytest.mark.parametrize("first", [True, False])
def test_serial_number_of_pci_express(machine: FakeSysfs, first: bool) -> None:
    device = find_device("0000:01:00.0")
    assert serial_number(device) is None
    with_serial(device.sys_path, bytes.fromhex("001b21ffff010203"), first=first)
    assert serial_number(device) == "dsn 00-1b-21-ff-ff-01-02-03"
    for none in (bytes(8), b"\xff" * 8, bytes.fromhex("01000000684ce000")):
        with_serial(device.sys_path, none)
        assert serial_number(device) is None


@pytest.mark.parametrize("size", [0, 64, 256, 0x102, 4096])
def test_configuration_without_a_serial_number(machine: FakeSysfs, size: int) -> None:
    device = find_device("0000:01:00.0")
    for content in (bytes(size), b"\xff" * size):
        (device.sys_path / "config").write_bytes(content)
        assert serial_number(device) is None


def test_capabilities_that_go_in_circles(machine: FakeSysfs) -> None:
    device = find_device("0000:01:00.0")
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 0x140 << 20)
    struct.pack_into("<I", config, 0x140, 0x0002 | 0x100 << 20)
    (device.sys_path / "config").write_bytes(config)
    assert serial_number(device) is None


def test_device_with_a_serial_number_is_found_in_another_slot(machine: FakeSysfs) -> None:
    for name, last in (("0000:01:00.0", 1), ("0000:02:00.0", 2)):
        with_serial(find_device(name).sys_path, bytes([7] * 7 + [last]))
    identity = identify(find_device("0000:01:00.0"))
    assert identity.twins == ()
    assert str(identity).endswith("serial number dsn 07-07-07-07-07-07-07-01")
    # They have changed places.
    moved(machine, "0000:01:00.0", "0000:03:00.0", "0000:00:02.0")
    moved(machine, "0000:02:00.0", "0000:01:00.0", "0000:00:01.0")
    assert identity.find().name == "0000:03:00.0"


def test_functions_of_one_serial_number_have_to_be_where_they_were(machine: FakeSysfs) -> None:
    second = machine.pci("0000:01:00.1", parent="0000:00:01.0", **BOARD)
    for folder in (find_device("0000:01:00.0").sys_path, second):
        with_serial(folder, b"\x01" * 8)
    identity = identify(find_device("0000:01:00.1"))
    assert identity.twins == ("pci0000:00/01.0/00.0",)
    assert identity.find().name == "0000:01:00.1"
    # The first is switched off, and the second has its place.
    (machine.root / "bus/pci/devices/0000:01:00.0").unlink()
    with pytest.raises(ClaimError, match="cannot be told for certain"):
        identity.find()


def test_serial_number_that_cannot_be_read_now(machine: FakeSysfs) -> None:
    """It is known to the host's driver: without that, the slot alone does not make it the same."""
    device = find_device("0000:01:00.0")
    machine.file(str(device.sys_path.relative_to(machine.root) / "nvme/nvme0/serial"), "S4EV1        ")
    identity = identify(device)
    assert identity.serial == "nvme S4EV1"
    assert identity.find() == device
    (device.sys_path / "nvme/nvme0/serial").unlink()
    with pytest.raises(ClaimError, match=r"that of 0000:01:00\.0, 0000:02:00\.0 cannot be read"):
        identity.find()


def test_other_serial_number_in_its_slot(machine: FakeSysfs) -> None:
    device = find_device("0000:01:00.0")
    with_serial(device.sys_path, b"\x01" * 8)
    identity = identify(device)
    with_serial(device.sys_path, b"\x02" * 8)
    with pytest.raises(ClaimError, match="has that serial number"):
        identity.find()


def test_serial_numbers_of_its_kind_are_no_matter_for_one_without(machine: FakeSysfs) -> None:
    """It may have been unreadable, as on vfio-pci, where others of its kind had theirs."""
    with_serial(find_device("0000:02:00.0").sys_path, b"\x01" * 8)
    identity = identify(find_device("0000:01:00.0"))
    assert identity.serial is None
    assert identity.find().name == "0000:01:00.0"


def test_what_is_no_pci_device(fake: FakeSysfs) -> None:
    folder = fake.root / "devices/platform/thing"
    folder.mkdir(parents=True)
    fake.link("devices/platform/thing/subsystem", fake.root / "bus/platform")
    with pytest.raises(ClaimError, match="not a PCI device"):
        identify(find_device(str(folder)))
