"""Moving a device between drivers."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest

from pyiommufd import ClaimError, DeviceFile, HostDevice
from pyiommufd.host import drivers, worker
from tests.patience import patience, until


@pytest.fixture
def on_vfio(alone: HostDevice) -> Iterator[HostDevice]:
    drivers.set_driver_override(alone, "vfio-pci")
    drivers.bind(alone, "vfio-pci")
    yield alone.refreshed()
    drivers.unbind(alone)
    drivers.set_driver_override(alone, None)


def test_override(alone: HostDevice) -> None:
    assert drivers.driver_override(alone) is None
    drivers.set_driver_override(alone, "pci-stub")
    assert (alone.sys_path / "driver_override").read_text() == "pci-stub\n"
    assert drivers.driver_override(alone) == "pci-stub"
    drivers.set_driver_override(alone, None)
    assert drivers.driver_override(alone) is None


def test_bind_and_unbind(on_vfio: HostDevice) -> None:
    assert drivers.driver_of(on_vfio) == on_vfio.driver == "vfio-pci"
    drivers.unbind(on_vfio)
    assert drivers.driver_of(on_vfio) is None
    drivers.unbind(on_vfio)


def test_bind_to_a_driver_that_does_not_take_it(alone: HostDevice) -> None:
    with pytest.raises(OSError, match="vfio-pci/bind") as caught:
        drivers.bind(alone, "vfio-pci")
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="no-such-driver") as caught:
        drivers.bind(alone, "no-such-driver")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.long
def test_unbind_of_a_held_device_is_not_waited_for_without_end(on_vfio: HostDevice) -> None:
    with DeviceFile(on_vfio):
        start, limit = time.monotonic(), patience(1)
        with pytest.raises(TimeoutError, match="still uses the device"):
            drivers.unbind(on_vfio, limit)
        assert time.monotonic() - start >= limit
        # It looks as if it had left, as the link goes first; the driver has not let it go before the file is closed.
        until(lambda: drivers.driver_of(on_vfio) is None, "the link goes")
    # Now it does, and the kernel has the next bind wait for that.
    drivers.bind(on_vfio, "vfio-pci")
    with DeviceFile(on_vfio):
        pass
    assert worker._abandoned.pop().wait(patience()) is not None


def test_vfio_driver_of_a_device(alone: HostDevice, neighbour: HostDevice) -> None:
    assert drivers.vfio_driver_for(alone) == "vfio-pci"
    assert drivers.vfio_driver_for(neighbour) == "vfio-pci"


def test_driver_that_is_not_there() -> None:
    drivers.load_driver("pci", "vfio-pci")
    with pytest.raises(ClaimError, match="no-such-driver"):
        drivers.load_driver("pci", "no-such-driver")
