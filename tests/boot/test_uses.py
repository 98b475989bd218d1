"""Devices that a host uses: the tests of tests/guest/uses, in a guest that has such devices."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyiommufd.testing import E1000e, Edu, Guest, GuestDevice, Nvme, RawDevice, RootPort, SharedGroup, VirtioDisk
from pyiommufd.testing.guest.machine import Topology
from tests.guest_pytest import ENVIRONMENT, PYTEST
from tests.patience import patience

pytestmark = pytest.mark.boots

SIZE = 64 << 20


class CanCard:
    """A card with a CAN bus."""

    def arguments(self, topology: Topology, place: str = "") -> list[str]:
        """See `GuestDevice.arguments`."""
        bus = f"can{topology.next_number()}"
        return ["-object", f"can-bus,id={bus}", "-device", f"kvaser_pci,canbus={bus}{place}"]


def image(path: Path, *, partition: bool = False) -> str:
    """A disk's content: empty, or with one partition."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        if partition:
            # One entry of the table of a master boot record: its type, its first sector, their number.
            file.seek(446)
            file.write(struct.pack("<B3xB3xII", 0, 0x83, 2048, SIZE // 512 - 2048))
            file.seek(510)
            file.write(b"\x55\xaa")
    return str(path)


def test_devices_in_use(tmp_path: Path) -> None:
    sriov = "sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2"
    devices: list[GuestDevice] = [
        RawDevice("VGA"),
        SharedGroup(Edu(), Nvme(image=image(tmp_path / "shared"), serial="shared")),
        RootPort(Nvme(image=image(tmp_path / "alone"), serial="alone")),
        RootPort(VirtioDisk(image=image(tmp_path / "system", partition=True), serial="system")),
        RootPort(E1000e(network=True)),
        RootPort(E1000e()),
        RawDevice("nvme-subsys,id=functions"),
        RootPort(RawDevice(f"nvme,serial=functions,subsys=functions,{sriov}")),
        RootPort(CanCard()),
    ]
    with Guest(devices=devices) as guest:
        result = guest.run([*PYTEST, "-rA", "tests/guest/uses"], env=ENVIRONMENT, timeout=patience(1800))
    output = result.stdout.decode()
    print(output)
    assert result.returncode == 0, output + result.stderr.decode()
    assert "skipped" not in output
