"""A device that another process has bound and passed on: what is known of it, what works, and when it is unbound."""

from __future__ import annotations

import errno
import json
import os
import socket
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    CloseError,
    Device,
    DeviceFile,
    DMABuffer,
    HostDevice,
    IoctlError,
    UnsupportedError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives
from tests.patience import patience


def bind_and_pass_on(peer: socket.socket, name: str) -> None:
    """Bind a device, attach it to what is `vfio_ioas` from then on, pass both on, and wait for the end."""
    iommufd = IOMMUFD()
    device = iommufd.bind(name)
    ioas = iommufd.vfio_ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    socket.send_fds(peer, [json.dumps(device.id).encode()], [iommufd.fileno(), device.fileno()])
    peer.recv(1)


@dataclass
class Passed:
    """What the other process has passed on.

    Attributes:
        iommufd: The iommufd, taken over.
        fd: The device's, not yet.
        id: The device's.
        socket: Closed, it ends the other process.
    """

    iommufd: IOMMUFD
    fd: int
    id: int
    socket: socket.socket
    process: int

    def end(self) -> None:
        """Have the other process end, with its fds."""
        self.socket.close()
        if self.process:
            _, status = os.waitpid(self.process, 0)
            self.process = 0
            assert status == 0


def passed_on(name: str) -> Iterator[Passed]:
    ours, theirs = socket.socketpair()
    process = os.fork()
    if not process:
        status = 1
        try:
            ours.close()
            bind_and_pass_on(theirs, name)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    data, (iommufd_fd, fd), _, _ = socket.recv_fds(ours, 64, 2)
    with IOMMUFD.from_fd(iommufd_fd) as iommufd:
        passed = Passed(iommufd, fd, json.loads(data), ours, process)
        try:
            yield passed
        finally:
            passed.end()


@pytest.fixture
def passed(claimed: Claim, first: HostDevice) -> Iterator[Passed]:
    yield from passed_on(first.name)


def test_it_is_used_and_stays_bound_until_the_last_one_closes(
    passed: Passed, first: HostDevice, buffer: DMABuffer, arrives: Arrives
) -> None:
    device = Device.from_fd(passed.fd, passed.iommufd)
    assert (device.fileno(), device.name, device.host) == (passed.fd, first.name, first)
    assert device.id == passed.id  # the kernel has told it
    assert passed.iommufd.devices == (device,)
    change = device.bind_change
    assert (change.verdict, first in change.devices) == (Verdict.UNKNOWN, True)

    device.bus_master = True
    (vector,) = device.interrupts.msi.enable()
    with device.region(0).map() as registers:
        assert registers.read32(0) & 0xFF == 0xED
        assert len(device.hot_reset().devices) > 1
        registers.write32(0x60, 1)
        assert vector.wait(patience()) == 1
        registers.write32(0x64, 1)
    device.interrupts.msi.disable()
    ioas = passed.iommufd.alloc_ioas()
    ioas.map(buffer, iova=IOVA)
    with EduDriver(device) as edu:
        assert not arrives(edu, buffer)
        preview = device.preview_attach(ioas)
        assert preview.verdict is Verdict.UNKNOWN
        # The other process has attached it: to the kernel this is a replace.
        change = device.attach(ioas)
        assert (change.verdict, first in change.devices) == (Verdict.UNKNOWN, True)
        assert arrives(edu, buffer)
        assert device.alloc_hwpt(ioas).host == first

        passed.end()
        assert arrives(edu, buffer)
    assert device.config.vendor_id == 0x1234
    with IOMMUFD() as another:
        with pytest.raises(IoctlError) as caught:
            another.bind(first)
        assert caught.value.errno == errno.EINVAL
        device.close()
        another.bind(first).close()


def test_what_the_other_process_has_attached_can_be_left(passed: Passed, buffer: DMABuffer, arrives: Arrives) -> None:
    theirs = passed.iommufd.vfio_ioas
    assert theirs is not None
    theirs.map(buffer, iova=IOVA)
    device = Device.from_fd(passed.fd, passed.iommufd)
    device.bus_master = True
    with EduDriver(device) as edu:
        assert device.page_table is None
        assert arrives(edu, buffer)
        change = device.detach()
        assert (change.kind, change.verdict) == ("detach", Verdict.UNKNOWN)
        assert not arrives(edu, buffer)
        change = device.replace(theirs)
        assert change.verdict is Verdict.UNKNOWN
        assert arrives(edu, buffer)


def test_closed_with_the_iommufd_it_is_still_the_other_process_that_has_it(passed: Passed, first: HostDevice) -> None:
    device = Device.from_fd(passed.fd, passed.iommufd)
    passed.iommufd.close()
    assert device.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(passed.fd)
    with IOMMUFD() as another:
        with pytest.raises(IoctlError):
            another.bind(first)
        passed.end()
        another.bind(first).close()


@pytest.mark.parametrize("detach", [False, True])
def test_closed_while_the_other_process_has_it(passed: Passed, buffer: DMABuffer, detach: bool) -> None:
    """Its close detaches nothing; what it was attached to can go once it was detached."""
    with Device.from_fd(passed.fd, passed.iommufd) as device:
        ioas = passed.iommufd.alloc_ioas()
        ioas.map(buffer, iova=IOVA)
        device.attach(ioas)
        if detach:
            device.detach()
    if detach:
        passed.iommufd.close()
        return
    with pytest.raises(CloseError, match=rf"{ioas!r}: EBUSY .*\n.*detach\(\) before the close what others have"):
        passed.iommufd.close()


def test_what_is_no_bound_device_of_this_iommufd(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice
) -> None:
    device = iommufd.bind(first)
    with DeviceFile(peer) as file:
        fd = os.dup(file.fileno())
        with pytest.raises(ValueError, match=f"fd {fd} of {peer.name} is not bound: DeviceFile.from_fd takes it"):
            Device.from_fd(fd, iommufd)
        os.close(fd)
    with pytest.raises(ValueError, match=rf"belongs to {device!r}.*os\.dup"):
        Device.from_fd(device.fileno(), iommufd)
    with pytest.raises(ValueError, match="not that of a vfio cdev"):
        Device.from_fd(0, iommufd)
    with pytest.raises(TypeError, match="bound to an IOMMUFD, not to NoneType"):
        Device.from_fd(device.fileno(), None)  # type: ignore[arg-type]
    fd = os.dup(device.fileno())
    with pytest.raises(ValueError, match=f"{device.id + 1} is not the id of {first.name}: that is {device.id}"):
        Device.from_fd(fd, iommufd, id=device.id + 1)
    with IOMMUFD() as other, pytest.raises(ValueError, match=f"{first.name} is bound to another iommufd than"):
        Device.from_fd(fd, other)
    assert iommufd.devices == (device,)
    with Device.from_fd(fd, iommufd, id=device.id) as twin:
        assert twin.hw_info() == device.hw_info()


def test_id_of_something_else(claimed: Claim, claimed_alone: Claim, first: HostDevice, alone: HostDevice) -> None:
    """Of a device on the root bus the kernel tells none, and what is given is checked against what is known."""
    for passed in passed_on(alone.name):
        iommufd = passed.iommufd
        device, ioas = iommufd.bind(first), iommufd.alloc_ioas()
        for other in (device, ioas):
            with pytest.raises(ValueError, match=f"{other.id} is not the id of {alone.name} in .*: {other!r} has it"):
                Device.from_fd(passed.fd, iommufd, id=other.id)
        with Device.from_fd(os.dup(passed.fd), iommufd, id=passed.id):
            with pytest.raises(ValueError, match=f": that is {passed.id}"):
                Device.from_fd(passed.fd, iommufd, id=passed.id + 100)
            Device.from_fd(passed.fd, iommufd, id=passed.id).close()


def test_device_whose_id_is_not_known(claimed_alone: Claim, alone: HostDevice) -> None:
    """On the root bus there is no hot reset, by which the kernel would tell it."""
    for passed in passed_on(alone.name):
        copy = os.dup(passed.fd)
        with Device.from_fd(passed.fd, passed.iommufd) as device:
            ioas = passed.iommufd.alloc_ioas()
            assert device.id == 0
            for call in (device.hw_info, lambda ioas=ioas: device.alloc_hwpt(ioas)):
                with pytest.raises(UnsupportedError, match=r"id of .* not known .*Device\.from_fd\(fd, iommufd, id=\)"):
                    call()
            device.replace(ioas)
            device.detach()
            assert device.config.vendor_id == 0x1234
        with Device.from_fd(copy, passed.iommufd, id=passed.id) as device:
            assert device.alloc_hwpt(passed.iommufd.alloc_ioas()).host == alone
