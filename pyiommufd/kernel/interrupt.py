"""One interrupt of a device, to wait for."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from .. import uapi
from .eventfd import EventFD

if TYPE_CHECKING:
    from .irq import IRQ


class IRQIndex(IntEnum):
    """The types of interrupt of a PCI device (VFIO_PCI_*_IRQ_INDEX)."""

    INTX = uapi.VFIO_PCI_INTX_IRQ_INDEX
    MSI = uapi.VFIO_PCI_MSI_IRQ_INDEX
    MSIX = uapi.VFIO_PCI_MSIX_IRQ_INDEX
    ERR = uapi.VFIO_PCI_ERR_IRQ_INDEX
    REQ = uapi.VFIO_PCI_REQ_IRQ_INDEX


class IRQFlag(IntFlag):
    """What can be done with a type of interrupt (VFIO_IRQ_INFO_*).

    AUTOMASKED: one that has come is masked until `IRQ.unmask`. NORESIZE: more vectors only after turning it off.
    """

    EVENTFD = uapi.VFIO_IRQ_INFO_EVENTFD
    MASKABLE = uapi.VFIO_IRQ_INFO_MASKABLE
    AUTOMASKED = uapi.VFIO_IRQ_INFO_AUTOMASKED
    NORESIZE = uapi.VFIO_IRQ_INFO_NORESIZE


class Interrupt(EventFD):
    """One interrupt vector that is enabled. Made by `IRQ.enable`; how to wait for it, see `EventFD`.

    Attributes:
        irq: The type of interrupt that it is of.
        vector: Its number.
    """

    __slots__ = ("irq", "vector")

    def __init__(self, irq: IRQ, vector: int) -> None:
        super().__init__()
        self.irq = irq
        self.vector = vector

    def trigger(self) -> None:
        """Signal it as the device would, without the device.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: It has been disabled, or belongs to the parent process.
        """
        self._live()
        self.irq.trigger(self.vector, 1)

    def close(self) -> None:
        """Take the vector out of use, the other ones of its type staying as they are."""
        self.irq.release(self)
        super().close()

    def __repr__(self) -> str:
        return f"<Interrupt {self.irq.name}[{self.vector}] of {self.irq.device.name}{' closed' if self.closed else ''}>"


class UnmaskEvent(EventFD):
    """An eventfd each signal of which unmasks INTx. Made by `IRQ.unmask_event`."""

    __slots__ = ("_irq",)

    def __init__(self, irq: IRQ) -> None:
        super().__init__()
        self._irq = irq

    def close(self) -> None:
        """Let its signals have no effect any more."""
        self._irq.release_unmask(self)
        super().close()
