"""Causes of steps that the kernel refuses."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import Action, ClaimError, HostDevice, find_device, plan_claim
from pyiommufd.host import drivers
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.step_rows import step_causes
from pyiommufd.host.claims.steps import device_step
from tests.fake_sysfs import FakeSysfs


def found(device: HostDevice, action: Action, code: int) -> list[str]:
    return [cause.summary for cause in step_causes(device_step(device, action, "vfio-pci"), code)]


def test_what_the_machine_shows_of_it(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, sriov_numvfs="2", driver_override="vfio-pci")
    fake.pci("0000:00:02.0", driver_override="x")
    fake.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
    first, second = map(find_device, ("00:01.0", "00:02.0"))
    assert found(first, Action.BIND, errno.EBUSY) == ["0000:00:01.0 has virtual functions"]
    # Of the driver that it is to take, the override is no reason.
    assert found(first, Action.BIND, errno.ENODEV) == []
    assert found(second, Action.BIND, errno.ENODEV) == ["0000:00:02.0 takes the driver x only"]
    mode, without = found(second, Action.BIND, errno.EINVAL)
    assert without.startswith("no IOMMU")
    assert "enable_unsafe_noiommu_mode" in mode
    fake.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    assert [text[:25] for text in found(second, Action.BIND, errno.EINVAL)] == ["the IOMMU does not keep i"]
    assert found(first, Action.UNBIND, errno.ENODEV) == ["the device is not on that driver"]
    assert found(first, Action.SET_OVERRIDE, errno.EINVAL) == []
    assert step_causes(device_step(first, Action.BIND, "vfio-pci"), None) == ()


@pytest.mark.usefixtures("vfio_machine")
def test_vfio_driver_that_the_kernel_does_not_have(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pci("0000:00:05.0", group=5, driver="e1000e")
    (fake.root / "bus/pci/drivers/vfio-pci").rename(fake.root / "bus/pci/drivers/gone")
    monkeypatch.setattr(drivers, "modprobe", lambda *_: "modprobe: FATAL: Module vfio_pci not found")
    monkeypatch.setattr(drivers, "module_file", lambda _: None)
    monkeypatch.setattr("pyiommufd.host.checks.lacks.module_file", lambda _: None)
    with pytest.raises(ClaimError) as caught:
        plan_claim("0000:00:05.0").apply()
    failure, cause = str(caught.value).splitlines()
    assert failure.endswith(
        "the driver vfio-pci is not loaded, and loading it failed: modprobe: FATAL: Module vfio_pci not found"
    )
    assert cause.startswith("  this kernel has no vfio-pci (kernel ")
    assert cause.endswith("; boot a kernel with CONFIG_VFIO_PCI")
    assert journal.records() == []
