"""dma-bufs that can be revoked."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pyiommufd.errors import IOMMUFDError
from pyiommufd.kernel.handle import Handle
from pyiommufd.testing.mock import commands

if TYPE_CHECKING:
    from pyiommufd.testing.mock.iommufd import MockIOMMUFD

_one_at_a_time = threading.Lock()


class MockDMABuf(Handle):
    """A dma-buf of the kernel's test code, to be mapped by its fd. Made by `MockIOMMUFD.mock_dmabuf`.

    It stands for the memory of a device, which is taken away from those that have mapped it when the device is reset.

    Thread safety: while one is made no other thread may open dma-bufs.
    """

    __slots__ = ("_iommufd",)

    def __init__(self, iommufd: MockIOMMUFD, length: int) -> None:
        # Linux 7.3 returns 0 and not the fd, which exists all the same: it is the dma-buf that is new.
        with _one_at_a_time:
            before = _dmabufs()
            commands.dmabuf_get(iommufd._live().fd, length, os.O_RDWR | os.O_CLOEXEC)
            new = _dmabufs() - before
        if len(new) != 1:
            raise IOMMUFDError(f"another thread opens dma-bufs, too: fds {sorted(new)} are new")
        super().__init__(new.pop())
        self._iommufd = iommufd

    def revoke(self) -> None:
        """Take the memory away from those that have mapped it, for good; and refuse to map it (DMABUF_REVOKE)."""
        commands.dmabuf_revoke(self._iommufd._live().fd, self.fileno(), True)

    def restore(self) -> None:
        """Let it be mapped again. Mappings that were revoked stay so."""
        commands.dmabuf_revoke(self._iommufd._live().fd, self.fileno(), False)


def _dmabufs() -> set[int]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # that of the listing itself
        if target.startswith("/dmabuf:"):
            found.add(int(entry.name))
    return found
