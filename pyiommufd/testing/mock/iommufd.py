"""An iommufd that can make devices of the mock IOMMU."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pyiommufd import uapi
from pyiommufd.errors import CloseError, IOMMUFDError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.kernel.iommufd import IOMMUFD
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.kernel.pagetables.page_table import PageTable
from pyiommufd.testing.mock import commands
from pyiommufd.testing.mock.access import MockAccess
from pyiommufd.testing.mock.check import holds
from pyiommufd.testing.mock.commands import AccessFlags, DeviceFlags
from pyiommufd.testing.mock.device import MockDevice
from pyiommufd.testing.mock.dmabuf import MockDMABuf
from pyiommufd.uapi import ioctls, raw
from pyiommufd.uapi.ioctls import CHAR_ARRAY, from_buffer

_DEVICES = sysfs.SYS / "bus/iommufd_mock/devices"


class MockIOMMUFD(IOMMUFD):
    """An `IOMMUFD` of a kernel with CONFIG_IOMMUFD_TEST. Closing it closes its mock devices and accesses, too.

    Real devices can be bound to it as well.
    """

    __slots__ = ("_accesses",)

    def _prepare(self) -> None:
        super()._prepare()
        self._accesses: dict[MockAccess, None] = {}

    def mock_device(self, page_table: PageTable, *, dirty_tracking: bool = True, pasid: bool = False) -> MockDevice:
        """Make a device of the mock IOMMU, bind it and attach it (MOCK_DOMAIN, MOCK_DOMAIN_FLAGS).

        Args:
            page_table: Where it is attached: the mock IOMMU makes the three steps one.
            dirty_tracking: Whether its IOMMU can tell which pages it has written to.
            pasid: Whether it can do DMA with PASIDs.

        Raises:
            UnsupportedError: The kernel was built without CONFIG_IOMMUFD_TEST.
            IoctlError: The kernel refused, as what is mapped is out of the mock IOMMU's reach (16 MiB to 2 GiB), say.
            IOMMUFDError: It made one that no IOMMU covers, as when it is out of memory (`fail_nth`); or another process
                makes mock devices, too.
            ValueError: The page table belongs to another iommufd.
        """
        page_table._live()  # closed, or of the parent process
        if page_table.iommufd is not self:
            raise ValueError(f"{page_table!r} belongs to another IOMMUFD")
        flags = DeviceFlags(0)
        flags |= DeviceFlags(0) if dirty_tracking else DeviceFlags.NO_DIRTY
        flags |= DeviceFlags.PASID if pasid else DeviceFlags(0)
        fd = self._live().fd
        with self._lock:
            before = _names()
            if flags:
                stdev_id, hwpt_id, device_id = commands.mock_domain_flags(fd, page_table.id, flags)
            else:
                stdev_id, hwpt_id, device_id = commands.mock_domain(fd, page_table.id)
            try:
                # The command does not say which it made.
                made = _names() - before
                if len(made) != 1:
                    raise IOMMUFDError(f"another process makes mock devices, too: {sorted(made)} are new")
                host = from_sys_path((_DEVICES / made.pop()).resolve())
                if host.without_iommu:
                    # As the kernel's device core takes no notice of that, iommufd has bound what no IOMMU covers.
                    raise IOMMUFDError(f"the kernel failed to put {host.name} behind the mock IOMMU")
                return MockDevice(self, host, page_table, stdev_id, device_id, hwpt_id)
            except BaseException:
                raw.ioctl(fd, uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=stdev_id))
                raise

    def mock_access(self, ioas: IOAS, *, pin: bool = False) -> MockAccess:
        """Make an in-kernel user of an address space, as a mediated device is (CREATE_ACCESS).

        Args:
            ioas: The address space.
            pin: It pins pages (`MockAccess.pin`), and neither reads nor writes otherwise.

        Raises:
            IoctlError: The kernel refused.
        """
        flags = AccessFlags.NEEDS_PIN_PAGES if pin else 0
        access = MockAccess(self, commands.create_access(self._live().fd, ioas.id, flags), ioas)
        self._accesses[access] = None
        return access

    def mock_dmabuf(self, length: int) -> MockDMABuf:
        """Make a dma-buf that can be mapped by its fd and revoked (DMABUF_GET).

        Args:
            length: Bytes, rounded up to pages; up to 2 MiB.
        """
        return MockDMABuf(self, length)

    def reserve(self, ioas: IOAS, start: int, length: int) -> None:
        """Reserve addresses of an address space, as the needs of a device would (ADD_RESERVED). There is no way back.

        Raises:
            IoctlError: EADDRINUSE: something is mapped there.
        """
        commands.add_reserved(self._live().fd, ioas.id, start, length)

    def pinned(self, memory: object, times: int) -> bool:
        """Whether each page of memory is pinned so many times (MD_CHECK_REFS).

        Pages of huge pages are not looked at, so that the answer is yes for them.

        Args:
            memory: A buffer on page boundaries.
            times: How often; 0: not at all.
        """
        held = from_buffer(CHAR_ARRAY, memory, False)
        address, length = ioctls.address(held), len(held)
        try:
            return holds(lambda: commands.md_check_refs(self._live().fd, address, length, times), errno.EIO)
        finally:
            ioctls.release(held)

    def iotlb_holds(self, hwpt_id: int, entry: int, value: int) -> bool:
        """Whether an entry of a nested page table's I/O TLB has a value (MD_CHECK_IOTLB); 0 once it was invalidated.

        Raises:
            NotFoundError, IoctlError: There is no nested page table of that id.
        """
        return holds(lambda: commands.md_check_iotlb(self._live().fd, hwpt_id, entry, value))

    @contextlib.contextmanager
    def memory_limit(self, limit: int) -> Iterator[None]:
        """Have the kernel take less memory for each batch of pages, so that it needs many (SET_TEMP_MEMORY_LIMIT).

        It concerns every iommufd of the machine. Afterwards the limit is that of the boot.

        Args:
            limit: Bytes, from `commands.SMALLEST_MEMORY_LIMIT` on.

        Raises:
            IoctlError: EINVAL: less than that.
        """
        commands.set_temp_memory_limit(self._live().fd, limit)
        try:
            yield
        finally:
            commands.set_temp_memory_limit(self._live().fd, commands.MEMORY_LIMIT)

    def forget_access(self, access: MockAccess) -> None:
        """An access has been closed."""
        self._accesses.pop(access, None)

    def close(self) -> None:
        """Close everything that it owns, and the fd. See `IOMMUFD.close`."""
        errors: list[BaseException] = []
        # Each keeps its address space in use, and the iommufd alive.
        for access in list(self._accesses):
            try:
                access.close()
            except OSError as error:
                errors.append(error)
        try:
            super().close()
        except CloseError as error:
            errors += error.errors
        if errors:
            raise CloseError("the iommufd was closed with errors:", tuple(errors))


def _names() -> set[str]:
    try:
        return {path.name for path in _DEVICES.iterdir()}
    except OSError:
        return set()  # a kernel without mock devices, as the command is about to say
