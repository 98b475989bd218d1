"""The mock IOMMU: each operation of the kernel's test command does what its object says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import (
    IOAS,
    AlreadyAttachedError,
    BusyError,
    ChangeKind,
    ClosedError,
    DMABuffer,
    InUseError,
    IoctlError,
    NotFoundError,
    UnsupportedError,
    Verdict,
)
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands

pytest_plugins = ["pytester"]

IOVA = commands.APERTURE_START + 0x10000
PAGE = 4096


def names() -> list[str]:
    """The mock devices of the machine."""
    return sorted(path.name for path in Path("/sys/bus/iommufd_mock/devices").iterdir())


# Devices


def test_device_is_a_real_one_to_iommufd(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    assert names() == []
    assert ioas.iova_ranges()[0].start == 0
    device = iommufd.mock_device(ioas)
    assert names() == [device.name]
    assert (ioas.iova_ranges()[0].start, ioas.iova_ranges()[-1].last) == (
        commands.APERTURE_START,
        commands.APERTURE_LAST,
    )
    assert device in iommufd.devices
    assert device.page_table is ioas
    assert device.host.group is not None
    assert [one.name for one in device.host.group.devices] == [device.name]
    device.alloc_hwpt(ioas).close()
    with pytest.raises(InUseError, match=device.name):
        ioas.close()
    device.close()
    assert names() == []
    assert ioas.iova_ranges()[0].start == 0
    assert iommufd.devices == ()
    device.close()
    with pytest.raises(ClosedError):
        device.attach(ioas)


def test_two_devices_have_two_groups(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    other = iommufd.mock_device(ioas)
    assert other.host.group_id != device.host.group_id
    assert other.name != device.name


def test_device_has_no_registers(device: MockDevice) -> None:
    with pytest.raises(UnsupportedError):
        device.region(0).read(0, 4)


def test_attach_replace_detach(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice, buffer: DMABuffer) -> None:
    other = iommufd.alloc_ioas()
    ioas.map(buffer, iova=IOVA)
    other.map(buffer, iova=IOVA + 0x100000)
    assert device.reaches(buffer, IOVA)

    preview = device.preview_attach(other)
    assert (preview.verdict, preview.kind) == (Verdict.ACCEPTED, ChangeKind.REPLACE)
    change = device.replace(other)
    assert (change.kind, change.devices) == (ChangeKind.REPLACE, (device.host,))
    assert device.page_table is other
    assert device.reaches(buffer, IOVA + 0x100000)
    assert not device.reaches(buffer, IOVA)
    with pytest.raises(AlreadyAttachedError):
        device.attach(ioas)

    change = device.detach()
    assert (change.kind, change.devices) == (ChangeKind.DETACH, (device.host,))
    assert device.page_tables == {}
    assert other.iova_ranges()[0].start == 0
    assert device.detach().kind is ChangeKind.NOOP
    with pytest.raises(ValueError, match="not attached"):
        device.hwpt_id()
    other.close()

    assert device.attach(ioas).kind is ChangeKind.FIRST
    assert device.reaches(buffer, IOVA)


def test_refused_attach_names_what_is_out_of_reach(ioas: IOAS, device: MockDevice, buffer: DMABuffer) -> None:
    device.detach()
    ioas.map(buffer, iova=0x1000)
    assert device.preview_attach(ioas).verdict is Verdict.REFUSED
    with pytest.raises(IoctlError, match="0x1000") as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EADDRINUSE
    assert device.page_table is None


def test_device_of_another_iommufd(iommufd: MockIOMMUFD) -> None:
    with MockIOMMUFD() as other, pytest.raises(ValueError, match="another IOMMUFD"):
        iommufd.mock_device(other.alloc_ioas())


# Page table checks


def test_reaches(ioas: IOAS, device: MockDevice, buffer: DMABuffer) -> None:
    ioas.map(buffer, iova=IOVA)
    assert device.reaches(buffer, IOVA)
    assert device.reaches(memoryview(buffer)[PAGE : 2 * PAGE], IOVA + PAGE)
    assert device.reaches(memoryview(buffer)[2048:PAGE], IOVA + 2048)
    assert not device.reaches(buffer, IOVA + PAGE)
    assert not device.reaches(DMABuffer(PAGE), IOVA)
    for memory, iova in ((memoryview(buffer)[:100], IOVA), (buffer, IOVA + 1), (memoryview(buffer)[:0], IOVA)):
        with pytest.raises(ValueError, match="multiples of 2 KiB"):
            device.reaches(memory, iova)
    ioas.unmap_all()
    assert not device.reaches(buffer, IOVA)


def test_pinned(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice, buffer: DMABuffer) -> None:
    buffer[:] = bytes(len(buffer))
    assert iommufd.pinned(buffer, 0)
    first = ioas.map(buffer, iova=IOVA)
    assert iommufd.pinned(buffer, 1)
    assert not iommufd.pinned(buffer, 0)
    second = ioas.map(memoryview(buffer)[:PAGE], iova=IOVA + 0x100000)
    assert iommufd.pinned(memoryview(buffer)[:PAGE], 2)
    assert iommufd.pinned(memoryview(buffer)[PAGE:], 1)
    assert not iommufd.pinned(buffer, 1)
    first.unmap()
    second.unmap()
    assert iommufd.pinned(buffer, 0)


def test_reserve(iommufd: MockIOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    iommufd.reserve(ioas, 0x10000, 0x4000)
    assert [(one.start, one.last) for one in ioas.iova_ranges()][:2] == [(0, 0xFFFF), (0x14000, 0xFFFF_FFFF_FFFF_FFFF)]
    with pytest.raises(IoctlError) as caught:
        ioas.map(buffer, iova=0x10000)
    assert caught.value.errno == errno.EINVAL
    ioas.map(buffer, iova=0x14000)
    with pytest.raises(IoctlError) as caught:
        iommufd.reserve(ioas, 0x14000, PAGE)
    assert caught.value.errno == errno.EADDRINUSE


# Accesses


@pytest.mark.parametrize("slow", [False, True])
def test_access_reads_and_writes(iommufd: MockIOMMUFD, ioas: IOAS, buffer: DMABuffer, slow: bool) -> None:
    ioas.map(buffer, iova=0x4000)
    with iommufd.mock_access(ioas) as access:
        access.write(0x4000 + PAGE - 3, b"across", slow=slow)
        assert buffer[PAGE - 3 : PAGE + 3] == b"across"
        buffer[:5] = b"there"
        assert access.read(0x4000, 5, slow=slow) == b"there"
        with pytest.raises(NotFoundError):
            access.read(0x4000 + len(buffer) - 1, 2, slow=slow)


def test_access_obeys_the_mapping(iommufd: MockIOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.map(buffer, iova=0x4000, writeable=False)
    with iommufd.mock_access(ioas) as access:
        assert access.read(0x4000, 1) == b"\0"
        with pytest.raises(IoctlError) as caught:
            access.write(0x4000, b"x")
        assert caught.value.errno == errno.EPERM


def test_access_pins(iommufd: MockIOMMUFD, ioas: IOAS, buffer: DMABuffer) -> None:
    buffer[:] = bytes(len(buffer))
    mapping = ioas.map(buffer, iova=0x4000)
    assert iommufd.pinned(buffer, 0)
    with iommufd.mock_access(ioas, pin=True) as access:
        first = access.pin(0x4000, buffer)
        assert iommufd.pinned(buffer, 1)
        second = access.pin(0x4000 + PAGE, memoryview(buffer)[PAGE : 2 * PAGE], writeable=False)
        assert second.id != first.id
        first.unpin()
        assert iommufd.pinned(memoryview(buffer)[:PAGE], 0)
        assert iommufd.pinned(memoryview(buffer)[PAGE : 2 * PAGE], 1)
        with pytest.raises(NotFoundError):
            first.unpin()
        with pytest.raises(IoctlError) as caught:
            access.pin(0x4000, DMABuffer(PAGE))
        assert caught.value.errno == errno.EBADE
        mapping.unmap()
        assert iommufd.pinned(buffer, 0)
        with pytest.raises(NotFoundError):
            second.unpin()
    with iommufd.mock_access(ioas) as access, pytest.raises(UnsupportedError):
        access.pin(0x4000, buffer)


def test_access_goes_to_another_address_space(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    here, there = DMABuffer(PAGE), DMABuffer(PAGE)
    here[:4], there[:5] = b"here", b"there"
    other = iommufd.alloc_ioas()
    ioas.map(here, iova=0x4000)
    other.map(there, iova=0x4000)
    with iommufd.mock_access(ioas) as access:
        with pytest.raises(BusyError):
            ioas.close()
        access.replace(other)
        assert access.ioas is other
        assert access.read(0x4000, 5) == b"there"
        ioas.close()
        with pytest.raises(BusyError):
            other.close()


# Close


def test_iommufd_closes_all_that_is_mock(ioas: IOAS) -> None:
    check = LeakCheck()
    iommufd = MockIOMMUFD()
    space, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    device, second = iommufd.mock_device(space, pasid=True), iommufd.mock_device(other, dirty_tracking=False)
    space.map(DMABuffer(PAGE))
    access, pinning = iommufd.mock_access(other), iommufd.mock_access(space, pin=True)
    dmabuf = iommufd.mock_dmabuf(PAGE)
    iommufd.close()
    assert all(one.closed for one in (device, second, space, other, access, pinning))
    assert names() == []
    assert not dmabuf.closed
    dmabuf.close()
    check.check()


def test_ids_are_free_again(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    with LeakCheck(iommufd), iommufd.mock_device(ioas), iommufd.mock_access(ioas):
        assert LeakCheck(iommufd)._id != ioas.id + 1


def test_forked_child_leaves_the_device_alone(iommufd: MockIOMMUFD, device: MockDevice) -> None:
    child = os.fork()
    if not child:
        try:
            iommufd.close()
        finally:
            os._exit(0 if iommufd.closed and device.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names() == [device.name]
    assert device.detach().kind is ChangeKind.DETACH


def test_fixture_gives_a_device_on_the_fixtures_address_space(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from pyiommufd import DMABuffer
        from pyiommufd.testing.mock import MockIOMMUFD

        def test_mock(no_leaks, dmesg, mock_device, iommufd, ioas):
            assert isinstance(iommufd, MockIOMMUFD)
            assert mock_device.page_table is ioas
            buffer = DMABuffer(4096)
            assert mock_device.reaches(buffer, ioas.map(buffer).iova)

        def test_plain(iommufd):
            assert not isinstance(iommufd, MockIOMMUFD)
    """)
    only = ("-p", "pyiommufd.testing.plugin.fixtures", "-p", "no:cacheprovider", "-Werror")
    pytester.runpytest_inprocess(*only).assert_outcomes(passed=2)
    assert names() == []


# Errors of the test command


def test_error_names_the_operation_and_the_object(iommufd: MockIOMMUFD) -> None:
    with pytest.raises(NotFoundError, match="IOMMU_TEST_CMD MOCK_DOMAIN on id 4711"):
        commands.mock_domain(iommufd.fileno(), 4711)
