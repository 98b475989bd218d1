"""Which vfio driver a device wants: by the kernel's own module aliases."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pyiommufd import ClaimError, HostDevice
from pyiommufd.host import drivers, sysfs
from tests.fake_sysfs import FakeSysfs

MLX5 = "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00"
GRACE = "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00"
ALIASES = """
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000019E5d0000A255sv*sd*bc*sc*i* hisi_acc_vfio_pci
alias vfio_pci:v000010DEd*sv*sd*bc*sc*i* maker_vfio_pci
alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
alias vfio_pci:v000010DEd0000234[0-9]sv*sd*bc*sc*i* later_vfio_pci
alias vfio_pci:v00008086d*sv*sd*bc[01]*sc*i* many_vfio_pci
alias vfio_pci:v00008086d*sv*sd*bc03sc*i* xe_vfio_pci
alias pci:v000015B3d*sv*sd*bc02sc*i* other_core
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
    # As Linux 7.3 has it (scripts/mod/modpost.c, write_vmlinux_export_c_file).
    (folder / "modules.builtin.modinfo").write_text(
        "vfio_pci.license=GPL v2\0virtio_vfio_pci.alias=vfio_pci:v00001AF4d*sv*sd*bc*sc*i*\0"
    )
    (folder / "modules.dep").write_text("kernel/drivers/vfio/pci/vfio-pci.ko.xz:\nkernel/drivers/nvme/nvme.ko:\n")
    monkeypatch.setattr(sysfs, "MODULES", tmp_path / "modules")


@pytest.mark.parametrize(
    ("modalias", "driver"),
    [
        (MLX5, "mlx5_vfio_pci"),
        (MLX5.replace("101E", "101F"), "vfio-pci"),
        (MLX5.replace("d0000101E", "d0001101E"), "vfio-pci"),
        ("", "vfio-pci"),
        # The fewest wildcards, the first of these; a set in brackets is none and matches.
        (GRACE, "nvgrace_gpu_vfio_pci"),
        (GRACE.replace("2342", "2345"), "later_vfio_pci"),
        (GRACE.replace("2342", "2330"), "maker_vfio_pci"),
        (GRACE.replace("10DE", "8086"), "xe_vfio_pci"),
        # Built in, by the kernel's own file.
        (MLX5.replace("15B3", "1AF4"), "virtio_vfio_pci"),
    ],
)
def test_variant_by_alias(device: HostDevice, aliases: None, modalias: str, driver: str) -> None:
    (device.sys_path / "modalias").write_text(modalias + "\n")
    assert drivers.vfio_driver_for(device) == driver


def test_without_any_aliases(device: HostDevice) -> None:
    assert drivers.vfio_driver_for(device) == "vfio-pci"


@pytest.mark.parametrize(
    ("named", "driver"),
    [
        ("vfio-pci", "vfio-pci"),
        ("vfio_pci", "vfio-pci"),
        ("mlx5-vfio-pci", "mlx5_vfio_pci"),
        ("virtio_vfio_pci", "virtio_vfio_pci"),
        # There, and spelled otherwise than its module; there, and without any alias.
        ("xe_vfio_pci", "xe-vfio-pci"),
        ("xe-vfio-pci", "xe-vfio-pci"),
        ("own_vfio_pci", "own-vfio-pci"),
        # There under a name of its own, as its module says.
        ("hisi_acc_vfio_pci", "migration"),
        ("migration", "migration"),
    ],
)
def test_driver_that_is_named(fake: FakeSysfs, device: HostDevice, aliases: None, named: str, driver: str) -> None:
    for name in ("xe-vfio-pci", "own-vfio-pci", "migration"):
        (fake.root / "bus/pci/drivers" / name).mkdir()
    fake.link("module/hisi_acc_vfio_pci/drivers/pci:migration", fake.root / "bus/pci/drivers/migration")
    (device.sys_path / "modalias").write_text(MLX5 + "\n")
    assert drivers.vfio_driver_for(device, named) == driver


def test_driver_that_is_named_and_none(fake: FakeSysfs, device: HostDevice, aliases: None) -> None:
    (fake.root / "bus/pci/drivers/pci-stub").mkdir()
    for name in ("nvme", "pci-stub"):
        with pytest.raises(ClaimError, match=f"the driver {name} is not a vfio driver; .*: vfio-pci, mlx5_vfio_pci, "):
            drivers.vfio_driver_for(device, name)
    for name in ("vfio-no-such", "", "../drivers/vfio-pci"):
        with pytest.raises(ClaimError, match=f"there is no driver {name} here"):
            drivers.vfio_driver_for(device, name)
    with pytest.raises(TypeError, match="int"):
        drivers.vfio_driver_for(device, 5)  # type: ignore[arg-type]
    odd = dataclasses.replace(device, subsystem="platform")
    with pytest.raises(ClaimError, match="not a vfio driver; the vfio drivers available for the bus platform: none"):
        drivers.vfio_driver_for(odd, "vfio-pci")


def test_host_drivers_that_announce_a_device(device: HostDevice, aliases: None) -> None:
    (device.sys_path / "modalias").write_text(MLX5 + "\n")
    assert drivers.host_drivers_for(device) == ("mlx5_core", "other_core")
    (device.sys_path / "modalias").write_text(GRACE + "\n")
    assert drivers.host_drivers_for(device) == ()


def test_name_of_a_driver_that_spells_it_otherwise(fake: FakeSysfs) -> None:
    (fake.root / "bus/pci/drivers/xe-vfio-pci").mkdir()
    assert drivers.loaded_name("pci", "xe_vfio_pci") == "xe-vfio-pci"
    assert drivers.loaded_name("pci", "vfio_pci") is None
    assert drivers.is_loaded("pci", "xe_vfio_pci")


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
