"""The iommufd: opening, binding, what refuses a bind, and closing in the right order."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import re
import uuid
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    AccessDeniedError,
    AlreadyMappedError,
    BusyError,
    ChangeKind,
    Claim,
    ClosedError,
    CloseError,
    Device,
    DeviceFile,
    DeviceNotFoundError,
    DMABuffer,
    GroupNotViableError,
    HostDevice,
    InUseError,
    IoctlError,
    NotFoundError,
    Verdict,
    find_device,
    find_group,
    uapi,
)
from pyiommufd.host import drivers
from pyiommufd.uapi import raw
from tests.guest.dma import IOVA
from tests.guest.kernel.members import on_driver
from tests.opcodes import opcodes

NOBODY = 65534


def test_open_and_close(kernel_fds: Callable[[], dict[int, str]]) -> None:
    iommufd = IOMMUFD()
    assert kernel_fds()[iommufd.fileno()] == "/dev/iommu"
    iommufd.close()
    assert iommufd.closed
    iommufd.close()
    assert "/dev/iommu" not in kernel_fds().values()


def test_fd_is_not_inherited() -> None:
    with IOMMUFD() as iommufd:
        assert not os.get_inheritable(iommufd.fileno())


def test_missing_node_says_so() -> None:
    with pytest.raises(NotFoundError, match="/dev/no-iommu") as caught:
        IOMMUFD("/dev/no-iommu")
    assert caught.value.errno == errno.ENOENT
    # This kernel has iommufd: the cause is the path, and not the kernel.
    assert "the kernel has iommufd" in str(caught.value)


def test_path_of_something_else_is_refused() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ValueError, match="/dev/null is not an iommufd"):
        IOMMUFD("/dev/null")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_user_who_may_not_open_it(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    def child() -> tuple[int | None, str]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(AccessDeniedError) as caught:
            IOMMUFD()
        return caught.value.errno, str(caught.value)

    code, text = in_child(child)
    assert code == errno.EACCES
    assert f"user {NOBODY} may not open /dev/iommu" in text
    assert "mode 0660" in text


def test_from_fd_takes_the_fd_over() -> None:
    fd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    with IOMMUFD.from_fd(fd) as iommufd:
        assert iommufd.fileno() == fd
        assert iommufd.alloc_ioas().id
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_from_fd_of_something_else_leaves_it_open() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(ValueError, match="iommufd"):
        IOMMUFD.from_fd(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        IOMMUFD.from_fd(fd)


def test_from_fd_leaves_what_an_object_owns(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    """Two owners of one number: the second to be closed would close what has got it since."""
    with IOMMUFD() as iommufd:
        number = iommufd.fileno()

        def refused() -> str:
            with pytest.raises(ValueError, match=rf"os\.dup\({number}\)") as caught:
                IOMMUFD.from_fd(number)
            return str(caught.value)

        assert f"<IOMMUFD fd {number}>" in refused()
        assert f"<IOMMUFD fd {number}>" in in_child(refused)  # whose handle closes the copy
        with IOMMUFD.from_fd(os.dup(number)) as copy:
            assert copy.fileno() != number
        assert iommufd.alloc_ioas().id
    # The number is free again.
    with IOMMUFD() as later, pytest.raises(ValueError, match="belongs to"):
        IOMMUFD.from_fd(later.fileno())


def test_what_is_closed_is_named(claimed: Claim, first: HostDevice) -> None:
    iommufd = IOMMUFD()
    number = iommufd.fileno()
    device, ioas = iommufd.bind(first), iommufd.alloc_ioas()
    ioas.close()
    with pytest.raises(ClosedError, match=f"^this IOAS {ioas.id} is closed$"):
        ioas.unmap_all()
    device.close()
    with pytest.raises(ClosedError, match=f"^this Device {first.name} is closed$"):
        device.info()
    iommufd.close()
    with pytest.raises(ClosedError, match=f"^this IOMMUFD of fd {number} is closed$"):
        iommufd.alloc_ioas()


@pytest.mark.parametrize("known", [True, False], ids=["by this process", "past the library"])
def test_close_of_what_another_object_uses(claimed: Claim, first: HostDevice, known: bool) -> None:
    with IOMMUFD() as iommufd:
        other = IOMMUFD.from_fd(os.dup(iommufd.fileno()))
        ioas = other.alloc_ioas()
        memory = DMABuffer(mmap.PAGESIZE)
        ioas.map(memory, iova=IOVA)
        device = iommufd.bind(first)
        if known:
            device.attach(ioas)
        else:
            attach = raw.struct("vfio_device_attach_iommufd_pt", pt_id=ioas.id)
            raw.ioctl(device.fileno(), uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach)
        with pytest.raises(CloseError) as caught:
            other.close()
        assert other.closed
        (error,) = caught.value.errors
        assert isinstance(error, InUseError if known else BusyError)
        assert (getattr(error, "users", None) == (device,)) == known
        assert "; it stays in the kernel, with nothing that this process has mapped, until" in str(error)
        assert not re.search("close .*first", str(caught.value))
        memory.close()
        # As it says: there, empty, in use.
        for request, struct in (
            (uapi.IOMMU_IOAS_UNMAP, raw.struct("iommu_ioas_unmap", ioas_id=ioas.id, iova=IOVA, length=mmap.PAGESIZE)),
            (uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=ioas.id)),
        ):
            with pytest.raises((NotFoundError, BusyError)):
                raw.ioctl(iommufd.fileno(), request, struct)
        device.close()
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=ioas.id))


def test_alloc_ioas_asks_the_kernel(iommufd: IOMMUFD) -> None:
    first, second = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    assert first.id != second.id
    assert iommufd.objects == (second, first)
    buffer = DMABuffer(4096)
    for ioas in (first, second):
        ioas.map(buffer, iova=IOVA)
        with pytest.raises(AlreadyMappedError):
            ioas.map(buffer, iova=IOVA)


def test_bind_says_what_it_takes(iommufd: IOMMUFD) -> None:
    with pytest.raises(TypeError, match="takes a DeviceFile, a HostDevice, or a name or Path of a device, not int"):
        iommufd.bind(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a device is a HostDevice, or a name or Path of one, not int"):
        DeviceFile(5)  # type: ignore[arg-type]


def test_bind_takes_a_name_a_snapshot_a_node_or_a_file(claimed: Claim, first: HostDevice) -> None:
    node = first.refreshed().vfio_cdev
    assert node is not None
    for target in (first.name, first, node, Path(node), first.sys_path):
        with IOMMUFD() as iommufd:
            device = iommufd.bind(target)
            assert (device.name, device.iommufd) == (first.name, iommufd)
            assert iommufd.devices == (device,)
            # Only a bound device answers.
            assert device.config.read(0, 4) == bytes.fromhex("3412e811")
    with IOMMUFD() as iommufd, DeviceFile(first) as file:
        fd = file.fileno()
        device = iommufd.bind(file)
        assert device.fileno() == fd
        assert file.closed


def test_bind_clears_bus_mastering(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    assert not device.bus_master
    device.bus_master = True
    assert device.bus_master
    device.close()
    assert not iommufd.bind(first).bus_master


def test_bind_of_an_unclaimed_device_says_to_claim_it(iommufd: IOMMUFD, alone: HostDevice) -> None:
    with pytest.raises(NotFoundError, match="plan_claim"):
        iommufd.bind(alone)


def test_bind_of_no_device(iommufd: IOMMUFD) -> None:
    with pytest.raises(DeviceNotFoundError):
        iommufd.bind("0000:7f:00.0")
    with pytest.raises(DeviceNotFoundError):
        iommufd.bind("/dev/vfio/devices/vfio99")


def test_refused_bind_names_the_member_on_a_host_driver_and_leaves_the_file_open(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice, neighbour: HostDevice
) -> None:
    assert neighbour.driver is not None
    with on_driver(neighbour, neighbour.driver):
        file = DeviceFile(first)
        targets: tuple[DeviceFile | HostDevice, ...] = (file, peer)
        for target in targets:
            with pytest.raises(GroupNotViableError) as caught:
                iommufd.bind(target)
            assert caught.value.errno == errno.EPERM
            assert [blocker.name for blocker in caught.value.blockers] == [neighbour.name]
            assert neighbour.name in str(caught.value)
            assert neighbour.driver in str(caught.value)
        assert iommufd.devices == ()
        # The way out, once somebody takes it, leads there by the same file.
        drivers.unbind(neighbour)
        device = iommufd.bind(file)
        assert device.bind_change.kind is ChangeKind.FIRST
        device.close()


def test_refused_bind_by_name_leaves_nothing_open(
    device: Device, first: HostDevice, kernel_fds: Callable[[], dict[int, str]]
) -> None:
    before = kernel_fds()
    with IOMMUFD() as other, pytest.raises(IoctlError, match="VFIO_DEVICE_BIND_IOMMUFD") as caught:
        other.bind(first)
    # The kernel says EINVAL, which says nothing: who has it open is what the error adds.
    assert caught.value.errno == errno.EINVAL
    assert f"pid {os.getpid()}" in str(caught.value)
    assert kernel_fds() == before


def test_member_of_a_group_that_another_iommufd_owns(
    device: Device, first: HostDevice, peer: HostDevice, neighbour: HostDevice
) -> None:
    """No member is on a host driver: a viable group is not yet one that can be bound."""
    assert first.group_id is not None
    with IOMMUFD() as other:
        for one in (peer, neighbour):
            assert find_group(first.group_id).viable
            with pytest.raises(AccessDeniedError) as caught:
                other.bind(one)
            assert caught.value.errno == errno.EPERM
            assert not isinstance(caught.value, GroupNotViableError)
            assert "owned by another iommufd" in str(caught.value)
            assert f"pid {os.getpid()}" in str(caught.value)
        device.close()
        other.bind(peer).close()


@pytest.mark.parametrize("token", [b"short", "no uuid"])
def test_token_that_is_none(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, token: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"token|UUID"):
        iommufd.bind(first, token=token)
    with pytest.raises(TypeError):
        iommufd.bind(first, token=7)  # type: ignore[arg-type]
    assert iommufd.devices == ()


def test_token_reaches_the_kernel(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    """A device without SR-IOV takes none: the refusal is the proof that it was sent."""
    token = uuid.uuid4()
    for given in (token, str(token), token.bytes):
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(first, token=given)
        assert caught.value.errno == errno.EINVAL
    iommufd.bind(first)


def test_close_lets_the_device_go_first(
    claimed: Claim, first: HostDevice, peer: HostDevice, kernel_fds: Callable[[], dict[int, str]]
) -> None:
    for _ in range(3):
        iommufd = IOMMUFD()
        device, other = iommufd.bind(first), iommufd.bind(peer)
        ioas = iommufd.alloc_ioas()
        device.attach(ioas)
        other.attach(ioas)
        window = device.region(0).map()
        mapping = ioas.map(DMABuffer(4096), iova=IOVA)
        assert list(iommufd.objects) == [device, other, ioas]
        # The same ids each time: nothing of the last round is left in the kernel.
        assert (device.id, other.id, ioas.id) == (1, 2, 3)
        iommufd.close()
        assert device.closed
        assert other.closed
        assert ioas.closed
        assert window.closed
        assert not mapping.mapped
        assert len(iommufd.objects) == 0
        assert kernel_fds() == {}
        for owner in (device, other, ioas, window, iommufd):
            owner.close()


def test_use_after_close(claimed: Claim, first: HostDevice) -> None:
    iommufd = IOMMUFD()
    iommufd.close()
    for use in (iommufd.alloc_ioas, iommufd.fileno, lambda: iommufd.bind(first)):
        with pytest.raises(ClosedError):
            use()
    with DeviceFile(first) as file:
        with pytest.raises(ClosedError):
            iommufd.bind(file)
        assert not file.closed
    with IOMMUFD() as other, pytest.raises(ClosedError):
        other.bind(file)


def test_with_block_closes_after_an_error(claimed: Claim, first: HostDevice) -> None:
    with contextlib.suppress(RuntimeError), IOMMUFD() as iommufd:
        device = iommufd.bind(first)
        device.attach(iommufd.alloc_ioas())
        raise RuntimeError("of the block")
    assert device.closed
    with IOMMUFD() as again:
        assert again.bind(first).id == 1


def test_unclosed_iommufd_warns_and_is_closed(
    claimed: Claim, first: HostDevice, kernel_fds: Callable[[], dict[int, str]]
) -> None:
    iommufd = IOMMUFD()
    device = iommufd.bind(first)
    device.attach(iommufd.alloc_ioas())
    window = device.region(0).map()
    del iommufd, device, window
    with pytest.warns(ResourceWarning, match="unclosed") as caught:
        gc.collect()
    assert len(caught) == 2
    assert kernel_fds() == {}
    # Nothing keeps the device bound, the window neither.
    with IOMMUFD() as again:
        assert again.bind(first).id == 1


class _Memory(mmap.mmap):
    """Memory that looks, when it is freed, whether a device is bound still."""

    look: Callable[[], None]

    def __del__(self) -> None:
        self.look()


def test_garbage_keeps_memory_until_its_device_is_unbound(claimed: Claim, first: HostDevice) -> None:
    """The devices and the memory of an iommufd are in one cycle with it, whose parts are finalized in any order."""
    seen: list[bool] = []
    iommufd = IOMMUFD()
    device = iommufd.bind(first)
    device.attach(ioas := iommufd.alloc_ioas())
    memory = _Memory(-1, mmap.PAGESIZE)
    memory.look = partial(lambda device: seen.append(device.closed), weakref.proxy(device))
    ioas.map(memory)
    # Kept alive, so that the iommufd is the first to go.
    del memory, ioas
    with pytest.warns(ResourceWarning, match="unclosed") as caught:
        iommufd.__del__()
    assert len(caught) == 2
    assert seen == [True]


def test_garbage_is_unbound_whatever_is_raised(claimed: Claim, first: HostDevice) -> None:
    """With warnings as errors, the one that it was not closed must not keep it from being closed."""
    iommufd = IOMMUFD()
    device = iommufd.bind(first)
    device.attach(ioas := iommufd.alloc_ioas())
    ioas.map(memory := DMABuffer(mmap.PAGESIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ResourceWarning):
            iommufd.__del__()
    assert device.closed
    assert iommufd.closed
    memory.close()


def test_what_a_signal_handler_makes_while_it_is_closed(claimed: Claim, first: HostDevice) -> None:
    files = ("pyiommufd/kernel/iommufd.py",)

    def handler() -> None:
        with contextlib.suppress(ClosedError):
            iommufd.bind(first).attach(ioas := iommufd.alloc_ioas())
            ioas.map(buffer)

    stop, every = 0, 1
    while stop < every:
        iommufd, buffer = IOMMUFD(), DMABuffer(mmap.PAGESIZE)
        iommufd.alloc_ioas()
        if every == 1:
            every, _ = opcodes(iommufd.close, files)
            assert every > 100
            continue
        opcodes(iommufd.close, files, stop, handler, raises=False)
        stop += 7
        assert iommufd.closed
        assert iommufd.objects == ()
        buffer.close()
        with IOMMUFD() as again:
            again.bind(first)


def test_garbage_of_a_shared_iommufd_unmaps_what_it_lets_go_of(claimed: Claim, first: HostDevice) -> None:
    with IOMMUFD() as iommufd:
        taken_over = IOMMUFD.from_fd(os.dup(iommufd.fileno()))
        other = taken_over.alloc_ioas()
        memory = DMABuffer(mmap.PAGESIZE)
        other.map(memory, iova=1 << 20)
        number = other.id
        del taken_over, other
        with pytest.warns(ResourceWarning, match="unclosed"):
            gc.collect()
        memory.close()
        # The kernel has the address space still, and nothing mapped in it.
        mapped = raw.struct("iommu_ioas_unmap", ioas_id=number, iova=1 << 20, length=mmap.PAGESIZE)
        with pytest.raises(NotFoundError):
            raw.ioctl(iommufd.fileno(), uapi.IOMMU_IOAS_UNMAP, mapped)
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=number))


def test_shared_iommufd_says_unknown(claimed: Claim, first: HostDevice) -> None:
    with IOMMUFD() as iommufd, IOMMUFD.from_fd(os.dup(iommufd.fileno())) as shared:
        ioas = shared.alloc_ioas()
        device = shared.bind(first)
        preview = device.preview_attach(ioas)
        assert preview.verdict is Verdict.UNKNOWN
        assert "shared" in preview.reasons[0]
        device.attach(ioas)
        # By the other object it is the same kernel object, in use.
        with pytest.raises(InUseError):
            ioas.close()


def test_snapshot_from_before_the_claim_will_do(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    assert first.vfio_cdev is None
    assert iommufd.bind(first).host.vfio_cdev == find_device(first.name).vfio_cdev
