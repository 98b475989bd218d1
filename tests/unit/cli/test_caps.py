"""`pyiommufd caps` as far as it goes without a kernel that has iommufd."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiommufd import find_device
from pyiommufd.cli import caps as module
from pyiommufd.cli.group import cli
from pyiommufd.host.holders import Holder
from pyiommufd.kernel.pagetables.hw_info import HWCapability, HWInfo, HWInfoType, IntelVTd
from tests.fake_sysfs import FakeSysfs


def test_without_iommufd(fake: FakeSysfs) -> None:
    if Path("/dev/iommu").exists():
        pytest.skip("this machine has iommufd")
    result = CliRunner().invoke(cli, ["caps"])
    assert result.exit_code == 3
    assert "CONFIG_IOMMUFD" in result.stderr


def test_what_is_in_the_way(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pci("0000:00:01.0", group=1, driver="nvme")
    fake.pci("0000:00:02.0", group=2, driver="vfio-pci", cdev=0)
    held: list[Holder] = []
    monkeypatch.setattr(module, "holders", lambda *devices: tuple(held))
    assert "on nvme" in module._bind_obstacle(find_device("00:01.0"))
    assert module._bind_obstacle(find_device("00:02.0")) == ""
    held.append(Holder(7, "qemu", "/dev/vfio/devices/vfio0", "fd 3"))
    assert "pid 7 (qemu)" in module._bind_obstacle(find_device("00:02.0"))


def test_record() -> None:
    vtd = IntelVTd(0, 0xD2008C222F0606, 1 << 26)
    info = HWInfo(HWInfoType.INTEL_VTD, HWCapability.DIRTY_TRACKING, 0, b"\x01\xff", vtd)
    assert module._hw_info_record(info) == {
        "type": "intel_vtd",
        "capabilities": ["dirty_tracking"],
        "pasid_width": 0,
        "address_widths": list(vtd.address_widths),
        "nesting": True,
        "data": "01ff",
    }
    other = module._hw_info_record(HWInfo(77, HWCapability(0), 20, b"", None))
    assert (other["type"], other["capabilities"], other["address_widths"], other["nesting"]) == (77, [], None, None)
    assert {f"hw_info.{key}" for key in other} == {key for key in module._KEYS if key.startswith("hw_info.")}
