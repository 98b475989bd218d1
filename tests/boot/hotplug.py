"""Devices that are plugged into a guest that runs."""

from __future__ import annotations

from pyiommufd.testing import Edu, Guest
from tests.patience import until


def plug(guest: Guest) -> tuple[str, str]:
    """Plug in an edu device behind a port: QEMU's name, and its address in the guest."""

    def addresses() -> set[str]:
        return set(guest.run(["ls", "/sys/bus/pci/devices"]).stdout.decode().split())

    before = addresses()
    name = guest.hot_plug(Edu())
    return name, until(lambda: addresses() - before, f"{name} is in the guest").pop()
