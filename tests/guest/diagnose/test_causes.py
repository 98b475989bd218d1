"""Each cause of a refused bind, attach, map and feature is made, named first, and mended as it says.

What needs another machine is in the files beside this one.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Cause,
    Claim,
    ClaimPlan,
    Device,
    DeviceFeature,
    DeviceFile,
    DMABuf,
    DMABuffer,
    HostDevice,
    UnsupportedError,
    plan_claim,
)
from pyiommufd.host import drivers
from tests.guest.dma import IOVA
from tests.guest.heap import heap_dma_buf
from tests.runner.causes import CauseRow, Prover

BIND, ATTACH = "VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"
MAP, MAP_FILE = "IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE"
FEATURE = "VFIO_DEVICE_FEATURE"
PAGE = mmap.PAGESIZE
MSI = 0xFEE00000
NOBODY = 65534

InChild = Callable[[Callable[[], Any]], Any]


@contextmanager
def protected(buffer: DMABuffer, protection: int) -> Iterator[None]:
    """Memory that may be used less than its buffer says."""
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
    assert ctypes.CDLL(None).mprotect(address, len(buffer), protection) == 0
    try:
        yield
    finally:
        assert ctypes.CDLL(None).mprotect(address, len(buffer), mmap.PROT_READ | mmap.PROT_WRITE) == 0


@contextmanager
def held_by_another(hold: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Another process that holds something, as long as it is not told to end; what is yielded ends it."""
    ready, started = os.pipe()
    word, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            held = hold()
            os.write(started, b".")
            os.close(end)
            os.read(word, 1)
            del held
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(started)  # so that a child that has failed is seen, and not waited for
    assert os.read(ready, 1), "the other process has failed"
    for fd in (ready, word):
        os.close(fd)

    def stop() -> None:
        nonlocal child
        if child:
            os.close(end)
            os.waitpid(child, 0)
            child = 0

    try:
        yield stop
    finally:
        stop()


def done(result: object) -> None:
    """The fix is done; the request is issued as before."""
    del result


# BIND


def test_member_on_a_host_driver(prove: Prover, first: HostDevice, neighbour: HostDevice) -> None:
    drivers.load_driver("pci", "vfio-pci")
    drivers.set_driver_override(first, "vfio-pci")
    drivers.bind(first, "vfio-pci")
    claims: list[Claim] = []

    def attempt() -> None:
        with IOMMUFD() as iommufd:
            iommufd.bind(first)

    def fix(cause: Cause) -> None:
        assert neighbour.name in cause.summary
        plan, _, action = cause.fix.removeprefix("claim the group: ").partition(".apply()")
        made = eval(plan, {"plan_claim": plan_claim})  # noqa: S307 - the fix is code, and it is to run as it stands
        assert isinstance(made, ClaimPlan)
        assert action == ""
        claims.append(made.apply())

    try:
        prove("a member of the group is on a host driver", BIND, errno.EPERM, attempt, fix,
              cause="on the host driver virtio-pci", says="plan_claim(")  # fmt: skip
    finally:
        for claim in claims:
            claim.release()
        drivers.unbind(first)
        drivers.set_driver_override(first, None)


def test_group_owned_by_another_iommufd(
    prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice
) -> None:
    with IOMMUFD() as other:
        owner = other.bind(peer)

        def fix(cause: Cause) -> Callable[[], object]:
            assert f"fd {owner.fileno()}" in cause.evidence
            return lambda: other.bind(first)

        prove("another iommufd owns the group", BIND, errno.EPERM, lambda: iommufd.bind(first), fix,
              cause="another iommufd", says="bind all devices of a group to one iommufd")  # fmt: skip


def test_group_owned_by_another_process(
    prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice
) -> None:
    with held_by_another(lambda: IOMMUFD().bind(peer)) as stop:
        prove("another process's iommufd owns the group", BIND, errno.EPERM, lambda: iommufd.bind(first),
              lambda cause: stop(), cause="another iommufd", says="or end that use")  # fmt: skip


def test_device_open_elsewhere(prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    with held_by_another(lambda: DeviceFile(first)) as stop:
        # One that is open and not bound is in nobody's way: the kernel counts those that are bound.
        iommufd.bind(first).close()
        stop()
    with held_by_another(lambda: IOMMUFD().bind(first)) as stop:
        prove("the device is open elsewhere", BIND, errno.EINVAL, lambda: iommufd.bind(first),
              lambda cause: stop(), cause="another process has the device open", says="end that use")  # fmt: skip


def test_device_bound_twice(prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    bound = iommufd.bind(first)
    twin = DeviceFile.from_fd(os.dup(bound.fileno()))

    def fix(cause: Cause) -> Callable[[], object]:
        twin.close()
        bound.close()
        return lambda: iommufd.bind(first)

    prove("this fd is bound already", BIND, errno.EINVAL, lambda: iommufd.bind(twin), fix,
          cause="this fd is bound already", says="close that and open the node anew")  # fmt: skip


def test_token_for_a_device_without_virtual_functions(
    prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice
) -> None:
    prove("a VF token for a device without SR-IOV", BIND, errno.EINVAL,
          lambda: iommufd.bind(first, token=uuid.uuid4()), lambda cause: lambda: iommufd.bind(first),
          cause="VF token", says="bind without token=")  # fmt: skip


def test_group_in_use_by_its_legacy_node(prove: Prover, claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    with open(f"/dev/vfio/{first.group_id}", "r+b", buffering=0) as file:

        def fix(cause: Cause) -> None:
            assert file.name in cause.evidence
            file.close()

        prove("the group's legacy node is open", BIND, errno.EBUSY, lambda: iommufd.bind(first), fix,
              cause="legacy node", says="end that use")  # fmt: skip


# ATTACH


def test_peer_on_another_page_table(
    prove: Prover, device: Device, peer_device: Device, iommufd: IOMMUFD, ioas: IOAS
) -> None:
    other = iommufd.alloc_ioas()
    peer_device.attach(other)
    prove("a peer of the group is on another page table", ATTACH, errno.EINVAL, lambda: device.attach(ioas),
          lambda cause: lambda: device.attach(other), cause=peer_device.name, says=f"to {other!r}")  # fmt: skip


def test_peer_on_another_page_table_leaves(
    prove: Prover, device: Device, peer_device: Device, iommufd: IOMMUFD, ioas: IOAS
) -> None:
    peer_device.attach(iommufd.alloc_ioas())
    prove("a peer is on another page table; it leaves", ATTACH, errno.EINVAL, lambda: device.attach(ioas),
          lambda cause: done(peer_device.detach()), cause=peer_device.name, says="or detach")  # fmt: skip


def test_mapping_in_a_reserved_region(prove: Prover, device: Device, ioas: IOAS) -> None:
    mapping = ioas.map(DMABuffer(PAGE), iova=MSI)

    def fix(cause: Cause) -> None:
        assert f"{MSI:#x}" in cause.evidence
        mapping.unmap()

    prove("a mapping in a reserved region", ATTACH, errno.EADDRINUSE, lambda: device.attach(ioas), fix,
          cause="must not map", says="or elsewhere")  # fmt: skip


def test_allowed_range_in_a_reserved_region(prove: Prover, device: Device, ioas: IOAS) -> None:
    ioas.allow_iovas([(MSI, MSI + 0xFFFF)])
    prove("an allowed range in a reserved region", ATTACH, errno.EADDRINUSE, lambda: device.attach(ioas),
          lambda cause: ioas.allow_iovas([]), cause="allowed range", says="elsewhere")  # fmt: skip


def test_mapping_out_of_reach(prove: Prover, device: Device, ioas: IOAS) -> None:
    mapping = ioas.map(DMABuffer(PAGE), iova=1 << 60)
    prove("a mapping out of the IOMMU's reach", ATTACH, errno.EADDRINUSE, lambda: device.attach(ioas),
          lambda cause: mapping.unmap(), cause="cannot reach", says="or elsewhere")  # fmt: skip


def test_mapped_memory_that_cannot_be_pinned(prove: Prover, device: Device, ioas: IOAS) -> None:
    buffer = DMABuffer(PAGE)
    mapping = ioas.map(buffer)

    def fix(cause: Cause) -> None:
        mapping.unmap()
        ioas.map(buffer, writeable=False)

    with protected(buffer, mmap.PROT_READ):
        prove("read-only memory, mapped writeable before", ATTACH, errno.EFAULT, lambda: device.attach(ioas), fix,
              cause="cannot be pinned", says="map read-only memory with writeable=False")  # fmt: skip


def test_mapped_file_that_is_too_short(prove: Prover, device: Device, ioas: IOAS) -> None:
    what = ("a file mapped past its end", ATTACH, errno.EINVAL)
    memory = DMABuffer(2 * PAGE, memfd=True)
    try:
        mapping = ioas.map_file(memory, 4 * PAGE)
    except UnsupportedError:
        prove.lacks(*what, "no IOMMU_IOAS_MAP_FILE")

    def fix(cause: Cause) -> None:
        mapping.unmap()
        ioas.map_file(memory, 2 * PAGE)

    prove(*what, lambda: device.attach(ioas), fix, cause="does not fit", says="of a file no more than it has")


def test_limit_on_locked_memory_at_the_attach(
    prove: Prover, claimed: Claim, first: HostDevice, in_child: InChild
) -> None:
    def child() -> CauseRow:
        with limited_user(first) as (device, ioas, raise_limit):
            ioas.map(DMABuffer(16 * PAGE))
            return prove("the limit on locked memory, at the attach", ATTACH, errno.ENOMEM,
                         lambda: device.attach(ioas), lambda cause: raise_limit(),
                         cause="could not be pinned", says="raise the limit on locked memory")  # fmt: skip

    prove.add(in_child(child))


# MAP


def test_addresses_that_are_mapped(prove: Prover, ioas: IOAS) -> None:
    mapping = ioas.map(DMABuffer(PAGE), iova=IOVA)
    prove("some addresses are mapped already", MAP, errno.EEXIST, lambda: ioas.map(DMABuffer(2 * PAGE), iova=IOVA),
          lambda cause: mapping.unmap(), cause="mapped already", says="unmap first")  # fmt: skip


def test_addresses_that_are_mapped_and_left_to_the_kernel(prove: Prover, ioas: IOAS) -> None:
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    prove("mapped already; the kernel chooses", MAP, errno.EEXIST, lambda: ioas.map(DMABuffer(PAGE), iova=IOVA),
          lambda cause: lambda: ioas.map(DMABuffer(PAGE)), cause="mapped already",
          says="leave iova out")  # fmt: skip


def test_reserved_addresses(prove: Prover, device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    prove("the addresses are reserved", MAP, errno.EINVAL, lambda: ioas.map(DMABuffer(PAGE), iova=MSI),
          elsewhere(ioas), cause="reserved", says="choose others")  # fmt: skip


def test_addresses_out_of_reach(prove: Prover, device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    prove("the addresses are out of the IOMMU's reach", MAP, errno.EINVAL,
          lambda: ioas.map(DMABuffer(PAGE), iova=1 << 60), elsewhere(ioas),
          cause="out of the IOMMU's reach", says="choose others")  # fmt: skip


def elsewhere(ioas: IOAS) -> Callable[[Cause], Callable[[], object]]:
    """Map where the evidence says that mappings go."""

    def fix(cause: Cause) -> Callable[[], object]:
        allowed = ioas.iova_ranges()[0]
        assert str(allowed) in cause.evidence
        return lambda: ioas.map(DMABuffer(PAGE), iova=allowed.start)

    return fix


def test_no_room(prove: Prover, ioas: IOAS) -> None:
    ioas.allow_iovas([(IOVA, IOVA + 2 * PAGE - 1)])
    taken = ioas.map(DMABuffer(PAGE))
    prove("no free range of that size; something goes", MAP, errno.ENOSPC, lambda: ioas.map(DMABuffer(2 * PAGE)),
          lambda cause: taken.unmap(), cause="no free range", says="unmap something")  # fmt: skip


def test_no_room_for_so_much(prove: Prover, ioas: IOAS) -> None:
    ioas.allow_iovas([(IOVA, IOVA + PAGE - 1)])
    prove("no free range of that size; less is mapped", MAP, errno.ENOSPC, lambda: ioas.map(DMABuffer(2 * PAGE)),
          lambda cause: lambda: ioas.map(DMABuffer(PAGE)), cause="no free range", says="or map less")  # fmt: skip


def test_range_that_wraps(prove: Prover, ioas: IOAS) -> None:
    prove("the range wraps around", MAP, errno.EOVERFLOW, lambda: ioas.map(DMABuffer(2 * PAGE), iova=(1 << 64) - PAGE),
          lambda cause: lambda: ioas.map(DMABuffer(2 * PAGE), iova=(1 << 64) - 2 * PAGE),
          cause="wraps", says="choose a lower iova")  # fmt: skip


def test_read_only_memory(prove: Prover, device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    buffer = DMABuffer(PAGE)
    with protected(buffer, mmap.PROT_READ):
        prove("read-only memory, mapped writeable", MAP, errno.EFAULT, lambda: ioas.map(buffer),
              lambda cause: lambda: ioas.map(buffer, writeable=False),
              cause="cannot be pinned", says="writeable=False")  # fmt: skip


def test_limit_on_locked_memory(prove: Prover, claimed: Claim, first: HostDevice, in_child: InChild) -> None:
    def child() -> CauseRow:
        with limited_user(first) as (device, ioas, raise_limit):
            device.attach(ioas)

            def fix(cause: Cause) -> None:
                assert f"{2 * PAGE:#x} bytes" in cause.evidence
                raise_limit()

            return prove("the limit on locked memory", MAP, errno.ENOMEM, lambda: ioas.map(DMABuffer(16 * PAGE)), fix,
                         cause="over the limit", says="raise the limit on locked memory")  # fmt: skip

    prove.add(in_child(child))


@contextmanager
def limited_user(host: HostDevice) -> Iterator[tuple[Device, IOAS, Callable[[], None]]]:
    """A device of a user who may lock two pages; in a child, which stays that user."""
    with IOMMUFD() as own:
        device, ioas = own.bind(host), own.alloc_ioas()
        most = 64 * PAGE
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * PAGE, most))
        os.setuid(NOBODY)
        yield device, ioas, lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))


# MAP_FILE


def test_file_of_another_kind(prove: Prover, device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    what = ("a file that is not a memfd", MAP_FILE, errno.EINVAL)
    memory = DMABuffer(PAGE, memfd=True)
    try:
        ioas.map_file(memory, PAGE).unmap()
    except UnsupportedError:
        prove.lacks(*what, "no IOMMU_IOAS_MAP_FILE")
    with open(__file__, "rb") as file:  # a file of tmpfs would do as well as a memfd
        prove(*what, lambda: ioas.map_file(file.fileno(), PAGE, writeable=False),
              lambda cause: lambda: ioas.map_file(memory, PAGE),
              cause="not a memfd", says="DMABuffer(size, memfd=True)")  # fmt: skip


def test_file_past_its_end(prove: Prover, device: Device, ioas: IOAS) -> None:
    device.attach(ioas)
    what = ("a range past the end of the file", MAP_FILE, errno.EINVAL)
    memory = DMABuffer(2 * PAGE, memfd=True)
    try:
        ioas.map_file(memory, PAGE).unmap()
    except UnsupportedError:
        prove.lacks(*what, "no IOMMU_IOAS_MAP_FILE")
    prove(*what, lambda: ioas.map_file(memory, 4 * PAGE), lambda cause: lambda: ioas.map_file(memory, 2 * PAGE),
          cause="after the end of the file", says="map no more than it has")  # fmt: skip


def test_file_that_is_closed(prove: Prover, ioas: IOAS) -> None:
    what = ("the file's fd is closed", MAP_FILE, errno.EBADF)
    memory = DMABuffer(PAGE, memfd=True)
    try:
        ioas.map_file(memory, PAGE).unmap()
    except UnsupportedError:
        prove.lacks(*what, "no IOMMU_IOAS_MAP_FILE")
    closed = os.dup(memory.fileno())
    os.close(closed)
    prove(*what, lambda: ioas.map_file(closed, PAGE), lambda cause: lambda: ioas.map_file(memory.fileno(), PAGE),
          cause="is not open", says="keep the file open")  # fmt: skip


@contextmanager
def dma_buf_of(prove: Prover, device: Device, what: tuple[str, str, int]) -> Iterator[DMABuf]:
    """All of its BAR 0."""
    if not device.feature(DeviceFeature.DMA_BUF).probe():
        prove.lacks(*what, "no dma-bufs of BARs")
    with device.region(0).export_dma_buf() as dma_buf:
        yield dma_buf


def test_revoked_dma_buf(prove: Prover, device: Device, ioas: IOAS) -> None:
    what = ("a dma-buf whose device has memory decode off", MAP_FILE, errno.ENODEV)
    with dma_buf_of(prove, device, what) as dma_buf:
        device.memory_decode = False
        prove(*what, lambda: ioas.map_file(dma_buf, dma_buf.size), lambda cause: setattr(device, "memory_decode", True),
              cause="is revoked", says="set memory_decode to True")  # fmt: skip


def test_dma_buf_of_a_device_that_was_woken(prove: Prover, device: Device, ioas: IOAS) -> None:
    what = ("a dma-buf whose device has not left low power", MAP_FILE, errno.ENODEV)
    with dma_buf_of(prove, device, what) as dma_buf:
        device.low_power.enter()
        prove(*what, lambda: ioas.map_file(dma_buf, dma_buf.size), lambda cause: device.low_power.exit(),
              cause="is revoked", says="low_power.exit()")  # fmt: skip


def test_dma_buf_of_a_heap(prove: Prover, device: Device, ioas: IOAS) -> None:
    what = ("a dma-buf of another maker, as of a dma-buf heap", MAP_FILE, errno.EOPNOTSUPP)
    with dma_buf_of(prove, device, what) as ours, heap_dma_buf(PAGE) as theirs:
        prove(*what, lambda: ioas.map_file(theirs, PAGE), lambda cause: lambda: ioas.map_file(ours, PAGE),
              cause="no single range of a vfio device's BAR", says="Region.export_dma_buf()")  # fmt: skip


# FEATURE


def test_low_power_entered_twice(prove: Prover, device: Device) -> None:
    device.low_power.enter()
    prove("low power is entered twice", FEATURE, errno.EINVAL, device.low_power.enter,
          lambda cause: device.low_power.exit(), cause="has been already", says="low_power.exit()")  # fmt: skip
