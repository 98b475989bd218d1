"""Why a reset was refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd.diagnose.reset import hot_reset_error, reset_error
from pyiommufd.errors import UnsupportedError
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.reset import reset_methods


def make(folder: Path, name: str, methods: str | None) -> HostDevice:
    path = folder / name
    path.mkdir()
    if methods is not None:
        (path / "reset_method").write_text(methods)
    return HostDevice(name, "pci", path, 0x1234, 0x11E8, 0xFF00, "vfio-pci", 3, None, None, None, True)


def test_methods(tmp_path: Path) -> None:
    device = make(tmp_path, "0000:01:00.0", "flr bus\n")
    assert reset_methods(device) == ("flr", "bus")
    assert reset_methods(make(tmp_path, "0000:01:00.1", None)) == ()


@pytest.mark.parametrize("methods", [None, "\n"])
def test_device_without_a_method(tmp_path: Path, methods: str | None) -> None:
    device = make(tmp_path, "0000:01:00.0", methods)
    error = reset_error(errno.EINVAL, device, ("0000:01:00.0",))
    assert error.request == "VFIO_DEVICE_RESET"
    (cause,) = error.causes
    assert "no way to be reset alone" in cause.summary
    assert "hot_reset()" in cause.fix
    # Where there can be no hot reset it is not named; nor is reset(), the other way round.
    assert "hot_reset()" not in str(reset_error(errno.EINVAL, device, ()))
    assert "reset()" not in str(hot_reset_error(errno.ENODEV, device, (), "VFIO_DEVICE_PCI_HOT_RESET"))


def test_bus_that_is_shared(tmp_path: Path) -> None:
    (cause,) = reset_error(
        errno.EINVAL, make(tmp_path, "0000:01:00.0", "bus\n"), ("0000:01:00.0", "0000:01:01.0")
    ).causes
    assert cause.evidence == "its bus has other devices: 0000:01:01.0"


def test_methods_that_do_not_work(tmp_path: Path) -> None:
    device = make(tmp_path, "0000:01:00.0", "flr pm\n")
    (cause,) = reset_error(errno.EINVAL, device, ()).causes
    assert "(flr, pm) do not work" in cause.summary
    (cause,) = hot_reset_error(errno.ENODEV, device, (), "VFIO_DEVICE_PCI_HOT_RESET").causes
    assert cause.fix == "use reset(): the device has flr, pm"


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENODEV, "neither the bus"), (errno.EBUSY, "registers"), (errno.ENOTTY, "in time")]
)
def test_hot_reset(tmp_path: Path, code: int, word: str) -> None:
    device = make(tmp_path, "0000:01:00.0", None)
    error = hot_reset_error(code, device, (), "VFIO_DEVICE_PCI_HOT_RESET")
    assert word in error.causes[0].summary
    assert isinstance(error, UnsupportedError) == (code == errno.ENOTTY)


def test_hot_reset_that_would_take_a_stranger(tmp_path: Path) -> None:
    device = make(tmp_path, "0000:01:00.0", None)
    error = hot_reset_error(errno.EINVAL, device, ("ffff:fe:1f.7",), "VFIO_DEVICE_PCI_HOT_RESET")
    assert "ffff:fe:1f.7 would be reset too, and is not bound to this iommufd (it has gone since)" in str(error)
