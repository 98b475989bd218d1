"""What a PCI device is known by from one boot to the next, when its address may be another.

An address such as ``0000:02:01.0`` has the number of a bus, and those are given out anew at every boot: a card more in
another slot moves them all. What stays is the hardware's own ids, a serial number where it has one, and the way from
the root of the tree: the slot and function of each bridge.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice, list_devices
from pyiommufd.printable import printable

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:([01][0-9a-f]\.[0-7])")
_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_NO_SERIALS = frozenset({bytes(8), b"\xff" * 8, bytes.fromhex("01000000684ce000")})
"""Placeholder serial numbers of makers that assign none; the last is that of Realtek network cards."""

_SERIAL_CAPABILITY = 0x0003  # PCI Express base specification, Device Serial Number extended capability

IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")
"""The attributes of sysfs that say what the hardware is."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A PCI device, as it can be told from others at another time.

    Attributes:
        name: Its address when this was recorded: for people, nothing is looked for by it.
        ids: What the hardware says of itself, by the names of `IDS`, in hexadecimal digits.
        path: The way to it: the root bus, then the slot and function of each bridge and of the device itself, such as
            ``pci0000:00/02.0/00.0/01.0``.
        serial: Its serial number, and who said so: ``dsn 00-1b-21-ff-ff-01-02-03`` (of PCI Express) or ``nvme
            S4EV…``; None where it has none that could be read.
        twins: The ways to the other devices of the same ids, and the same serial number where it has one.
    """

    name: str
    ids: tuple[str, ...]
    path: str
    serial: str | None = None
    twins: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.ids[0]}:{self.ids[1]} at {self.path}"
        return printable(text if self.serial is None else f"{text}, serial number {self.serial}")

    def find(self, among: Sequence[HostDevice] | None = None) -> HostDevice:
        """The device that it is, on this machine as it is now.

        A device with a serial number of its own is found wherever it is. One without has to be where it was, and so
        do all of its kind, since there is no telling which one has moved.

        Args:
            among: All PCI devices of this machine, for a caller who has several to find; None: look.

        Raises:
            ClaimError: No device is it for certain.
        """
        among = list_devices("pci") if among is None else among
        alike = [device for device in among if _is_of(device, self.ids)]
        if not alike:
            raise ClaimError(f"{self.name} ({self}) is not here: no device has its ids")
        if self.serial is not None:
            serials = {device: serial_number(device) for device in alike}
            alike = [device for device in alike if serials[device] == self.serial]
            if not alike:
                unread = ", ".join(device.name for device, serial in serials.items() if serial is None)
                raise ClaimError(
                    f"{self.name} ({self}) is not here: no device of its kind has that serial number"
                    + (f"; that of {unread} cannot be read" if unread else "")
                )
        paths = {pci_path(device): device for device in alike}
        if self.serial is not None and not self.twins and len(alike) == 1:
            return alike[0]
        if set(paths) != {self.path, *self.twins}:
            raise ClaimError(
                f"{self.name} ({self}) cannot be told for certain: devices of its kind were at "
                f"{', '.join(sorted({self.path, *self.twins}))} and are at {', '.join(sorted(paths))}"
            )
        return paths[self.path]


def identify(device: HostDevice, among: Sequence[HostDevice] | None = None) -> Identity:
    """What a device is known by at another boot.

    Complete for root only: others cannot read a serial number of PCI Express.

    Args:
        device: The device.
        among: All PCI devices of this machine, as for `Identity.find`.

    Raises:
        ClaimError: It is not a PCI device: only those have what identifies them at the next boot.
    """
    if device.subsystem != "pci":
        raise ClaimError(f"{device.name} is not a PCI device: there is nothing to know it by at the next boot")
    ids, serial, path = _ids(device), serial_number(device), pci_path(device)
    alike = [other for other in (list_devices("pci") if among is None else among) if _is_of(other, ids)]
    if serial is not None:
        alike = [other for other in alike if serial_number(other) == serial]
    twins = sorted({pci_path(other) for other in alike} - {path})
    return Identity(device.name, ids, path, serial, tuple(twins))


def _ids(device: HostDevice) -> tuple[str, ...]:
    found = (sysfs.read(device.sys_path / name) for name in IDS)
    return tuple("" if text is None else text.removeprefix("0x") for text in found)


def _is_of(device: HostDevice, ids: tuple[str, ...]) -> bool:
    # The snapshot tells of most that they are another's: their attributes need not be read.
    numbers = (device.vendor_id, device.device_id)
    return tuple("" if number is None else f"{number:04x}" for number in numbers) == ids[:2] and _ids(device) == ids


def pci_path(device: HostDevice) -> str:
    """The way to a PCI device by slots and functions, without the numbers of buses but the root's."""
    parts = []
    for part in device.sys_path.parts:
        if match := _ADDRESS.fullmatch(part):
            parts.append(match[1])
        elif _ROOT.fullmatch(part):
            parts.append(part)
    return "/".join(parts)


def serial_number(device: HostDevice) -> str | None:
    """The serial number of a device, and by what; None where it has none, or none that can be read now."""
    serial = _express_serial(device.sys_path / "config")
    if serial is not None:
        return f"dsn {serial}"
    for path in sorted(device.sys_path.glob("nvme/nvme*/serial")):
        if text := sysfs.read(path):
            return f"nvme {text}"
    return None


def _express_serial(config: Path) -> str | None:
    """The Device Serial Number of PCI Express, as lspci prints it."""
    try:
        data = config.read_bytes()
    except OSError:
        return None
    offset, seen = 0x100, set()
    # A header each: id, version, where the next one is. Users other than root read 64 bytes, conventional devices
    # have 256.
    while offset >= 0x100 and offset + 12 <= len(data) and offset not in seen:
        seen.add(offset)
        (header,) = struct.unpack_from("<I", data, offset)
        if header & 0xFFFF == _SERIAL_CAPABILITY and header != 0xFFFF_FFFF:
            number = data[offset + 4 : offset + 12][::-1]
            return None if number in _NO_SERIALS else number.hex("-")
        offset = header >> 20 & ~3
    return None
