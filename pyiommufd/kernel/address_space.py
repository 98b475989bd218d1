"""Where in an I/O address space mappings can be."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from .. import uapi
from ..errors import IoctlError
from ..uapi import ioctls
from .arguments import U64_MAX
from .iova import IOVARange
from .kernel_object import KernelObject


class AddressSpace(KernelObject):
    """The addresses of an IOAS, and how they are translated, whatever is mapped there."""

    __slots__ = ()

    def iova_ranges(self) -> tuple[IOVARange, ...]:
        """Where mappings can be (IOMMU_IOAS_IOVA_RANGES). Every attach and detach may change it.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `map`.
        """
        ranges, _ = ioctls.ioas_iova_ranges(self.fd(), self.id)
        return tuple(IOVARange(start, last) for start, last in ranges)

    @property
    def iova_alignment(self) -> int:
        """What an iova and a length must be multiples of, in bytes. Every attach and detach may change it."""
        return ioctls.ioas_iova_ranges(self.fd(), self.id)[1]

    def allow_iovas(self, ranges: Iterable[IOVARange | tuple[int, int]]) -> None:
        """Keep addresses for mappings (IOMMU_IOAS_ALLOW_IOVAS).

        From then on addresses that the kernel chooses lie within these ranges, and an attach that would narrow
        them is refused. Every call replaces what the last one said; no ranges at all take it back.

        Args:
            ranges: `IOVARange` objects, or pairs of the first and the inclusive last address.

        Raises:
            IoctlError: EADDRINUSE: an attached device cannot reach some of them. EINVAL: they overlap, or one has
                a single byte.
            ValueError: A range ends before it starts, or does not fit 64 bits.
            ClosedError, ForkedError: As for `map`.
        """
        pairs = []
        try:
            # A list first: to go through a released memoryview leaves CPython 3.11 with an exception nobody raises.
            for one in list(ranges):
                start, last = (one.start, one.last) if isinstance(one, IOVARange) else one
                start, last = operator.index(start), operator.index(last)
                if not 0 <= start <= last <= U64_MAX:
                    raise ValueError(f"{start:#x}..{last:#x} is no range of 64-bit addresses")
                pairs.append((start, last))
        except NotImplementedError:  # what a memoryview of several dimensions answers
            raise TypeError("ranges are IOVARange objects or pairs of numbers") from None
        fd = self.fd()
        try:
            ioctls.ioas_allow_iovas(fd, self.id, pairs)
        except IoctlError as error:
            wanted = ", ".join(str(IOVARange(*pair)) for pair in pairs)
            raise ioctls.failure("IOMMU_IOAS_ALLOW_IOVAS", f"{self!r} ({wanted})", error.errno) from None

    @property
    def huge_pages(self) -> bool:
        """Whether contiguous pages are combined in the IOMMU's page table (IOMMU_OPTION_HUGE_PAGES).

        Raises, when set to False:
            IoctlError: EINVAL: something is mapped into a page table already.
        """
        return bool(ioctls.option(self.fd(), uapi.IOMMU_OPTION_HUGE_PAGES, self.id))

    @huge_pages.setter
    def huge_pages(self, on: bool) -> None:
        try:
            ioctls.option(self.fd(), uapi.IOMMU_OPTION_HUGE_PAGES, self.id, int(bool(on)))
        except IoctlError as error:
            raise ioctls.failure("IOMMU_OPTION", f"huge pages of {self!r}", error.errno) from None
