"""Which vfio driver a device wants: by the kernel's own module aliases."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pyiommufd import ClaimError, HostDevice
from pyiommufd.host import drivers, sysfs

MLX5 = "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00"
ALIASES = """
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000019E5d0000A255sv*sd*bc*sc*i* hisi_acc_vfio_pci
""".strip()


@pytest.fixture
def device(tmp_path: Path) -> HostDevice:
    return HostDevice("0000:02:01.0", "pci", tmp_path, 1, 2, 3, None, 5, None, None, None, False)


@pytest.fixture
def aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aliases of a kernel that has variant drivers, which the guests' kernels do not have."""
    folder = tmp_path / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / "modules.alias").write_text(ALIASES + "\n")
    monkeypatch.setattr(sysfs, "MODULES", tmp_path / "modules")


@pytest.mark.parametrize(
    ("modalias", "driver"),
    [
        (MLX5, "mlx5_vfio_pci"),
        (MLX5.replace("101E", "101F"), "vfio-pci"),
        (MLX5.replace("d0000101E", "d0001101E"), "vfio-pci"),
        ("", "vfio-pci"),
    ],
)
def test_variant_by_alias(device: HostDevice, aliases: None, modalias: str, driver: str) -> None:
    (device.sys_path / "modalias").write_text(modalias + "\n")
    assert drivers.vfio_driver_for(device) == driver


def test_without_any_aliases(device: HostDevice) -> None:
    assert drivers.vfio_driver_for(device) == "vfio-pci"


def test_bus_without_a_vfio_driver(device: HostDevice) -> None:
    odd = dataclasses.replace(device, name="x", subsystem="mdev")
    with pytest.raises(ClaimError, match="mdev"):
        drivers.vfio_driver_for(odd)


@pytest.mark.parametrize(
    ("text", "override"), [("(null)\n", None), ("", None), ("\n", None), ("vfio-pci\n", "vfio-pci")]
)
def test_override(device: HostDevice, text: str, override: str | None) -> None:
    (device.sys_path / "driver_override").write_text(text)
    assert drivers.driver_override(device) == override


def test_override_of_a_bus_without(device: HostDevice) -> None:
    assert drivers.driver_override(device) is None


def test_unbind_of_a_driverless_device_writes_nothing(device: HostDevice) -> None:
    drivers.unbind(device)


def test_driver_that_cannot_be_had() -> None:
    with pytest.raises(ClaimError, match="no-such-driver"):
        drivers.load_driver("pci", "no-such-driver")
