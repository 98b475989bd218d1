"""A controller with virtual functions, and the display that the machine has started with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyiommufd import HostDevice, list_devices, plan_claim
from pyiommufd.host import drivers, uses
from pyiommufd.host.overview.standing import Standing, standings
from tests.guest.uses.types import Refused


@pytest.fixture
def physical() -> HostDevice:
    return next(one for one in list_devices("pci") if (one.sys_path / "sriov_totalvfs").exists())


def test_virtual_function_in_use(physical: HostDevice, refused: Refused) -> None:
    assert uses.refusals(physical) == ()
    (physical.sys_path / "sriov_drivers_autoprobe").write_text("0")
    (physical.sys_path / "sriov_numvfs").write_text("2")
    try:
        # Nobody has them: what they were made for can be made again.
        assert uses.refusals(physical) == ()
        function = next(one for one in list_devices("pci") if (one.sys_path / "physfn").exists())
        drivers.set_driver_override(function, "vfio-pci")
        drivers.bind(function, "vfio-pci")
        reason = f"virtual functions of it are in use: {function.name} (vfio-pci)"
        assert refused(physical) == [(physical.name, "vfs", reason)]
        assert standings(list_devices())[physical] == Standing.IN_USE
    finally:
        (physical.sys_path / "sriov_numvfs").write_text("0")
    assert uses.refusals(physical) == ()


def test_use_of_a_virtual_function_is_one_of_the_physical_one(physical: HostDevice) -> None:
    """Who forces that they go away has not said that what the host does with them may be broken."""
    (physical.sys_path / "sriov_drivers_autoprobe").write_text("0")
    (physical.sys_path / "sriov_numvfs").write_text("1")
    try:
        function = next(one for one in list_devices("pci") if (one.sys_path / "physfn").exists())
        assert plan_claim(physical, force=["vfs"]).refusals == ()
        with (function.sys_path / "resource0").open("rb") as registers:
            reason = f"{registers.name} is held open by this process (pid {os.getpid()})"
            (refusal,) = plan_claim(physical, force=["vfs"]).refusals
            assert (refusal.device, refusal.kind, refusal.reason) == (function.name, "held", reason)
            assert plan_claim(physical, force=["vfs", "held"]).refusals == ()
    finally:
        (physical.sys_path / "sriov_numvfs").write_text("0")
    assert uses.refusals(physical) == ()


def test_boot_display(refused: Refused) -> None:
    """The kernel has a text console on it."""
    (display,) = (one for one in list_devices("pci") if (one.class_code or 0) >> 16 == 0x03)
    assert Path(display.sys_path, "boot_vga").read_text() == "1\n"
    assert refused(display) == [(display.name, "boot-display", "it is the boot display, in use as the text console")]
    assert standings(list_devices())[display] == Standing.IN_USE
