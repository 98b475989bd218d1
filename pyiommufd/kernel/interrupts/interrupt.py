"""One interrupt of a device, to wait for."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pyiommufd import uapi
from pyiommufd.kernel.interrupts.eventfd import EventFD

if TYPE_CHECKING:
    from pyiommufd.kernel.interrupts.irq import IRQ


class IRQIndex(IntEnum):
    """The types of interrupt of a PCI device (VFIO_PCI_*_IRQ_INDEX)."""

    INTX = uapi.VFIO_PCI_INTX_IRQ_INDEX
    MSI = uapi.VFIO_PCI_MSI_IRQ_INDEX
    MSIX = uapi.VFIO_PCI_MSIX_IRQ_INDEX
    ERR = uapi.VFIO_PCI_ERR_IRQ_INDEX
    REQ = uapi.VFIO_PCI_REQ_IRQ_INDEX


class APIRQIndex(IntEnum):
    """The types of interrupt of a crypto adapter of s390, by vfio-ap (VFIO_AP_*_IRQ_INDEX)."""

    REQ = uapi.VFIO_AP_REQ_IRQ_INDEX
    CFG_CHG = uapi.VFIO_AP_CFG_CHG_IRQ_INDEX


class CCWIRQIndex(IntEnum):
    """The types of interrupt of a channel device of s390, by vfio-ccw (VFIO_CCW_*_IRQ_INDEX)."""

    IO = uapi.VFIO_CCW_IO_IRQ_INDEX
    CRW = uapi.VFIO_CCW_CRW_IRQ_INDEX
    REQ = uapi.VFIO_CCW_REQ_IRQ_INDEX


class IRQFlag(IntFlag):
    """What can be done with a type of interrupt (VFIO_IRQ_INFO_*).

    AUTOMASKED: one that has come is masked until `IRQ.unmask`. NORESIZE: more vectors only after turning it off.
    """

    EVENTFD = uapi.VFIO_IRQ_INFO_EVENTFD
    MASKABLE = uapi.VFIO_IRQ_INFO_MASKABLE
    AUTOMASKED = uapi.VFIO_IRQ_INFO_AUTOMASKED
    NORESIZE = uapi.VFIO_IRQ_INFO_NORESIZE


class Interrupt(EventFD):
    """One interrupt vector that is enabled. Made by `IRQ.enable` and `IRQ.open`; how to wait for it, see `EventFD`.

    If it signals an eventfd of the caller's, wait on that one: `wait` and `take` raise ValueError here.

    Thread safety: as for `EventFD`.

    Attributes:
        irq: The type of interrupt that it is of.
        vector: Its number.
    """

    __slots__ = ("irq", "vector")

    def __init__(self, irq: IRQ, vector: int, eventfd: EventFD | int | None = None) -> None:
        self.irq = irq
        self.vector = vector
        super().__init__(eventfd)

    def trigger(self) -> None:
        """Signal it as the device would, without the device.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: It has been disabled, or belongs to the parent process.
        """
        self._live()
        self.irq.trigger(self.vector, 1)

    def close(self) -> None:
        """Disable this vector and leave the others of its type as they are; closing the last turns the type off.

        Its number can be enabled again by `IRQ.open`. An eventfd of the caller's stays open.
        """
        self.irq._release(self)
        super().close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else " on the caller's eventfd" if self.lent else ""
        return f"<Interrupt {self.irq.name}[{self.vector}] of {self.irq.device.name}{state}>"


class UnmaskEvent(EventFD):
    """An eventfd each signal of which unmasks INTx. Made by `IRQ.unmask_event`.

    The kernel reads it, so that nobody can wait here (ValueError).

    Thread safety: as for `EventFD`.
    """

    __slots__ = ("_irq",)

    _reader = "the kernel"

    def __init__(self, irq: IRQ, eventfd: EventFD | int | None = None) -> None:
        self._irq = irq
        super().__init__(eventfd)

    def close(self) -> None:
        """Let its signals have no effect any more. An eventfd of the caller's stays open."""
        self._irq._release(self)
        super().close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else " on the caller's eventfd" if self.lent else ""
        return f"<UnmaskEvent of {self._irq.name} of {self._irq.device.name}{state}>"
