"""Whether code has given back what it took: fds, mapped registers, and objects of an iommufd."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from pyiommufd.kernel.iommufd import IOMMUFD
from pyiommufd.uapi import ioctls

# What keeps an iommufd or a device of its alive. Not memfds: a buffer may outlive a test and keeps nothing else.
_FD = re.compile(r"/dev/iommu$|/dev/vfio/|/dmabuf:|anon_inode:\[?(?:iommufd|vfio)")
_MAP = re.compile(r"/dev/vfio/|anon_inode:\[?vfio|/dev/iommu|/dmabuf:")


class LeakError(AssertionError):
    """Something was not given back.

    Attributes:
        leaks: What, in sentences.
    """

    def __init__(self, leaks: list[str]) -> None:
        super().__init__(leaks)
        self.leaks = leaks

    def __str__(self) -> str:
        return "\n  ".join(["something was not given back:", *self.leaks])


def kernel_fds() -> dict[int, str]:
    """This process's fds of iommufds, of vfio devices and of what these hand out, with what each is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # that of the listing itself
        if _FD.match(target):
            found[int(entry.name)] = target
    return found


def kernel_maps() -> dict[str, str]:
    """This process's mappings of registers and of dma-bufs: their addresses, with what each is of."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name and _MAP.match(name[0]):
            found[addresses] = name[0]
    return found


def next_id(iommufd: IOMMUFD) -> int:
    """The id that the next object of an iommufd gets: the lowest that is free."""
    made = ioctls.new_object(iommufd._live())
    ioctls.ioas_alloc(made)
    ioctls.destroy(made)
    return made.id


class LeakCheck:
    """Compares what this process holds with what it held: the fixture ``no_leaks``. A context manager that checks.

    Args:
        iommufd: Look at the objects of this one as well: afterwards the next object gets the id that it gets now. Ids
            are the lowest that are free, so this sees whatever has been made with its fd and not destroyed, by
            whatever code.
    """

    def __init__(self, iommufd: IOMMUFD | None = None) -> None:
        self._iommufd = iommufd
        self._id = None if iommufd is None else next_id(iommufd)
        self._objects = () if iommufd is None else iommufd.objects
        self._fds = kernel_fds()
        self._maps = kernel_maps()

    def leaks(self) -> list[str]:
        """What has been taken since and not given back, in sentences."""
        gc.collect()  # what nobody holds any more is not leaked
        found = [f"fd {fd}: {what}" for fd, what in sorted(kernel_fds().items() - self._fds.items())]
        found += [
            f"mapped memory at {addresses}: {what}"
            for addresses, what in sorted(kernel_maps().items() - self._maps.items())
        ]
        if self._iommufd is not None and not self._iommufd.closed:
            found += [f"{one!r} of {self._iommufd!r}" for one in self._iommufd.objects if one not in self._objects]
            now = next_id(self._iommufd)
            if now != self._id:
                found.append(f"id {self._id} of {self._iommufd!r}, which is still taken: the next one is {now}")
        return found

    def check(self) -> None:
        """Raise what was leaked.

        Raises:
            LeakError: Something was.
        """
        if leaks := self.leaks():
            raise LeakError(leaks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An exception on its way says more than what it has left open.
        if error is None:
            self.check()
