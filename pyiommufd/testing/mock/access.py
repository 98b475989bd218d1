"""Accesses: in-kernel users of an address space, as mediated devices are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyiommufd.kernel.handle import Handle
from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.testing.mock import commands
from pyiommufd.testing.mock.commands import AccessFlags
from pyiommufd.uapi import ioctls
from pyiommufd.uapi.ioctls import CHAR_ARRAY, from_buffer

if TYPE_CHECKING:
    from pyiommufd.testing.mock.iommufd import MockIOMMUFD


class MockAccess(Handle):
    """An in-kernel user of an address space. Made by `MockIOMMUFD.mock_access`; its fd is the kernel's test file.

    As long as it is open the address space cannot be closed (`BusyError`).
    """

    __slots__ = ("_iommufd", "ioas")

    def __init__(self, iommufd: MockIOMMUFD, fd: int, ioas: IOAS) -> None:
        super().__init__(fd)
        self._iommufd = iommufd
        self.ioas = ioas
        """What it accesses."""

    def read(self, iova: int, length: int, *, slow: bool = False) -> bytes:
        """Read what is mapped (ACCESS_RW).

        Args:
            iova: Where.
            length: Bytes.
            slow: Go by pinned pages even where the process could copy by itself.

        Raises:
            NotFoundError: Not all of it is mapped.
            AccessDeniedError: It is not readable for devices.
        """
        memory = bytearray(length)
        self._copy(iova, memory, AccessFlags.RW_SLOW_PATH if slow else AccessFlags(0))
        return bytes(memory)

    def write(self, iova: int, data: bytes, *, slow: bool = False) -> None:
        """Write to what is mapped (ACCESS_RW). Arguments and errors as for `read`."""
        self._copy(iova, bytearray(data), AccessFlags.WRITE | (AccessFlags.RW_SLOW_PATH if slow else AccessFlags(0)))

    def _copy(self, iova: int, memory: bytearray, flags: AccessFlags) -> None:
        held = from_buffer(CHAR_ARRAY, memory, True)
        try:
            address = ioctls.address(held)
            commands.access_rw(self._iommufd._live().fd, self._live().fd, iova, len(memory), address, flags)
        finally:
            ioctls.release(held)

    def pin(self, iova: int, memory: object, *, writeable: bool = True) -> PinnedPages:
        """Pin what is mapped at an iova, and make sure that it is this memory (ACCESS_PAGES).

        Unmapping takes the pins away.

        Args:
            iova: Where.
            memory: A buffer: what has to be mapped there.
            writeable: For writing.

        Raises:
            UnsupportedError: The access was not made with ``pin=True``.
            NotFoundError: Not all of it is mapped.
            IoctlError: EBADE: other memory is mapped there.
        """
        held = from_buffer(CHAR_ARRAY, memory, False)
        flags = AccessFlags.WRITE if writeable else 0
        try:
            fd, address = self._iommufd._live().fd, ioctls.address(held)
            return PinnedPages(self, commands.access_pages(fd, self._live().fd, iova, len(held), address, flags))
        finally:
            ioctls.release(held)

    def replace(self, ioas: IOAS) -> None:
        """Go to another address space (ACCESS_REPLACE_IOAS). What was pinned is unpinned.

        Raises:
            IoctlError: The kernel refused.
        """
        commands.access_replace_ioas(self._iommufd._live().fd, self._live().fd, ioas.id)
        self.ioas = ioas

    def unpin(self, pages_id: int) -> None:
        """Unpin by id; see `PinnedPages.unpin`."""
        commands.destroy_access_pages(self._iommufd._live().fd, self._live().fd, pages_id)

    def close(self) -> None:
        """Unpin everything and leave the address space. Does nothing the second time."""
        self._iommufd.forget_access(self)
        super().close()


class PinnedPages:
    """Pages that an access has pinned. Made by `MockAccess.pin`.

    Attributes:
        id: Its id within the access.
    """

    def __init__(self, access: MockAccess, pages_id: int) -> None:
        self._access = access
        self.id = pages_id

    def unpin(self) -> None:
        """Unpin them (DESTROY_ACCESS_PAGES).

        Raises:
            NotFoundError: They are not pinned any more, for an unmap or a `MockAccess.replace` has come before.
        """
        self._access.unpin(self.id)
