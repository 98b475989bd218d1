"""Register writes that the kernel makes at the signals of an eventfd."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import AlreadyMappedError, Device, EventFD, IoctlError
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import device_ioctls, ioctls
from tests.patience import until


def test_ioeventfd_writes_a_register(edu: EduDriver) -> None:
    device = edu.device
    region = device.region(0)
    edu.invert(0)
    event = region.ioeventfd(0x04, 4, 0x0F0F_0F0F)
    assert region.read(0x04, 4) == b"\xff\xff\xff\xff"
    event.signal()
    until(lambda: region.read(0x04, 4) == b"\xf0\xf0\xf0\xf0", "the kernel writes the register")
    with pytest.raises(AlreadyMappedError, match=f"0xf0f0f0f .* at 0x4 of region 0 of {device.name}") as caught:
        region.ioeventfd(0x04, 4, 0x0F0F_0F0F)
    (cause,) = caught.value.causes
    assert repr(event) in cause.evidence
    assert "close it first" in cause.fix
    with region.ioeventfd(0x04, 4, 1):
        pass
    event.close()
    event.close()
    assert "closed" in repr(event)
    edu.invert(0)
    # The same again: the kernel has forgotten the first one.
    again = region.ioeventfd(0x04, 4, 0x0F0F_0F0F)
    device.close()
    assert again.closed


def test_ioeventfd_of_another_fd_of_the_device_is_named_by_what_it_writes(device: Device) -> None:
    region = device.region(0)
    with EventFD() as event:
        # As another process does that has the device: pyiommufd's objects here do not know of it.
        device_ioctls.ioeventfd(device.fileno(), region.file_offset + 4, 4, 7, event._file, ioctls.new_cell("int"))
        with pytest.raises(AlreadyMappedError, match=f"0x7 .* of {device.name}") as caught:
            region.ioeventfd(4, 4, 7)
        assert [cause.evidence for cause in caught.value.causes] == [""]
        # The refused one has not undone it.
        device_ioctls.ioeventfd(device.fileno(), region.file_offset + 4, 4, 7, None, ioctls.new_cell("int"))


def test_ioeventfd_at_an_eventfd_of_the_callers(edu: EduDriver) -> None:
    region = edu.device.region(0)
    edu.invert(0)
    with EventFD() as event:
        with region.ioeventfd(0x04, 4, 0x0F0F_0F0F, event) as write:
            assert "on the caller's eventfd" in repr(write)
            event.signal()
            until(lambda: region.read(0x04, 4) == b"\xf0\xf0\xf0\xf0", "the kernel writes the register")
        assert not event.closed
        event.signal()
        assert event.take() == 1  # the kernel has not taken it


@pytest.mark.parametrize(
    ("offset", "width", "value"), [(0, 3, 0), (2, 4, 0), (0, 1, 256), (0, 4, -1), (1 << 20, 4, 0), (-4, 4, 0)]
)
def test_ioeventfd_checks_its_arguments(device: Device, offset: int, width: int, value: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        device.region(0).ioeventfd(offset, width, value)


def test_ioeventfd_is_for_bars(device: Device) -> None:
    with pytest.raises(IoctlError) as caught:
        device.region(7).ioeventfd(0x3C, 1, 0)
    assert caught.value.errno == errno.EINVAL


def test_ioeventfd_that_is_dropped_writes_nothing(edu: EduDriver) -> None:
    """Its fd alone is closed, as where it is garbage: to the kernel, which reads it, that is no signal."""
    region = edu.device.region(0)
    with region.ioeventfd(0x04, 4, 0x0F0F_0F0F) as event:
        with pytest.raises(ValueError, match="only the kernel"):
            event.wait(0)
        region.write(0x04, b"\x34\x12\0\0")
        EventFD.close(event)
        assert region.read(0x04, 4) == b"\xcb\xed\xff\xff"
    assert edu.device.interrupts.ioeventfds == ()
    device_ioctls.ioeventfd(edu.device.fileno(), region.file_offset + 4, 4, 0x0F0F_0F0F, None, ioctls.new_cell("int"))


def test_close_of_the_callers_eventfd_writes_nothing(edu: EduDriver) -> None:
    """It need not stay open; and who closes it does not mean to signal."""
    region, event = edu.device.region(0), EventFD()
    with region.ioeventfd(0x04, 4, 0x0F0F_0F0F, event):
        region.write(0x04, b"\x34\x12\0\0")
        event.close()
        assert region.read(0x04, 4) == b"\xcb\xed\xff\xff"
