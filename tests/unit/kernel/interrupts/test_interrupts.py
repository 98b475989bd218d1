"""Which types of interrupt a device has by its kind: those that no guest has here."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import cast

import pytest

from pyiommufd import Device, DeviceInfo, UnsupportedError
from pyiommufd.kernel.device.device_info import DeviceFlag
from pyiommufd.kernel.interrupts.interrupt import APIRQIndex, CCWIRQIndex, IRQIndex
from pyiommufd.kernel.interrupts.interrupts import Interrupts


class Kind:
    """A device that says of itself what the kernel's vfio-ap, vfio-ccw and others say."""

    name = "d"
    in_child = False

    def __init__(self, flags: DeviceFlag) -> None:
        self.flags = flags
        self.iommufd = SimpleNamespace(_lock=contextlib.nullcontext())

    def info(self) -> DeviceInfo:
        return DeviceInfo(self.flags, 0, 0, ())


def interrupts(flags: DeviceFlag) -> Interrupts:
    return Interrupts(cast("Device", Kind(flags)))


@pytest.mark.parametrize(
    ("flag", "index"),
    [(DeviceFlag.PCI, IRQIndex.REQ), (DeviceFlag.AP, APIRQIndex.REQ), (DeviceFlag.CCW, CCWIRQIndex.REQ)],
)
def test_request_to_give_the_device_back_has_the_index_of_its_kind(flag: DeviceFlag, index: int) -> None:
    found = interrupts(flag | DeviceFlag.RESET)
    assert found.req.index is index
    assert found.req is found[int(index)]
    assert repr(found.req) == "<IRQ REQ of d: off>"


def test_types_of_pci_are_no_other_kinds() -> None:
    found = interrupts(DeviceFlag.AP)
    assert [found[index].name for index in range(3)] == ["REQ", "CFG_CHG", "2"]
    for name in ("intx", "msi", "msix", "err"):
        with pytest.raises(UnsupportedError, match=f"d, which has no {name.upper()}"):
            getattr(found, name)
    with pytest.raises(UnsupportedError, match="has no REQ"):
        _ = interrupts(DeviceFlag.PLATFORM).req
